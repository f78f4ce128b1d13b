"""What is missing is trained: once, in order, under locks."""

import dataclasses
import json
import os
import subprocess
import sys
import threading

import pytest
from tiny_place import recipes, workplace

from allmrec_jax import cli
from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.errors import UserError
from allmrec_jax.experiments import execute
from allmrec_jax.experiments.execute import train_in_process
from allmrec_jax.experiments.graph import Workplace, trainings_of
from allmrec_jax.experiments.rows import at_seeds
from allmrec_jax.fileio import file_lock
from allmrec_jax.runs import START_OVER

pytest_plugins = "tiny_fixtures"
pytestmark = pytest.mark.usefixtures("in_this_process")


def test_a_second_runner_stops_at_the_lock_and_says_who_holds_it(place, tmp_path, capsys):
    with file_lock(place / "locked" / ".lock"):
        program = (
            "import sys; from pathlib import Path; from allmrec_jax.errors import UserError\n"
            "from allmrec_jax.fileio import file_lock\n"
            "try:\n    with file_lock(Path(sys.argv[1])): print('entered')\n"
            "except UserError as error: print(error)"
        )
        told = subprocess.run(
            [sys.executable, "-c", program, str(place / "locked" / ".lock")], capture_output=True, text=True, check=True
        ).stdout
    assert f"locked: in use by process {os.getpid()} on " in told
    with file_lock(place / "locked" / ".lock"):  # released when its holder is gone
        pass


def test_a_training_that_fails_is_named_and_holds_the_lock_itself(tmp_path, monkeypatch):
    with (
        file_lock(tmp_path / "lock") as lock,
        pytest.raises(UserError, match=r"training stage9 failed \(exit code 2\)"),
    ):
        train_in_process(["train", "nothing"], "stage9", lock)
    started = subprocess.Popen
    children = []

    def outlives(words, **kwargs):
        children.append(started(["sleep", "60"], **kwargs))
        raise KeyboardInterrupt  # as if this process died here

    monkeypatch.setattr(subprocess, "Popen", outlives)
    with pytest.raises(KeyboardInterrupt), file_lock(tmp_path / "lock") as lock:
        train_in_process([], "stage9", lock)
    with pytest.raises(UserError, match="in use by process"), file_lock(tmp_path / "lock"):
        pass
    children[0].kill()
    children[0].wait()
    with file_lock(tmp_path / "lock"):
        pass


def test_a_training_with_another_identity_than_planned_is_reported(place, monkeypatch):
    monkeypatch.setattr(execute, "train_in_process", lambda arguments, name, lock: {"seconds": 1.0, "peak_mib": 1})
    work = Workplace(
        load_dataset(place / "data"), place / "third", {"llm": str(place / "llm"), "encoder": "sbert-nano"}
    )
    row = recipes().row("SASRec", 0)
    with pytest.raises(UserError, match="not what was planned"):
        execute.run_missing(work, [row])


def test_a_run_that_cannot_be_continued_is_started_over(place, monkeypatch):
    work = dataclasses.replace(workplace(place), checkpoints=place / "broken")
    (row,) = at_seeds(recipes(cf={"epochs": 2, "dim": 8, "max_length": 8}), ["SASRec"], 1, 1)
    steps = work.path(row.trainings[0]) / "steps"
    (steps / "1").mkdir(parents=True)
    ran = []

    def run(arguments, name, lock):
        ran.append(steps.is_dir())
        if steps.is_dir():
            raise UserError(f"training {name} failed (exit code 2): error: {steps}: damaged; {START_OVER}")
        cli.main(list(arguments))
        return {"seconds": 2.0, "peak_mib": 100}

    monkeypatch.setattr(execute, "train_in_process", run)
    execute.run_missing(work, [row])
    assert ran == [True, False] and work.done(row.trainings[0])


def test_after_a_failure_nothing_else_begins(place, monkeypatch):
    begun = []

    def fail(arguments, name, lock):
        begun.append(name)
        raise UserError("no")

    monkeypatch.setattr(execute, "train_in_process", fail)
    work = dataclasses.replace(workplace(place), checkpoints=place / "failing")
    with pytest.raises(UserError, match=r"^no$"):
        execute.run_missing(work, at_seeds(recipes(), ["SASRec"], 4, 1))
    assert len(begun) < 4


def test_a_training_begins_as_soon_as_what_it_builds_on_is_there(place, monkeypatch):
    work = dataclasses.replace(workplace(place), checkpoints=place / "at-once")
    rows = at_seeds(recipes(), ["A-LLMRec", "MoRec"], 1, 1)
    last = threading.Event()

    def run(arguments, name, lock):
        if name.startswith("morec"):  # of the first level, and done only after the last
            assert last.wait(60)
        node = next(node for node in trainings_of(rows) if node.name == name)
        assert all(work.done(other) for other in node.upstream)
        path = work.path(node)
        (path / "export").mkdir(parents=True)
        (path / "export" / "x").touch()
        data = {"name": work.dataset.name, "hash": work.dataset.hash}
        about = {"kind": node.kind, "settings": {}, "seed": node.seed, "data": data, "upstream": {}}
        (path / "run.json").write_text(json.dumps({**about, "identity": work.identity(node)}))
        (path / "DONE").write_text("{}")
        if name.startswith("stage2"):
            last.set()
        return {"seconds": 1.0, "peak_mib": 100}

    monkeypatch.setattr(execute, "train_in_process", run)
    execute.run_missing(work, rows, jobs=2)
    assert all(work.done(node) for node in trainings_of(rows))
