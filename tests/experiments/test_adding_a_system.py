"""The page on adding a system: its code, in a package of its own, is seen by an evaluation and in a table."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from plugins import install
from tiny_place import USERS, arguments

from allmrec_jax import cli
from allmrec_jax.data.candidates import load_candidates
from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.evaluation.results import read_users
from allmrec_jax.evaluation.systems import SYSTEMS
from allmrec_jax.experiments import execute
from allmrec_jax.runs import load_run
from allmrec_jax.trained.kinds import KINDS

pytest_plugins = "tiny_fixtures"

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_model.md"


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The page's two systems, installed; trainings of an experiment run in this process."""

    def train(arguments, name, lock):
        cli.main(arguments)
        return {"seconds": 1.0, "peak_mib": 1}

    monkeypatch.setattr(execute, "train_in_process", train)
    _, _, section = PAGE.read_text().partition("## A compared system")
    untrained, trained = re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    for registry in (SYSTEMS, KINDS):
        monkeypatch.setattr(registry, "records", dict(registry.records))
    for name, text in (("allmrec_co_occurrence", untrained), ("allmrec_counts", trained)):
        monkeypatch.delitem(sys.modules, name, raising=False)
        install(tmp_path, name, text, monkeypatch)
        monkeypatch.setitem(sys.modules, name, None)  # forgotten in the end
        del sys.modules[name]


def test_the_systems_stand_in_a_table(place, plugin, capsys):
    more = ["--systems", "counts", "--systems", "Co-occurrence", "--systems", "Popularity", "--seeds", "2"]
    cli.main(arguments(place, *more, "--set", "co-counts.smoothing=2", out="plugged"))
    results = json.loads((place / "plugged" / "results.json").read_text())
    assert set(results["systems"]) == {"Popularity", "Co-occurrence", "Counts"}
    assert results["best_baseline"] in {"Co-occurrence", "Counts", "Popularity"} and len(results["paired"]) == 2
    (one,) = [run for run in results["runs"] if run["system"] == "Counts" and run["seed"] == 1]
    about = load_run(place / "checkpoints" / "Tiny" / "co-counts" / one["id"][:12])
    assert about["settings"] == {"smoothing": 2.0} and about["seed"] == 1
    assert "Co-occurrence" in (place / "plugged" / "table1.md").read_text()

    # What stands there is what the page's code computes, by hand here for one user.
    data = load_dataset(place / "data")
    asked = load_candidates(data, "overall", "test", 0)
    row = 3
    histories = [data.items[start:stop] for start, stop in zip(data.offsets[:-1], data.offsets[1:], strict=True)]
    known = set(histories[asked.users[row]][:-1].tolist())
    expected = [
        sum(len(known & set(items[:-2].tolist())) for items in histories if candidate in items[:-2])
        for candidate in asked.candidates[row]
    ]
    users = read_users(place / "plugged").filter(system="Co-occurrence")
    np.testing.assert_allclose(users["scores"].to_list()[row], expected)


def test_an_evaluation_of_given_runs_asks_them_too(place, plugin, capsys):
    words = ["eval", "overall", "--data", place / "data", "--checkpoints", place / "checkpoints"]
    cli.main([*map(str, words), "--systems", "Co-occurrence", "--out", str(place / "evaluated")])
    results = json.loads((place / "evaluated" / "results.json").read_text())
    assert results["systems"]["Co-occurrence"]["all"]["n"] == USERS
