"""``allmrec experiment table10``: time to train and to answer (the paper's Table 10).

Training time is that of the system's own stages, without the CF model, and is known for trainings that an experiment
ran. Answering time is a whole evaluation, model loading and compilation with it, over its batches.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from allmrec_jax.eval.runner import Options, run_table, table_options
from allmrec_jax.evaluation.rows import TALLREC
from allmrec_jax.fileio import write_text
from allmrec_jax.report import paper

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
    run(options)


def run(options: Options) -> None:
    """The table."""
    results = run_table(options, "table10", "Table 10: speed", SYSTEMS, reference="A-LLMRec")
    if results is not None:
        out = options.out or Path("runs") / "table10" / results["data"]["name"]
        write_text(out / "speed.md", speed(results, options.batch_size))
        click.echo((out / "speed.md").read_text())


def speed(results: Mapping[str, Any], batch_size: int) -> str:
    """Minutes of training and seconds per batch of each system, as Markdown."""
    published = paper.tables()["table10_speed"]["values"]
    lines = [
        "| System | Training, minutes | Answering, seconds per batch | Hit@1 | Paper: minutes | Paper: seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for run in results["runs"]:
        stages = [node["seconds"] for node in run["trainings"] if node["kind"] != "cf"]
        minutes = "n/a: not trained by an experiment" if None in stages else f"{sum(stages) / 60:.2f}"
        batches = math.ceil(run["users"] / batch_size)
        theirs = published.get(paper.NAMES.get(run["system"], run["system"]), {})
        hit = results["systems"][run["system"]]["all"]["hit@1"][0]
        lines.append(
            f"| {run['system']}, seed {run['seed']} | {minutes} | {run['seconds'] / batches:.3f} | {hit:.3f} "
            f"| {theirs.get('train_min', '')} | {theirs.get('infer_s_per_batch', '')} |"
        )
    return "\n".join([*lines, "", f"A batch is {batch_size} users. The paper's are its own on one A6000.", ""])


if __name__ == "__main__":
    command()
