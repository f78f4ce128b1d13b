"""The campaigns' short forms; their long ones are programs beside this file."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import kills
import mutations
import places
import pytest
import readers

import allmrec_jax


def test_damaged_files_are_refused_in_one_line_or_read_as_what_they_were(tmp_path):
    found = mutations.campaign(tmp_path, 250, seed=0)
    assert found["faults"] == []
    assert found["refused"] > 100 and found["traceback"] == found["hang"] == 0
    assert not [name for name, kind in found["kinds"].items() if kind["hashed"] and "accepted" in kind]
    assert {name for kinds in readers.READERS.values() for name in kinds} == set(found["kinds"])


def test_what_is_read_has_a_kind_that_damages_it():
    known = readers.READERS.keys() | readers.ELSEWHERE.keys()
    assert readers.modules_that_read(Path(allmrec_jax.__file__).parent) == known


@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler for what stands before the C library's functions")
def test_commands_ended_anywhere_leave_the_old_or_the_new_and_end_as_the_unbroken_one(tmp_path):
    jobs = [job for job in kills.JOBS if job.name in ("prepare over another", "sasrec")]
    found = kills.campaign(tmp_path, 6, seed=3, jobs=[dataclasses.replace(job, share=1) for job in jobs])
    assert kills.faults_of(found) == []
    for job in found["jobs"].values():
        assert [kill["signal"] for kill in job["kills"]] == ["SIGKILL", "SIGTERM", "SIGINT"]
        assert any(kill["code"] for kill in job["kills"])


@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler for what stands before the C library's functions")
def test_commands_without_a_place_or_memory_say_so_and_end_as_the_undisturbed_one(tmp_path):
    found = places.campaign(tmp_path, 1, seed=0, names=("prepare over another", "presets"))
    assert places.faults_of(found) == []
    codes = {name: {met["fault"]: met.get("code") for met in job["met"]} for name, job in found["jobs"].items()}
    ended = codes["prepare over another"]
    assert ended["read-only from the start"] == ended["memory"] == ended["output"] == codes["presets"]["output"] == 2


MUTANTS = """
import itertools, json, math, sys
from pathlib import Path
import jax, forked, mutants
work, module = Path(sys.argv[1]), "allmrec_jax/metrics.py"
forked.copy_repository(work / "copy")
mutants.record(work, ["tests/test_metrics.py"], math.inf)
tried = list(itertools.islice(mutants.drawn(module, 1.0, seed=0), 4))
tried.append(mutants.by_text(module, '"mrr": 1.0 / ranks', '"mrr": 1 / ranks'))
outcomes, complete = mutants.campaign(work, tried, 60, math.inf, again=False)
print(json.dumps([complete, [outcome["killed"] for outcome in outcomes]]))
"""


def test_mutants_are_killed_and_one_that_changes_nothing_survives(tmp_path):
    # In a process of its own: it forks, which one that has run JAX must not.
    done = subprocess.run(
        [sys.executable, "-c", MUTANTS, tmp_path], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [True, [True, True, True, True, False]]
