"""``allmrec experiment table9``: what stage 2's vectors are worth (the paper's Table 9).

Each row is trained again without the vectors that it lacks, or with fixed random numbers of N(0, 1) in place of the
items', the same in training and evaluation.
"""

import click

from allmrec_jax.eval.runner import Options, Table, make_tables, plan_table, table_options
from allmrec_jax.experiments.rows import REDUCED, STAGE2_ABLATIONS


@click.command(
    name="table9",
    short_help="stage 2 without user or item vectors (Table 9)",
    epilog="Example: allmrec experiment table9 --data data/Movies",
)
@table_options
def command(options: Options) -> None:
    """Train stage 2 again without user vectors, without item vectors, and with random ones.

    Preset small starts the projectors with the vectors that a row has, and trains all rows at a reduced budget,
    A-LLMRec among them; --whole-budget does not.
    """
    make_tables(options, plan_tables(options))


def plan_tables(options: Options) -> list[Table]:
    """The table."""
    systems = ("A-LLMRec", *STAGE2_ABLATIONS)
    title, published = "Table 9: ablations of stage 2", "table9_stage2_ablation"
    return [plan_table(options, "table9", title, systems, budget=REDUCED, reference="A-LLMRec", published=published)]


if __name__ == "__main__":
    command()
