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

FORMAT_VERSION = 2
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
    options = {
        field.name: _option(field, hint, {name: getattr(preset, field.name) for name, preset in presets.items()})
        for field, hint in _fields(presets[default])
    }
    return _decorator(options, list(presets), default)


def model_options(
    models: Mapping[str, Mapping[str, Any]], default_model: str, *, default: str = "paper"
) -> Callable[[Callable], Callable]:
    """:func:`settings_options` where each model has presets and settings of its own.

    The command receives ``model: str``, ``preset: str`` and ``overrides: dict``; ``resolve(models[model], …)`` refuses
    a preset or setting that the model does not have.
    """
    found: dict[str, tuple[dataclasses.Field, Any]] = {}
    for presets in models.values():
        for field, hint in _fields(presets[default]):
            found.setdefault(field.name, (field, hint))
    options = {}
    for name, (field, hint) in found.items():
        values: dict[str, Any] = {}
        for model, presets in models.items():
            each = {preset: getattr(value, name) for preset, value in presets.items() if hasattr(value, name)}
            same = len(set(map(repr, each.values()))) == 1
            values |= {model: each[default]} if same else {f"{model} {preset}": v for preset, v in each.items()}
        options[name] = _option(field, hint, values)
    choice = click.option(
        "--model", type=click.Choice(list(models)), default=default_model, show_default=True, help="Which model."
    )
    known = list(dict.fromkeys(preset for presets in models.values() for preset in presets))
    return lambda command: choice(_decorator(options, known, default)(command))


def _fields(settings: Any) -> list[tuple[dataclasses.Field, Any]]:
    """The fields that can be chosen, with their types: where there is one value only there is no choice."""
    hints = typing.get_type_hints(type(settings))
    fields = [(field, hints[field.name]) for field in dataclasses.fields(settings)]
    return [(field, hint) for field, hint in fields if typing.get_origin(hint) is not Literal or len(hint.__args__) > 1]


def _decorator(options: Mapping[str, Callable], presets: list[str], default: str) -> Callable[[Callable], Callable]:
    def decorate(command: Callable) -> Callable:
        def wrapped(**kwargs: Any) -> Any:
            overrides = {name: value for name in options if (value := kwargs.pop(name)) is not None}
            return command(overrides=overrides, **kwargs)

        wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
        wrapped.__click_params__ = list(getattr(command, "__click_params__", []))  # type: ignore[attr-defined]
        for option in reversed(list(options.values())):
            wrapped = option(wrapped)
        return click.option("--preset", type=click.Choice(presets), default=default, show_default=True)(wrapped)

    return decorate


def _option(field: dataclasses.Field, hint: Any, values: Mapping[str, Any]) -> Callable:
    flag = "--" + field.name.replace("_", "-")
    shown = ", ".join(f"{name} {value}" for name, value in values.items())
    if len(set(map(repr, values.values()))) == 1 and len(values) > 1:
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


def deciding(settings: Any) -> dict[str, Any]:
    """The fields of a settings dataclass that an identity holds: all but ``added`` ones that are at their default."""
    found = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if not (field.metadata.get("added") and value == field.default):
            found[field.name] = deciding(value) if dataclasses.is_dataclass(value) else value
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
        "settings": deciding(settings),
        "seed": seed,
        "data": data_hash,
        "upstream": dict(upstream),
        "format": FORMAT_VERSION,
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
