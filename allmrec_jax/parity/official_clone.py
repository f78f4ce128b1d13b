"""Modules of the user's clone of the official repository, imported as they are."""

import importlib
import importlib.util
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from allmrec_jax.errors import UserError


def import_clone(path: Path, wanted: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """The modules of the clone that are ``wanted``, by name, each with what is used of it.

    Their names (``models``, ``utils``) are too general to stay importable: afterwards they are forgotten again.

    Raises:
        UserError: a module cannot be imported or lacks what is used of it.
    """
    roots = ("models", "pre_train", "utils", "eval")
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in roots}
    stubs: dict[str, Any] = {}
    if importlib.util.find_spec("pytz") is None:
        # Imported for a name that nothing calls.
        stubs["pytz"] = types.ModuleType("pytz")
        stubs["pytz"].timezone = None
    if importlib.util.find_spec("sentence_transformers") is None:
        # In the environment of the recorded generation, which has no use for sentence encoders.
        stubs["sentence_transformers"] = types.ModuleType("sentence_transformers")
        stubs["sentence_transformers"].SentenceTransformer = None
    found = {}
    try:
        sys.modules.update(stubs)
        with mock.patch.object(sys, "path", [str(path), *sys.path]):
            importlib.invalidate_caches()
            for name, used in wanted.items():
                try:
                    found[name] = importlib.import_module(name)
                except Exception as error:  # whatever a stranger's module raises
                    raise UserError(f"{path}: {name} cannot be imported ({type(error).__name__}: {error})") from error
                for attribute in used:
                    if not hasattr(found[name], attribute):
                        raise UserError(f"{path}: {name} has no {attribute}: not the official repository")
    finally:
        for name in [name for name in sys.modules if name in stubs or name.split(".")[0] in roots]:
            del sys.modules[name]
        sys.modules.update(hidden)
    return found
