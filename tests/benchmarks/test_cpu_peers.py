"""The comparison with PyTorch at a trial's shape: both sides compute the same, and all four steps are measured."""

import json
import subprocess
import sys
from pathlib import Path

LAYER = ("one layer, forward", "one layer, gradient")
PRODUCTS = ("one layer's dense products, gradient", "one encoder layer's dense products, gradient")
PROGRAM = Path(__file__).parents[2] / "benchmarks" / "cpu_peers.py"


def test_both_sides_agree_and_are_measured(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    shape = ["--hidden", "32", "--layers", "2", "--heads", "4", "--vocabulary", "1000", "--samples", "4"]
    command = [sys.executable, PROGRAM, *shape, "--text-tokens", "16", "--repeats", "1", "--out", out]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # it stops where the two sides differ
    seconds = json.loads(out.read_text())["seconds"]
    assert list(seconds) == ["stage-1 step", "stage-2 step", "ranking", "generation", *LAYER, *PRODUCTS]
    assert all(step["ours"] > 0 and step["torch"] > 0 for step in seconds.values())
