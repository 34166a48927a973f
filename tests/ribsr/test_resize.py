"""Bicubic resizing against its definition, and against the published low-resolution pictures where they are at hand."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ribsr import resize

SAMPLE = Path(__file__).parents[2] / "engines" / "samples" / "coffee.png"

BENCHMARK = os.environ.get("RIBSR_BENCHMARK", "")
"""A folder with Set5/HR, Set5/LR_bicubic and Set14/HR, which may not be copied into this repository."""


def naive(line: np.ndarray, size: int) -> np.ndarray:
    """MATLAB's imresize of one uint8 line, a pixel and a tap at a time."""

    def cubic(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0

    n, ratio = len(line), size / len(line)
    stretch = min(ratio, 1)
    out = []
    for i in range(size):
        centre = (i + 0.5) / ratio - 0.5
        taps = range(math.floor(centre - 2 / stretch), math.ceil(centre + 2 / stretch) + 1)
        weights = [cubic((centre - t) * stretch) for t in taps]
        mirror = [*range(n), *range(n - 1, -1, -1)]
        value = sum(w * float(line[mirror[t % (2 * n)]]) for w, t in zip(weights, taps, strict=True)) / sum(weights)
        out.append(min(max(math.floor(value + 0.5), 0), 255))
    return np.array(out, np.uint8)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_both_directions_are_the_definition(scale: int) -> None:
    pixels = np.random.default_rng(scale).integers(0, 256, (12, 24), dtype=np.uint8)
    for h, w, made in ((12 // scale, 24 // scale, resize.downscale), (12 * scale, 24 * scale, resize.upscale)):
        rows = np.stack([naive(column, h) for column in pixels.T], axis=1)
        expected = np.stack([naive(row, w) for row in rows])
        np.testing.assert_array_equal(made(pixels, scale), expected)


def test_a_photograph_is_resized_as_when_it_equalled_the_published_pictures() -> None:
    """Digests taken with the code that passed `test_published_pictures_are_equal_bit_for_bit`."""
    pixels = np.asarray(Image.open(SAMPLE))
    made = [resize.downscale(pixels, scale) for scale in (2, 3, 4)] + [resize.upscale(pixels[:50, :40], 3)]
    digests = [hashlib.sha256(one.tobytes()).hexdigest()[:16] for one in made]
    assert digests == ["b7aef1f4ea0c79ad", "08abd91b5d68275a", "689d825d44b14f18", "e341bff11a1d15bb"]


@pytest.mark.skipif(not BENCHMARK, reason="RIBSR_BENCHMARK does not name the benchmark folder")
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_published_pictures_are_equal_bit_for_bit(scale: int) -> None:
    folder = Path(BENCHMARK) / "Set5"
    paths = sorted((folder / "HR").iterdir())
    assert len(paths) == 5
    for path in paths:
        published = np.asarray(Image.open(folder / "LR_bicubic" / f"X{scale}" / f"{path.stem}x{scale}.png"))
        np.testing.assert_array_equal(resize.downscale(np.asarray(Image.open(path)), scale), published)


def test_what_does_not_fill_a_pixel_is_cut_off() -> None:
    pixels = np.arange(7 * 11 * 3, dtype=np.uint8).reshape(7, 11, 3)
    assert resize.downscale(pixels, 3).shape == (2, 3, 3)
    np.testing.assert_array_equal(resize.downscale(pixels, 3), resize.downscale(pixels[:6, :9], 3))
    with pytest.raises(ValueError, match="11x1 cannot be made 2 times smaller"):
        resize.downscale(pixels[:1], 2)


def test_a_flat_picture_stays_flat() -> None:
    flat = np.full((9, 13, 3), 201, np.uint8)
    assert set(np.unique(resize.downscale(flat, 3))) == set(np.unique(resize.upscale(flat, 4))) == {201}
