"""Packages of others, as pip leaves them: a module, and the entry point that names it."""

import importlib
from pathlib import Path

import pytest

from allmrec_jax import registry


def install(root: Path, module: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a plugin where Python finds it; it is imported when a registry is read next."""
    (root / f"{module}.py").write_text(text)
    about = root / f"{module}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{registry.PLUGINS}]\n{module} = {module}\n")
    monkeypatch.syspath_prepend(root)
    monkeypatch.setattr(registry, "_loading", False)
    importlib.invalidate_caches()
