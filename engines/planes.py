"""What a network, which takes RGB, gets of a picture of any kind, and what is made of its results.

Gray goes in as R = G = B, and comes out as the mean of the three. Alpha is enlarged as a gray picture, and kept between
the least and the most of the nine pixels around, so that what is opaque or transparent stays so and nothing rings.
Colours go in multiplied by alpha, so that none under alpha 0 has any influence, and come out divided by what it became.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engines.base import EngineError

if TYPE_CHECKING:
    import numpy as np

STRIP = 64
"""Rows that are rounded at a time."""

OVERSHOOT = 1
"""How far floats may be outside of [0, 1], as sharpening and resizing leave them. Beyond, white is no 1."""

_LEAST_ALPHA = 0.5 / 65535
"""That colours are divided by; of integers, less is rounded to 0, and colours are 0 there."""


def check_pixels(pixels: Any) -> None:
    """Raises EngineError unless it is an array of a kind that can be enlarged: uint8, uint16, or float32 in [0, 1];
    gray [H, W] or [H, W, 1], gray and alpha [H, W, 2], RGB [H, W, 3], RGB and alpha [H, W, 4]."""
    import numpy as np

    if not isinstance(pixels, np.ndarray) or pixels.dtype not in (np.uint8, np.uint16, np.float32):
        given = pixels.dtype if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise EngineError(f"pixels must be a numpy array of uint8, uint16, or float32 in [0, 1], got {given}")
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and 1 <= pixels.shape[2] <= 4)) or min(pixels.shape) < 1:
        raise EngineError(
            "pixels must be [H, W], or [H, W, C] with 1 to 4 channels (gray, gray and alpha, RGB, RGB and alpha), got "
            f"{list(pixels.shape)}"
        )
    if pixels.dtype == np.float32 and not (pixels.min() >= -OVERSHOOT and pixels.max() <= 1 + OVERSHOOT):
        raise EngineError(
            f"float32 pixels must be in [0, 1], these are {pixels.min():g} to {pixels.max():g}; divide by what white is"
        )


def channels(pixels: np.ndarray) -> int:
    """1 to 4, alpha among them."""
    return 1 if pixels.ndim == 2 else pixels.shape[2]


def has_alpha(pixels: np.ndarray) -> bool:
    return channels(pixels) in (2, 4)


def split(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels (`check_pixels`) → colours multiplied by alpha, float32 [1, 3, H, W], and alpha, float32 [H, W].

    Both in [0, 1]. Alpha is None where the picture has none, or is opaque everywhere.
    """
    import numpy as np

    from ribsr.base.pictures import to_input

    gray = channels(pixels) < 3
    x = to_input(pixels if pixels.ndim == 2 else pixels[..., 0] if gray else pixels[..., :3])
    most = np.float32(_most(pixels.dtype))
    if not has_alpha(pixels) or (pixels[..., -1] >= most).all():
        return x, None
    alpha = np.clip(pixels[..., -1].astype(np.float32) / most, 0, 1)
    x *= alpha
    return x, alpha


def as_gray(y: np.ndarray) -> np.ndarray:
    """What a network makes of a gray picture, [1, 3, H, W] → [H, W]."""
    import numpy as np

    return y[0].mean(0, dtype=np.float32)


def within(enlarged: np.ndarray, alpha: np.ndarray, part: tuple[slice, slice]) -> np.ndarray:
    """Enlarged alpha, kept between the least and the most of what is around each pixel.

    enlarged: of the rows and columns `part` of alpha [H, W].
    """
    import numpy as np

    height, width = (len(range(side)[kept]) for side, kept in zip(alpha.shape, part, strict=True))
    scale = enlarged.shape[0] // height
    bounds = []
    for choose in (np.minimum, np.maximum):
        padded = np.pad(alpha, 1, "edge")
        rows = choose(choose(padded[:-2], padded[1:-1]), padded[2:])
        around = choose(choose(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])[part]
        bounds.append(np.broadcast_to(around[:, None, :, None], (height, scale, width, scale)))
    cells = enlarged.reshape(height, scale, width, scale)
    return np.clip(cells, *bounds, out=cells).reshape(enlarged.shape)


def put(place: np.ndarray, y: np.ndarray, alpha: np.ndarray | None) -> None:
    """What a network made of colours [1, 3, H, W], and alpha [H, W], to pixels: clipped, divided, rounded to nearest.

    place: a view of just that size, of the picture's dtype and channels. alpha: as float, before it is rounded; None:
    opaque everywhere.
    """
    import numpy as np

    if place.ndim == 2:
        place = place[..., None]
    count = 1 if place.shape[2] < 3 else 3
    if alpha is None and has_alpha(place):
        place[..., -1] = _most(place.dtype)
    for start in range(0, len(place), STRIP):
        rows = slice(start, start + STRIP)
        colours = y[:, :, rows]
        values = as_gray(colours)[None] if count == 1 else colours[0]
        if alpha is not None:
            shown = place[rows, :, -1] = _rounded(alpha[rows], place.dtype)
            values = np.where(shown > 0, values / np.maximum(alpha[rows], np.float32(_LEAST_ALPHA)), np.float32(0))
        for channel, plane in enumerate(_rounded(values, place.dtype)):  # one by one: four times as fast as transposed
            place[rows, :, channel] = plane


def _most(dtype: np.dtype) -> int:
    """What white is, and opaque."""
    import numpy as np

    return 1 if dtype.kind == "f" else int(np.iinfo(dtype).max)


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """float32 → dtype: integers as pictures are written, float32 clipped alone."""
    import numpy as np

    from ribsr.base.pictures import to_bytes

    return np.clip(values, 0, 1) if dtype.kind == "f" else to_bytes(values, 8 * dtype.itemsize)
