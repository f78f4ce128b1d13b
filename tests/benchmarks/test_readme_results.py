"""The README's results are those of the committed JSON files."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_results_section_is_up_to_date():
    program = [sys.executable, str(ROOT / "benchmarks" / "readme_results.py"), "--check"]
    told = subprocess.run(program, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr
