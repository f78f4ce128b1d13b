"""Settings of a run: frozen dataclasses with presets, and the identity they give a run.

A stage declares one dataclass whose fields are made by :func:`setting`, and one dictionary of presets.
:func:`resolve` makes an instance of a preset and what is given beside it: keywords, options, lines of a file.
"""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from allmrec_jax.errors import UserError, did_you_mean, shown

FORMAT_VERSION = 2
"""Part of every identity: raise it when a change makes the same settings give other numbers."""

S = TypeVar("S")


def setting(default: Any, help: str, *, added: bool = False) -> Any:
    """A dataclass field with its one-line description; ``default`` is the paper's value unless ``help`` says so.

    ``added`` says that runs of this kind were made before the field was there, with what is now its default: at the
    default it is no part of the identity, so that those runs are still found.
    """
    return dataclasses.field(default=default, metadata={"help": help, "added": added})


def choosable(settings: Any) -> dict[str, tuple[dataclasses.Field, Any]]:
    """The fields of a settings dataclass (or of an instance) that can be chosen, with their types, by name.

    A field of one possible value only names a variant and is no choice.
    """
    hints = typing.get_type_hints(settings if isinstance(settings, type) else type(settings))
    return {
        field.name: (field, hints[field.name])
        for field in dataclasses.fields(settings)
        if typing.get_origin(hints[field.name]) is not Literal or len(typing.get_args(hints[field.name])) > 1
    }


def convert(where: str, hint: Any, value: Any) -> Any:
    """``value`` as the type of a setting: a text as on a command line, or what YAML, JSON or Python gives.

    Args:
        where: what the error calls it, e.g. ``"--set steps=x"``.
        hint: the field's type: ``bool``, ``int``, ``float``, ``str``, a ``Literal``, or one of them or ``None``.
        value: to convert.

    Raises:
        UserError: the value is of another type, or not one of the literals.
    """
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None or value == "none":
            return None
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is Literal:
        found = [arg for arg in typing.get_args(hint) if value == arg or value == str(arg)]
        if not found:
            known = [str(arg) for arg in typing.get_args(hint)]
            near = did_you_mean(value, known) if isinstance(value, str) else ""
            raise UserError(f"{where}: one of {', '.join(known)} is expected, not {shown(value)}{near}")
        return found[0]
    if hint is bool:
        if isinstance(value, bool):
            return value
        if value in ("true", "false"):
            return value == "true"
        raise UserError(f"{where}: true or false is expected, not {shown(value)}")
    accepted = {int: (int, str), float: (int, float, str), str: (str,)}
    try:
        if isinstance(value, bool) or not isinstance(value, accepted[hint]):
            raise ValueError
        return hint(value)
    except (ValueError, OverflowError):
        words = {int: "a whole number", float: "a number", str: "a text"}
        raise UserError(f"{where}: {words[hint]} is expected, not {shown(value)}") from None


def resolve(presets: Mapping[str, S], preset: str, overrides: Mapping[str, Any] = types.MappingProxyType({})) -> S:
    """The preset's settings with ``overrides`` in place, each converted to the setting's type.

    Raises:
        UserError: an unknown preset or setting (the nearest known one is named), or a value of another type.
    """
    if preset not in presets:
        raise UserError(f"unknown preset {preset!r}; known: {', '.join(presets)}{did_you_mean(preset, presets)}")
    hints = typing.get_type_hints(type(presets[preset]))
    if unknown := sorted(set(overrides) - set(hints)):
        near = did_you_mean(unknown[0], hints) or ";"
        raise UserError(f"unknown setting {unknown[0]!r}{near} known: {', '.join(sorted(hints))}")
    given = {name: convert(f"setting {name}", hints[name], value) for name, value in overrides.items()}
    return dataclasses.replace(presets[preset], **given)  # type: ignore[type-var]


def hashed_fields(settings: Any) -> dict[str, Any]:
    """The fields of a settings dataclass that an identity holds: all but ``added`` ones that are at their default."""
    found = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if not (field.metadata.get("added") and value == field.default):
            found[field.name] = hashed_fields(value) if dataclasses.is_dataclass(value) else value
    return found


def identity(kind: str, settings: Any, seed: int, data_hash: str, upstream: Mapping[str, str]) -> str:
    """SHA-256 (hex) over what decides a run's numbers: no paths, mesh or logging.

    Args:
        kind: what is trained, e.g. ``"stage1"``.
        settings: the resolved settings dataclass.
        data_hash: the data set's hash.
        upstream: identities of the frozen inputs by role, e.g. ``{"cf": "…", "llm": "…"}``.
    """
    body = {
        "kind": kind,
        "settings": hashed_fields(settings),
        "seed": seed,
        "data": data_hash,
        "upstream": dict(upstream),
        "format": FORMAT_VERSION,
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
