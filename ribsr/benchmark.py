"""Benchmark sets and how a model is scored on them; for `tools/evaluate.py` and the validation of a training run.

A gray picture (Set14's bridge.png) goes into the model as R = G = B, and two conventions exist for its score. Published
tables compare the gray plane itself, 0 to 255: `as_rgb=False`. Reading it as RGB instead takes the studio-range luma,
whose errors are 219/255 as large: 1.32 dB more for that picture, 0.09 dB for Set14's mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ribsr import metrics, resize
from ribsr.base.pictures import SUFFIXES, PictureError, pictures_in, read_picture
from ribsr.base.sizes import Size

Upscaler = Callable[[np.ndarray], np.ndarray]
"""A model: low-resolution RGB, uint8 [H, W, 3] → uint8 [sH, sW, 3]."""

DataError = PictureError
"""What is raised here and by training for folders and pictures that cannot be used."""


@dataclass(frozen=True)
class Score:
    """PSNR in dB (infinite for equal pictures) and SSIM of one picture."""

    picture: str
    psnr: float
    ssim: float


def find_sets(*folders: Path) -> dict[str, list[Path]]:
    """The benchmark sets of some folders: name → high-resolution pictures.

    A set is a folder with pictures in it or in its subfolder HR; each of `folders` is one, or holds some. Hidden
    folders are none. Where several have one name, their paths are their names. Raises DataError for a folder without
    any, and where pictures would be left out (`_set_in`).
    """
    sets: dict[Path, list[Path]] = {}
    for folder in folders:
        holders = [folder] if _set_in(folder) else _folders_in(folder)
        found = {holder: pictures for holder in holders if (pictures := _set_in(holder))}
        if not found:
            raise DataError(f"{folder}: holds no pictures, and no folder NAME/HR with pictures")
        sets.update(found)
    names = Counter(folder.resolve().name for folder in sets)
    return {of.resolve().name if names[of.resolve().name] == 1 else str(of): found for of, found in sets.items()}


def sidecars(folders: Iterable[Path]) -> int:
    """How many files of some folders are called like pictures, but for a `._` in front: what macOS keeps of pictures
    besides, on disks of other systems. `pictures_in` leaves them out."""
    return sum(path.suffix.lower() in SUFFIXES for folder in folders for path in folder.glob("._*"))


def _set_in(folder: Path) -> list[Path]:
    """The pictures of a set; none where the folder is no set. Raises DataError where it has pictures in itself and
    below, since one or the other would be left out, and for an HR without any."""
    pictures, high = pictures_in(folder), folder / "HR"
    if pictures:
        for below in _folders_in(folder):
            if any(pictures_in(of) for of in (below, below / "HR") if of.is_dir()):
                raise DataError(
                    f"{folder}: holds a picture, {pictures[0].name}, beside a folder of pictures, {below.name}; "
                    "move one of them elsewhere, so that it is clear what the set is"
                )
    if high.is_dir() and not (pictures := pictures_in(high)):
        raise DataError(f"{high}: holds no pictures; put those of the set there, or remove it")
    return pictures


def _folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def bicubic(scale: int) -> Upscaler:
    """The baseline."""
    return lambda pixels: resize.upscale(pixels, scale)


def read_original(path: Path, scale: int) -> np.ndarray:
    """What a model is compared with: uint8 RGB [H, W, 3] or gray [H, W], cut so that `scale` divides H and W.

    Raises DataError for a picture that cannot be read, has 16 bits or alpha, or is too small for a score.
    """
    picture = read_picture(path)
    if picture.depth != 8 or picture.has_alpha:
        kind = "an alpha channel" if picture.has_alpha else f"{picture.depth} bits per channel"
        raise DataError(
            f"{path}: has {kind}; only RGB and gray pictures of 8 bits are scored: convert it to that first"
        )
    original = resize.crop_to_multiple(picture.pixels, scale)
    if min(original.shape[:2]) - 2 * scale < metrics.WINDOW:
        window = Size(metrics.WINDOW, metrics.WINDOW)
        raise DataError(f"{path}: {picture.size} is too small: SSIM needs {window} inside a border of {scale} pixels")
    return original


def why_not(path: Path, scale: int) -> str | None:
    """Why a picture cannot be scored; None if it can be."""
    try:
        read_original(path, scale)
    except DataError as error:
        return str(error)
    return None


def score(upscaler: Upscaler, paths: Iterable[Path], scale: int, as_rgb: bool = False) -> Iterator[Score]:
    """Makes each picture `scale` times smaller, enlarges it again and compares: luma, without a border of `scale`.

    as_rgb: treat gray pictures as RGB ones (see the module). Raises DataError for pictures that cannot be scored.
    """
    for path in paths:
        original = read_original(path, scale)
        plane = original.ndim == 2
        pixels = np.stack([original] * 3, axis=-1) if plane else original
        to_plane = metrics.gray if plane and not as_rgb else metrics.luma
        enlarged = upscaler(resize.downscale(pixels, scale))
        a, b = (metrics.crop_border(to_plane(of), scale) for of in (pixels, enlarged))
        yield Score(path.name, metrics.psnr(a, b), metrics.ssim(a, b))
