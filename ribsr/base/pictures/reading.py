"""Reading pictures: what a file holds is kept, refused by name, or said to be dropped."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ribsr.base.errors import reason_of
from ribsr.base.files import foreign, no_file
from ribsr.base.pictures.by_pillow import read_by_pillow
from ribsr.base.pictures.found import Allow, Found, check_size, upright
from ribsr.base.pictures.picture import Picture, PictureError, missing, to_input
from ribsr.base.pictures.png import read_png
from ribsr.base.pictures.pnm import CHANNELS, check_alone, header, read_pnm
from ribsr.base.pictures.tiff import read_tiff
from ribsr.base.pictures.webp import read_webp
from ribsr.base.pictures.writing import SUFFIXES
from ribsr.base.sizes import Size

# What decoders find odd would reach the terminal; what they cannot read, they raise.
for _name in ("imagecodecs", "tifffile", "PIL"):
    logging.getLogger(_name).addHandler(logging.NullHandler())
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_BEGINNINGS = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
    *((f"P{digit}".encode(), "PPM") for digit in range(1, 7)),
)
"""Suffixes are often wrong; the first bytes are not."""

_REFUSED = (
    (b"GIF8", "GIF"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"8BPS", "Photoshop's PSD"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"PF", "PFM"),
    (b"Pf", "PFM"),
    (b"P7", "PAM"),
    (b"\0\0\1\0", "ICO"),
    (b"%PDF", "PDF"),
)

_AVIF, _HEIF = (b"avif", b"avis"), (b"heic", b"heix", b"hevc", b"heim", b"heis")


def pictures_in(folder: str | Path) -> list[Path]:
    """The picture files of a folder, sorted by name. Hidden files, and those in its subfolders, are not among them.

    Raises PictureError if there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PictureError(f"{folder}: there is no such folder")
    named = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    return sorted(path for path in named if path.is_file())


def check_source(path: Path) -> None:
    """Raises PictureError unless there is a file to read."""
    if reason := no_file(path, "a picture"):
        raise PictureError(f"{path}: {reason}")


def read_picture(path: str | Path, max_pixels: int | None = None) -> Picture:
    """The picture at `path`, upright: an orientation in its EXIF is applied. Its beginning says of which kind it is,
    not its suffix: PNG, JPEG (of MPO files the first picture), WebP, TIFF, BMP, PPM and PGM, AVIF.

    Gray, alpha and 16 bits stay; AVIFs of 10 and 12 bits become 16. Bitmaps, palettes and transparent colours become
    what they show, CMYK becomes sRGB by its colour profile.

    max_pixels: the largest picture that is read. None: 2**30 pixels, and above 2**25 only what is no decompression
    bomb, by the size of the file.

    Raises PictureError: no such file, no picture, damaged, too large, several pictures in one file (animations, pages),
    more than 16 bits or floating point, CMYK without a profile, CIELAB, more than four channels.
    """
    path = Path(path)
    check_source(path)
    with _naming(path), open(path, "rb") as file:
        allow = partial(check_size, file_bytes=path.stat().st_size, max_pixels=max_pixels)
        return upright(_decoded(file, allow))


@dataclass(frozen=True)
class Header:
    """What a file declares. size: before an orientation is applied. channels and depth (8 or 16): those of its pixels,
    or more where only decoding tells, as for palettes that may be transparent."""

    size: Size
    channels: int
    depth: int


def read_header(path: str | Path, max_pixels: int | None = None) -> Header:
    """Without decoding. Raises PictureError as `read_picture` does, for what can be known so far."""
    path = Path(path)
    check_source(path)

    def stop(size: Size, channels: int, depth: int) -> None:
        check_size(size, channels, depth, file_bytes=path.stat().st_size, max_pixels=max_pixels)
        raise _Declared(Header(size, channels, 16 if depth > 8 else 8))

    with _naming(path), open(path, "rb") as file:
        try:
            _decoded(file, stop)
        except _Declared as declared:
            return declared.header
    raise AssertionError("every decoder asks what it may decode")


class _Declared(Exception):
    """Ends a decoder where it knows what it would decode."""

    def __init__(self, header: Header):
        self.header = header


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Whatever a decoder raises, as a PictureError of one line that names the file."""
    try:
        yield
    except PictureError as error:
        raise PictureError(f"{path}: {error}") from error.__cause__
    except MemoryError:
        raise PictureError(f"{path}: too large for this machine's memory") from None
    except ImportError as error:
        raise missing(path, error) from error
    except Exception as error:  # what decoders raise for damaged files is of nearly any type
        raise PictureError(f"{path}: damaged or unreadable ({reason_of(error)})") from error


def read_rgb(path: str | Path) -> Picture:
    """An RGB picture of 8 bits without alpha, which is what training and evaluation take. Raises PictureError for all
    others, and as `read_picture` does."""
    picture = read_picture(path)
    reasons = [
        *(["is gray"] if picture.is_gray else []),
        *(["has 16 bits per channel"] if picture.depth == 16 else []),
        *(["has an alpha channel"] if picture.has_alpha else []),
    ]
    if reasons:
        raise PictureError(f"{path}: {' and '.join(reasons)}; here only 8-bit RGB is taken: convert it to that first")
    return picture


def read_input(path: str | Path) -> np.ndarray:
    """The RGB or gray picture at `path` as a model takes it (`to_input`). Raises PictureError for pictures with alpha,
    and as `read_picture` does."""
    picture = read_picture(path)
    if picture.has_alpha:
        raise PictureError(f"{path}: has an alpha channel, and here it would be lost; remove it first")
    return to_input(picture.pixels)


def _decoded(file: BinaryIO, allow: Allow) -> Found:
    kind = _kind(file)
    file.seek(0)
    if kind == "PNG":
        return read_png(file, allow)
    if kind == "PPM":
        word, size, most = header(file)
        if word in CHANNELS:
            file.seek(0)
            return read_pnm(file, allow)
        check_alone(file, word, size)
        if most > 255:
            raise PictureError("is a PPM or PGM of text and more than 8 bits; convert it to PNG")
    if kind == "WebP":
        return read_webp(file, allow)
    if kind == "TIFF":
        return read_tiff(file, allow)
    return read_by_pillow(kind, file, allow)


def _kind(file: BinaryIO) -> str:
    """By a file's first bytes. Raises PictureError for what is no picture, or of a kind that is not read."""
    head = file.read(32)
    for beginning, kind in _BEGINNINGS:
        if head.startswith(beginning):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    brands = [head[at : at + 4] for at in (8, *range(16, len(head), 4))] if head[4:8] == b"ftyp" else []
    if any(brand in _AVIF for brand in brands):
        return "AVIF"
    refused = "HEIC" if any(brand in _HEIF for brand in brands) else None
    for beginning, kind in _REFUSED:
        if head.startswith(beginning):
            refused = kind
    if refused is None and b"<svg" in head + file.read(2**12):
        refused = "SVG"
    if refused:
        raise PictureError(f"is {refused}, which is not supported; convert it to PNG")
    raise PictureError(foreign(file.name, "a picture") or "not a picture, or of a kind that is not supported")
