"""The JSON files in a training run's directory: what each must look like, and reading it. Nothing here needs JAX."""

from pathlib import Path
from typing import Any, NotRequired, TypedDict

from allmrec_jax.checking import InnerFile
from allmrec_jax.fileio import plain_name, read_json

AGAIN = "train this run again"

COST = "cost.json"
LABEL = "label.json"


class _Data(TypedDict):
    name: str
    hash: str


class About(TypedDict):
    """``run.json``: what is trained."""

    kind: str
    identity: str
    settings: dict[str, Any]
    seed: int
    data: _Data
    upstream: dict[str, str]


class Best(TypedDict):
    """``best``: the step chosen on validation, with its metrics."""

    step: int
    metrics: dict[str, float]


class Done(TypedDict):
    """``DONE``: the hashes of the export's files, beside the training's summary."""

    export_sha256: NotRequired[dict[InnerFile, str]]
    longformer: NotRequired[str | None]


class Cost(TypedDict):
    """``cost.json``: what a training took, where it was measured; ``units`` if it was not interrupted."""

    seconds: float
    peak_mib: NotRequired[float]
    units: NotRequired[float]
    model: NotRequired[str | None]


class Label(TypedDict):
    """``label.json``: the name that the run's user gave it, and where its data set lay."""

    name: NotRequired[str]
    data: NotRequired[str]


class Card(TypedDict):
    """``export/KIND.json``: the models of others that the run was trained with."""

    llm: NotRequired[str]
    encoder: NotRequired[str]


def read_about(path: Path) -> dict[str, Any]:
    """``run.json`` of the run at ``path``.

    Raises:
        UserError: it is missing or damaged, or a name in it could not be one level of a path.
    """
    about = read_json(path / "run.json", About, AGAIN)
    plain_name(about["identity"], f"{path / 'run.json'}, identity")
    plain_name(about["data"]["name"], f"{path / 'run.json'}, data")
    return about


def read_best(path: Path, remedy: str = AGAIN) -> Best | None:
    """``best`` of the run at ``path``, where it was validated; a :class:`UserError` if it is damaged."""
    file = path / "best"
    return read_json(file, Best, remedy) if file.is_file() else None


def read_done(path: Path, remedy: str = AGAIN) -> Done:
    """``DONE`` of the run at ``path``; a :class:`UserError` if it is missing or damaged."""
    return read_json(path / "DONE", Done, remedy)


def read_cost(path: Path) -> Cost | None:
    """``cost.json`` of the run at ``path``, where it was measured; a :class:`UserError` if it is damaged."""
    file = path / COST
    return read_json(file, Cost, "delete it: it is only shown") if file.is_file() else None


def read_label(path: Path) -> Label:
    """``label.json`` of the run at ``path``, empty where there is none; a :class:`UserError` if it is damaged."""
    file = path / LABEL
    return read_json(file, Label, "delete it: a name is given again with --name") if file.is_file() else {}


def read_card(path: Path, kind: str) -> Card:
    """``export/KIND.json`` of the run at ``path``, empty where there is none; a :class:`UserError` if it is damaged."""
    file = path / "export" / f"{kind}.json"
    return read_json(file, Card, AGAIN) if file.is_file() else {}


def read_llm(path: Path, kind: str) -> str:
    """The language model that the run at ``path`` was trained with, as it was named then.

    Raises:
        UserError: its ``export/KIND.json`` is missing or damaged, or names none.
    """
    return read_json(path / "export" / f"{kind}.json", _LLMCard, AGAIN)["llm"]


class _LLMCard(TypedDict):
    llm: str
