"""Files of users: what their values become, and what is said of those that are something else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from ribsr.base.errors import printable, shown
from ribsr.base.settings import check_complete, checked, read_settings


def shared_lists(depth: int) -> Any:
    """A value whose text would have 2**depth numbers."""
    made: Any = [1]
    for _ in range(depth):
        made = [made, made]
    return made


@dataclass(frozen=True)
class Part:
    side: int


@dataclass(frozen=True)
class Settings:
    count: int
    rate: float = 1.0
    name: str | None = None
    on: bool = False
    kind: Literal["a", "b"] = "a"
    sides: tuple[int, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    grid: tuple[tuple[int, int], ...] = ()
    many: dict[str, list[int]] | None = None
    part: Part | None = None


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("count", 3, 3), ("count", "1e5", 100_000), ("rate", 2, 2.0), ("rate", "5e-4", 5e-4), ("rate", "-.5E+1", -5.0),
        ("name", None, None), ("name", "x", "x"), ("on", True, True), ("kind", "b", "b"), ("sides", 8, (8,)),
        ("sides", [8, 16], (8, 16)), ("sides", [], ()), ("pair", [0, "1e-1"], (0.0, 0.1)),
        ("grid", [[8, 16], (3, 4)], ((8, 16), (3, 4))), ("many", {"a": [1]}, {"a": [1]}),
        ("part", {"side": 3}, Part(3)), ("part", None, None),
    ],
)  # fmt: skip
def test_values_become_what_fields_declare(field: str, value: Any, wanted: Any) -> None:
    got = checked(Settings, {field: value})[field]
    assert got == wanted
    assert type(got) is type(wanted)


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("count", 2.5, "a whole number"), ("count", 2.0, "a whole number"), ("count", True, "a whole number"),
        ("count", "2", "a whole number"), ("count", "25e-1", "a whole number"), ("count", "1e999", "a whole number"),
        ("rate", math.nan, "a number"), ("rate", -math.inf, "a number"), ("rate", False, "a number"),
        ("rate", 10**999, "a number"), ("rate", "1e999", "a number"), ("rate", "nan", "a number"),
        ("name", 3, "text or null"), ("on", 1, "true or false"), ("on", "yes", "true or false"),
        ("kind", "c", "a or b"), ("kind", ["a"], "a or b"), ("sides", [8, "x"], "a list of whole numbers"),
        ("sides", {8: 16}, "a list of whole numbers"), ("sides", None, "a list of whole numbers"),
        ("pair", [1, 2, 3], "a list of 2 numbers"), ("pair", 1.0, "a list of 2 numbers"),
        ("grid", [8], "a list of lists of 2 whole numbers"),
        ("grid", [[8, 8, 8]], "a list of lists of 2 whole numbers"),
        ("many", {"a": 1}, "a section or null"), ("many", {1: [1]}, "a section or null"),
        ("part", 3, "a section or null"), ("name", "\x1b[2J", "text or null"),
    ],
)  # fmt: skip
def test_values_of_other_types_are_refused(field: str, value: Any, what: str) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be {what}, got ") as error:
        checked(Settings, {field: value})
    assert str(error.value).endswith(shown(value))


def test_fields_are_called_as_the_file_calls_them() -> None:
    with pytest.raises(ValueError, match=r"^n_count must be"):
        checked(Settings, {"count": "x"}, {"count": "n_count"})
    with pytest.raises(
        ValueError, match=r"^unknown field 3; there are count, grid, kind, many, name, on, pair, part, rate, sides$"
    ):
        checked(Settings, {"count": 1, 3: 4})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"side": "x"}, "part.side must be a whole number, got 'x'"),
        ({}, "part.side is missing"),
        ({"a": 1, "side": 1}, "part.unknown field 'a'"),
    ],
)
def test_fields_of_sections_are_named(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        checked(Settings, {"part": value})


def test_what_is_quoted_is_short() -> None:
    for value in (shared_lists(60), 1 << 10**6, "x" * 10**6, {1: shared_lists(60)}, b"x" * 10**6):
        assert len(shown(value)) < 300


def test_what_acts_on_a_terminal_is_escaped() -> None:
    assert printable("a\x1b[2J\n\x9b\u202eb é→") == "a\\x1b[2J\\n\\x9b\\u202eb é→"


def test_what_has_no_default_must_be_given() -> None:
    check_complete(Settings, {"count": 1})
    with pytest.raises(ValueError, match=r"^count is missing$"):
        check_complete(Settings, {"rate": 1.0})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{", "not JSON"),
        ("a.json", b"[" * 99999, "not JSON"),
        ("a.yaml", b"a: [", "not YAML"),
        ("a.yaml", b"a: 2001-99-99", "not YAML"),
        ("a.yaml", b"[" * 9999, "not YAML"),
        ("a.yaml", b"a: &a 1\nb: [" + b"*a, " * 30 + b"]", "not YAML"),
        ("a.yaml", b"#" * 200_000, "larger than 128 KiB"),
        ("a.yml", b"\xff\xfe", "not a text file; YAML is expected"),
    ],
)
def test_files_that_are_neither(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: {message}") as error:
        read_settings(tmp_path / name)
    assert "\n" not in str(error.value)
    assert (
        read_settings(Path(__file__).parents[3] / "ribsr" / "checkpoints" / "sst-light-x2.yaml")["model"] == "sst-light"
    )
