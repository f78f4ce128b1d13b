"""``allmrec prepare`` as a user meets it: output, exit codes, one line for an error."""

import gzip
import json
import os
import re
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


def test_the_end_says_what_was_read_from_where(source, tmp_path):
    result = allmrec("prepare", source, "--out", tmp_path / "out")
    end = result.stdout[result.stdout.index("╰" if "╰" in result.stdout else "─┘") :]
    assert "user = reviewerID, item = asin, rating = overall, time = unixReviewTime" in end
    assert re.search(r"^rating rule +all$", end, re.MULTILINE)
    assert re.search(r"^titles +5 of 5 items \(100%\)$", end, re.MULTILINE)
    assert re.search(r"^descriptions +0 of 5 items \(0%\)$", end, re.MULTILINE)
    assert "warning: Video_Games.json.gz: all times lie before 1973" in end


ESCAPE = "\x1b]0;owned\x07"


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_any_terminal_and_locale(tmp_path, environment):
    folder = tmp_path / "ü日本 data"
    folder.mkdir()
    rows = [f"{user},{item},{item}é" for user in "abcde" for item in "VWXYZ"]
    (folder / "Café.csv").write_text(
        "\n".join([f"user_id,item_id,title,x{ESCAPE}", *(f"{row},1" for row in rows), "é"])
    )
    result = subprocess.run(
        [sys.executable, "-m", "allmrec_jax.cli", "prepare", str(folder / "Café.csv"), "--out", str(tmp_path / "o é")],
        capture_output=True,
        env={key: value for key, value in os.environ.items() if key != "PYTHONIOENCODING"} | environment,
    )
    assert result.returncode == 0, result.stderr
    assert b"\x1b" not in result.stdout and b"x\\x1b]0;owned\\x07" in result.stdout
    data = load_dataset(tmp_path / "o é")
    assert data.name == "Café" and data.manifest["source"]["files"] == ["Café.csv"] and data.titles[1] == "Vé"


def test_control_characters_of_a_header_are_shown(tmp_path):
    (tmp_path / "x.csv").write_text(f"user_id,{ESCAPE}item,rating\n1,2,3\n")
    result = allmrec("prepare", tmp_path / "x.csv", "--out", tmp_path / "out")
    assert result.returncode == 2 and "\\x1b]0;owned\\x07item" in result.stderr and "\x1b" not in result.stderr
