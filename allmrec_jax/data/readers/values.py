"""What a value is: one rule for ids, numbers, times and texts, whatever format they come from.

Missing are null, NaN and the words of :data:`MISSING`. Ids lose blanks around them; a number that is an id is whole and
written without a point. Booleans are neither ids nor texts.
"""

import ast
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from allmrec_jax.data.readers.reading import DTYPES, Field, Reading

MISSING = ("", "nan", "NaN", "-nan", "null", "NULL", "None", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaT")
"""Texts that stand for no value: what pandas, R, SQL and Python write for one. ``Nan`` may be a title and is none."""

ANONYMOUS = ("anonymous", "anonym", "guest", "unknown", "unregistered")
"""User ids, in any case, that stand for many people."""

EXACT = 2.0**53
"""From here on a float no longer tells whole numbers apart."""

BLANKS = " \t\n\r\f\v\u00a0\ufeff"
"""What is taken off the ends of ids and numbers."""

NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"

LATEST = 9e18
"""The largest time, before or after 1970 and in any unit: whole seconds are kept in 64 bits."""

ROUNDED = r"^-?[0-9](\.[0-9]+)?[eE]\+[0-9]+$"
"""An id that a spreadsheet or pandas made a float (``1.23E+17``): its last digits are lost."""


class JsonInteger(str):
    """An integer of JSON, as written."""


class JsonFloat(str):
    """A number of JSON that has a point or an exponent, as written; or NaN, Infinity."""


def convert(value: Any, column: Field) -> Any:
    """A value of a JSON object (see :func:`parse`) in the type of the field; ``ValueError`` says what is wrong with it.

    A missing value is None where the field allows that.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = JsonInteger(value) if isinstance(value, int) else JsonFloat(repr(value))
    if column.kind == "texts":
        absent = is_missing(value) and not (isinstance(value, str) and not value.strip(BLANKS))
        return None if absent else list(_flat_texts(value, column))
    if is_missing(value):
        if column.required:
            raise ValueError(f"should be {column.wanted}, is {describe(value)}")
        return None
    if isinstance(value, str):
        if column.kind == "id":
            return _id(value, column)
        if column.kind == "text":
            return clean_unicode(str(value))
        number = _number(value) if column.kind == "number" else _time(value)
        if number is not None:
            return number
    raise ValueError(f"should be {column.wanted}, is {describe(value)}")


def parse(line: bytes | str) -> Any:
    """One JSON value, its numbers as written (:class:`JsonInteger`, :class:`JsonFloat`); or one Python dictionary.

    Raises:
        ValueError: it is neither, is not UTF-8, or is nested too deep.
    """
    try:
        text = line if isinstance(line, str) else line.decode()
        try:
            return _DECODER.decode(text)
        except json.JSONDecodeError as error:
            if not is_python_dictionary(text):
                raise ValueError(f"invalid JSON ({error.msg} at column {error.colno})") from error
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                return ast.literal_eval(text.strip())
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8 text") from error
    except (RecursionError, MemoryError) as error:
        raise ValueError("invalid JSON (nested too deep)") from error
    except (SyntaxError, TypeError) as error:
        raise ValueError("neither JSON nor a Python dictionary") from error


def is_python_dictionary(line: str | bytes) -> bool:
    """Whether a line looks like a dictionary as Python prints it: ``{'asin': …}`` or ``{u'id': …}``."""
    start = line[:64] if isinstance(line, str) else line[:64].decode("utf-8", "replace")
    return re.match(r"\s*\{\s*u?'", start) is not None


def is_missing(value: Any) -> bool:
    """Whether a JSON value stands for none."""
    if isinstance(value, JsonFloat):
        return value.lstrip("-") in ("NaN", "nan")
    return value is None or (isinstance(value, str) and value.strip(BLANKS) in MISSING)


def is_date(value: Any) -> bool:
    """Whether a value is an ISO date written as text."""
    return isinstance(value, str) and _number(value) is None and _date(value.strip(BLANKS)) is not None


def typed(frame: pl.DataFrame, path: Path, reading: Reading, fields: Mapping[str, Field], unit: str) -> pl.DataFrame:
    """A frame's columns in the types of ``fields``, without the rows that lack a required value.

    The column named ``""`` holds the number of each row's line (or ``unit``); a missing column comes out null.
    """
    columns, good = [], {}
    for name, column in fields.items():
        if name not in frame.columns:
            columns.append(pl.Series(name, [None], DTYPES[column.kind]).new_from_index(0, frame.height))
            continue
        raw = frame[name]
        value = _as(raw, column)
        if (
            column.kind == "time"
            and raw.dtype == pl.String
            and is_date(raw.filter(value.is_not_null()).head(1).first())
        ):
            reading.remark(path, f"{column.key} holds dates as text, read as UTC")
        if name == "user":
            value = value.set(value.str.to_lowercase().is_in(ANONYMOUS), None)
        columns.append(value)
        if column.required:
            good[name] = value.is_not_null()
        elif column.kind == "number":
            good[name] = value.is_not_null() | _missing(raw)
    result = pl.DataFrame(columns)
    if not good:
        return result
    usable = pl.DataFrame(good).select(pl.all_horizontal(pl.all())).to_series()
    if not usable.all():
        left = max(reading.max_bad_lines + 1 - len(reading.bad_lines), 1)
        for row in usable.not_().arg_true().head(left).to_list():
            name = next(name for name in good if not good[name][row])
            found = frame[name][row]
            reason = f"should be {fields[name].wanted}, is {'missing' if found is None else describe(found)}"
            if name == "user" and isinstance(found, str) and found.strip(BLANKS).lower() in ANONYMOUS:
                reason = f"is {describe(found)}, which stands for many people"
            reading.reject(path, f"{unit} {frame[''][row]}", f"{fields[name].key!r} {reason}")
    return result.filter(usable)


def clean_unicode(text: str) -> str:
    """Text with lone surrogates (``\\ud83d`` without its other half), which no UTF-8 file can hold, made ``?``."""
    return text.encode("utf-8", "replace").decode("utf-8")


def type_name(value: Any) -> str:
    """What a JSON value is, in words."""
    if isinstance(value, JsonInteger | JsonFloat):
        return "a number"
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def describe(value: Any) -> str:
    """A value for a message: itself, or its type where it is no single value."""
    if isinstance(value, JsonInteger | JsonFloat):
        text = str(value)
    elif isinstance(value, dict | list):
        text = type_name(value)
    else:
        text = json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:37] + "…"


def _id(value: str, column: Field) -> str:
    if isinstance(value, JsonInteger):
        return "0" if value == "-0" else str(value)
    if not isinstance(value, JsonFloat):
        if re.match(ROUNDED, text := value.strip(BLANKS)):
            raise ValueError(f"should be {column.wanted}, is {describe(value)}")
        return clean_unicode(text)
    number = float(value)
    if not math.isfinite(number) or abs(number) >= EXACT or number != int(number):
        raise ValueError(f"should be {column.wanted}, is {describe(value)}")
    return str(int(number))


def _number(value: str) -> float | None:
    text = value.strip(BLANKS)
    number = float(text) if re.match(NUMBER, text, re.ASCII) else math.nan
    return number if math.isfinite(number) else None


def _time(value: str) -> float | None:
    if (number := _number(value)) is None:
        return _date(value.strip(BLANKS))
    return number if abs(number) <= LATEST else None


def _date(text: str) -> float | None:
    """Unix seconds of an ISO date, which is UTC unless it says otherwise; None where it is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _flat_texts(value: Any, column: Field) -> Iterator[str]:
    if isinstance(value, list | tuple):
        for element in value:
            yield from _flat_texts(element, column)
    elif isinstance(value, str) and not value.strip(BLANKS):
        yield clean_unicode(value)
    elif not is_missing(value):
        yield convert(value, Field(column.key, "text"))


def _missing(values: pl.Series) -> pl.Series:
    if values.dtype == pl.String:
        return values.is_null() | values.str.strip_chars(BLANKS).is_in(MISSING)
    return values.is_null() | values.is_nan() if values.dtype.is_float() else values.is_null()


def _as(values: pl.Series, column: Field) -> pl.Series:
    """A column in the type of the field: null where a value is missing or is none of that type."""
    if isinstance(values.dtype, pl.Categorical | pl.Enum | pl.Binary | pl.Null):
        values = values.cast(pl.String, strict=False)
    if column.kind == "texts":
        return _as_texts(values, column)
    if column.kind in ("number", "time"):
        return _as_numbers(values, column)
    if values.dtype == pl.Boolean:
        return values.new_from_index(0, 0).cast(pl.String).extend_constant(None, len(values))
    if values.dtype.is_float():
        whole = values.is_finite() & (values.abs() < EXACT) & (values.floor() == values)
        integers = values.set(~whole, None).cast(pl.Int64).cast(pl.String)
        return integers if column.kind == "id" else integers.zip_with(whole, values.fill_nan(None).cast(pl.String))
    texts = values.cast(pl.String)
    stripped = texts.str.strip_chars(BLANKS)
    if column.kind == "id":
        return stripped.set(stripped.is_in(MISSING) | stripped.str.contains(ROUNDED), None)
    return texts.set(stripped.is_in(MISSING), None)


def _as_numbers(values: pl.Series, column: Field) -> pl.Series:
    if values.dtype == pl.String:
        texts = values.str.strip_chars(BLANKS)
        numbers = texts.set(~texts.str.contains(NUMBER), None).cast(pl.Float64, strict=False)
        if column.kind == "time" and (dates := numbers.is_null() & ~_missing(values)).any():
            found = [_date(text) if date else None for text, date in zip(texts, dates, strict=True)]
            numbers = numbers.zip_with(~dates, pl.Series(values.name, found, pl.Float64))
    elif values.dtype.is_temporal():
        numbers = values.cast(pl.Datetime("ms")).dt.epoch("ms") / 1000
    else:
        numbers = values.cast(pl.Float64, strict=False)
    usable = numbers.abs() <= LATEST if column.kind == "time" else numbers.is_finite()
    return numbers.set(~usable, None)


def _as_texts(values: pl.Series, column: Field) -> pl.Series:
    lists = pl.List(pl.String)
    if values.dtype.is_nested() and isinstance(values.dtype, pl.List) and values.dtype.inner == pl.String:
        texts = values
    elif values.dtype == pl.String:
        texts = pl.Series(values.name, [_texts_of(text, column.split) for text in values], lists)
    else:
        found = [None if value is None else list(_flat_texts(value, column)) for value in values.to_list()]
        texts = pl.Series(values.name, found, lists)
    wanted = pl.element().is_not_null() & ~pl.element().str.strip_chars(BLANKS).is_in(MISSING[1:])
    return texts.to_frame().select(pl.col(values.name).list.filter(wanted)).to_series()


def _texts_of(text: str | None, separator: str | None) -> list[str] | None:
    """The parts of a cell: of a list as Python or JSON writes it (``['Toys', 'Puzzles']``), or between separators."""
    if text is None or (stripped := text.strip(BLANKS)) in MISSING:
        return None
    if stripped.startswith("[") and stripped.endswith("]"):
        try:
            return list(_flat_texts(ast.literal_eval(stripped), Field("", "texts")))
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            pass
    return [part for part in text.split(separator) if part] if separator else [text]


_DECODER = json.JSONDecoder(parse_float=JsonFloat, parse_int=JsonInteger, parse_constant=JsonFloat)
