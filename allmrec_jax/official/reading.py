"""The official code's files, read and checked.

Of a pickle only the instructions that such a file is made of are followed; anything else in it is refused, named, and
not run.
"""

import argparse
import contextlib
import pickle
import pickletools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from allmrec_jax.errors import UserError, first_line
from allmrec_jax.fileio import refuse_pointer
from allmrec_jax.official import parameters as official

_TEXT_OPCODES = frozenset(
    "PROTO FRAME STOP MARK EMPTY_DICT DICT SETITEM SETITEMS UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "INT BININT BININT1 BININT2 LONG LONG1 PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET".split()
)
"""What a pickle of dictionaries, strings and numbers is made of: no class is named, and no tuple made, for nested ones
take for ever to hash."""


def refusal(path: Path, what: str) -> str:
    """What a pickle with anything unexpected gets."""
    return f"{path}: refused: the pickle asks for {what}, which such a file never holds; nothing of it was run"


def read_texts(path: Path) -> tuple[dict[int, str], dict[int, str]]:
    """Titles and descriptions by item.

    Raises:
        UserError: the file is missing, damaged, holds another thing, or anything but plain values.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    refuse_pointer(path)
    content = path.read_bytes()
    try:
        texts = ["", ""]
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
                raise UserError(refusal(path, ".".join(str(argument).split() if argument else texts)))
            if isinstance(argument, str):
                texts = [texts[1], argument]
            if opcode.name not in _TEXT_OPCODES:
                raise UserError(refusal(path, f"the instruction {opcode.name}"))
        body = pickle.loads(content)  # texts and numbers by texts and numbers: nothing that could run
    except UserError:
        raise
    except Exception as error:  # damaged pickles raise whatever their instructions lead to
        raise UserError(f"{path}: not a readable pickle ({first_line(error)})") from None
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
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    refuse_pointer(path)
    users: dict[int, list[int]] = {}
    with path.open(encoding="utf-8", errors="replace") as stream:
        for number, line in enumerate(stream, 1):
            parts = line.split()
            if len(parts) != 2 or not all(re.fullmatch("0*[1-9][0-9]{0,8}", part) for part in parts):
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
    refuse_pointer(path)
    allowed = torch.serialization.safe_globals([argparse.Namespace]) if arguments else contextlib.nullcontext()
    try:
        with allowed:
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(refusal(path, found[1])) from None
        raise UserError(f"{path}: not a checkpoint of plain tensors ({first_line(error)})") from None
    except Exception as error:  # damaged pickles raise whatever their instructions lead to
        raise UserError(f"{path}: damaged, or not a torch file ({first_line(error)})") from None


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
        plain = isinstance(value, torch.Tensor) and value.dtype == torch.float32 and value.layout == torch.strided
        plain = plain and not value.is_meta
        if not isinstance(key, str) or not plain:
            raise UserError(f"{path}: key {str(key)[:80]!r} should be a dense float32 tensor")
    return {key: value.detach().numpy() for key, value in state.items()}


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
    given = {name: getattr(args, name) for name in (*_ARGUMENTS, *_RECORDED) if hasattr(args, name)}
    for name, (kind, least, most) in (_ARGUMENTS | _RECORDED).items():
        if name in _RECORDED and name not in given:
            continue
        value: Any = given.get(name)
        if type(value) not in kind or not least <= value <= most:
            raise UserError(f"{path}: its arguments have no usable {name}")
    if args.hidden_units % args.num_heads:
        raise UserError(f"{path}: its num_heads {args.num_heads} do not divide its hidden_units {args.hidden_units}")
    for name in ("user_num", "item_num"):
        if type(about[name]) is not int or not 1 <= about[name] < 2**31:
            raise UserError(f"{path}: {name} should be a whole number from 1")
    positions = state.get("pos_emb.weight", np.zeros((args.maxlen, 0)))
    if len(positions) != args.maxlen:
        raise UserError(
            f"{path}: its arguments say maxlen {args.maxlen}, but its key 'pos_emb.weight' holds {len(positions)} "
            "positions; it was not saved by one training run, use the checkpoint as that wrote it"
        )
    shapes = official.sasrec_shapes(about["item_num"], args.hidden_units, args.num_blocks, args.maxlen)
    official.check_state(state, shapes, path)
    return about["user_num"], about["item_num"], args, state


_WHOLE = (int,)
_ARGUMENTS: dict[str, tuple[tuple[type, ...], float, float]] = {
    "hidden_units": (_WHOLE, 1, 2**20),
    "maxlen": (_WHOLE, 1, 2**20),
    "num_blocks": (_WHOLE, 1, 1024),
    "num_heads": (_WHOLE, 1, 2**20),
    "dropout_rate": ((int, float), 0, 1),
}
"""Those that decide the computation: types, least and most."""

_RECORDED: dict[str, tuple[tuple[type, ...], float, float]] = {
    "lr": ((int, float), 0, 1e6),
    "batch_size": (_WHOLE, 1, 2**31),
    "num_epochs": (_WHOLE, 0, 2**31),
}
"""Those that tell of the training, where they are there."""
