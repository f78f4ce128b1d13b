"""What an experiment would do: what is missing, how long that may take, and the same as SLURM files."""

import os
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from allmrec_jax.errors import STOPPED
from allmrec_jax.experiments.answers import EvaluationProtocol, kept_answers
from allmrec_jax.experiments.graph import Row, Training, Workplace, levels, trainings_of, units
from allmrec_jax.fileio import write_text
from allmrec_jax.outputs import Output
from allmrec_jax.records import COST, read_cost
from allmrec_jax.trained.kinds import KINDS

BEGINNING = 15.0
"""Seconds that a training takes to begin: imports and compilation, about."""

SECONDS_PER_ANSWER = 0.02
"""Of a row with a language model, per user: roughly, with preset ``small``'s models on two idle cores."""


def estimate(work: Workplace, node: Training) -> float | None:
    """Seconds that the run may take: the median of its kind here, on this data if there are any, else as on the
    embedded data.

    Runs are compared by their units of training, beyond what every one takes to begin. ``None`` where neither is
    known.
    """
    settings = node.settings
    named, model = getattr(settings, "kind", node.kind), getattr(settings, "model", None)
    usual = KINDS[node.kind].seconds_per_unit.get(str(model) if KINDS[node.kind].by_model else named)
    rates: dict[bool, list[float]] = {True: [], False: []}
    for path in work.checkpoints.glob(f"*/{named}/*/{COST}"):
        cost = read_cost(path.parent)
        if cost and cost.get("units") and cost.get("model") == model:
            same = path.parents[2].name == work.dataset.name
            rates[same].append(max(cost["seconds"] - BEGINNING, 1.0) / cost["units"])
    if known := rates[True] or rates[False]:
        # The median: one that ran beside other work says little.
        return BEGINNING + statistics.median(known) * units(work, node)
    if node.preset == "small" and usual is not None:
        return BEGINNING + usual * units(work, node)
    return None


def show_plan(tables: "Sequence[tuple[Workplace, Sequence[Row], EvaluationProtocol | None]]") -> str:
    """The plan in lines: each training, whether it is finished, and how long trainings and answers may take.

    Args:
        tables: where their rows are trained, the rows, and how they are asked, if they are.
    """
    lines: dict[Path, str] = {}
    total, unknown = 0.0, 0
    for work, rows, _ in tables:
        for node in trainings_of(rows):
            path = work.path(node)
            if path in lines:
                continue
            state = "finished"
            if not work.done(node):
                guess = estimate(work, node)
                what = "to train again, half written" if work.damaged(node) else "to train"
                state = what + (", time unknown" if guess is None else f", about {guess:,.0f} s")
                total, unknown = total + (guess or 0.0), unknown + (guess is None)
            lines[path] = f"{path.parent.name}/{path.name}  {state:<28}  {node.name}"
    users, missing = 0, set()
    for work, rows, protocol in tables:
        if protocol is None:
            continue
        for row in rows:
            path, _ = kept_answers(work, row, protocol)
            if path not in missing and not path.is_file():
                missing.add(path)
                users += len(protocol.candidates(row.llm).users) if row.llm else 0
    rest = f", and {unknown} whose time is unknown" if unknown else ""
    names = {row.name for _, rows, _ in tables for row in rows}
    last = f"{len(names)} rows; about {total:,.0f} s of training{rest}"
    if any(protocol for _, _, protocol in tables):
        last += f"; {len(missing)} answers to be asked for, about {users * SECONDS_PER_ANSWER:,.0f} s"
    return "\n".join([*lines.values(), last])


PASS_ON = "trap 'kill -TERM \"$child\"' TERM"
"""The begin of a SLURM file: what the batch script is told, the training is told."""

REQUEUE = (
    "child=$!",
    'while kill -0 "$child" 2> /dev/null; do wait "$child"; done  # a signal ends a wait early',
    'wait "$child"; code=$?',
    f"# {STOPPED}: the training was told to end and has saved; it goes on where it is queued again.",
    f'if [ $code -eq {STOPPED} ]; then scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"; fi',
    "exit $code",
)
"""The end of a SLURM file."""


def write_slurm(work: Workplace, rows: Sequence[Row], directory: Path) -> Path:
    """Writes the missing trainings as SLURM arrays, one for each level of the graph, and the script that submits them.

    Returns:
        the script; each array starts after the one before it has succeeded.
    """
    Output("folder of SLURM files", signs=("submit.sh",)).claim(directory)
    submit = ["#!/bin/sh", "set -e", 'cd "$(dirname "$0")"', "previous="]
    for number, level in enumerate(levels([node for node in trainings_of(rows) if not work.done(node)])):
        lines = ["#!/bin/bash", f"#SBATCH --job-name=allmrec-{number}", f"#SBATCH --array=0-{len(level) - 1}"]
        lines += ["#SBATCH --requeue", "#SBATCH --signal=B:TERM@300", PASS_ON]
        lines += [f"cd {shlex.quote(os.getcwd())}", "case $SLURM_ARRAY_TASK_ID in"]
        program = [sys.executable, "-m", "allmrec_jax.cli"]
        lines += [f"{place}) {shlex.join([*program, *work.command(node)])} & ;;" for place, node in enumerate(level)]
        write_text(directory / f"level{number}.sbatch", "\n".join([*lines, "esac", *REQUEUE, ""]))
        wait = "${previous:+--dependency=afterok:$previous}"
        submit.append(f'previous=$(sbatch --parsable {wait} "$@" level{number}.sbatch)')
    write_text(directory / "submit.sh", "\n".join([*submit, ""]))
    return directory / "submit.sh"
