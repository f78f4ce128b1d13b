"""Each kind of raw data as its reader sees it, and what bad lines and files get."""

import gzip
import json
from datetime import UTC, datetime

import polars as pl
import pytest

from allmrec_jax.data.readers import delimited, json_lines
from allmrec_jax.data.readers.delimited import Dialect, read_delimited
from allmrec_jax.data.readers.json_lines import read_json_lines
from allmrec_jax.data.readers.reading import Field, Reading
from allmrec_jax.data.readers.sources import read_source, recognise
from allmrec_jax.errors import UserError

REVIEW = {
    "reviewerID": "U1", "asin": "I1", "overall": 5.0, "unixReviewTime": 100, "reviewText": "so good", "summary": "x",
    "vote": "3", "style": {"Format:": " DVD"},
}  # fmt: skip


def review(**changes):
    return json.dumps(REVIEW | changes)


def amazon(path, reviews, metadata, name="Games", zipped=True):
    path.mkdir(exist_ok=True)
    for file, lines in ((f"{name}.json", reviews), (f"meta_{name}.json", metadata)):
        content = "\n".join(lines).encode()  # no newline at the end, as in real files
        if zipped:
            (path / f"{file}.gz").write_bytes(gzip.compress(content))
        else:
            (path / file).write_bytes(content)
    return path / (f"{name}.json.gz" if zipped else f"{name}.json")


def read(path, **options):
    reading = Reading(options.pop("max_bad_lines", 100))
    source = read_source(path, reading, **options)
    return source, reading


def items_of(source, *wanted):
    return {row["item"]: row for row in source.read_items(pl.Series("item", wanted, dtype=pl.String)).to_dicts()}


METADATA = [
    json.dumps({"asin": "I1", "title": "One", "description": ["<b>a</b>", "b"], "brand": "B", "category": ["G", "H"]}),
    json.dumps({"asin": "I2", "title": "Two", "description": [], "also_buy": ["I1"], "price": "$3"}),
    json.dumps({"asin": "I3", "description": "a string"}),
    json.dumps({"asin": "I1", "title": "One again"}),
]


@pytest.mark.parametrize("zipped", [True, False])
def test_amazon_2018(tmp_path, zipped):
    reviews = [review(), review(asin="I2", overall=2.0), review(reviewerID="U2", unixReviewTime=7)]
    source, reading = read(amazon(tmp_path, reviews, METADATA, zipped=zipped))
    assert (source.name, source.kind) == ("Games", "amazon-2018")
    assert source.interactions.rows() == [("U1", "I1", 5.0, 100.0), ("U1", "I2", 2.0, 100.0), ("U2", "I1", 5.0, 7.0)]
    found = items_of(source, "I1", "I2", "I3", "I9")
    assert found["I1"]["title"] == "One again" and found["I1"]["description"] == ["<b>a</b>", "b"]
    assert found["I2"]["description"] == [] and found["I2"]["title"] == "Two"
    assert found["I3"]["title"] is None and found["I3"]["description"] == ["a string"]
    assert set(found) == {"I1", "I2", "I3"}
    assert reading.bad_lines == []


def test_amazon_directory_five_core_and_named_metadata(tmp_path):
    path = amazon(tmp_path / "a", [review()], METADATA)
    assert read(path.parent)[0].interactions.height == 1
    five_core = path.rename(path.with_name("Games_5.json.gz"))
    assert read(five_core)[0].name == "Games"
    metadata = path.with_name("meta_Games.json.gz").rename(tmp_path / "elsewhere.json.gz")
    with pytest.raises(UserError, match=r"no metadata beside it \(meta_Games\.json\.gz\).*--items"):
        read(five_core)
    assert set(items_of(read(five_core, items=metadata)[0], "I1", "I2")) == {"I1", "I2"}
    amazon(tmp_path / "b", [review()], METADATA, name="One")
    amazon(tmp_path / "b", [review()], METADATA, name="Two")
    with pytest.raises(UserError, match=r"One\.json\.gz, Two\.json\.gz; name the file"):
        read(tmp_path / "b")


def test_amazon_2023(tmp_path):
    row = {"user_id": "U", "parent_asin": "P", "asin": "A", "rating": 4.0, "timestamp": 1588687728923, "title": "t"}
    (tmp_path / "Video_Games.jsonl").write_text(json.dumps(row) + "\n")
    item = {"parent_asin": "P", "title": "Pad", "description": ["d1", "d2"], "store": "S", "categories": ["X", "Y"]}
    (tmp_path / "meta_Video_Games.jsonl").write_text(json.dumps(item) + "\n")
    source, _ = read(tmp_path / "Video_Games.jsonl")
    assert source.kind == "amazon-2023"
    assert source.interactions.rows() == [("U", "P", 4.0, 1588687728.923)]
    assert items_of(source, "P")["P"] == {
        "item": "P", "title": "Pad", "description": ["d1", "d2"], "brand": "S", "categories": ["X", "Y"],
    }  # fmt: skip


def test_movielens_latest(tmp_path):
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,10,4.0,900\n2,20,3.5,800\n")
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n10,"American President, The (1995)",Comedy|Drama\n20,Plain,(no genres listed)\n'
    )
    source, _ = read(tmp_path)
    assert source.kind == "movielens"
    assert source.interactions.rows() == [("1", "10", 4.0, 900.0), ("2", "20", 3.5, 800.0)]
    found = items_of(source, "10", "20")
    assert found["10"]["title"] == "American President, The (1995)"
    assert found["10"]["categories"] == ["Comedy", "Drama"] and found["10"]["description"] == ["Comedy, Drama"]
    assert found["20"]["categories"] == [] and found["20"]["description"] is None
    assert read(tmp_path / "ratings.csv")[0].kind == "movielens"


def test_movielens_1m(tmp_path):
    (tmp_path / "ratings.dat").write_text("1::1193::5::978300760\n1::661::3::978302109\n")
    (tmp_path / "movies.dat").write_bytes("1193::Misérables, Les (1995)::Drama|Musical\n".encode("latin-1"))
    source, _ = read(tmp_path)
    assert source.interactions.rows()[1] == ("1", "661", 3.0, 978302109.0)
    assert items_of(source, "1193")["1193"]["title"] == "Misérables, Les (1995)"


def test_movielens_100k(tmp_path):
    (tmp_path / "u.data").write_text("196\t242\t3\t881250949\n")
    (tmp_path / "u.genre").write_text("unknown|0\nAction|1\nComedy|2\n\n")
    (tmp_path / "u.item").write_bytes("242|Kolya é (1996)|24-Jan-1997||http://x|0|1|1\n".encode("latin-1"))
    source, _ = read(tmp_path)
    assert source.interactions.rows() == [("196", "242", 3.0, 881250949.0)]
    found = items_of(source, "242")["242"]
    assert found["title"] == "Kolya é (1996)" and found["categories"] == ["Action", "Comedy"]


def test_sequences(tmp_path):
    (tmp_path / "S.inter.json").write_text('{"0": [3, 1], "x": ["1", 2], "bad": 7, "worse": [[1]]}')
    (tmp_path / "S.item.json").write_text(
        '{"1": {"title": "One", "description": "d", "brand": "b", "categories": "A,B & C"},'
        ' "2": {"title": "Two", "description": ""}, "3": 5}'
    )
    source, reading = read(tmp_path)
    assert source.kind == "sequences" and source.name == "S"
    assert source.interactions.select("user", "item").rows() == [("0", "3"), ("0", "1"), ("x", "1"), ("x", "2")]
    assert source.interactions["time"].null_count() == 4
    found = items_of(source, "1", "2", "3")
    assert found["1"]["categories"] == ["A", "B & C"] and found["1"]["description"] == ["d"]
    assert found["2"]["description"] is None and "3" not in found
    assert [where for _, where, _ in reading.bad_lines] == ["user 'bad'", "user 'worse'", "item '3'"]


def test_recbole(tmp_path):
    (tmp_path / "ml.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t5\t4\t88.5\n2\t6\t3\t9\n"
    )
    (tmp_path / "ml.item").write_text(
        "item_id:token\tmovie_title:token_seq\tclass:token_seq\n"
        "5\tA \"quoted\" Title\tAction Sci-Fi\n6\tB\t'Toys & Games', 'X'\n"
    )
    source, _ = read(tmp_path)
    assert source.kind == "recbole"
    assert source.interactions.rows() == [("1", "5", 4.0, 88.5), ("2", "6", 3.0, 9.0)]
    found = items_of(source, "5", "6")
    assert found["5"]["title"] == 'A "quoted" Title' and found["5"]["categories"] == ["Action", "Sci-Fi"]
    assert found["6"]["categories"] == ["Toys & Games", "X"]


def test_recbole_without_ratings_or_times(tmp_path):
    (tmp_path / "c.inter").write_text("user_id:token\titem_id:token\n1\t5\n")
    (tmp_path / "c.item").write_text("item_id:token\ttitle:token_seq\n5\tT\n")
    source, _ = read(tmp_path / "c.inter")
    assert source.interactions.rows() == [("1", "5", None, None)]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_table_with_named_columns(tmp_path, suffix):
    clicks = pl.DataFrame({"who": [7, 8], "sku": ["a", "b"], "stars": [5, 1], "timestamp": [10, 20]})
    goods = pl.DataFrame({"sku": ["a", "b"], "label": ['Two\nlines, "quoted"', "B"], "categories": ["X|Y", None]})
    for frame, name in ((clicks, "clicks"), (goods, "goods")):
        path = tmp_path / f"{name}.{suffix}"
        if suffix == "parquet":
            frame.write_parquet(path)
        else:
            frame.write_csv(path, separator="\t" if suffix == "tsv" else ",")
    (tmp_path / "x.csv").write_text("user_id,item_id\n7,a\n")
    columns = {"user": "who", "item": "sku", "rating": "stars", "title": "label"}
    source, _ = read(tmp_path / f"clicks.{suffix}", items=tmp_path / f"goods.{suffix}", columns=columns)
    assert source.interactions.rows() == [("7", "a", 5.0, 10.0), ("8", "b", 1.0, 20.0)]
    found = items_of(source, "a", "b")
    assert found["a"]["title"] == 'Two\nlines, "quoted"' and found["a"]["categories"] == ["X", "Y"]
    with pytest.raises(UserError, match=r"no column 'price' \(--columns rating=price\)"):
        read(tmp_path / f"clicks.{suffix}", columns=columns | {"rating": "price"})
    with pytest.raises(UserError, match=r"no column 'user_id' nor .*; found: who, sku, .* with --columns user=…"):
        read(tmp_path / f"clicks.{suffix}")
    (tmp_path / "things.csv").write_text("thing,title\na,A\n")
    with pytest.raises(
        UserError, match=r"things\.csv: no column 'item_id' nor .*; found: thing, title; .*--columns key=…"
    ):
        read(tmp_path / "x.csv", items=tmp_path / "things.csv")
    assert items_of(read(tmp_path / "x.csv", items=tmp_path / "things.csv", columns={"key": "thing"})[0], "a")
    with pytest.raises(UserError, match="--columns: unknown 'usr'"):
        read(tmp_path / f"clicks.{suffix}", columns={"usr": "who"})


def test_one_table_may_hold_the_titles_too(tmp_path):
    (tmp_path / "all.csv").write_text("user_id,item_id,title\nu,a,Alpha\nv,a,Alpha\n")
    source, _ = read(tmp_path / "all.csv")
    assert items_of(source, "a")["a"]["title"] == "Alpha"


BAD_REVIEWS = {
    '{"reviewerID": "U", ': "invalid JSON",
    "[1, 2]": "should be a JSON object, is a list",
    "hello": "invalid JSON",
    '{"asin": "I", "overall": 5, "unixReviewTime": 1}': "key 'reviewerID' is missing",
    review(asin=None): "'asin' should be an id, is null",
    review(asin=""): "'asin' should be an id",
    review(asin=["I"]): "'asin' should be an id, is a list",
    review(asin={"a": 1}): "'asin' should be an id, is an object",
    review(overall="five"): "'overall' should be a number, is \"five\"",
    review(overall=True): "'overall' should be a number",
    review(unixReviewTime=None): "'unixReviewTime' should be a number or an ISO date, is null",
    review().replace("100", "NaN"): "'unixReviewTime' should be a number",
    review().replace("100", "1e999"): "'unixReviewTime' should be a number",
    review().replace("100", "1e300"): "'unixReviewTime' should be a number",
    review().replace("100", str(1 << 70)): "'unixReviewTime' should be a number",
}


@pytest.mark.parametrize("bad", BAD_REVIEWS)
def test_bad_review_is_listed_with_its_line_and_skipped(tmp_path, bad):
    path = amazon(tmp_path, [review(), bad, "", review(reviewerID="U2")], METADATA)
    source, reading = read(path, kind="amazon-2018")
    assert source.interactions["user"].to_list() == ["U1", "U2"]
    [(file, where, reason)] = reading.bad_lines
    assert (file, where) == (str(path), "line 2")
    assert BAD_REVIEWS[bad] in reason


def test_line_that_is_not_utf8(tmp_path):
    path = amazon(tmp_path, [review()], METADATA, zipped=False)
    path.write_bytes(path.read_bytes() + b'\n{"reviewerID": "\xff"}\n')
    source, reading = read(path)
    assert source.interactions.height == 1
    assert reading.bad_lines == [(str(path), "line 2", "not UTF-8 text")]


def test_bad_lines_up_to_the_limit_then_an_error(tmp_path):
    path = amazon(tmp_path, [review(), *["{"] * 3], METADATA)
    assert len(read(path, max_bad_lines=3)[1].bad_lines) == 3
    with pytest.raises(UserError, match=r"Games\.json\.gz: more than 2 bad lines \(--max-bad-lines\).*line 2.*line 4"):
        read(path, max_bad_lines=2)


def test_parsing_line_by_line_gives_what_polars_gives(tmp_path, monkeypatch):
    """A chunk with a bad line takes the slow path; its good lines must come out the same."""
    lines = [
        *METADATA,
        json.dumps({"asin": 17, "title": 5, "description": ["x", None, 3], "category": ["Ä", "\U0001f600"]}),
        '{"asin": "E", "title": "caf\\u00e9 \\ud83d\\ude00 \\"q\\" \\n", "description": ["\\t"]}',
        '{"asin": "F", "title": "[CandidateEmb]", "brand": "{x}"}',
        '{"asin": "G", "title": "half \\ud83d of a pair"}',
        '{"asin": "H", "category": [["nested", "list"], ["y"]]}',
        '{"asin": "1.50", "title": ""}',
    ]
    fields = {
        "item": Field("asin", "id"), "title": Field("title", "text"), "description": Field("description", "texts"),
        "brand": Field("brand", "text"), "categories": Field("category", "texts"),
    }  # fmt: skip
    path = tmp_path / "m.json"
    path.write_text("\n".join(lines) + "\n")
    whole = pl.concat(read_json_lines(path, Reading(), fields))
    # One line at a time, so that most lines do take the fast path.
    monkeypatch.setattr(json_lines, "CHUNK_BYTES", 1)
    single = pl.concat(read_json_lines(path, Reading(), fields))
    monkeypatch.setattr(json_lines, "_typed_parser", lambda fields: lambda first_line, lines, chunk: None)
    slow = pl.concat(read_json_lines(path, Reading(), fields))
    assert whole.equals(slow) and single.equals(slow)
    found = {row["item"]: row for row in slow.to_dicts()}
    assert found["17"]["title"] == "5" and found["17"]["description"] == ["x", "3"]
    assert found["E"]["title"] == 'café \U0001f600 "q" \n'
    assert found["F"] == {
        "item": "F",
        "title": "[CandidateEmb]",
        "description": None,
        "brand": "{x}",
        "categories": None,
    }
    assert found["G"]["title"] == "half ? of a pair"
    assert found["H"]["categories"] == ["nested", "list", "y"]


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_chunks_do_not_change_rows_or_line_numbers(tmp_path, monkeypatch, size):
    lines = [review(reviewerID=f"U{n}") for n in range(20)]
    lines[11] = "{"
    path = amazon(tmp_path, lines, METADATA)
    monkeypatch.setattr(json_lines, "CHUNK_BYTES", size)
    source, reading = read(path)
    assert source.interactions["user"].to_list() == [f"U{n}" for n in range(20) if n != 11]
    assert [where for _, where, _ in reading.bad_lines] == ["line 12"]


@pytest.mark.parametrize("which", ["Games.json.gz", "meta_Games.json.gz"])
def test_truncated_and_damaged_gzip(tmp_path, which):
    path = amazon(tmp_path, [review(reviewerID=f"U{n}") for n in range(500)], METADATA * 100)
    content = (tmp_path / which).read_bytes()
    for damaged, message in (
        (content[:-20], "gzip stream is truncated"),
        (content[:60] + bytes(20) + content[80:], "gzip stream is damaged"),
    ):
        (tmp_path / which).write_bytes(damaged)
        with pytest.raises(UserError, match=f"{which}: the {message}"):
            read(path, kind="amazon-2018")[0].read_items(pl.Series("item", ["I1"]))


def test_empty_and_missing_files(tmp_path):
    path = amazon(tmp_path, [""], METADATA)
    with pytest.raises(UserError, match=r"Games\.json\.gz: the file is empty"):
        read(path)
    with pytest.raises(UserError, match=r"Games\.json\.gz: no usable reviews"):
        read(path, kind="amazon-2018")
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"Games\.json\.gz: no usable reviews"):
        read(path, kind="amazon-2018")
    with pytest.raises(UserError, match="nowhere: no such file"):
        read(tmp_path / "nowhere")
    for name in ("x.csv", "x.inter"):
        (tmp_path / name).write_text("")
        with pytest.raises(UserError, match=f"{name}: no column 'user_id'"):
            read(tmp_path / name)
    (tmp_path / "x.inter.json").write_text("{}")
    with pytest.raises(UserError, match=r"x\.inter\.json: no usable sequences"):
        read(tmp_path / "x.inter.json")


def test_what_is_not_recognised(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1}\n')
    (tmp_path / "x.txt").write_text("hello\n")
    with pytest.raises(UserError, match=r"x\.json: no column 'user_id' nor another .*; found: a; .*--columns user=…"):
        read(tmp_path / "x.json")
    for path in (tmp_path / "x.txt", tmp_path):
        with pytest.raises(UserError, match=f"{path.name}: not recognised.*--source"):
            recognise(path, Reading())
    with pytest.raises(UserError, match="unknown source 'netflix'; known: amazon-2018"):
        read(tmp_path / "x.json", kind="netflix")
    with pytest.raises(UserError, match="--columns is for tables only"):
        read(tmp_path / "x.json", kind="sequences", columns={"user": "u"})


def test_sequence_json_that_is_none(tmp_path):
    (tmp_path / "x.inter.json").write_text('{"0": [1],\n "1": [2\n')
    with pytest.raises(UserError, match=r"x\.inter\.json: line 3: invalid JSON"):
        read(tmp_path)
    (tmp_path / "x.inter.json").write_text("[1]")
    with pytest.raises(UserError, match="should be a JSON object, is a list"):
        read(tmp_path)
    (tmp_path / "x.inter.json").write_text('{"0": [1]}')
    with pytest.raises(UserError, match=r"x\.item\.json: cannot be read"):
        read(tmp_path)[0].read_items(pl.Series("item", ["1"]))


def test_bad_rows_of_a_csv_have_the_number_of_their_line(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('user_id,item_id,rating\nu,"two\nlines",5\nu,b\nu,c,many\n,d,4\n\nv,e, 3 \n')
    source, reading = read(path)
    assert source.interactions.select("user", "item", "rating").rows() == [("u", "two\nlines", 5.0), ("v", "e", 3.0)]
    assert [(where, reason) for _, where, reason in reading.bad_lines] == [
        ("line 4", "2 values, the header has 3"),
        ("line 5", "'rating' should be a number, is \"many\""),
        ("line 6", "'user_id' should be an id, is \"\""),
    ]


@pytest.mark.parametrize("name", ["x.csv", "x.inter"])
def test_line_of_a_table_that_is_not_utf8(tmp_path, name):
    separator = b"\t" if name == "x.inter" else b","
    rows = [b"user_id", b"item_id"], [b"u", b"a"], [b"\xff", b"b"], [b"v", b"c"], [b"w"]
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(separator.join(row) for row in rows))
    (tmp_path / "x.item").write_text("item_id\n")
    source, reading = read(tmp_path / name)
    assert source.interactions["item"].to_list() == ["a", "c"]
    assert [(where, reason) for _, where, reason in reading.bad_lines] == [
        ("line 3", "not UTF-8 text"),
        ("line 5", "1 values, the header has 2"),
    ]


def test_csv_field_beyond_the_parsers_limit(tmp_path):
    (tmp_path / "x.csv").write_text("user_id,item_id\nu,a\nu," + "x" * 200_000 + "\nu,b\n")
    source, reading = read(tmp_path / "x.csv")
    assert source.interactions["item"].to_list() == ["a", "b"]
    assert [where for _, where, _ in reading.bad_lines] == ["line 3"]


@pytest.mark.parametrize("cell", [True, [True], [{"text": "a"}], [[False]]])
def test_a_parquet_column_that_holds_no_texts_is_named(tmp_path, cell):
    pl.DataFrame({"user_id": ["u"], "item_id": ["i"]}).write_parquet(tmp_path / "x.parquet")
    pl.DataFrame({"item_id": ["i"], "title": ["T"], "description": [cell]}).write_parquet(tmp_path / "m.parquet")
    source, _ = read(tmp_path / "x.parquet", items=tmp_path / "m.parquet")
    with pytest.raises(UserError, match=r"m\.parquet: column 'description' should hold texts, holds "):
        source.read_items(pl.Series(["i"]))


def test_bad_rows_of_a_parquet_table(tmp_path):
    pl.DataFrame({"user_id": ["u", None, "w"], "item_id": [1, 2, 3], "rating": ["5", "4", "x"]}).write_parquet(
        tmp_path / "x.parquet"
    )
    source, reading = read(tmp_path / "x.parquet")
    assert source.interactions["user"].to_list() == ["u"]
    assert [where for _, where, _ in reading.bad_lines] == ["row 2", "row 3"]
    pl.DataFrame({"user_id": ["u"], "item_id": [{"nested": 1}]}).write_parquet(tmp_path / "z.parquet")
    with pytest.raises(UserError, match=r"z\.parquet: column 'item_id' should hold single values"):
        read(tmp_path / "z.parquet")
    (tmp_path / "y.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"y\.parquet: cannot be read as Parquet"):
        read(tmp_path / "y.parquet")


def test_dates_of_a_parquet_table_are_seconds(tmp_path):
    moments = [datetime(2020, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC), datetime(1970, 1, 2, tzinfo=UTC)]
    frame = pl.DataFrame({"user_id": ["u", "u"], "item_id": ["a", "b"], "timestamp": moments})
    frame.write_parquet(tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet")[0].interactions["time"].to_list() == [1577836801.5, 86400.0]
    frame.with_columns(pl.col("timestamp").dt.date()).write_parquet(tmp_path / "y.parquet")
    assert read(tmp_path / "y.parquet")[0].interactions["time"].to_list() == [1577836800.0, 86400.0]


def test_delimited_batches_do_not_change_rows(tmp_path, monkeypatch):
    path = tmp_path / "x.csv"
    path.write_text("user_id,item_id\n" + "".join(f"u{n},i{n}\n" for n in range(10)))
    fields = {"user": Field("user_id", "id"), "item": Field("item_id", "id")}
    whole = pl.concat(read_delimited(path, Reading(), fields, Dialect()))
    monkeypatch.setattr(delimited, "BATCH_ROWS", 3)
    assert pl.concat(read_delimited(path, Reading(), fields, Dialect())).equals(whole)
    assert whole.height == 10
