"""Tables on a terminal."""

import io
import sys
from typing import Any

from allmrec_jax.api.table import Table
from allmrec_jax.commands.show import show


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Runs(Table[dict[str, Any]]):
    def record(self, row: dict[str, Any]) -> dict[str, Any]:
        return row


def test_what_is_copied_is_not_folded_on_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")  # 80 columns, no colours
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    row = {"run": "7a58014a4db5", "built on": "55c4cffdf136 35097fd223f8"}
    row |= {f"metric {number}": "0.123456789" for number in range(6)}
    show(Runs([row]), whole=("run", "built on"))
    printed = terminal.getvalue()
    assert {"7a58014a4db5", "55c4cffdf136", "35097fd223f8"} <= set(printed.split()), printed
    assert max(map(len, printed.splitlines())) <= 80
