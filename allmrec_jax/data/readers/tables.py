"""Tables whose columns are named: CSV, TSV and other delimited text, Parquet, JSON lines."""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from allmrec_jax.data.readers.columns import (
    COLUMNS,
    INTERACTION_ROLES,
    ITEM_ROLES,
    LABELS,
    choose_columns,
)
from allmrec_jax.data.readers.delimited import Dialect, read_delimited, read_header
from allmrec_jax.data.readers.json_lines import keys_of, read_json_lines
from allmrec_jax.data.readers.parquet import parquet_columns, read_parquet
from allmrec_jax.data.readers.reading import INTERACTIONS, ITEMS, Field, Reading, Source, complete, described, gather
from allmrec_jax.data.readers.streams import first_bytes
from allmrec_jax.data.readers.values import is_date
from allmrec_jax.errors import UserError

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")

SUFFIXES = (".csv", ".tsv", ".parquet")
"""Names of files, ``.gz`` left off, that are taken for tables."""


class Table:
    """A file that holds a table, whatever its format: its columns, and frames of some of them."""

    def __init__(self, path: Path, reading: Reading):
        self.path, self.reading = path, reading
        self.sample: dict[str, Any] = {}
        self.dialect = Dialect()
        self.json = without_gz(path).endswith(JSON_SUFFIXES)
        self.parquet = path.is_dir() or first_bytes(path) == b"PAR1" or path.suffix == ".parquet"
        if self.parquet:
            self.columns = parquet_columns(path)
        elif self.json:
            self.sample = keys_of(path, reading)
            self.columns = list(self.sample)
        else:
            separator = "," if ".csv" in path.suffixes else "\t"
            self.columns, self.dialect = read_header(path, reading, separator)

    def frames(self, fields: Mapping[str, Field]) -> Iterable[pl.DataFrame]:
        """Frames with a column for each field; columns that the table lacks are null."""
        if self.parquet:
            return [read_parquet(self.path, self.reading, fields)]
        if self.json:
            return read_json_lines(self.path, self.reading, fields)
        return read_delimited(self.path, self.reading, fields, self.dialect)


def read_table(
    path: Path, reading: Reading, *, items: Path | None = None, columns: Mapping[str, str] | None = None
) -> Source:
    """Read one table of interactions, and a table of items; without the latter, the first holds the titles too.

    Args:
        path: delimited text (plain or gzipped), a Parquet file or directory, or JSON lines.
        items: the same, one row an item. Categories are separated by ``|``, or are lists.
        columns: names of columns where they are not those of :data:`allmrec_jax.data.readers.columns.COLUMNS`, such as
            ``{"user": "customer"}``.

    Raises:
        UserError: a column that was named, or that of users or items, is missing; or a file is bad.
    """
    columns = dict(columns or {})
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise UserError(f"--columns: unknown {unknown[0]!r}; known: {', '.join(COLUMNS)}")
    table = Table(path, reading)
    item_table = Table(items, reading) if items else table
    chosen = choose_columns(path, table.columns, INTERACTION_ROLES, columns, reading)
    if item_table is table or ("key" not in columns and chosen["item"] in item_table.columns):
        columns["key"] = chosen["item"]
    taken = choose_columns(
        item_table.path, item_table.columns, ITEM_ROLES, columns, reading, not_of_people=item_table is table
    )
    reading.take(path, taken | {"key": ""} | chosen if item_table is table else chosen, table.columns)
    if item_table is not table:
        reading.take(item_table.path, taken, item_table.columns)
    interactions = read_interactions(table, chosen, reading)
    name = without_gz(path).partition(".")[0]
    read_items = partial(read_items_of, item_table, taken, reading)
    return Source(name, "table", list(dict.fromkeys([path, item_table.path])), interactions, read_items)


def read_interactions(table: Table, chosen: Mapping[str, str], reading: Reading) -> pl.DataFrame:
    """The interactions of a table, from the column of each role; rows whose label is 0 are no positives: left out."""
    path = table.path
    kinds = {"user": "id", "item": "id", "rating": "number", "time": "time"}
    fields = {role: Field(column, kinds[role], optional=role == "rating") for role, column in chosen.items()}  # type: ignore[arg-type]
    label = next((column for column in table.columns if column.casefold() in LABELS), None)
    if label is not None and "rating" not in chosen:
        fields["label"] = Field(label, "number")
    if is_date(table.sample.get(chosen.get("time", ""))):
        reading.remark(path, f"{chosen['time']} holds dates as text, read as UTC")
    if "time" not in chosen:
        reading.warn(path, "no column of times: the order of the file counts; name one with --columns time=…")
    rows = gather(table.frames(fields), path, reading, "interactions")
    if "label" in rows.columns:
        if rows["label"].is_in([0.0, 1.0]).all():
            positive = rows["label"] == 1
            reading.warn(path, f"{len(rows) - positive.sum():,} rows whose {label} is 0 are no interactions: left out")
            rows = rows.filter(positive)
        else:
            reading.warn(path, f"{label} is not read: it holds more than 0 and 1; a rating? --columns rating={label}")
    return complete(rows, INTERACTIONS)


def without_gz(path: Path) -> str:
    """The name of a file without ``.gz``."""
    return path.name.removesuffix(".gz")


def read_items_of(table: Table, chosen: Mapping[str, str], reading: Reading, wanted: pl.Series) -> pl.DataFrame:
    """What a table says of the wanted items, from the column of each role: a row of :data:`ITEMS` for each."""
    kinds = {"key": "id", "title": "text", "description": "texts", "brand": "text", "categories": "texts"}
    fields = {
        "item" if role == "key" else role: Field(column, kinds[role], split=None if role == "description" else "|")  # type: ignore[arg-type]
        for role, column in chosen.items()
    }
    return complete(described(table.frames(fields), wanted, table.path, reading), ITEMS)
