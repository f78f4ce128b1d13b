"""Parquet files, read so that damage is one line."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from allmrec_jax.errors import UserError, first_line

if TYPE_CHECKING:
    import polars as pl


def read_frame(path: Path | str, remedy: str, columns: list[str] | None = None) -> "pl.DataFrame":
    """The columns, or all, of a Parquet file.

    Raises:
        UserError: it is missing or damaged, or has no such column.
    """
    import polars as pl

    with one_line(path, remedy):
        return pl.read_parquet(path, columns=columns)


@contextlib.contextmanager
def one_line(path: Path | str, remedy: str = "") -> Iterator[None]:
    """Turns what Polars raises for a file that it cannot read, a panic too, into a :class:`UserError` naming ``path``.

    Polars' threads print a panic on their own; that is kept from the terminal.
    """
    import polars as pl

    try:
        with _unheard():
            yield
    except (OSError, ValueError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = f"{path}: cannot be read as Parquet ({first_line(error)})"
        raise UserError(reason + (f"; {remedy}" if remedy else "")) from error


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Holds back what is written to standard error, below Python too; it is lost where the block fails."""
    try:
        terminal = os.dup(2)
    except OSError:  # a process without standard error
        yield
        return
    if sys.stderr is not None:
        sys.stderr.flush()
    with tempfile.TemporaryFile() as heard:
        os.dup2(heard.fileno(), 2)
        try:
            yield
            heard.seek(0)
            os.write(terminal, heard.read())
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
