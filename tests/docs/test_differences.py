"""The list of differences names settings that there are and tests that there are."""

import re
from pathlib import Path

import click
import pytest

from allmrec_jax.cli import allmrec

TESTS = Path(__file__).parents[1]
HEADS = ("there", "the paper", "---")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (TESTS.parent / "docs" / "differences.md").read_text().splitlines()
    if line.startswith("|") and not line.strip("| ").startswith(HEADS)
]
"""Of each line: there, here, why, settings, tests."""


def test_every_line_says_what_differs_and_names_a_test_that_there_is():
    assert len(ROWS) > 40
    for row in ROWS:
        there, here, *_, named = row
        assert len(row) == 5 and there and here, row
        path, _, name = re.fullmatch(r"`([\w/]+\.py)(::(\w+))?`", named).groups()
        text = (TESTS / path).read_text()
        assert name is None or f"\ndef {named.strip('`').rpartition('::')[2]}(" in text, named


@pytest.mark.parametrize("named", sorted({span for row in ROWS for span in re.findall(r"`([^`]+)`", row[3])}))
def test_every_setting_is_an_option(named):
    *words, option = named.split() if " " in named else ["train", "stage2", named]
    command: click.Command = allmrec
    for word in words:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), word)
    assert any(option in parameter.opts + parameter.secondary_opts for parameter in command.params)
