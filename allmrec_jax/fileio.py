"""Writing so that a reader never meets half a file, and a full disk costs nothing that was there before."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from allmrec_jax.errors import UserError

_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO}
# NumPy, safetensors, Polars and TensorStore report a failed write in words only.
_REFUSED_WORDS = ("No space left", "quota exceeded", "File too large", "requested and", "Read-only file system")


_writes = True


def leave_writing_to_another() -> None:
    """From now on this process writes nothing: of several that train together the first writes for all."""
    global _writes
    _writes = False


def writes() -> bool:
    """Whether this process writes."""
    return _writes


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
    :func:`leave_writing_to_another`, what is written is thrown away.
    """
    path = Path(path)
    if not _writes:
        with tempfile.TemporaryDirectory() as nowhere:
            yield Path(nowhere) / path.name
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            sibling = holder / path.name
            yield sibling
            if path.is_dir():
                # A directory can only be renamed onto an empty one.
                os.replace(path, holder / "replaced")
            os.replace(sibling, path)
        finally:
            shutil.rmtree(holder, ignore_errors=True)


def write_text(path: Path | str, text: str) -> None:
    """Writes ``text`` as UTF-8, atomically."""
    with atomic_path(path) as sibling:
        sibling.write_text(text, encoding="utf-8")


def save_arrays(path: Path | str, tree: Mapping[str, Any]) -> None:
    """Writes a nested dictionary of arrays as one safetensors file, keys joined by ``/``, atomically."""
    from safetensors.numpy import save_file

    flat = {key: np.asarray(value, order="C") for key, value in _flatten(tree)}
    with atomic_path(path) as sibling:
        save_file(flat, sibling)


def load_arrays(path: Path | str, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Reads what :func:`save_arrays` wrote.

    Args:
        path: the file.
        like: a nested dictionary of anything with a ``shape`` (arrays, ``jax.ShapeDtypeStruct``): the file must hold
            exactly these keys with these shapes.

    Raises:
        UserError: the file is missing or damaged, or a key is missing, unexpected or of another shape.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; was the run that writes it finished?")
    try:
        flat = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); write it again") from error
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
