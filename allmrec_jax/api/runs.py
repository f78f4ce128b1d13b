"""The runs that there are: listed, found by name, compared and removed. Nothing here needs JAX."""

import contextlib
import dataclasses
import functools
import html
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from allmrec_jax.api.table import Table
from allmrec_jax.errors import UserError, did_you_mean
from allmrec_jax.fileio import write_text, writes
from allmrec_jax.records import LABEL, read_about, read_best, read_label

if TYPE_CHECKING:
    from allmrec_jax.data.dataset import Dataset

METRICS = ("hit@1", "ndcg@10", "loss")
"""By which of its validation metrics a run is judged in a list, the first that it has."""


@dataclasses.dataclass(frozen=True)
class TrainedRun(os.PathLike[str]):
    """A training run on disk.

    It stands wherever a run's directory is wanted: ``Path(run)`` is its directory.

    Attributes:
        path: its directory.
        about: its ``run.json``: settings, seed, data set, what it was built on, versions, platform.
    """

    path: Path
    about: Mapping[str, Any] = dataclasses.field(repr=False, hash=False, compare=False)

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    @property
    def kind(self) -> str:
        """What was trained, e.g. ``"stage1"``."""
        return self.about["kind"]

    @property
    def identity(self) -> str:
        """The SHA-256 of all that decides the run's numbers; its directory is called by the first 12 digits."""
        return self.about["identity"]

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings that it was trained with."""
        return self.about["settings"]

    @property
    def seed(self) -> int:
        """The seed of the training."""
        return self.about["seed"]

    @property
    def data_name(self) -> str:
        """The name of the data set that it was trained on."""
        return self.about["data"]["name"]

    @property
    def upstream(self) -> Mapping[str, str]:
        """The identities of what it was built on, by role, e.g. ``{"cf": "…", "llm": "…"}``."""
        return self.about["upstream"]

    @property
    def done(self) -> bool:
        """Whether the training was finished."""
        return (self.path / "DONE").is_file()

    @functools.cached_property
    def label(self) -> Mapping[str, str]:
        """What is kept beside the run for its user: ``name`` and ``data``, the directory of the data set."""
        with contextlib.suppress(UserError):
            return cast("Mapping[str, str]", read_label(self.path))
        return {}

    @property
    def name(self) -> str | None:
        """The name that its user gave it."""
        return self.label.get("name")

    @property
    def metrics(self) -> Mapping[str, float]:
        """The validation metrics of the step that was exported; empty where nothing was validated."""
        with contextlib.suppress(UserError):
            best = read_best(self.path)
            return {} if best is None else best["metrics"]
        return {}

    @property
    def bytes(self) -> int:
        """Its size on disk."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def load_data(self) -> "Dataset":
        """The data set that it was trained on.

        Raises:
            UserError: it is not where it was, or has changed.
        """
        from allmrec_jax.data.dataset import load_dataset

        if "data" not in self.label or not (Path(self.label["data"]) / "manifest.json").is_file():
            raise UserError(f"{self.path}: where its data set {self.data_name} lies is not known; name it with --data")
        dataset = load_dataset(self.label["data"])
        self.check_data(dataset)
        return dataset

    def check_data(self, dataset: "Dataset") -> None:
        """Raises :class:`UserError` for another data set than the one that it was trained on."""
        if dataset.hash != self.about["data"]["hash"]:
            raise UserError(
                f"{self.path} was trained on data set {self.data_name} (hash {self.about['data']['hash'][:12]}), not "
                f"on {dataset.path} ({dataset.name}, hash {dataset.hash[:12]})"
            )

    def _repr_html_(self) -> str:
        cells = {"kind": self.kind, "name": self.name, "data": self.data_name, "run": self.path, **self.metrics}
        text = ", ".join(
            f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}"
            for key, value in cells.items()
            if value is not None
        )
        return f"<code>{html.escape(text)}</code>"


class RunTable(Table[TrainedRun]):
    """Runs: what each is, how good on validation users, how large, and what it was built on."""

    def record(self, row: TrainedRun) -> dict[str, Any]:
        """A run's cells."""
        known = {run.identity: run for run in self.rows}
        built_on = [known[each] for each in row.upstream.values() if each in known]
        metric = next((name for name in METRICS if name in row.metrics), None)
        model = row.settings.get("model")
        return {
            "data": row.data_name,
            "kind": f"{row.kind} {model}" if row.kind == "cf" and model else row.kind,
            "run": row.path.name,
            "name": row.name,
            "seed": str(row.seed),
            "validation": None if metric is None else f"{metric} {row.metrics[metric]:.3f}",
            "MiB": f"{row.bytes / 2**20:.1f}",
            "built on": " ".join(run.name or run.path.name for run in built_on),
            "state": None if row.done else "unfinished",
        }


class Comparison(Table[tuple[str, Sequence[Any]]]):
    """Runs side by side: a row for each setting or metric, a column for each run."""

    def __init__(self, runs: Sequence[TrainedRun], rows: Sequence[tuple[str, Sequence[Any]]]):
        super().__init__(rows)
        self.runs = list(runs)

    def record(self, row: tuple[str, Sequence[Any]]) -> dict[str, Any]:
        """What it is, and each run's value as text."""
        values = [
            "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value) for value in row[1]
        ]
        return {"": row[0], **dict(zip((run.name or run.path.name for run in self.runs), values, strict=True))}


def read_run(path: str | os.PathLike[str]) -> TrainedRun:
    """The run in a directory, finished or not.

    Raises:
        UserError: there is none, or its ``run.json`` is damaged.
    """
    if not (Path(path) / "run.json").is_file():
        raise UserError(f"{path}: not a training run (it has no run.json)")
    return TrainedRun(Path(path), read_about(Path(path)))


def list_runs(
    checkpoints: str | os.PathLike[str] = "checkpoints", *, data: "Dataset | str | None" = None, kind: str | None = None
) -> RunTable:
    """The training runs below a folder, finished or not.

    Args:
        checkpoints: the folder of runs.
        data: only those of this data set, or of data sets of this name.
        kind: only those of this kind.

    Example:
        >>> ar.list_runs("checkpoints", kind="stage2").to_polars()
    """
    found = []
    for path in sorted(Path(checkpoints).glob("*/*/*/run.json")):
        try:
            run = read_run(path.parent)
        except UserError:
            continue
        same = data is None or (
            run.data_name == data if isinstance(data, str) else run.about["data"]["hash"] == data.hash
        )
        if same and kind in (None, run.kind):
            found.append(run)
    return RunTable(found)


def find_run(
    given: str | os.PathLike[str],
    checkpoints: str | os.PathLike[str] = "checkpoints",
    *,
    data: "Dataset | None" = None,
    kind: str | None = None,
) -> Path:
    """The directory of a run: of one given as a directory, by its name, or by the beginning of its identity.

    Args:
        given: a :class:`TrainedRun`, a directory, a name that ``--name`` gave, or four or more digits of an identity.
        checkpoints: the folder of runs in which names are looked up.
        data: names are those of this data set's runs.
        kind: names are those of runs of this kind.

    Raises:
        UserError: there is no such run, or the name is that of several.
    """
    path = Path(given)
    if isinstance(given, TrainedRun) or any((path / file).is_file() for file in ("run.json", "items.npy")):
        return path
    text = os.fspath(given)
    runs = list_runs(checkpoints, data=data, kind=kind)
    found = [run for run in runs if run.name == text]
    if not found and re.fullmatch("[0-9a-f]{4,64}", text):
        found = [run for run in runs if run.identity.startswith(text)]
    if len(found) > 1:
        places = ", ".join(str(run.path) for run in found)
        raise UserError(f"{text} is the name of several runs: {places}; name one by its directory")
    if not found:
        if path.is_dir():
            raise UserError(f"{path}: not a training run (it has no run.json)")
        what = f"{kind or 'run'} of data set {data.name}" if data is not None else (kind or "run")
        near = did_you_mean(text, [run.name for run in runs if run.name]) or "; `allmrec runs list` shows them"
        raise UserError(f"{text}: no such directory, and no {what} of that name in {checkpoints}{near}")
    return found[0].path


def check_name(name: str, checkpoints: str | os.PathLike[str], data_name: str, kind: str) -> None:
    """Raises :class:`UserError` for a text that is no name, or one that a run of another kind has already."""
    if not re.fullmatch(r"[\w.+-]+", name) or re.fullmatch("[0-9a-f]{4,64}", name):
        raise UserError(f"--name {name}: letters, digits and ._+- make a name, and more than hexadecimal digits")
    for run in list_runs(checkpoints, data=data_name):
        if run.name == name and run.kind != kind:
            raise UserError(f"--name {name}: that is the name of {run.path}; choose another")


def label_run(
    run: TrainedRun, checkpoints: str | os.PathLike[str], *, data: Path, name: str | None = None
) -> TrainedRun:
    """Keeps beside a run where its data set lies and, if given, its name; a name moves on from one of the same kind."""
    if name is not None:
        for other in list_runs(checkpoints, data=run.data_name, kind=run.kind):
            if other.name == name and other.identity != run.identity:
                _write_label(other.path, {key: value for key, value in other.label.items() if key != "name"})
    label = {**run.label, "data": str(data.absolute()), **({} if name is None else {"name": name})}
    if label != run.label:
        _write_label(run.path, label)
    return dataclasses.replace(run)


def compare_runs(runs: Sequence[TrainedRun]) -> Comparison:
    """Runs side by side: what differs in their settings, data and upstream, and their validation metrics."""
    facts = [
        {
            "kind": run.kind,
            "data": f"{run.data_name} {run.about['data']['hash'][:12]}",
            "seed": run.seed,
            **run.settings,
            **{f"built on {role}": identity[:12] for role, identity in run.upstream.items()},
        }
        for run in runs
    ]
    keys = list(dict.fromkeys(key for each in facts for key in each))
    rows = [(key, [each.get(key) for each in facts]) for key in keys]
    rows = [(key, values) for key, values in rows if len(set(map(repr, values))) > 1]
    metrics = list(dict.fromkeys(name for run in runs for name in run.metrics))
    return Comparison(runs, [*rows, *((f"valid {name}", [run.metrics.get(name) for run in runs]) for name in metrics)])


def remove_run(run: TrainedRun, checkpoints: str | os.PathLike[str] = "checkpoints", *, force: bool = False) -> None:
    """Removes a run's directory.

    Args:
        run: to remove.
        checkpoints: the folder in which runs are looked for that were built on it.
        force: remove it even so.

    Raises:
        UserError: another run was built on it, and ``force`` is not set; or the directory is not where a run is kept.
    """
    built = [other for other in list_runs(checkpoints) if run.identity in other.upstream.values()]
    if built and not force:
        names = ", ".join(str(other.path) for other in built)
        raise UserError(f"{run.path}: {names} was built on it; remove that first, or remove this with --force")
    if read_run(run.path).identity[:12] != run.path.name:
        raise UserError(f"{run.path}: a run's directory is called {run.identity[:12]}; remove this one yourself")
    shutil.rmtree(run.path)


def _write_label(path: Path, label: Mapping[str, str]) -> None:
    if writes():
        write_text(path / LABEL, json.dumps(dict(label), indent=2) + "\n")
