"""Progress of what takes long, on a terminal, in a notebook and in a log."""

import contextlib
import importlib.util
import logging
import threading
from collections.abc import Callable, Iterator

from rich.console import Console

from allmrec_jax.fileio import writes

logger = logging.getLogger(__name__)

SILENCE = 5.0
"""Seconds after which a log is told what is being done."""


def live_console() -> Console | None:
    """Where something that moves can be shown: a terminal, or a notebook with ipywidgets; ``None`` elsewhere."""
    console = Console(stderr=True)
    notebook = console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
    return console if console.is_terminal or notebook else None


@contextlib.contextmanager
def announce(what: str, quiet: bool = False, steps: int | None = None) -> Iterator[Callable[[int], None]]:
    """Says what is being done while nothing else is to be seen: a spinner, or a line of a log if it takes long.

    Args:
        what: e.g. ``"warm start of the projectors"``.
        quiet: say nothing.
        steps: how many there will be, if they can be counted.

    Yields:
        what to call with the number of steps taken, which the spinner then shows.
    """
    told = what if steps is None else f"{what}, {steps} steps"
    console = None if quiet or not writes() else live_console()
    if console is not None:
        with console.status(f"{told} …") as status:
            yield lambda done: status.update(f"{what}, step {done} of {steps} …")
        return
    timer = threading.Timer(SILENCE, logger.info, ["%s …", told])
    timer.daemon = True
    if not quiet and writes():
        timer.start()
    try:
        yield lambda done: None
    finally:
        timer.cancel()
