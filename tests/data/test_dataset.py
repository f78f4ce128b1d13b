"""The stored data set: what is read back, the cuts, and what damage gets."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

from allmrec_jax.data.dataset import (
    ColdUsers,
    cold_and_warm,
    count_training_items,
    item_texts,
    load_dataset,
    replace_dataset,
    write_dataset,
)
from allmrec_jax.errors import UserError

SEQUENCES = [[1, 2, 3, 4, 5], [3], [2, 4], [5, 1, 6], [6, 2, 1, 3]]
TITLES = ["One", 'Two "quoted"\nlines', "Drei ☃ \U0001f600", "[CandidateEmb]", "x" * 10_000, "No Title"]


def write(path, **changes):
    arguments = {
        "name": "tiny",
        "items": np.concatenate(SEQUENCES),
        "offsets": np.concatenate([[0], np.cumsum([len(s) for s in SEQUENCES])]),
        "timestamps": np.arange(15) * 10,
        "titles": TITLES,
        "descriptions": ["first", "", "third", "", "", "six"],
        "categories": [["A", "B"], [], ["A"], [], [], []],
        "items_raw": list("abcdef"),
        "users_raw": ["u0", "u1", "u2", "u3", "u4"],
        "cold_users": ColdUsers(np.array([1, 2, 3], np.int32), np.array([0, 3]), ["c0"]),
    }
    return write_dataset(path, **(arguments | changes))


def test_what_is_written_is_read_back(tmp_path):
    write(tmp_path / "d")
    data = load_dataset(tmp_path / "d")
    assert (data.name, data.num_users, data.num_items) == ("tiny", 5, 6)
    assert [data.sequence(u).tolist() for u in range(5)] == SEQUENCES
    assert data.titles == ["", *TITLES]
    assert data.descriptions == ["", "first", "", "third", "", "", "six"]
    assert data.users_raw == ["u0", "u1", "u2", "u3", "u4"]
    assert data.items_raw == ["", *"abcdef"]
    assert data.categories == [[], ["A", "B"], [], ["A"], [], [], []]
    assert data.timestamps is not None and data.timestamps.tolist() == list(range(0, 150, 10))
    assert data.cold_users.items.tolist() == [1, 2, 3] and data.cold_users.raw == ["c0"]
    assert data.items.dtype == np.int32 and data.offsets.dtype == np.int64


def test_it_prints_as_one_line(tmp_path):
    write(tmp_path / "tiny")
    assert (
        repr(load_dataset(tmp_path / "tiny")) == f"Dataset('{tmp_path}/tiny': tiny, 5 users, 6 items, 15 interactions)"
    )


def test_training_part_leaves_the_last_two_out(tmp_path):
    data = write(tmp_path / "d")
    assert [data.train_sequence(u).tolist() for u in range(5)] == [[1, 2, 3], [3], [2, 4], [5], [6, 2]]
    assert data.train_count.tolist() == [0, 1, 3, 2, 1, 1, 1]


@pytest.mark.parametrize(
    ("cut", "users", "histories", "targets"),
    [
        ("train", [0, 2, 4], [[0, 1, 2], [0, 0, 2], [0, 0, 6]], [3, 4, 2]),
        ("valid", [0, 3, 4], [[1, 2, 3], [0, 0, 5], [0, 6, 2]], [4, 1, 1]),
        ("test", [0, 3, 4], [[2, 3, 4], [0, 5, 1], [6, 2, 1]], [5, 6, 3]),
    ],
)
def test_histories_and_targets(tmp_path, cut, users, histories, targets):
    data = write(tmp_path / "d")
    assert data.users_with(cut).tolist() == users
    found, target = data.history(np.array(users), cut, 3)
    assert found.dtype == np.int32
    assert found.tolist() == histories
    assert target.tolist() == targets
    assert data.history(np.array(users[::-1]), cut, 3)[1].tolist() == targets[::-1]


def test_user_without_that_cut_is_refused(tmp_path):
    data = write(tmp_path / "d")
    with pytest.raises(ValueError, match="user 1"):
        data.history(np.array([0, 1]), "test", 3)
    with pytest.raises(ValueError, match="unknown cut"):
        data.users_with("tset")


def test_slices_take_the_ends_of_the_counts_with_ties_by_index():
    slices = cold_and_warm(np.array([99, 5, 1, 1, 7, 1, 2, 9, 9, 0, 3]), 0.35)
    assert slices["cold"].tolist() == [2, 3, 9]
    assert slices["warm"].tolist() == [4, 7, 8]


def test_training_counts_agree_with_a_loop():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 8, size=50)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = rng.integers(1, 12, size=offsets[-1])
    expected = np.zeros(12, int)
    for start, end in itertools.pairwise(offsets):
        sequence = items[start:end]
        np.add.at(expected, sequence[:-2] if len(sequence) >= 3 else sequence, 1)
    assert count_training_items(items, offsets, 11).tolist() == expected.tolist()


def test_item_texts_of_both_styles(tmp_path):
    data = write(tmp_path / "d")
    assert item_texts(data, "paper")[:2] == ["", "Title: One, Description: first"]
    assert item_texts(data, "official")[4] == '"[CandidateEmb], No Description"'
    assert len(item_texts(data, "paper")) == 7


def test_hash_is_of_the_content_not_of_path_or_manifest(tmp_path):
    first = write(tmp_path / "a")
    assert write(tmp_path / "b", name="other", manifest={"source": "elsewhere"}).hash == first.hash
    for change in (
        {"titles": ["Uno", *TITLES[1:]]},
        {"items": np.concatenate(SEQUENCES)[::-1]},
        {"timestamps": None},
        {"users_raw": ["v0", "u1", "u2", "u3", "u4"]},
        {"categories": [["A"]] + [[]] * 5},
    ):
        assert write(tmp_path / "c", **change).hash != first.hash, change


@pytest.mark.parametrize("name", ["items.npy", "offsets.npy", "timestamps.npy", "texts.npz", "cold_users.npz"])
def test_damaged_or_missing_file_is_named(tmp_path, name):
    write(tmp_path / "d")
    file = tmp_path / "d" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2 + 8 if name.endswith("npz") else -5] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=file.stem):
        load_dataset(tmp_path / "d")
    file.write_bytes(content[: len(content) // 3])
    with pytest.raises(UserError, match=name):
        load_dataset(tmp_path / "d")
    file.unlink()
    with pytest.raises(UserError, match=name):
        load_dataset(tmp_path / "d")


def test_what_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no manifest\.json"):
        load_dataset(tmp_path)
    write(tmp_path / "d")
    manifest = tmp_path / "d" / "manifest.json"
    body = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(body | {"format": 99}))
    with pytest.raises(UserError, match="format 99"):
        load_dataset(tmp_path / "d")
    body["parts"]["items"] = None
    manifest.write_text(json.dumps(body))
    with pytest.raises(UserError, match="not that of its parts"):
        load_dataset(tmp_path / "d")
    manifest.write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json"):
        load_dataset(tmp_path / "d")


@pytest.mark.parametrize("name", ["items.parquet", "users.parquet"])
def test_tables_are_compared_with_their_hashes_when_a_data_set_is_opened(tmp_path, name):
    lists = {"titles": ["a", "b", "c"], "descriptions": [""] * 3}
    sequences = {"items": np.array([1, 2, 3]), "offsets": np.array([0, 3]), "timestamps": None}
    replace_dataset(tmp_path / "d", name="x", **sequences, **lists)
    content = (tmp_path / "d" / name).read_bytes()
    (tmp_path / "d" / name).write_bytes(content[:-30] + bytes(1) + content[-29:])
    with pytest.raises(UserError, match=rf"{name}: damaged .*run `allmrec prepare` again"):
        load_dataset(tmp_path / "d")


def test_damaged_slices(tmp_path):
    write(tmp_path / "d")
    for content in ('{"cold": [1], "warm": [2, 3]}', '{"cold": ["a"]}', "[]", ""):
        (tmp_path / "d" / "slices.json").write_text(content)
        with pytest.raises(UserError, match="slices"):
            load_dataset(tmp_path / "d")


def test_loading_imports_no_reader_library(tmp_path):
    write(tmp_path / "d")
    code = (
        "import sys; from allmrec_jax.data.dataset import load_dataset, item_texts;"
        f"d = load_dataset({str(tmp_path / 'd')!r});"
        "d.history(d.users_with('test'), 'test', 5); item_texts(d, 'paper');"
        "print([m for m in ('polars', 'matplotlib', 'torch', 'pandas', 'pyarrow') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_slices_of_a_data_set_are_the_bottom_and_top_35_percent(tmp_path):
    """Table 4's definition; the share is the product's default, not the test's."""
    rng = np.random.default_rng(0)
    sequences = [
        rng.choice(200, 12, replace=False, p=np.arange(1, 201) / np.arange(1, 201).sum()) + 1 for _ in range(90)
    ]
    dataset = write_dataset(
        tmp_path / "data",
        name="Slices",
        items=np.concatenate(sequences),
        offsets=np.arange(91) * 12,
        titles=[f"item {i}" for i in range(200)],
        descriptions=[""] * 200,
    )
    order = np.argsort(dataset.train_count[1:], kind="stable") + 1
    assert len(dataset.slices["cold"]) == len(dataset.slices["warm"]) == 70
    assert sorted(dataset.slices["cold"].tolist()) == sorted(order[:70].tolist())
    counts = dataset.train_count
    assert counts[dataset.slices["warm"]].min() >= counts[dataset.slices["cold"]].max()
