"""How long an experiment may take, and its SLURM files."""

import json
import shlex
import subprocess

import pytest
from tiny_place import recipes, workplace

from allmrec_jax.data.dataset import load_dataset
from allmrec_jax.experiments.execute import COST
from allmrec_jax.experiments.graph import Workplace, levels, trainings_of, units
from allmrec_jax.experiments.plan import BEGINNING, estimate, write_slurm
from allmrec_jax.experiments.rows import at_seeds, known_rows
from allmrec_jax.trained.kinds import KINDS

pytest_plugins = "tiny_place"


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
        assert [shlex.split(line)[4:-1] for line in lines] == [work.command(node) for node in group]
    for path in (tmp_path / "slurm").iterdir():
        subprocess.run(["sh", "-n", path], check=True)  # reads as a script
