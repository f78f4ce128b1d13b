r"""Delimited text: rows of values, a row a line.

Each kind of source has one dialect (:class:`Dialect`). Where quotes count, a value that begins with one ends at a quote
before a separator or the line's end; quotes within it are doubled (or ``\"``, where doubled they make no sense). A
quoted value may span lines, which is remarked. An opening quote that is never closed, or whose value would swallow
lines that are rows themselves, is a quote and nothing more: it costs at most its own line.
"""

import csv
import itertools
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import polars as pl

from allmrec_jax.data.readers.reading import Field, Reading
from allmrec_jax.data.readers.streams import text_lines
from allmrec_jax.data.readers.values import NUMBER, typed
from allmrec_jax.errors import UserError

BATCH_ROWS = 1 << 17

QUICK_LINES = 1 << 10
"""Lines that are split at once where none of them is unusual."""

MAX_SPAN = 1000
"""Lines that one quoted value may span."""

MAX_VALUE = 131_072
"""Characters of one value; a longer one is a bad line."""

SEPARATORS = {",": "','", ";": "';'", "\t": "tabs", "|": "'|'"}


@dataclass(frozen=True)
class Dialect:
    """How values stand in a line."""

    separator: str = ","
    quotes: bool = True
    """Whether double quotes enclose values; without it they are characters like any other."""
    needless: bool = True
    """Whether a value that needs no quotes loses those around it (CSV); else ``"Heroes"`` keeps them (TSV)."""
    blanks: bool = False
    """Whether blanks after a separator count for nothing."""

    @cached_property
    def quoted(self) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
        """Patterns of a quoted value: with doubled quotes, with backslashes, and one still open at the end."""
        lead = " *" if self.blanks else ""
        after = rf"(?={re.escape(self.separator)}|\Z)"
        return (
            re.compile(rf'{lead}"((?:[^"]++|"")*+)"{after}'),
            re.compile(rf'{lead}"((?:[^"\\]++|\\.)*+)"{after}', re.DOTALL),
            re.compile(rf'{lead}"(?:[^"]++|"")*+\Z'),
        )

    def split_all(self, lines: list[str]) -> list[list[str]] | None:
        """The values of each line; None where one of them needs a closer look (:meth:`split`)."""
        if self.blanks:
            return None
        if not self.quotes or not any('"' in line for line in lines):
            return [line.split(self.separator) if line else [] for line in lines]
        if not self.needless:
            return None
        try:
            rows = list(csv.reader(lines, delimiter=self.separator, strict=True))
        except csv.Error:
            return None
        return rows if len(rows) == len(lines) else None

    def split(self, line: str, *, literal: bool = False) -> list[str] | None:
        """The values of a line; None where a quoted one is still open at its end, unless that quote is ``literal``."""
        if not self.quotes or '"' not in line:
            values = line.split(self.separator)
            return [value.strip(" ") for value in values] if self.blanks else values
        doubled, escaped, still_open = self.quoted
        values, start = [], 0
        while True:
            if found := doubled.match(line, start):
                inner = found[1].replace('""', '"')
                needed = self.needless or '"' in inner or self.separator in inner or "\n" in inner or not inner
                values.append(inner if needed else found[0])
            elif found := escaped.match(line, start):
                values.append(re.sub(r'\\(["\\])', r"\1", found[1]))
            elif not literal and still_open.match(line, start):
                return None
            if found:
                end = found.end()
            else:
                end = line.find(self.separator, start)
                end = len(line) if end < 0 else end
                values.append(line[start:end].strip(" ") if self.blanks else line[start:end])
            if end >= len(line):
                return values
            start = end + len(self.separator)


def read_delimited(
    path: Path,
    reading: Reading,
    fields: Mapping[str, Field],
    dialect: Dialect,
    *,
    header: list[str] | None = None,
    encoding: str | None = None,
) -> Iterator[pl.DataFrame]:
    """Frames of a file with one row of separated values a line.

    Args:
        fields: column → what to take for it, by column name.
        header: the column names where the file has none of its own; the first line is skipped where it is None.
        encoding: of the text; recognised where absent.

    Raises:
        UserError: a required column is missing, there are more bad lines than allowed, or the file cannot be read.
    """
    lines = text_lines(path, reading, encoding)
    if header is None:
        header = split_header(next(lines, (1, ""))[1], dialect)
    for column in fields.values():
        if column.required and column.key not in header:
            raise UserError(f"{path}: no column {column.key!r}; found: {', '.join(header) or 'an empty file'}")
    present = {name: header.index(column.key) for name, column in fields.items() if column.key in header}
    rows = _rows(lines, path, reading, dialect, len(header), _Rowlike(fields, present))
    while batch := list(itertools.islice(rows, BATCH_ROWS)):
        frame = pl.DataFrame(
            {"": [line for line, _ in batch]}
            | {name: [row[index] for _, row in batch] for name, index in present.items()},
            schema={"": pl.Int64} | dict.fromkeys(present, pl.String),
        )
        yield typed(frame, path, reading, fields, "line")


def read_header(path: Path, reading: Reading, suffix_separator: str) -> tuple[list[str], Dialect]:
    """The column names in the first line of a table, and the dialect that the line and the file's name speak of.

    Raises:
        UserError: the first line is no header, or two columns have one name.
    """
    line = next(text_lines(path, reading), (1, ""))[1]
    bare = re.sub(r'"[^"]*"', "", line)
    separator = max(SEPARATORS, key=lambda candidate: (bare.count(candidate), candidate == suffix_separator))
    if not bare.count(separator):
        separator = suffix_separator
    if separator != suffix_separator:
        reading.remark(path, f"columns are separated by {SEPARATORS[separator]}")
    if "\r" in line:
        raise UserError(f"{path}: lines end in carriage returns alone; convert them (tr '\\r' '\\n')")
    blanks = separator != "\t" and len(re.findall(re.escape(separator) + " ", bare)) == bare.count(separator) > 0
    dialect = Dialect(separator, needless=separator != "\t" or '"' in line, blanks=blanks)
    header = split_header(line, dialect)
    if line.startswith("#"):
        raise UserError(f"{path}: line 1 is a comment ({line[:40]!r}); the first line should hold the column names")
    numbers = [name for name in header if re.match(NUMBER, name, re.ASCII)]
    if numbers:
        raise UserError(
            f"{path}: line 1 is no header, it holds values ({', '.join(header)[:60]}); put a line of column names "
            f"before it, such as {separator.join(('user_id', 'item_id', 'rating', 'timestamp'))}"
        )
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise UserError(f"{path}: line 1: two columns are called {twice[0]!r}; rename one")
    return header, dialect


def split_header(line: str, dialect: Dialect) -> list[str]:
    """The column names in a line, without blanks around them."""
    return [name.strip() for name in replace(dialect, needless=True).split(line, literal=True) or []]


class _Rowlike:
    """Whether values look like a row of their own: numbers where they belong, and ids shaped like other rows'."""

    LEARNED = 1000

    def __init__(self, fields: Mapping[str, Field], present: Mapping[str, int]):
        self.ids = [index for name, index in present.items() if fields[name].kind == "id"]
        self.numbers = [index for name, index in present.items() if fields[name].kind == "number"]
        self.shapes: set[tuple[str, ...]] = set()
        self.seen = 0

    def learn(self, row: list[str]) -> None:
        if self.seen < self.LEARNED:
            self.seen += 1
            self.shapes.add(self.shape(row))

    def shape(self, row: list[str]) -> tuple[str, ...]:
        return tuple(re.sub("9+", "9", re.sub(r"[^\W\d]+", "a", re.sub(r"\d", "9", row[index]))) for index in self.ids)

    def __call__(self, row: list[str]) -> bool:
        return all(re.match(NUMBER, row[index].strip()) for index in self.numbers if row[index].strip()) and (
            self.shape(row) in self.shapes
            or (not self.shapes and not any(re.search(r"\s|^$", row[index]) for index in self.ids))
        )


def _rows(
    lines: Iterator[tuple[int, str]], path: Path, reading: Reading, dialect: Dialect, width: int, rowlike: _Rowlike
) -> Iterator[tuple[int, list[str]]]:
    """The number of each row's (last) line, and its values; rows of another width are bad lines."""
    waiting: deque[tuple[int, str]] = deque()
    spans = 0
    while True:
        if not waiting:
            waiting.extend(itertools.islice(lines, QUICK_LINES))
            if (quick := dialect.split_all([line for _, line in waiting])) is not None:
                for (number, _), values in zip(waiting, quick, strict=True):
                    if values and _is_good(number, values, path, reading, width):
                        rowlike.learn(values)
                        yield number, values
                more = bool(waiting)
                waiting.clear()
                if more:
                    continue
        if not waiting:
            break
        number, line = waiting.popleft()
        if not line:
            continue
        row = dialect.split(line)
        if row is None:
            span = _span(line, lines, waiting, dialect, width, rowlike)
            if span is None:
                row = dialect.split(line, literal=True) or []
            else:
                number, row = span
                spans += 1
        if _is_good(number, row, path, reading, width):
            rowlike.learn(row)
            yield number, row
    if spans:
        reading.remark(path, f"{spans} row{'s' * (spans > 1)} with a quoted value over several lines")


def _is_good(number: int, row: list[str], path: Path, reading: Reading, width: int) -> bool:
    if len(row) != width:
        reading.reject(path, f"line {number}", f"{len(row)} values, the header has {width}")
    elif max(map(len, row)) > MAX_VALUE:
        reading.reject(path, f"line {number}", f"a value of more than {MAX_VALUE:,} characters")
    else:
        return True
    return False


def _span(
    line: str,
    lines: Iterator[tuple[int, str]],
    waiting: deque[tuple[int, str]],
    dialect: Dialect,
    width: int,
    rowlike: _Rowlike,
) -> tuple[int, list[str]] | None:
    """The row that begins in a line whose last value is still open, and its last line's number; None where none ends.

    Lines that were looked at in vain are put back into ``waiting``.
    """
    taken: list[tuple[int, str]] = []
    row = None
    text = [line]
    while row is None and len(taken) < MAX_SPAN:
        following = waiting.popleft() if waiting else next(lines, None)
        if following is None:
            break
        taken.append(following)
        text.append(following[1])
        if '"' in following[1]:
            row = dialect.split("\n".join(text))
    swallowed = False
    for _, inner in taken:
        if inner.count('"') <= 1 and len(values := inner.replace('"', "").split(dialect.separator)) == width:
            swallowed = swallowed or rowlike(values)
    if row is None or len(row) != width or swallowed:
        waiting.extendleft(reversed(taken))
        return None
    return taken[-1][0], row
