"""What a user's files say: reading YAML and JSON, and checking values by the types that a dataclass declares."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ribsr.base.errors import first_line, printable, shown

_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}
_MANY = {int: "whole numbers", float: "numbers", str: "texts"}

LARGEST = 2**17
"""Bytes of a file of settings: more than any needs, and parsed within seconds."""

MOST_ALIASES, MOST_LEVELS = 20, 50
"""Aliases in a YAML file, each of which may double what the ones before it stand for, and lists in lists."""


def read_settings(path: str | Path) -> Any:
    """What a text file holds: JSON if it is called so, YAML otherwise.

    Raises ValueError, with the path, for a file that is neither, OSError for one that cannot be read.
    """
    kind = "JSON" if Path(path).suffix == ".json" else "YAML"
    with open(path, "rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"{path}: larger than {LARGEST // 1024} KiB; {kind} with settings is expected")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file; {kind} is expected") from None
    try:
        return parse_json(text) if kind == "JSON" else _parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse_json(text: str) -> Any:
    """Raises ValueError for what is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({first_line(error)})") from None


def _parse_yaml(text: str) -> Any:
    import yaml

    try:
        aliases = level = 0
        for token in map(type, yaml.scan(text)):
            aliases += token is yaml.AliasToken
            level += token.__name__.endswith("StartToken") - token.__name__.endswith("EndToken")
            if aliases > MOST_ALIASES or level > MOST_LEVELS:
                raise ValueError(f"more than {MOST_ALIASES} aliases or {MOST_LEVELS} levels")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a day that no month has
        raise ValueError(f"not YAML ({first_line(error)})") from None


def checked(kind: type, values: Mapping[Any, Any], spelled: Mapping[str, str] | None = None) -> dict[str, Any]:
    """`values` in the types that the fields of the dataclass `kind` declare, for those that are given.

    Whole numbers stand for others, one value for a list of one, and text such as 5e-4, as which YAML reads it, for a
    number. A field that is a dataclass itself is a section, all of whose fields must be there. spelled: what the user's
    file calls a field, where that differs.

    Raises ValueError, which names every field that is wrong, and what it may be: a value of another type, also NaN and
    infinity, and text with control characters; an unknown field.
    """
    hints = get_type_hints(kind)
    converted, wrong = {}, []
    for name, value in values.items():
        if name not in hints:
            wrong.append(f"unknown field {shown(name)}; there are {', '.join(sorted(hints))}")
            continue
        called = (spelled or {}).get(name, name)
        try:
            converted[name] = _convert(hints[name], value)
        except TypeError:
            wrong.append(f"{called} must be {_described(hints[name])}, got {shown(value)}")
        except ValueError as error:  # of a section
            wrong.append(f"{called}.{error}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return converted


def check_complete(kind: type, values: Mapping[str, Any]) -> None:
    """Raises ValueError when a field of `kind` that has no default is missing."""
    for field in fields(kind):
        if field.name not in values and field.default is MISSING:
            raise ValueError(f"{field.name} is missing")


def _convert(hint: Any, value: Any) -> Any:
    """`value` as `hint` says. Raises TypeError for what is of another type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple:
        return _convert_list(arguments, list(value) if isinstance(value, (list, tuple)) else [value])
    if origin is list and isinstance(value, (list, tuple)):
        return [_convert(arguments[0], item) for item in value]
    if origin is dict and isinstance(value, Mapping):
        return {_convert(arguments[0], key): _convert(arguments[1], item) for key, item in value.items()}
    if isinstance(hint, type) and is_dataclass(hint):
        return _convert_section(hint, value)
    if origin in (Union, UnionType):
        return None if value is None else _convert(next(of for of in arguments if of is not NoneType), value)
    if origin is Literal and isinstance(value, str) and value in arguments:
        return value
    if hint in (int, float):
        return _convert_number(hint, value)
    if origin is None and isinstance(value, hint) and (hint is not str or printable(value) == value):
        return value
    raise TypeError


def _convert_section(kind: type, value: Any) -> Any:
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise TypeError
    given = checked(kind, value)
    check_complete(kind, given)
    return kind(**given)


def _convert_list(hints: tuple[Any, ...], values: list[Any]) -> tuple[Any, ...]:
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(values)
    if len(values) != len(hints):
        raise TypeError
    return tuple(_convert(hint, value) for hint, value in zip(hints, values, strict=True))


def _convert_number(hint: type, value: Any) -> int | float:
    if isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value, re.ASCII):
        number = float(value)
        value = int(number) if hint is int and number.is_integer() else number
    if isinstance(value, bool) or not isinstance(value, int if hint is int else (int, float)):
        raise TypeError
    if not abs(value) <= sys.float_info.max:  # infinite or NaN
        raise TypeError
    return hint(value)


def _described(hint: Any, many: bool = False) -> str:
    """As in `must be …`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(arguments)
    if origin in (Union, UnionType):
        return " or ".join(map(_described, arguments))
    if origin in (tuple, list):
        count = f"{len(arguments)} " if origin is tuple and arguments[-1] is not Ellipsis else ""
        return f"{'lists' if many else 'a list'} of {count}{_described(arguments[0], many=True)}"
    if origin is dict or is_dataclass(hint):
        return "sections" if many else "a section"
    return _MANY[hint] if many else _WORDS[hint]
