"""The files that a report is made of, each read through one schema: what has another structure is refused in a line.

Names that become names of files or folders of the report (``settings.table``, a run's identity) are plain ones.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypedDict

import msgspec

from allmrec_jax.checking import Digest, PlainName, checked
from allmrec_jax.errors import UserError, first_line
from allmrec_jax.fileio import read_json
from allmrec_jax.prompts import STYLES
from allmrec_jax.report import facts, paper

if TYPE_CHECKING:
    import polars as pl

Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Interval = Annotated[list[float], msgspec.Meta(min_length=3, max_length=3)]
"""``[value, low, high]``."""

Slices = dict[str, dict[str, Count | Interval]]


class _Data(TypedDict):
    name: str
    hash: str
    users: NotRequired[Count]
    items: NotRequired[Count]
    generated: NotRequired[bool]


class _Training(TypedDict):
    kind: str
    identity: str
    preset: str
    changes: dict[str, Any]
    seed: int
    steps: Count
    unit: str
    batch_size: Count | None
    seconds: float | None


class _Answered(TypedDict):
    system: str
    scenario: str
    seed: int
    id: str
    candidates_sha: str
    users: NotRequired[Count]
    seconds: NotRequired[float]
    trainings: NotRequired[list[_Training]]


class _Scenario(TypedDict):
    scenario: str
    training_users: NotRequired[Count]
    trained_on: NotRequired[str]
    simulated: NotRequired[bool]
    history: NotRequired[Count]


class _Settings(TypedDict):
    table: NotRequired[PlainName | None]
    title: NotRequired[str | None]
    reference: NotRequired[str | None]
    published: NotRequired[str | None]
    preset: NotRequired[str | None]
    llm: NotRequired[str | None]
    encoder: NotRequired[str | None]
    longformer: NotRequired[str | None]
    batch_size: NotRequired[Count | None]
    prompt_style: NotRequired[str | None]
    wording: NotRequired[dict[str, Any] | None]
    scenario: NotRequired[_Scenario]


class _Step(TypedDict):
    name: str
    seconds: float
    peak_mib: float


class _Times(TypedDict):
    steps: NotRequired[list[_Step]]
    systems: NotRequired[dict[str, float]]


class _Machine(TypedDict):
    processor: NotRequired[str]
    cores: NotRequired[Count]
    accelerator: NotRequired[str]


class _Example(TypedDict):
    user: int
    history: list[str]
    favourites: list[str]
    said: dict[str, str | None]


class _Results(TypedDict):
    data: _Data
    runs: Annotated[list[_Answered], msgspec.Meta(min_length=1)]
    systems: Annotated[dict[str, Slices], msgspec.Meta(min_length=1)]
    paired: NotRequired[dict[str, dict[str, Interval]]]
    tests: NotRequired[dict[str, dict[str, float]]]
    best_baseline: NotRequired[str | None]
    examples: NotRequired[list[_Example]]
    settings: NotRequired[_Settings]
    versions: NotRequired[dict[str, str]]
    machine: NotRequired[_Machine]
    times: NotRequired[_Times]
    commands: NotRequired[list[str]]


class _Run(TypedDict):
    """Beyond what :func:`allmrec_jax.runs.load_run` checks."""

    identity: Digest
    upstream: dict[str, str]
    versions: NotRequired[dict[str, str]]
    machine: NotRequired[_Machine]
    command: NotRequired[list[str]]


class _Tables(TypedDict):
    not_made: dict[str, str]


def read_results(directory: Path) -> dict[str, Any]:
    """``results.json`` of an evaluation.

    Raises:
        UserError: it is missing, not JSON, of another schema or of another structure; or the ``users.parquet`` beside
            it is of another evaluation.
    """
    from allmrec_jax.evaluation.results import check_pair

    path = directory / "results.json"
    if not path.is_file():
        raise UserError(f"{directory}: no results.json; run `allmrec eval overall --out {directory}` first")
    results = read_json(path, dict[str, Any], again := "run the evaluation again")
    if results.get("schema") != 1:
        raise UserError(f"{path}: not results of schema 1; run the evaluation again with this version")
    for key in ("data", "runs", "systems"):
        if not results.get(key):
            raise UserError(f"{path}: {key!r} is missing or empty; run the evaluation again")
    checked(path, results, _Results, again)
    _check_values(path, results)
    check_pair(directory)
    return results


def read_run(directory: Path) -> dict[str, Any]:
    """``run.json`` of a finished training run.

    Raises:
        UserError: the run is not finished, or its ``run.json`` is damaged or of another structure.
    """
    from allmrec_jax.runs import load_run

    about = load_run(directory)
    checked(directory / "run.json", about, _Run, "train this run again")
    return about


def read_log(directory: Path) -> list[dict[str, Any]]:
    """The logged steps of a run's ``metrics.jsonl``, without values that are not finite.

    Raises:
        UserError: a line is no object of numbers, or has no step.
    """
    from allmrec_jax.training.metrics import read_lines

    lines = read_lines(directory / "metrics.jsonl")
    return [{key: value for key, value in line.items() if math.isfinite(value)} for line in lines]


def read_not_made(directory: Path) -> dict[str, str]:
    """Why tables of ``experiment all`` were not made, by name, as its ``tables.json`` says."""
    path = directory / "tables.json"
    return read_json(path, _Tables, "run the experiment again")["not_made"] if path.is_file() else {}


def read_answers(directory: Path) -> "pl.DataFrame":
    """``users.parquet`` of an evaluation that ranked candidates.

    Raises:
        UserError: it is damaged, or lacks a column of that layout.
    """
    import polars as pl

    from allmrec_jax.evaluation.results import read_users

    frame = read_users(directory)
    again = "run the evaluation again"
    expected: dict[str, Any] = {
        **{name: pl.Int64 for name in ("user", "seed", "target", "rank")},
        **{"system": pl.String, "generated": pl.String, "valid": pl.Boolean, "strict": pl.Boolean},
        **{"slices": pl.List(pl.String), "candidates": pl.List(pl.Int64), "scores": pl.List(pl.Float64)},
    }
    path = directory / "users.parquet"
    if missing := [name for name in expected if name not in frame.columns]:
        raise UserError(f"{path}: column {missing[0]!r} is missing; {again}")
    try:
        frame = frame.with_columns(pl.col(name).cast(kind) for name, kind in expected.items())
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path}: {first_line(error)}; {again}") from error
    always = ("user", "seed", "target", "rank", "system", "slices", "candidates", "scores")
    if frame.is_empty() or any(frame[name].has_nulls() for name in always):
        raise UserError(f"{path}: empty, or a value is missing; {again}")
    asked = pl.col("candidates").list
    sound = (asked.len() == pl.col("scores").list.len()) & asked.contains(pl.col("target"))
    sound &= pl.col("scores").list.eval(pl.element().is_finite()).list.all()
    sound &= (pl.col("user") >= 0) & (asked.min() > 0) & pl.col("rank").is_between(1, asked.len())
    if not frame.select(sound.all()).item():
        raise UserError(f"{path}: a user's candidates, scores, target and rank do not fit each other; {again}")
    return frame


def _check_values(path: Path, results: dict[str, Any]) -> None:
    """What a schema cannot say: numbers are finite, every system has the metric that the evaluation is about."""
    again = "run the evaluation again"
    settings = results.get("settings", {})
    for place, value in _numbers(results.get("systems"), "systems"):
        if not math.isfinite(value):
            raise UserError(f"{path}: {place} is {value}, no finite number; {again}")
    for part in ("paired", "tests", "times"):
        for place, value in _numbers(results.get(part), part):
            if not math.isfinite(value):
                raise UserError(f"{path}: {place} is {value}, no finite number; {again}")
    for name, slices in results["systems"].items():
        if "all" not in slices:
            raise UserError(f"{path}: system {name!r} has no slice 'all'; {again}")
    metric = facts.main_metric(results)
    for name, slices in results["systems"].items():
        for part, row in slices.items():
            whole = isinstance(row.get("n"), int) and isinstance(row.get(metric), list)
            if not whole or any(isinstance(value, int) for key, value in row.items() if key != "n"):
                raise UserError(f"{path}: system {name!r}, slice {part!r}: 'n' or an interval is missing; {again}")
    for run in results["runs"]:
        if "trainings" in run and run["system"] not in results["systems"]:
            raise UserError(f"{path}: a run is of system {run['system']!r}, of which there are no values; {again}")
    published = settings.get("published")
    if published and published.partition("/")[0] not in paper.tables():
        raise UserError(f"{path}: settings.published {published!r} is no table of the paper; {again}")
    style = settings.get("prompt_style") or (settings.get("wording") or {}).get("style")
    if style is not None and style not in STYLES:
        raise UserError(f"{path}: prompts of style {style!r}; known: {', '.join(STYLES)}")


def _numbers(value: Any, place: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, f"{place}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item, place)
    elif isinstance(value, float):
        yield place, value
