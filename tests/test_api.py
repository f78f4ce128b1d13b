"""The Python API as a user meets it; trainings of a step or two are in ``tests/commands``."""

import ast
import importlib
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import allmrec_jax as ar
from allmrec_jax.api.runs import label_run, read_run
from allmrec_jax.api.table import Table
from allmrec_jax.api.training import resolve_settings
from allmrec_jax.records import LABEL
from allmrec_jax.runs import Run
from allmrec_jax.trained.kinds import KINDS
from allmrec_jax.training.stage2_settings import PRESETS


def test_importing_it_imports_nothing_heavy():
    script = (
        "import sys, allmrec_jax as ar; ar.list_runs; ar.TrainedRun; ar.load; ar.UserError; ar.__version__;"
        "heavy = {'jax', 'torch', 'polars', 'click', 'rich', 'transformers'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_name_is_there_and_described():
    assert ar.__version__ == version("allmrec-jax")
    assert set(ar.__all__) <= set(dir(ar))
    for name in ar.__all__:
        thing = getattr(ar, name)
        assert name == "__version__" or (thing.__doc__ or "").strip(), f"{name} has no docstring"
    with pytest.raises(AttributeError, match="colour"):
        ar.colour  # noqa: B018


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("stage2", {"step": 3}, "no setting 'step'; did you mean 'steps'?"),
        ("stage2", {"steps": "many"}, "setting steps: a whole number is expected, not 'many'"),
        ("stage2", {"steps": 1.5}, "a whole number is expected, not 1.5"),
        ("stage2", {"remat": 1}, "true or false is expected, not 1"),
        ("stage2", {"style": "movie"}, "'movie'; did you mean 'movies'?"),
        ("mlp-llm", {"item_vectors": "joint"}, "mlp-llm has item_vectors cf; leave it out"),
        ("cf", {"learning_rat": 1}, "did you mean 'learning_rate'?"),
    ],
)
def test_a_wrong_setting_is_one_line(kind: str, given: dict, message: str):
    with pytest.raises(ar.UserError) as error:
        resolve_settings(KINDS[kind], "small", given)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"epochs": 3}, "epochs is a setting of cf and stage1 and stage2; write settings={'cf': {'epochs': 3}} or "),
        ({"warm_start_steps": 9}, "is a setting of stage2; write settings={'stage2': {'warm_start_steps': 9}}"),
        ({"epoch": 3}, "fit has no argument 'epoch'; did you mean 'epochs'?"),
        ({"nmae": "first"}, "fit has no argument 'nmae'; did you mean 'name'?"),
    ],
)
def test_fit_says_where_a_setting_belongs(argument: dict, message: str):
    with pytest.raises(ar.UserError, match=re.escape(message)):
        ar.fit("absent", **argument)


def test_a_whole_number_means_the_same_as_a_fraction():
    """Or else the same training would have two identities."""
    found = resolve_settings(KINDS["stage2"], "small", {"learning_rate": 1, "text_share": "0.5"})
    assert (found.learning_rate, found.text_share) == (1.0, 0.5) and isinstance(found.learning_rate, float)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "stage3"}, "unknown kind of training 'stage3'"),
        ({"kind": "cf", "model": "sasrek"}, "unknown model 'sasrek'; known: .*did you mean 'sasrec'"),
        ({"kind": "cf", "llm": "opt-nano"}, "cf reads no llm; leave --llm out"),
        ({"kind": "morec", "cf": "x"}, "morec is not built on a cf run; leave --cf out"),
        ({"kind": "stage1", "model": "ncf"}, "stage1 has no models to choose from"),
    ],
)
def test_what_a_kind_does_not_take_is_refused_before_data_are_read(arguments: dict, message: str):
    with pytest.raises(ar.UserError, match=message):
        ar.train_model(data="absent", **arguments)


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Run]:
    """Two CF runs of data set D, one of E, and a stage-2 run built on the first."""
    settings = PRESETS["small"]
    made = {}
    for name, data, seed in (("one", "D", 0), ("two", "D", 1), ("other", "E", 0)):
        made[name] = Run.open(tmp_path, data, "cf", settings, seed, f"hash {data}", {})
    upstream = {"cf": made["one"].identity, "llm": "abc"}
    made["top"] = Run.open(tmp_path, "D", "stage2", settings, 0, "hash D", upstream)
    for run in made.values():
        run.mark_best(3, {"hit@1": 0.25, "loss": 1.0})
        run.finish({})
        label_run(read_run(run.path), tmp_path, data=tmp_path / "data")
    return made


def test_runs_are_listed_with_what_they_were_built_on(tmp_path: Path, runs: dict[str, Run]):
    label_run(read_run(runs["one"].path), tmp_path, data=tmp_path / "data", name="first")
    rows = {row["run"]: row for row in ar.list_runs(tmp_path).records()}
    assert len(rows) == 4
    top = rows[runs["top"].path.name]
    assert (top["kind"], top["built on"], top["validation"]) == ("stage2", "first", "hit@1 0.250")
    assert [run.path for run in ar.list_runs(tmp_path, data="E")] == [runs["other"].path]
    assert [run.path for run in ar.list_runs(tmp_path, kind="stage2")] == [runs["top"].path]
    assert "first" in ar.list_runs(tmp_path)._repr_html_()
    assert ar.list_runs(tmp_path).to_polars().height == 4


def test_a_run_is_found_by_name_and_by_identity(tmp_path: Path, runs: dict[str, Run]):
    label_run(read_run(runs["one"].path), tmp_path, data=tmp_path, name="first")
    identity = read_run(runs["one"].path).identity
    assert ar.find_run("first", tmp_path) == ar.find_run(identity[:6], tmp_path) == runs["one"].path
    assert read_run(runs["one"].path).identity == identity, "a name is no part of it"
    with pytest.raises(ar.UserError, match=r"no run of that name .*; did you mean 'first'"):
        ar.find_run("frist", tmp_path)
    label_run(read_run(runs["two"].path), tmp_path, data=tmp_path, name="first")
    assert ar.find_run("first", tmp_path) == runs["two"].path, "a name moves on to the newest of its kind"
    label_run(read_run(runs["other"].path), tmp_path, data=tmp_path, name="first")
    with pytest.raises(ar.UserError, match="first is the name of several runs"):
        ar.find_run("first", tmp_path)


def test_a_run_that_others_need_is_kept(tmp_path: Path, runs: dict[str, Run]):
    one = read_run(runs["one"].path)
    with pytest.raises(ar.UserError, match="was built on it"):
        ar.remove_run(one, tmp_path)
    ar.remove_run(read_run(runs["top"].path), tmp_path)
    ar.remove_run(one, tmp_path)
    assert not one.path.exists()


def test_only_the_directory_of_a_run_is_removed(tmp_path: Path, runs: dict[str, Run]):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "run.json").write_bytes((runs["two"].path / "run.json").read_bytes())
    with pytest.raises(ar.UserError, match="remove this one yourself"):
        ar.remove_run(read_run(precious), tmp_path)
    assert precious.is_dir()


def test_runs_are_compared_by_what_differs(tmp_path: Path, runs: dict[str, Run]):
    rows = {row[""]: row for row in ar.compare_runs([read_run(runs[name].path) for name in ("one", "two")]).records()}
    assert set(rows) == {"seed", "valid hit@1", "valid loss"}
    assert list(rows["seed"].values())[1:] == ["0", "1"]


def test_a_damaged_label_does_not_hide_a_run(tmp_path: Path, runs: dict[str, Run]):
    (runs["one"].path / LABEL).write_text("{")
    assert len(ar.list_runs(tmp_path)) == 4


def test_a_table_shows_no_escape_sequences_and_no_html():
    class Words(Table[str]):
        def record(self, row: str) -> dict:
            return {"word": row}

    shown = Words(["\x1b[2J<b>"])
    assert "\x1b" not in repr(shown) and "&lt;b&gt;" in shown._repr_html_()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("table12", {}, "table12"),
        ("table1", {"seed": 3}, "table1 has no option 'seed'; did you mean 'seeds'?"),
        ("table1", {"target": "x"}, "table1 has no option 'target'"),
        ("table7", {"targets": "x"}, "did you mean 'target'?"),
    ],
)
def test_a_wrong_table_or_option_is_one_line(name: str, options: dict, message: str, tmp_path: Path):
    with pytest.raises(ar.UserError) as error:
        ar.make_table(name, tmp_path, **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_editors_and_type_checkers_see_the_names_that_are_there():
    """The imports under TYPE_CHECKING, which never run, name the same things at the same places."""
    tree = ast.parse(Path(ar.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    told = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert told.keys() == set(ar.__all__) - {"__version__"}
    for name, module in told.items():
        assert getattr(importlib.import_module(str(module)), name) is getattr(ar, name)
