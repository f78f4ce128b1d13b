"""Ways to change a file's content: its bytes, its text, and what its format says.

A format that is known is taken apart, changed in one place and put together again, so that a reader meets files whose
syntax is whole. All draws come from the generator that is given.
"""

import gzip
import io
import json
import random
import re
import struct
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    1 << 70,
    1e308,
    float("nan"),
    "",
    "../../escaped",
    "\x1b[2J",
    "x" * 5000,
    [],
    [[]],
    {},
    {"a": {}},
    [None] * 9,
)
"""Values that a place in JSON may hold in place of its own."""

WORDS = ("nan", "inf", "-1", "1e999", "0", "9" * 5000, str(1 << 70), "0x10", '"', "\x00", "\x1b[2J", "é", "\u2028", "[")
"""What a word of a text may become."""


def damaged(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """The content of a file, changed in one way.

    Args:
        content: of the file, not empty.
        others: contents of other files, one of which may take its place.
        rng: what draws.
    """
    chance = rng.random()
    if chance < 0.02:
        return b""
    if chance < 0.06 and others:
        return rng.choice(others)
    taken_apart = next((change for sign, change in FORMATS if sign(content)), None)
    if taken_apart and rng.random() < 0.6:
        return taken_apart(content, rng)
    if _is_text(content) and rng.random() < 0.6:
        return rng.choice(TEXT)(content, rng)
    return rng.choice(BYTES)(content, rng)


# Bytes.


def _flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def _zeroed(content: bytes, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(content)), rng.choice((1, 16, 512))
    return content[:at] + bytes(min(size, len(content) - at)) + content[at + size :]


def _longer(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.choice((1, 8, 64))) + content[at:]


def _shorter(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + content[at + rng.choice((1, 8, 64)) :]


BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (_flipped, _cut, _zeroed, _longer, _shorter)


# Text.


def _is_text(content: bytes) -> bool:
    return b"\x00" not in content[:1024] and content[:512].decode("utf-8", "replace").count("\ufffd") < 2


def _encoded(content: bytes, rng: random.Random) -> bytes:
    text = content.decode("utf-8", "replace")
    encoding = rng.choice(("utf-16", "utf-16-be", "utf-8-sig", "latin-1", "utf-32"))
    return text.replace("a", "é").encode(encoding, "replace")


def _ended(content: bytes, rng: random.Random) -> bytes:
    return content.replace(b"\n", rng.choice((b"\r\n", b"\r", b"\n\n", b" ", "\u2028".encode())))


def _reworded(content: bytes, rng: random.Random) -> bytes:
    """One word or number is another."""
    words = list(re.finditer(rb"[\w.+-]+", content))
    if not words:
        return content + b"?"
    word = rng.choice(words)
    return content[: word.start()] + rng.choice(WORDS).encode() + content[word.end() :]


def _unmarked(content: bytes, rng: random.Random) -> bytes:
    """One separator, bracket or quote is gone, twice there, or another."""
    marks = list(re.finditer(rb"[^\w\s.+-]|\t", content))
    if not marks:
        return content + b"?"
    mark = rng.choice(marks)
    new = rng.choice((b"", mark[0] * 2, b",", b"\t", b'"', b"{", b"]", b":"))
    return content[: mark.start()] + new + content[mark.end() :]


def _relined(content: bytes, rng: random.Random) -> bytes:
    """A line is gone, twice there, in another place, or very long."""
    lines = content.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    line = lines.pop(at)
    new = rng.choice(([], [line, line], [line * 500], [line.rstrip() * 500 + b"\n"]))
    lines[at:at] = new
    if rng.random() < 0.3:
        lines.insert(rng.randrange(len(lines) + 1), line)
    return b"".join(lines)


TEXT: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _encoded,
    _ended,
    _reworded,
    _reworded,
    _unmarked,
    _relined,
)


# Formats.


def change_value(value: Any, rng: random.Random) -> Any:
    """A value of JSON with another value in one place, or without a key, or with one more."""
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            visit(node[key])

    visit(value)
    if not places:
        return rng.choice(ODD)
    node, key = rng.choice(places)
    chance = rng.random()
    if chance < 0.2:
        del node[key]
    elif chance < 0.3 and isinstance(node, dict):
        node["further"] = node[key]
    elif chance < 0.4:
        other, there = rng.choice(places)
        node[key] = json.loads(json.dumps(other[there]))
    else:
        node[key] = rng.choice(ODD)
    return value


def _json(content: bytes, rng: random.Random) -> bytes:
    """JSON of another structure, or nested deeper than a parser goes."""
    if rng.random() < 0.05:
        deep = (b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"NaN", b'"text"', b"[]", b"{}", b"\xff\xfe{}")
        return rng.choice(deep)
    return json.dumps(change_value(json.loads(content), rng)).encode()


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True


def _json_lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = _json(lines[at], rng)
    return b"\n".join(lines) + b"\n"


def _are_json_lines(content: bytes) -> bool:
    return content.startswith(b"{") and all(map(_is_json, content.splitlines()))


def _safetensors(content: bytes, rng: random.Random) -> bytes:
    """The header says another thing, or another tensor has these bytes, or a number is not finite."""
    (length,) = struct.unpack("<Q", content[:8])
    header, body = content[8 : 8 + length], content[8 + length :]
    if rng.random() < 0.2 and len(body) >= 8:
        at = rng.randrange(0, len(body) // 4) * 4
        return content[: 8 + length] + body[:at] + rng.choice((b"\x00\x00\xc0\x7f", b"\xff" * 4)) + body[at + 4 :]
    header = header.replace(b"F32", rng.choice((b"F64", b"I32", b"BF16", b"BOOL"))) if rng.random() < 0.2 else header
    changed = json.dumps(change_value(json.loads(header), rng)).encode()
    return struct.pack("<Q", rng.choice((len(changed),) * 9 + (1 << 62,))) + changed + body


def _is_safetensors(content: bytes) -> bool:
    return len(content) > 9 and content[8:9] == b"{" and struct.unpack("<Q", content[:8])[0] < len(content)


def _array(array: np.ndarray, rng: random.Random) -> np.ndarray:
    """Of another type, shape or content."""
    flat = array.reshape(-1)
    ways: list[Callable[[], np.ndarray]] = [
        lambda: array.astype("f8" if array.dtype.kind in "iub" else "f2" if array.dtype.kind == "f" else "O"),
        lambda: array.astype(str),
        lambda: array[None],
        lambda: flat,
        lambda: array[:-1] if array.ndim else array[None],
        lambda: np.zeros(0, array.dtype),
        lambda: np.zeros((0, 7)),
        lambda: np.concatenate([flat, flat]),
        lambda: np.asarray(rng.choice((float("nan"), -1, 1 << 40, "text", True))),
    ]
    if array.dtype.kind in "iuf" and array.size:
        odd: tuple[Any, ...] = (-1, 0, 2**31 - 1) if array.dtype.kind != "f" else (np.nan, np.inf, 1e38)

        def replaced() -> np.ndarray:
            new = flat.copy()
            with np.errstate(all="ignore"):
                new[rng.randrange(flat.size)] = np.asarray(rng.choice(odd)).astype(array.dtype)
            return new.reshape(array.shape)

        ways += [replaced] * 3
    return rng.choice(ways)()


def _npy(content: bytes, rng: random.Random) -> bytes:
    stream = io.BytesIO()
    np.save(stream, _array(np.load(io.BytesIO(content)), rng), allow_pickle=True)
    return stream.getvalue()


def _npz(content: bytes, rng: random.Random) -> bytes:
    with np.load(io.BytesIO(content)) as file:
        arrays = dict(file)
    key = rng.choice(list(arrays))
    chance = rng.random()
    if chance < 0.2:
        del arrays[key]
    elif chance < 0.3:
        arrays["further"] = arrays[key]
    else:
        arrays[key] = _array(arrays[key], rng)
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def _parquet(content: bytes, rng: random.Random) -> bytes:
    """A column is gone, of another name or type, has a null, or there are other rows."""
    import polars as pl

    frame = pl.read_parquet(io.BytesIO(content))
    name = rng.choice(frame.columns)
    kind = rng.choice((pl.String, pl.Float64, pl.Int8, pl.Boolean, pl.List(pl.String), pl.Binary))
    ways: list[Callable[[], pl.DataFrame]] = [
        lambda: frame.drop(name),
        lambda: frame.rename({name: rng.choice(("title", "x", "", "user"))}, strict=False),
        lambda: frame.with_columns(pl.col(name).cast(kind, strict=False)),
        lambda: frame.with_columns(pl.lit(None).alias(name)),
        lambda: frame.with_columns(pl.lit(None, frame[name].dtype).alias(name)),
        lambda: frame.with_columns(pl.lit(rng.choice((-1, 1 << 62, float("nan"), "text", True))).alias(name)),
        lambda: frame.with_columns(pl.concat_list(name, name).alias(name)),
        lambda: frame.with_columns(pl.struct(name).alias(name)),
        lambda: frame.with_columns(frame[name].shuffle(rng.randrange(99))),
        lambda: frame.head(0),
        lambda: frame.head(len(frame) - 1),
        lambda: pl.concat([frame, frame]),
        lambda: frame.select(pl.all().reverse()),
    ]
    stream = io.BytesIO()
    try:
        rng.choice(ways)().write_parquet(stream)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):  # a change that the column's type does not know
        frame.drop(name).write_parquet(stream)
    return stream.getvalue()


def _torch(content: bytes, rng: random.Random) -> bytes:
    """A tensor is gone, of another type, shape or layout, or something else stands in its place."""
    import torch

    body = torch.load(io.BytesIO(content), weights_only=False)
    states = [part for part in (body if isinstance(body, list) else [body]) if isinstance(part, dict)]
    state = rng.choice([part for part in states if part])
    key = rng.choice(list(state))
    old = state[key]
    if isinstance(old, torch.Tensor):
        ways: list[Callable[[], Any]] = [
            lambda: old.double(),
            lambda: old.half(),
            lambda: old.long(),
            lambda: old.to(torch.complex64),
            lambda: old.reshape(-1),
            lambda: old[None],
            lambda: old[:0],
            lambda: old.to_sparse(),
            lambda: torch.full_like(old, float("nan")),
            lambda: torch.zeros(1).expand(1 << 40),
            lambda: torch.nn.Parameter(old),
            lambda: old.to("meta"),
            lambda: old.numpy().tolist(),
            lambda: {"weight": old},
        ]
        state[key] = rng.choice(ways)()
    else:
        state[key] = rng.choice(ODD)
    chance = rng.random()
    if chance < 0.15:
        del state[key]
    elif chance < 0.25:
        state["further"] = torch.zeros(2)
    elif chance < 0.3:
        body = rng.choice((state.get(key), [], [body], {"state_dict": body}, (body, body), "text", 7))
    elif chance < 0.35:
        state[rng.choice((7, ("a", "b"), "x" * 5000))] = torch.zeros(2)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(body, stream, _use_new_zipfile_serialization=rng.random() < 0.9)
    return stream.getvalue()


def _gzip(content: bytes, rng: random.Random) -> bytes:
    """What is inside is damaged."""
    return gzip.compress(damaged(gzip.decompress(content), [], rng), 1)


def _is_npz(content: bytes) -> bool:
    return content.startswith(b"PK\x03\x04") and b".npy" in content[:200]


FORMATS: tuple[tuple[Callable[[bytes], bool], Callable[[bytes, random.Random], bytes]], ...] = (
    (lambda content: content.startswith(b"PAR1"), _parquet),
    (lambda content: content.startswith(b"\x93NUMPY"), _npy),
    (_is_npz, _npz),
    (lambda content: content.startswith(b"PK\x03\x04") and b"data.pkl" in content[:200], _torch),
    (lambda content: content.startswith(b"\x1f\x8b"), _gzip),
    (_is_safetensors, _safetensors),
    (_is_json, _json),
    (_are_json_lines, _json_lines),
)
"""How each format is known, and what changes it."""
