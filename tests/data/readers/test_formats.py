"""Files as people have them: each is read right, or refused in one line that says what it is."""

import bz2
import gzip
import io
import json
import lzma
import zipfile

import polars as pl
import pytest

from allmrec_jax.data.readers.reading import Reading
from allmrec_jax.data.readers.sources import read_source
from allmrec_jax.errors import UserError

REVIEW = {"reviewerID": "U1", "asin": "I1", "overall": 5.0, "unixReviewTime": 1400000000}
ITEM = {"asin": "I1", "title": "One", "description": ["d"], "brand": "B", "category": ["G"]}


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def read(path, **options):
    reading = Reading(options.pop("max_bad_lines", 100))
    return read_source(path, reading, **options), reading


def item(source, wanted):
    [row] = source.read_items(pl.Series("item", [wanted])).to_dicts()
    return row


def amazon(folder, reviews, metadata):
    (folder / "X.json").write_text(reviews)
    (folder / "meta_X.json").write_text(metadata)
    return folder / "X.json"


def table(folder, text, name="r.csv", items=None):
    (folder / name).write_text(text)
    if items is not None:
        (folder / f"m{(folder / name).suffix}").write_text(items)
    return folder / name


def test_amazon_2014_is_python_dictionaries_with_other_keys(tmp_path):
    metadata = "{'asin': 'I1', 'title': 'It\\'s', 'price': 1, 'related': {}, 'categories': [['Toys', 'Puzzles']]}\n"
    source, reading = read(amazon(tmp_path, lines(REVIEW), metadata))
    found = item(source, "I1")
    assert found["title"] == "It's" and found["categories"] == ["Toys", "Puzzles"]
    assert reading.remarks == ["meta_X.json: one Python dictionary a line, not JSON"]
    assert reading.taken[1].aside == ["price", "related"]


def test_a_line_is_never_evaluated(tmp_path):
    trap = "{'asin': __import__('os').system('touch %s')}\n" % (tmp_path / "trap")
    source, reading = read(amazon(tmp_path, lines(REVIEW), trap + json.dumps(ITEM)))
    assert item(source, "I1")["title"] == "One" and len(reading.bad_lines) == 1
    assert not (tmp_path / "trap").exists()


def test_amazon_2023_times_in_another_unit(tmp_path):
    row = {"user_id": "U", "parent_asin": "P", "rating": 4.0, "timestamp": 1400000000}
    (tmp_path / "X.jsonl").write_text(lines(row))
    (tmp_path / "meta_X.jsonl").write_text(lines({"parent_asin": "P", "title": "T"}))
    source, reading = read(tmp_path / "X.jsonl")
    assert source.interactions["time"].to_list() == [1400000000.0]
    assert "times are read as seconds" in reading.warnings[0]


def test_amazon_2018_times_before_1973_are_said(tmp_path):
    _, reading = read(amazon(tmp_path, lines(REVIEW | {"unixReviewTime": 1400000}), lines(ITEM)))
    assert "all times lie before 1973 when read as seconds" in reading.warnings[0]


def test_mixed_units_of_time_are_said(tmp_path):
    reviews = lines(REVIEW, REVIEW | {"unixReviewTime": 1400000000000})
    _, reading = read(amazon(tmp_path, reviews, lines(ITEM)))
    assert "several units (1 in seconds, 1 in milliseconds)" in reading.warnings[0]


def test_numbers_and_times_as_strings(tmp_path):
    source, reading = read(
        amazon(tmp_path, lines(REVIEW | {"overall": " 4.5", "unixReviewTime": "1400000000"}), lines(ITEM))
    )
    assert source.interactions.row(0) == ("U1", "I1", 4.5, 1400000000.0) and not reading.bad_lines


@pytest.mark.parametrize("missing", ["NaN", '"nan"', '""', "null", '"None"', '" "', '"<NA>"'])
def test_missing_ids_are_bad_lines_and_missing_texts_are_none(tmp_path, missing):
    reviews = json.dumps(REVIEW).replace('"U1"', missing) + "\n" + lines(REVIEW)
    metadata = f'{{"asin": "I1", "title": {missing}, "description": {missing}, "brand": {missing}}}\n'
    source, reading = read(amazon(tmp_path, reviews, metadata))
    assert source.interactions["user"].to_list() == ["U1"]
    assert [where for _, where, _ in reading.bad_lines] == ["line 1"]
    found = item(source, "I1")
    assert found["title"] is None and found["brand"] is None and not any(filter(str.strip, found["description"] or []))


def test_a_film_may_be_called_nan_with_a_capital(tmp_path):
    source, _ = read(amazon(tmp_path, lines(REVIEW), lines(ITEM | {"title": "Nan"})))
    assert item(source, "I1")["title"] == "Nan"


def test_those_who_stand_for_many_are_no_user(tmp_path):
    reviews = lines(REVIEW | {"reviewerID": "Anonymous"}, REVIEW)
    source, reading = read(amazon(tmp_path, reviews, lines(ITEM)))
    assert source.interactions["user"].to_list() == ["U1"]
    assert "stands for many people" in reading.bad_lines[0][2]


def test_ids_that_are_floats(tmp_path):
    for body in ("", "{bad\n"):
        reviews = lines(REVIEW | {"reviewerID": 3.0}) + body
        source, _ = read(amazon(tmp_path, reviews, lines(ITEM)))
        assert source.interactions["user"].to_list() == ["3"]
    with pytest.raises(
        UserError, match=r"no usable reviews \(no line of it is good: line 1: 'asin' should be an id, is 1e\+17"
    ):
        read(amazon(tmp_path, json.dumps(REVIEW).replace('"I1"', "1e+17"), lines(ITEM)))


def test_titles_that_are_numbers_stay_as_written_and_a_list_is_a_bad_line(tmp_path):
    metadata = '{"asin": "I1", "title": 300.0}\n{"asin": "I1", "title": ["x"]}\n{"asin": "I1", "title": true}\n'
    source, reading = read(amazon(tmp_path, lines(REVIEW), metadata))
    assert item(source, "I1")["title"] == "300.0"
    assert [reason for *_, reason in reading.bad_lines] == [
        "'title' should be text, is a list",
        "'title' should be text, is true",
    ]


def test_of_metadata_given_twice_the_last_value_of_each_field_holds(tmp_path):
    again = {"asin": "I1", "title": "", "description": [], "brand": "C", "category": None}
    source, _ = read(amazon(tmp_path, lines(REVIEW), lines(ITEM, again, {"asin": "I1", "title": None})))
    assert item(source, "I1") == {"item": "I1", "title": "One", "description": ["d"], "brand": "C", "categories": ["G"]}


def test_the_first_reason_is_shown_where_no_line_is_good(tmp_path):
    with pytest.raises(
        UserError, match=r"no usable reviews .*line 1: should be a JSON object, is a list: one object a line"
    ):
        read(amazon(tmp_path, json.dumps([REVIEW]), lines(ITEM)), kind="amazon-2018")


def test_metadata_of_the_same_ending_goes_first(tmp_path):
    path = amazon(tmp_path, lines(REVIEW), lines(ITEM))
    (tmp_path / "meta_X.json.gz").write_bytes(gzip.compress(lines(ITEM | {"title": "zipped"}).encode()))
    assert item(read(path)[0], "I1")["title"] == "One"


def zipped(content):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("r.csv", content)
    return archive.getvalue()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (bz2.compress(b"user_id,item_id\n"), "compressed with bzip2; unpack it first"),
        (lzma.compress(b"user_id,item_id\n"), "compressed with xz; unpack it first"),
        (b"\x28\xb5\x2f\xfd" + bytes(20), "compressed with Zstandard; unpack it first"),
        (zipped(b"user_id,item_id\n"), "a zip archive .*; unpack it first"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html></html>", "a web page, not data"),
        (gzip.compress(bytes(257) + b"ustar" + bytes(300)), "a tar archive; unpack it first"),
    ],
    ids=["bzip2", "xz", "zstd", "zip", "lfs", "html", "tar"],  # gzip writes the time, which differs between workers
)
@pytest.mark.parametrize("name", ["x.csv", "x.json", "x.zip", "x.inter", "x.unknown"])
def test_what_is_no_data_is_named(tmp_path, content, what, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: is {what}"):
        read(tmp_path / name)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_separators_and_encodings_are_recognised(tmp_path, separator, encoding):
    text = "user_id,item_id,timestamp,title\r\nu,a,1400000000,Café\r\nv,b,1400000001,\r\n".replace(",", separator)
    (tmp_path / "r.csv").write_bytes(text.encode(encoding))
    source, reading = read(tmp_path / "r.csv")
    assert source.interactions.rows() == [("u", "a", None, 1400000000.0), ("v", "b", None, 1400000001.0)]
    assert item(source, "a")["title"] == "Café" and not reading.bad_lines
    remarks = " ".join(reading.remarks)
    assert ("separated by" in remarks) == (separator != ",")
    assert ("UTF-16" in remarks, "Latin-1" in remarks) == (encoding == "utf-16", encoding == "latin-1")


def test_one_damaged_line_does_not_make_a_utf8_file_latin1(tmp_path):
    (tmp_path / "r.csv").write_bytes("user_id,item_id\nü,a\n".encode() + b"\xe9,b\nv,c\n")
    source, reading = read(tmp_path / "r.csv")
    assert source.interactions["user"].to_list() == ["ü", "v"]
    assert [where for _, where, _ in reading.bad_lines] == ["line 3"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A0,B13,4.0,1400259207\n", r"line 1 is no header, it holds values \(A0, B13"),
        ("# exported\nuser_id,item_id\nu,a\n", "line 1 is a comment"),
        ("user_id,item_id,title,title\nu,a,x,y\n", "two columns are called 'title'"),
        ("user_id,item_id\ru,a\r", "carriage returns alone"),
        ('user_id,item_id,rating\nu,a,"4,5"\n', "line 2: 'rating' should be a number, is \"4,5\""),
        (
            "user_id,movie_id,book_id\nu,a,b\n",
            r"movie_id, book_id could each be the column of item ids; .*--columns item=…",
        ),
        ("who,item_id\nu,a\n", "no column 'user_id' nor another of user ids; found: who, item_id"),
    ],
)
def test_tables_that_cannot_be_read_say_why(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read(table(tmp_path, text))


def test_columns_under_other_names_are_taken_where_there_is_no_doubt(tmp_path):
    path = table(
        tmp_path, "userId,movieId,Stars,Date,note\n1,2,4,2014-05-16T00:00:00Z,x\n", items="id,Name,Genre\n2,Two,A|B\n"
    )
    source, reading = read(path, items=tmp_path / "m.csv")
    assert source.interactions.rows() == [("1", "2", 4.0, 1400198400.0)]
    assert item(source, "2") == {
        "item": "2",
        "title": "Two",
        "description": None,
        "brand": None,
        "categories": ["A", "B"],
    }
    assert reading.taken[0].columns == {"user": "userId", "item": "movieId", "rating": "Stars", "time": "Date"}
    assert reading.taken[0].aside == ["note"] and reading.taken[1].columns["key"] == "id"
    assert reading.warnings == []


def test_no_times_or_two_that_could_be_are_warned_of(tmp_path):
    _, reading = read(table(tmp_path, "user_id,item_id\nu,a\n"))
    assert "no column of times: the order of the file counts" in reading.warnings[0]
    source, reading = read(table(tmp_path, "user_id,item_id,date,created_at\nu,a,1,2\n"))
    assert "date, created_at could each be the time" in reading.warnings[0]
    assert source.interactions["time"].null_count() == 1


def test_name_is_a_users_where_interactions_and_items_share_a_table(tmp_path):
    source, _ = read(table(tmp_path, "user_id,item_id,name\nu,a,Ann\n"))
    assert item(source, "a")["title"] is None


def test_ratings_may_be_missing_in_a_table(tmp_path):
    source, reading = read(table(tmp_path, "user_id,item_id,rating\nu,a,\nu,b,NA\nu,c,4\nu,d,good\n"))
    assert source.interactions["rating"].to_list() == [None, None, 4.0]
    assert [where for _, where, _ in reading.bad_lines] == ["line 5"]


@pytest.mark.parametrize("name", ["x.inter", "x.csv"])
def test_a_label_of_zero_is_no_interaction(tmp_path, name):
    header = "user_id:token\titem_id:token\tlabel:float\n" if name == "x.inter" else "user_id\titem_id\tlabel\n"
    (tmp_path / "x.item").write_text("item_id:token\ttitle:token_seq\na\tA\n")
    source, reading = read(table(tmp_path, header + "u\ta\t1.0\nu\tb\t0.0\n", name))
    assert source.interactions["item"].to_list() == ["a"]
    assert any("1 rows whose label is 0" in warning for warning in reading.warnings)


def test_recbole_as_pandas_writes_it(tmp_path):
    pl.DataFrame({"user_id:token": ["u", "u"], "item_id:token": ["a", "b"]}).write_csv(
        tmp_path / "x.inter", separator="\t"
    )
    titles = ['A "quoted" title', "tab\there"]
    pl.DataFrame({"item_id:token": ["a", "b"], "product_title:token_seq": titles}).write_csv(
        tmp_path / "x.item", separator="\t"
    )
    source, _ = read(tmp_path)
    assert [item(source, wanted)["title"] for wanted in "ab"] == titles


def test_recboles_own_splits(tmp_path):
    (tmp_path / "b.item").write_text("item_id:token\ttitle:token_seq\n3\tT\n")
    (tmp_path / "b.train.inter").write_text("user_id:token\titem_id:token\n1\t3\n")
    assert item(read(tmp_path / "b.train.inter")[0], "3")["title"] == "T"
    (tmp_path / "b.train.inter").write_text("user_id:token\titem_id_list:token_seq\titem_id:token\n1\t1 2\t3\n")
    with pytest.raises(UserError, match=r"histories that RecBole has cut already \(item_id_list:token_seq\)"):
        read(tmp_path / "b.train.inter")


def test_the_file_of_ratings_that_is_named_is_read(tmp_path):
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n90,1,4.0,900\n")
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n1,csv,A\n")
    (tmp_path / "ratings.dat").write_text("7::1::5::978300760\n")
    (tmp_path / "movies.dat").write_text("1::dat::A\n")
    for name, user, title in (("ratings.csv", "90", "csv"), ("ratings.dat", "7", "dat")):
        source, _ = read(tmp_path / name)
        assert source.interactions["user"].to_list() == [user] and item(source, "1")["title"] == title
    (tmp_path / "u.data").write_text("1\t1\t3\t881250949\n")
    (tmp_path / "u1.base").write_text("2\t1\t3\t881250949\n")
    (tmp_path / "u.item").write_bytes("1|Café|||x|1\r\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"u\.genre: is missing"):
        read(tmp_path / "u1.base")
    (tmp_path / "u.genre").write_bytes(b"Action|0\r\n\r\n")
    source, _ = read(tmp_path / "u1.base")
    assert source.interactions["user"].to_list() == ["2"]
    assert item(source, "1")["title"] == "Café" and item(source, "1")["categories"] == ["Action"]


def test_csv_with_metadata_of_json_lines(tmp_path):
    path = table(tmp_path, "user_id,parent_asin,rating,timestamp\nU,P,4.0,1400259207000\n")
    (tmp_path / "meta.jsonl").write_text(
        lines({"parent_asin": "P", "title": "T", "store": "S", "description": ["x", "y"]})
    )
    source, _ = read(path, items=tmp_path / "meta.jsonl")
    assert item(source, "P") == {"item": "P", "title": "T", "description": ["x", "y"], "brand": "S", "categories": None}


def test_json_lines_with_other_keys_are_tables(tmp_path):
    review = {"user_id": "U", "business_id": "B", "stars": 4.0, "date": "2015-01-12 10:00:00", "text": "x"}
    (tmp_path / "review.json").write_text(lines(review))
    (tmp_path / "business.json").write_text(
        "{u'business_id': u'B', u'name': u'Red', u'categories': ['Food', 'Bars']}\n"
    )
    source, reading = read(tmp_path / "review.json", items=tmp_path / "business.json")
    assert source.interactions.rows() == [("U", "B", 4.0, 1421056800.0)]
    assert "review.json: date holds dates as text, read as UTC" in reading.remarks
    assert item(source, "B")["title"] == "Red" and item(source, "B")["categories"] == ["Food", "Bars"]


def test_sasrecs_text_and_mind(tmp_path):
    (tmp_path / "Beauty.txt").write_text("1 14\n1 7\n2 14\n")
    with pytest.raises(UserError, match=r"SASRec's text file.*--items"):
        read(tmp_path / "Beauty.txt")
    (tmp_path / "m.csv").write_text("item_id,title\n14,T\n")
    source, _ = read(tmp_path / "Beauty.txt", items=tmp_path / "m.csv")
    assert source.interactions.select("user", "item").rows() == [("1", "14"), ("1", "7"), ("2", "14")]
    assert item(source, "14")["title"] == "T"
    (tmp_path / "behaviors.tsv").write_text("0\tU0\t11/12/2019 9:05:58 AM\tN1\tN13-1\n")
    with pytest.raises(UserError, match="MIND, which has no header"):
        read(tmp_path / "behaviors.tsv")


def test_sequences_of_one_user_twice_and_of_other_things(tmp_path):
    (tmp_path / "S.inter.json").write_text('{"0": [1, 2.0], "0": ["3"], "1": [NaN], "2": [{"item": 1}]}')
    (tmp_path / "S.item.json").write_text('{"1": {"title": "One"}, "1": {"title": null, "brand": "B"}}')
    source, reading = read(tmp_path)
    assert source.interactions.select("user", "item").rows() == [("0", "1"), ("0", "2"), ("0", "3")]
    assert "user '0' occurs twice" in reading.warnings[0] and len(reading.bad_lines) == 2
    assert item(source, "1")["title"] == "One" and item(source, "1")["brand"] == "B"
    (tmp_path / "S.inter.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="nested too deep"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["X.json", "x.inter.json"])
def test_deep_json_is_one_line(tmp_path, name):
    (tmp_path / name).write_text("[" * 200_000)
    with pytest.raises(UserError, match="nested too deep"):
        read(tmp_path / name)


def test_parquet_of_every_type(tmp_path):
    frame = pl.DataFrame(
        {
            "user_id": [3.0, float("nan"), 4.0, None],
            "item_id": [1, 2, 3, 4],
            "timestamp": ["2014-05-16 16:53:27", "2014-05-17", "2014-05-18T00:00:00+02:00", "2014-05-19"],
            "title": pl.Series(["a", "b", "c", "d"], dtype=pl.Categorical),
            "description": [["x", None], [], None, ["y"]],
            "categories": [[["a", "b"], ["c"]], [], None, [["d"]]],
        }
    )
    (tmp_path / "d.parquet").mkdir()
    frame[:2].write_parquet(tmp_path / "d.parquet" / "part-0.parquet")
    frame[2:].write_parquet(tmp_path / "d.parquet" / "part-1.parquet")
    (tmp_path / "d.parquet" / "_SUCCESS").write_text("")
    source, reading = read(tmp_path / "d.parquet")
    assert source.interactions.rows() == [("3", "1", None, 1400259207.0), ("4", "3", None, 1400364000.0)]
    assert [where for _, where, _ in reading.bad_lines] == ["row 2", "row 4"]
    assert reading.remarks == ["d.parquet: timestamp holds dates as text, read as UTC"]
    found = item(source, "1")
    assert (found["title"], found["description"], found["categories"]) == ("a", ["x"], ["a", "b", "c"])


def test_categories_that_python_wrote(tmp_path):
    source, _ = read(table(tmp_path, "user_id,item_id,categories\nu,a,\"['Toys', 'Puzzles']\"\n"))
    assert item(source, "a")["categories"] == ["Toys", "Puzzles"]
