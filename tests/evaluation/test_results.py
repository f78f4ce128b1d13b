import json
import shutil

import numpy as np
import pytest

from allmrec_jax.errors import UserError
from allmrec_jax.evaluation.results import (
    Outcome,
    read_users,
    significance,
    summarize,
    table,
    users_frame,
    write_results,
)

USERS = np.arange(60) * 3
CANDIDATES = np.stack([np.random.default_rng(user).permutation(np.arange(1, 41))[:20] for user in USERS])
COLUMNS = np.random.default_rng(7).integers(0, 20, 60)
TARGETS = CANDIDATES[np.arange(60), COLUMNS]
SLICES = {"cold": np.arange(1, 15), "warm": np.arange(27, 41)}
TITLES = [[f"Title {item}" for item in row] for row in CANDIDATES]


def outcomes(seed=0):
    """A system that scores at random, and one that always ranks the target first.

    Of the 60 texts of the latter 30 name the target, 10 another candidate, and 20 nothing.
    """
    noise = np.random.default_rng(seed).normal(size=(60, 20)).astype(np.float32)
    good = noise.copy()
    good[np.arange(60), COLUMNS] = 10
    others = CANDIDATES[np.arange(60), (COLUMNS + 1) % 20]
    named = np.where(np.arange(60) < 30, TARGETS, others)
    texts = [f'Title {item}"' if row < 40 else "nothing" for row, item in enumerate(named)]
    return [Outcome("SASRec", noise), Outcome("A-LLMRec", good, texts, TITLES)]


def frame(seed=0):
    return users_frame(outcomes(seed), USERS, TARGETS, CANDIDATES, SLICES, seed)


def test_rows_hold_everything_a_metric_needs():
    rows = frame().to_dicts()
    assert len(rows) == 120
    for n in (3, 35, 50):
        cf, ours = rows[n], rows[60 + n]
        assert (cf["user"], cf["system"], cf["seed"]) == (3 * n, "SASRec", 0)
        assert cf["candidates"][COLUMNS[n]] == cf["target"] == TARGETS[n]
        assert cf["rank"] == 1 + sum(score > cf["scores"][COLUMNS[n]] for score in cf["scores"])
        assert cf["generated"] is cf["valid"] is cf["strict"] is cf["official"] is None
        assert ours["rank"] == 1
        assert ours["valid"] is (n < 40)
        assert ours["strict"] is ours["official"] is (n < 30)
        assert ours["slices"] == ["all"] + [name for name, items in SLICES.items() if TARGETS[n] in items]


def test_summary_by_hand():
    systems, paired = summarize(frame(), [("A-LLMRec", "SASRec")])
    cold = np.isin(TARGETS, SLICES["cold"])
    assert systems["A-LLMRec"]["all"]["n"] == 60
    assert systems["A-LLMRec"]["cold"]["n"] == cold.sum()
    assert systems["A-LLMRec"]["all"]["hit@1"] == [1, 1, 1]
    assert systems["A-LLMRec"]["all"]["strict_hit@1"][0] == pytest.approx(1 / 2)
    assert systems["A-LLMRec"]["all"]["valid_ratio"][0] == pytest.approx(2 / 3)
    assert systems["A-LLMRec"]["cold"]["official_hit@1"][0] == pytest.approx(
        (cold & (np.arange(60) < 30)).sum() / cold.sum()
    )
    assert "valid_ratio" not in systems["SASRec"]["all"]
    value, low, high = systems["SASRec"]["all"]["hit@1"]
    assert low < value < high < 0.3
    difference = paired["A-LLMRec - SASRec"]["all"]
    assert difference[0] == pytest.approx(1 - value)
    assert difference[1:] == pytest.approx([1 - high, 1 - low], abs=1e-12)  # the same resamples
    assert paired["A-LLMRec, generated - SASRec"]["all"][0] == pytest.approx(1 / 2 - value)


def test_the_order_of_rows_does_not_matter():
    pairs = [("A-LLMRec", "SASRec")]
    shuffled = frame().sample(fraction=1.0, shuffle=True, seed=1).sort("system", descending=True, maintain_order=True)
    assert summarize(shuffled, pairs) == summarize(frame(), pairs)


def test_several_seeds_count_a_user_once():
    import polars as pl

    systems, _ = summarize(pl.concat([frame(0), frame(1)]))
    one, other = summarize(frame(0))[0], summarize(frame(1))[0]
    assert systems["SASRec"]["all"]["n"] == 60
    both = [part["SASRec"]["all"]["mrr"][0] for part in (one, other)]
    assert systems["SASRec"]["all"]["mrr"][0] == pytest.approx(np.mean(both))


def test_systems_asked_about_different_users_are_not_compared():
    import polars as pl

    with pytest.raises(ValueError, match="different users"):
        apart = (pl.col("system") == "SASRec") ^ (pl.col("user") == 0)
        summarize(frame().filter(apart))


def test_a_system_asked_about_fewer_users_is_compared_on_those():
    import polars as pl

    some = USERS[:20].tolist()
    part = frame().filter((pl.col("system") == "SASRec") | pl.col("user").is_in(some))
    systems, paired = summarize(part, [("A-LLMRec", "SASRec")])
    assert (systems["SASRec"]["all"]["n"], systems["A-LLMRec"]["all"]["n"]) == (60, 20)
    assert systems["SASRec"] == summarize(frame())[0]["SASRec"]
    alone = frame().filter(pl.col("user").is_in(some))
    assert paired == summarize(alone, [("A-LLMRec", "SASRec")])[1]
    assert significance(part, [("A-LLMRec", "SASRec")]) == significance(alone, [("A-LLMRec", "SASRec")])


def test_everybody_is_compared_with_the_best_of_the_baselines(tmp_path):
    cf, ours = outcomes()
    half = np.where(np.arange(60)[:, None] % 2, ours.scores, cf.scores)
    rows = users_frame([cf, Outcome("NCF", half), ours], USERS, TARGETS, CANDIDATES, SLICES, 0)
    empty = {"runs": [], "data": {}, "settings": {}, "versions": {}, "times": {}}
    results = write_results(tmp_path, rows, pairs=[("A-LLMRec", "NCF")], baselines=["SASRec", "NCF"], **empty)
    assert results["best_baseline"] == "NCF"  # A-LLMRec, which is no baseline, is right more often
    ranked = {key for key in results["paired"] if "generated" not in key}
    assert ranked == {"A-LLMRec - NCF", "SASRec - NCF"}
    assert set(results["tests"]) == set(results["paired"])
    assert write_results(tmp_path, rows, **empty)["best_baseline"] is None


def test_an_empty_slice_is_left_out():
    part = users_frame(outcomes(), USERS, TARGETS, CANDIDATES, {"cold": np.array([999])}, 0)
    assert list(summarize(part)[0]["SASRec"]) == ["all"]


def write(directory, seed=0):
    run = {"system": "SASRec", "scenario": "overall", "seed": 0, "id": "ab", "candidates_sha": "cd"}
    return write_results(
        directory,
        frame(seed),
        runs=[run],
        data={"name": "tiny", "hash": "ef"},
        pairs=[("A-LLMRec", "SASRec")],
        settings={"max_users": None},
        versions={},
        times={"systems": {"SASRec": 0.1}},
    )


def test_written_results_can_be_computed_again_from_the_users(tmp_path):
    results = write(tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored == results
    assert stored["schema"] == 1
    systems, paired = summarize(read_users(tmp_path / "out"), [("A-LLMRec", "SASRec")])
    assert systems == stored["systems"]
    assert paired == stored["paired"]
    lines = table(systems).splitlines()
    assert len(lines) == 7
    assert "valid_ratio" in lines[0]
    assert lines[4].split()[:3] == ["A-LLMRec", "all", "60"]


def test_a_full_disk_leaves_earlier_results(tmp_path, monkeypatch):
    import polars as pl

    write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(self, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    with pytest.raises(UserError, match=r"users\.parquet"):
        write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_missing_or_damaged_users(tmp_path):
    with pytest.raises(UserError, match=r"users\.parquet"):
        read_users(tmp_path)
    (tmp_path / "users.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(UserError, match=r"users\.parquet"):
        read_users(tmp_path)


def test_a_pair_of_two_evaluations_is_noticed(tmp_path):
    for folder, seed in (("a", 0), ("b", 1)):
        write(tmp_path / folder, seed)
    assert read_users(tmp_path / "a").height
    shutil.copy(tmp_path / "b" / "users.parquet", tmp_path / "a")
    with pytest.raises(UserError, match=r"users\.parquet: damaged, or of another evaluation than .*results\.json"):
        read_users(tmp_path / "a")
    content = json.loads((tmp_path / "a" / "results.json").read_text())
    del content["users_sha256"]
    (tmp_path / "a" / "results.json").write_text(json.dumps(content))  # of an earlier version
    assert read_users(tmp_path / "a").height
