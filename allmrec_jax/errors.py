"""The errors that are the user's to mend, and the end that a scheduler asks for."""

import difflib
import unicodedata
from collections.abc import Iterable

MAX_SEED = 2**32 - 1
"""The largest seed; the smallest is 0."""

STOPPED = 75
"""Exit code of a training that SIGTERM ended after it had saved (``EX_TEMPFAIL``): run it again with ``--resume``."""

_NO_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "Cannot allocate memory", "bad_alloc")

_DIRECTIONS = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


class UserError(Exception):
    """Bad input, settings or files. The message is one line that says what, where and what to do.

    The command line prints it as ``error: …`` and exits with 2; anything else that is raised is a bug of ours.
    """


class StoppedError(Exception):
    """A training was asked to end (SIGTERM) and has saved where it is; the command line exits with :data:`STOPPED`."""


def first_line(error: BaseException) -> str:
    """What an error says, at most 200 characters of its first line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


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
