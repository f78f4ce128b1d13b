"""The JSON files of a run: each through its schema, an error names the file and what to do."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from allmrec_jax.errors import UserError
from allmrec_jax.fileio import write_json
from allmrec_jax.records import read_about, read_best, read_card, read_cost, read_done, read_label, read_llm


@pytest.mark.parametrize(
    ("read", "name", "absent"),
    [(read_best, "best", None), (read_cost, "cost.json", None), (read_label, "label.json", {})],
)
def test_what_may_be_absent(tmp_path: Path, read: Callable[[Path], Any], name: str, absent: Any):
    assert read(tmp_path) == absent
    (tmp_path / name).write_text("[3]")
    with pytest.raises(UserError, match=rf"{name}: the file is \[3\]: should be an object, is a list; ."):
        read(tmp_path)


@pytest.mark.parametrize(
    ("read", "name", "text", "message"),
    [
        (read_about, "run.json", "{", "cannot be read .not JSON"),
        (read_about, "run.json", '{"kind": 3}', "kind is 3: should be a text|no 'identity'"),
        (read_done, "DONE", '{"export_sha256": {"../a": "b"}}', "a key in export_sha256"),
        (read_cost, "cost.json", '{"seconds": 1, "peak_mib": "much"}', "peak_mib is 'much': should be a number"),
        (partial(read_card, kind="stage1"), "export/stage1.json", '{"encoder": 1}', "encoder is 1: should be a text"),
        (partial(read_llm, kind="stage2"), "export/stage2.json", "{}", "no 'llm'; train this run again"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, read: Callable[[Path], Any], name: str, text: str, message: str):
    (tmp_path / "export").mkdir()
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name}: ({message})") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_names_of_a_run_are_levels_of_a_path(tmp_path: Path):
    about = {"kind": "cf", "identity": "ab", "settings": {}, "seed": 0, "upstream": {}}
    write_json(tmp_path / "run.json", {**about, "data": {"name": "..", "hash": ""}})
    with pytest.raises(UserError, match=r"run\.json, data: '\.\.' is no name for a folder"):
        read_about(tmp_path)
