"""Amazon Reviews, editions 2014, 2018 and 2023: an object a line, reviews and item metadata in a file each."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import polars as pl

from allmrec_jax.data.readers.json_lines import keys_of, read_json_lines
from allmrec_jax.data.readers.reading import ITEMS, Field, Reading, Source, described, gather
from allmrec_jax.data.readers.times import MILLISECONDS, SECONDS, in_seconds
from allmrec_jax.errors import UserError

SUFFIXES = (".json.gz", ".json", ".jsonl.gz", ".jsonl")

REVIEWS = {
    "amazon-2018": {
        "user": Field("reviewerID", "id"),
        "item": Field("asin", "id"),
        "rating": Field("overall", "number"),
        "time": Field("unixReviewTime", "time"),
    },
    "amazon-2023": {
        "user": Field("user_id", "id"),
        "item": Field("parent_asin", "id"),
        "rating": Field("rating", "number"),
        "time": Field("timestamp", "time"),
    },
}

METADATA = {
    "amazon-2018": {
        "item": Field("asin", "id"),
        "title": Field("title", "text"),
        "description": Field("description", "texts"),
        "brand": Field("brand", "text"),
        "categories": Field("category", "texts", also=("categories",)),
    },
    "amazon-2023": {
        "item": Field("parent_asin", "id"),
        "title": Field("title", "text"),
        "description": Field("description", "texts"),
        "brand": Field("store", "text"),
        "categories": Field("categories", "texts"),
    },
}

UNITS = {"amazon-2018": SECONDS, "amazon-2023": MILLISECONDS}
"""In what each edition tells time."""


def read_amazon(path: Path, reading: Reading, *, kind: str, items: Path | None = None) -> Source:
    """Read a file of reviews, ``<Domain>.json.gz`` say, and the metadata beside it, ``meta_<Domain>.json.gz``.

    The edition of 2014 is read as that of 2018: its metadata has other keys, and may be Python dictionaries.

    Args:
        path: the reviews, plain or gzipped; or a directory that holds one domain.
        kind: ``"amazon-2018"`` or ``"amazon-2023"``.
        items: the metadata, where it is not beside the reviews.

    Raises:
        UserError: a file is missing or bad; see :mod:`allmrec_jax.data.readers.reading`.
    """
    if path.is_dir():
        path = _only_domain(path)
    metadata = items or _metadata_beside(path)
    _take(path, reading, REVIEWS[kind])
    _take(metadata, reading, METADATA[kind])
    reviews = gather(read_json_lines(path, reading, REVIEWS[kind]), path, reading, "reviews")
    interactions = reviews.with_columns(in_seconds(reviews["time"], UNITS[kind], path, reading))
    return Source(
        name=domain_name(path),
        kind=kind,
        files=[path, metadata],
        interactions=interactions,
        read_items=partial(_read_metadata, metadata, reading, kind),
    )


def domain_name(path: Path) -> str:
    """``Movies_and_TV`` for ``Movies_and_TV.json.gz``, ``Movies_and_TV_5.json`` and the like."""
    name = _stem(path).removeprefix("reviews_")
    return name.removesuffix("_5")


def _read_metadata(path: Path, reading: Reading, kind: str, wanted: pl.Series) -> pl.DataFrame:
    return described(read_json_lines(path, reading, METADATA[kind]), wanted, path, reading).select(list(ITEMS))


def _take(path: Path, reading: Reading, fields: Mapping[str, Field]) -> None:
    try:
        present = list(keys_of(path, reading))
    except UserError:
        return  # the lines will say what is wrong with them
    keys = {role: (field.key, *field.also) for role, field in fields.items()}
    reading.take(path, {role: next((key for key in of if key in present), of[0]) for role, of in keys.items()}, present)


def _stem(path: Path) -> str:
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.stem


def _metadata_beside(path: Path) -> Path:
    own = path.name.removeprefix(_stem(path))
    for stem in dict.fromkeys((_stem(path), domain_name(path))):
        for suffix in dict.fromkeys((own, *SUFFIXES)):
            if (found := path.with_name(f"meta_{stem}{suffix}")).is_file():
                return found
    raise UserError(f"{path}: no metadata beside it (meta_{domain_name(path)}.json.gz); name it with --items")


def _only_domain(directory: Path) -> Path:
    domains = [
        path
        for path in sorted(directory.iterdir())
        if path.name.endswith(SUFFIXES) and any(directory.glob(f"meta_{domain_name(path)}.json*"))
    ]
    if len(domains) != 1:
        found = ", ".join(path.name for path in domains) or "none"
        raise UserError(f"{directory}: should hold one domain's reviews and metadata, found: {found}; name the file")
    return domains[0]
