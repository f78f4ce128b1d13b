"""How long an experiment may take, and its SLURM files."""

import json
import os
import shlex
import subprocess
import time

import pytest
from tiny_place import recipes, workplace

from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.experiments.execute import COST
from allmrec_jax.experiments.graph import Workplace, levels, trainings_of, units
from allmrec_jax.experiments.plan import BEGINNING, PASS_ON, REQUEUE, estimate, write_slurm
from allmrec_jax.experiments.rows import at_seeds, known_rows
from allmrec_jax.trained.kinds import KINDS

pytest_plugins = "tiny_fixtures"


def test_estimates_follow_what_such_runs_took_here_before(place, tmp_path):
    data = load_dataset(place / "data")
    work = Workplace(data, tmp_path, {"llm": str(place / "llm"), "encoder": "sbert-nano"})
    node = recipes().row("SASRec", 0).trainings[0]
    amount = units(work, node)

    def ran(dataset, run, seconds):
        path = tmp_path / dataset / "cf" / run / COST
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"seconds": seconds, "units": amount, "model": "sasrec"}))

    assert estimate(work, node) == BEGINNING + KINDS["cf"].seconds_per_unit["sasrec"] * amount
    ran("other", "a", 500)
    assert estimate(work, node) == pytest.approx(500)
    for run, seconds in (("b", 100), ("c", 120), ("d", 900)):  # the last one beside other work
        ran(data.name, run, seconds)
    assert estimate(work, node) == pytest.approx(120)


def test_levels_and_slurm_arrays_respect_what_builds_on_what(place, tmp_path):
    work = workplace(place)
    rows = at_seeds(recipes(), [name for name in known_rows() if name != "RECFORMER"], 1, 1)
    groups = levels(trainings_of(rows))
    place_of = {node: number for number, group in enumerate(groups) for node in group}
    assert sorted(place_of, key=str) == sorted(trainings_of(rows), key=str)
    assert all(place_of[other] < place_of[node] for node in place_of for other in node.upstream)
    assert len(groups) == 3

    script = write_slurm(work, rows, tmp_path / "slurm")
    assert script.read_text().count("sbatch --parsable") == 3
    for number, group in enumerate(groups):
        array = (tmp_path / "slurm" / f"level{number}.sbatch").read_text()
        assert f"--array=0-{len(group) - 1}\n" in array
        lines = [line for line in array.splitlines() if line.endswith(";;")]
        assert [shlex.split(line)[4:-2] for line in lines] == [work.command(node) for node in group]
    for path in (tmp_path / "slurm").iterdir():
        subprocess.run(["sh", "-n", path], check=True)  # reads as a script


@pytest.mark.parametrize(("ends", "requeued"), [(75, True), (0, False), (2, False)])
def test_a_slurm_job_that_was_told_to_end_is_queued_again(tmp_path, ends, requeued):
    child = "trap 'trap \"\" TERM; exit $0' TERM; while :; do sleep 0.05; done" if ends == 75 else "exit $0"
    (tmp_path / "job").write_text("\n".join([PASS_ON, f"bash -c {shlex.quote(child)} {ends} &", *REQUEUE, ""]))
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "scontrol").chmod(0o755)
    known = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    job = subprocess.Popen(["bash", tmp_path / "job"], env=known, stdout=subprocess.PIPE, text=True)
    while ends == 75 and job.poll() is None:  # until the child has set its trap too
        time.sleep(0.2)
        job.terminate()
    told, _ = job.communicate(timeout=30)
    assert job.returncode == ends
    assert told == ("requeue 7_2\n" if requeued else "")
