"""Settings: what can be chosen, how it is given, and what of it an identity holds."""

import dataclasses
from typing import Literal

import pytest

from allmrec_jax.errors import UserError
from allmrec_jax.settings import choosable, convert, hashed_fields, identity, resolve, setting


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int = setting(3, "a width")
    depth: int = setting(1, "came later", added=True)


INNER = Inner()


@dataclasses.dataclass(frozen=True)
class Example:
    variant: Literal["only"] = setting("only", "names the variant")
    loss: Literal["softmax", "bce"] = setting("softmax", "which loss")
    rate: float = setting(0.1, "a rate")
    least: int | None = setting(None, "a bound")
    inner: Inner = dataclasses.field(default=INNER)
    sort: bool = setting(False, "came later", added=True)


PRESETS = {"paper": Example(), "small": Example(rate=0.5)}


def test_what_has_one_value_only_is_no_choice():
    assert list(choosable(Example)) == list(choosable(PRESETS["small"])) == ["loss", "rate", "least", "inner", "sort"]


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (int | None, None, None),
        (int | None, "none", None),
        (int | None, "4", 4),
        (Literal["softmax", "bce"], "bce", "bce"),
        (Literal[2, 3], "3", 3),
        (bool, "true", True),
        (bool, "false", False),
        (bool, True, True),
        (float, 2, 2.0),
        (float, "1e-3", 1e-3),
        (str, "none", "none"),
    ],
)
def test_values_become_those_of_the_type(hint, value, expected):
    found = convert("it", hint, value)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (int, True, "it: a whole number is expected, not True"),
        (int, 1.5, "it: a whole number is expected, not 1.5"),
        (int, None, "it: a whole number is expected, not None"),
        (float, "x", "it: a number is expected, not 'x'"),
        (bool, 1, "it: true or false is expected, not 1"),
        (str, 3, "it: a text is expected, not 3"),
        (Literal["softmax", "bce"], "bcee", "it: one of softmax, bce is expected, not 'bcee'; did you mean 'bce'"),
    ],
)
def test_values_of_another_type_are_refused(hint, value, message):
    with pytest.raises(UserError) as found:
        convert("it", hint, value)
    assert str(found.value).startswith(message)


def test_a_preset_with_overrides():
    assert resolve(PRESETS, "small") == Example(rate=0.5)
    assert resolve(PRESETS, "small", {"loss": "bce", "least": "2"}) == Example(loss="bce", rate=0.5, least=2)
    with pytest.raises(UserError, match=r"unknown preset 'smal'; known: paper, small.*did you mean 'small'"):
        resolve(PRESETS, "smal")
    with pytest.raises(UserError, match=r"unknown setting 'rat'; did you mean 'rate'.* known: inner, least"):
        resolve(PRESETS, "small", {"rat": 1})


def test_what_was_added_later_is_hashed_where_it_is_not_the_default():
    first = {"variant": "only", "loss": "softmax", "rate": 0.1, "least": None, "inner": {"width": 3}}
    assert hashed_fields(Example()) == first
    assert hashed_fields(Example(sort=True, inner=Inner(depth=2))) == {
        **first,
        "inner": {"width": 3, "depth": 2},
        "sort": True,
    }


def test_all_that_decides_a_run_is_in_its_identity():
    whole = ("cf", Example(), 0, "data", {"llm": "x"})
    others = [
        ("stage1", *whole[1:]),
        ("cf", Example(rate=0.2), *whole[2:]),
        (*whole[:2], 1, *whole[3:]),
        (*whole[:3], "other", whole[4]),
        (*whole[:4], {"llm": "y"}),
        (*whole[:4], {"cf": "x"}),
    ]
    assert len({identity(*each) for each in (whole, *others)}) == 7
    assert identity(*whole) == identity("cf", Example(least=None), 0, "data", {"llm": "x"})
    # Recorded: another value would lose every earlier run.
    assert identity(*whole).startswith("ab7509f4bf6e8828")
