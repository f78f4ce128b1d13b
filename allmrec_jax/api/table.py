"""Rows that a notebook shows as a table, and that become a Polars frame."""

import abc
import html
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from allmrec_jax.errors import visible

if TYPE_CHECKING:
    import polars as pl

Row = TypeVar("Row")

STYLE = "text-align:left;padding:.15em .8em .15em 0"


class Table(Sequence[Row], Generic[Row]):
    """A sequence of rows with a title; a notebook shows it as a table.

    Example:
        >>> for row in table: ...
        >>> table.to_polars()
    """

    def __init__(self, rows: Sequence[Row], title: str = ""):
        self.rows, self.title = list(rows), title

    @abc.abstractmethod
    def record(self, row: Row) -> dict[str, Any]:
        """The cells of a row by column; a value is a text, a number, a truth value or ``None``."""

    def records(self) -> list[dict[str, Any]]:
        """All rows as dictionaries, for JSON."""
        return [self.record(row) for row in self.rows]

    def to_polars(self) -> "pl.DataFrame":
        """The rows as a Polars frame."""
        import polars as pl

        return pl.DataFrame(self.records(), infer_schema_length=None)

    def shown(self) -> list[dict[str, str]]:
        """The rows as texts for people: numbers rounded, nothing for ``None``, columns left out that are empty."""
        records = self.records()
        used = {name for record in records for name, value in record.items() if value not in (None, "", False)}
        return [{name: _text(value) for name, value in record.items() if name in used} for record in records]

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        """A row, or a list of them."""
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __repr__(self) -> str:
        rows = self.shown()
        if not rows:
            return f"{self.title or type(self).__name__}: empty"
        widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
        lines = [dict(zip(widths, widths, strict=True)), *rows]
        text = ["  ".join(line[name].ljust(width) for name, width in widths.items()).rstrip() for line in lines]
        return "\n".join([*([self.title] if self.title else []), *text])

    def _repr_html_(self) -> str:
        rows = self.shown()
        head = "".join(f"<th style='{STYLE}'>{html.escape(name)}</th>" for name in (rows[0] if rows else {}))
        body = "".join(
            "<tr>" + "".join(f"<td style='{STYLE}'>{html.escape(cell)}</td>" for cell in row.values()) + "</tr>"
            for row in rows
        )
        caption = f"<caption style='{STYLE};caption-side:top'>{html.escape(self.title)}</caption>" if self.title else ""
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return visible(str(value))
