"""PSNR and SSIM against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ribsr import metrics


def test_luma_of_black_white_and_gray() -> None:
    grays = np.repeat(np.array([[0, 255, 51]], np.uint8)[..., None], 3, axis=2)
    np.testing.assert_allclose(metrics.luma(grays), [[16, 235, 16 + 51 * 219 / 255]])
    np.testing.assert_allclose(metrics.gray(grays), [[0, 255, 51]])
    green = np.array([[[0, 255, 0]]], np.uint8)
    assert metrics.luma(green)[0, 0] == pytest.approx(16 + 128.553)


def test_psnr() -> None:
    a = np.zeros((4, 5))
    assert metrics.psnr(a, a + 255) == 0
    assert metrics.psnr(a, a + 2.55) == pytest.approx(40)
    assert metrics.psnr(a, a) == math.inf


def test_ssim_is_the_mean_over_windows() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (13, 12)).astype(float)
    b = np.clip(a + rng.normal(0, 20, a.shape), 0, 255)
    i = np.arange(11) - 5
    window = np.exp(-(i[:, None] ** 2 + i**2) / 4.5)
    window /= window.sum()
    values = []
    for y in range(3):
        for x in range(2):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            cov = (window * (p - mp) * (q - mq)).sum()
            c1, c2 = 2.55**2, 7.65**2
            values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    assert metrics.ssim(a, b) == pytest.approx(np.mean(values), abs=1e-12)
    assert metrics.ssim(a, a) == 1
    with pytest.raises(ValueError, match="SSIM needs 11x11 pixels, got 10x13"):
        metrics.ssim(a[:, :10], b[:, :10])


def test_borders_are_cut_off() -> None:
    plane = np.arange(30.0).reshape(5, 6)
    np.testing.assert_array_equal(metrics.crop_border(plane, 2), [[14, 15]])
    with pytest.raises(ValueError, match="6x5 has nothing left inside a border of 3 pixels"):
        metrics.crop_border(plane, 3)
