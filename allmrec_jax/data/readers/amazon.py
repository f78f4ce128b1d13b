"""Amazon Reviews, editions 2018 and 2023: one JSON object a line, reviews and item metadata in a file each."""

from functools import partial
from pathlib import Path

import polars as pl

from allmrec_jax.data.readers.reading import ITEMS, Field, Reading, Source, gather, read_json_lines
from allmrec_jax.errors import UserError

SUFFIXES = (".json.gz", ".json", ".jsonl.gz", ".jsonl")

REVIEWS = {
    "amazon-2018": {
        "user": Field("reviewerID", "id"),
        "item": Field("asin", "id"),
        "rating": Field("overall", "number"),
        "time": Field("unixReviewTime", "number"),
    },
    "amazon-2023": {
        "user": Field("user_id", "id"),
        "item": Field("parent_asin", "id"),
        "rating": Field("rating", "number"),
        "time": Field("timestamp", "number"),
    },
}

METADATA = {
    "amazon-2018": {
        "item": Field("asin", "id"),
        "title": Field("title", "text"),
        "description": Field("description", "texts"),
        "brand": Field("brand", "text"),
        "categories": Field("category", "texts"),
    },
    "amazon-2023": {
        "item": Field("parent_asin", "id"),
        "title": Field("title", "text"),
        "description": Field("description", "texts"),
        "brand": Field("store", "text"),
        "categories": Field("categories", "texts"),
    },
}

TICKS_PER_SECOND = {"amazon-2018": 1, "amazon-2023": 1000}


def read_amazon(path: Path, reading: Reading, *, kind: str, items: Path | None = None) -> Source:
    """Read a file of reviews, ``<Domain>.json.gz`` say, and the metadata beside it, ``meta_<Domain>.json.gz``.

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
    reviews = gather(read_json_lines(path, reading, REVIEWS[kind]), path, "reviews")
    interactions = reviews.with_columns(pl.col("time") / TICKS_PER_SECOND[kind])
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
    wanted_frame = pl.DataFrame({"item": wanted})
    frames = (
        frame.join(wanted_frame, on="item", how="semi", maintain_order="left")
        for frame in read_json_lines(path, reading, METADATA[kind])
    )
    return gather(frames, path, "items").select(list(ITEMS)).unique("item", keep="last", maintain_order=True)


def _stem(path: Path) -> str:
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.stem


def _metadata_beside(path: Path) -> Path:
    for stem in dict.fromkeys((_stem(path), domain_name(path))):
        for suffix in SUFFIXES:
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
