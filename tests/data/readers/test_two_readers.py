"""The typed parser of JSON lines and the parser of single lines agree on every input, bad lines included."""

import json
import math

import polars as pl
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from allmrec_jax.data.readers import json_lines
from allmrec_jax.data.readers.json_lines import read_json_lines
from allmrec_jax.data.readers.reading import Field, Reading
from allmrec_jax.errors import UserError

FIELDS = {
    "user": Field("user", "id"),
    "item": Field("asin", "id"),
    "rating": Field("overall", "number"),
    "time": Field("time", "time"),
    "title": Field("title", "text"),
    "description": Field("description", "texts"),
    "categories": Field("category", "texts", also=("categories",)),
}
WORDS = st.sampled_from(
    [
        "nan",
        "NaN",
        "null",
        "None",
        "",
        " ",
        "true",
        "[x]",
        "{y}",
        "3",
        "3.0",
        "1.23E+17",
        " B3",
        "anonymous",
        "2020-01-02",
    ]
)
TEXTS = st.one_of(WORDS, st.text(max_size=6))
NUMBERS = st.one_of(
    st.integers(-5, 5),
    st.integers(-(10**25), 10**25),
    st.floats(allow_nan=True, width=64),
    st.just(1e17),
    st.just(-0.0),
)
SINGLE = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    SINGLE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=1), max_leaves=5
)
GOOD = st.fixed_dictionaries(
    {"user": TEXTS, "asin": TEXTS, "overall": st.floats(0, 5), "time": st.integers(0, 2**40)},
    optional={
        "title": TEXTS | SINGLE,
        "description": st.lists(TEXTS, max_size=3),
        "categories": TEXTS,
        "other": VALUES,
    },
)
ANY = st.dictionaries(
    st.sampled_from(["user", "asin", "overall", "time", "title", "description", "category", "x"]), VALUES
)
RAW = st.sampled_from(
    [
        '{"user": "a"}{"user": "b"}',
        '{"user": "a",\n"asin": "b"}',
        "null",
        "[]",
        "",
        "  ",
        "{",
        '{"title": "\\ud83d"}',
        "\r",
    ]
)
LINES = st.lists(
    st.one_of(
        GOOD.map(json.dumps), GOOD.map(lambda body: json.dumps(body, ensure_ascii=False)), ANY.map(json.dumps), RAW
    ),
    max_size=6,
)


def frames_of(path, typed):
    """What the reader gives: the rows and the bad lines, or its error."""
    reading = Reading(max_bad_lines=1000)
    original = json_lines._typed_parser
    try:
        if not typed:
            json_lines._typed_parser = lambda fields: lambda first_line, lines, chunk: None
        frames = list(read_json_lines(path, reading, FIELDS))
    except UserError as error:
        return str(error), None
    finally:
        json_lines._typed_parser = original
    table = pl.concat(frames) if frames else None
    return table, sorted((where, reason.replace("missing", "null")) for _, where, reason in reading.bad_lines)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(lines=LINES, end=st.sampled_from(["", "\n", "\n\n", "\r\n"]), newline=st.sampled_from(["\n", "\r\n"]))
@example(lines=['{"user": 3.0, "asin": "i", "overall": 1, "time": 1}'], end="\n", newline="\n")
@example(lines=['{"user": "u", "asin": "i", "overall": 1, "time": 1, "x": "\\u0000"}'], end="\n", newline="\n")
@example(lines=['{"user": "u", "asin": "i", "overall": 1, "time": 1, "title": true}'], end="\n", newline="\n")
@example(lines=['{"user": true, "asin": "i", "overall": 1, "time": 1}'], end="\n", newline="\n")
@example(lines=['{"user": "u", "asin": 98765432109876543210, "overall": 1, "time": 1}'], end="", newline="\n")
@example(lines=['{"user": "u", "asin": "i", "overall": 1, "time": 1, "title": 300.0}'], end="", newline="\n")
@example(lines=['{"user": "u", "asin": "i", "overall": 1, "time": 1, "description": "nan"}'], end="", newline="\n")
@example(lines=['{"user": "u", "user": "v", "asin": "i", "overall": 1, "time": 1}'], end="", newline="\n")
def test_both_parsers_agree(tmp_path, lines, end, newline):
    path = tmp_path / "x.json"
    path.write_bytes((newline.join(lines) + end).encode("utf-8", "replace").replace(b"\\u0000", b"\xff"))
    quick, quick_bad = frames_of(path, typed=True)
    slow, slow_bad = frames_of(path, typed=False)
    assert [where for where, _ in quick_bad or []] == [where for where, _ in slow_bad or []]
    if isinstance(slow, pl.DataFrame):
        assert isinstance(quick, pl.DataFrame) and quick.equals(slow)
        assert quick.schema == slow.schema
    else:
        assert quick == slow


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(number=st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_read_exactly(tmp_path, number):
    path = tmp_path / "x.json"
    row = {"user": "u", "asin": "i", "overall": number, "time": 1}
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"overall": str(number)}) + "\n")
    for typed in (True, False):
        table, _ = frames_of(path, typed)
        assert table["rating"].to_list() == [number, number]
        assert [math.copysign(1, value) for value in table["rating"]] == [math.copysign(1, number)] * 2
