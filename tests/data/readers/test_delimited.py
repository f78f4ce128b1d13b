"""Quotes in delimited text: what they enclose, and that a stray one costs its own line at most."""

import csv
import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from allmrec_jax.data.readers import delimited
from allmrec_jax.data.readers.delimited import Dialect, read_delimited, read_header
from allmrec_jax.data.readers.reading import Field, Reading

FIELDS = {
    "user": Field("user_id", "id"),
    "item": Field("item_id", "id"),
    "title": Field("title", "text"),
    "time": Field("timestamp", "number"),
}


def rows_of(path, text, suffix=".csv"):
    path = path / f"r{suffix}"
    path.write_bytes(text.encode())
    reading = Reading()
    _, dialect = read_header(path, reading, "," if suffix == ".csv" else "\t")
    rows = [row for frame in read_delimited(path, reading, FIELDS, dialect) for row in frame.rows()]
    return rows, reading


def table(*titles, separator=","):
    lines = [separator.join(("user_id", "item_id", "title", "timestamp"))]
    return (
        "\n".join(lines + [separator.join((f"u{n}", f"i{n}", title, str(n))) for n, title in enumerate(titles)]) + "\n"
    )


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("stray", ['"open', 'close"', '12" disk', '"a" b', '"'])
@pytest.mark.parametrize("other", ["plain", '12" disk', '"open', 'end"', '"good, ""one"""'])
def test_a_stray_quote_swallows_no_row(tmp_path, suffix, stray, other):
    separator = "," if suffix == ".csv" else "\t"
    rows, reading = rows_of(tmp_path, table("A", stray, "B", other, "C", separator=separator), suffix)
    assert [row[0] for row in rows] + [f"u{int(where[5:]) - 2}" for _, where, _ in reading.bad_lines] == [
        "u0", "u1", "u2", "u3", "u4",
    ]  # fmt: skip
    assert rows[1][2] == stray


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('"a, b"', "a, b"),
        ('"say ""hi"""', 'say "hi"'),
        (r'"say \"hi\""', 'say "hi"'),
        (r'"ends in \"', "ends in \\"),
        ('""', None),
        ('"Heroes"', "Heroes"),
        ("it's", "it's"),
    ],
)
def test_quotes_of_csv(tmp_path, written, read):
    rows, reading = rows_of(tmp_path, table("x", written, "y"))
    assert [row[2] for row in rows] == ["x", read, "y"] and not reading.bad_lines


def test_tsv_keeps_quotes_that_it_does_not_need(tmp_path):
    titles = ['"Heroes"', '"Weird" Al', '"with ""doubled"" ones"']
    rows, _ = rows_of(tmp_path, table(*titles, separator="\t"), ".tsv")
    assert [row[2] for row in rows] == ['"Heroes"', '"Weird" Al', 'with "doubled" ones']
    all_quoted = table(*titles[:1], separator="\t").replace("title", '"title"')
    assert rows_of(tmp_path, all_quoted, ".tsv")[0][0][2] == "Heroes"


def test_a_value_over_several_lines_is_read_and_said(tmp_path):
    text = "\ufeff" + table("A", '"two\n\nlines, ""quoted"""', "B").replace("\n", "\r\n")
    rows, reading = rows_of(tmp_path, text)
    assert [row[2] for row in rows] == ["A", 'two\n\nlines, "quoted"', "B"] and not reading.bad_lines
    assert reading.remarks == ["r.csv: 1 row with a quoted value over several lines"]


def test_blanks_after_every_comma_count_for_nothing(tmp_path):
    rows, _ = rows_of(tmp_path, 'user_id, item_id, title, timestamp\nu, i, "a, b", 3\n')
    assert rows == [("u", "i", "a, b", 3.0)]


@pytest.mark.parametrize("rounded", ["1.23E+17", "1e+17", " 9.876543e+11"])
def test_ids_that_a_spreadsheet_rounded_are_not_merged(tmp_path, rounded):
    text = f"user_id,item_id,title,timestamp\nu,{rounded},A,1\nu,1.5e10,B,2\nu,1E17,C,3\n"
    rows, reading = rows_of(tmp_path, text)
    assert [row[1] for row in rows] == ["1.5e10", "1E17"], "letters and digits of an id, not a number's exponent"
    assert [where for _, where, _ in reading.bad_lines] == ["line 2"]


def test_many_bad_lines_are_listed_one_by_one(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("user_id,item_id,title,timestamp\n" + "u,i,t,x\n,i,t,1\nu,i,t\nu,i,t\0,1\n" * 5)
    reading = Reading(max_bad_lines=100)
    _, dialect = read_header(path, reading, ",")
    assert not [row for frame in read_delimited(path, reading, FIELDS, dialect) for row in frame.rows()]
    assert sorted(int(where[5:]) for _, where, _ in reading.bad_lines) == list(range(2, 22))


VALUES = st.text(alphabet=st.sampled_from('ab"\\ ,;\n\t|9'), max_size=5)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(st.tuples(VALUES, VALUES), max_size=5), block=st.sampled_from([1, 2, 1024]))
def test_what_python_writes_is_read_back(tmp_path, rows, block):
    """RFC 4180 with every value quoted, whatever it holds, and however many lines are split at once."""
    path, text = tmp_path / "r.csv", io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows(
        [
            ("user_id", "item_id", "title", "timestamp"),
            *((f"u{n}", f"i{n}", a + "x", n) for n, (a, _) in enumerate(rows)),
        ]
    )
    path.write_text(text.getvalue(), newline="")
    reading = Reading()
    quick, delimited.QUICK_LINES = delimited.QUICK_LINES, block
    try:
        found = [row for frame in read_delimited(path, reading, FIELDS, Dialect()) for row in frame.rows()]
    finally:
        delimited.QUICK_LINES = quick
    assert not reading.bad_lines
    assert [row[2] for row in found] == [a + "x" for a, _ in rows]


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(lines=st.lists(st.text(alphabet=st.sampled_from('ab", \\'), max_size=12), max_size=6), needless=st.booleans())
def test_splitting_many_lines_at_once_changes_nothing(lines, needless):
    dialect = Dialect(needless=needless)
    if (quick := dialect.split_all(lines)) is not None:
        assert quick == [dialect.split(line) if line else [] for line in lines]
