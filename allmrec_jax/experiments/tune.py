"""Settings chosen on validation users; no test user is asked."""

import itertools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.errors import UserError
from allmrec_jax.experiments.execute import run_missing
from allmrec_jax.experiments.graph import Row, Workplace
from allmrec_jax.experiments.plan import show_plan
from allmrec_jax.experiments.rows import Recipes, choose
from allmrec_jax.fileio import file_lock, write_text
from allmrec_jax.outputs import Output
from allmrec_jax.records import read_best
from allmrec_jax.trained.kinds import parse_changes, preset_models

log = logging.getLogger(__name__)

GRID = (
    "stage1.learning_rate=0.01,0.001,0.0005,0.0001",
    "stage2.learning_rate=0.01,0.001,0.0005,0.0001",
    "stage1.alpha=0.1,0.2,0.5,0.75,1.0",
    "stage1.beta=0.1,0.2,0.5,0.75,1.0",
)
"""Learning rates of both stages and the weights of the two reconstructions, the paper's four; the values are ours."""


def tune(
    data: Path,
    *,
    system: str = "A-LLMRec",
    grid: Sequence[str] = GRID,
    changes: Sequence[str] = (),
    preset: str = "small",
    seed: int = 0,
    llm: str | None = None,
    sentence_encoder: str | None = None,
    checkpoints: Path = Path("checkpoints"),
    out: Path | None = None,
    jobs: int = 1,
    dry_run: bool = False,
) -> list[dict[str, Any]]:
    """Trains every combination of settings and ranks them by the system's Hit@1 on validation users.

    Each run exports its best step on validation, and that step's value counts.

    Args:
        data: the data set's directory.
        system: whose Hit@1 chooses.
        grid: ``KIND.SETTING=V,V,…`` lines, of which every combination is tried.
        changes: ``KIND.SETTING=VALUE`` lines that hold everywhere.
        preset: of every training.
        seed: of every training.
        llm: language model in place of the preset's.
        sentence_encoder: likewise.
        checkpoints: the folder of runs.
        out: where ``tune.json`` goes; by default ``runs/tune/DATA``.
        jobs: trainings at a time.
        dry_run: print the plan and stop.

    Returns:
        the combinations, the best first: ``settings``, ``hit@1`` and the ``run``; none where only planned.

    Raises:
        UserError: the system is not trained, a training failed, or nothing was measured on validation users.
    """
    dataset = load_dataset(data)
    named = {"llm": llm, "encoder": sentence_encoder}
    models = preset_models(preset) | {role: name for role, name in named.items() if name}
    work = Workplace(dataset, checkpoints, models)
    (system,) = choose([], [system])
    points = [tuple(point) for point in itertools.product(*map(_values, grid))]
    rows = {point: _row(preset, system, seed, (*changes, *point)) for point in points}
    log.info(show_plan([(work, list(rows.values()), None)]))
    if dry_run:
        return []
    out = out or Path("runs") / "tune" / dataset.name
    Output("folder of results", signs=("tune.json",)).claim(out)
    with file_lock(out / ".lock"):
        run_missing(work, list(rows.values()), jobs)
        found = sorted((_measured(work, row, point) for point, row in rows.items()), key=lambda each: -each["hit@1"])
        write_text(
            out / "tune.json", json.dumps({"system": system, "preset": preset, "points": found}, indent=2) + "\n"
        )
    return found


def _values(line: str) -> list[str]:
    """The ``KIND.SETTING=VALUE`` lines that a grid's line stands for."""
    target, _, values = line.partition("=")
    return [f"{target}={value}" for value in values.split(",")]


def _row(preset: str, system: str, seed: int, changes: tuple[str, ...]) -> Row:
    """The system's row at one point of the grid, its last training validated."""
    given = parse_changes(changes)
    row = Recipes(preset, given).row(system, seed)
    if not row.trainings:
        raise UserError(f"{system} is not trained; there is nothing to tune")
    given.setdefault(row.trainings[-1].kind, {})["choose"] = "best"
    return Recipes(preset, given).row(system, seed)


def _measured(work: Workplace, row: Row, point: tuple[str, ...]) -> dict[str, Any]:
    path = work.path(row.trainings[-1])
    best = read_best(path)
    if best is None or "hit@1" not in best["metrics"]:
        raise UserError(f"{path}: nothing was measured on validation users; raise its validation_users")
    return {"settings": list(point), "hit@1": best["metrics"]["hit@1"], "run": path.name}
