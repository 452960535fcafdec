"""JSON against annotations: what fits passes unchanged, what does not is named."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssae.schema import SchemaError, checked, parse_json


@dataclass(frozen=True)
class Inner:
    width: int = 3
    sides: tuple[float, float] = (0.5, 1.0)

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be positive, got {self.width}")


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["a", "b"] = "a"
    steps: int | None = None
    rates: tuple[float, ...] = ()
    fast: bool = False
    inner: Inner = field(default_factory=Inner)
    other: Inner | None = None


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


@given(
    st.builds(
        Outer,
        name=st.text(),
        kind=st.sampled_from(["a", "b"]),
        steps=st.none() | st.integers(),
        rates=st.lists(st.floats(allow_nan=False, allow_infinity=False)).map(tuple),
        fast=st.booleans(),
        inner=st.builds(Inner, width=st.integers(1, 9)),
        other=st.none() | st.just(Inner()),
    )
)
@settings(max_examples=50, deadline=None)
def test_what_was_written_is_read_back(value: Outer) -> None:
    assert checked(Outer, through_json(asdict(value)), "x") == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "settings: expected an object, found []"),
        ({}, "settings lacks 'name'"),
        ({"name": "n", "nmae": 1}, "settings has an unknown key 'nmae'; known are name, kind"),
        ({"name": 3}, "settings.name: expected a text, found 3"),
        ({"name": "n", "kind": "c"}, "settings.kind: expected 'a' or 'b', found 'c'"),
        ({"name": "n", "steps": "5"}, "settings.steps: expected a whole number, found '5'"),
        ({"name": "n", "steps": 5.0}, "settings.steps: expected a whole number, found 5.0"),
        ({"name": "n", "steps": True}, "settings.steps: expected a whole number, found True"),
        ({"name": "n", "fast": 1}, "settings.fast: expected true or false, found 1"),
        ({"name": "n", "rates": 1.0}, "settings.rates: expected a list, found 1.0"),
        ({"name": "n", "rates": [1, None]}, "settings.rates[1]: expected a finite number, found None"),
        ({"name": "n", "rates": [10**400]}, "settings.rates[0]: expected a finite number, found inf"),
        ({"name": "n", "inner": {"sides": [1]}}, "settings.inner.sides: expected 2 values, found 1"),
        ({"name": "n", "inner": {"width": 0}}, "settings.inner: width must be positive, got 0"),
        ({"name": "n", "inner": None}, "settings.inner: expected an object, found None"),
        ({"name": "n", "other": {"width": "x"}}, "settings.other.width: expected a whole number"),
    ],
)
def test_what_does_not_fit_is_named(value: Any, message: str) -> None:
    with pytest.raises(SchemaError) as error:
        checked(Outer, value, "settings")
    assert str(error.value).startswith(message)


NO_JSON = {
    "nothing": "",
    "unfinished": "{",
    "NaN": "NaN",
    "infinity": '{"a": -Infinity}',
    "nested": "[" * 100_000,
    "no text": b"\xff\xfe\xff",
    "huge number": "1" * 5000,
}


@pytest.mark.parametrize("name", NO_JSON)
def test_what_is_no_json_is_named(name: str) -> None:
    with pytest.raises(SchemaError, match=r"x\.json is not valid JSON"):
        parse_json(NO_JSON[name], "x.json")


def test_hostile_text_is_not_printed_raw() -> None:
    with pytest.raises(SchemaError) as error:
        checked(int, "\x1b[31m" * 1000, "x")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 100
    for hostile in ("\x1b[31mX\x07", "a\nb", "\u202egnp.exe", "\ud800"):
        for kind in (dict[str, int], dict[str, dict[str, int]]):
            with pytest.raises(SchemaError) as error:
                checked(kind, {hostile: "a" if kind == dict[str, int] else {hostile: "a"}}, "x.json")
            assert str(error.value).isascii()
            assert str(error.value).isprintable()
            assert ascii(hostile) in str(error.value)


@pytest.mark.parametrize("name", ["torch", "learning_rate", "a b", "it's"])
def test_an_ordinary_key_is_shown_as_it_is(name: str) -> None:
    with pytest.raises(SchemaError) as error:
        checked(dict[str, int], {name: "a"}, "x.json")
    assert str(error.value) == f"x.json.{name}: expected a whole number, found 'a'"


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda s: (
            st.lists(s) | st.dictionaries(st.sampled_from(["name", "kind", "inner", "width", "rates"]), s)
        ),
    )
)
@settings(max_examples=200, deadline=None)
def test_any_json_passes_or_is_refused(value: Any) -> None:
    refusal = ""
    try:
        result = checked(Outer, value, "x")
    except SchemaError as error:
        refusal = str(error)
    assert refusal.startswith("x") if refusal else isinstance(result, Outer)
