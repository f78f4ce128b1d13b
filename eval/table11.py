"""``allmrec experiment table11``: four CF models, alone and under A-LLMRec (the paper's Table 11)."""

import click

from allmrec_jax.eval.runner import Options, run_table, table_options
from allmrec_jax.evaluation.rows import CF_MODELS


@click.command(
    name="table11",
    short_help="four CF models, alone and under A-LLMRec (Table 11)",
    epilog="Example: allmrec experiment table11 --data data/Movies --set stage2.steps=160",
)
@table_options
def command(options: Options) -> None:
    """Train A-LLMRec on each CF model; every such row is also tested against its own backbone."""
    run(options)


def run(options: Options) -> None:
    """The table."""
    systems = [row for name in CF_MODELS for row in (name, f"A-LLMRec ({name})")]
    title = "Table 11: other collaborative-filtering models"
    run_table(options, "table11", title, systems, published="table11_model_agnostic")


if __name__ == "__main__":
    command()
