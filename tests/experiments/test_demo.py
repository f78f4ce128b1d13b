"""The demo's driver: each step is a command that exists, is measured, and stops the demo when it fails."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from allmrec_jax.cli import allmrec
from allmrec_jax.commands.experiment import demo as demo_command
from allmrec_jax.errors import UserError
from allmrec_jax.experiments import demo

DATA = {"name": "D", "hash": "0" * 64, "users": 9, "items": 9, "generated": True}
RUNS = [{"system": "SASRec", "scenario": "overall", "seed": 3, "id": "0" * 64, "candidates_sha": "0" * 64}]


def test_a_step_is_measured_and_its_last_line_returned():
    # In a process of its own, as the demo is: the peak of a child counts what its parent had when it forked.
    program = "from allmrec_jax.experiments import demo; print(*demo.run_step('help', ('--help',), 1), sep='\\n')"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    measured, last = told.splitlines()[-2:]
    assert last.startswith("allmrec recommend")  # the last example
    name, seconds, peak_mib = re.fullmatch(r"Step\(name='(.*)', seconds=(.*), peak_mib=(.*)\)", measured).groups()
    assert name == "help"
    assert float(seconds) > 0
    assert 5 < float(peak_mib) < 500  # --help loads neither JAX nor torch


def test_a_failing_step_stops_the_demo_and_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"stopped at step 3, prepare \(exit code 2"):
        demo.run_step("prepare", ("prepare", tmp_path / "absent", "--out", tmp_path / "data"), 3)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, ...]]:
    """Steps are recorded, not run; the evaluation leaves results."""
    lines: list[tuple[str, ...]] = []

    def record(name: str, arguments: tuple[str | Path, ...], number: int) -> tuple[demo.Step, str]:
        lines.append(tuple(map(str, arguments)))
        if name == "eval overall":
            row = {"all": {"n": 5, "hit@1": [0.5, 0.4, 0.6]}, "cold": {"n": 2, "hit@1": [0.25, 0.1, 0.4]}}
            body = {"schema": 1, "data": DATA, "runs": RUNS, "systems": {"SASRec": row}}
            body["times"] = {"systems": {"SASRec": 1.5}}
            (tmp_path / "out" / "results.json").write_text(json.dumps(body))
        if name == "train stage1":  # finished now, by a clock that went back an hour meanwhile
            finish(runs / "run-of-train stage1")
        return demo.Step(name, 2.0, 100.0 * number), str(runs / f"run-of-{name}")

    def finish(run: Path) -> None:
        run.mkdir(parents=True)
        (run / "DONE").touch()
        os.utime(run / "DONE", times=(0, time.time() - 3600))

    runs = tmp_path / "checkpoints" / "D" / "kind"
    finish(runs / "run-of-train cf")

    monkeypatch.setattr(demo, "run_step", record)
    words = ["--out", str(tmp_path / "out"), "--checkpoints", str(tmp_path / "checkpoints")]
    told = CliRunner().invoke(demo_command, [*words, "--data-seed", "7", "--seed", "3"])
    assert told.exit_code == 0, (told.output, told.exception)
    assert "0.500 (0.40 to 0.60)" in told.output
    assert "run-of-report" in told.output
    return lines


def test_every_step_is_a_command_with_these_options(recorded: list[tuple[str, ...]]):
    for line in recorded:
        command: click.Command = allmrec
        context = click.Context(command)
        rest = list(line)
        while isinstance(command, click.Group):
            found = command.get_command(context, rest.pop(0))
            assert found is not None, line
            command = found
        command.make_context(line[0], rest)  # raises on an unknown option or a bad value


def test_each_stage_gets_what_the_one_before_it_printed(recorded: list[tuple[str, ...]], tmp_path: Path):
    lines = [" ".join(line) for line in recorded]
    assert "--seed 7" in lines[0]
    assert f"--cf {tmp_path / 'checkpoints/D/kind/run-of-train cf'}" in lines[3]
    assert f"--stage1 {tmp_path / 'checkpoints/D/kind/run-of-train stage1'}" in lines[4]
    assert "run-of-train stage2" in lines[5]
    assert all("--seed 3" in line for line in lines[2:6])
    assert all("--resume" in line for line in lines[2:5])


def test_steps_stand_in_the_results_beside_what_was_there(recorded: list[tuple[str, ...]], tmp_path: Path):
    times = json.loads((tmp_path / "out" / "results.json").read_text())["times"]
    assert times["systems"]["SASRec"] == 1.5
    assert [step["name"] for step in times["steps"]][:3] == ["synthesize", "prepare", "train cf, trained before"]
    assert times["steps"][3]["name"] == "train stage1"
    assert times["steps"][1]["peak_mib"] == 200
