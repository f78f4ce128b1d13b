"""``allmrec experiment table7``: trained on one data set, asked about another (the paper's Table 7).

Nothing is trained on the other data set, whose items no training has met. Items known by vectors have untrained ones
there, items known by their texts are encoded: see :mod:`allmrec_jax.evaluation.transfer`.
"""

import click

from allmrec_jax.data.dataset import Dataset, load_dataset
from allmrec_jax.data.scenarios import Scenario, cross_domain
from allmrec_jax.errors import UserError
from allmrec_jax.eval.runner import Options, Table, make_tables, plan_table, table_options, target_option
from allmrec_jax.experiments.rows import TALLREC, TEXT_SYSTEMS

SYSTEMS = ("SASRec", *(name for name in TEXT_SYSTEMS if name != "CTRL"), *TALLREC, "A-LLMRec", "A-LLMRec (SBERT)")


@click.command(
    name="table7",
    short_help="trained on one data set, asked about another (Table 7)",
    epilog="Example: allmrec experiment table7 --data data/Movies --target data/Games",
)
@target_option
@table_options
def command(options: Options) -> None:
    """Train on --data and ask about the users and items of --target."""
    make_tables(options, plan_tables(options))


def plan_tables(options: Options) -> list[Table]:
    """The table."""
    if options.target is None:
        raise UserError("Table 7 asks about a second data set: name one with --target")
    target = load_dataset(options.target)
    title = f"Table 7: trained on {load_dataset(options.data).name}, asked about {target.name}"

    def scenario(dataset: Dataset) -> Scenario:
        return cross_domain(dataset, target)

    return [plan_table(options, "table7", title, SYSTEMS, scenario=scenario, published="table7_cross_domain")]


if __name__ == "__main__":
    command()
