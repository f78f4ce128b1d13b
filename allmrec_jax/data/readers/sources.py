"""Which reader a path is for: named by the user, or recognised by file names and the first lines."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from allmrec_jax.data.readers.amazon import REVIEWS, read_amazon
from allmrec_jax.data.readers.json_lines import keys_of
from allmrec_jax.data.readers.movielens import MOVIES, read_movielens
from allmrec_jax.data.readers.reading import Reading, Source
from allmrec_jax.data.readers.recbole import read_recbole
from allmrec_jax.data.readers.sasrec import read_sasrec
from allmrec_jax.data.readers.sequences import read_sequences
from allmrec_jax.data.readers.streams import first_bytes, first_line
from allmrec_jax.data.readers.tables import JSON_SUFFIXES, SUFFIXES, read_table, without_gz
from allmrec_jax.errors import UserError

READERS: dict[str, Callable[..., Source]] = {
    "amazon-2018": partial(read_amazon, kind="amazon-2018"),
    "amazon-2023": partial(read_amazon, kind="amazon-2023"),
    "movielens": read_movielens,
    "sequences": read_sequences,
    "recbole": read_recbole,
    "sasrec": read_sasrec,
    "table": read_table,
}

MOVIELENS_100K = re.compile(r"u\.data|u[1-5ab]\.(base|test)")

MIND = ("behaviors.tsv", "news.tsv")


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
        columns: for tables: what the columns are called, see :data:`allmrec_jax.data.readers.columns.COLUMNS`.

    Raises:
        UserError: the kind is unknown or cannot be recognised, or what the reader raises.
    """
    for given in filter(None, (path, items)):
        if not given.exists():
            raise UserError(f"{given}: no such file or directory")
    kind = kind or recognise(path, reading, named=bool(columns))
    if kind not in READERS:
        raise UserError(f"unknown source {kind!r}; known: {', '.join(READERS)}")
    if kind != "table":
        if columns:
            raise UserError(f"--columns is for tables only, {path} is {kind}")
        return READERS[kind](path, reading, items=items)
    return read_table(path, reading, items=items, columns=columns)


def recognise(path: Path, reading: Reading, *, named: bool = False) -> str:
    """The kind of the raw data at ``path``; ``named`` says that its columns are, as those of a table.

    Raises:
        UserError: it is none that we know.
    """
    if path.is_dir():
        kind = _recognise_directory(path, reading)
    else:
        first_bytes(path)  # names an archive and the like
        kind = _recognise_file(path, reading, named)
    if kind is None:
        raise UserError(f"{path}: not recognised; name what it is with --source ({', '.join(READERS)})")
    return kind


def _recognise_directory(path: Path, reading: Reading) -> str | None:
    for ratings, movies in MOVIES.items():
        if (path / ratings).is_file() and (path / movies).is_file():
            return "movielens"
    for pattern, kind in (("*.inter.json", "sequences"), ("*.inter", "recbole")):
        if any(path.glob(pattern)):
            return kind
    for metadata in sorted(path.glob("meta_*.json*")):
        return _amazon_edition(metadata, reading)
    return "table" if any(path.rglob("*.parquet")) else None


def _recognise_file(path: Path, reading: Reading, named: bool) -> str | None:
    name = without_gz(path)
    edition = "u.data" if MOVIELENS_100K.fullmatch(name) else name
    if path.name in MIND:
        raise UserError(
            f"{path}: is a file of MIND, which has no header line; write a row for each click as a table with the "
            "columns user_id, item_id, timestamp, and the news with item_id, title, categories (--items)"
        )
    if edition in MOVIES and path.with_name(MOVIES[edition]).is_file():
        return "movielens"
    if name.endswith(".inter.json"):
        return "sequences"
    if name.endswith(".inter"):
        return "recbole"
    if name.endswith(SUFFIXES):
        return "table"
    if name.endswith(JSON_SUFFIXES):
        return "table" if named else _amazon_edition(path, reading)
    if re.fullmatch(r"\S+[ \t]\S+", line := first_line(path)) and re.fullmatch(r"[\d \t]+", line):
        return "sasrec"
    return "table" if named or re.search(r"user|item", line, re.IGNORECASE) else None


def _amazon_edition(path: Path, reading: Reading) -> str:
    """The edition by the keys of the first lines, of reviews or of metadata; a table where they are others."""
    keys = keys_of(path, reading)
    for kind, fields in REVIEWS.items():
        if fields["item"].key in keys and (fields["user"].key in keys or path.name.startswith("meta_")):
            return kind
    return "table"
