"""What a training is told by options, ``--set`` lines, a file and a run: which wins, and what a mistake is told."""

import json
from pathlib import Path

import pytest
import yaml

from allmrec_jax import cli
from allmrec_jax.settings import identity
from allmrec_jax.training.stage2_settings import PRESETS


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]):
    """Runs a command with ``--print-config`` and gives what it printed, read again, or its error."""

    def call(*arguments: str | Path) -> dict:
        try:
            cli.main([*map(str, arguments), "--data", "absent", "--print-config"])
        except SystemExit as stopped:
            assert stopped.code == 2
            told = capsys.readouterr().err
            assert told.count("\n") == 1
            return {"error": told}
        return yaml.safe_load(capsys.readouterr().out)

    return call


@pytest.fixture
def file(tmp_path: Path):
    def write(text: str) -> Path:
        (tmp_path / "config.yaml").write_text(text)
        return tmp_path / "config.yaml"

    return write


def test_the_user_wins_over_the_file_and_the_file_over_the_preset(shown, file):
    config = file("preset: paper\nseed: 3\nsteps: 7\nstage2:\n  batch_size: 5\n  learning-rate: 1\n")
    found = shown("train", "stage2", "--config", config, "--set", "batch_size=6", "--seed", "4", "--set", "epochs=2")
    assert (found["preset"], found["seed"], found["llm"]) == ("paper", 4, "facebook/opt-6.7b")
    two = found["stage2"]
    assert (two["steps"], two["batch_size"], two["learning_rate"], two["epochs"]) == (7, 6, 1.0, 2)
    assert shown("train", "stage2", "--set", "steps=3", "--steps", "4")["stage2"]["steps"] == 4
    assert shown("train", "stage2")["preset"] == "small"


def test_what_is_printed_can_be_read_again(shown, file):
    for command in (("train", "cf", "--model", "gru4rec"), ("train", "stage1"), ("fit",), ("train", "tallrec")):
        found = shown(*command, "--seed", "9")
        assert shown(command[0], *command[1:2], "--config", file(yaml.safe_dump(found))) == found


def test_one_file_serves_all_stages(shown, file):
    config = file("model: ncf\ncf: {epochs: 2}\nstage1: {alpha: 0.25}\nstage2: {steps: 3}\n")
    found = shown("fit", "--config", config, "--set", "stage1.beta=0.125")
    assert found["model"] == "ncf" and found["cf"]["epochs"] == 2
    assert (found["stage1"]["alpha"], found["stage1"]["beta"], found["stage2"]["steps"]) == (0.25, 0.125, 3)
    assert shown("train", "stage1", "--config", config)["stage1"]["alpha"] == 0.25


def test_a_run_can_be_repeated_with_its_run_json(shown, tmp_path: Path):
    settings = PRESETS["official"]
    about = {
        "kind": "stage2",
        "identity": identity("stage2", settings, 5, "", {}),
        "settings": dict(vars(settings)),
        "seed": 5,
        "data": {},
        "upstream": {},
    }
    (tmp_path / "run.json").write_text(json.dumps(about))
    found = shown("train", "stage2", "--config", tmp_path / "run.json")
    assert found["seed"] == 5 and PRESETS["official"] == type(settings)(**found["stage2"])
    assert "of a stage2 run; cf is trained here" in shown("train", "cf", "--config", tmp_path / "run.json")["error"]


@pytest.mark.parametrize(
    ("command", "text", "message"),
    [
        ("stage2", "stpes: 3", "config.yaml: unknown key 'stpes'; did you mean 'steps'?"),
        ("stage2", "stage2: {stpes: 3}", "yaml: stage2.stpes: stage2 has no setting 'stpes'; did you mean 'steps'?"),
        ("stage2", "presset: paper", "unknown key 'presset'; did you mean 'preset'?"),
        ("stage2", "preset: papr", "unknown preset 'papr'; known: paper, official, small; did you mean 'paper'?"),
        ("stage2", "steps: many", "config.yaml: steps: a whole number is expected, not 'many'"),
        ("stage2", "steps: [1]", "a whole number is expected, not [1]"),
        ("stage2", "style: {a: 1}", "one of neutral, movies, games, goods is expected"),
        ("stage2", "stage1: 3", "stage1: a mapping of settings is expected, not 3"),
        ("stage2", "- 1", "a mapping of settings is expected, not a list"),
        ("stage2", "a: [", "config.yaml, line 1: not valid YAML"),
        ("stage2", "steps: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("mlp-llm", "item_vectors: joint", "mlp-llm has item_vectors cf; leave it out"),
        ("cf", "model: sasrek", "unknown model 'sasrek'"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_is_one_line(shown, file, command: str, text: str, message: str):
    assert message in shown("train", command, "--config", file(text))["error"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("steps", "--set steps: SETTING=VALUE is expected"),
        ("stpes=3", "--set stpes=3: stage2 has no setting 'stpes'; did you mean 'steps'?"),
        ("cf.epochs=3", "--set cf.epochs=3: 'cf' is not trained here"),
        ("remat=yes", "--set remat=yes: true or false is expected, not 'yes'"),
        ("learning_rate=fast", "--set learning_rate=fast: a number is expected, not 'fast'"),
    ],
)
def test_a_mistake_in_a_line_is_one_line(shown, line: str, message: str):
    assert message in shown("train", "stage2", "--set", line)["error"]


def test_fit_needs_to_know_the_stage(shown, file):
    assert "steps is a setting of stage2; write it" in shown("fit", "--config", file("steps: 3"))["error"]
    either = "--set cf.epochs=3 or stage1.epochs=3"
    assert f"--set epochs=3: write {either}" in shown("fit", "--set", "epochs=3")["error"]
    assert "KIND.SETTING=VALUE" in shown("fit", "--set", "stpes=3")["error"]
    option = "No such option '--learning_rate'; it is a setting: --set cf.learning_rate=… or stage1.learning_rate=…"
    assert option in shown("fit", "--learning_rate=3")["error"]
    assert "models are chosen with --model" in shown("fit", "--set", "cf.model=gru4rec")["error"]


def test_a_missing_file_is_one_line(shown):
    assert "absent.yaml: cannot be read (No such file" in shown("train", "cf", "--config", "absent.yaml")["error"]


@pytest.mark.parametrize("text", ["steps: \x00", "steps: \x1b", f"steps: {'9' * 5000}", "seed: 2020-13-45", "[" * 5000])
def test_yaml_that_cannot_be_is_one_line(shown, file, text):
    error = shown("train", "stage2", "--config", file(text))["error"]
    assert ("not valid YAML" in error or "nested too deeply" in error or "is expected" in error) and len(error) < 500


def test_the_folder_of_runs_has_one_name(shown):
    """Training commands called it ``--out`` once."""
    for kind in ("cf", "stage2", "tallrec"):
        message = shown("train", kind, "--out", "runs")["error"]
        assert "No such option '--out'; the folder of runs is --checkpoints" in message
    assert "--checkpoints" not in shown("train", "cf", "--outt", "runs")["error"]
