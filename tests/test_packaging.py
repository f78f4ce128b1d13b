"""What a wheel holds is said by lists in pyproject.toml: nothing may be missing from them."""

import importlib.util
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def library_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "allmrec_jax"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        return [
            path for path in (ROOT / "allmrec_jax").rglob("*") if path.is_file() and "__pycache__" not in path.parts
        ]
    return [ROOT / name for name in listed.stdout.splitlines()]


def test_every_package_is_listed():
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in library_files() if path.suffix == ".py"}
    listed = set(SETUPTOOLS["packages"])
    assert found == listed - {"allmrec_jax.train", "allmrec_jax.eval"}
    assert SETUPTOOLS["package-dir"] == {"allmrec_jax.train": "train", "allmrec_jax.eval": "eval"}


def test_every_data_file_is_listed():
    shipped = {
        path
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    assert [path for path in library_files() if path.suffix != ".py" and path not in shipped] == []


@pytest.mark.parametrize("name", ["train", "eval"])
def test_programs_are_submodules_of_the_library(name):
    spec = importlib.util.find_spec(f"allmrec_jax.{name}")
    assert spec is not None and spec.origin is not None
    assert Path(spec.origin).name == "__init__.py"
