"""The README's results are those of the committed JSON files."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_results_section_is_up_to_date():
    program = [sys.executable, str(ROOT / "tools" / "readme_results.py"), "--check"]
    told = subprocess.run(program, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr


def table(number: int, value: float) -> dict[str, Any]:
    return {
        "schema": 1,
        "data": {"name": "Tiny", "hash": "0" * 64},
        "runs": [{"system": "SASRec", "seed": 0, "id": "1" * 64, "scenario": "overall", "candidates_sha": "2" * 64}],
        "systems": {"SASRec": {"all": {"n": 30, "hit@1": [value, 0.1, 0.3]}}},
        "settings": {"table": f"table{number}", "title": f"Table {number}: tiny", "llm": "/private/place/opt"},
    }


def test_every_table_that_is_kept_is_shown_with_its_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (10, 9):
        place = tmp_path / f"run{number}"
        place.mkdir()
        (place / "results.json").write_text(json.dumps(table(number, 0.2)))
        program = [sys.executable, str(ROOT / "tools" / "keep_results.py"), str(place), f"tiny{number}"]
        program += [
            "--command",
            "allmrec prepare x",
            "--command",
            f"allmrec experiment table{number}",
            "--out",
            str(tmp_path),
        ]
        subprocess.run(program, check=True)
    assert "private" not in (tmp_path / "tiny9.json").read_text()
    assert json.loads((tmp_path / "tiny9.json").read_text())["settings"]["llm"] == "opt"

    shown = runpy.run_path(str(ROOT / "tools" / "readme_results.py"))
    shown["load"].__globals__["RESULTS"] = tmp_path
    tables = shown["kept_tables"]()
    assert [name for name, _ in tables] == ["tiny9", "tiny10"]
    text = shown["kept_table"](*tables[0])
    assert text.startswith("Table 9: tiny\n\n```bash\nallmrec prepare x\nallmrec experiment table9\n```\n")
    assert "| SASRec | 30 | 0.200 (0.100 to 0.300) |" in text and "(benchmarks/results/tiny9.json)" in text
