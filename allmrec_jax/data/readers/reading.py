"""What every reader shares: the form that it yields, the fields it takes, bad lines, and what is told to the user.

Lines that are no good are counted, listed and skipped up to a limit; beyond it reading stops, because the file is then
likely not what it was taken for.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

from allmrec_jax.errors import UserError

INTERACTIONS: dict[str, Any] = {"user": pl.String, "item": pl.String, "rating": pl.Float64, "time": pl.Float64}
"""Columns of :attr:`Source.interactions`, rows in file order; a rating may be null, times are in all rows or none."""

ITEMS: dict[str, Any] = {
    "item": pl.String,
    "title": pl.String,
    "description": pl.List(pl.String),
    "brand": pl.String,
    "categories": pl.List(pl.String),
}
"""Columns of what :attr:`Source.read_items` yields; every one but ``item`` may be null where the source lacks it."""

ROLES = ("user", "item", "rating", "time", "key", "title", "description", "brand", "categories", "genre")
"""What columns are read as, in the order in which they are listed."""

DTYPES: dict[str, Any] = {
    "id": pl.String,
    "number": pl.Float64,
    "time": pl.Float64,
    "text": pl.String,
    "texts": pl.List(pl.String),
}
"""The type in which each kind of :class:`Field` is read."""


@dataclass
class Source:
    """Raw data as a reader found it, before any rule is applied."""

    name: str
    kind: str
    files: list[Path]
    interactions: pl.DataFrame
    read_items: Callable[[pl.Series], pl.DataFrame]
    """Item ids → a row of :data:`ITEMS` for each that the source describes (see :func:`described`)."""


@dataclass(frozen=True)
class Taken:
    """What was read from a file as what."""

    file: str
    columns: dict[str, str]
    """Role (``user``, ``title``, …) → column or key of the file."""
    aside: list[str]
    """Columns that were left aside."""


@dataclass
class Reading:
    """One act of reading: how many bad lines are borne, who is told of the progress, and what was noticed."""

    max_bad_lines: int = 100
    progress: Callable[[Path, int, int], None] = lambda path, done, total: None
    """Called with a file, the bytes of it read so far (as stored) and its size."""
    bad_lines: list[tuple[str, str, str]] = field(default_factory=list)
    """File, where in it (``line 3``), and what is wrong."""
    taken: list[Taken] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """What was recognised rather than told: an encoding, a separator, a unit."""
    warnings: list[str] = field(default_factory=list)
    """What may make the result another one than the user wants."""
    _noted: set[tuple[str, str, str]] = field(default_factory=set)
    described_item: str | None = None
    """The first item id of the metadata, to be shown where none is wanted."""

    def reject(self, path: Path, where: str, reason: str) -> None:
        """Note a bad line, once however often it is read; :class:`UserError` where there are more than allowed."""
        if (line := (str(path), where, reason)) in self._noted:
            return
        self._noted.add(line)
        self.bad_lines.append(line)
        if len(self.bad_lines) > self.max_bad_lines:
            first = self.bad_lines[0]
            raise UserError(
                f"{path}: more than {self.max_bad_lines} bad lines (--max-bad-lines); "
                f"the first: {first[0]} {first[1]}: {first[2]}; the last: {where}: {reason}"
            )

    def take(self, path: Path, columns: Mapping[str, str], present: Iterable[str]) -> None:
        """Note which columns of a file were read as what, among those that it has."""
        known = {role: columns[role] for role in ROLES if columns.get(role) in set(present)}
        aside = [column for column in present if column not in known.values()]
        self.taken.append(Taken(path.name, known, aside))

    def remark(self, path: Path, what: str) -> None:
        """Note what was recognised in a file; the same remark is kept once."""
        if (text := f"{path.name}: {what}") not in self.remarks:
            self.remarks.append(text)

    def warn(self, path: Path, what: str) -> None:
        """Note what the user should know before the data set is used."""
        if (text := f"{path.name}: {what}") not in self.warnings:
            self.warnings.append(text)


@dataclass(frozen=True)
class Field:
    """A value to take from each line.

    ``id``, finite ``number`` and ``time`` (seconds, or an ISO date that becomes Unix seconds) are required unless
    ``optional``; ``text`` and ``texts`` are taken where they are.
    """

    key: str
    kind: Literal["id", "number", "time", "text", "texts"]
    also: tuple[str, ...] = ()
    """JSON lines: keys that are looked at where ``key`` has no value."""
    optional: bool = False
    split: str | None = "|"
    """What separates ``texts`` in delimited files."""

    @property
    def required(self) -> bool:
        """Whether a line without it is a bad line."""
        return self.kind in ("id", "number", "time") and not self.optional

    @property
    def wanted(self) -> str:
        """What a value of this kind is called in messages."""
        names = {"id": "an id", "number": "a number", "time": "a number or an ISO date"}
        return names.get(self.kind, "text")


def gather(frames: Iterable[pl.DataFrame], path: Path, reading: Reading, what: str) -> pl.DataFrame:
    """The frames as one; :class:`UserError` where they hold no row, with the first reason if there was one."""
    parts = [frame for frame in frames if frame.height]
    if not parts:
        first = next((f": {where}: {reason}" for file, where, reason in reading.bad_lines if file == str(path)), "")
        raise UserError(f"{path}: no usable {what} (" + (f"no line of it is good{first})" if first else "it is empty)"))
    return pl.concat(parts)


def described(
    frames: Iterable[pl.DataFrame], wanted: pl.Series, path: Path, reading: Reading, what: str = "items"
) -> pl.DataFrame:
    """The rows of item metadata whose ``item`` is wanted, one for each: the last non-empty value of each column."""
    wanted_frame = pl.DataFrame({"item": wanted})
    parts = []
    for frame in frames:
        if reading.described_item is None and frame.height:
            reading.described_item = frame["item"][0]
        parts.append(frame.join(wanted_frame, on="item", how="semi", maintain_order="left"))
    if reading.described_item is None:
        return gather([], path, reading, what)
    return last_values(pl.concat(parts))


def complete(table: pl.DataFrame, schema: Mapping[str, Any]) -> pl.DataFrame:
    """The table with the schema's columns, null where it has none of that name."""
    missing = [pl.lit(None, dtype).alias(name) for name, dtype in schema.items() if name not in table.columns]
    return table.with_columns(missing).select(list(schema))


def last_values(table: pl.DataFrame) -> pl.DataFrame:
    """One row an item, in order of first appearance, with the last non-empty value of each other column."""
    if not table["item"].is_duplicated().any():
        return table
    repeated = pl.col("item").is_duplicated()
    values = []
    for name, dtype in table.schema.items():
        if name != "item":
            value = pl.col(name)
            filled = value.list.len() > 0 if isinstance(dtype, pl.List) else value.str.strip_chars() != ""
            values.append(pl.coalesce(value.filter(filled.fill_null(False)).last(), value.last()).alias(name))
    merged = table.filter(repeated).group_by("item", maintain_order=True).agg(values)
    return pl.concat([table.filter(~repeated), merged.select(table.columns)])
