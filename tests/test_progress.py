"""What is said while something takes long."""

import io
import logging
import time

import pytest
from rich.console import Console

from allmrec_jax import progress
from allmrec_jax.progress import announce


@pytest.mark.parametrize("quiet", [False, True])
def test_a_log_hears_of_what_takes_long(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, quiet: bool
) -> None:
    caplog.set_level(logging.INFO, "allmrec_jax")
    with announce("hashing", quiet):
        pass
    assert not caplog.records, "it was over at once"
    monkeypatch.setattr(progress, "SILENCE", 0.0)
    with announce("warm start", quiet):
        # Until the timer's thread has spoken; a quiet one never does.
        for _ in range(20 if quiet else 6000):
            if caplog.records:
                break
            time.sleep(0.01)
    assert [record.getMessage() for record in caplog.records] == ([] if quiet else ["warm start …"])


def test_a_terminal_shows_a_spinner_and_the_log_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    caplog.set_level(logging.INFO, "allmrec_jax")
    monkeypatch.setattr(progress, "live_console", lambda: Console(file=shown, force_terminal=True))
    monkeypatch.setattr(progress, "SILENCE", 0.0)
    with announce("warm start", steps=300) as show:
        show(7)
        time.sleep(0.2)  # a few turns of the spinner
    assert "warm start, step 7 of 300" in shown.getvalue() and not caplog.records
