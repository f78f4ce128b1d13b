"""``allmrec experiment table8``: what each part of stage 1 is worth (the paper's Table 8)."""

import click

from allmrec_jax.eval.runner import Options, run_table, table_options
from allmrec_jax.evaluation.rows import STAGE1_ABLATIONS


@click.command(
    name="table8",
    short_help="stage 1 without each of its parts (Table 8)",
    epilog="Example: allmrec experiment table8 --data data/Movies --set stage2.steps=160",
)
@table_options
def command(options: Options) -> None:
    """Train both stages again without each loss of stage 1, and with the sentence encoder frozen.

    Every row has the same budget, A-LLMRec's own among them; `--set` cuts it for all alike.
    """
    run(options)


def run(options: Options) -> None:
    """The table."""
    systems = ("A-LLMRec", *STAGE1_ABLATIONS)
    title = "Table 8: ablations of stage 1"
    run_table(options, "table8", title, systems, reference="A-LLMRec", published="table8_stage1_ablation")


if __name__ == "__main__":
    command()
