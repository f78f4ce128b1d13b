"""RecBole's atomic files: tab-separated ``X.inter`` and ``X.item`` whose header names each column's type."""

from pathlib import Path

import polars as pl

from allmrec_jax.data.readers.reading import ITEMS, Field, Reading, Source, gather, read_delimited, read_header
from allmrec_jax.errors import UserError

NAMES = {
    "title": ("title", "movie_title", "item_name", "name"),
    "description": ("description",),
    "brand": ("brand",),
    "categories": ("categories", "category", "genres", "genre", "class"),
}
"""What RecBole's own data sets call these columns; the first one present is taken."""


def read_recbole(path: Path, reading: Reading, *, items: Path | None = None) -> Source:
    """Read ``X.inter`` and, beside it, ``X.item``; ``path`` is the first of them or the directory of both.

    Raises:
        UserError: a file is missing or bad; see :mod:`allmrec_jax.data.readers.reading`.
    """
    if path.is_dir():
        found = sorted(path.glob("*.inter"))
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise UserError(f"{path}: should hold one *.inter, found: {names}; name the file")
        path = found[0]
    item_path = items or path.with_suffix(".item")
    header = [_untyped(name) for name in read_header(path, "\t")]
    fields = {"user": Field("user_id", "id"), "item": Field("item_id", "id")}
    for name, column in (("rating", "rating"), ("time", "timestamp")):
        if column in header:
            fields[name] = Field(column, "number")
    rows = read_delimited(path, reading, fields, separator="\t", quoted=False, rename=_untyped)
    interactions = gather(rows, path, "interactions")
    missing = [pl.lit(None, pl.Float64).alias(name) for name in ("rating", "time") if name not in fields]
    interactions = interactions.with_columns(missing).select("user", "item", "rating", "time")

    def read_items(wanted: pl.Series) -> pl.DataFrame:
        present = [_untyped(name) for name in read_header(item_path, "\t")]
        item_fields = {"item": Field("item_id", "id")}
        for name, candidates in NAMES.items():
            column = next((candidate for candidate in candidates if candidate in present), candidates[0])
            item_fields[name] = Field(column, "text")
        table = gather(
            read_delimited(item_path, reading, item_fields, separator="\t", quoted=False, rename=_untyped),
            item_path,
            "items",
        ).filter(pl.col("item").is_in(wanted.implode()))
        return (
            table.with_columns(
                description=pl.when(pl.col("description") != "").then(pl.concat_list("description")),
                categories=_token_sequence(pl.col("categories")),
            )
            .select(list(ITEMS))
            .unique("item", keep="last", maintain_order=True)
        )

    return Source(path.stem, "recbole", [path, item_path], interactions, read_items)


def _untyped(name: str) -> str:
    return name.partition(":")[0].strip()


def _token_sequence(column: pl.Expr) -> pl.Expr:
    """A ``token_seq``: separated by blanks, or (Amazon) quoted and by commas (``'Toys & Games', 'Puzzles'``)."""
    quoted = column.str.strip_chars("'\" []").str.split("', '")
    return (
        pl.when(column.str.starts_with("'") | column.str.starts_with("['"))
        .then(quoted)
        .otherwise(column.str.split(" "))
    )
