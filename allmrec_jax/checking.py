"""Values that files hold, checked against schemas, and what does not fit in plain words."""

import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from allmrec_jax.errors import UserError, shown

Checked = TypeVar("Checked")

_WORDS: dict[str, str] = {}
"""What a text that a pattern describes should be, by the pattern."""


def _pattern(pattern: str, words: str) -> Meta:
    _WORDS[repr(pattern)] = words
    return Meta(pattern=pattern)


PlainName = Annotated[str, _pattern(r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,99}\Z", "a name of letters, digits, _ and -")]
"""A name that may be one of a file: letters, digits, ``_`` and ``-``."""

Digest = Annotated[str, _pattern(r"\A[0-9a-f]{64}\Z", "a SHA-256 in hexadecimal digits")]
"""A SHA-256."""

_INSIDE = "the name of something inside the directory"

FileName = Annotated[str, _pattern(r"\A(?!\.{1,2}\Z)[^/\\:\x00]{1,100}\Z", _INSIDE)]
"""The name of a file beside the one that names it."""

InnerFolder = Annotated[str, _pattern(r"\A(?!.*\.\.)(?!/)[^\\:\x00]{0,100}\Z", _INSIDE)]
"""A folder inside of the directory; the directory itself where empty."""

InnerFile = Annotated[str, _pattern(r"\A(?!(.*/)?\.\.?(/|\Z))(?!/)[^\x00]{1,200}\Z", _INSIDE)]
"""The path of a file inside of the directory, relative to it."""

_TYPES = {
    "object": "an object",
    "array": "a list",
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "null",
}

_EXPECTED = re.compile(r"Expected `(.*?)`(?: (of length)?(?: ?(>=|<=|>|<))? ?([-+\d.e]+))?(?:, got `?([\w ]+)`?)?")

_BOUNDS = {">=": "of {} or more", "<=": "of {} or less", ">": "above {}", "<": "below {}"}


def checked(path: Path | str, value: Any, schema: type[Checked], remedy: str = "") -> Checked:
    """``value``, which was read from ``path``, as ``schema``.

    Args:
        path: the file, for the message.
        value: of JSON.
        schema: any type that msgspec can check.
        remedy: what to do about a damaged file, if anything but mending it.

    Raises:
        UserError: it does not follow the schema; the first thing that is wrong is named, and what stands there.
    """
    try:
        return msgspec.convert(value, schema)
    except (msgspec.ValidationError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: {_reason(error, value)}" + (f"; {remedy}" if remedy else "")) from None


def _reason(error: Exception, value: Any) -> str:
    """msgspec's message in plain words."""
    found = re.fullmatch(r"(.*?)(?: - at (`key` in )?`\$\.?(.*)`)?", str(error), re.DOTALL)
    wrong, key, where = (found[1], found[2], found[3]) if found else (str(error), None, None)
    if missing := re.fullmatch(r"Object missing required field `(.*)`", wrong):
        return f"no {missing[1]!r}" + (f" in {where}" if where else "")
    place = (f"a key in {where}" if key else where) or "the file"
    return f"{place[:100]}{'' if key else _shown(value, where)}: {_wanted(wrong)}"


def _wanted(wrong: str) -> str:
    """What msgspec expected."""
    if match := re.fullmatch(r"Expected `str` matching regex (.*)", wrong):
        return f"should be {_WORDS.get(match[1], 'a text of another form')}"
    match = _EXPECTED.fullmatch(wrong)
    if wrong.startswith("Invalid enum value"):
        return "none of the values that it may have"
    if match is None:
        return wrong[:1].lower() + wrong[1:200]
    kinds, length, sign, bound, got = match.groups()
    wanted = " or ".join(_TYPES.get(kind, kind) for kind in kinds.split(" | "))
    if bound:
        limit = _BOUNDS.get(sign, "of {}").format(bound)
        wanted += f", {limit.removeprefix('of ')} long" if length else f" {limit}"
    said = got in _TYPES and not (got == "float" and "int" in kinds)  # 2.5 speaks for itself
    return f"should be {wanted}" + (f", is {_TYPES[got]}" if said else "")


def _shown(value: Any, where: str | None) -> str:
    """What stands at a place that msgspec names: ``weight_map[...]`` is some value, ``[0].path`` a certain one."""
    for key, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", (where or "").replace("[...]", "")):
        try:
            value = value[key] if key else value[int(index)]
        except (LookupError, TypeError):
            return ""
    return f" is {shown(value)}"
