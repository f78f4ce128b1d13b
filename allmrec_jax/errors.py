"""The errors that are the user's to mend, and the end that a scheduler asks for."""

import contextlib
import difflib
import os
import signal
import threading
import unicodedata
from collections.abc import Iterable, Iterator
from typing import NoReturn

MAX_SEED = 2**32 - 1
"""The largest seed; the smallest is 0."""

STOPPED = 75
"""Exit code of a training that SIGTERM ended after it had saved (``EX_TEMPFAIL``): run it again with ``--resume``."""

_NO_MEMORY = (
    "RESOURCE_EXHAUSTED",
    "Out of memory",
    "out of memory",
    "Cannot allocate memory",
    "bad_alloc",
    "failed to map segment",  # a library that does not fit any more
)

_DIRECTIONS = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


class UserError(Exception):
    """Bad input, settings or files. The message is one line that says what, where and what to do.

    The command line prints it as ``error: …`` and exits with 2; anything else that is raised is a bug of ours.
    """


class StoppedError(Exception):
    """A training was asked to end (SIGTERM) and has saved where it is; the command line exits with :data:`STOPPED`."""


def end_now(code: int, line: str) -> NoReturn:
    """Ends the process wherever it is, after a line on standard error; that leaves no file half written."""
    with contextlib.suppress(OSError):
        cursor = "\x1b[?25h" if os.isatty(2) else ""  # progress bars hide it
        os.write(2, f"{cursor}{line}\n".encode())  # a signal may have come in the midst of a print
    os._exit(code)


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """SIGTERM ends with :data:`STOPPED` what goes on when it is run again; in the main thread only, as signals are.

    Within its steps a training saves first: see :func:`allmrec_jax.training.loop.train_loop`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    line = "asked to end (SIGTERM); the same command goes on from the last checkpoint (`allmrec train` with --resume)"
    before = signal.signal(signal.SIGTERM, lambda *_: end_now(STOPPED, line))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def first_line(error: BaseException) -> str:
    """What an error says, at most 200 characters of its first line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def shown(value: object) -> str:
    """A value as a message shows it: what Python writes, at most 60 characters of it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or nested too deeply
        return f"too long a {type(value).__name__}"
    return text if len(text) <= 60 else text[:59] + "…"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The known name nearest to a mistyped one, as the end of a message: ``"; did you mean 'epochs'?"``, or nothing."""
    plain = {each.casefold().replace("-", "_"): each for each in known}
    near = difflib.get_close_matches(name.casefold().replace("-", "_"), plain, n=1, cutoff=0.5)
    return f"; did you mean {plain[near[0]]!r}?" if near else ""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the host's or a device's memory does not suffice."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)


def visible(text: str) -> str:
    """``text`` with every character that a terminal would act upon written out, e.g. ``\\x1b`` for an escape.

    These are control characters, line ends among them, changes of the direction of writing, and lone surrogates.
    Letters, spaces and joiners of any script stay.
    """
    return "".join(ascii(each)[1:-1] if _acts(each) else each for each in text)


def _acts(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _DIRECTIONS
