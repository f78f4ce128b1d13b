"""Parquet files, and directories of their parts as Spark writes them."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from allmrec_jax.data.readers.reading import Field, Reading
from allmrec_jax.data.readers.values import typed
from allmrec_jax.errors import UserError, first_line


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
    try:
        return list(pl.read_parquet_schema(parts_of(path)[0]))
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({first_line(error)})") from error


def read_parquet(path: Path, reading: Reading, fields: Mapping[str, Field]) -> pl.DataFrame:
    """The rows of a file or directory that are good.

    Raises:
        UserError: it cannot be read, a column holds lists or structures where single values are wanted, or there are
            more bad rows than allowed.
    """
    parts = parts_of(path)
    present = parquet_columns(path)
    columns = [pl.col(column.key).alias(name) for name, column in fields.items() if column.key in present]
    try:
        frame = pl.scan_parquet(parts, hive_partitioning=False).select(columns).with_row_index("", 1).collect()
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({first_line(error)})") from error
    for name, column in fields.items():
        dtype = frame.schema.get(name)
        if dtype is not None and dtype.is_nested() and (column.kind != "texts" or isinstance(dtype, pl.Struct)):
            raise UserError(f"{path}: column {column.key!r} should hold single values, holds {dtype}")
    return typed(frame, path, reading, fields, "row")
