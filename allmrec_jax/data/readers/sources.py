"""Which reader a path is for: named by the user or recognised by file names and the first line."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from allmrec_jax.data.readers.amazon import REVIEWS, read_amazon
from allmrec_jax.data.readers.movielens import read_movielens
from allmrec_jax.data.readers.reading import Reading, Source, open_stream
from allmrec_jax.data.readers.recbole import read_recbole
from allmrec_jax.data.readers.sequences import read_sequences
from allmrec_jax.data.readers.tables import SUFFIXES as TABLE_SUFFIXES
from allmrec_jax.data.readers.tables import read_table
from allmrec_jax.errors import UserError

READERS: dict[str, Callable[..., Source]] = {
    "amazon-2018": partial(read_amazon, kind="amazon-2018"),
    "amazon-2023": partial(read_amazon, kind="amazon-2023"),
    "movielens": read_movielens,
    "sequences": read_sequences,
    "recbole": read_recbole,
    "table": read_table,
}

MOVIELENS_FILES = {"ratings.csv": "movies.csv", "ratings.dat": "movies.dat", "u.data": "u.item"}


def read_source(
    path: Path,
    reading: Reading,
    *,
    kind: str | None = None,
    items: Path | None = None,
    columns: Mapping[str, str] | None = None,
) -> Source:
    """Read raw data.

    Args:
        path: a file or directory.
        kind: a name of :data:`READERS`; recognised where absent.
        items: the file of item metadata where it is not beside the interactions.
        columns: for tables: what the columns are called, see :data:`allmrec_jax.data.readers.tables.COLUMNS`.

    Raises:
        UserError: the kind is unknown or cannot be recognised, or what the reader raises.
    """
    for given in filter(None, (path, items)):
        if not given.exists():
            raise UserError(f"{given}: no such file or directory")
    kind = kind or recognise(path)
    if kind not in READERS:
        raise UserError(f"unknown source {kind!r}; known: {', '.join(READERS)}")
    if kind != "table":
        if columns:
            raise UserError(f"--columns is for tables only, {path} is {kind}")
        return READERS[kind](path, reading, items=items)
    return read_table(path, reading, items=items, columns=columns)


def recognise(path: Path) -> str:
    """The kind of the raw data at ``path``; :class:`UserError` where it is none that we know."""
    if path.is_dir():
        for ratings, movies in MOVIELENS_FILES.items():
            if (path / ratings).is_file() and (path / movies).is_file():
                return "movielens"
        for pattern, kind in (("*.inter.json", "sequences"), ("*.inter", "recbole")):
            if any(path.glob(pattern)):
                return kind
        for metadata in sorted(path.glob("meta_*.json*")):
            return _amazon_edition(metadata)
    elif path.name in MOVIELENS_FILES and path.with_name(MOVIELENS_FILES[path.name]).is_file():
        return "movielens"
    elif path.name.endswith(".inter.json"):
        return "sequences"
    elif path.name.endswith(".inter"):
        return "recbole"
    elif path.name.endswith(TABLE_SUFFIXES):
        return "table"
    elif ".json" in path.name:
        return _amazon_edition(path)
    raise UserError(f"{path}: not recognised; name what it is with --source ({', '.join(READERS)})")


def _amazon_edition(path: Path) -> str:
    """The edition by the keys of the first lines, of reviews or of metadata."""
    with open_stream(path) as (stream, _):
        lines = [line for line, _ in zip(stream, range(100), strict=False)]
    if not lines:
        raise UserError(f"{path}: the file is empty")
    for line in lines:
        try:
            keys = set(json.loads(line))
        except (ValueError, TypeError):
            continue
        for kind, fields in REVIEWS.items():
            if fields["item"].key in keys and (fields["user"].key in keys or path.name.startswith("meta_")):
                return kind
    raise UserError(
        f"{path}: not recognised: none of its first {len(lines)} lines is a JSON object with the keys of "
        f"Amazon reviews; name what it is with --source ({', '.join(READERS)})"
    )
