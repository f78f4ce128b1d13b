"""``allmrec experiment table8``: what each part of stage 1 is worth (the paper's Table 8)."""

import click

from allmrec_jax.eval.runner import Options, Table, make_tables, plan_table, table_options
from allmrec_jax.experiments.rows import REDUCED, STAGE1_ABLATIONS


@click.command(
    name="table8",
    short_help="stage 1 without each of its parts (Table 8)",
    epilog="Example: allmrec experiment table8 --data data/Movies",
)
@table_options
def command(options: Options) -> None:
    """Train both stages again without each loss of stage 1, and with the sentence encoder frozen.

    Every row has the same budget, A-LLMRec among them; preset small reduces it, --whole-budget does not.
    """
    make_tables(options, plan_tables(options))


def plan_tables(options: Options) -> list[Table]:
    """The table."""
    systems = ("A-LLMRec", *STAGE1_ABLATIONS)
    title, published = "Table 8: ablations of stage 1", "table8_stage1_ablation"
    return [plan_table(options, "table8", title, systems, budget=REDUCED, reference="A-LLMRec", published=published)]


if __name__ == "__main__":
    command()
