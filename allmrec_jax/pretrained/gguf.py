"""GGUF files, the single-file format of llama.cpp: configuration and weights; the tokenizer is in
:mod:`allmrec_jax.pretrained.gguf_tokenizer`.

The header is read by hand, in a fraction of a second, and every size in it is checked against the file's; tensors are
dequantised by the ``gguf`` library when they are asked for, of each the rows that are.
"""

import functools
import mmap
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from allmrec_jax.errors import UserError
from allmrec_jax.fileio import refuse_pointer
from allmrec_jax.models.llm.families import family_of_gguf
from allmrec_jax.models.llm.rotary import Rope

MAGIC = b"GGUF"
VERSIONS = (2, 3)

LARGEST_COUNT = 2**16
"""Of tensors, and of entries of the metadata."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

_LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_LENGTH = 8192
"""Llama 3.1's scaling of positions, which files hold as divisors of the frequencies only."""


class Tensor(NamedTuple):
    """A tensor of the file, not read yet.

    Attributes:
        kind: its type, a number of the ``gguf`` library's ``GGMLQuantizationType``.
        shape: as in the checkpoint, outputs first.
        start: of its bytes in the file.
        row: bytes of one row.
    """

    kind: int
    shape: tuple[int, ...]
    start: int
    row: int


class GGUF(NamedTuple):
    """What the header of a file says.

    Attributes:
        path: of the file.
        values: the metadata, arrays as lists.
        tensors: by their names in the file.
    """

    path: Path
    values: dict[str, Any]
    tensors: dict[str, Tensor]


def read_gguf(path: Path) -> GGUF:
    """The header of a file; no weight is read.

    Raises:
        UserError: it is no GGUF of version 2 or 3, cut short, damaged, or ``gguf`` is not installed.
    """
    refuse_pointer(path)
    about = path.stat()
    return _read(path, about.st_size, about.st_mtime_ns)


def gguf_config(path: Path) -> dict[str, Any]:
    """What the ``config.json`` of the model would say.

    Raises:
        UserError: as :func:`read_gguf`; or its architecture is not known here.
    """
    file = read_gguf(path)
    architecture = str(file.values.get("general.architecture"))
    family = family_of_gguf(architecture, path)
    assert family.gguf is not None
    start = f"{architecture}."
    own = {key.removeprefix(start): value for key, value in file.values.items() if key.startswith(start)}
    if "token_embd.weight" not in file.tensors:
        raise UserError(f"{path}: tensor 'token_embd.weight' is missing; the file holds no language model")
    tokens = {
        f"{token}_token_id": file.values.get(f"tokenizer.ggml.{name}_token_id")
        for token, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    config = {
        **family.gguf.config(own),
        "model_type": family.model_types[0],
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **{key: value for key, value in tokens.items() if value is not None},
    }
    if "rope_freqs.weight" in file.tensors:
        config["rope_scaling"] = _scaling(file, config)
    return config


def gguf_tensors(path: Path) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and reader of each tensor, by its key in a checkpoint of Hugging Face's format.

    A reader takes a slice for each dimension (``()`` is all) and gives float32. A tensor that the family does not know
    keeps its name of the file.

    Raises:
        UserError: as :func:`gguf_config`; or a tensor is of a type that ``gguf`` does not dequantise.
    """
    file, config = read_gguf(path), gguf_config(path)
    family = family_of_gguf(str(file.values.get("general.architecture")), path)
    form = family.gguf
    assert form is not None
    data = np.memmap(path, np.uint8, "r")
    found = {}
    for name, tensor in file.tensors.items():
        if name == "rope_freqs.weight":
            continue
        layer = re.search(r"\.\d+\.", name)
        stem, _, kind = name.rpartition(".")
        module = form.names.get(re.sub(r"\.\d+\.", ".{layer}.", stem, count=1))
        key = name
        if module is not None and kind in ("weight", "bias"):
            key = family.written(f"{module.format(layer=layer[0][1:-1] if layer else '')}.{kind}")
        short = (module or "").rpartition(".")[2]
        order = None
        if short in form.interleaved:
            heads = config["num_attention_heads" if short == "q_proj" else "num_key_value_heads"]
            order = _halves_apart(tensor.shape[0], heads, path, name)
        offset = form.norm_offset if "norm" in short else 0.0
        found[key] = (tensor.shape, functools.partial(_read_part, data, tensor, order, offset))
    return found


def _read_part(
    data: np.ndarray, tensor: Tensor, order: np.ndarray | None, offset: float, index: tuple[slice, ...]
) -> np.ndarray:
    """A part of a tensor in float32."""
    rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
    raw = data[tensor.start : tensor.start + rows * tensor.row].reshape(rows, tensor.row)
    if len(tensor.shape) == 1:
        whole = _dequantized(raw, tensor.kind)[0]
        return (whole if order is None else whole[order])[index] - np.float32(offset)
    first, *rest = index or (slice(None),)
    part = raw[first] if order is None else raw[order[first]]
    return _dequantized(part, tensor.kind)[(slice(None), *rest)]


def _dequantized(raw: np.ndarray, kind: int) -> np.ndarray:
    library = _library()
    return library.dequantize(np.ascontiguousarray(raw), library.GGMLQuantizationType(kind))


def _halves_apart(rows: int, heads: int, path: Path, name: str) -> np.ndarray:
    """Rows of the file in the checkpoint's order, in which the two numbers of a pair stand half a head apart."""
    if rows % (2 * heads):
        raise UserError(f"{path}: tensor {name!r} has {rows} rows, which {heads} heads do not divide into pairs")
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _scaling(file: GGUF, config: dict[str, Any]) -> dict[str, Any]:
    """The scaling of positions that ``rope_freqs.weight`` holds, which must be Llama 3.1's."""
    tensor = file.tensors["rope_freqs.weight"]
    divisors = _read_part(np.memmap(file.path, np.uint8, "r"), tensor, None, 0.0, ())
    scaling = {**_LLAMA3, "factor": float(divisors.max()), "original_max_position_embeddings": _LLAMA3_LENGTH}
    theta, width = config.get("rope_theta", 10000.0), 2 * len(divisors)
    scaled, plain = Rope.from_dict(scaling, theta, _LLAMA3_LENGTH), Rope(theta)
    wanted = plain.frequencies(width)[0] / scaled.frequencies(width)[0]
    if not np.allclose(divisors, wanted, rtol=1e-3):
        raise UserError(f"{file.path}: tensor 'rope_freqs.weight' scales positions otherwise than Llama 3.1 does")
    return scaling


def _library() -> Any:
    try:
        import gguf
    except ImportError:
        raise UserError("GGUF files are read with the package gguf: pip install 'allmrec-jax[gguf]'") from None
    return gguf


class _Cursor:
    """Reads a file's header from its start, never beyond its end."""

    def __init__(self, path: Path, data: Any) -> None:
        self.path, self.data, self.at = path, data, 0

    def take(self, form: str) -> Any:
        """One number."""
        form = "<" + form
        return struct.unpack(form, self.bytes(struct.calcsize(form)))[0]

    def bytes(self, count: int) -> bytes:
        """The next bytes."""
        if self.at + count > len(self.data):
            raise UserError(f"{self.path}: the GGUF file is cut short ({len(self.data)} bytes); fetch it again")
        self.at += count
        return self.data[self.at - count : self.at]

    def count(self, what: str) -> int:
        """A number of things."""
        if (count := self.take("Q")) > LARGEST_COUNT:
            raise UserError(f"{self.path}: says that it holds {count} {what}; {LARGEST_COUNT} are read at most")
        return count

    def text(self) -> str:
        """A string."""
        return self.bytes(self.take("Q")).decode("utf-8", "replace")

    def value(self) -> Any:
        """A value of the metadata, behind its type."""
        kind = self.take("I")
        if kind == _ARRAY:
            inner, length = self.take("I"), self.take("Q")
            if inner == _STRING:
                return [self.text() for _ in range(length)]
            form = f"<{length}{self.scalar(inner)}"
            return list(struct.unpack(form, self.bytes(length * struct.calcsize(self.scalar(inner)))))
        if kind == _STRING:
            return self.text()
        value = self.take(self.scalar(kind))
        return float(str(np.float32(value))) if kind == 6 else value  # 1e-05, not 9.999999747378752e-06

    def scalar(self, kind: int) -> str:
        """The letter of a type in :mod:`struct`."""
        if kind not in _SCALARS:
            raise UserError(f"{self.path}: the GGUF file is damaged: a value of type {kind} in its metadata")
        return _SCALARS[kind]


@functools.lru_cache(maxsize=4)
def _read(path: Path, size: int, changed: int) -> GGUF:
    """The header of a file as it was at a size and a time of change."""
    with path.open("rb") as stream:
        if stream.read(4) != MAGIC:
            raise UserError(f"{path}: not a GGUF file")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = _Cursor(path, data)
            cursor.at = 4
            return _header(cursor, size)


def _header(cursor: _Cursor, size: int) -> GGUF:
    path = cursor.path
    if (version := cursor.take("I")) not in VERSIONS:
        raise UserError(f"{path}: GGUF of version {version}; versions {VERSIONS[0]} and {VERSIONS[1]} are read")
    tensor_count, entries = cursor.count("tensors"), cursor.count("entries of metadata")
    values = {cursor.text(): cursor.value() for _ in range(entries)}
    sizes = _library().GGML_QUANT_SIZES
    tensors: dict[str, Tensor] = {}
    for _ in range(tensor_count):
        name, dimensions = cursor.text(), cursor.take("I")
        if not 1 <= dimensions <= 4 or name in tensors:
            raise UserError(f"{path}: tensor {name[:80]!r} is there twice or has {dimensions} dimensions")
        shape = tuple(cursor.take("Q") for _ in range(dimensions))[::-1]
        kind, start = cursor.take("I"), cursor.take("Q")
        if kind not in (known := {int(kind): numbers for kind, numbers in sizes.items()}):
            raise UserError(f"{path}: tensor {name!r} is of type {kind}, which the package gguf does not know")
        block, stored = known[kind]
        if not _dequantises(kind):
            raise UserError(f"{path}: tensor {name!r} is of a type that the package gguf does not dequantise")
        if 0 in shape or shape[-1] % block:
            raise UserError(f"{path}: tensor {name!r} has shape {shape}; rows of its type are multiples of {block}")
        tensors[name] = Tensor(kind, shape, start, shape[-1] // block * stored)
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise UserError(f"{path}: the GGUF file is damaged: general.alignment is {alignment!r}")
    base = -(-cursor.at // alignment) * alignment
    for name, tensor in tensors.items():
        rows = 1
        for length in tensor.shape[:-1]:
            rows *= length
        tensors[name] = tensor = tensor._replace(start=base + tensor.start)
        if tensor.start + rows * tensor.row > size:
            raise UserError(
                f"{path}: the GGUF file is cut short: it has {size} bytes, and tensor {name!r} ends at "
                f"{tensor.start + rows * tensor.row}; fetch it again"
            )
    return GGUF(path, values, tensors)


@functools.cache
def _dequantises(kind: int) -> bool:
    """Whether the library gives floats for tensors of a type."""
    library = _library()
    kind = library.GGMLQuantizationType(kind)
    try:
        library.dequantize(np.zeros((1, library.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True
