"""The Python reference has every public name."""

import re
from pathlib import Path

import allmrec_jax as ar

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"


def test_every_public_name_is_in_the_reference() -> None:
    shown = re.findall(r"^::: allmrec_jax\.(\w+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(shown) == sorted(name for name in ar.__all__ if name != "__version__")
