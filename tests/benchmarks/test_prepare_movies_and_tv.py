"""The benchmark on a few thousand reviews: that it runs and measures, not how fast."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "prepare_movies_and_tv.py"


def test_benchmark_writes_what_it_measured(tmp_path):
    out = tmp_path / "result.json"
    command = [sys.executable, PROGRAM, "--reviews", "3000", "--folder", tmp_path, "--out", out]
    subprocess.run(command, capture_output=True, text=True)  # a busy machine may miss the limit on time
    result = json.loads(out.read_text())
    assert result["reviews"] == 3000
    assert 0 < result["data_set"]["interactions"] < 3000
    assert 0.01 < result["prepare"]["peak_gib"] < result["prepare"]["limit_peak_gib"]
    assert result["load"]["seconds"] > 0
    out.write_text(json.dumps(result | {"load": {}}))
    subprocess.run([*command, "--load-only"], capture_output=True, text=True)
    again = json.loads(out.read_text())
    assert again["prepare"] == result["prepare"] and again["load"]["seconds"] > 0
    assert (tmp_path / "Movies_and_TV.json.gz").stat().st_size == result["gzipped_bytes"]
