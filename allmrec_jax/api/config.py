"""What a training is to be like, from a file."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from allmrec_jax.errors import UserError, did_you_mean, first_line, shown
from allmrec_jax.settings import convert
from allmrec_jax.trained.kinds import KINDS, TrainingKind

COMMON = {"preset": str, "seed": int, "model": str, "llm": str, "sentence_encoder": str, "longformer": str, "mesh": str}
"""What a file can say beside settings."""


class Config(NamedTuple):
    """What a file says.

    Attributes:
        common: of :data:`COMMON`, those that are said.
        settings: single settings by kind of training.
    """

    common: dict[str, Any]
    settings: dict[str, dict[str, Any]]


def read_config(path: str | os.PathLike[str], kinds: Sequence[str]) -> Config:
    """Reads YAML, or the ``run.json`` of a run.

    A setting stands under its kind (``stage2: {steps: 160}``); where one kind is trained, also by itself
    (``steps: 160``). What stands under other kinds is checked and left aside, so that one file serves several commands.

    Args:
        path: the file.
        kinds: the kinds that are trained.

    Raises:
        UserError: the file cannot be read, a key is unknown (the nearest known one is named), or a value is of another
            type.
    """
    import yaml

    path = Path(path)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or first_line(error)})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        reason = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"{path}{where}: not valid YAML ({reason})") from error
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None
    except ValueError as error:  # of a number or a date that Python cannot hold
        raise UserError(f"{path}: not valid YAML ({first_line(error)})") from error
    if found is None:
        return Config({}, {})
    if not isinstance(found, dict):
        raise UserError(f"{path}: a mapping of settings is expected, not a {type(found).__name__}")
    if {"kind", "identity", "settings"} <= set(found):
        return _of_run(path, found, kinds)
    common: dict[str, Any] = {}
    settings: dict[str, dict[str, Any]] = {}
    for key, value in found.items():
        name = str(key).replace("-", "_")
        if name in COMMON:
            if value is not None:
                common[name] = convert(f"{path}: {key}", COMMON[name], value)
        elif str(key) in KINDS:
            if not isinstance(value, dict):
                raise UserError(f"{path}: {key}: a mapping of settings is expected, not {shown(value)}")
            of_kind = settings.setdefault(str(key), {})
            of_kind |= _settings(KINDS[str(key)], value, f"{path}: {key}.")
        elif len(kinds) == 1 and name in KINDS[kinds[0]].setting_types():
            settings.setdefault(kinds[0], {}).update(_settings(KINDS[kinds[0]], {key: value}, f"{path}: "))
        elif owners := [kind for kind in kinds if name in KINDS[kind].setting_types()]:
            raise UserError(f"{path}: {key} is a setting of {' and '.join(owners)}; write it under one of them")
        else:
            alone = KINDS[kinds[0]].setting_types() if len(kinds) == 1 else ()
            near = did_you_mean(str(key), [*COMMON, *KINDS, *alone]) or ";"
            raise UserError(f"{path}: unknown key {shown(key)}{near} settings may stand under {', '.join(kinds)}")
    return Config(common, settings)


def as_yaml(common: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]]) -> str:
    """What :func:`read_config` reads."""
    import yaml

    plain = json.loads(json.dumps({**common, **settings}))
    return yaml.safe_dump({key: value for key, value in plain.items() if value is not None}, sort_keys=False)


def _of_run(path: Path, about: Mapping[str, Any], kinds: Sequence[str]) -> Config:
    """The settings and the seed of a run; a CF run's model too."""
    settings = about["settings"]
    if not isinstance(settings, dict):
        raise UserError(f"{path}: 'settings' is no mapping; the file is damaged")
    named = next((name for name in kinds if str(about["kind"]).startswith(KINDS[name].name)), None)
    if named is None:
        raise UserError(f"{path}: of a {str(about['kind'])[:60]} run; {', '.join(kinds)} is trained here")
    settings = dict(settings)
    common = {"seed": convert(f"{path}: seed", int, about.get("seed", 0))}
    if KINDS[named].by_model:
        common["model"] = str(settings.pop("model", "sasrec"))
    return Config(common, {named: _settings(KINDS[named], settings, f"{path}: settings.")})


def _settings(record: TrainingKind, given: Mapping[Any, Any], where: str) -> dict[str, Any]:
    names = {given_name: str(given_name).replace("-", "_") for given_name in given}
    return {name: record.convert(name, given[each], f"{where}{each}") for each, name in names.items()}
