"""Every block of README.md runs: commands as they stand there, with trainings of a few steps."""

import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from allmrec_jax.cli import allmrec
from allmrec_jax.trained.kinds import TrainingKind

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
RUN_BY_MAKE = {"demo": "allmrec experiment demo", "test": "-m pytest", ".venv": "pip install"}
"""What a target comes down to; `tests/experiments/test_demo.py` runs the demo, on tiny data."""


BUDGETS: Mapping[str, Mapping[str, Any]] = {
    "cf": {"epochs": 1},
    "stage1": {"epochs": 1, "text_max_tokens": 8},
    "stage2": {
        "steps": 2,
        "warm_start_steps": 2,
        "batch_size": 4,
        "title_max_tokens": 6,
        "history_length": 2,
        "validation_users": 4,
    },
}
"""A few steps of each training, which the blocks of the pages run in place of the presets' minutes."""


@pytest.fixture
def short_trainings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every command and call trains as its page says, for a few steps only; with the promotion that Optax needs."""
    settings = TrainingKind.settings

    def cut(self: TrainingKind, preset: str, changes: Mapping[str, Any] = {}, model: str = "sasrec") -> Any:
        return settings(self, preset, {**BUDGETS.get(self.name, {}), **changes}, model)

    monkeypatch.setattr(TrainingKind, "settings", cut)
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with ``clicks.csv`` and ``products.csv`` as the pages show them."""
    random = np.random.default_rng(0)
    titles = ["Camping lamp", "Folding chair"]
    titles += [
        f"{how} {what}" for how in ("Red", "Small", "Light", "Old", "Blue") for what in ("tent", "rope", "stove")
    ]
    titles += [
        f"{how} {what}" for how in ("Grey", "Large", "Quiet") for what in ("axe", "bag", "boat", "cup", "hat", "map")
    ]
    lines = ["user_id,item_id,rating,timestamp"]
    for user in range(1, 31):
        for step, item in enumerate(random.permutation(len(titles))[:9]):
            lines.append(f"u{user},p{item},{random.integers(1, 6)},{1700000000 + 86400 * step}")
    (tmp_path / "clicks.csv").write_text("\n".join(lines) + "\n")
    products = [f'p{item},{title},"For the open air, 2 kg"' for item, title in enumerate(titles)]
    (tmp_path / "products.csv").write_text("\n".join(["item_id,title,description", *products]) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(language: str, having: str) -> list[str]:
    return [block for name, block in BLOCKS if name == language and having in block]


def test_it_is_short_and_all_of_its_blocks_are_run_here():
    assert len(README.encode()) <= 6 * 1024
    assert {language for language, _ in BLOCKS} == {"bash", "python", "text"}
    lines = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines()]
    assert [line for line in lines if not line.startswith(("make ", "allmrec "))] == []
    assert len(blocks("python", "import allmrec_jax as ar")) == sum(language == "python" for language, _ in BLOCKS)


@pytest.mark.parametrize(
    "target", [name for block in blocks("bash", "make ") for name in re.findall(r"make (\S+)", block)]
)
def test_targets_do_what_they_say(target: str):
    told = subprocess.run(["make", "-n", "-B", target], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert RUN_BY_MAKE[target] in told.stdout


def test_the_links_lead_somewhere():
    places = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(places) > 10
    assert [place for place in places if not (ROOT / place).exists()] == []


def test_from_a_table_of_clicks_to_recommendations(
    shop: Path, short_trainings: None, capfd: pytest.CaptureFixture[str]
):
    (block,) = blocks("bash", "allmrec fit")
    assert len(block.splitlines()) <= 5
    for line in block.splitlines():
        if line.startswith("allmrec "):
            allmrec.main(line.split()[1:], prog_name="allmrec", standalone_mode=False)
    shown = [line.split() for line in capfd.readouterr().out.splitlines()]
    (expected,) = blocks("text", "probability")
    headings = [line.split() for line in expected.splitlines() if not re.search(r"\d", line)]

    assert headings and [line for line in headings if line not in shown] == []


def test_the_python_block_and_the_tutorial(shop: Path, short_trainings: None):
    (block,) = blocks("python", "import allmrec_jax as ar")
    *before, last = block.strip().splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(before), names)
    results = eval(last, names)
    assert set(results.results["systems"]) >= {"SASRec", "A-LLMRec", "LLM-Only"}
    assert len(names["system"].recommend(history=["Camping lamp"], count=5)) == 5

    tutorial = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    for code in re.findall(r"^```python\n(.*?)^```", tutorial, re.MULTILINE | re.DOTALL):
        exec(code, names)
    assert names["system"].name == "shop"
