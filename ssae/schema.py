"""JSON from elsewhere, checked against type annotations before anything is done with it.

The settings of this package are frozen dataclasses, and their annotations say all there is to say about the
JSON they are read back from. So they are the schema. Explained in chapter 12.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["SchemaError", "checked", "parse_json"]


class SchemaError(ValueError):
    """A JSON value is not what it should be; names the place, what is there and what belongs there."""


def checked(kind: Any, value: Any, where: str) -> Any:
    """A JSON value as what an annotation says, or an error.

    Parameters
    ----------
    kind
        ``Any``, ``None``, ``bool``, ``int``, ``float`` (finite), ``str``, ``list[T]``, ``tuple[T, ...]``,
        ``tuple[T, U]``, ``dict[str, T]``, ``Literal``, unions of these, or a dataclass of them.
    value
        What ``json.loads`` gave.
    where
        Name of the value in messages, ``"config.json: settings"`` for instance.

    Returns
    -------
    Any
        ``value`` with lists made tuples and objects made dataclasses where ``kind`` says so.

    Raises
    ------
    SchemaError
        If the value does not fit, a key is missing or unknown, or a dataclass refuses it.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _one_of(parts, value, where)
    if origin is Literal:
        if value in parts and type(value) in map(type, parts):
            return value
        raise _misfit(where, " or ".join(map(repr, parts)), value)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _record(kind, value, where)
    if origin is dict:
        return {
            name: checked(parts[1], item, f"{where}.{_shown(name)}")
            for name, item in _object(value, where).items()
        }
    if origin in (list, tuple):
        return _sequence(origin, parts, value, where)
    return _plain(kind, value, where)


def parse_json(text: str | bytes, where: str) -> Any:
    """Parse JSON; ``NaN`` and ``Infinity``, which are none, are refused.

    Raises
    ------
    SchemaError
        If the text is no JSON, or nested more deeply than anybody would write it.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON value")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{where} is not valid JSON ({error})") from error


def _plain(kind: Any, value: Any, where: str) -> Any:
    names = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}
    if kind in (None, type(None)):
        if value is None:
            return None
        raise _misfit(where, "null", value)
    if kind not in names:
        raise TypeError(f"{where}: {kind!r} has no JSON form")
    # True is an int to Python, and 1 a float to nobody but a reader of JSON.
    allowed = (int, float) if kind is float else (kind,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise _misfit(where, names[kind], value)
    if kind is float:
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise _misfit(where, names[kind], value)
    return value


def _one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    for kind in kinds:
        if (value is None) == (kind is type(None)):
            # Only one kind of a union besides None is ever an object, so its own message is the best.
            if len(kinds) == 2 and type(None) in kinds:
                return checked(kind, value, where)
            try:
                return checked(kind, value, where)
            except SchemaError:
                continue
    raise _misfit(where, " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds), value)


def _sequence(origin: type, parts: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _misfit(where, "a list", value)
    if origin is list or parts[-1] is Ellipsis:
        kinds = [parts[0]] * len(value)
    else:
        kinds = list(parts)
        if len(value) != len(kinds):
            raise SchemaError(f"{where}: expected {len(kinds)} values, found {len(value)}")
    items = [
        checked(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
    ]
    return origin(items)


def _record(kind: type, value: Any, where: str) -> Any:
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    given = _object(value, where)
    if unknown := sorted(given.keys() - fields.keys()):
        raise SchemaError(f"{where} has an unknown key {unknown[0]!a}; known are {', '.join(fields)}")
    for name, field in fields.items():
        needed = field.default is field.default_factory is dataclasses.MISSING
        if needed and name not in given:
            raise SchemaError(f"{where} lacks {name!a}")
    values = {name: checked(hints[name], item, f"{where}.{name}") for name, item in given.items()}
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise SchemaError(f"{where}: {error}") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise _misfit(where, "an object", value)
    return value


def _shown(name: str) -> str:
    """A key as it is if it is plain, escaped otherwise: a terminal would obey what it may hold."""
    return name if name.isascii() and name.isprintable() else ascii(name)


def _misfit(where: str, wanted: str, value: Any) -> SchemaError:
    shown = ascii(value)
    return SchemaError(
        f"{where}: expected {wanted}, found {shown if len(shown) <= 40 else shown[:40] + '...'}"
    )
