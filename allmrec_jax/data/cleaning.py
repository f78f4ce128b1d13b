"""Titles and descriptions as people read them: without markup, entities and what scripts crawlers left in them."""

import re
from html import unescape

TAG = re.compile(r"</?[A-Za-z][^<>]*>|<!--.*?-->", re.DOTALL)

BODY = re.compile(r"<(script|style)\b[^<>]*>.*?(?:</\1\s*>|\Z)", re.DOTALL | re.IGNORECASE)
"""Elements whose content is no text either."""

CODE = re.compile(
    r"\s*(?:(?:var|let|const)\s+[\w$]+\s*=|\(?function\b\s*[\w$]*\s*\(|[.#@][\w.#@ ,>-]+\{[^{}]*:[^{}]*\})",
    re.IGNORECASE,
)
"""How a script or a style sheet begins whose tags are lost; such a text is none."""

MOST_ROUNDS = 4
"""How often entities may hide each other (``&amp;lt;b&amp;gt;``)."""


def clean_text(text: str) -> str:
    """Text without HTML tags, scripts and style sheets, with entities as their characters, each run of blanks as one.

    Tags that entities hide go too. A text that is a script or a style sheet throughout comes out empty.
    """
    for _ in range(MOST_ROUNDS):
        bare = unescape(TAG.sub(" ", BODY.sub(" ", text)))
        if bare == text:
            break
        text = bare
    return "" if CODE.match(text) and re.search(r"[;{}]", text) else " ".join(text.split())
