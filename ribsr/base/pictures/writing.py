"""Writing pictures: whole or not at all, and what a format cannot hold is refused before."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ribsr.base.errors import first_line
from ribsr.base.files import atomic, check_target
from ribsr.base.pictures.picture import Picture, PictureError
from ribsr.base.sizes import UNLIMITED, Size

WRITABLE: Mapping[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".webp": ("WEBP", {"lossless": True}),
    ".tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),
    ".bmp": ("BMP", {}),
    ".ppm": ("PPM", {}),
}
"""Suffix → Pillow's format and how it is saved. All but JPEG are lossless."""

SUFFIXES = tuple(WRITABLE)
"""Files in a folder that are taken for pictures, in lower case."""

_WITHOUT_PROFILE = ("BMP", "PPM")

_LONGEST_SIDE = {"WEBP": 16383, "JPEG": 65500}
"""Pixels that a format or its library allows."""


def check_output(
    path: str | Path, size: Size | None = None, picture: Picture | None = None, quality: int | None = None
) -> None:
    """Raises PictureError unless a picture can be written at `path`: a known suffix, in a folder that takes files, and
    of a format that can hold a picture of that size with that colour profile."""
    path = Path(path)
    if path.suffix.lower() not in WRITABLE:
        raise PictureError(f"{path}: cannot write pictures of this kind; choose one of {', '.join(WRITABLE)}")
    kind = WRITABLE[path.suffix.lower()][0]
    if size is not None and max(size) > (longest := _LONGEST_SIDE.get(kind, UNLIMITED)):
        raise PictureError(f"{path}: {size} is too large for {kind}, whose sides have {longest} pixels at most")
    if picture is not None and picture.colour.icc_profile is not None and kind in _WITHOUT_PROFILE:
        raise PictureError(f"{path}: {kind} cannot hold the picture's colour profile; write .png, .webp or .tiff")
    try:
        check_target(path)
    except OSError as error:
        raise PictureError(str(error)) from None


def bytes_to_write(path: str | Path, channels: int = 3, depth: int = 8) -> int:
    """Bytes of memory that a pixel takes while a picture is written at `path`: measured with Pillow 13, 3 of them in
    `Picture.pixels`, 4 in Pillow's copy. Its WebP encoder takes more; no format is written strip by strip, since Pillow
    saves what it has as a whole."""
    return 30 if Path(path).suffix.lower() == ".webp" else 7


def write_picture(path: str | Path, picture: Picture, quality: int | None = None) -> None:
    """Writes `picture` in the format of the suffix; whole or not at all.

    Raises PictureError: an unknown suffix, no such folder, a format that cannot hold this picture (its size, its colour
    profile), a full disk.
    """
    path = Path(path)
    check_output(path, picture.size, picture, quality)
    kind, options = WRITABLE[path.suffix.lower()]
    if picture.colour.icc_profile is not None:
        options = {**options, "icc_profile": picture.colour.icc_profile}
    image = Image.fromarray(picture.pixels)
    try:
        with atomic(path) as temporary:
            image.save(temporary, kind, **options)
    except (OSError, ValueError, struct.error) as error:
        raise PictureError(f"{path}: cannot be written ({first_line(error)})") from error
