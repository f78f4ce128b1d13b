"""``allmrec experiment table10``: time to train and to answer (the paper's Table 10).

Training time is that of the system's own stages, without the CF model, and is known for trainings that an experiment
ran. Answering time is a whole evaluation, model loading and compilation with it, over its batches.
"""

import click

from allmrec_jax.eval.runner import Options, Table, make_tables, plan_table, table_options
from allmrec_jax.experiments.rows import TALLREC

SYSTEMS = (*TALLREC, "A-LLMRec", "A-LLMRec_all")


@click.command(
    name="table10",
    short_help="time to train and to answer (Table 10)",
    epilog="Example: allmrec experiment table10 --data data/Movies --llm-users 500",
)
@table_options
def command(options: Options) -> None:
    """Train and ask A-LLMRec, A-LLMRec_all and TALLRec, and say how long each took.

    The times of trainings and answers that were there before are those of then; name fresh --checkpoints to measure
    all in one run.
    """
    make_tables(options, plan_tables(options))


def plan_tables(options: Options) -> list[Table]:
    """The table."""
    return [plan_table(options, "table10", "Table 10: speed", SYSTEMS, reference="A-LLMRec")]


if __name__ == "__main__":
    command()
