import dataclasses
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from allmrec_jax.cli import main
from allmrec_jax.commands.synthesize import command
from allmrec_jax.data.candidates import make_candidates
from allmrec_jax.data.prepare import prepare
from allmrec_jax.embedded.lexicon import FUNCTION, PLAIN, THEMES
from allmrec_jax.embedded.synthetic import DOMAINS, PRESETS, generate, load_oracle, oracle_scores
from allmrec_jax.errors import UserError
from allmrec_jax.outputs import MARK

NAMES = [domain.name for domain in DOMAINS]


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """The demo's own data."""
    out = tmp_path_factory.mktemp("raw")
    generate(out)
    return out


@pytest.fixture(scope="module")
def datasets(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("data")
    return {name: prepare(raw / f"{name}.json.gz", out / name) for name in NAMES}


@pytest.fixture(scope="module")
def items(raw) -> dict[str, list[dict]]:
    return {name: lines(raw / f"meta_{name}.json.gz") for name in NAMES}


def lines(path: Path) -> list[dict]:
    with gzip.open(path) as file:
        return [json.loads(line) for line in file]


def test_a_seed_gives_the_same_bytes(tmp_path):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        generate(tmp_path / folder, seed, PRESETS["tiny"])
    names = sorted(path.name for path in (tmp_path / "a").iterdir() if path.name != MARK)
    assert names == sorted([*(f"{p}{n}.json.gz" for n in NAMES for p in ("", "meta_")), "oracle.npz"])
    for name in names:
        first = (tmp_path / "a" / name).read_bytes()
        assert first == (tmp_path / "b" / name).read_bytes()
        assert first != (tmp_path / "c" / name).read_bytes()
        if name.endswith(".gz"):
            assert first[4:8] == bytes(4)  # the gzip header's time: a later second must not change the file


@pytest.mark.parametrize("name", NAMES)
def test_counts_that_the_demo_needs(datasets, name):
    dataset = datasets[name]
    assert dataset.num_users >= 3000
    assert dataset.num_items >= 1000
    assert len(dataset.cold_users.raw) >= 150
    assert 8 <= np.mean(dataset.lengths - 2) <= 15
    targets = make_candidates(dataset).target
    cold = np.isin(targets, dataset.slices["cold"])
    assert 0.3 <= cold.mean() <= 0.45
    assert cold[:1000].sum() >= 300
    assert np.mean(dataset.train_count[targets[cold]] == 0) > 0.5


@pytest.mark.parametrize("name", NAMES)
def test_popularity_is_skewed(datasets, name):
    count = np.sort(datasets[name].train_count[1:])[::-1]
    assert count[: len(count) // 10].sum() > 0.2 * count.sum()


def test_domains_share_themes_and_no_items(raw, items):
    asins = [{item["asin"] for item in items[name]} for name in NAMES]
    assert not asins[0] & asins[1]
    assert {theme for item in items[NAMES[0]] for theme in item["category"][1:]} == set(THEMES)
    assert {theme for item in items[NAMES[1]] for theme in item["category"][1:]} == set(THEMES)
    reviewers = [{line["reviewerID"] for line in lines(raw / f"{name}.json.gz")} for name in NAMES]
    assert not reviewers[0] & reviewers[1]


def test_texts_tell_the_themes(items):
    """The title has a word of each theme and none of another; a description has its themes' words foremost."""
    theme_of = {word: theme for theme, words in THEMES.items() for word in words}
    every = [item for name in NAMES for item in items[name]]
    titles = [item["title"] for item in every]
    assert len(set(titles)) == len(titles)
    described = 0
    for item in every:
        themes = set(item["category"][1:])
        words = item["title"].lower().split()
        assert 2 <= len(words) <= 4
        assert {theme_of[word] for word in words if word in theme_of} == themes
        for text in item.get("description", []):
            described += 1
            words = re.findall(r"\w+", text.lower())
            assert {theme_of[word] for word in words if word in theme_of} <= themes
            assert set(words) <= theme_of.keys() | set(PLAIN) | set(FUNCTION)
    assert 0.9 < described / len(every) < 0.97


def test_files_have_repeated_lines_and_ties(raw, datasets):
    counts = datasets[NAMES[0]].manifest["counts"]
    assert counts["dropped_as_duplicates"] > 300
    assert counts["ties"] > 500
    review = lines(raw / f"{NAMES[0]}.json.gz")[0]
    assert re.fullmatch(r"\d\d \d{1,2}, \d{4}", review["reviewTime"])
    assert review["unixReviewTime"] % 86_400 == 0


def test_nobody_buys_twice_or_before_release(raw):
    oracle = load_oracle(raw / "oracle.npz")
    history, release = oracle.history, oracle.catalogue.release
    assert np.all(history.day >= release[history.item])
    for start, end in zip(history.offsets[:-1], history.offsets[1:], strict=True):
        assert len(set(history.item[start:end].tolist())) == end - start
        assert np.all(np.diff(history.day[start:end]) >= 0)


def test_tastes_drift(raw):
    oracle = load_oracle(raw / "oracle.npz")
    before, after = oracle.history.favourites[:-1], oracle.history.favourites[1:]
    same_user = np.ones(len(before), bool)
    same_user[oracle.history.offsets[1:-1] - 1] = False
    changed = (before != after).sum(axis=1)[same_user]
    assert changed.max() == 1
    # some 120,000 steps: the standard error of the share is 0.0005
    assert abs(changed.mean() - oracle.settings.drift) < 0.002
    assert all(len(set(row)) == 3 for row in oracle.history.favourites[:200].tolist())


@pytest.fixture(scope="module")
def unfiltered(raw, tmp_path_factory):
    """With no threshold no choice is hidden, so that the Oracle's probabilities hold exactly."""
    out = tmp_path_factory.mktemp("unfiltered")
    return prepare(raw / f"{NAMES[0]}.json.gz", out / "data", min_user=1, min_item=1)


def test_oracle_is_calibrated(raw, unfiltered):
    oracle = load_oracle(raw / "oracle.npz")
    sets = make_candidates(unfiltered)
    scores = oracle_scores(oracle, unfiltered, sets.users, sets.candidates)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-12)
    hit = np.zeros_like(scores)
    hit[np.arange(len(hit)), sets.target_column] = 1
    # Of all (user, candidate) pairs with about the same probability, that share must be targets.
    for low, high in zip(np.r_[0, 0.01, 0.05, 0.1, 0.2:1:0.1], np.r_[0.01, 0.05, 0.1, 0.2:1:0.1, 1.01], strict=True):
        inside = (scores >= low) & (scores < high)
        expected, variance = scores[inside].sum(), (scores * (1 - scores))[inside].sum()
        assert abs(hit[inside].sum() - expected) < 4 * np.sqrt(variance), (low, high)
    # The surprise at what happened is what the probabilities say it should be.
    log = np.log(np.maximum(scores, 1e-300))
    entropy = -(scores * log).sum(axis=1)
    variance = (scores * log**2).sum(axis=1) - entropy**2
    surprise = -log[hit.astype(bool)]
    assert abs(surprise.sum() - entropy.sum()) < 4 * np.sqrt(variance.sum())


def test_oracle_needs_each_part_of_its_knowledge(raw, unfiltered):
    """Without drift, momentum, attention or popularity it is more surprised by what happened."""
    oracle = load_oracle(raw / "oracle.npz")
    sets = make_candidates(unfiltered)

    def surprise(oracle) -> float:
        scores = oracle_scores(oracle, unfiltered, sets.users, sets.candidates)
        return -np.log(scores[np.arange(len(scores)), sets.target_column]).mean()

    def with_settings(**changes):
        return dataclasses.replace(oracle, settings=dataclasses.replace(oracle.settings, **changes))

    history, catalogue = oracle.history, oracle.catalogue
    starts = np.repeat(history.offsets[:-1], np.diff(history.offsets))
    flat = dataclasses.replace(catalogue, popularity=np.ones_like(catalogue.popularity))
    full = surprise(oracle)
    assert full < surprise(with_settings(momentum=0.0))
    assert full < surprise(with_settings(novelty=0.0))
    assert full < surprise(dataclasses.replace(oracle, catalogue=flat))
    assert full < surprise(
        dataclasses.replace(oracle, history=dataclasses.replace(history, favourites=history.favourites[starts]))
    )


@pytest.mark.parametrize("name", NAMES)
def test_oracle_knows_both_domains(raw, datasets, name):
    oracle, dataset = load_oracle(raw / "oracle.npz"), datasets[name]
    sets = make_candidates(dataset, max_users=1000)
    scores = oracle_scores(oracle, dataset, sets.users, sets.candidates)
    assert 0.6 < np.mean(scores.argmax(axis=1) == sets.target_column) < 0.8


def test_oracle_refuses_other_data(raw, tmp_path):
    generate(tmp_path / "other", 1, PRESETS["tiny"])
    other = prepare(tmp_path / "other" / f"{NAMES[0]}.json.gz", tmp_path / "data")
    sets = make_candidates(other)
    with pytest.raises(UserError, match="is not of this oracle"):
        oracle_scores(load_oracle(raw / "oracle.npz"), other, sets.users, sets.candidates)
    (tmp_path / "oracle.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match="not an oracle file"):
        load_oracle(tmp_path / "oracle.npz")


def test_command(tmp_path):
    result = CliRunner().invoke(command, ["--out", str(tmp_path), "--preset", "tiny", "--seed", "3"])
    assert result.exit_code == 0
    assert result.output.split() == [str(tmp_path / f"{name}.json.gz") for name in NAMES]


@pytest.mark.parametrize(
    "option",
    [
        ("--items", "99"),
        ("--users", "0"),
        ("--mean-interactions", "3"),
        ("--drift", "1.5"),
        ("--new-items", "0.4"),
        ("--taste", "-1"),
    ],
)
def test_impossible_settings(tmp_path, capsys, option):
    with pytest.raises(SystemExit) as exit:
        main(["synthesize", "--out", str(tmp_path / "raw"), *option])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and option[0][2:] in error and error.count("\n") == 1
    assert not (tmp_path / "raw").exists()
