import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest

from allmrec_jax import fileio
from allmrec_jax.errors import UserError
from allmrec_jax.fileio import (
    atomic_path,
    file_lock,
    load_array,
    load_arrays,
    plain_name,
    read_json,
    recover,
    save_arrays,
    write_text,
)


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """The operating system refuses to let a file grow beyond 64 KiB, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_atomic_path_replaces_a_file_and_makes_parents(tmp_path):
    target = tmp_path / "a" / "b" / "file.txt"
    for text in ("old", "new"):
        with atomic_path(target) as sibling:
            sibling.write_text(text)
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


def test_atomic_path_replaces_a_directory_that_is_not_empty(tmp_path):
    for text in ("old", "new"):
        with atomic_path(tmp_path / "directory") as sibling:
            sibling.mkdir()
            (sibling / text).write_text(text)
    assert [path.name for path in tmp_path.rglob("*")] == ["directory", "new"]


def test_atomic_path_keeps_the_old_when_the_block_raises(tmp_path):
    write_text(tmp_path / "file", "old")
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "file") as sibling:
        sibling.write_text("half")
        _ = 1 / 0
    assert (tmp_path / "file").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("writer", ["text", "numpy", "safetensors", "parquet"])
def test_a_full_disk_is_one_line_and_keeps_the_old(tmp_path, small_files_only, writer):
    target = tmp_path / "output"
    write_text(target, "old")
    numbers = np.random.default_rng(0).random(1 << 16)
    with pytest.raises(UserError, match=r"cannot write .*output: .*earlier outputs are intact") as caught:
        if writer == "safetensors":
            save_arrays(target, {"numbers": numbers})
        else:
            with atomic_path(target) as sibling:
                if writer == "text":
                    sibling.write_text("x" * (1 << 17))
                elif writer == "numpy":
                    with sibling.open("wb") as file:
                        np.save(file, numbers)
                else:
                    polars = pytest.importorskip("polars")
                    polars.DataFrame({"numbers": numbers}).write_parquet(sibling)
    assert "\n" not in str(caught.value)
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_other_errors_are_not_called_a_full_disk(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "output"):
        (tmp_path / "absent").read_text()
    with pytest.raises(OSError) as caught, atomic_path(tmp_path / "output"):
        raise OSError(errno.ECONNRESET, "connection reset")
    assert not isinstance(caught.value, UserError)


def test_arrays_come_back_as_they_were(tmp_path):
    tree = {
        "encoder": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3).T, "bias": np.ones(2, ml_dtypes.bfloat16)},
        "step": np.int32(7),
    }
    save_arrays(tmp_path / "params.safetensors", tree)
    loaded = load_arrays(tmp_path / "params.safetensors", like=tree)
    assert loaded["encoder"]["bias"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(loaded["encoder"]["kernel"], [[0, 3], [1, 4], [2, 5]])
    assert loaded["step"] == 7 and loaded["step"].dtype == np.int32


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"a": np.zeros(2)}, "unexpected key 'b/c'"),
        ({"a": np.zeros(2), "b": {"c": np.zeros(3), "d": np.zeros(1)}}, "key 'b/d' is missing"),
        ({"a": np.zeros(2), "b": {"c": np.zeros((3, 1))}}, r"key 'b/c' has shape \(3,\), expected \(3, 1\)"),
    ],
)
def test_every_key_is_accounted_for(tmp_path, like, message):
    save_arrays(tmp_path / "params.safetensors", {"a": np.zeros(2), "b": {"c": np.zeros(3)}})
    with pytest.raises(UserError, match=f"params.safetensors: {message}"):
        load_arrays(tmp_path / "params.safetensors", like=like)


def test_a_missing_or_damaged_file_is_named(tmp_path):
    path = tmp_path / "params.safetensors"
    with pytest.raises(UserError, match=r"params\.safetensors: no such file"):
        load_arrays(path)
    save_arrays(path, {"a": np.zeros(1000)})
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"params\.safetensors: not a readable safetensors file"):
        load_arrays(path)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_with_their_place(tmp_path, dtype, value):
    array = np.ones((2, 3), np.dtype(dtype))
    array[1, 2] = value
    save_arrays(tmp_path / "a.safetensors", {"fine": np.ones(2), "encoder": {"kernel": array}})
    with pytest.raises(UserError, match=r"a\.safetensors: 'encoder/kernel' is not finite at \[1, 2\]"):
        load_arrays(tmp_path / "a.safetensors")
    if dtype != "bfloat16":
        np.save(tmp_path / "vectors.npy", array)
        with pytest.raises(UserError, match=r"vectors\.npy: 'vectors' is not finite at \[1, 2\]; train again"):
            load_array(tmp_path / "vectors.npy", "train again")


HUGE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999,), }"


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03", b"\x93NUMPY\x01\x00v\x00 {'x", b"\x93NUMPY\x01\x00v\x00" + HUGE.ljust(117) + b"\n"]
)
def test_a_damaged_array_is_one_line(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npy: cannot be read as a NumPy array .*; train again"):
        load_array(tmp_path / "a.npy", "train again")


def test_an_archive_in_an_arrays_place_is_refused(tmp_path):
    with (tmp_path / "a.npy").open("wb") as stream:
        np.savez(stream, a=np.zeros(3))
    with pytest.raises(UserError, match=r"a\.npy: cannot be read as a NumPy array \(an archive of several\)"):
        load_array(tmp_path / "a.npy", "train again")


def test_a_pointer_and_a_huge_file_are_no_json(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="a Git LFS pointer"):
        read_json(path, dict)
    monkeypatch.setattr("allmrec_jax.fileio.LARGEST_JSON", 10)
    path.write_text(" " * 11 + "{}")
    with pytest.raises(UserError, match="13 bytes; no such file has more than 10"):
        read_json(path, dict)


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 200_000, '{"a": "b"}', '{"a": ' + "9" * 5000 + "}", '{"a": 1e999}', "\ufeff{}", "3"]
)
def test_json_of_another_structure_is_one_line(tmp_path, text):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.json: .*; make it again") as caught:
        read_json(tmp_path / "a.json", dict[str, int], "make it again")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "name", ["..", ".", "", "a/b", "../a", ".hidden", "a\0", "a\n", "a b", "x" * 201, 3, None, "ü" * 101]
)
def test_a_name_that_is_no_level_of_a_path_is_refused(name):
    with pytest.raises(UserError, match=r"--name: .* is no name for a folder") as caught:
        plain_name(name, "--name")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_plain_names_are_taken_in_any_script():
    for name in ("Movies_and_TV", "ml-1m", "Café", "日本", "a..b", "0+1"):
        assert plain_name(name, "--name") == name


KILLED = """
import os, signal, sys
from pathlib import Path
from allmrec_jax import fileio
target, moment = Path(sys.argv[1]), sys.argv[2]
fileio._exchange = lambda one, other: False  # as where the system cannot
replace = os.replace
def dying_while_removing(path, **named):
    os.kill(os.getpid(), signal.SIGKILL)
if moment == "removing":
    fileio.shutil.rmtree = dying_while_removing
def dying(source, goal):
    replace(source, goal)
    if moment == "replacing" and str(goal).endswith("replaced"):
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = dying
with fileio.atomic_path(target) as new:
    new.mkdir()
    (new / "file").write_text("new")
    if moment == "writing":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["writing", "replacing", "removing"])
def test_a_kill_leaves_the_old_or_the_new_and_what_it_leaves_beside_goes(tmp_path, moment):
    target = tmp_path / "data"
    target.mkdir()
    (target / "file").write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(target), moment], timeout=60)
    assert killed.returncode == -9 and len(list(tmp_path.glob(".data.*.tmp"))) == 1
    assert target.exists() == (moment != "replacing")
    recover(target)
    assert (target / "file").read_text() == ("old" if moment == "writing" else "new")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_what_kills_left_of_all_that_lies_in_a_folder_goes_at_once(tmp_path):
    for name in ("one", "two.json"):
        killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / name), "writing"], timeout=60)
        assert killed.returncode == -9
    assert len(list(tmp_path.iterdir())) == 2
    with atomic_path(tmp_path / "three") as new:
        fileio.recover_all(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [new.parent.name]
        new.touch()


def test_a_replaced_directory_is_never_away(tmp_path, monkeypatch):
    monkeypatch.setattr(fileio.os, "replace", lambda *_: pytest.fail("two renames where one exchange will do"))
    (tmp_path / "data").mkdir()
    with atomic_path(tmp_path / "data") as new:
        new.mkdir()
        (new / "file").touch()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["file"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_what_another_process_is_writing_stays(tmp_path):
    with atomic_path(tmp_path / "data") as first:
        first.write_text("first")
        write_text(tmp_path / "data", "second")
        (tmp_path / ".data.notours.tmp").mkdir()  # seven letters: not our pattern
        recover(tmp_path / "data")
        assert first.read_text() == "first"
    assert (tmp_path / "data").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".data.notours.tmp", "data"]


def test_a_folder_is_not_replaced_by_a_file_nor_a_file_by_a_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").touch()
    with pytest.raises(UserError, match=r"cannot write .*folder: a folder is there"):
        write_text(tmp_path / "folder", "text")
    write_text(tmp_path / "file", "precious")
    with pytest.raises(UserError, match=r"cannot write .*file: a file is there"), atomic_path(tmp_path / "file") as new:
        new.mkdir()
    assert (tmp_path / "folder" / "precious").exists() and (tmp_path / "file").read_text() == "precious"


HOLDING = """
import os, sys, time
from pathlib import Path
from allmrec_jax.fileio import take_lock
file = take_lock(Path(sys.argv[1]))
print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_a_lock_says_who_holds_it_and_is_free_when_its_holder_is_killed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDING, tmp_path / "lock"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    number = process.stdout.readline().strip()
    with pytest.raises(UserError, match=rf"in use by process {number} on .* since"), file_lock(tmp_path / "lock"):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    with file_lock(tmp_path / "lock") as descriptor:
        assert os.fstat(descriptor).st_size > 0
