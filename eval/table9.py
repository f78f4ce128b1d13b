"""``allmrec experiment table9``: what stage 2's vectors are worth (the paper's Table 9).

Each row is trained again without the vectors that it lacks, or with noise in their place: normal, with the mean and the
deviation of the joint embeddings, the same in training and evaluation.
"""

import click

from allmrec_jax.eval.runner import Options, run_table, table_options
from allmrec_jax.evaluation.rows import PLAIN, STAGE2_ABLATIONS


@click.command(
    name="table9",
    short_help="stage 2 without user or item vectors (Table 9)",
    epilog="Example: allmrec experiment table9 --data data/Movies --set stage2.steps=160",
)
@table_options
def command(options: Options) -> None:
    """Train stage 2 again without user vectors, without item vectors, and with random ones.

    Preset small starts the projectors from both kinds of vectors; here every row but A-LLMRec itself goes without, and
    "A-LLMRec, plain start" is the row to compare with. In preset paper the two are one and the same training.
    """
    run(options)


def run(options: Options) -> None:
    """The table."""
    systems = ("A-LLMRec", PLAIN, *STAGE2_ABLATIONS)
    title = "Table 9: ablations of stage 2"
    run_table(options, "table9", title, systems, reference=PLAIN, published="table9_stage2_ablation")


if __name__ == "__main__":
    command()
