"""``allmrec experiment tune``: settings chosen on validation users; no test user is asked."""

import itertools
import json
from pathlib import Path
from typing import Any

import click

from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.errors import UserError
from allmrec_jax.experiments.experiment import Row, Workplace, parse_changes, run_missing, show_plan
from allmrec_jax.experiments.rows import Recipes, choose
from allmrec_jax.fileio import held, write_text
from allmrec_jax.outputs import Output
from allmrec_jax.trained.kinds import preset_models

GRID = (
    "stage1.learning_rate=0.01,0.001,0.0005,0.0001",
    "stage2.learning_rate=0.01,0.001,0.0005,0.0001",
    "stage1.alpha=0.1,0.2,0.5,0.75,1.0",
    "stage1.beta=0.1,0.2,0.5,0.75,1.0",
)
"""Learning rates of both stages and the weights of the two reconstructions, the paper's four; the values are ours."""


@click.command(
    name="tune",
    short_help="choose settings on validation users",
    epilog="Example: allmrec experiment tune --data data/Movies --grid stage1.alpha=0.2,0.5 --grid stage1.beta=0.2,0.5",
)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="A data set made by `allmrec prepare`.")
@click.option("--system", default="A-LLMRec", show_default=True, help="Whose Hit@1 on validation users chooses.")
@click.option(
    "--grid",
    multiple=True,
    default=GRID,
    metavar="KIND.SETTING=V,V,…",
    help=f"Values to try, every combination of them.  [{'; '.join(GRID)}]",
)
@click.option("--set", "changes", multiple=True, metavar="KIND.SETTING=VALUE", help="Hold a setting at a value.")
@click.option("--preset", type=click.Choice(["paper", "small"]), default="small", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--llm", help="OPT as a directory or hub name, or opt-nano.  [the preset's]")
@click.option("--sentence-encoder", help="A directory or hub name, or sbert-nano.  [the preset's]")
@click.option("--checkpoints", type=click.Path(path_type=Path), default=Path("checkpoints"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Where tune.json goes.  [runs/tune/DATA]")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Trainings at a time.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
def command(
    data: Path,
    system: str,
    grid: tuple[str, ...],
    changes: tuple[str, ...],
    preset: str,
    seed: int,
    llm: str | None,
    sentence_encoder: str | None,
    checkpoints: Path,
    out: Path | None,
    jobs: int,
    dry_run: bool,
) -> None:
    """Train every combination of settings and rank them by the system's Hit@1 on validation users.

    Each run exports its best step on validation, and that step's value counts. Prints the best as --set options.
    """
    dataset = load_dataset(data)
    named = {"llm": llm, "encoder": sentence_encoder}
    models = preset_models(preset) | {role: name for role, name in named.items() if name}
    work = Workplace(dataset, checkpoints, models)
    (system,) = choose([], [system])
    points = [tuple(point) for point in itertools.product(*map(_values, grid))]
    rows = {point: _row(preset, system, seed, (*changes, *point)) for point in points}
    click.echo(show_plan([(work, list(rows.values()), None)]), err=True)
    if dry_run:
        return
    out = out or Path("runs") / "tune" / dataset.name
    Output("folder of results", signs=("tune.json",)).claim(out)
    with held(out / ".lock"):
        run_missing(work, list(rows.values()), jobs)
        found = sorted((_measured(work, row, point) for point, row in rows.items()), key=lambda each: -each["hit@1"])
        write_text(
            out / "tune.json", json.dumps({"system": system, "preset": preset, "points": found}, indent=2) + "\n"
        )
    for each in found:
        click.echo(f"{each['hit@1']:.4f}  {' '.join(each['settings'])}")
    click.echo(" ".join(f"--set {line}" for line in found[0]["settings"]))


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
    path = work.path(row.trainings[-1]) / "best"
    if not path.is_file():
        raise UserError(f"{path.parent}: nothing was measured on validation users; raise its validation_users")
    metrics = json.loads(path.read_text())["metrics"]
    return {"settings": list(point), "hit@1": metrics["hit@1"], "run": path.parent.name}


if __name__ == "__main__":
    command()
