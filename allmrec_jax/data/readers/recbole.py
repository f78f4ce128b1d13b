"""RecBole's atomic files: ``X.inter`` and ``X.item``, tables whose header names each column's type."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import polars as pl

from allmrec_jax.data.readers.columns import INTERACTION_ROLES, ITEM_ROLES, choose_columns
from allmrec_jax.data.readers.reading import ITEMS, Field, Reading, Source, complete, described
from allmrec_jax.data.readers.tables import Table, read_interactions
from allmrec_jax.errors import UserError

SPLITS = (".train", ".valid", ".test")
"""What RecBole's own split files are called before ``.inter``."""


class AtomicFile(Table):
    """A table whose columns are called ``name:type`` and are written as pandas writes them, apart by tabs."""

    def __init__(self, path: Path, reading: Reading):
        super().__init__(path, reading)
        self.typed_names = {column.partition(":")[0].strip(): column for column in self.columns}
        self.columns = list(self.typed_names)
        self.dialect = replace(self.dialect, needless=True)

    def frames(self, fields: Mapping[str, Field]) -> Iterable[pl.DataFrame]:
        """As of :class:`allmrec_jax.data.readers.tables.Table`, by the names without types."""
        names = self.typed_names
        return super().frames({role: replace(field, key=names.get(field.key, "")) for role, field in fields.items()})


def read_recbole(path: Path, reading: Reading, *, items: Path | None = None) -> Source:
    """Read ``X.inter`` and, beside it, ``X.item``; ``path`` is the first of them or the directory of both.

    Raises:
        UserError: a file is missing or bad, or holds sequences that RecBole has split already.
    """
    if path.is_dir():
        found = sorted(path.glob("*.inter"))
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise UserError(f"{path}: should hold one *.inter, found: {names}; name the file")
        path = found[0]
    table = AtomicFile(path, reading)
    if lists := [column for name, column in table.typed_names.items() if name.endswith("_list")]:
        raise UserError(
            f"{path}: holds histories that RecBole has cut already ({lists[0]}); give the file of single interactions, "
            "which prepare cuts itself"
        )
    chosen = choose_columns(path, table.columns, INTERACTION_ROLES, {}, reading)
    item_path = items or _items_beside(path)
    item_table = AtomicFile(item_path, reading)
    taken = choose_columns(item_path, item_table.columns, ITEM_ROLES, {}, reading)
    reading.take(path, chosen, table.columns)
    reading.take(item_path, taken, item_table.columns)
    interactions = read_interactions(table, chosen, reading)
    read_items = partial(_read_items, item_table, taken, reading)
    return Source(path.stem, "recbole", [path, item_path], interactions, read_items)


def _items_beside(path: Path) -> Path:
    stem = path.stem
    for suffix in ("", *SPLITS):
        if stem.endswith(suffix) and (found := path.with_name(stem.removesuffix(suffix) + ".item")).is_file():
            return found
    raise UserError(f"{path}: no {stem}.item beside it; name the file of items with --items")


def _read_items(table: AtomicFile, chosen: dict[str, str], reading: Reading, wanted: pl.Series) -> pl.DataFrame:
    fields = {role: Field(column, "text") for role, column in chosen.items() if role != "key"}
    rows = described(table.frames({"item": Field(chosen["key"], "id")} | fields), wanted, table.path, reading)
    rows = complete(rows, dict.fromkeys(ITEMS, pl.String))
    return rows.with_columns(
        description=pl.when(pl.col("description").is_not_null()).then(pl.concat_list("description")),
        categories=_token_sequence(pl.col("categories")),
    )


def _token_sequence(column: pl.Expr) -> pl.Expr:
    """A ``token_seq``: separated by blanks, or (Amazon) quoted and by commas (``'Toys & Games', 'Puzzles'``)."""
    quoted = column.str.strip_chars("'\" []").str.split("', '")
    return (
        pl.when(column.str.starts_with("'") | column.str.starts_with("['"))
        .then(quoted)
        .otherwise(column.str.split(" "))
    )
