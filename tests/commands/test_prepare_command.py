"""``allmrec prepare`` as a user meets it: output, exit codes, one line for an error."""

import gzip
import json
import subprocess
import sys

import pytest

from allmrec_jax.data.dataset import load_dataset


def allmrec(*args):
    return subprocess.run([sys.executable, "-m", "allmrec_jax.cli", *map(str, args)], capture_output=True, text=True)


@pytest.fixture
def source(tmp_path):
    reviews = [
        json.dumps({"reviewerID": user, "asin": item, "overall": 5.0, "unixReviewTime": n})
        for user in "abcdef"
        for n, item in enumerate("VWXYZ")
    ]
    (tmp_path / "Video_Games.json.gz").write_bytes(gzip.compress("\n".join([*reviews, "{"]).encode()))
    items = [json.dumps({"asin": item, "title": item, "description": []}) for item in "VWXYZ"]
    (tmp_path / "meta_Video_Games.json.gz").write_bytes(gzip.compress("\n".join(items).encode()))
    return tmp_path / "Video_Games.json.gz"


def test_counts_stand_beside_the_papers_and_the_last_line_is_the_directory(source, tmp_path):
    result = allmrec("prepare", source, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "64,073" in result.stdout and "598,509" in result.stdout
    assert "Video_Games.json.gz: line 31: invalid JSON" in result.stdout
    assert result.stdout.splitlines()[-1] == str(tmp_path / "out")
    assert load_dataset(tmp_path / "out").num_users == 6


def test_other_data_of_that_name_has_no_published_counts(tmp_path):
    rows = [f"{user},{item},{item}" for user in "abcde" for item in "VWXYZ"]
    (tmp_path / "Video_Games.csv").write_text("\n".join(["user_id,item_id,title", *rows]))
    result = allmrec("prepare", tmp_path / "Video_Games.csv", "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "64,073" not in result.stdout


def test_options_reach_the_settings(source, tmp_path):
    result = allmrec(
        "prepare", source, "--out", tmp_path / "out", "--preset", "official", "--min-user", 2, "--name", "x"
    )
    assert result.returncode == 0, result.stderr
    manifest = load_dataset(tmp_path / "out").manifest
    assert manifest["name"] == "x" and manifest["preset"] == "official"
    assert manifest["settings"]["min_user"] == 2 and manifest["settings"]["core"] == "once"
    assert "64,073" not in result.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--min-user", "99"], "no user left after filtering"),
        (["--max-bad-lines", "0"], "more than 0 bad lines"),
        (["--source", "netflix"], "netflix"),
        (["--columns", "user"], "--columns"),
        (["--items", "nowhere.json"], "nowhere.json: no such file"),
    ],
)
def test_error_is_one_line_and_exit_code_2(source, tmp_path, args, message):
    result = allmrec("prepare", source, "--out", tmp_path / "out", *args)
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_help_has_an_example():
    result = allmrec("prepare", "--help")
    assert result.returncode == 0
    assert "allmrec prepare ml-latest-small --out data/ml" in result.stdout
