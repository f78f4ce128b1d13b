"""Data sets: made of raw files, opened, or generated for a first try."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from allmrec_jax.data.dataset import Dataset


def prepare(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    preset: str = "paper",
    kind: str | None = None,
    items: str | os.PathLike[str] | None = None,
    columns: Mapping[str, str] | None = None,
    name: str | None = None,
    max_bad_lines: int = 100,
    **settings: Any,
) -> "Dataset":
    """Makes a data set of raw interactions.

    Args:
        source: a file or directory: Amazon 2018 or 2023, MovieLens, sequence JSON, RecBole, CSV or Parquet.
        out: the data set's directory; one that is there already is replaced when all is done.
        preset: ``"paper"``, or ``"official"`` for what the authors' script does.
        kind: what the source is, where it is not recognised.
        items: the file of item metadata, where it is not beside the interactions.
        columns: for tables, what their columns are called: ``{"user": "customer", "item": "sku"}``.
        name: of the data set; that of the source by default. Runs are filed under it.
        max_bad_lines: bad lines that are skipped; one more is an error.
        settings: see :class:`allmrec_jax.data.prepare.PrepareSettings`, e.g. ``min_user=3``.

    Raises:
        UserError: the source is missing or bad, nothing is left of it, or ``out`` cannot be written.

    Example:
        >>> data = ar.prepare("ml-latest-small", out="data/ml", rating_rule=">=4")
    """
    from allmrec_jax.data.prepare import prepare as make

    with _reading() as show:
        return make(
            Path(source),
            Path(out),
            preset,
            kind=kind,
            items=None if items is None else Path(items),
            columns=columns,
            name=name,
            max_bad_lines=max_bad_lines,
            progress=show,
            **settings,
        )


def load_data(path: "str | os.PathLike[str] | Dataset") -> "Dataset":
    """Opens a data set that :func:`prepare` made; a data set itself is returned as it is.

    Raises:
        UserError: there is none, or it is damaged.

    Example:
        >>> data = ar.load_data("data/ml")
        >>> data.num_users, data.num_items
    """
    from allmrec_jax.data.dataset import Dataset, load_dataset

    return path if isinstance(path, Dataset) else load_dataset(Path(path))


def synthesize(
    out: str | os.PathLike[str] = "raw", *, preset: str = "tiny", seed: int = 0, **settings: Any
) -> list[Path]:
    """Writes two made-up shops as raw Amazon files, and the probabilities that they were drawn from.

    Args:
        out: the directory of the files.
        preset: ``"tiny"`` for a try of minutes, ``"demo"`` for the data of the demo.
        seed: the same seed gives the same bytes.
        settings: see :class:`allmrec_jax.embedded.synthetic.SyntheticSettings`.

    Returns:
        The reviews files; each can be given to :func:`prepare`.

    Example:
        >>> movies, *_ = ar.synthesize("raw")
        >>> data = ar.prepare(movies, out="data/movies")
    """
    from allmrec_jax.embedded.synthetic import PRESETS, generate
    from allmrec_jax.settings import resolve

    return generate(Path(out), seed, resolve(PRESETS, preset, settings))


@contextmanager
def _reading() -> Iterator[Any]:
    """A bar for each file read, on a terminal or in a notebook."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from allmrec_jax.progress import live_console

    bars: dict[Path, Any] = {}
    console = live_console()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=console is None) as progress:

        def show(path: Path, done: int, total: int) -> None:
            if path not in bars:
                bars[path] = progress.add_task(f"reading {path.name}", total=total)
            progress.update(bars[path], completed=done)

        yield show
