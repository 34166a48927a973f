"""Bicubic resizing of 8-bit pictures as MATLAB's imresize does it: how the field makes its low-resolution pictures."""

from __future__ import annotations

from functools import cache

import numpy as np

from ribsr.base.sizes import Size


def downscale(pixels: np.ndarray, scale: int) -> np.ndarray:
    """Antialiased bicubic, uint8 [H, W, ...] → uint8 [⌊H/scale⌋, ⌊W/scale⌋, ...].

    What is left over at the right and bottom is cut off first (`crop_to_multiple`). Equal bit for bit to the published
    low-resolution pictures. Raises ValueError for a picture smaller than `scale`.
    """
    h, w = pixels.shape[:2]
    if min(h, w) < scale:
        raise ValueError(f"a picture of {Size(h, w)} cannot be made {scale} times smaller")
    return _resize(crop_to_multiple(pixels, scale), h // scale, w // scale)


def upscale(pixels: np.ndarray, scale: int) -> np.ndarray:
    """Bicubic, uint8 [H, W, ...] → uint8 [H·scale, W·scale, ...]: the baseline that a model has to beat."""
    h, w = pixels.shape[:2]
    return _resize(pixels, h * scale, w * scale)


def crop_to_multiple(pixels: np.ndarray, scale: int) -> np.ndarray:
    """[H, W, ...] cut at the right and bottom so that `scale` divides H and W."""
    h, w = pixels.shape[:2]
    return pixels[: h - h % scale, : w - w % scale]


def _resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """imresize rounds 8-bit pictures to 8 bits between its two passes, rows first."""
    rows = _resize_rows(pixels, height)
    return _resize_rows(rows.swapaxes(0, 1), width).swapaxes(0, 1)


def _resize_rows(pixels: np.ndarray, size: int) -> np.ndarray:
    taps, weights = _contributions(pixels.shape[0], size)
    shape = (size, *(1 for _ in pixels.shape[1:]))
    out = np.zeros((size, *pixels.shape[1:]))
    for tap, weight in zip(taps, weights, strict=True):
        out += pixels[tap] * weight.reshape(shape)
    out += 0.5  # MATLAB rounds halves away from zero, numpy's rint to even
    return np.clip(np.floor(out, out=out), 0, 255, out=out).astype(np.uint8)


@cache
def _contributions(size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Source indices and weights of each output position, [taps, size_out] each.

    A cubic kernel (a = −0.5) stretched by the factor when shrinking; sources beyond the edge are mirrored with the
    edge repeated; weights sum to 1.
    """
    ratio = size_out / size_in
    stretch = min(ratio, 1.0)
    centres = (np.arange(size_out) + 0.5) / ratio - 0.5
    width = 4 / stretch
    first = np.floor(centres - width / 2).astype(np.int64) + 1
    taps = first + np.arange(int(np.ceil(width)) + 1)[:, None]
    weights = _cubic((centres - taps) * stretch)
    weights /= weights.sum(axis=0)
    mirrored = np.mod(taps, 2 * size_in)
    return np.minimum(mirrored, 2 * size_in - 1 - mirrored), weights


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = −0.5, zero from |x| = 2 on."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
