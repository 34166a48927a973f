"""PSNR and SSIM by the field's protocol: on the luma of 8-bit pictures, border cut off. numpy only."""

from __future__ import annotations

import math

import numpy as np

from ribsr.base.sizes import Size

WINDOW = 11
"""Side of SSIM's Gaussian window, in pixels."""

_LUMA = (65.481, 128.553, 24.966)
"""ITU-R BT.601: Y = 16 + (65.481 R + 128.553 G + 24.966 B)/255, from 16 (black) to 235 (white)."""


def luma(pixels: np.ndarray) -> np.ndarray:
    """Studio-range Y of RGB, uint8 [H, W, 3] → float64 [H, W], 16 to 235, not rounded."""
    return pixels @ (np.array(_LUMA) / 255) + 16.0


def gray(pixels: np.ndarray) -> np.ndarray:
    """Full-range luma of RGB, uint8 [H, W, 3] → float64 [H, W], 0 to 255: of R = G = B, that value itself."""
    return pixels @ (np.array(_LUMA) / sum(_LUMA))


def crop_border(plane: np.ndarray, border: int) -> np.ndarray:
    """[H, W] without `border` pixels on each side. Raises ValueError when nothing is left."""
    h, w = plane.shape
    if min(h, w) <= 2 * border:
        raise ValueError(f"a picture of {Size(h, w)} has nothing left inside a border of {border} pixels")
    return plane[border : h - border, border : w - border]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two planes [H, W], peak 255; infinite for equal ones."""
    error = float(np.mean((a - b) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of two planes [H, W] (Wang et al. 2004), peak 255.

    Gaussian window of 11x11, σ = 1.5, only where it fits into the picture; K1 = 0.01, K2 = 0.03.
    Raises ValueError for planes smaller than the window.
    """
    if min(a.shape) < WINDOW:
        raise ValueError(f"SSIM needs {Size(WINDOW, WINDOW)} pixels, got {Size.of(a)}")
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a, variance_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return float(np.mean(structure * (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)))


def _blur(plane: np.ndarray) -> np.ndarray:
    """Weighted mean in the Gaussian window, [H, W] → [H − 10, W − 10]."""
    taps = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()
    h, w = plane.shape
    rows = np.sum([tap * plane[i : h - 10 + i] for i, tap in enumerate(taps)], axis=0)
    return np.sum([tap * rows[:, i : w - 10 + i] for i, tap in enumerate(taps)], axis=0)
