"""What a value that does not follow its schema is answered with."""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest
from msgspec import Meta

from allmrec_jax.checking import Digest, FileName, InnerFile, InnerFolder, PlainName, checked
from allmrec_jax.errors import UserError


class Example(TypedDict):
    count: Annotated[int, Meta(ge=1)]
    share: NotRequired[Annotated[float, Meta(gt=0, lt=1)] | None]
    interval: NotRequired[Annotated[list[float], Meta(min_length=3, max_length=3)]]
    files: NotRequired[dict[InnerFile, FileName]]
    kind: NotRequired[Literal["cf", "stage1"]]
    digest: NotRequired[Digest]
    inner: NotRequired[list["Example"]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "no 'count'"),
        ({"count": 1, "inner": [{}]}, "no 'count' in inner[0]"),
        ([], "the file is []: should be an object, is a list"),
        ({"count": 0}, "count is 0: should be a whole number of 1 or more"),
        ({"count": 2.5}, "count is 2.5: should be a whole number"),
        ({"count": "x" * 999}, f"count is '{'x' * 58}…: should be a whole number, is a text"),
        ({"count": True}, "count is True: should be a whole number, is true or false"),
        ({"count": 1, "share": 1.0}, "share is 1.0: should be a number below 1.0"),
        ({"count": 1, "share": []}, "share is []: should be a number or null, is a list"),
        ({"count": 1, "share": 10**6000}, "share is too long a int: number out of range"),
        ({"count": 1, "interval": [1, 2]}, "interval is [1, 2]: should be a list, 3 or more long"),
        ({"count": 1, "kind": "cff"}, "kind is 'cff': none of the values that it may have"),
        ({"count": 1, "digest": ".."}, "digest is '..': should be a SHA-256 in hexadecimal digits"),
        ({"count": 1, "files": {"a": "../b"}}, "files[...] is {'a': '../b'}: should be the name of something inside"),
        ({"count": 1, "files": {"../a": "b"}}, "a key in files: should be the name of something inside the directory"),
    ],
)
def test_the_first_thing_that_is_wrong_is_said_in_plain_words(value: Any, message: str):
    with pytest.raises(UserError) as caught:
        checked("some.json", value, Example, "make it again")
    found = str(caught.value)
    assert found.startswith(f"some.json: {message}") and found.endswith("; make it again") and "\n" not in found


@pytest.mark.parametrize("schema", [PlainName, FileName, InnerFolder, InnerFile])
@pytest.mark.parametrize("name", ["..", "../a", "/etc/passwd", "a/../../b", "a\0", "x" * 300])
def test_names_that_lead_elsewhere_are_refused(schema: Any, name: str):
    with pytest.raises(UserError, match=r"the file is .*: should be (a name of letters|the name of something inside)"):
        checked("some.json", name, schema)


def test_what_follows_the_schema_is_converted():
    whole = {"count": 3, "files": {"a/b..c.json": "x y.bin"}, "more": [1]}
    assert checked("some.json", whole, Example) == {"count": 3, "files": {"a/b..c.json": "x y.bin"}}
    assert checked("some.json", "", InnerFolder) == ""
