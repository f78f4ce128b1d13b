"""The rules between raw lines and a data set, their presets, and what bad input gets."""

import gzip
import json
import resource
import subprocess
import sys

import numpy as np
import pytest

from allmrec_jax.data.dataset import item_texts, load_dataset
from allmrec_jax.data.prepare import k_core, prepare
from allmrec_jax.errors import UserError


def write(path, rows, items=None, name="Games"):
    """Rows (user, item, rating, time) and items {id: metadata} as Amazon 2018 files; returns the reviews' path."""
    path.mkdir(parents=True, exist_ok=True)
    reviews = [
        json.dumps({"reviewerID": user, "asin": item, "overall": rating, "unixReviewTime": time})
        for user, item, rating, time in rows
    ]
    known = {item: {"title": f"Title {item}", "description": [f"About {item}"]} for _, item, _, _ in rows}
    metadata = [json.dumps({"asin": item} | body) for item, body in (items if items is not None else known).items()]
    (path / f"{name}.json.gz").write_bytes(gzip.compress("\n".join(reviews).encode()))
    (path / f"meta_{name}.json").write_text("\n".join(metadata))
    return path / f"{name}.json.gz"


def block(users="abcde", items="VWXYZ", rating=5.0):
    """Every user met every item: a 5-core."""
    return [(user, item, rating, 10 * n) for user in users for n, item in enumerate(items)]


def raw_sequences(data):
    return {data.users_raw[u]: "".join(data.items_raw[i] for i in data.sequence(u)) for u in range(data.num_users)}


@pytest.fixture
def made(tmp_path):
    def make(rows, items=None, preset="paper", domain="Games", **options):
        return prepare(write(tmp_path / "raw", rows, items, domain), tmp_path / "out", preset, **options)

    return make


def test_sequences_are_in_time_order_and_numbered_by_first_appearance(made):
    rows = [("b", "Z", 5, 9), ("b", "Y", 5, 3), ("a", "X", 5, 7), ("a", "Z", 5, 1), ("b", "X", 5, 5), ("a", "Y", 5, 2)]
    data = made(rows, min_user=2, min_item=2)
    assert data.items_raw == ["", "Z", "Y", "X"]
    assert data.users_raw == ["b", "a"]
    assert raw_sequences(data) == {"b": "YXZ", "a": "ZYX"}
    assert data.timestamps is not None and data.timestamps.tolist() == [3, 5, 9, 1, 2, 7]
    assert data.titles == ["", "Title Z", "Title Y", "Title X"]
    assert data.name == "Games"


@pytest.mark.parametrize(("ties", "expected"), [("file", "ZXYVW"), ("item", "VWXYZ")])
def test_ties(made, ties, expected):
    rows = [(user, item, 5, 0) for user in "abcde" for item in "ZXYVW"]
    assert set(raw_sequences(made(rows, ties=ties)).values()) == {expected}


@pytest.mark.parametrize(
    ("rule", "expected"), [("keep", "VWXVVWYZ"), ("exact", "VWXVWYZ"), ("first", "VWXYZ"), ("last", "XVWYZ")]
)
def test_duplicates(made, rule, expected):
    again = [("V", 1), ("W", 2), ("X", 3), ("V", 4), ("W", 5), ("V", 4), ("Y", 6), ("Z", 7)]
    rows = block("bcdef") + [("a", item, 5, time) for item, time in again]
    assert raw_sequences(made(rows, duplicates=rule))["a"] == expected


@pytest.mark.parametrize(
    ("rule", "kept"), [("all", "VWXYZ"), (">3", "YZ"), (">=3", "XYZ"), (">=2.5", "XYZ"), (">4.5", "Z")]
)
def test_rating_rule(made, rule, kept):
    rows = [(user, item, rating, rating) for user in "abcde" for rating, item in enumerate("VWXYZ", 1)]
    data = made(rows, rating_rule=rule, min_user=1, min_item=1)
    assert set(raw_sequences(data).values()) == {kept}


@pytest.mark.parametrize(
    ("name", "preset", "rule", "least"),
    [
        ("Games", "paper", "all", 5),
        ("Games", "official", "all", 5),
        ("Luxury_Beauty", "paper", ">3", 4),
        ("Toys_and_Games", "official", ">=3", 4),
    ],
)
def test_what_auto_means_for_the_papers_data_sets(made, name, preset, rule, least):
    settings = made(block(), domain=name, preset=preset).manifest["settings"]
    assert (settings["rating_rule"], settings["min_user"], settings["min_item"]) == (rule, least, least)


def test_official_readmits_low_ratings_of_those_who_passed(made):
    """data_preprocess.py 24-26 and 50-77: low ratings are left out of the counts only."""
    low = [("a", "V", 1, 99), ("f", "V", 1, 1), ("f", "W", 5, 2), ("f", "X", 5, 3), ("f", "Y", 5, 4)]
    rows = block() + low
    official = made(rows, domain="Luxury_Beauty", preset="official")
    assert raw_sequences(official)["a"] == "VWXYZV"
    assert "f" not in raw_sequences(official), "three good ratings are fewer than four"
    paper = made(rows, domain="Luxury_Beauty", duplicates="keep")
    assert raw_sequences(paper)["a"] == "VWXYZ"
    everyone = made(rows, domain="Luxury_Beauty", rating_rule="all")
    assert raw_sequences(everyone)["f"] == "VWXY"


def test_one_pass_leaves_users_below_the_threshold_and_iterating_does_not(made):
    rows = [*block(), *[("f", item, 5, n) for n, item in enumerate("VWXYQ")]]
    assert raw_sequences(made(rows, core="once"))["f"] == "VWXY"
    assert "f" not in raw_sequences(made(rows, core="iterated"))


def brute_force_core(pairs, least, counted):
    alive = list(range(len(pairs)))
    while True:
        users = [pairs[n][0] for n in alive if counted[n]]
        items = [pairs[n][1] for n in alive if counted[n]]
        still = [n for n in alive if users.count(pairs[n][0]) >= least and items.count(pairs[n][1]) >= least]
        if still == alive:
            return alive
        alive = still


@pytest.mark.parametrize("seed", range(5))
def test_k_core_agrees_with_counting_by_hand(seed):
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, 30, 150), rng.integers(0, 22, 150)
    users[:60] %= 8
    items[:60] %= 7
    counted = rng.random(150) < 0.9
    kept = k_core(users, items, 4, 4, iterated=True, counted=counted)
    expected = brute_force_core(list(zip(users, items, strict=True)), 4, counted)
    assert np.flatnonzero(kept).tolist() == expected
    assert 0 < kept.sum() < 150, "else the test says nothing"


def test_three_interaction_users_are_kept_apart(made):
    three = [("three", item, 5, -n) for n, item in enumerate("XYZ")]
    stranger = [("stranger", item, 5, n) for n, item in enumerate("XYQ")]
    two = [("two", item, 5, n) for n, item in enumerate("XY")]
    four = [("four", item, 5, n) for n, item in enumerate("XYZQ")]
    data = made(block() + three + stranger + two + four)
    assert data.cold_users.raw == ["three"], "an item that was dropped has no index, so 'stranger' is out"
    assert [data.items_raw[item] for item in data.cold_users.items] == ["Z", "Y", "X"]
    assert data.cold_users.offsets.tolist() == [0, 3]
    assert set(data.users_raw) == set("abcde")
    assert data.train_count.sum() == 15, "they are not trained on"
    assert made(block() + three, min_user=3).cold_users.raw == [], "kept by the filter, so not apart"


HOSTILE = {
    "V": 'Say "hi", it\'s\nnew\tlines',
    "W": "emoji \U0001f600 and é",
    "X": "x" * 10_000,
    "Y": "[CandidateEmb] [HistoryEmb] </s>",
    "Z": "a < b && c <3 </b><br/>&amp; &quot;d&quot;",
}


def test_hostile_titles_pass_unharmed(made):
    items = {item: {"title": title, "description": [title]} for item, title in HOSTILE.items()}
    data = made(block(), items, clean_text=False)
    assert data.titles[1:] == list(HOSTILE.values())
    assert data.descriptions[1:] == list(HOSTILE.values())
    cleaned = made(block(), items)
    assert cleaned.titles[1:] == [
        'Say "hi", it\'s new lines', HOSTILE["W"], HOSTILE["X"], HOSTILE["Y"].replace("</s>", "").strip(),
        'a < b && c <3 & "d"',
    ]  # fmt: skip


def test_item_without_a_title(made):
    items = {item: {"title": f"T{item}"} for item in "VWX"} | {"Y": {"title": " "}}  # Z is in no metadata
    rows = block(users="abcdefg")
    data = made(rows, items)
    assert data.titles == ["", "TV", "TW", "TX", "No Title", "No Title"]
    assert data.manifest["counts"]["items_without_title"] == 2
    assert item_texts(data, "paper")[5] == "Title: No Title, Description: No Description"
    with pytest.raises(UserError, match=r"meta_Games\.json: item 'Y' has no title, nor have 1 others"):
        made(rows, items, missing_title="error")
    dropped = made(rows, items, missing_title="drop", min_user=3)
    assert dropped.titles == ["", "TV", "TW", "TX"] and set(raw_sequences(dropped).values()) == {"VWX"}
    assert dropped.manifest["counts"]["dropped_without_title"] == 2
    with pytest.raises(UserError, match="no user left"):
        made(rows, items, missing_title="drop", min_user=4)


def test_metadata_is_read_once_whatever_is_dropped(tmp_path):
    source = write(tmp_path / "raw", block(), {item: {"title": item} for item in "VWXY"})
    with open(tmp_path / "raw" / "meta_Games.json", "a") as file:
        file.write("\n{\n")
    manifest = prepare(source, tmp_path / "out", missing_title="drop", min_user=4).manifest
    assert manifest["bad_lines"]["count"] == 1


def test_descriptions_of_both_presets(made):
    items = {
        "V": {"title": "v", "description": ["<p>one</p>", "", "two"]},
        "W": {"title": "w", "description": []},
        "X": {"title": "x"},
        "Y": {"title": "y", "description": "plain"},
        "Z": {"description": ["only"]},
    }
    paper = made(block(), items)
    assert paper.descriptions[1:] == ["one two", "", "", "plain", "only"]
    assert paper.titles[1:] == ["v", "w", "x", "y", "No Title"]
    official = made(block(), items, preset="official")
    assert item_texts(official, "official")[1:] == [
        '"v, <p>one</p>"', '"w, Empty description"', '"No Title, No Description"', '"y, plain"', '"No Title, only"',
    ]  # fmt: skip


def test_nobody_left_says_what_would_do(made):
    with pytest.raises(UserError, match=r"no user left after filtering .*--min-user 9.*longest history has 5") as error:
        made(block(), min_user=9)
    assert "\n" not in str(error.value)


def test_settings_that_make_no_sense(made, tmp_path):
    for options, message in (
        ({"rating_rule": "3+"}, "--rating-rule: '3+'"),
        ({"min_user": 0}, "--min-user: 0"),
        ({"min_item": -1}, "--min-item: -1"),
        ({"slice_fraction": 0.6}, "--slice-fraction: 0.6"),
        ({"name": "a/b"}, "--name: 'a/b'"),
        ({"preset": "fast"}, "unknown preset 'fast'"),
        ({"colour": "red"}, "unknown setting 'colour'"),
    ):
        with pytest.raises(UserError, match=message.replace("+", r"\+")):
            made(block(), **options)
    (tmp_path / "clicks.csv").write_text("user_id,item_id,title\n" + "".join(f"{u},{i},{i}\n" for u, i, *_ in block()))
    with pytest.raises(UserError, match="the source has no ratings"):
        prepare(tmp_path / "clicks.csv", tmp_path / "out", rating_rule=">3")
    assert prepare(tmp_path / "clicks.csv", tmp_path / "out").timestamps is None


def test_bad_lines_are_in_the_manifest(made, tmp_path):
    source = write(tmp_path / "raw", block())
    source.write_bytes(gzip.compress(gzip.decompress(source.read_bytes()) + b"\n{\n"))
    bad = prepare(source, tmp_path / "out").manifest["bad_lines"]
    assert bad["count"] == 1 and bad["first"][0].startswith("Games.json.gz: line 26: invalid JSON")
    with pytest.raises(UserError, match="more than 0 bad lines"):
        prepare(source, tmp_path / "out", max_bad_lines=0)


def test_hash_depends_on_content_alone(tmp_path):
    first = prepare(write(tmp_path / "raw", block()), tmp_path / "one")
    moved = prepare(write(tmp_path / "elsewhere", block(), name="Other"), tmp_path / "two", duplicates="keep")
    assert first.hash == moved.hash
    assert prepare(write(tmp_path / "raw", block("abcdef")), tmp_path / "three").hash != first.hash


def test_preparing_again_keeps_candidates_only_where_they_still_hold(tmp_path):
    out = tmp_path / "out"
    prepare(write(tmp_path / "raw", block()), out)
    (out / "candidates").mkdir()
    (out / "candidates" / "overall-0.npz").write_bytes(b"x")
    prepare(write(tmp_path / "raw", block()), out)
    assert (out / "candidates" / "overall-0.npz").exists()
    prepare(write(tmp_path / "raw", block("abcdef")), out)
    assert not (out / "candidates").exists()


def test_failure_leaves_an_earlier_data_set_intact(tmp_path):
    out = tmp_path / "out"
    before = prepare(write(tmp_path / "raw", block()), out).hash
    with pytest.raises(UserError):
        prepare(write(tmp_path / "raw", block()[:7]), out)
    assert load_dataset(out).hash == before
    assert [path.name for path in tmp_path.iterdir()].count("out") == 1
    assert not list(tmp_path.glob(".out*"))


def test_output_that_is_something_else_is_not_touched(tmp_path):
    source = write(tmp_path / "raw", block())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    for out in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(UserError, match=r"is no data set of allmrec|a file is there"):
            prepare(source, out)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    assert prepare(source, tmp_path / "empty").num_users == 5


def test_full_disk_is_one_line_and_leaves_the_earlier_data_set(tmp_path):
    """A limit on file size stands in for a full disk: the write itself fails in the kernel."""
    out = tmp_path / "out"
    before = prepare(write(tmp_path / "raw", block()), out).hash
    big = write(tmp_path / "raw", [(f"u{n}", item, 5, k) for n in range(400) for k, item in enumerate("VWXYZ")])
    result = subprocess.run(
        [sys.executable, "-m", "allmrec_jax.cli", "prepare", str(big), "--out", str(out)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert result.returncode == 2, result.stderr
    assert f"error: cannot write {out}" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert load_dataset(out).hash == before
    assert not list(tmp_path.glob(".out*"))


def test_amazon_scientific(shared_data, tmp_path):
    data = prepare(shared_data / "amazon-scientific", tmp_path / "out")
    assert (data.num_users, data.num_items, len(data.items)) == (8317, 4344, 58492)
    assert sum(bool(text) for text in data.descriptions) == 4221
    assert data.titles[1].startswith("SUPCO SPP6 Relay/Capacitor")
    assert data.categories[1][-1] == "Capacitors"
    raw = json.loads((shared_data / "amazon-scientific" / "Scientific.inter.json").read_text())
    assert [data.items_raw[item] for item in data.sequence(7)] == [str(item) for item in raw[data.users_raw[7]]]


def test_movielens_latest_small(shared_data, tmp_path):
    data = prepare(shared_data / "ml-latest-small", tmp_path / "out", core="once", min_user=1, min_item=1)
    assert (data.num_users, data.num_items, len(data.items)) == (610, 9724, 100836)
    toy_story = data.items_raw.index("1")
    assert data.titles[toy_story] == "Toy Story (1995)"
    assert data.categories[toy_story] == ["Adventure", "Animation", "Children", "Comedy", "Fantasy"]
    assert data.timestamps is not None
    within = np.diff(data.timestamps)[np.diff(np.repeat(np.arange(610), data.lengths)) == 0]
    assert (within >= 0).all()


def csv_pair(path, item="{}", known="{}", title="title", **options):
    """Five users who met five items each, as CSV; ``item`` and ``known`` write an item's number in each table."""
    path.mkdir(exist_ok=True)
    rows = [f"u{user},{item.format(n)},{n}" for user in range(5) for n in range(5)]
    (path / "r.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    (path / "m.csv").write_text("\n".join([f"item_id,{title}", *(f"{known.format(n)},Title {n}" for n in range(5))]))
    return prepare(path / "r.csv", path / "out", items=path / "m.csv", **options)


@pytest.mark.parametrize(("item", "known"), [("{}.0", "{}"), ("0000{}", "{}"), ("{}", "B{}")])
def test_metadata_of_other_ids_is_an_error_that_shows_one_of_each(tmp_path, item, known):
    message = (
        rf"m\.csv: describes 0 of the 5 items of r\.csv, whose ids look like '{item.format(0)}' there and like "
        rf"'{known.format(0)}' here; .*--columns item=…,key=…"
    )
    with pytest.raises(UserError, match=message):
        csv_pair(tmp_path, item, known)
    assert not (tmp_path / "out").exists()


def test_metadata_of_next_to_none_of_the_items_is_an_error_too(tmp_path):
    rows = [f"u{user},{item},{item}" for user in range(5) for item in range(60)]
    (tmp_path / "r.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    for known in (3, 2):  # of 60: 5%, and less
        (tmp_path / "m.csv").write_text("\n".join(["item_id,title", *(f"{n},Title {n}" for n in range(known))]))
        if known == 3:
            assert prepare(tmp_path / "r.csv", tmp_path / "out", items=tmp_path / "m.csv").num_items == 60
        else:
            with pytest.raises(UserError, match=r"m\.csv: describes 2 of the 60 items"):
                prepare(tmp_path / "r.csv", tmp_path / "out2", items=tmp_path / "m.csv")


def test_blanks_around_ids_count_for_nothing(tmp_path):
    assert csv_pair(tmp_path, " {}", "{} ").titles[1:] == [f"Title {n}" for n in range(5)]


def test_metadata_without_titles_is_an_error_that_lists_what_is_there(tmp_path):
    with pytest.raises(UserError, match=r"m\.csv: 0 of 5 items have a title.*--columns title=… \(not read: words\)"):
        csv_pair(tmp_path, title="words")
    assert csv_pair(tmp_path, title="words", columns={"title": "words"}).titles[1] == "Title 0"


def test_a_table_without_titles_is_an_error_that_names_both_ways(tmp_path):
    csv_pair(tmp_path)
    with pytest.raises(UserError, match=r"r\.csv: 0 of 5 items have a title.* title=… or give a table .* --items"):
        prepare(tmp_path / "r.csv", tmp_path / "without")


def test_few_titles_are_warned_of(made):
    items = {item: {"title": f"T{item}"} for item in "VW"}
    assert "3 of 5 items have no title" in made(block(), items).manifest["warnings"][-1]


def test_interactions_without_a_rating(tmp_path):
    rows = [
        f"{user},{item},{rating},{item}"
        for user in "abcde"
        for item, rating in zip("VWXYZ", ["5", "", "8", "2", "9"], strict=True)
    ]
    (tmp_path / "r.csv").write_text("\n".join(["user_id,item_id,rating,title", *rows]))
    everything = prepare(tmp_path / "r.csv", tmp_path / "out")
    assert len(everything.items) == 25 and everything.manifest["counts"]["interactions_without_rating"] == 5
    rated = prepare(tmp_path / "r.csv", tmp_path / "out", rating_rule=">3", min_user=1)
    assert set(raw_sequences(rated).values()) == {"VXZ"}
    first, second = rated.manifest["warnings"][-2:]
    assert "5 interactions have no rating" in first and "all keeps them" in first
    assert "ratings go up to 9: is --rating-rule '>3' meant for that scale?" in second


def test_the_manifest_says_what_was_read_from_where(tmp_path):
    source = csv_pair(tmp_path).manifest["source"]
    assert source["taken"] == [
        {"file": "r.csv", "columns": {"user": "user_id", "item": "item_id", "time": "timestamp"}, "aside": []},
        {"file": "m.csv", "columns": {"key": "item_id", "title": "title"}, "aside": []},
    ]
    assert source["times"] == "numbers that are no Unix times, kept as they are"


@pytest.mark.parametrize("name", ["..", ".", ".hidden", "a/b", ""])
def test_names_that_are_no_folder(made, name):
    if name:
        with pytest.raises(UserError, match="--name"):
            made(block(), name=name)
    else:
        assert made(block(), name=name).name == "Games"


def test_what_is_counted_on_the_way(made):
    """By hand: 25 interactions of five users, one of them twice, two of them bad, and two at one time."""
    rows = [*block(rating=5.0), ("a", "V", 5.0, 0), ("a", "Q", 2.0, 99), ("b", "Q", 1.0, 99)]
    rows[1] = ("a", "W", 5.0, 0)
    items = {item: {"title": f"Title {item}", "description": ["long"] if item in "VW" else []} for item in "VWXYZQ"}
    counts = made(rows, items, rating_rule=">3", duplicates="exact").manifest["counts"]
    expected = {
        "interactions_read": 28, "users_read": 5, "items_read": 6, "dropped_by_rating": 2, "dropped_as_duplicates": 1,
        "ties": 1, "items_without_title": 0, "items_without_description": 3, "dropped_without_title": 0,
    }  # fmt: skip
    assert {name: counts[name] for name in expected} == expected
