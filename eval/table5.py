"""``allmrec experiment table5``: cold users (the paper's Table 5).

Users with exactly three interactions, which preparation kept out of training; the last one is to be found. Where a data
set has none, users are held out of training and cut to three interactions: the table then says *simulated*.
"""

import click

from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.data.scenarios import cold_users
from allmrec_jax.eval.runner import Options, run_table, table_options
from allmrec_jax.evaluation.rows import TALLREC, TEXT_SYSTEMS

SYSTEMS = ("SASRec", *(name for name in TEXT_SYSTEMS if name != "CTRL"), *TALLREC, "MLP-LLM", "A-LLMRec")


@click.command(
    name="table5",
    short_help="users with three interactions (Table 5)",
    epilog="Example: allmrec experiment table5 --data data/Movies --seeds 3",
)
@table_options
def command(options: Options) -> None:
    """Compare systems on users that no training has met."""
    run(options)


def run(options: Options) -> None:
    """The table."""
    where = cold_users(load_dataset(options.data))
    label = "simulated cold users" if where.about["simulated"] else "cold users"
    title = f"Table 5: {label} ({where.about['users']:,})"
    run_table(options, "table5", title, SYSTEMS, scenario=lambda _: where, published="table5_cold_users")


if __name__ == "__main__":
    command()
