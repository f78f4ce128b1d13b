"""Foreign text in Markdown: titles, names and answers of models are data, never markup."""

from allmrec_jax.errors import visible

_MARKUP = frozenset(r"\`*_[]|~")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def escaped(text: str) -> str:
    """``text`` so that Markdown shows it as it is: on one line, neither emphasised, linked, nor passed on as HTML."""
    return "".join(f"\\{each}" if each in _MARKUP else _ENTITIES.get(each, each) for each in visible(text))
