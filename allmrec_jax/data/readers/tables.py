"""CSV, TSV and Parquet tables whose columns the user names."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl
from polars import selectors as cs

from allmrec_jax.data.readers.reading import ITEMS, Field, Reading, Source, gather, read_delimited, read_header, typed
from allmrec_jax.errors import UserError

COLUMNS = {
    "user": "user_id",
    "item": "item_id",
    "rating": "rating",
    "time": "timestamp",
    "title": "title",
    "description": "description",
    "brand": "brand",
    "categories": "categories",
}
"""What each column is called unless the user says otherwise. All but user and item may be absent."""

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
"""File names that are taken for tables."""


def read_table(
    path: Path, reading: Reading, *, items: Path | None = None, columns: Mapping[str, str] | None = None
) -> Source:
    """Read one table of interactions, and a table of items; without the latter, the first holds the titles too.

    Args:
        path: a CSV, TSV (plain or gzipped) or Parquet file.
        items: the same, one row an item. Categories are separated by ``|``.
        columns: names of columns where they are not those of :data:`COLUMNS`, such as ``{"user": "customer"}``.

    Raises:
        UserError: a column that was named, or that of users or items, is missing; or a file is bad.
    """
    columns = columns or {}
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise UserError(f"--columns: unknown {unknown[0]!r}; known: {', '.join(COLUMNS)}")
    names = COLUMNS | dict(columns)
    item_path = items or path
    present = _column_names(path)
    for name, column in columns.items():
        table = path if name in ("user", "item", "rating", "time") else item_path
        if column not in _column_names(table):
            raise UserError(f"{table}: no column {column!r} (--columns {name}={column})")
    for name, table in (("user", path), ("item", path), ("item", item_path)):
        if names[name] not in (found := _column_names(table)):
            line = "" if table.suffix == ".parquet" else "line 1: "
            raise UserError(
                f"{table}: {line}no column {names[name]!r}; found: {', '.join(found) or 'an empty file'}; "
                f"say which one it is with --columns {name}=…"
            )
    fields = {"user": Field(names["user"], "id"), "item": Field(names["item"], "id")}
    for name in ("rating", "time"):
        if names[name] in present:
            fields[name] = Field(names[name], "number")
    interactions = _read(path, reading, fields, "interactions")
    missing = [pl.lit(None, pl.Float64).alias(name) for name in ("rating", "time") if name not in fields]
    interactions = interactions.with_columns(missing).select("user", "item", "rating", "time")

    def read_items(wanted: pl.Series) -> pl.DataFrame:
        item_fields = {
            "item": Field(names["item"], "id"),
            "title": Field(names["title"], "text"),
            "description": Field(names["description"], "text"),
            "brand": Field(names["brand"], "text"),
            "categories": Field(names["categories"], "texts"),
        }
        table = _read(item_path, reading, item_fields, "items").filter(pl.col("item").is_in(wanted.implode()))
        description = pl.when(pl.col("description") != "").then(pl.concat_list("description"))
        return (
            table.with_columns(description=description)
            .select(list(ITEMS))
            .unique("item", keep="last", maintain_order=True)
        )

    name = path.name.partition(".")[0]
    return Source(name, "table", list(dict.fromkeys([path, item_path])), interactions, read_items)


def _separator(path: Path) -> str:
    return "\t" if ".tsv" in path.suffixes else ","


def _column_names(path: Path) -> list[str]:
    if path.suffix != ".parquet":
        return read_header(path, _separator(path))
    try:
        return list(pl.read_parquet_schema(path))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({error})") from error


def _read(path: Path, reading: Reading, fields: Mapping[str, Field], what: str) -> pl.DataFrame:
    if path.suffix != ".parquet":
        return gather(read_delimited(path, reading, fields, separator=_separator(path)), path, what)
    present = _column_names(path)
    columns = [pl.col(field.key).alias(name) for name, field in fields.items() if field.key in present]
    try:
        frame = pl.scan_parquet(path).select(columns).with_row_index("", 1).collect()
        for name, field in fields.items():
            if field.kind != "texts" and name in frame.columns and frame[name].dtype.is_nested():
                raise UserError(f"{path}: column {field.key!r} should hold single values, holds {frame[name].dtype}")
        frame = frame.with_columns(cs.temporal().cast(pl.Datetime("ms")).dt.epoch("ms") / 1000)
        return gather([typed(frame, path, reading, fields, "row")], path, what)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({error})") from error
