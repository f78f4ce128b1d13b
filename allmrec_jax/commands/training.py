"""The options that training commands share."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import click

_FOLDER = click.Path(path_type=Path)

cf_option = click.option("--cf", type=_FOLDER, help="The CF run or arrays; by default the only run there is.")


def training_options(command: Callable) -> Callable:
    """A click decorator: ``data``, ``seed``, ``out`` and ``resume``."""
    for option in (
        click.option("--resume", is_flag=True, help="Go on from the last checkpoint of an interrupted run."),
        click.option("--out", type=_FOLDER, default=Path("checkpoints"), show_default=True),
        click.option("--seed", type=int, default=0, show_default=True),
        click.option("--data", type=_FOLDER, required=True, help="A data set made by `allmrec prepare`."),
    ):
        command = option(command)
    return command


def encoder_option(names: Mapping[str, str]) -> Callable[[Callable], Callable]:
    """``--sentence-encoder``, with each preset's own."""
    about = "A sentence-transformers directory or hub name, or sbert-nano."
    return click.option("--sentence-encoder", help=f"{about}  [{_told(names.items())}]")


def llm_option(names: Mapping[str, str], presets: Iterable[str]) -> Callable[[Callable], Callable]:
    """``--llm``, with the language model of each of the presets."""
    told = _told((preset, names[preset]) for preset in presets)
    return click.option("--llm", help=f"OPT as a directory or hub name, or opt-nano.  [{told}]")


def _told(names: Iterable[tuple[str, str]]) -> str:
    return ", ".join(map(" ".join, names))
