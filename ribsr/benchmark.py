"""Benchmark sets and how a model is scored on them; for `tools/evaluate.py` and the validation of a training run.

A gray picture (Set14's bridge.png) goes into the model as R = G = B, and two conventions exist for its score. Published
tables compare the gray plane itself, 0 to 255: `as_rgb=False`. Reading it as RGB instead takes the studio-range luma,
whose errors are 219/255 as large: 1.32 dB more for that picture, 0.09 dB for Set14's mean.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ribsr import metrics, resize

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
"""Files in a folder that are taken for pictures."""

Upscaler = Callable[[np.ndarray], np.ndarray]
"""A model: low-resolution RGB, uint8 [H, W, 3] → uint8 [sH, sW, 3]."""


class DataError(ValueError):
    """A folder or picture that cannot be used; one line: what is wrong, where, what to do."""


@dataclass(frozen=True)
class Score:
    """PSNR in dB (infinite for equal pictures) and SSIM of one picture."""

    picture: str
    psnr: float
    ssim: float


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of a folder, sorted by name; those in its subfolders are not among them."""
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def find_sets(folder: Path) -> dict[str, list[Path]]:
    """The benchmark sets of a folder: name → high-resolution pictures.

    A set is a folder with pictures in it or in its subfolder HR; `folder` is one, or holds some.
    Raises DataError when there is none.
    """
    own = _set_in(folder)
    if own:
        return {folder.resolve().name: own}
    sets = {inner.name: _set_in(inner) for inner in sorted(folder.iterdir()) if inner.is_dir()}
    found = {name: pictures for name, pictures in sets.items() if pictures}
    if not found:
        raise DataError(f"{folder}: holds no pictures, and no folder NAME/HR with pictures")
    return found


def _set_in(folder: Path) -> list[Path]:
    return pictures_in(folder / "HR" if (folder / "HR").is_dir() else folder)


def read_picture(path: Path) -> np.ndarray:
    """uint8 RGB [H, W, 3], or [H, W] for a gray picture. Raises DataError for anything else."""
    try:
        with Image.open(path) as image:
            mode, pixels = image.mode, np.asarray(image)
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise DataError(f"{path}: not a readable picture ({(str(error) or 'damaged').splitlines()[0]})") from None
    if mode not in ("RGB", "L"):
        raise DataError(f"{path}: is of mode {mode}; give an RGB or gray picture of 8 bits")
    return pixels


def bicubic(scale: int) -> Upscaler:
    """The baseline."""
    return lambda pixels: resize.upscale(pixels, scale)


def score(upscaler: Upscaler, paths: list[Path], scale: int, as_rgb: bool = False) -> Iterator[Score]:
    """Makes each picture `scale` times smaller, enlarges it again and compares: luma, without a border of `scale`.

    as_rgb: treat gray pictures as RGB ones (see the module). Raises DataError for pictures that cannot be scored.
    """
    for path in paths:
        original = read_picture(path)
        plane = original.ndim == 2
        pixels = np.stack([original] * 3, axis=-1) if plane else original
        to_plane = metrics.gray if plane and not as_rgb else metrics.luma
        try:
            enlarged = upscaler(resize.downscale(pixels, scale))
            planes = [to_plane(of) for of in (resize.crop_to_multiple(pixels, scale), enlarged)]
            a, b = (metrics.crop_border(of, scale) for of in planes)
            yield Score(path.name, metrics.psnr(a, b), metrics.ssim(a, b))
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None
