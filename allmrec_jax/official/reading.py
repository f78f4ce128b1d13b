"""The official code's files, read and checked.

Pickles are read by unpicklers that know exactly what those files hold; anything else in them is refused, named, and not
run.
"""

import argparse
import contextlib
import io
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from allmrec_jax.errors import UserError
from allmrec_jax.official import parameters as official


class _PlainUnpickler(pickle.Unpickler):
    """For pickles of dictionaries, strings and numbers, which name no class or function."""

    def __init__(self, stream: io.BufferedIOBase, path: Path) -> None:
        super().__init__(stream)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        """Refuses."""
        raise UserError(refusal(self.path, f"{module}.{name}"))

    def persistent_load(self, pid: Any) -> Any:
        """Refuses."""
        raise UserError(refusal(self.path, "an object outside of the file"))


def refusal(path: Path, what: str) -> str:
    """What a pickle with anything unexpected gets."""
    return f"{path}: refused: the pickle asks for {what}, which such a file never holds; nothing of it was run"


def read_texts(path: Path) -> tuple[dict[int, str], dict[int, str]]:
    """Titles and descriptions by item.

    Raises:
        UserError: the file is missing, damaged, holds another thing, or anything but plain values.
    """
    try:
        with path.open("rb") as stream:
            body = _PlainUnpickler(stream, path).load()
    except (pickle.UnpicklingError, EOFError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: not a readable pickle ({error})") from error
    if not isinstance(body, dict) or set(body) != {"title", "description"}:
        raise UserError(f"{path}: should hold a dictionary of 'title' and 'description'")
    for name, values in body.items():
        if not isinstance(values, dict):
            raise UserError(f"{path}: {name} should be a dictionary from item to text")
        for item, text in values.items():
            if type(item) is not int or type(text) is not str:
                raise UserError(f"{path}: {name} of {item!r} should be a text by a whole number")
    return body["title"], body["description"]


def read_sequences(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Items [total] of all users, user by user, and offsets [U+1].

    Raises:
        UserError: the file is missing or empty, a line is not two numbers from 1, or a user is left out.
    """
    users: dict[int, list[int]] = {}
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            parts = line.split()
            if len(parts) != 2 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
                raise UserError(f"{path}, line {number}: {line.strip()[:40]!r} should be a user and an item, from 1")
            users.setdefault(int(parts[0]), []).append(int(parts[1]))
    if not users:
        raise UserError(f"{path}: no interactions")
    for user in range(1, max(users) + 1):
        if user not in users:
            raise UserError(
                f"{path}: user {user} of {max(users)} has no interaction; the official code fails there too"
            )
    sequences = [users[user] for user in range(1, max(users) + 1)]
    items = np.concatenate([np.asarray(sequence, np.int32) for sequence in sequences])
    return items, np.concatenate([[0], np.cumsum([len(sequence) for sequence in sequences])])


def load_torch(path: Path, *, arguments: bool = False) -> Any:
    """A torch file of plain tensors; with ``arguments`` also an ``argparse.Namespace``.

    Raises:
        UserError: the file is missing or damaged, or its pickle asks for anything else.
    """
    import torch

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    allowed = torch.serialization.safe_globals([argparse.Namespace]) if arguments else contextlib.nullcontext()
    try:
        with allowed:
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(refusal(path, found[1])) from None
        raise UserError(f"{path}: not a checkpoint of plain tensors ({_first_line(error)})") from None
    except (RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: damaged, or not a torch file ({_first_line(error)})") from None


def read_state(path: Path, state: Any = None) -> official.State:
    """A state dict as arrays, from ``path`` or already loaded from it.

    Raises:
        UserError: as :func:`load_torch`; or it is no state dict of float32 tensors.
    """
    import torch

    state = load_torch(path) if state is None else state
    if not isinstance(state, Mapping):
        raise UserError(f"{path}: should hold a state dict, holds a {type(state).__name__}")
    for key, value in state.items():
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            raise UserError(f"{path}: key {key!r} should be a float32 tensor")
    return {key: value.numpy() for key, value in state.items()}


def read_sasrec(path: Path) -> tuple[int, int, argparse.Namespace, official.State]:
    """Users, items, arguments and checked parameters of the official SASRec.

    Raises:
        UserError: as :func:`load_torch`; or a part, key or argument is missing, extra or does not fit the others.
    """
    body = load_torch(path, arguments=True)
    if not isinstance(body, list) or len(body) != 2 or not isinstance(body[0], dict):
        raise UserError(f"{path}: should hold a list of arguments and a state dict")
    about, state = body[0], read_state(path, body[1])
    if set(about) != {"user_num", "item_num", "args"} or not isinstance(about["args"], argparse.Namespace):
        raise UserError(f"{path}: should begin with user_num, item_num and args, has {', '.join(map(str, about))}")
    args = about["args"]
    for name, kind in _ARGUMENTS.items():
        if not isinstance(getattr(args, name, None), kind):
            raise UserError(f"{path}: its arguments have no usable {name}")
    for name in ("user_num", "item_num"):
        if type(about[name]) is not int:
            raise UserError(f"{path}: {name} should be a whole number")
    positions = state.get("pos_emb.weight", np.zeros((args.maxlen, 0)))
    if len(positions) != args.maxlen:
        raise UserError(
            f"{path}: its arguments say maxlen {args.maxlen}, but its key 'pos_emb.weight' holds {len(positions)} "
            "positions; it was not saved by one training run, use the checkpoint as that wrote it"
        )
    shapes = official.sasrec_shapes(about["item_num"], args.hidden_units, args.num_blocks, args.maxlen)
    official.check_state(state, shapes, path)
    return about["user_num"], about["item_num"], args, state


_ARGUMENTS: dict[str, Any] = {
    "hidden_units": int,
    "maxlen": int,
    "num_blocks": int,
    "num_heads": int,
    "dropout_rate": (int, float),
}
"""Those that decide the computation."""


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
