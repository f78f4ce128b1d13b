"""Tables from the plan to the pages: what is trained, asked and written."""

import functools
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from tiny_place import ASKED, USERS, arguments, write

import allmrec_jax as ar
from allmrec_jax import cli
from allmrec_jax.errors import UserError
from allmrec_jax.evaluation.results import read_users
from allmrec_jax.experiments import make
from allmrec_jax.experiments.make import Options, Publisher
from allmrec_jax.experiments.rows import known_rows
from allmrec_jax.experiments.tables import TABLES
from allmrec_jax.fileio import file_lock
from allmrec_jax.registry import Registry
from allmrec_jax.runs import load_run

pytest_plugins = "tiny_fixtures"
pytestmark = pytest.mark.usefixtures("in_this_process")


def some_tables(*names):
    return Registry("table", [TABLES[name] for name in names])


def test_a_table_from_nothing_and_again(place, in_this_process, capsys):
    chosen = ["Popularity", *ASKED]
    more = [word for name in chosen for word in ("--systems", name.lower())]
    more += ["--seeds", "2", "--llm-seeds", "1", "--llm-users", "12", "--no-generate"]
    cli.main(arguments(place, *more))
    assert capsys.readouterr().out.splitlines()[-1] == str(place / "out")
    kinds = [name.split(" ")[0] for name in in_this_process.trained]
    assert kinds == ["cf", "cf", "tallrec", "mlp-llm", "stage1", "stage2"], "each training once, in order"

    results = json.loads((place / "out" / "results.json").read_text())
    assert list(results["systems"]) == chosen
    assert results["systems"]["SASRec"]["all"]["n"] == USERS and results["systems"]["A-LLMRec"]["all"]["n"] == 12
    assert {f"{name} - SASRec" for name in chosen if name != "SASRec"} <= set(results["paired"])
    assert set(results["tests"]) == set(results["paired"]) >= {"A-LLMRec - MLP-LLM", "A-LLMRec (SBERT) - A-LLMRec"}
    assert [run["seed"] for run in results["runs"] if run["system"] == "SASRec"] == [0, 1]
    checkpoints = place / "checkpoints" / "Tiny"
    for run in results["runs"]:
        for node in run["trainings"]:
            about = load_run(checkpoints / node["kind"] / node["identity"][:12])
            assert about["identity"] == node["identity"] and about["seed"] == node["seed"]
            assert node["seconds"] == 2.0 and node["steps"] == 2
    users = read_users(place / "out")
    few = set(users.filter(users["system"] == "A-LLMRec")["user"])
    assert len(few) == 12 and few < set(users.filter(users["system"] == "SASRec")["user"])

    page = (place / "out" / "table1.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("| SASRec |"))
    assert line.split(" | ")[1] == "40 (2 seeds)"
    assert "**MLP-LLM**: cf " in page and "2 steps of batch 32, 2 s" in page
    assert "A-LLMRec (SBERT)" in (place / "out" / "report.html").read_text()

    # Again: nothing is trained, nothing is asked, the numbers are the same.
    asked = ["SASRec", *ASKED]  # that one at two seeds
    assert in_this_process.asked == asked
    del in_this_process.trained[:]
    before = (place / "out" / "results.json").read_text()
    cli.main(arguments(place, *more))
    again = json.loads((place / "out" / "results.json").read_text())
    assert in_this_process.trained == [] and in_this_process.asked == asked
    assert again == json.loads(before)

    # A run half written is recognised and done again: unfinished, without its export, or with half a run.json.
    node = next(node for node in results["runs"][-1]["trainings"] if node["kind"] == "stage2")
    run = checkpoints / "stage2" / node["identity"][:12]
    for harm in (
        (run / "DONE").unlink,
        (run / "export" / "weights").unlink,
        lambda: (run / "run.json").write_text('{"kind": "sta'),
    ):
        harm()
        del in_this_process.trained[:]
        cli.main(arguments(place, *more))
        assert [name.split(" ")[0] for name in in_this_process.trained] == ["stage2"]
        assert load_run(run)["identity"] == node["identity"]


def test_a_dry_run_trains_nothing_and_says_what_is_there(place, in_this_process, caplog):
    with caplog.at_level("INFO", logger="allmrec_jax"):
        told = CliRunner().invoke(cli.allmrec, arguments(place, "--dry-run", out="dry"))
    assert told.exit_code == 0 and not told.output, told.output
    lines = caplog.messages[-1].splitlines()
    assert not in_this_process.trained and not (place / "dry").exists()
    assert sum("tallrec-yes-no/" in line for line in lines) == 1
    names = [name for name in known_rows() if name != "RECFORMER"]  # preset small has the tiny one, and cuts rows
    assert lines[-1].startswith(f"{len(names)} rows; about ")
    # Estimated by what such runs took here, where there were any.
    assert any("to train, about" in line for line in lines)
    assert lines[-1].split("; ")[2].startswith(f"{len(names)} answers")


def test_what_cannot_be_served_is_said_before_anything_trains(place, tmp_path, in_this_process, capsys):
    write(tmp_path / "data", titled=False)
    for words, message in (
        (["--data", str(tmp_path / "data")], "no item has a title, and LLM-Only needs them"),
        (["--llm", str(tmp_path / "absent")], "not a directory"),
        (["--sentence-encoder", str(tmp_path / "absent")], "not a directory"),
    ):
        with pytest.raises(SystemExit):
            cli.main(arguments(place, *words, "--systems", "A-LLMRec", "--systems", "LLM-Only", out="never"))
        error = capsys.readouterr().err
        assert message in error.replace("A-LLMRec needs", "LLM-Only needs") and error.count("\n") == 1
    assert not in_this_process.trained and not (place / "never").exists()


def test_all_goes_on_where_a_table_cannot_be_made(place, capsys, monkeypatch):
    monkeypatch.setattr(make, "TABLES", some_tables("table4", "table6", "table9"))
    words = [word.replace("table1", "all") for word in arguments(place, "--no-generate", out="all")]
    with pytest.raises(SystemExit):
        cli.main([*words, "--systems", "SASRec", "--systems", "Popularity"])
    error = capsys.readouterr().err
    assert "1 of 3 tables were not made; table6: " in error and "256 users are to be trained on" in error
    told = json.loads((place / "all" / "tables.json").read_text())
    assert told["made"] == ["table4", "table9"] and set(told["not_made"]) == {"table6"}
    assert "256 users are to be trained on" in (place / "all" / "report" / "index.html").read_text()
    assert (place / "all" / "table9" / "table9.md").is_file()


def test_all_asks_for_a_model_once_whether_it_is_there_or_not(place, monkeypatch, capsys):
    asked = []

    def llm_hash(name):
        asked.append(name)
        raise UserError(f"{name}: the hub can't be reached")

    monkeypatch.setattr("allmrec_jax.pretrained.llm.llm_hash", llm_hash)
    monkeypatch.setattr(make, "TABLES", some_tables("table1", "table4", "table9"))
    words = [word.replace("table1", "all") for word in arguments(place, "--llm", "far/away", "--dry-run", out="far")]
    with pytest.raises(SystemExit):
        cli.main([*words, "--systems", "A-LLMRec"])
    assert "3 of 3 tables were not made; table1: far/away: the hub can't be reached" in capsys.readouterr().err
    assert asked == ["far/away"]


def test_everything_is_trained_before_anything_is_asked_under_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def table(name: str) -> SimpleNamespace:
        def step(what: str) -> None:
            for other in ("one", "two"):  # nobody else comes in between
                with pytest.raises(UserError, match="in use by process"), file_lock(tmp_path / other / ".lock"):
                    pass
            done.append(f"{what} {name}")

        train = functools.partial(step, "train")
        return SimpleNamespace(title=name, out=tmp_path / name, train=train, ask=lambda publisher: step("ask"))

    monkeypatch.setattr(make, "only_planned", lambda options, tables: None)
    monkeypatch.setattr(make, "plan_tables", lambda options, name: [table("one"), table("two")])
    written = make.make_tables(Options(tmp_path), "both", Publisher(print, print))
    assert written == [tmp_path / "one", tmp_path / "two"]
    assert done == ["train one", "train two", "ask one", "ask two"]
    with file_lock(tmp_path / "one" / ".lock"):
        pass


def test_an_experiment_leaves_the_memory_of_a_gpu_to_its_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    monkeypatch.setenv(name, "")
    monkeypatch.delenv(name)

    told: list[str | None] = []
    monkeypatch.setattr(make, "make_tables", lambda *given, **own: told.append(os.environ.get(name)))
    ar.make_table("table1", "x")
    assert told == ["false"]
