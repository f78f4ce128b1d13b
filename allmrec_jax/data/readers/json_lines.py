"""JSON lines, read twice over: quickly by a typed parser, and line by line where that one meets anything unusual.

Both give the same values, those of :mod:`allmrec_jax.data.readers.values`.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import msgspec
import polars as pl

from allmrec_jax.data.readers.reading import DTYPES, Field, Reading
from allmrec_jax.data.readers.streams import open_stream
from allmrec_jax.data.readers.values import (
    BLANKS,
    LATEST,
    MISSING,
    JsonFloat,
    JsonInteger,
    convert,
    is_python_dictionary,
    parse,
    type_name,
    typed,
)
from allmrec_jax.errors import UserError

CHUNK_BYTES = 1 << 25
"""Uncompressed bytes of JSON lines that are parsed at once: it bounds memory, not results."""

FAST_TYPES: dict[str, Any] = {
    "id": str | int,
    "number": float,
    "time": Annotated[float, msgspec.Meta(ge=-LATEST, le=LATEST)],
    "text": str | None,
    "texts": str | list[str] | None,
}
"""What the typed parser takes for each kind of field; anything else it leaves to the parser of single lines."""

SAMPLE_LINES = 200


def read_json_lines(path: Path, reading: Reading, fields: Mapping[str, Field]) -> Iterator[pl.DataFrame]:
    """Frames of a file with one JSON object (or Python dictionary) a line, a bounded number of lines at a time.

    Args:
        fields: column → what to take for it. Other keys are ignored; blank lines too.

    Raises:
        UserError: more bad lines than allowed, or the file cannot be read.
    """
    parse_quickly = _typed_parser(fields)
    for first_line, lines, chunk in _chunks_of_lines(path, reading):
        frame = parse_quickly(first_line, lines, chunk)
        if frame is None:
            frame = _parse_line_by_line(path, reading, first_line, chunk, fields)
        yield typed(frame, path, reading, fields, "line")


def keys_of(path: Path, reading: Reading) -> dict[str, Any]:
    """The keys of the first objects of a file of JSON lines, with a value of each.

    Raises:
        UserError: none of the first lines is an object; the message says why the first is not.
    """
    found: dict[str, Any] = {}
    reason = None
    with open_stream(path) as (stream, _):
        for number, line in zip(range(1, SAMPLE_LINES + 1), stream, strict=False):
            if not line.strip():
                continue
            try:
                body = parse_object(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
            except ValueError as error:
                reason = reason or f"line {number}: {error}"
                continue
            if is_python_dictionary(line):
                reading.remark(path, "one Python dictionary a line, not JSON")
            for key, value in body.items():
                if found.get(key) is None:
                    found[key] = value
    if not found:
        raise UserError(f"{path}: " + (f"not JSON lines: {reason}" if reason else "the file is empty"))
    return found


def parse_object(line: bytes) -> dict[str, Any]:
    """The object of one line; ``ValueError`` says why it is none."""
    body = parse(line)
    if isinstance(body, list):
        raise ValueError("should be a JSON object, is a list: one object a line is read (jq -c '.[]' makes lines)")
    if not isinstance(body, dict):
        raise ValueError(f"should be a JSON object, is {type_name(body)}")
    return body


def read_json(path: Path, reading: Reading) -> list[tuple[str, Any]]:
    """The entries of a file that is one JSON object, in order; a key that occurs twice is there twice.

    Raises:
        UserError: it is not valid JSON (the line is named) or not an object.
    """
    with open_stream(path) as (stream, _):
        content = stream.read()
    reading.progress(path, path.stat().st_size, path.stat().st_size)
    entries: list[tuple[str, Any]] = []

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal entries
        entries = pairs  # the outermost object is the last to be closed
        return dict(pairs)

    try:
        value = json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=object_of,
            parse_float=JsonFloat,
            parse_int=JsonInteger,
            parse_constant=JsonFloat,
        )
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}: invalid JSON ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except RecursionError as error:
        raise UserError(f"{path}: invalid JSON (nested too deep)") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: should be a JSON object, is {type_name(value)}")
    return entries


def _chunks_of_lines(path: Path, reading: Reading) -> Iterator[tuple[int, int, bytes]]:
    """The number of a first line, how many there are, and whole lines, about :data:`CHUNK_BYTES` at a time."""
    line, rest = 1, b""
    total = path.stat().st_size if path.exists() else 0
    with open_stream(path) as (stream, position):
        while block := stream.read(CHUNK_BYTES):
            reading.progress(path, position(), total)
            if line == 1 and not rest:
                if block[:2] in (b"\xff\xfe", b"\xfe\xff"):
                    raise UserError(f"{path}: text is UTF-16; write it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
                block = block.removeprefix(b"\xef\xbb\xbf")
            end = block.rfind(b"\n") + 1
            if not end:
                rest += block
                continue
            chunk = rest + block[:end]
            lines = chunk.count(b"\n")
            yield line, lines, chunk
            line += lines
            rest = block[end:]
    if rest:
        yield line, 1, rest
    reading.progress(path, total, total)


def _typed_parser(fields: Mapping[str, Field]) -> Callable[[int, int, bytes], pl.DataFrame | None]:
    """A function of a first line's number and some lines: their frame, or None where one needs a closer look."""
    slots: list[tuple[Any, ...]] = []
    keys: dict[str, str] = {}
    names: dict[str, list[str]] = {}
    for name, column in fields.items():
        for key in (column.key, *column.also):
            slot = f"value{len(slots)}"
            kind = FAST_TYPES[column.kind]
            slots.append((slot, kind) if column.required and not column.also else (slot, kind | None, None))
            keys[slot] = key
            names.setdefault(name, []).append(slot)
    row = msgspec.defstruct("Row", sorted(slots, key=len), rename=keys, gc=False)
    decoder = msgspec.json.Decoder(row)

    def parse_quickly(first_line: int, lines: int, chunk: bytes) -> pl.DataFrame | None:
        try:
            if not chunk.isascii():
                chunk.decode()
            rows = decoder.decode_lines(chunk)
        except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
            return None
        if len(rows) != lines or not (chunk.count(b"}\n{") == lines - 1 or chunk.count(b"}\r\n{") == lines - 1):
            return None  # a row a line, and each line an object: nothing that only looks alike
        values: dict[str, Any] = {"": range(first_line, first_line + len(rows))}
        for name, column in fields.items():
            cells = list(map(attrgetter(names[name][0]), rows))
            for slot in names[name][1:]:
                more = map(attrgetter(slot), rows)
                cells = [cell if cell is not None else other for cell, other in zip(cells, more, strict=True)]
            values[name] = pl.Series(name, _plain(cells, column), DTYPES[column.kind])
        return pl.DataFrame(values, schema_overrides={"": pl.Int64})

    return parse_quickly


def _plain(cells: list[Any], column: Field) -> list[Any]:
    """Values of the typed parser, whose numbers are finite, in the type of the field."""
    if column.kind == "id":
        return list(map(str, cells))
    if column.kind == "texts":
        absent = MISSING[1:]
        return [
            cell if not isinstance(cell, str) else None if cell.strip(BLANKS) in absent else [cell] for cell in cells
        ]
    return cells


def _parse_line_by_line(
    path: Path, reading: Reading, first_line: int, chunk: bytes, fields: Mapping[str, Field]
) -> pl.DataFrame:
    """The same frame from Python's parser, which knows each line's number; bad lines are rejected."""
    columns: dict[str, list[Any]] = {"": []} | {name: [] for name in fields}
    for number, line in enumerate(chunk.split(b"\n"), first_line):
        if not line.strip():
            continue
        try:
            row = _values_of(parse_object(line), fields)
        except ValueError as error:
            reading.reject(path, f"line {number}", str(error))
            continue
        columns[""].append(number)
        for name, value in row.items():
            columns[name].append(value)
    return pl.DataFrame(columns, schema={"": pl.Int64} | {name: DTYPES[column.kind] for name, column in fields.items()})


def _values_of(body: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
    row = {}
    for name, column in fields.items():
        key = next((key for key in (column.key, *column.also) if body.get(key) is not None), column.key)
        if column.required and key not in body:
            raise ValueError(f"key {key!r} is missing")
        try:
            row[name] = convert(body.get(key), column)
        except ValueError as error:
            raise ValueError(f"{key!r} {error}") from error
    return row
