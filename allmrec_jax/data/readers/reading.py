"""What every reader shares: the form that it yields, bad lines, and streams of JSON lines and of delimited text.

A file may be plain or gzipped, whatever its name says. Lines that are no good are counted, listed and skipped up to a
limit; beyond it reading stops, because the file is then likely not what it was taken for.
"""

import csv
import gzip
import itertools
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import polars as pl

from allmrec_jax.errors import UserError

INTERACTIONS: dict[str, Any] = {"user": pl.String, "item": pl.String, "rating": pl.Float64, "time": pl.Float64}
"""Columns of :attr:`Source.interactions`, rows in file order, time in Unix seconds; rating and time may be all null."""

ITEMS: dict[str, Any] = {
    "item": pl.String,
    "title": pl.String,
    "description": pl.List(pl.String),
    "brand": pl.String,
    "categories": pl.List(pl.String),
}
"""Columns of what :attr:`Source.read_items` yields; every one but ``item`` may be null where the source lacks it."""

CHUNK_BYTES = 1 << 25
"""Uncompressed bytes of JSON lines that are parsed at once: it bounds memory, not results."""

BATCH_ROWS = 1 << 17


@dataclass
class Source:
    """Raw data as a reader found it, before any rule is applied."""

    name: str
    kind: str
    files: list[Path]
    interactions: pl.DataFrame
    read_items: Callable[[pl.Series], pl.DataFrame]
    """Item ids → a row of :data:`ITEMS` for each that the source describes (its last where it has several)."""


@dataclass
class Reading:
    """One act of reading: how many bad lines are borne, and who is told of the progress."""

    max_bad_lines: int = 100
    progress: Callable[[Path, int, int], None] = lambda path, done, total: None
    """Called with a file, the bytes of it read so far (as stored) and its size."""
    bad_lines: list[tuple[str, str, str]] = field(default_factory=list)
    """File, where in it (``line 3``), and what is wrong."""

    def reject(self, path: Path, where: str, reason: str) -> None:
        """Note a bad line; raises :class:`UserError` when there are more than allowed."""
        self.bad_lines.append((str(path), where, reason))
        if len(self.bad_lines) > self.max_bad_lines:
            first = self.bad_lines[0]
            raise UserError(
                f"{path}: more than {self.max_bad_lines} bad lines (--max-bad-lines); "
                f"the first: {first[0]} {first[1]}: {first[2]}; the last: {where}: {reason}"
            )


@dataclass(frozen=True)
class Field:
    """A value to take from each line: ``id`` or finite ``number`` (required), ``text`` or ``texts`` (where there)."""

    key: str
    kind: Literal["id", "number", "text", "texts"]
    split: str = "|"
    """What separates ``texts`` in delimited files."""

    @property
    def required(self) -> bool:
        """Whether a line without it is a bad line."""
        return self.kind in ("id", "number")


DTYPES: dict[str, Any] = {"id": pl.String, "number": pl.Float64, "text": pl.String, "texts": pl.List(pl.String)}


@contextmanager
def open_stream(path: Path) -> Iterator[tuple[IO[bytes], Callable[[], int]]]:
    """The uncompressed bytes of a plain or gzipped file, and a function that says how far reading is in the stored one.

    Raises:
        UserError: the file cannot be opened, or its gzip stream is truncated or damaged.
    """
    try:
        with open(path, "rb") as raw:
            zipped = raw.peek(2)[:2] == b"\x1f\x8b"
            yield (gzip.GzipFile(fileobj=raw) if zipped else raw), raw.tell  # type: ignore[misc]
    except EOFError as error:
        raise UserError(f"{path}: the gzip stream is truncated; download or copy the file again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: the gzip stream is damaged ({error}); download or copy the file again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def read_json_lines(path: Path, reading: Reading, fields: Mapping[str, Field]) -> Iterator[pl.DataFrame]:
    """Frames of a file with one JSON object a line, a bounded number of lines at a time.

    Args:
        fields: column → what to take for it. Other keys are ignored; blank lines too.

    Raises:
        UserError: more bad lines than allowed, or the file cannot be read.
    """
    for first_line, chunk in _chunks_of_lines(path, reading):
        frame = _parse_quickly(chunk, fields)
        yield frame if frame is not None else _parse_line_by_line(path, reading, first_line, chunk, fields)


def read_delimited(
    path: Path,
    reading: Reading,
    fields: Mapping[str, Field],
    *,
    separator: str = ",",
    header: list[str] | None = None,
    quoted: bool = True,
    encoding: str = "utf-8",
    rename: Callable[[str], str] = str,
) -> Iterator[pl.DataFrame]:
    """Frames of a file with one row of separated values a line (or several, where a quoted value spans lines).

    Args:
        fields: column → what to take for it, by column name.
        header: the column names where the file has none of its own.
        quoted: whether double quotes enclose values (CSV). Without it ``separator`` may have several characters.
        rename: applied to each name of the file's own header.

    Raises:
        UserError: a required column is missing, there are more bad lines than allowed, or the file cannot be read.
    """
    rows = _delimited_rows(path, reading, separator, quoted, encoding)
    if header is None:
        header = [rename(name) for name in next(rows, (0, [""]))[1]]
    for column in fields.values():
        if column.required and column.key not in header:
            raise UserError(f"{path}: line 1: no column {column.key!r}; found: {', '.join(header) or 'an empty file'}")
    present = {name: header.index(column.key) for name, column in fields.items() if column.key in header}
    while batch := list(itertools.islice(rows, BATCH_ROWS)):
        good = []
        for line, row in batch:
            if len(row) == len(header):
                good.append((line, row))
            else:
                reading.reject(path, f"line {line}", f"{len(row)} values, the header has {len(header)}")
        frame = pl.DataFrame(
            {"": [line for line, _ in good]}
            | {name: [row[index] for _, row in good] for name, index in present.items()},
            schema={"": pl.Int64} | dict.fromkeys(present, pl.String),
        )
        yield typed(frame, path, reading, fields, "line")


def read_header(path: Path, separator: str = ",") -> list[str]:
    """The column names in the first line of a delimited file."""
    with open_stream(path) as (stream, _):
        line = stream.readline().decode("utf-8-sig", "replace")
    return next(csv.reader([line], delimiter=separator), [])


def typed(frame: pl.DataFrame, path: Path, reading: Reading, fields: Mapping[str, Field], unit: str) -> pl.DataFrame:
    """A frame's columns in the types of ``fields``, without the rows that lack a required value.

    The column named ``""`` holds the number of each row's line (or ``unit``); a missing column comes out null.
    """
    columns = []
    for name, column in fields.items():
        if name not in frame.columns:
            columns.append(pl.lit(None, DTYPES[column.kind]).alias(name))
        elif column.kind == "number":
            columns.append(pl.col(name).cast(pl.String).str.strip_chars().cast(pl.Float64, strict=False).alias(name))
        elif column.kind == "texts" and frame[name].dtype == pl.String:
            columns.append(pl.col(name).str.split(column.split).alias(name))
        else:
            columns.append(pl.col(name).cast(DTYPES[column.kind]))
    result = frame.select("", *columns)
    usable = {}
    for name, column in fields.items():
        if column.required:
            good = pl.col(name).is_finite() if column.kind == "number" else pl.col(name).str.len_bytes() > 0
            usable[name] = good.fill_null(False)
    for row in result.filter(~pl.all_horizontal(usable.values())).get_column("").to_list():
        where = pl.col("") == row
        name = next(name for name, condition in usable.items() if not result.filter(where).select(condition).item())
        wanted = "a number" if fields[name].kind == "number" else "an id"
        found = _shorten(frame.filter(where)[name][0])
        reading.reject(path, f"{unit} {row}", f"{fields[name].key!r} should be {wanted}, is {found}")
    return result.filter(pl.all_horizontal(usable.values())).drop("")


def read_json(path: Path, reading: Reading) -> dict[str, Any]:
    """A file that is one JSON object.

    Raises:
        UserError: it is not valid JSON (the line is named) or not an object.
    """
    with open_stream(path) as (stream, _):
        content = stream.read()
    reading.progress(path, path.stat().st_size, path.stat().st_size)
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}: invalid JSON ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: should be a JSON object, is {_type_name(value)}")
    return value


def gather(frames: Iterable[pl.DataFrame], path: Path, what: str) -> pl.DataFrame:
    """The frames as one; :class:`UserError` where they hold no row."""
    parts = [frame for frame in frames if frame.height]
    if not parts:
        raise UserError(f"{path}: no usable {what} (the file is empty, or no line of it is good)")
    return pl.concat(parts)


def convert(value: Any, kind: str) -> Any:
    """A JSON value as a field of that kind; ``ValueError`` says what is wrong with it."""
    if kind == "number":
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"should be a number, is {_describe(value)}")
        return float(value)
    if kind == "texts":
        return None if value is None else list(_flat_texts(value))
    if value is None and kind == "text":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float) or (kind == "id" and value == ""):
        raise ValueError(f"should be {'an id' if kind == 'id' else 'text'}, is {_describe(value)}")
    return clean_unicode(str(value))


def clean_unicode(text: str) -> str:
    """Text with lone surrogates (``\\ud83d`` without its other half), which no UTF-8 file can hold, made ``?``."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _flat_texts(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for element in value:
            yield from _flat_texts(element)
    elif value is not None:
        yield convert(value, "text")


def _chunks_of_lines(path: Path, reading: Reading) -> Iterator[tuple[int, bytes]]:
    """Whole lines, about :data:`CHUNK_BYTES` at a time, and the number of the first of them."""
    line, rest = 1, b""
    total = path.stat().st_size if path.exists() else 0
    with open_stream(path) as (stream, position):
        while block := stream.read(CHUNK_BYTES):
            reading.progress(path, position(), total)
            if line == 1 and not rest:
                block = block.removeprefix(b"\xef\xbb\xbf")
            end = block.rfind(b"\n") + 1
            if not end:
                rest += block
                continue
            chunk = rest + block[:end]
            yield line, chunk
            line += chunk.count(b"\n")
            rest = block[end:]
    if rest:
        yield line, rest
    reading.progress(path, total, total)


def _parse_quickly(chunk: bytes, fields: Mapping[str, Field]) -> pl.DataFrame | None:
    """The chunk parsed by Polars, or None where a line needs a closer look."""
    try:
        frame = pl.read_ndjson(chunk, schema={column.key: DTYPES[column.kind] for column in fields.values()})
    except pl.exceptions.PolarsError:
        return None
    frame = frame.select(pl.col(column.key).alias(name) for name, column in fields.items())
    for name, column in fields.items():
        values = frame[name]
        if column.required and values.null_count():
            return None
        if column.kind == "number":
            if not values.is_finite().all():
                return None
            continue
        # Polars writes lists and objects as JSON text where a string is asked for, and NUL for a lone surrogate.
        texts = values.explode() if column.kind == "texts" else values
        suspicious = r"^[\[{]|\x00" + ("|^(true|false|)$" if column.kind == "id" else "")
        if texts.str.contains(suspicious).any():
            return None
    return frame.with_columns(
        pl.col(name).list.drop_nulls() for name, column in fields.items() if column.kind == "texts"
    )


def _parse_line_by_line(
    path: Path, reading: Reading, first_line: int, chunk: bytes, fields: Mapping[str, Field]
) -> pl.DataFrame:
    """The same frame from Python's parser, which knows each line's number; bad lines are rejected."""
    columns: dict[str, list[Any]] = {name: [] for name in fields}
    for number, line in enumerate(chunk.split(b"\n"), first_line):
        if not line.strip():
            continue
        try:
            row = _parse_line(line, fields)
        except ValueError as error:
            reading.reject(path, f"line {number}", str(error))
            continue
        for name, value in row.items():
            columns[name].append(value)
    return pl.DataFrame(columns, schema={name: DTYPES[column.kind] for name, column in fields.items()})


def _parse_line(line: bytes, fields: Mapping[str, Field]) -> dict[str, Any]:
    try:
        body = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"invalid JSON ({error.msg} at column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8 text") from error
    except RecursionError as error:
        raise ValueError("invalid JSON (nested too deep)") from error
    if not isinstance(body, dict):
        raise ValueError(f"should be a JSON object, is {_type_name(body)}")
    row = {}
    for name, column in fields.items():
        if column.required and column.key not in body:
            raise ValueError(f"key {column.key!r} is missing")
        try:
            row[name] = convert(body.get(column.key), column.kind)
        except ValueError as error:
            raise ValueError(f"{column.key!r} {error}") from error
    return row


def _delimited_rows(
    path: Path, reading: Reading, separator: str, quoted: bool, encoding: str
) -> Iterator[tuple[int, list[str]]]:
    """The number of each row's (last) line, and its values."""
    lines = _decoded_lines(path, reading, encoding)
    if not quoted:
        for number, line in enumerate(lines, 1):
            if stripped := line.rstrip("\r\n"):
                yield number, stripped.split(separator)
        return
    reader = csv.reader(lines, delimiter=separator)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reading.reject(path, f"line {reader.line_num}", str(error))
            continue
        if row:
            yield reader.line_num, row


def _decoded_lines(path: Path, reading: Reading, encoding: str) -> Iterator[str]:
    """Every line of a file as text; one that cannot be decoded is rejected and comes out empty."""
    total = path.stat().st_size if path.exists() else 0
    with open_stream(path) as (stream, position):
        for number, line in enumerate(stream, 1):
            if number % BATCH_ROWS == 0:
                reading.progress(path, position(), total)
            try:
                yield line.decode("utf-8-sig" if number == 1 and encoding == "utf-8" else encoding)
            except UnicodeDecodeError:
                reading.reject(path, f"line {number}", f"not {encoding.upper()} text")
                yield ""
    reading.progress(path, total, total)


def _type_name(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _describe(value: Any) -> str:
    return _type_name(value) if isinstance(value, dict | list | type(None)) else _shorten(value)


def _shorten(value: Any) -> str:
    text = "missing" if value is None else json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:37] + "…"
