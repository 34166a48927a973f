"""Sizes as users write them, and which of them a model takes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ribsr.base.sizes import UNLIMITED, Limits, Size

SIDES = st.integers(1, 5000)
SIZES = st.builds(Size, SIDES, SIDES)


@given(SIZES)
def test_what_is_printed_is_read_back(size: Size) -> None:
    assert Size.parse(str(size)) == size


def test_users_write_the_width_first_and_arrays_have_the_height_first() -> None:
    assert Size.parse("640x360") == Size(height=360, width=640) == Size.of(np.empty((1, 3, 360, 640)))
    assert str(Size(height=360, width=640)) == "640x360"
    assert Size(2, 3).times(4) == (8, 12)


@pytest.mark.parametrize(
    "text", ["", "640", "640x", "x360", "640x0", "0x1", "-1x2", "1.5x2", "640x36x3", "6 40x1", "٣x٤"]
)
def test_what_is_no_size_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
        Size.parse(text)


@given(SIZES, SIZES, SIZES)
def test_the_nearest_size_is_taken_and_a_taken_size_is_its_own_nearest(a: Size, b: Size, size: Size) -> None:
    limits = Limits(Size(*map(min, a, b)), Size(*map(max, a, b)))
    nearest = limits.nearest(size)
    assert limits.takes(nearest)
    assert limits.takes(size) == (nearest == size)
    assert all(low <= side <= high for low, side, high in zip(limits.least, nearest, limits.most, strict=True))


def test_one_fixed_side_leaves_the_other_free() -> None:
    limits = Limits.only(None, 64)
    assert limits.takes(Size(7, 64))
    assert not limits.takes(Size(64, 7))
    assert limits.fixed is None
    assert Limits.only(5, 64).fixed == (5, 64)


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (Limits(), "any size"),
        (Limits.only(360, 640), "640x360 only"),
        (Limits(Size(64, 32)), "32x64 and larger"),
        (Limits(Size(64, 64), Size(720, 1280)), "64x64 to 1280x720"),
    ],
)
def test_limits_in_words(limits: Limits, text: str) -> None:
    assert str(limits) == text


def test_a_side_without_limit_survives_json() -> None:
    assert json.loads(json.dumps(Limits().most, allow_nan=False)) == [UNLIMITED, UNLIMITED]
    assert str(Limits().most) == "anyxany"
