"""A table made for real: its training is a process of its own, and each cell is worked out again from the disk."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_place import USERS, write

from allmrec_jax import cli
from allmrec_jax.data.candidates import load_candidates
from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.evaluation.results import read_users
from allmrec_jax.runs import load_run

SMALL = ("epochs=2", "dim=8", "max_length=8", "buckets=1", "batch_size=64")


def test_the_cells_of_a_table_are_those_of_the_users_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    words = ["experiment", "table1", "--data", "data", "--checkpoints", "checkpoints", "--out", "out"]
    words += ["--systems", "SASRec", "--systems", "Popularity"]
    cli.main([*words, *(word for line in SMALL for word in ("--set", f"cf.{line}"))])
    assert capsys.readouterr().out.splitlines()[-1] == "out"

    # The users' ranks are those of their scores, and the scores of Popularity are known without the product.
    data, users = load_dataset(tmp_path / "data"), read_users(tmp_path / "out")
    candidates = load_candidates(data)
    starts, ends = data.offsets[:-1], data.offsets[1:] - 2  # the last two are for validation and test
    bought = np.bincount(np.concatenate([data.items[a:b] for a, b in zip(starts, ends, strict=True)]), minlength=45)
    hits: dict[tuple[str, str], list[bool]] = {}
    for row in users.iter_rows(named=True):
        at = int(np.flatnonzero(candidates.users == row["user"])[0])
        assert row["target"] == candidates.target[at] and row["candidates"] == candidates.candidates[at].tolist()
        scores = np.asarray(row["scores"])
        if row["system"] == "Popularity":
            np.testing.assert_array_equal(scores, bought[row["candidates"]])
        own = scores[row["candidates"].index(row["target"])]
        above, level = int((scores > own).sum()), int((scores == own).sum())
        assert above < row["rank"] <= above + level
        for part in row["slices"]:
            hits.setdefault((row["system"], part), []).append(row["rank"] == 1)

    # What `results.json` says is what they come to, and the page shows it.
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["systems"]) == ["Popularity", "SASRec"]
    page = (tmp_path / "out" / "table1.md").read_text().split("\n## ")
    for system, row in results["systems"].items():
        for part in ("all", "warm", "cold"):
            assert row[part]["n"] == len(hits[system, part])
            # Both are a mean of zeros and ones in float64.
            assert row[part]["hit@1"][0] == pytest.approx(np.mean(hits[system, part]), abs=1e-12)
        cells = line_of(page[0], system)
        assert cells[:2] == [str(USERS), shown(row["all"]["hit@1"])]
        warm, cold = line_of(page[1], system)[0::4]
        assert (warm, cold) == (shown(row["warm"]["hit@1"]), shown(row["cold"]["hit@1"]))
        measures = ("hit@1", "hit@3", "hit@5", "ndcg@10", "mrr")
        assert line_of(page[2], system) == [shown(row["all"][name]) for name in measures]

    # The run that it names was trained with what was asked for.
    (run,) = [run for run in results["runs"] if run["trainings"]]
    about = load_run(tmp_path / "checkpoints" / "Tiny" / "cf" / run["id"][:12])
    assert about["identity"] == run["id"] and (about["settings"]["dim"], about["settings"]["epochs"]) == (8, 2)
    assert run["candidates_sha"] == candidates.sha256


def line_of(page: str, system: str) -> list[str]:
    """A table's cells in the row of ``system``, without marks."""
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {system} |")]
    return [cell.strip().replace("**", "") for cell in line.split("|")[2:-1]]


def shown(value: list[float]) -> str:
    """A value with its interval, as a page has it."""
    return "{:.3f} ({:.3f} to {:.3f})".format(*value)
