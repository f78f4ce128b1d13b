"""The table programs: the plan, what is trained and what is not, the answers, the tables. Everything is tiny."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny_llm
from click.testing import CliRunner

from allmrec_jax import cli
from allmrec_jax.data.dataset import load_dataset, write_dataset
from allmrec_jax.errors import UserError
from allmrec_jax.evaluation.results import Outcome, read_users
from allmrec_jax.evaluation.systems import SYSTEMS
from allmrec_jax.experiments import experiment
from allmrec_jax.experiments.experiment import (
    BEGINNING,
    COST,
    Workplace,
    changed,
    parse_changes,
    plan,
    run_command,
    show_plan,
)
from allmrec_jax.experiments.rows import (
    REDUCED,
    REDUCED_ROW,
    STAGE1_ABLATIONS,
    STAGE2_ABLATIONS,
    Recipes,
    at_seeds,
    choose,
    known_systems,
)
from allmrec_jax.fileio import held
from allmrec_jax.models.llm.opt import OPTConfig
from allmrec_jax.runs import START_OVER, Run, load_run
from allmrec_jax.trained.kinds import KINDS

USERS, ITEMS = 40, 44
SMALL = ["cf.epochs=2", "cf.dim=8", "cf.max_length=8", "stage1.freeze_encoder=true", "stage2.steps=2"]
ASKED = ["SASRec", "LLM-Only", "TALLRec (yes-no)", "MLP-LLM", "A-LLMRec", "A-LLMRec (SBERT)"]


def write(path, titled=True):
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 9, USERS)
    words = ("Red", "Moon", "Fox", "It", "Ghost Ship", "Deep", "Blue Whale", "Saddle", "Spur", "Ship", "Is")
    return write_dataset(
        path,
        name="Tiny",
        items=np.concatenate([rng.permutation(np.arange(1, ITEMS + 1))[:length] for length in lengths]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        titles=[f"{word} {number}" if titled else "No Title" for number in range(4) for word in words],
        descriptions=[""] * ITEMS,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    write(root / "data")
    (root / "llm").mkdir()
    tiny_llm.tokenizer().save_pretrained(root / "llm")
    (root / "llm" / "config.json").write_text(json.dumps(OPTConfig().to_dict()))
    (root / "llm" / "model.safetensors").write_text("{}")  # its hash is all that is asked for
    return root


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Every training is its real command, here and not in a process of its own, up to its run, which is then done."""
    ran, opened = [], Run.open

    def run(arguments, name, lock):
        ran.append(name)
        cli.main(list(arguments))
        return {"seconds": 2.0, "peak_mib": 100}

    def finished(*args, **kwargs):
        run = opened(*args, **kwargs)
        if not run.done:
            (run.path / "metrics.jsonl").write_text('{"step": 2, "loss": 1.0}\n')
            run.export_path("weights").write_text("")
            run.finish({})
        return run

    def answer(sources, questions, name, advance):
        advance(len(questions.candidates.users))
        asked.append(name)
        rng = np.random.default_rng(len(name))
        return Outcome(name, rng.random(questions.candidates.candidates.shape))

    asked = []
    monkeypatch.setattr(experiment, "run_command", run)
    monkeypatch.setattr(Run, "open", staticmethod(finished))
    monkeypatch.setattr("allmrec_jax.training.stage2.load_stage1", lambda path: None)
    for stage in ("stage1", "stage2"):
        cf = f"allmrec_jax.training.{stage}.load_cf"
        monkeypatch.setattr(cf, lambda path, dataset: SimpleNamespace(identity=load_run(path)["identity"]))
    for name in ASKED:
        monkeypatch.setitem(SYSTEMS, name, dataclasses.replace(SYSTEMS[name], answer=answer))
    with jax.numpy_dtype_promotion("standard"):
        yield SimpleNamespace(trained=ran, asked=asked)


def arguments(place, *more, out="out", changes=SMALL):
    words = ["experiment", "table1", "--data", place / "data", "--checkpoints", place / "checkpoints"]
    words += ["--llm", place / "llm", "--out", place / out, *(word for line in changes for word in ("--set", line))]
    return [str(word) for word in (*words, *more)]


def workplace(place):
    models = {"llm": str(place / "llm"), "encoder": "sbert-nano", "longformer": "absent"}
    return Workplace(load_dataset(place / "data"), place / "other", models)


def recipes(preset="small", **given):
    return Recipes(preset, given)


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


def test_a_dry_run_trains_nothing_and_says_what_is_there(place, in_this_process):
    told = CliRunner().invoke(cli.allmrec, arguments(place, "--dry-run", out="dry"))
    assert told.exit_code == 0, told.output
    lines = told.stderr.splitlines()
    assert not in_this_process.trained and not (place / "dry").exists()
    assert sum("tallrec-yes-no/" in line for line in lines) == 1
    names = [name for name in known_systems() if name != "RECFORMER"]  # preset small has the tiny one, and cuts rows
    assert lines[-1].startswith(f"{len(names)} rows; about ")
    # Estimated by what such runs took here, where there were any.
    assert any("to train, about" in line for line in lines)
    assert lines[-1].split("; ")[2].startswith(f"{len(names)} answers")


def test_the_plan_has_each_training_once_and_upstream_first():
    rows = at_seeds(recipes(), known_systems(), 2, 1)
    nodes = plan(rows)
    assert len(nodes) == len(set(nodes))
    for node in nodes:
        assert all(nodes.index(other) < nodes.index(node) for other in node.upstream)
    assert sum(node.kind == "cf" for node in nodes) == 8  # four models at two seeds
    # Three more backbones and A-LLMRec at the reduced budget, A-LLMRec and A-LLMRec_all at the whole one.
    assert sum(node.kind == "stage2" for node in nodes) == 6
    everything = next(row for row in rows if row.name == "A-LLMRec_all")
    assert {node.settings.positions for node in everything.nodes() if node.kind != "cf"} == {"all"}
    paper = recipes("paper").row("A-LLMRec", 0).trainings[-1]
    assert paper.changes == () and paper.settings.positions == "last"
    assert recipes("paper").row("A-LLMRec_all", 0).trainings[-1].changes == (("positions", "all"),)


def test_ablations_differ_from_a_llmrec_in_what_they_leave_out():
    small, paper = recipes(), recipes("paper")
    for name, own in STAGE1_ABLATIONS.items():
        row = paper.row(name, 0)
        stage1 = row.trainings[1]
        assert dict(stage1.changes) == own and row.trainings[-1].changes == ()
    whole = small.row("A-LLMRec", 0).trainings[-1].settings
    for name, own in STAGE2_ABLATIONS.items():
        assert small.row(name, 0).trainings[-1].settings == dataclasses.replace(whole, **own)
        changes = {key: value for key, value in own.items() if key != "text_share"}  # 0 in preset paper anyway
        assert dict(paper.row(name, 0).trainings[-1].changes) == changes


def test_reduced_rows_have_an_equally_cut_a_llmrec_beside_them():
    small = recipes(stage2={"style": "movies"})
    own = small.row(REDUCED_ROW, 0).trainings
    whole = small.row("A-LLMRec", 0).trainings
    assert (own[1].settings.epochs, own[2].settings.steps) < (whole[1].settings.epochs, whole[2].settings.steps)
    assert own[2].settings.style == "movies"
    ncf = small.row("A-LLMRec (NCF)", 0).trainings
    assert [node.settings for node in ncf[1:]] == [node.settings for node in own[1:]]
    assert small.at(REDUCED).row("A-LLMRec", 0).trainings == own == small.row("A-LLMRec (SASRec)", 0).trainings
    assert small.at(REDUCED).row("w/o L_rec", 0).trainings[2].settings == own[2].settings
    # What the user sets holds, and there may be no cut at all.
    assert recipes(stage2={"steps": 7}).row(REDUCED_ROW, 0).trainings[2].settings.steps == 7
    assert Recipes("small", {}, whole=True).row(REDUCED_ROW, 0).trainings == recipes().row("A-LLMRec", 0).trainings
    assert recipes("paper").row(REDUCED_ROW, 0).trainings == recipes("paper").row("A-LLMRec", 0).trainings


def test_planned_identities_are_those_of_the_runs_and_follow_every_change(place):
    work = Workplace(
        load_dataset(place / "data"), place / "other", {"llm": str(place / "llm"), "encoder": "sbert-nano"}
    )
    row = recipes().row("A-LLMRec", 0)
    names = {work.identity(node) for node in row.nodes()}
    changes = [
        recipes(cf={"dim": 9}),
        recipes(stage1={"alpha": 0.1}),
        recipes(stage2={"epochs": 7}),
    ]
    moved = [len(names - {work.identity(node) for node in each.row("A-LLMRec", 0).nodes()}) for each in changes]
    assert moved == [3, 2, 1], "a change moves the training and all that is built on it"
    assert "--cf" in work.command(row.trainings[-1]) and "to train" in show_plan([(work, [row], None)])


def test_estimates_follow_what_such_runs_took_here_before(place, tmp_path):
    data = load_dataset(place / "data")
    work = Workplace(data, tmp_path, {"llm": str(place / "llm"), "encoder": "sbert-nano"})
    node = recipes().row("SASRec", 0).trainings[0]
    units = work.units(node)

    def ran(dataset, run, seconds):
        path = tmp_path / dataset / "cf" / run / COST
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"seconds": seconds, "units": units, "model": "sasrec"}))

    assert work.estimate(node) == BEGINNING + KINDS["cf"].seconds_per_unit["sasrec"] * units
    ran("other", "a", 500)
    assert work.estimate(node) == pytest.approx(500)
    for run, seconds in (("b", 100), ("c", 120), ("d", 900)):  # the last one beside other work
        ran(data.name, run, seconds)
    assert work.estimate(node) == pytest.approx(120)


def test_every_kind_has_a_command_that_takes_the_planned_options(place):
    work = Workplace(
        load_dataset(place / "data"), place / "other", {"llm": str(place / "llm"), "encoder": "sbert-nano"}
    )
    given = {kind: {"learning_rate": 0.5} for kind in KINDS}
    names = [name for name in known_systems() if name != "RECFORMER"]  # there is no Longformer here
    for node in plan(at_seeds(recipes(**given), names, 1, 1)):
        words = work.command(node)
        command = cli.train.get_command(None, words[1])
        command.make_context(words[1], words[2:])  # raises on an unknown option or a bad value
        assert node.settings.learning_rate == 0.5


def test_changes_are_parsed_and_bad_ones_named():
    parsed = parse_changes(["cf.epochs=3", "stage2.schedule=cosine", "stage2.user_vector=false", "cf.dropout=0.25"])
    assert parsed == {"cf": {"epochs": 3, "dropout": 0.25}, "stage2": {"schedule": "cosine", "user_vector": False}}
    for line, message in (
        ("epochs=3", "KIND.SETTING=VALUE"),
        ("stage3.epochs=3", "KIND.SETTING=VALUE"),
        ("cf.speed=3", "no setting 'speed'"),
        ("cf.epochs=many", "a int is expected"),
        ("stage2.schedule=steep", "one of constant, cosine"),
        ("stage2.user_vector=1", "true or false"),
    ):
        with pytest.raises(UserError, match=message):
            parse_changes([line])
    assert changed("stage2", "small", {"epochs": 9, "batch_size": 32}) == (("epochs", 9),)
    assert changed("cf", "small", {"blocks": 1}, model="gru4rec") == (("model", "gru4rec"),)
    assert changed("stage1", "paper", {"positions": "last"}, positions="all") == (("positions", "all"),)


def test_unknown_systems_are_named_with_the_known_ones():
    with pytest.raises(UserError, match=r"unknown system 'BERT4Rec'; known: Popularity; NCF.*A-LLMRec \(GRU4Rec\)"):
        choose(known_systems(), ["BERT4Rec"])
    assert choose(["SASRec"], []) == ["SASRec"]
    assert choose(["SASRec"], ["a-llmrec", "sasrec"]) == ["SASRec", "A-LLMRec"]


def test_what_cannot_be_served_is_said_before_anything_trains(place, tmp_path, in_this_process, capsys):
    write(tmp_path / "data", titled=False)
    for words, message in (
        (["--data", str(tmp_path / "data")], "no item has a title, and LLM-Only needs them"),
        (["--llm", str(tmp_path / "absent")], "no such LLM directory"),
        (["--sentence-encoder", str(tmp_path / "absent")], "not a directory"),
    ):
        with pytest.raises(SystemExit):
            cli.main(arguments(place, *words, "--systems", "A-LLMRec", "--systems", "LLM-Only", out="never"))
        error = capsys.readouterr().err
        assert message in error.replace("A-LLMRec needs", "LLM-Only needs") and error.count("\n") == 1
    assert not in_this_process.trained and not (place / "never").exists()


def test_a_second_runner_stops_at_the_lock_and_says_who_holds_it(place, tmp_path, capsys):
    with held(place / "locked" / ".lock"):
        program = (
            "import sys; from pathlib import Path; from allmrec_jax.errors import UserError\n"
            "from allmrec_jax.fileio import held\n"
            "try:\n    with held(Path(sys.argv[1])): print('entered')\n"
            "except UserError as error: print(error)"
        )
        told = subprocess.run(
            [sys.executable, "-c", program, str(place / "locked" / ".lock")], capture_output=True, text=True, check=True
        ).stdout
    assert f"locked: in use by process {os.getpid()} on " in told
    with held(place / "locked" / ".lock"):  # released when its holder is gone
        pass


def test_a_training_that_fails_is_named_and_holds_the_lock_itself(tmp_path, monkeypatch):
    with held(tmp_path / "lock") as lock, pytest.raises(UserError, match=r"training stage9 failed \(exit code 2\)"):
        run_command(["train", "nothing"], "stage9", lock)
    started = subprocess.Popen
    children = []

    def outlives(words, **kwargs):
        children.append(started(["sleep", "60"], **kwargs))
        raise KeyboardInterrupt  # as if this process died here

    monkeypatch.setattr(subprocess, "Popen", outlives)
    with pytest.raises(KeyboardInterrupt), held(tmp_path / "lock") as lock:
        run_command([], "stage9", lock)
    with pytest.raises(UserError, match="in use by process"), held(tmp_path / "lock"):
        pass
    children[0].kill()
    children[0].wait()
    with held(tmp_path / "lock"):
        pass


def test_a_training_with_another_identity_than_planned_is_reported(place, monkeypatch):
    monkeypatch.setattr(experiment, "run_command", lambda arguments, name, lock: {"seconds": 1.0, "peak_mib": 1})
    work = Workplace(
        load_dataset(place / "data"), place / "third", {"llm": str(place / "llm"), "encoder": "sbert-nano"}
    )
    row = recipes().row("SASRec", 0)
    with pytest.raises(UserError, match="not what was planned"):
        experiment.run_missing(work, [row])


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

    monkeypatch.setattr(experiment, "run_command", run)
    experiment.run_missing(work, [row])
    assert ran == [True, False] and work.done(row.trainings[0])


def test_levels_and_slurm_arrays_respect_what_builds_on_what(place, tmp_path):
    work = workplace(place)
    rows = at_seeds(recipes(), [name for name in known_systems() if name != "RECFORMER"], 1, 1)
    groups = experiment.levels(plan(rows))
    place_of = {node: number for number, group in enumerate(groups) for node in group}
    assert sorted(place_of, key=str) == sorted(plan(rows), key=str)
    assert all(place_of[other] < place_of[node] for node in place_of for other in node.upstream)
    assert len(groups) == 3

    script = experiment.write_slurm(work, rows, tmp_path / "slurm")
    assert script.read_text().count("sbatch --parsable") == 3
    for number, group in enumerate(groups):
        array = (tmp_path / "slurm" / f"level{number}.sbatch").read_text()
        assert f"--array=0-{len(group) - 1}\n" in array
        lines = [line for line in array.splitlines() if line.endswith(";;")]
        assert [shlex.split(line)[4:-1] for line in lines] == [work.command(node) for node in group]
    for path in (tmp_path / "slurm").iterdir():
        subprocess.run(["sh", "-n", path], check=True)  # reads as a script


def test_after_a_failure_nothing_else_begins(place, monkeypatch):
    begun = []

    def fail(arguments, name, lock):
        begun.append(name)
        raise UserError("no")

    monkeypatch.setattr(experiment, "run_command", fail)
    work = dataclasses.replace(workplace(place), checkpoints=place / "failing")
    with pytest.raises(UserError, match="no"):
        experiment.run_missing(work, at_seeds(recipes(), ["SASRec"], 4, 1))
    assert len(begun) < 4


def test_a_training_begins_as_soon_as_what_it_builds_on_is_there(place, monkeypatch):
    work = dataclasses.replace(workplace(place), checkpoints=place / "at-once")
    rows = at_seeds(recipes(), ["A-LLMRec", "MoRec"], 1, 1)
    last = threading.Event()

    def run(arguments, name, lock):
        if name.startswith("morec"):  # of the first level, and done only after the last
            assert last.wait(60)
        node = next(node for node in plan(rows) if node.name == name)
        assert all(work.done(other) for other in node.upstream)
        path = work.path(node)
        (path / "export").mkdir(parents=True)
        (path / "export" / "x").touch()
        (path / "run.json").write_text(json.dumps({"identity": work.identity(node)}))
        (path / "DONE").touch()
        if name.startswith("stage2"):
            last.set()
        return {"seconds": 1.0, "peak_mib": 100}

    monkeypatch.setattr(experiment, "run_command", run)
    experiment.run_missing(work, rows, jobs=2)
    assert all(work.done(node) for node in plan(rows))


def test_all_goes_on_where_a_table_cannot_be_made(place, capsys, monkeypatch):
    monkeypatch.setattr("allmrec_jax.eval.all.TABLES", ("table4", "table6", "table9"))
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
    monkeypatch.setattr("allmrec_jax.eval.all.TABLES", ("table1", "table4", "table9"))
    words = [word.replace("table1", "all") for word in arguments(place, "--llm", "far/away", "--dry-run", out="far")]
    with pytest.raises(SystemExit):
        cli.main([*words, "--systems", "A-LLMRec"])
    assert "3 of 3 tables were not made; table1: far/away: the hub can't be reached" in capsys.readouterr().err
    assert asked == ["far/away"]


def test_tuning_chooses_on_validation_and_prints_the_best(place, in_this_process, monkeypatch):
    from allmrec_jax.eval import tune

    values = {"0.2": 0.3, "0.5": 0.6, "0.9": 0.1}

    def measured(run_missing):
        def wrapped(work, rows, jobs):
            run_missing(work, rows, jobs)
            for row in rows:  # as a validation would have left it
                alpha = str(row.trainings[1].settings.alpha)
                Run(work.path(row.trainings[-1]), "stage2", "", 0).mark_best(1, {"hit@1": values[alpha]})

        return wrapped

    monkeypatch.setattr(tune, "run_missing", measured(tune.run_missing))
    words = ["experiment", "tune", "--data", place / "data", "--checkpoints", place / "tuned", "--llm", place / "llm"]
    words += ["--grid", "stage1.alpha=0.2,0.5,0.9", "--set", "stage2.steps=2", "--out", place / "tune"]
    told = CliRunner().invoke(cli.allmrec, list(map(str, words)), catch_exceptions=False)
    kinds = [name.split(" ")[0] for name in in_this_process.trained]
    assert kinds == ["cf", *["stage1"] * 3, *["stage2"] * 3]
    lines = [line for line in told.stdout.splitlines() if not line.startswith(str(place))]  # the trainings' own
    assert lines[0] == "0.6000  stage1.alpha=0.5" and lines[-1] == "--set stage1.alpha=0.5"
    points = json.loads((place / "tune" / "tune.json").read_text())["points"]
    assert [point["hit@1"] for point in points] == [0.6, 0.3, 0.1]
    for point in points:
        assert load_run(place / "tuned" / "Tiny" / "stage2" / point["run"])["settings"]["choose"] == "best"
