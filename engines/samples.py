"""Real photographs that come with the toolkit, for parity, calibration and timing; licences in samples/LICENSES.md."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ribsr.base.sizes import Size

if TYPE_CHECKING:
    import numpy as np

NAMES = ("astronaut", "coffee", "chelsea")

SIZES = {"astronaut": Size(128, 128), "coffee": Size(131, 97), "chelsea": Size(5, 7)}
"""Of each in `load`: a multiple of most windows, odd sides, and smaller than any window."""


def load() -> list[tuple[str, np.ndarray]]:
    """The samples as (name, RGB float32 [1, 3, H, W] in [0, 1]), at three sizes that are hard in different ways."""
    return [(f"{name} {size}", sample(name, size)) for name, size in SIZES.items()]


def at(size: Size) -> list[tuple[str, np.ndarray]]:
    """All samples at one size, as `load` gives them: for models of a fixed input shape."""
    return [(f"{name} {size}", sample(name, size)) for name in NAMES]


def sample(name: str, size: Size) -> np.ndarray:
    """One sample, cut to [1, 3, H, W] of that size from its middle, or continued by mirroring where it is smaller."""
    import numpy as np

    pixels = _read(name)
    top, left = (max(0, (have - side) // 2) for have, side in zip(pixels.shape[2:], size, strict=True))
    pixels = pixels[:, :, top : top + size.height, left : left + size.width]
    missing = ((0, side - have) for have, side in zip(pixels.shape[2:], size, strict=True))
    return np.pad(pixels, ((0, 0), (0, 0), *missing), "reflect")


@cache
def _read(name: str) -> np.ndarray:
    from ribsr.base.pictures import read_input

    pixels = read_input(Path(__file__).with_suffix("") / f"{name}.png")
    pixels.setflags(write=False)
    return pixels
