"""Writing pictures: whole or not at all, and what a format cannot hold is refused before."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from ribsr.base.errors import reason_of
from ribsr.base.files import atomic, check_target
from ribsr.base.pictures.avif_grid import LONGEST_CELL, WHOLE, write_grid
from ribsr.base.pictures.by_pillow import save
from ribsr.base.pictures.found import DPI, MOST_DPI
from ribsr.base.pictures.picture import Colour, Picture, PictureError, missing
from ribsr.base.pictures.png import write_png
from ribsr.base.pictures.pnm import write_pnm
from ribsr.base.pictures.tiff import write_tiff
from ribsr.base.sizes import UNLIMITED, Size


@dataclass(frozen=True)
class Format:
    """A kind of file, and what it holds.

    write: of a picture, to a file. longest, largest: pixels of a side and of all, which the format's library allows, in
    reading, too. deep: 16 bits. profile: bytes of the longest colour profile. dpi: the least and the most, if any.
    quality: what is written without a quality; None: there is none to choose, or no loss. lossy: quality may be given.
    gray: whether gray stays gray; else it is written as RGB. encoder: bytes of memory a pixel, besides the picture's
    own, of 8-bit RGB; measured with photographs, which noise makes twice as much in WebP. parts: from how many pixels
    on it is encoded in parts, and how many one has; then others take a byte, for what is encoded.
    """

    name: str
    write: Callable[[BinaryIO, Picture, int | None], None]
    encoder: float
    longest: int = UNLIMITED
    largest: int = UNLIMITED
    deep: bool = False
    alpha: bool = False
    profile: int = UNLIMITED
    dpi: tuple[float, float] | None = None
    gray: bool = True
    lossy: bool = False
    parts: tuple[int, int] = (UNLIMITED**2, 0)


def _without_quality(write: Callable[[BinaryIO, Picture], None]) -> Callable[[BinaryIO, Picture, int | None], None]:
    """Of a format that has none to choose."""
    return lambda file, picture, quality: write(file, picture)


def _bmp(file: BinaryIO, picture: Picture) -> None:
    save("BMP", file, picture, dpi=picture.colour.dpi or (0, 0))  # Pillow makes up 96


def _jpeg(file: BinaryIO, picture: Picture, quality: int | None) -> None:
    save("JPEG", file, picture, quality=quality or 95, subsampling="4:4:4")


def _webp(file: BinaryIO, picture: Picture, quality: int | None) -> None:
    if quality is None:
        # Colours where nothing is seen, too. Quality is effort: at Pillow's 80, twice the time for the same size.
        save("WEBP", file, picture, lossless=True, exact=True, quality=50)
    else:
        save("WEBP", file, picture, quality=quality)


def _avif(file: BinaryIO, picture: Picture, quality: int | None) -> None:
    def encode(file: BinaryIO, picture: Picture) -> None:
        subsampling = "4:0:0" if picture.is_gray else "4:4:4"
        save("AVIF", file, picture, quality=quality or 90, subsampling=subsampling)

    whole = picture.size.height * picture.size.width <= WHOLE
    encode(file, picture) if whole else write_grid(file, picture, encode)


_DPI = (0.0128, MOST_DPI)
"""As whole numbers of pixels per metre; of TIFF it is far from what it can say."""

_PNG = Format("PNG", _without_quality(write_png), 4, longest=10**6, deep=True, alpha=True, dpi=_DPI)
_WEBP = Format("WebP", _webp, 43, longest=16383, alpha=True, gray=False, lossy=True)
_TIFF = Format("TIFF", _without_quality(write_tiff), 1, deep=True, alpha=True, dpi=_DPI)
_JPEG = Format("JPEG", _jpeg, 4, longest=65500, profile=255 * 65519, dpi=(0.51, 65535), lossy=True)
_BMP = Format("BMP", _without_quality(_bmp), 4, largest=14 * 10**8, profile=0, dpi=_DPI)  # 4 GiB
_PNM = Format("PPM", _without_quality(write_pnm), 1, deep=True, profile=0)
_AVIF = Format("AVIF", _avif, 47, longest=32768, largest=2**28, alpha=True, lossy=True, parts=(WHOLE, LONGEST_CELL**2))

WRITABLE: Mapping[str, Format] = {
    ".png": _PNG,
    ".webp": _WEBP,
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".bmp": _BMP,
    ".ppm": _PNM,
    ".pgm": _PNM,
    ".pnm": _PNM,
    ".avif": _AVIF,
}
"""Suffix → format. PNG, TIFF, BMP, PPM and, without a quality, WebP are lossless."""

SUFFIXES = (*WRITABLE, ".pbm")
"""Files in a folder that are taken for pictures, in lower case."""

WITH_QUALITY = frozenset(suffix for suffix, kind in WRITABLE.items() if kind.lossy)
"""Suffixes of formats of which a quality can be chosen."""

_SRGB_CICP = (1, 13)
_SRGB_GAMMA = (0.45, 0.46)
_SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)


def check_output(
    path: str | Path, size: Size | None = None, picture: Picture | None = None, quality: int | None = None
) -> None:
    """Raises PictureError unless a picture can be written at `path`: a known suffix, a name that is not too long, in a
    folder that takes files; and a format that can hold a picture of that size, with the depth, alpha and colours of
    `picture` (one of another size, mostly: what the result is made of), and that has a quality, if one is given.

    What a format cannot hold and does not change what is seen (`left_out`) is no reason to refuse.
    """
    path = Path(path)
    if path.suffix.lower() not in WRITABLE:
        raise PictureError(f"{path}: cannot write pictures of this kind; choose one of {', '.join(WRITABLE)}")
    kind = WRITABLE[path.suffix.lower()]
    if size is not None and max(size) > kind.longest:
        raise PictureError(
            f"{path}: {size} is too large for {kind.name}, whose sides have {kind.longest} pixels at most"
        )
    if size is not None and size.height * size.width > kind.largest:
        raise PictureError(f"{path}: {size} is too large for {kind.name}: {kind.largest} pixels at most")
    if quality is not None:
        if not kind.lossy:
            raise PictureError(f"{path}: {kind.name} is written without loss and takes no quality; leave it out")
        if quality not in range(1, 101):
            raise PictureError(f"{path}: the quality {quality} is not from 1 to 100")
    if picture is not None and (lost := _lost(path.suffix.lower(), picture)):
        raise PictureError(f"{path}: {kind.name} cannot hold {lost}")
    _check_name(path)
    try:
        check_target(path)
    except OSError as error:
        raise PictureError(_line(path, error)) from None


def _check_name(path: Path) -> None:
    """Raises PictureError where the file system takes no name that is so long."""
    if hasattr(os, "pathconf") and path.parent.is_dir():
        longest = os.pathconf(path.parent, "PC_NAME_MAX")
        if len(os.fsencode(path.name)) > longest:
            raise PictureError(f"{path}: the name is too long for the file system, which takes {longest} bytes")


def left_out(path: str | Path, picture: Picture) -> tuple[str, ...]:
    """What `write_picture` leaves out at such a path, as in `Picture.dropped`: it changes nothing that is seen."""
    held, dpi = WRITABLE[Path(path).suffix.lower()].dpi, picture.colour.dpi
    fits = dpi is None or (held is not None and all(held[0] <= value <= held[1] for value in dpi))
    return () if fits else (DPI,)


def _lost(suffix: str, picture: Picture) -> str | None:
    """What would be lost of a picture, and what to write instead."""
    kind, colour = WRITABLE[suffix], picture.colour
    if picture.depth == 16 and not kind.deep:
        return "16 bits per channel; write .png or .tiff"
    if picture.has_alpha and not kind.alpha:
        return "an alpha channel; write .png, .webp or .tiff"
    if suffix == ".pgm" and not picture.is_gray:
        return "colours under this suffix; write .ppm"
    if kind is _PNG:
        return None
    if colour.cicp is not None and colour.cicp[:2] != _SRGB_CICP:
        return "the picture's coding of colours (cICP); write .png"
    if colour.icc_profile is not None:
        if len(colour.icc_profile) > kind.profile:
            large = f" of more than {kind.profile} bytes" if kind.profile else ""
            return f"the picture's colour profile{large}; write .png, .webp or .tiff"
        if picture.is_gray and not kind.gray:
            return "a colour profile of gray; write .png or .tiff"
        return None
    return None if _shows_srgb(colour) else "the picture's gamma or primaries; write .png"


def _shows_srgb(colour: Colour) -> bool:
    """Whether colours without a profile are shown rightly by those who take them for sRGB, as all do."""
    if colour.srgb_intent is not None or colour.cicp is not None:
        return True
    low, high = _SRGB_GAMMA
    primaries = colour.chromaticities or _SRGB_PRIMARIES
    near = all(abs(value - srgb) < 0.002 for value, srgb in zip(primaries, _SRGB_PRIMARIES, strict=True))
    return near and (colour.gamma is None or low <= colour.gamma <= high)


def bytes_to_write(path: str | Path, size: Size, channels: int = 3, depth: int = 8) -> int:
    """Bytes of memory that a picture takes while it is written at `path`, those in `Picture.pixels` among them:
    measured with Pillow 13 and imagecodecs 2026.3.6. A suffix that is not known counts as PNG."""
    kind, own, pixels = WRITABLE.get(Path(path).suffix.lower(), _PNG), channels * depth // 8, size.height * size.width
    whole, part = kind.parts
    together = pixels if pixels <= whole else part
    return own * pixels + round(kind.encoder * max(1, own / 3)) * together + (pixels - together)


def write_picture(path: str | Path, picture: Picture, quality: int | None = None) -> None:
    """Writes `picture` in the format of the suffix; whole or not at all. Gray stays gray but in WebP, which has none;
    WebP and AVIF leave out an alpha channel that is opaque throughout.

    quality: 1 to 100, of JPEG (else 95), AVIF (else 90) and WebP (else without loss). PNG holds all of a picture; TIFF
    all but gamma, primaries and cICP.

    Raises PictureError as `check_output` does, and where writing fails, as on a full disk.
    """
    path = Path(path)
    check_output(path, picture.size, picture, quality)
    if left_out(path, picture):
        picture = replace(picture, colour=replace(picture.colour, dpi=None))
    try:
        with atomic(path) as temporary, open(temporary, "wb") as file:
            WRITABLE[path.suffix.lower()].write(file, picture, quality)
    except ImportError as error:
        raise missing(path, error) from error
    except Exception as error:  # encoders raise errors of their own, of many types
        raise PictureError(_line(path, error)) from error


def _line(path: Path, error: Exception) -> str:
    """One line that names the file once."""
    line = "too large for this machine's memory" if isinstance(error, MemoryError) else reason_of(error)
    return line if line.startswith(f"{path}: ") else f"{path}: cannot be written ({line})"
