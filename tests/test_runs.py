import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allmrec_jax.errors import UserError
from allmrec_jax.runs import Run, find_upstream, load_run, machine, require_upstream, run_settings, verify_export
from allmrec_jax.settings import identity, setting

HASH = "0123456789abcdef" * 4


@dataclasses.dataclass(frozen=True)
class Settings:
    learning_rate: float = 1e-3
    layers: tuple[int, ...] = (64, 32)


def open_run(root, *, kind="cf", settings=None, seed=0, data_hash=HASH, upstream=None, resume=False):
    return Run.open(root, "movies", kind, settings or Settings(), seed, data_hash, upstream or {}, resume=resume)


def state_of(value):
    return {
        "params": {"kernel": jnp.full((2, 3), value, jnp.float32), "half": jnp.full(3, value, jnp.bfloat16)},
        "opt": (jnp.int32(value), ()),
        "key": jax.random.key(value),
    }


def abstract_state():
    return jax.eval_shape(lambda: state_of(0))


def test_run_json_says_what_the_run_is(tmp_path):
    run = open_run(tmp_path, kind="stage1", seed=3, upstream={"cf": "f" * 64})
    about = json.loads((run.path / "run.json").read_text())
    assert run.path == tmp_path / "movies" / "stage1" / run.identity[:12]
    assert about["identity"] == run.identity and about["seed"] == 3 and about["kind"] == "stage1"
    assert about["settings"] == {"learning_rate": 1e-3, "layers": [64, 32]}
    assert about["data"] == {"name": "movies", "hash": HASH} and about["upstream"] == {"cf": "f" * 64}
    assert about["versions"]["jax"] == jax.__version__
    assert about["machine"] == machine()


def test_the_machine_is_the_one_that_linux_describes():
    found = machine()
    assert f": {found['processor']}\n" in Path("/proc/cpuinfo").read_text()
    assert found["cores"] == len(os.sched_getaffinity(0)) and found["platform"].startswith("Linux")
    assert "accelerator" not in found  # the tests' eight devices are of the CPU


def test_an_added_setting_leaves_the_runs_made_before_it_where_they_were():
    @dataclasses.dataclass(frozen=True)
    class Before:
        rate: float = setting(0.1, "…")

    @dataclasses.dataclass(frozen=True)
    class After(Before):
        depth: int = setting(1, "…", added=True)

    @dataclasses.dataclass(frozen=True)
    class Careless(Before):
        depth: int = setting(1, "…")

    def named(settings):
        return identity("cf", settings, 0, "data", {})

    assert named(After()) == named(Before()) != named(Careless())
    assert named(After(depth=2)) not in (named(After()), named(After(depth=3)))


@pytest.mark.parametrize(
    "change",
    [
        {"settings": Settings(learning_rate=2e-3)},
        {"seed": 1},
        {"data_hash": "e" * 64},
        {"upstream": {"cf": "a" * 64}},
        {"kind": "stage1"},
    ],
)
def test_whatever_decides_the_numbers_changes_the_identity(tmp_path, change):
    assert open_run(tmp_path).identity == open_run(tmp_path / "elsewhere").identity
    assert open_run(tmp_path, **change).identity != open_run(tmp_path).identity


def test_a_state_comes_back_bit_for_bit(tmp_path):
    run = open_run(tmp_path)
    run.save(5, state_of(3), {"stale": 2})
    back = run.restore(abstract_state())
    assert str(jax.tree.structure(back)) == str(jax.tree.structure(state_of(3)))
    np.testing.assert_array_equal(jax.random.key_data(back["key"]), jax.random.key_data(jax.random.key(3)))
    assert back["params"]["half"].dtype == jnp.bfloat16 and back["opt"][0].dtype == jnp.int32
    np.testing.assert_array_equal(back["params"]["kernel"], np.full((2, 3), 3, np.float32))
    assert run.progress(5, dict[str, int]) == {"stale": 2}


def test_a_relative_checkpoints_directory_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = open_run("checkpoints")
    run.save(1, state_of(3))
    assert int(run.restore(abstract_state())["opt"][0]) == 3


def test_the_last_two_and_the_best_are_kept(tmp_path):
    run = open_run(tmp_path)
    for step in (10, 20, 30, 40):
        run.save(step, state_of(step))
        if step == 10:
            run.mark_best(10, {"hit@1": 0.5})
    assert run.steps() == [10, 30, 40] and run.latest_step() == 40 and run.best_step() == 10
    assert int(run.restore(abstract_state(), 10)["opt"][0]) == 10


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine")
def test_restoring_what_does_not_fit_names_the_checkpoint(tmp_path):
    run = open_run(tmp_path)
    with pytest.raises(UserError, match="no checkpoint to restore"):
        run.restore(abstract_state())
    run.save(1, state_of(1))
    with pytest.raises(UserError, match="no checkpoint of step 2"):
        run.restore(abstract_state(), 2)
    wrong = abstract_state() | {"opt": (jax.ShapeDtypeStruct((7,), jnp.int32), ())}
    with pytest.raises(UserError, match=r"steps/1: damaged, or written by another version"):
        run.restore(wrong)


def test_without_resume_an_unfinished_run_starts_over(tmp_path):
    run = open_run(tmp_path)
    run.save(1, state_of(1))
    run.mark_best(1, {})
    run.export_path("items.npy").write_bytes(b"half")
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert open_run(tmp_path, resume=True).latest_step() == 1
    again = open_run(tmp_path)
    assert again.latest_step() is None and again.best_step() is None
    assert sorted(path.name for path in again.path.iterdir()) == [".lock", "run.json"]


def test_a_finished_run_is_left_alone(tmp_path):
    run = open_run(tmp_path)
    assert not run.done
    run.save(1, state_of(1))
    run.finish({"hit@1": 0.4})
    again = open_run(tmp_path)
    assert again.done and again.latest_step() == 1


def test_load_run_wants_a_finished_run(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: not a training run"):
        load_run(tmp_path / "nowhere")
    run = open_run(tmp_path)
    with pytest.raises(UserError, match=f"{run.identity[:12]}: this run is not finished"):
        load_run(run.path)
    run.finish({})
    assert load_run(run.path)["identity"] == run.identity
    (run.path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json: cannot be read"):
        load_run(run.path)


def test_an_upstream_is_found_when_there_is_just_one(tmp_path):
    with pytest.raises(UserError, match="no finished cf run of data set movies"):
        find_upstream(tmp_path, "cf", "movies", HASH)
    unfinished = open_run(tmp_path, seed=1)
    foreign = open_run(tmp_path, data_hash="e" * 64)
    foreign.finish({})
    wanted = open_run(tmp_path)
    wanted.finish({})
    path, about = find_upstream(tmp_path, "cf", "movies", HASH)
    assert path == wanted.path and about["identity"] == wanted.identity
    unfinished.finish({})
    with pytest.raises(UserError, match="several finished cf runs"):
        find_upstream(tmp_path, "cf", "movies", HASH)
    assert find_upstream(tmp_path, "cf", "movies", HASH, given=unfinished.path)[0] == unfinished.path


def test_an_upstream_of_another_data_set_or_kind_is_refused(tmp_path):
    run = open_run(tmp_path, data_hash="e" * 64)
    run.finish({})
    with pytest.raises(UserError, match=r"data set movies \(hash e{12}\), not on books \(hash 0123456789ab\)"):
        find_upstream(tmp_path, "cf", "books", HASH, given=run.path)
    with pytest.raises(UserError, match="is a cf run; a stage1 run is needed"):
        find_upstream(tmp_path, "stage1", "movies", HASH, given=run.path)


def test_a_stage_refuses_an_upstream_built_on_another(tmp_path):
    run = open_run(tmp_path, kind="stage1", upstream={"cf": "a" * 64})
    run.finish({})
    about = load_run(run.path)
    require_upstream(run.path, about, "cf", "a" * 64)
    with pytest.raises(UserError, match=r"was built on cf a{12}, but the cf in use is b{12}"):
        require_upstream(run.path, about, "cf", "b" * 64)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_a_flipped_bit_in_any_file_of_a_checkpoint_is_found(tmp_path):
    run = open_run(tmp_path)
    run.save(1, state_of(3), {"stale": 2})
    folder = run.path / "steps" / "1"
    files = [
        path for path in folder.rglob("*") if path.is_file() and path.stat().st_size and path.name != "hashes.json"
    ]
    assert len(files) > 3
    for path in files:
        before = path.read_bytes()
        flip_a_bit(path)
        with pytest.raises(UserError, match=rf"{path.name}: damaged .*start over without --resume") as caught:
            run.restore(abstract_state())
        assert "\n" not in str(caught.value)
        path.write_bytes(before)
    (folder / "hashes.json").write_text("[]")
    with pytest.raises(UserError, match=r"hashes\.json: the file is \[\]: should be an object"):
        run.restore(abstract_state())
    (folder / "hashes.json").unlink()  # a checkpoint of an earlier version
    assert int(run.restore(abstract_state())["opt"][0]) == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine")
def test_whatever_orbax_raises_for_a_damaged_checkpoint_without_hashes_is_one_line(tmp_path):
    run = open_run(tmp_path)
    run.save(1, state_of(3))
    (run.path / "steps" / "1" / "hashes.json").unlink()
    for path in (run.path / "steps" / "1" / "state").rglob("*"):
        if path.is_file():
            before = path.read_bytes()
            path.write_bytes(b"not this")
            try:
                run.restore(abstract_state())
            except UserError as error:
                assert "steps/1: damaged" in str(error) and "\n" not in str(error)
            path.write_bytes(before)


def test_a_flipped_bit_in_an_export_is_found(tmp_path):
    run = open_run(tmp_path)
    (run.export_path("items.npy")).write_bytes(b"x" * 100)
    (run.export_path("encoder")).mkdir()
    (run.export_path("encoder") / "config.json").write_text("{}")
    run.finish({"hit@1": 0.5})
    assert json.loads((run.path / "DONE").read_text())["hit@1"] == 0.5
    verify_export(run.path)
    flip_a_bit(run.path / "export" / "items.npy")
    for found in (lambda: verify_export(run.path), lambda: find_upstream(tmp_path, "cf", "movies", HASH)):
        with pytest.raises(UserError, match=rf"items\.npy: damaged .*delete {run.path} and train it again"):
            found()
    with pytest.raises(UserError, match=r"items\.npy: damaged"):
        open_run(tmp_path)
    (run.path / "export" / "items.npy").unlink()
    with pytest.raises(UserError, match=r"items\.npy: cannot be read"):
        verify_export(run.path)
    (run.path / "DONE").write_text("{}")  # of an earlier version
    verify_export(run.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": 3}, "settings is 3: should be an object, is a whole number"),
        ({"seed": "x" * 1000}, "seed is 'xxx.*: should be a whole number, is a text"),
        ({"data": []}, r"data is \[\]: should be an object, is a list"),
        ({"identity": "../../escaped"}, "identity: '../../escaped' is no name for a folder"),
        ({"data": {"name": "..", "hash": HASH}}, r"data: '\.\.' is no name for a folder"),
    ],
)
def test_a_run_of_another_structure_is_one_line(tmp_path, change, message):
    run = open_run(tmp_path)
    run.finish({})
    about = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps(about | change))
    with pytest.raises(UserError, match=message) as caught:
        load_run(run.path)
    assert str(caught.value).startswith(f"{run.path}/run.json") and "\n" not in str(caught.value)


def test_settings_of_a_run_are_checked_as_the_dataclass_says(tmp_path):
    path, about = tmp_path, {"settings": {"learning_rate": 1, "layers": [3]}}
    assert run_settings(path, about, Settings) == Settings(1.0, (3,))
    for settings, message in (
        ({"layers": ["x"]}, r"layers\[0\] is 'x': should be a whole number, is a text"),
        ({"depth": 1}, "'depth' is unknown"),
    ):
        with pytest.raises(UserError, match=rf"run\.json, setting.* {message}; it is of another version, or damaged"):
            run_settings(path, {"settings": settings}, Settings)


def test_a_name_that_leads_elsewhere_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"the data set's name: '\.\./movies' is no name for a folder"):
        Run.open(tmp_path / "checkpoints", "../movies", "cf", Settings(), 0, HASH, {})
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from test_runs import open_run, state_of
moment = sys.argv[2]
run = open_run(sys.argv[1])
unlink, rmtree = os.unlink, __import__("shutil").rmtree
def dying(path, **named):
    if moment == "finishing" and str(path).endswith("lock"):  # that of DONE's temporary folder
        os.kill(os.getpid(), signal.SIGKILL)
    if moment == "unlocking" and str(path).endswith("cf/%s/.lock" % run.path.name):
        os.kill(os.getpid(), signal.SIGKILL)
    unlink(path, **named)
def removing(path, **named):
    if moment == "removing" and str(path).endswith("steps/1"):
        unlink(os.path.join(path, "hashes.json"))
        os.kill(os.getpid(), signal.SIGKILL)
    rmtree(path, **named)
for step in (1, 2, 3):
    if step == 3:
        import shutil
        shutil.rmtree = removing
    run.save(step, state_of(step))
os.unlink = dying
run.finish({})
"""


@pytest.mark.parametrize("moment", ["removing", "finishing", "unlocking"])
def test_what_a_kill_left_in_a_run_goes_when_it_is_opened_again(tmp_path, moment):
    here = __file__.rpartition("/")[0]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), moment], cwd=here, timeout=120)
    assert killed.returncode == -9
    run = open_run(tmp_path, resume=True)
    assert run.done == (moment != "removing") and run.steps() == [2, 3]
    if not run.done:
        run.finish({})
    assert sorted(path.name for path in run.path.iterdir()) == ["DONE", "run.json", "steps"]


OTHER = """
import sys
from test_runs import open_run
from allmrec_jax.errors import UserError
try:
    run = open_run(sys.argv[1], resume=True)
except UserError as error:
    print(error)
else:
    run.finish({})
    print("done")
"""


def test_a_second_training_of_one_run_says_who_holds_it(tmp_path):
    def other():
        here = __file__.rpartition("/")[0]
        answer = subprocess.run(
            [sys.executable, "-c", OTHER, str(tmp_path)], cwd=here, capture_output=True, text=True, timeout=120
        )
        return answer.stdout or answer.stderr

    run = open_run(tmp_path)
    run.save(1, state_of(1))
    again = open_run(tmp_path, resume=True)  # this process may
    assert again.latest_step() == 1
    assert other().startswith(f"{run.path}: in use by process ")
    del run
    assert other().startswith(f"{again.path}: in use by process ")
    del again
    assert other() == "done\n"
    assert open_run(tmp_path).done
