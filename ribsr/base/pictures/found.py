"""What decoders share: what they find in a file, before it is turned, and how large a picture may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
from PIL import Image

from ribsr.base.files import amount
from ribsr.base.pictures.picture import Colour, Picture, PictureError
from ribsr.base.sizes import Size

MOST_PIXELS = 2**30
"""Of a picture that is read, where nobody names another number."""

UNDOUBTED_PIXELS = 2**25
"""A picture of so many pixels may be as small a file as it likes: decoded it takes 256 MiB at most."""

MOST_BYTES_EACH = 1000
"""Decoded bytes for each byte of the file, in larger pictures. Deflate ends at 1032. Measured with pictures of one
colour, 8192x8192: our PNG 931, our TIFF 912, Pillow's PNG 1030 (black) and 934, its progressive JPEG 511."""

INCHES: Mapping[int, float] = {2: 1.0, 3: 2.54}
"""Number of TIFF's and EXIF's unit of resolution → how many of it are an inch."""

MOST_DPI = 10**6
"""More is a mistake, and no format holds any number."""

DPI, PRIVATE, SEVERAL = "the resolution in DPI", "private data", "holds several pictures; extract the one that you want"

Allow = Callable[[Size, int, int], None]
"""Called before a picture is decoded, with its size, channels and bits per channel (those that the result may have at
most); raises PictureError where that is too large."""


@dataclass(frozen=True)
class Found:
    """A picture as it lies in its file: pixels as in `Picture`, EXIF's orientation (1 to 8), colour, and what of the
    file is not carried over."""

    pixels: np.ndarray
    colour: Colour
    orientation: int = 1
    dropped: tuple[str, ...] = ()


def check_size(size: Size, channels: int, depth: int, *, file_bytes: int, max_pixels: int | None) -> None:
    """Raises PictureError for more pixels than are allowed, and for a decompression bomb: a small file that claims to
    be a large picture. max_pixels: what the user allows, then nothing else is asked."""
    pixels, hint = size.height * size.width, "if that is right, allow it with --max-pixels"
    sides = f"{size.width}x{size.height}"  # as they are: the longest that a `Size` can name reads "any"
    if max_pixels is not None:
        if pixels > max_pixels:
            raise PictureError(f"has {pixels} pixels ({sides}), and {max_pixels} are allowed; see --max-pixels")
    elif pixels > MOST_PIXELS:
        raise PictureError(f"claims to have {pixels} pixels ({sides}), more than {MOST_PIXELS}; {hint} {pixels}")
    elif pixels > UNDOUBTED_PIXELS and pixels * channels * depth // 8 > MOST_BYTES_EACH * file_bytes:
        raise PictureError(f"may be a decompression bomb: {sides} in a file of {amount(file_bytes)}; {hint} {pixels}")


def behind(file: BinaryIO) -> list[str]:
    """What is said of bytes behind a picture, where the file is; none of zeros and blanks, with which some fill up."""
    return ["data behind the picture"] if file.read(2**16).strip(b"\0 \r\n") else []


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, or XMP's; 1 where there is none that anyone can read: then it stays as it lies.

    Other fields of EXIF may be nonsense; Pillow's `exif_transpose` would write them again, and fail.
    """
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # noqa: BLE001 (what Pillow raises for EXIF that is none is of nearly any type)
        return 1
    return value if value in range(1, 9) else 1


def upright(found: Found) -> Picture:
    """Turned as EXIF's orientation says, without a profile that speaks of other channels, and without a resolution that
    cannot be."""
    pixels, colour, dropped = found.pixels, found.colour, list(dict.fromkeys(found.dropped))
    if colour.dpi is not None and max(colour.dpi) >= MOST_DPI:
        colour = replace(colour, dpi=None)
        dropped.append(DPI)
    if found.orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
        colour = colour if colour.dpi is None else replace(colour, dpi=colour.dpi[::-1])
    if found.orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if found.orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    picture = Picture(np.ascontiguousarray(pixels), colour, tuple(dropped))
    space = (colour.icc_profile or b"")[16:20]
    if space not in ((b"RGB ", b"CMYK") if picture.is_gray else (b"GRAY", b"CMYK")):
        return picture
    told = ("a colour profile for other channels",)
    return replace(picture, colour=replace(colour, icc_profile=None), dropped=picture.dropped + told)
