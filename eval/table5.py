"""``allmrec experiment table5``: cold users (the paper's Table 5).

Users with exactly three interactions, which preparation kept out of training; the last one is to be found. Where a data
set has none, users are held out of training, and their histories are cut to two items, one or none: each is a table of
its own, in a folder named by that number, and its rows say *simulated*.
"""

import dataclasses

import click

from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.data.scenarios import Scenario, cold_users
from allmrec_jax.eval.runner import Options, Table, make_tables, plan_table, table_options
from allmrec_jax.experiments.rows import TALLREC, TEXT_SYSTEMS

SYSTEMS = ("SASRec", *(name for name in TEXT_SYSTEMS if name != "CTRL"), *TALLREC, "MLP-LLM", "A-LLMRec")
PUBLISHED = "table5_cold_users"


@click.command(
    name="table5",
    short_help="users with three interactions (Table 5)",
    epilog="Example: allmrec experiment table5 --data data/Movies --seeds 3",
)
@click.option("--simulate", is_flag=True, help="Hold users out of training even where the data set has cold ones.")
@table_options
def command(options: Options, simulate: bool) -> None:
    """Compare systems on users that no training has met."""
    make_tables(options, plan_tables(options, simulate))


def plan_tables(options: Options, simulate: bool = False) -> list[Table]:
    """The table, or one for each length of simulated histories."""
    dataset = load_dataset(options.data)
    out = options.folder("table5", dataset)

    def planned(where: Scenario) -> Table:
        users, length = f"{where.about['users']:,}", where.about["history"]
        if not where.about["simulated"]:
            title = f"Table 5: cold users ({users})"
            return plan_table(options, "table5", title, SYSTEMS, scenario=lambda _: where, published=PUBLISHED)
        title = f"Table 5: simulated cold users ({users}), histories of length {length}"
        own = dataclasses.replace(options, out=out / str(length))
        return plan_table(own, "table5", title, SYSTEMS, scenario=lambda _: where, published=PUBLISHED)

    return [planned(where) for where in cold_users(dataset, simulate=simulate)]


if __name__ == "__main__":
    command()
