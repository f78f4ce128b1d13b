"""Registries and the plugins that add to them."""

import dataclasses
import sys

import pytest
from plugins import install

from allmrec_jax.errors import UserError
from allmrec_jax.registry import Registry


@dataclasses.dataclass(frozen=True)
class Record:
    name: str
    value: int = 0


def test_records_are_found_by_name_in_their_order():
    records = Registry("thing", [Record("One", 1), Record("two", 2)])
    assert list(records) == ["One", "two"] and len(records) == 2
    assert records["two"].value == 2 and records.find("ONE").value == 1
    assert records.register(Record("three")) == Record("three") and list(records)[-1] == "three"
    with pytest.raises(UserError, match="there is a thing 'two' already"):
        records.register(Record("two"))
    with pytest.raises(UserError, match="unknown thing 'four'; known: One; two; three"):
        records.find("four")


def test_an_installed_plugin_is_imported_when_a_registry_is_first_read(tmp_path, monkeypatch):
    install(tmp_path, "allmrec_toy", "import test_registry\n", monkeypatch)
    assert "allmrec_toy" not in sys.modules
    assert len(Registry("thing")) == 0
    assert "allmrec_toy" in sys.modules


def test_a_plugin_that_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    install(tmp_path, "allmrec_broken", "import nothing_of_that_name\n", monkeypatch)
    for _ in range(2):  # it does not go away by asking again
        with pytest.raises(UserError, match=r"the plugin allmrec_broken cannot be loaded: .*nothing_of_that_name"):
            list(Registry("thing"))
