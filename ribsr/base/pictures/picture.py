"""What a picture is in memory, and what models take and give of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ribsr.base.errors import RibsrError, reason_of
from ribsr.base.sizes import Size


class PictureError(RibsrError, ValueError):
    """A picture, or a folder of them, that cannot be read, used or written."""


def missing(path: Path, error: ImportError) -> PictureError:
    """The error for a file whose decoder or encoder lacks: it says nothing of the file."""
    return PictureError(
        f"{path}: needs a package that is missing here or does not load ({reason_of(error)}); "
        "pip install imagecodecs tifffile"
    )


@dataclass(frozen=True)
class Colour:
    """What the numbers in a picture's pixels mean, and how large they are printed; None: the file does not say.

    icc_profile: the profile's bytes. gamma: PNG's gAMA, the exponent of the file (1/2.2 is 0.45455). chromaticities:
    PNG's cHRM, x and y of white, red, green and blue. cicp: the four numbers of ITU-T H.273 (primaries, transfer,
    matrix, full range), of PNG's cICP or AVIF. srgb_intent: PNG's sRGB, a rendering intent of 0 to 3. dpi: pixels per
    inch, across and down.
    """

    icc_profile: bytes | None = None
    gamma: float | None = None
    chromaticities: tuple[float, ...] | None = None
    cicp: tuple[int, int, int, int] | None = None
    srgb_intent: int | None = None
    dpi: tuple[float, float] | None = None


@dataclass(frozen=True)
class Picture:
    """A picture, upright.

    pixels: uint8 or uint16; [H, W] gray, [H, W, 2] gray and alpha, [H, W, 3] RGB, [H, W, 4] RGB and alpha. Alpha is
    straight: colours are not premultiplied. dropped: what its file holds besides and is not carried over, as in "EXIF".

    A last axis of 1 is taken away. Raises PictureError for pixels of other types or shapes.
    """

    pixels: np.ndarray
    colour: Colour = Colour()
    dropped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        pixels = self.pixels
        if pixels.dtype not in (np.uint8, np.uint16):
            raise PictureError(
                f"pixels are uint8 or uint16, got {pixels.dtype}; multiply floats by 255 or 65535, or use `to_bytes`"
            )
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            object.__setattr__(self, "pixels", pixels[..., 0])
        elif not (pixels.ndim == 2 or (pixels.ndim == 3 and 1 < pixels.shape[2] < 5)) or not pixels.size:
            raise PictureError(f"pixels are [H, W], or [H, W, C] with 1 to 4 channels, got {list(pixels.shape)}")

    @property
    def size(self) -> Size:
        height, width = self.pixels.shape[:2]
        return Size(height, width)

    @property
    def depth(self) -> int:
        """Bits per channel: 8 or 16."""
        return 8 * self.pixels.dtype.itemsize

    @property
    def channels(self) -> int:
        """1 to 4, alpha among them."""
        return 1 if self.pixels.ndim == 2 else self.pixels.shape[2]

    @property
    def has_alpha(self) -> bool:
        return self.channels in (2, 4)

    @property
    def is_gray(self) -> bool:
        """With or without alpha."""
        return self.channels < 3

    def save(self, path: str | Path, quality: int | None = None) -> None:
        """As `write_picture`."""
        from ribsr.base.pictures.writing import write_picture

        write_picture(path, self, quality)


def to_input(pixels: np.ndarray) -> np.ndarray:
    """What models take: RGB [H, W, 3] or gray [H, W], uint8, uint16, or float32 that is in [0, 1] already → float32
    [1, 3, H, W], black 0 to white 1."""
    planes = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]
    x = np.empty((1, 3, *planes.shape[1:]), np.float32)
    x[0] = planes  # gray: the same three times
    if pixels.dtype.kind != "f":
        x /= np.float32(np.iinfo(pixels.dtype).max)
    return x


def to_pixels(y: np.ndarray, depth: int = 8) -> np.ndarray:
    """What models give, as it is written: float [1, 3, H, W] → RGB [H, W, 3], uint8 or uint16 (`to_bytes`)."""
    return to_bytes(y[0], depth).transpose(1, 2, 0)


def to_bytes(values: np.ndarray, depth: int = 8) -> np.ndarray:
    """float [..] in [0, 1] → uint8, or uint16 where depth is 16; clipped and rounded to nearest."""
    dtype = {8: np.uint8, 16: np.uint16}[depth]
    scaled = np.clip(values, 0, 1)
    scaled *= np.float32(np.iinfo(dtype).max)
    return np.rint(scaled, out=scaled).astype(dtype)
