"""Pictures of every kind through a network that takes RGB: gray, alpha, 16 bits and floats, tile by tile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engines import Engine, EngineError, Tiled
from engines.base import LayerTime, check_input
from ribsr.base.pictures import to_bytes, to_input, to_pixels
from ribsr.base.sizes import Limits, Size
from tests.engines.test_tiles import ANY, Layer

DTYPES = (np.uint8, np.uint16, np.float32)


class Soft(Engine):
    """Twice as large, with overshoot at edges, and colours that depend on each other, as networks have it."""

    def __init__(self, limits: Limits = ANY):
        self.limits, self.runs = limits, 0

    def describe(self) -> Any:
        return Layer(limits=self.limits).describe()

    def run(self, x: np.ndarray) -> np.ndarray:
        check_input(x, self.describe())
        self.runs += 1
        padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)), "edge")
        height, width = Size.of(x)
        around = sum(padded[..., i : i + height, j : j + width] for i in range(5) for j in range(5)) / np.float32(25)
        y = (x + np.float32(0.7) * (x - around)).repeat(2, 2).repeat(2, 3)
        y[..., ::2, :] += np.float32(0.01)
        y[:, 0] *= np.float32(1.01)
        return y + np.float32(0.02) * y[:, ::-1]

    def profile(self, x: np.ndarray, runs: int = 5) -> list[LayerTime]:
        raise NotImplementedError

    def close(self) -> None:
        pass


def most(dtype: Any) -> Any:
    return 1 if dtype == np.float32 else np.iinfo(dtype).max


def noise(shape: tuple[int, ...], dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape, np.float32) * most(dtype)).astype(dtype)


def with_alpha(height: int, width: int, dtype: Any, colours: int) -> np.ndarray:
    """Opaque, transparent and between: areas larger than a tile's overlap, a soft edge, and single pixels."""
    pixels = noise((height, width, colours + 1), dtype)
    alpha = pixels[..., -1]
    alpha[:, : 2 * width // 5] = most(dtype)
    alpha[: height // 3, 3 * width // 5 :] = 0
    alpha[height // 3 : height // 2, width // 2 :] = np.linspace(0, most(dtype), width - width // 2).astype(dtype)
    alpha[height // 5, width // 5] = 0
    return pixels


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("tile", [Size(96, 112), Size(160, 176)])
def test_tiles_give_what_the_whole_gives(dtype: Any, channels: int, tile: Size) -> None:
    shape = (211, 330, *([channels] if channels else []))
    pixels = with_alpha(211, 330, dtype, channels - 1) if channels in (2, 4) else noise(shape, dtype)
    whole = Tiled(Soft()).enlarge(pixels)
    cut = Tiled(Soft(), tile).enlarge(pixels)
    assert whole.dtype == cut.dtype == dtype
    assert whole.shape == (422, 660, *shape[2:])
    np.testing.assert_allclose(cut, whole, rtol=0, atol=1e-6 if dtype == np.float32 else 0)
    mirrored = Tiled(Soft(limits=Limits.only(96, 112))).enlarge(pixels)
    assert (mirrored[:400, :600].astype(float) == whole[:400, :600]).mean() > 0.99


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_rgb_is_rounded_to_nearest(dtype: Any) -> None:
    pixels = noise((50, 60, 3), dtype)
    y = Soft().run(to_input(pixels))
    np.testing.assert_array_equal(Tiled(Soft()).enlarge(pixels), to_pixels(y, 8 * pixels.itemsize))
    exact = np.clip(y[0].astype(np.float64), 0, 1).transpose(1, 2, 0) * most(dtype)
    assert np.abs(Tiled(Soft()).enlarge(pixels) - exact).max() < 0.505


def test_floats_are_clipped_and_not_rounded() -> None:
    pixels = noise((50, 60, 3), np.float32)
    y = Soft().run(np.ascontiguousarray(pixels.transpose(2, 0, 1))[None])[0].transpose(1, 2, 0)
    assert y.max() > 1
    np.testing.assert_array_equal(Tiled(Soft()).enlarge(pixels), np.clip(y, 0, 1))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_gray_is_the_mean_before_rounding(dtype: Any) -> None:
    pixels = noise((50, 60), dtype)
    mean = Soft().run(to_input(np.stack([pixels] * 3, 2))).mean(1, dtype=np.float32)[0]
    np.testing.assert_array_equal(Tiled(Soft()).enlarge(pixels), to_bytes(mean, 8 * pixels.itemsize))
    rounded = to_pixels(Soft().run(to_input(pixels)), 8 * pixels.itemsize).astype(np.float64).mean(2)
    assert (np.rint(rounded) != Tiled(Soft()).enlarge(pixels)).any()  # this network tells the difference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("tile", [None, Size(96, 112)])
def test_colours_under_alpha_0_have_no_influence(dtype: Any, colours: int, tile: Size | None) -> None:
    pixels = with_alpha(211, 330, dtype, colours)
    other = pixels.copy()
    hidden = other[..., -1] == 0
    other[hidden, :colours] = most(dtype) - other[hidden, :colours]
    assert not np.array_equal(pixels, other)
    made = Tiled(Soft(), tile).enlarge(pixels)
    np.testing.assert_array_equal(Tiled(Soft(), tile).enlarge(other), made)
    assert (made[made[..., -1] == 0] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("colours", [1, 3])
def test_opaque_is_what_it_is_without_alpha(dtype: Any, colours: int) -> None:
    pixels = noise((120, 150, colours + 1), dtype)
    pixels[..., -1] = most(dtype)
    engine = Soft()
    made = Tiled(engine).enlarge(pixels)
    assert engine.runs == 1
    np.testing.assert_array_equal(made[..., :-1], Tiled(Soft()).enlarge(pixels[..., :-1]))
    assert (made[..., -1] == most(dtype)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_transparent_stays_transparent_with_colour_0(dtype: Any) -> None:
    pixels = noise((40, 50, 4), dtype)
    pixels[..., 3] = 0
    made = Tiled(Soft()).enlarge(pixels)
    assert made.shape == (80, 100, 4)
    assert not made.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_there_is_no_fringe(dtype: Any) -> None:
    """A picture of one colour shows that alone, at every edge, whatever it has under alpha 0."""

    class Smooth(Soft):
        def run(self, x: np.ndarray) -> np.ndarray:
            height, width = Size.of(x).times(2)
            padded = np.pad(x.repeat(2, 2).repeat(2, 3), ((0, 0), (0, 0), (1, 1), (1, 1)), "edge")
            around = [padded[..., i : i + height, j : j + width] for i in range(3) for j in range(3)]
            return np.sum(around, axis=0, dtype=np.float32) / np.float32(9)

    pixels = with_alpha(90, 110, dtype, 3)
    colour = (np.array([0.5, 0.25, 0.1]) * most(dtype)).astype(dtype)
    pixels[pixels[..., 3] > 0, :3] = colour
    made = Tiled(Smooth()).enlarge(pixels)
    seen = made[..., 3] > 0
    assert np.count_nonzero(made[..., 3][seen] < most(dtype) / 3) > 0
    np.testing.assert_allclose(made[seen][:, :3], np.broadcast_to(colour, (seen.sum(), 3)), rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_alpha_does_not_ring(dtype: Any) -> None:
    """What lies among opaque, transparent or half transparent pixels alone stays so, however the network sharpens."""
    pixels = noise((60, 90, 4), dtype)
    values = (0, most(dtype) // 2 if dtype != np.float32 else 0.5, most(dtype))
    for column, value in enumerate(values):
        pixels[:, 30 * column : 30 * column + 30, 3] = value
    alpha = Tiled(Soft()).enlarge(pixels)[..., 3]
    for column, value in enumerate(values):
        assert (alpha[:, 60 * column + 2 : 60 * column + 58] == value).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_one_step_of_alpha_divides_by_no_zero(dtype: Any) -> None:
    pixels = noise((40, 50, 4), dtype)
    pixels[..., 3] = np.random.default_rng(1).integers(0, 3, (40, 50))
    with np.errstate(all="raise"):
        made = Tiled(Soft()).enlarge(pixels)
    assert set(np.unique(made[..., 3])) == {0, 1, 2}
    assert made[..., :3].max() == most(dtype)


def test_each_tile_runs_as_often_as_it_must() -> None:
    """Once where it is opaque, twice where it is not, never where nothing is seen."""
    pixels = noise((80, 3000, 4))
    pixels[:, :1000, 3] = 255
    pixels[:, 1000:2000, 3] = 0
    engine, steps = Soft(), []
    tiled = Tiled(engine, Size(80, 160))
    columns = tiled.spans(Size(80, 3000))[1]
    tiled.enlarge(pixels, steps.append)
    expected = sum(0 if s.start >= 1000 and s.stop <= 2000 else 1 if s.stop <= 1000 else 2 for s in columns)
    assert engine.runs == expected
    assert steps == [1] * len(columns)


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        ([[0]], "must be a numpy array of uint8, uint16, or float32 .*, got list"),
        (np.zeros((4, 4), np.float64), "got float64"),
        (np.zeros((4, 4), np.int32), "got int32"),
        (np.zeros((4, 4), bool), "got bool"),
        (np.zeros((4, 4), np.dtype(np.uint16).newbyteorder()), r"got [<>]u2"),
        (np.zeros(4, np.uint8), r"or \[H, W, C\] with 1 to 4 channels .* got \[4\]"),
        (np.zeros((4, 4, 5), np.uint8), r"got \[4, 4, 5\]"),
        (np.zeros((4, 0, 3), np.uint8), r"got \[4, 0, 3\]"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"got \[1, 4, 4, 3\]"),
        (np.full((4, 4), 255, np.float32), r"must be in \[0, 1\], these are 255 to 255; divide by what white is"),
        (np.full((4, 4), np.nan, np.float32), r"must be in \[0, 1\], these are nan to nan"),
    ],
)
def test_what_is_no_picture_is_named(pixels: Any, reason: str) -> None:
    with pytest.raises(EngineError, match=reason) as raised:
        Tiled(Soft()).enlarge(pixels)
    assert "\n" not in str(raised.value)
