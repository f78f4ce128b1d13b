"""The Python reference has every public name, and the drawn house every room."""

import re
from pathlib import Path

import allmrec_jax as ar

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "api.md"


def test_every_public_name_is_in_the_reference() -> None:
    shown = re.findall(r"^::: allmrec_jax\.(\w+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(shown) == sorted(name for name in ar.__all__ if name != "__version__")


def test_every_folder_is_in_the_drawing() -> None:
    drawn = re.findall(r"(\w+)/", (ROOT / "docs" / "images" / "house.svg").read_text(encoding="utf-8"))
    folders = {path.parent.name for path in (ROOT / "allmrec_jax").glob("*/__init__.py")} - {"assets"}
    assert folders - set(drawn) == set()
