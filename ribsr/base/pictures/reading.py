"""Reading and writing pictures, for engines, training and evaluation alike: 8 bits, and nothing lost in silence.

What cannot be kept yet (alpha, 16 bits, palettes, CMYK, animations) is refused with a message that says so. Gray
pictures are read by those who ask for them (`read_picture`); models take RGB (`read_rgb`, `read_input`).
Kept: pixels, orientation (applied), the ICC colour profile. Not carried over: EXIF, XMP and text fields, resolution,
and what phones put behind the picture of an MPO file.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from ribsr.base.errors import first_line
from ribsr.base.pictures.picture import Colour, Picture, PictureError, to_input
from ribsr.base.pictures.writing import SUFFIXES

READABLE = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "TIFF", "PPM")
"""Pillow's formats whose bit depth is known before Pillow converts to 8 bits. MPO is what many phones call JPEG."""

_MODES = {
    "1": "is black and white",
    "LA": "is gray with an alpha channel",
    "La": "is gray with an alpha channel",
    "P": "has a palette",
    "PA": "has a palette with an alpha channel",
    "RGBA": "has an alpha channel",
    "RGBa": "has an alpha channel",
    "CMYK": "is CMYK",
    "YCbCr": "is YCbCr",
    "LAB": "is CIELAB",
    "I": "has more than 8 bits per channel",
    "F": "has floating-point pixels",
}

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → what makes the picture upright."""

# Text is not carried over, so one long field (how a picture was generated) is no reason to refuse it.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


def pictures_in(folder: str | Path, recursive: bool = False) -> list[Path]:
    """The picture files of a folder, sorted by name; hidden ones, and those in its subfolders, are not among them.

    Raises PictureError if there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PictureError(f"{folder}: there is no such folder")
    named = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    return sorted(path for path in named if path.is_file())


def read_picture(path: str | Path, max_pixels: int | None = None) -> Picture:
    """The RGB or gray picture at `path`, upright: an EXIF orientation is applied.

    Raises PictureError: no such file, not a picture, damaged, too large, or of a kind that is not supported yet (see
    the module).
    """
    path = Path(path)
    check_source(path)
    try:
        with Image.open(path) as image:
            _check_kind(path, image)
            pixels = np.asarray(_upright(image), dtype=np.uint8)
            return Picture(pixels, Colour(icc_profile=image.info.get("icc_profile")))
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError(f"{path}: not a picture, or of a format that Pillow does not know") from None
    except Image.DecompressionBombError as error:
        raise PictureError(f"{path}: refused, it may be a decompression bomb ({first_line(error)})") from None
    except MemoryError:
        raise PictureError(f"{path}: too large for this machine's memory") from None
    except Exception as error:  # what Pillow's decoders raise for damaged files is of nearly any type
        reason = getattr(error, "strerror", None) or first_line(error)
        raise PictureError(f"{path}: damaged or unreadable ({reason})") from error


def read_rgb(path: str | Path) -> Picture:
    """As `read_picture`, but pixels are always [H, W, 3]. Raises PictureError for gray pictures, too."""
    picture = read_picture(path)
    if picture.pixels.ndim == 2:
        raise _unsupported(path, "is gray")
    return picture


def read_input(path: str | Path) -> np.ndarray:
    """The RGB picture at `path` as a model takes it (`to_input`). Raises PictureError as `read_rgb` does."""
    return to_input(read_rgb(path).pixels)


def check_source(path: Path) -> None:
    """Raises PictureError unless there is a file to read."""
    if not path.is_file():
        raise PictureError(f"{path}: {'is a folder, not a picture' if path.is_dir() else 'no such file'}")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF or XMP says. Pillow's `exif_transpose` writes all EXIF again, and fails on fields it cannot."""
    try:
        turn = _TURNS.get(image.getexif().get(0x0112, 1))
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error):
        turn = None  # no EXIF that anyone can read: as it lies
    return image if turn is None else image.transpose(turn)


def _check_kind(path: Path, image: Image.Image) -> None:
    """Raises PictureError for a picture of which reading as 8-bit RGB or gray would lose something."""
    if image.format not in READABLE:
        raise PictureError(f"{path}: {image.format} is not supported yet; convert it to PNG")
    reason = None
    if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":  # its others are no frames
        reason = f"holds {frames} pictures"
    elif (bits := _bits(path, image)) > 8:
        reason = f"has {bits} bits per channel"
    elif image.mode not in ("RGB", "L"):
        reason = _MODES.get(image.mode, "has more than 8 bits per channel" if ";16" in image.mode else None)
        reason = reason or f"is of mode {image.mode}"
    elif "transparency" in image.info:
        reason = "has a transparent colour"
    if reason:
        raise _unsupported(path, reason)


def _unsupported(path: str | Path, reason: str) -> PictureError:
    return PictureError(f"{path}: {reason}; only 8-bit RGB pictures are supported yet: convert it to that first")


def _bits(path: Path, image: Image.Image) -> int:
    """Bits per channel in the file, which Pillow reduces to 8 without a word."""
    if image.format == "PNG":
        with open(path, "rb") as file:
            return file.read(25)[24]  # signature 8, IHDR's length and name 8, width and height 8, bit depth
    if image.format == "TIFF":
        depths = image.getexif().get(258, 8)  # BitsPerSample
        return max(depths) if isinstance(depths, tuple) else int(depths)
    if image.format == "PPM":
        return _ppm_maximum(path).bit_length()
    return 8


def _ppm_maximum(path: Path) -> int:
    """The largest value that a PPM's header announces; 1 for bitmaps, which have none."""
    words: list[bytes] = []
    with open(path, "rb") as file:
        for line in file:  # comments may be of any length
            words += line.split(b"#", 1)[0].split()
            if len(words) >= 4:
                break
    if words[0] in (b"P1", b"P4") or len(words) < 4 or not words[3].isdigit():
        return 1
    return int(words[3])
