"""Parquet files, and directories of their parts as Spark writes them."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from allmrec_jax.data.readers.reading import Field, Reading
from allmrec_jax.data.readers.values import typed
from allmrec_jax.errors import UserError
from allmrec_jax.parquet import one_line


def parts_of(path: Path) -> list[Path]:
    """The file itself, or the Parquet files in a directory, in order of their names."""
    if not path.is_dir():
        return [path]
    parts = sorted(part for part in path.rglob("*.parquet") if part.is_file() and not part.name.startswith(("_", ".")))
    if not parts:
        raise UserError(f"{path}: no *.parquet in this directory")
    return parts


def parquet_columns(path: Path) -> list[str]:
    """The column names of a file or directory."""
    with one_line(path):
        return list(pl.read_parquet_schema(parts_of(path)[0]))


def _innermost(dtype: pl.DataType) -> pl.DataType:
    """What lists of a type hold, or lists in them."""
    while isinstance(dtype, pl.List | pl.Array):
        dtype = dtype.inner  # type: ignore[assignment]
    return dtype


def read_parquet(path: Path, reading: Reading, fields: Mapping[str, Field]) -> pl.DataFrame:
    """The rows of a file or directory that are good.

    Raises:
        UserError: it cannot be read, a column holds lists or structures where single values are wanted or no texts
            where texts are, or there are more bad rows than allowed.
    """
    parts = parts_of(path)
    present = parquet_columns(path)
    columns = [pl.col(column.key).alias(name) for name, column in fields.items() if column.key in present]
    with one_line(path):
        frame = pl.scan_parquet(parts, hive_partitioning=False).select(columns).with_row_index("", 1).collect()
    for name, column in fields.items():
        dtype = frame.schema.get(name)
        if dtype is None:
            continue
        if dtype.is_nested() and column.kind != "texts":
            raise UserError(f"{path}: column {column.key!r} should hold single values, holds {dtype}")
        if column.kind == "texts" and isinstance(_innermost(dtype), pl.Struct | pl.Boolean | pl.Object):
            raise UserError(f"{path}: column {column.key!r} should hold texts, holds {dtype}")
    return typed(frame, path, reading, fields, "row")
