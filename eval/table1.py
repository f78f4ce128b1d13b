"""``allmrec experiment table1``: the paper's Table 1, every system on one candidate file."""

import click

from allmrec_jax.eval.runner import Options, Table, make_tables, plan_table, table_options
from allmrec_jax.experiments.rows import known_systems


@click.command(
    name="table1",
    short_help="every system overall (Table 1)",
    epilog="Example: allmrec experiment table1 --data data/Movies --seeds 3 --llm-seeds 1 --llm-users 500",
)
@table_options
def command(options: Options) -> None:
    """Train what is missing, ask every system about the same users and candidates, and write the table.

    Finished trainings are found by their identity and not repeated; an interrupted table goes on where it was. Warm and
    cold items are columns of it, backbones rows of it.
    """
    make_tables(options, plan_tables(options))


def plan_tables(options: Options) -> list[Table]:
    """The table."""
    return [plan_table(options, "table1", "Table 1: overall", known_systems())]


if __name__ == "__main__":
    command()
