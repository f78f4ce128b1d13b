"""``allmrec experiment table11``: four CF models, alone and under A-LLMRec (the paper's Table 11)."""

import click

from allmrec_jax.eval.runner import Options, Table, make_tables, plan_table, table_options
from allmrec_jax.experiments.rows import CF_MODELS, REDUCED


@click.command(
    name="table11",
    short_help="four CF models, alone and under A-LLMRec (Table 11)",
    epilog="Example: allmrec experiment table11 --data data/Movies",
)
@table_options
def command(options: Options) -> None:
    """Train A-LLMRec on each CF model; every such row is also tested against its own backbone.

    Preset small trains both stages at a reduced budget, on SASRec too; --whole-budget does not.
    """
    make_tables(options, plan_tables(options))


def plan_tables(options: Options) -> list[Table]:
    """The table."""
    systems = [row for name in CF_MODELS for row in (name, f"A-LLMRec ({name})")]
    title = "Table 11: other collaborative-filtering models"
    return [plan_table(options, "table11", title, systems, budget=REDUCED, published="table11_model_agnostic")]


if __name__ == "__main__":
    command()
