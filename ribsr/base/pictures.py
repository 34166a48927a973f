"""Reading and writing pictures: 8-bit RGB for now, and nothing lost in silence.

What cannot be kept yet (alpha, gray, 16 bits, palettes, CMYK, animations) is refused with a message that says so.
Kept: pixels, orientation (applied), the ICC colour profile. Not carried over: EXIF, XMP and text fields, resolution.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from engines.base import EngineError
from ribsr.base.errors import first_line
from ribsr.base.files import atomic

if TYPE_CHECKING:
    from collections.abc import Mapping

READABLE = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "TIFF", "PPM")
"""Pillow's formats whose bit depth is known before Pillow converts to 8 bits. MPO is what many phones call JPEG."""

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

_WITHOUT_PROFILE = ("BMP", "PPM")

_MODES = {
    "1": "is black and white",
    "L": "is gray",
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


@dataclass(frozen=True)
class Picture:
    """pixels: RGB, float32 [1, 3, H, W], black 0 to white 1. icc_profile: the colour profile's bytes, if any."""

    pixels: np.ndarray
    icc_profile: bytes | None = None

    @property
    def size(self) -> str:
        """`WIDTHxHEIGHT` in pixels."""
        return f"{self.pixels.shape[3]}x{self.pixels.shape[2]}"


def read_picture(path: str | Path) -> Picture:
    """The picture at `path`, upright: an EXIF orientation is applied.

    Raises EngineError: no such file, not a picture, damaged, or of a kind that is not supported yet (see the module).
    """
    path = Path(path)
    check_source(path)
    try:
        with Image.open(path) as image:
            _check_kind(path, image)
            icc_profile = image.info.get("icc_profile")
            upright = ImageOps.exif_transpose(image)
            values = np.asarray(upright, dtype=np.uint8)
    except UnidentifiedImageError:
        raise EngineError(f"{path}: not a picture, or of a format that Pillow does not know") from None
    except Image.DecompressionBombError as error:
        raise EngineError(f"{path}: refused, it may be a decompression bomb ({first_line(error)})") from None
    except MemoryError:
        raise EngineError(f"{path}: too large for this machine's memory") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:  # what Pillow's decoders raise
        raise EngineError(f"{path}: damaged or unreadable ({first_line(error)})") from error
    pixels = values.astype(np.float32).transpose(2, 0, 1)[None] / np.float32(255)
    return Picture(np.ascontiguousarray(pixels), icc_profile)


def check_source(path: Path) -> None:
    """Raises EngineError unless there is a file to read."""
    if not path.is_file():
        raise EngineError(f"{path}: {'is a folder, not a picture' if path.is_dir() else 'no such file'}")


def _check_kind(path: Path, image: Image.Image) -> None:
    """Raises EngineError for a picture of which reading as 8-bit RGB would lose something."""
    if image.format not in READABLE:
        raise EngineError(f"{path}: {image.format} is not supported yet; convert it to PNG")
    reason = None
    if (frames := getattr(image, "n_frames", 1)) > 1:
        reason = f"holds {frames} pictures"
    elif (bits := _bits(path, image)) > 8:
        reason = f"has {bits} bits per channel"
    elif image.mode != "RGB":
        reason = _MODES.get(image.mode, "has more than 8 bits per channel" if ";16" in image.mode else None)
        reason = reason or f"is of mode {image.mode}"
    elif "transparency" in image.info:
        reason = "has a transparent colour"
    if reason:
        raise EngineError(f"{path}: {reason}; only 8-bit RGB pictures are supported yet: convert it to that first")


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
    with open(path, "rb") as file:
        header = file.read(4096)
    lines = (line.split(b"#", 1)[0] for line in header.splitlines())
    words = b" ".join(lines).split()[:4]
    if words[0] in (b"P1", b"P4") or len(words) < 4 or not words[3].isdigit():
        return 1
    return int(words[3])


def check_output(path: str | Path) -> None:
    """Raises EngineError unless a picture can be written at `path`: a known suffix, in a folder that exists."""
    path = Path(path)
    if path.suffix.lower() not in WRITABLE:
        raise EngineError(f"{path}: cannot write pictures of this kind; choose one of {', '.join(WRITABLE)}")
    if path.is_dir():
        raise EngineError(f"{path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise EngineError(f"{path}: there is no folder {path.parent}")


def write_picture(path: str | Path, picture: Picture) -> None:
    """Writes `picture`, clipped to [0, 1] and rounded to 8 bits, in the format of the suffix; whole or not at all.

    Raises EngineError: NaN or infinite values, an unknown suffix, no such folder, a format that cannot hold this
    picture (its size, its colour profile), a full disk.
    """
    path = Path(path)
    check_output(path)
    check_finite(picture.pixels, f"{path}: not written, since")
    kind, options = WRITABLE[path.suffix.lower()]
    if picture.icc_profile is not None:
        if kind in _WITHOUT_PROFILE:
            raise EngineError(f"{path}: {kind} cannot hold the picture's colour profile; write .png, .webp or .tiff")
        options = {**options, "icc_profile": picture.icc_profile}
    image = Image.fromarray(to_bytes(picture.pixels)[0].transpose(1, 2, 0))
    try:
        with atomic(path) as temporary:
            image.save(temporary, kind, **options)
    except (OSError, ValueError, struct.error) as error:
        raise EngineError(f"{path}: cannot be written ({first_line(error)})") from error


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """float [..] in [0, 1] → uint8, clipped and rounded to nearest."""
    return np.rint(np.clip(pixels, 0, 1) * np.float32(255)).astype(np.uint8)


def check_finite(pixels: np.ndarray, prefix: str) -> None:
    """Raises EngineError when values are NaN or infinite: they would become black pixels."""
    if bad := int(np.count_nonzero(~np.isfinite(pixels))):
        raise EngineError(
            f"{prefix} the engine produced {bad} NaN or infinite values of {pixels.size}; "
            "the model overflows in its precision: use bf16 or fp32"
        )
