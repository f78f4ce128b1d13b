"""Writing so that a reader never meets half a file, and reading so that damage is one line and never a wrong number.

A directory that stands already is replaced in one step where the system can exchange two names (Linux), else by two
renames, of which the next :func:`recover` completes a broken pair. A kill leaves a temporary folder ``.NAME.….tmp``
behind; the next write to the same place removes it, unless the process that made it still runs.
"""

import contextlib
import ctypes
import datetime
import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from allmrec_jax.errors import UserError, first_line, shown

_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO}
# NumPy, safetensors, Polars and TensorStore report a failed write in words only.
_REFUSED_WORDS = ("No space left", "quota exceeded", "File too large", "requested and", "Read-only file system")
_LOCK = "lock"
_REPLACED = "replaced"
LARGEST_JSON = 256 * 2**20
"""Bytes of a JSON file that is read; the largest tokenizers have 40 million."""

POINTER = b"version https://git-lfs"

_NAME = re.compile(r"(?!\.)[\w.+-]+")
_HOLDER = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp")


_writes = True


def leave_writing_to_another() -> None:
    """From now on this process writes nothing: of several that train together the first writes for all."""
    global _writes
    _writes = False


def writes() -> bool:
    """Whether this process writes."""
    return _writes


# Names and locks.


def plain_name(name: Any, where: Path | str) -> str:
    """``name`` if it can be one level of a path, and nothing else: letters, digits and ``._+-``, no leading dot.

    Raises:
        UserError: it is something else; ``where`` says where it stands.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name.encode()) > 200:
        raise UserError(
            f"{where}: {shown(name)} is no name for a folder; it takes letters, digits and ._+-, no dot first, "
            "and 200 bytes at most"
        )
    return name


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[int]:
    """Holds a lock file; it is released when the process ends, however it does.

    Yields:
        the open file, for a process that shall hold the lock too.

    Raises:
        UserError: another process holds it (the message says which), or the file cannot be written.
    """
    with take_lock(path) as file:
        yield file.fileno()


def take_lock(path: Path) -> IO[str]:
    """As :func:`file_lock`, for as long as the returned file is open."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8", errors="replace")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(200).strip() or "another process"
        file.close()
        raise UserError(f"{path.parent}: in use by {holder}; wait for it, or end it") from None
    file.seek(0)
    file.truncate()
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    file.write(f"process {os.getpid()} on {platform.node()} since {now}\n")
    file.flush()
    return file


# Writing.


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turns a write that the disk refuses (full, over quota, read-only) into a :class:`UserError` naming ``path``."""
    try:
        yield
    except Exception as error:
        reason = _refusal(error)
        if reason is None:
            raise
        raise UserError(
            f"cannot write {path}: {reason}; earlier outputs are intact: free some space or choose another place, "
            "then run the same command again (a training command with --resume)"
        ) from error


def _refusal(error: Exception) -> str | None:
    if isinstance(error, OSError) and error.errno in _REFUSED:
        return os.strerror(error.errno)
    return "the disk took only a part (full?)" if any(words in str(error) for words in _REFUSED_WORDS) else None


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A temporary sibling of ``path`` to write a file or make a directory at; it takes ``path``'s place on success.

    The sibling does not exist yet, its parent does. When the block raises, it is removed and whatever stood at ``path``
    stays. A refused write is a :class:`UserError` that names ``path``. Where another process writes, see
    :func:`leave_writing_to_another`, what is written is thrown away. What killed writes to ``path`` left is removed.
    """
    path = Path(path)
    if not _writes:
        with tempfile.TemporaryDirectory() as nowhere:
            yield Path(nowhere) / path.name
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        recover(path)
        holder, lock = _make_holder(path)
        try:
            sibling = holder / path.name
            yield sibling
            _put(sibling, path, holder / _REPLACED)
        finally:
            with contextlib.suppress(OSError):
                _remove_holder(holder)
            lock.close()


def _make_holder(path: Path) -> tuple[Path, IO[str]]:
    """A new temporary folder beside ``path``, and the lock in it that says that it is in use."""
    while True:
        holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        # Another process may clear the folder away before it is locked: then the lock cannot be made, or is not free.
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            lock = (holder / _LOCK).open("w", encoding="utf-8")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return holder, lock


def _put(new: Path, path: Path, replaced: Path) -> None:
    """Puts ``new`` in the place of ``path``; a directory there goes to ``new``'s place or to ``replaced``."""
    if path.exists() and path.is_dir() != new.is_dir():
        raise UserError(f"cannot write {path}: a {'folder' if path.is_dir() else 'file'} is there; move it away")
    if not path.is_dir():
        os.replace(new, path)
    elif not _exchange(new, path):
        os.replace(path, replaced)  # a directory can only be renamed onto an empty one
        os.replace(new, path)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step; ``False`` where the system or the file system cannot."""
    at_fdcwd, rename_exchange = -100, 2
    if not sys.platform.startswith("linux") or (call := getattr(ctypes.CDLL(None), "renameat2", None)) is None:
        return False
    return call(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange) == 0


def recover(path: Path | str) -> None:
    """Completes a replacement of ``path`` that a kill broke, and removes what killed writes to it left.

    Reading calls it where a directory is read that is replaced as a whole, or a file that is written once; a place that
    cannot be written is left as it is.
    """
    _recover(Path(path).parent, Path(path).name)


def recover_all(directory: Path | str) -> None:
    """:func:`recover` of whatever lies in ``directory``."""
    _recover(Path(directory), None)


def _recover(directory: Path, name: str | None) -> None:
    try:
        holders = [(each, found[1]) for each in directory.iterdir() if (found := _HOLDER.fullmatch(each.name))]
    except OSError:
        return
    for holder, written in holders:
        if name not in (None, written):
            continue
        path = directory / written
        with contextlib.suppress(OSError, BlockingIOError):
            if not any(holder.iterdir()):  # killed before it was locked, or about to be: see `_make_holder`
                holder.rmdir()
                continue
            with (holder / _LOCK).open("r+", encoding="utf-8") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if (holder / _REPLACED).exists() and not path.exists():
                    new = holder / path.name
                    os.replace(new if new.exists() else holder / _REPLACED, path)
                _remove_holder(holder)


def _remove_holder(holder: Path) -> None:
    """Removes a temporary folder, its lock last: what a kill leaves of it can still be told from what is in use."""
    for each in holder.iterdir():
        if each.name != _LOCK:
            shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
    (holder / _LOCK).unlink(missing_ok=True)
    holder.rmdir()


def write_text(path: Path | str, text: str) -> None:
    """Writes ``text`` as UTF-8, atomically."""
    with atomic_path(path) as sibling:
        sibling.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any, *, indent: int | None = 2) -> None:
    """Writes ``value`` as JSON, atomically."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


# Reading.


def refuse_pointer(path: Path) -> None:
    """Refuses a Git LFS pointer, the three lines of text that a clone without Git LFS has in a large file's place.

    Raises:
        UserError: ``path`` is one.
    """
    with path.open("rb") as stream:
        if stream.read(len(POINTER)) == POINTER:
            raise UserError(f"{path}: a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")


def read_json(path: Path | str, schema: Any, remedy: str = "") -> Any:
    """The JSON at ``path``, of which what ``schema`` names has the types that it says.

    Args:
        path: the file.
        schema: a type that msgspec can check, e.g. ``dict[str, int]`` or a ``TypedDict``; keys it does not name are
            free.
        remedy: what to do about a damaged file, e.g. ``"run `allmrec prepare` again"``.

    Returns:
        What stands in the file, keys that the schema does not name too.

    Raises:
        UserError: the file cannot be read, is a Git LFS pointer, larger than :data:`LARGEST_JSON`, no JSON, nested too
            deeply, or of another structure.
    """
    from allmrec_jax.checking import checked

    path = Path(path)
    try:
        refuse_pointer(path)
        if (size := path.stat().st_size) > LARGEST_JSON:
            raise ValueError(f"{size:,} bytes; no such file has more than {LARGEST_JSON:,}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = f"not JSON: {first_line(error)}"
        if isinstance(error, OSError):
            reason = error.strerror or first_line(error)
        elif isinstance(error, RecursionError):
            reason = "not JSON that can be read: nested too deeply"
        raise UserError(f"{path}: cannot be read ({reason})" + (f"; {remedy}" if remedy else "")) from None
    checked(path, value, schema, remedy)
    return value


def digests(directory: Path) -> dict[str, str]:
    """The SHA-256 of every file beneath ``directory`` by its relative path, hidden ones left out.

    It reads the files once, about a second for a gigabyte that was just written.
    """
    files = (path for path in directory.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(directory).as_posix(): sha256(path) for path in sorted(files)}


def sha256(path: Path) -> str:
    """The hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(directory: Path, expected: Mapping[str, str], remedy: str) -> None:
    """Compares files with their :func:`digests`.

    Raises:
        UserError: one is missing, cannot be read or is not what was written; it is named, followed by ``remedy``.
    """
    for name, digest in expected.items():
        path = directory / name
        try:
            found = sha256(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error}); {remedy}") from error
        if found != digest:
            raise UserError(f"{path}: damaged (its SHA-256 is not the one written with it); {remedy}")


def save_arrays(path: Path | str, tree: Mapping[str, Any]) -> None:
    """Writes a nested dictionary of arrays as one safetensors file, keys joined by ``/``, atomically."""
    from safetensors.numpy import save_file

    flat = {key: np.asarray(value, order="C") for key, value in _flatten(tree)}
    with atomic_path(path) as sibling:
        save_file(flat, sibling)


def load_array(path: Path | str, remedy: str) -> np.ndarray:
    """Reads a ``.npy`` file.

    Raises:
        UserError: the file is missing or damaged, or holds a number that is not finite.
    """
    try:
        array = np.load(path, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("an archive of several")
    except Exception as error:  # NumPy raises whatever the damage leads to
        raise UserError(f"{path}: cannot be read as a NumPy array ({first_line(error)}); {remedy}") from error
    check_finite(path, {Path(path).stem: array}, remedy)
    return array


def check_finite(path: Path | str, arrays: Mapping[str, np.ndarray], remedy: str = "write it again") -> None:
    """Refuses floating-point arrays that hold NaN or infinity.

    Raises:
        UserError: names the file and the array.
    """
    for key, array in arrays.items():
        # ml_dtypes' types, bfloat16 among them, are of kind "V" and know isfinite.
        if array.dtype.kind in "fcV" and not (finite := np.isfinite(array)).all():
            place = [int(index) for index in np.argwhere(~finite)[0]]
            raise UserError(f"{path}: {key!r} is not finite at {place}; {remedy}")


def load_arrays(path: Path | str, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Reads what :func:`save_arrays` wrote.

    Args:
        path: the file.
        like: a nested dictionary of anything with a ``shape`` (arrays, ``jax.ShapeDtypeStruct``): the file must hold
            exactly these keys with these shapes.

    Raises:
        UserError: the file is missing or damaged, holds a number that is not finite, or a key is missing, unexpected or
            of another shape.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; was the run that writes it finished?")
    try:
        flat = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, MemoryError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({first_line(error)}); write it again") from error
    check_finite(path, flat)
    if like is not None:
        expected = {key: tuple(value.shape) for key, value in _flatten(like)}
        for key in sorted(expected.keys() | flat.keys()):
            if key not in flat:
                raise UserError(f"{path}: key {key!r} is missing")
            if key not in expected:
                raise UserError(f"{path}: unexpected key {key!r}")
            if flat[key].shape != expected[key]:
                raise UserError(f"{path}: key {key!r} has shape {flat[key].shape}, expected {expected[key]}")
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, leaf = key.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value
