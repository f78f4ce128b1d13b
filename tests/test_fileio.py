import errno
import resource
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest

from allmrec_jax.errors import UserError
from allmrec_jax.fileio import atomic_path, load_arrays, save_arrays, write_text


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
