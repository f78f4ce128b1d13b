"""A model's weights: safetensors or PyTorch's ``.bin`` in its directory, single or in shards that an index lists, or a
GGUF file, which stands for a directory.

Tensors are read one at a time, of each the slices that are asked for, so that no file is ever held in memory. Nothing
in a file is executed.
"""

import os
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from allmrec_jax.errors import UserError, first_line, shown
from allmrec_jax.fileio import read_json, refuse_pointer
from allmrec_jax.pretrained.gguf import gguf_tensors
from allmrec_jax.pretrained.schemas import IndexFile

WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
"""Looked for in this order; an index lists the shards."""

GGUF_SUFFIX = ".gguf"
"""Of the single files that hold configuration, weights and tokenizer."""

WRAPPERS = ("module.", "_orig_mod.", "base_model.model.")
"""What DataParallel, ``torch.compile`` and PEFT put before every key."""

SHOWN = 3
"""Keys of a file that a message shows."""


class Stored(NamedTuple):
    """One weight of a checkpoint, not read yet.

    Attributes:
        file: that holds it.
        key: in the file.
        shape: of the whole.
        read: part of it by a slice for each dimension; ``()`` is all of it.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    read: Callable[[tuple[slice, ...]], np.ndarray]


Weights = dict[str, Stored]
"""Weights by their names, which are the keys without what wraps the model."""


def weight_files(directory: Path) -> list[Path]:
    """The weight files of a directory, sorted by name.

    Raises:
        UserError: there are none, a shard is missing, or the index is damaged.
    """
    return _weight_files(directory)[0]


def _weight_files(directory: Path) -> tuple[list[Path], Path | None]:
    """The files, and the index that lists them where there is one."""
    if directory.suffix == GGUF_SUFFIX and directory.is_file():
        return [directory], None
    name = next((name for name in WEIGHT_FILES if (directory / name).is_file()), None)
    if name is None:
        raise UserError(f"{directory}: no weights there (looked for {', '.join(WEIGHT_FILES)})")
    if not name.endswith(".index.json"):
        return [directory / name], None
    files = [directory / shard for shard in sorted(set(read_index(directory / name).values()))]
    for file in files:
        if not os.path.isfile(file):  # False, not an error, for a name that is too long
            raise UserError(f"{file}: shard is missing; {name} lists it")
    return files, directory / name


def read_index(path: Path) -> Mapping[str, str]:
    """The file of each weight, a name beside the index.

    Raises:
        UserError: the index is damaged, or names a file outside of its directory.
    """
    return read_json(path, IndexFile)["weight_map"]


def open_weights(directory: Path, plain: Callable[[str], str] = str) -> Weights:
    """Every weight of a directory.

    Args:
        directory: of the model.
        plain: from a key to the name that the weight goes by.

    Raises:
        UserError: a file is missing, damaged or holds more than tensors; a weight is there twice, or not where the
            index says.
    """
    files, index = _weight_files(directory)
    found = [stored for file in files for stored in open_file(file)]
    prefix = _wrapper(found)

    def name_of(key: str) -> str:
        return plain(key.removeprefix(prefix))

    weights: Weights = {}
    for stored in found:
        if (name := name_of(stored.key)) in weights:
            before = weights[name]
            where = (
                f"there twice, also as {before.key!r}" if before.file == stored.file else f"in {before.file.name} too"
            )
            raise UserError(f"{stored.file}: weight {shown(stored.key)} is {where}")
        weights[name] = stored
    for key, file in read_index(index).items() if index else ():
        if (at := weights.get(name_of(key))) is None or at.file.name != file:
            raise UserError(f"{index}: weight {shown(key)} is missing; the index says that {file} holds it")
    return weights


def open_file(path: Path) -> list[Stored]:
    """Every weight of one file.

    Raises:
        UserError: it is missing, a Git LFS pointer, damaged, or holds anything but tensors.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    refuse_pointer(path)
    if path.suffix == GGUF_SUFFIX:
        return [Stored(path, key, shape, read) for key, (shape, read) in gguf_tensors(path).items()]
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_pickled(path)


def in_memory(arrays: Mapping[str, np.ndarray], path: Path) -> Weights:
    """Arrays that were read from ``path`` already, as if they had not been."""
    return {key: Stored(path, key, array.shape, array.__getitem__) for key, array in arrays.items()}


def check_weights(weights: Weights, expected: Mapping[str, tuple[int, ...]], where: Path) -> None:
    """Each of the expected weights, in its shape, and no other.

    Args:
        weights: of the checkpoint.
        expected: shapes that the configuration asks for, by name.
        where: the directory or file, for messages.

    Raises:
        UserError: a weight is missing, unknown or of another shape.
    """
    if weights and not expected.keys() & weights.keys():
        raise UserError(f"{where}: none of the weights that config.json describes; it holds {listed(weights)}")
    if missing := [name for name in expected if name not in weights]:
        raise UserError(f"{where}: weight {missing[0]} is missing ({len(missing)} in all); it holds {listed(weights)}")
    for name, stored in weights.items():
        if name not in expected:
            raise UserError(f"{stored.file}: unknown weight {stored.key[:80]}; config.json describes no such parameter")
        if stored.shape != expected[name]:
            raise UserError(
                f"{stored.file}: weight {stored.key[:80]} has shape {stored.shape}, "
                f"config.json asks for {expected[name]}"
            )


def listed(keys: Iterable[str]) -> str:
    """Some of the keys, and how many there are."""
    keys = list(map(str, keys))
    shown = ", ".join(repr(key[:80]) for key in keys[:SHOWN])
    return shown + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "") or "nothing"


def _wrapper(found: list[Stored]) -> str:
    """What stands before every key, of :data:`WRAPPERS`; weights of an adapter among them are refused."""
    for stored in found:
        if ".lora_" in stored.key or ".base_layer." in stored.key:
            raise UserError(
                f"{stored.file}: {shown(stored.key)} belongs to a PEFT adapter beside the model; merge it first "
                "(in peft: merge_and_unload, then save_pretrained)"
            )
    prefix = ""
    while wrapper := next((w for w in WRAPPERS if found and all(s.key.startswith(prefix + w) for s in found)), None):
        prefix += wrapper
    return prefix


def _open_safetensors(path: Path) -> list[Stored]:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({first_line(error)})") from None

    def stored(key: str) -> Stored:
        part = file.get_slice(key)
        kind = part.get_dtype()

        def read(index: tuple[slice, ...]) -> np.ndarray:
            if kind not in ("F64", "F32", "F16", "BF16"):
                raise UserError(
                    f"{path}: weight {key[:80]} is stored as {kind}; floating point of 16 bits or more is read"
                )
            return part[index]

        return Stored(path, key, tuple(part.get_shape()), read)

    return [stored(key) for key in file.keys()]  # noqa: SIM118 (safetensors' file is no mapping)


def _open_pickled(path: Path) -> list[Stored]:
    import torch

    try:
        # weights_only never runs code from the pickle; only the zip format can be memory-mapped.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that are then read all the same, or refused
            body = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # damaged pickles raise whatever their instructions lead to
        raise UserError(f"{path}: not a whole PyTorch file of plain tensors ({_reason(error)})") from None

    def stored(key: str, tensor: Any) -> Stored:
        def read(index: tuple[slice, ...]) -> np.ndarray:
            plain = tensor.layout == torch.strided and tensor.is_floating_point() and not tensor.is_quantized
            if not plain or tensor.is_meta:
                kind = "nothing but a shape" if tensor.is_meta else str(tensor.dtype).removeprefix("torch.")
                raise UserError(f"{path}: weight {key[:80]} is stored as {kind} {tensor.layout}; plain floats are read")
            part = tensor.detach()[index]
            if part.dtype == torch.bfloat16:  # NumPy has no such type of its own
                return part.contiguous().view(torch.int16).numpy().view(jnp.bfloat16)
            return part.numpy()

        return Stored(path, key, tuple(tensor.shape), read)

    return [stored(key, tensor) for key, tensor in _state_dict(body, path).items()]


def _state_dict(body: Any, path: Path) -> dict[str, Any]:
    """The only dictionary of tensors in what a file holds: itself, or one of its values."""
    import torch

    def is_state(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and bool(value)
            and all(isinstance(key, str) and isinstance(part, torch.Tensor) for key, part in value.items())
        )

    if is_state(body):
        return body
    held = f"a {type(body).__name__}"
    if isinstance(body, dict):
        states = [value for value in body.values() if is_state(value)]
        if len(states) == 1 and not any(isinstance(value, torch.Tensor) for value in body.values()):
            return states[0]
        held = f"a dictionary of {listed(body)}"
    raise UserError(f"{path}: holds {held}, not a dictionary of tensors by name; save the model's state_dict()")


def _reason(error: Exception) -> str:
    """Why torch did not load a file, without its advice to load it unsafely."""
    text = str(error)
    for sign, reason in (
        ("Unsupported global", "it asks for a class of Python, which is not run"),
        ("GLOBAL", "it asks for a class of Python, which is not run"),
        ("central directory", "the end is missing"),
        ("weights_only", "damaged, or not written by torch.save"),
    ):
        if sign in text:
            return reason
    return (text.splitlines() or [type(error).__name__])[0][:120]
