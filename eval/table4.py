"""``allmrec experiment table4``: cold and warm items (the paper's Table 4).

Cold and warm are the users whose test item is in the bottom or top 35% of the catalogue by training interactions; they
are slices of Table 1's answers, which are read again where they are there.
"""

import click

from allmrec_jax.eval.runner import Options, Table, make_tables, plan_table, table_options
from allmrec_jax.experiments.rows import TALLREC, TEXT_SYSTEMS

SYSTEMS = ("SASRec", *TEXT_SYSTEMS, *TALLREC, "A-LLMRec", "A-LLMRec (SBERT)")


@click.command(
    name="table4",
    short_help="cold and warm items (Table 4)",
    epilog="Example: allmrec experiment table4 --data data/Movies --seeds 3",
)
@table_options
def command(options: Options) -> None:
    """Compare systems on users whose next item is cold or warm."""
    make_tables(options, plan_tables(options))


def plan_tables(options: Options) -> list[Table]:
    """The table."""
    return [plan_table(options, "table4", "Table 4: cold and warm items", SYSTEMS)]


if __name__ == "__main__":
    command()
