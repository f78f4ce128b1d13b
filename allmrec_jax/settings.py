"""Settings of a run: frozen dataclasses with presets, and the identity they give a run.

A stage declares one dataclass whose fields are made by :func:`setting`, and one dictionary of presets.
:func:`settings_options` turns the fields into command-line options, :func:`resolve` turns preset and options
back into an instance.
"""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import click

from allmrec_jax.errors import UserError

FORMAT_VERSION = 1
"""Part of every identity: raise it when a change makes the same settings give other numbers."""

S = TypeVar("S")


def setting(default: Any, help: str, *, added: bool = False) -> Any:
    """A dataclass field with its one-line description; ``default`` is the paper's value unless ``help`` says so.

    ``added`` says that runs of this kind were made before the field was there, with what is now its default: at the
    default it is no part of the identity, so that those runs are still found.
    """
    return dataclasses.field(default=default, metadata={"help": help, "added": added})


def settings_options(presets: Mapping[str, Any], *, default: str = "paper") -> Callable[[Callable], Callable]:
    """A click decorator: ``--preset`` and one option for each field of the presets' dataclass.

    The command receives ``preset: str`` and ``overrides: dict`` (only what the user gave), ready for :func:`resolve`.
    """
    cls = type(presets[default])
    hints = typing.get_type_hints(cls)

    def decorate(command: Callable) -> Callable:
        names = [field.name for field in dataclasses.fields(cls)]

        def wrapped(**kwargs: Any) -> Any:
            overrides = {name: value for name in names if (value := kwargs.pop(name)) is not None}
            return command(overrides=overrides, **kwargs)

        wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
        wrapped.__click_params__ = list(getattr(command, "__click_params__", []))  # type: ignore[attr-defined]
        for field in reversed(dataclasses.fields(cls)):
            wrapped = _option(field, hints[field.name], presets)(wrapped)
        return click.option("--preset", type=click.Choice(list(presets)), default=default, show_default=True)(wrapped)

    return decorate


def _option(field: dataclasses.Field, hint: Any, presets: Mapping[str, Any]) -> Callable:
    flag = "--" + field.name.replace("_", "-")
    values = {name: getattr(preset, field.name) for name, preset in presets.items()}
    shown = ", ".join(f"{name} {value}" for name, value in values.items())
    if len(set(map(repr, values.values()))) == 1:
        shown = str(next(iter(values.values())))
    help = f"{field.metadata['help']}  [{shown}]"
    if hint is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", field.name, default=None, help=help)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    kind = click.Choice(typing.get_args(hint)) if typing.get_origin(hint) is Literal else hint
    return click.option(flag, field.name, type=kind, default=None, help=help)


def resolve(presets: Mapping[str, S], preset: str, overrides: Mapping[str, Any] = types.MappingProxyType({})) -> S:
    """The preset's settings with ``overrides`` in place. An unknown preset or name is a :class:`UserError`."""
    if preset not in presets:
        raise UserError(f"unknown preset {preset!r}; known: {', '.join(presets)}")
    names = {field.name for field in dataclasses.fields(presets[preset])}  # type: ignore[arg-type]
    if unknown := sorted(set(overrides) - names):
        raise UserError(f"unknown setting {unknown[0]!r}; known: {', '.join(sorted(names))}")
    return dataclasses.replace(presets[preset], **overrides)  # type: ignore[type-var]


def identity(kind: str, settings: Any, seed: int, data_hash: str, upstream: Mapping[str, str]) -> str:
    """SHA-256 (hex) over what decides a run's numbers: no paths, mesh or logging.

    Args:
        kind: what is trained, e.g. ``"stage1"``.
        settings: the resolved settings dataclass.
        data_hash: the data set's hash.
        upstream: identities of the frozen inputs by role, e.g. ``{"cf": "…", "llm": "…"}``.
    """
    fields = {field.name: field for field in dataclasses.fields(settings)}
    body = {
        "kind": kind,
        "settings": {
            name: value
            for name, value in dataclasses.asdict(settings).items()
            if not (fields[name].metadata.get("added") and value == fields[name].default)
        },
        "seed": seed,
        "data": data_hash,
        "upstream": dict(upstream),
        "format": FORMAT_VERSION,
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
