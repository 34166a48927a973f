"""What Pillow reads and writes without loss: JPEG, BMP, AVIF, WebP (writing alone), and PPM in text or single bits."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import BytesIO
from typing import BinaryIO

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    Image,
    ImageCms,
    JpegImagePlugin,
    PpmImagePlugin,
)

from ribsr.base.errors import first_line
from ribsr.base.pictures import avif
from ribsr.base.pictures.found import INCHES, PRIVATE, Allow, Found, behind, orientation, upright
from ribsr.base.pictures.picture import Colour, Picture, PictureError
from ribsr.base.sizes import Size

OPENERS: dict[str, Callable[[BinaryIO], Image.Image]] = {
    "JPEG": JpegImagePlugin.jpeg_factory,  # MPO, too, which is what many phones call JPEG
    "BMP": BmpImagePlugin.BmpImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}
"""Not `Image.open`, which refuses large pictures by a number that all of a process shares; `Allow` does that here."""

_SHOWN = {"1": "L", "P": "RGB", "PA": "RGBA", "RGBa": "RGBA", "La": "LA", "YCbCr": "RGB"}
"""Modes → what they show, without loss."""

_REFUSED = {
    "LAB": "is CIELAB",
    "HSV": "is HSV",
    "I": "has 32 bits per channel",
    "F": "has floating-point pixels",
    "RGBX": "has a channel besides its colours that is no alpha channel",
}

_TOLD = {"exif": "EXIF", "xmp": "XMP", "comment": "text", "photoshop": "Photoshop's data"}
"""Of Pillow's `info`, what is not carried over, and what the user calls it."""

_SEGMENTS = {
    "COM": (b"",),
    "APP0": (b"JFIF\0",),
    "APP1": (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"),
    "APP2": (b"ICC_PROFILE\0", b"MPF\0"),
    "APP13": (b"Photoshop 3.0\0",),
    "APP14": (b"Adobe",),
}
"""Of JPEG: how those begin that Pillow reads, and that are carried over or told."""

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""What begins a segment of a JPEG; no such bytes are in coded pixels."""


def read_by_pillow(kind: str, file: BinaryIO, allow: Allow) -> Found:
    """`kind`: one of OPENERS. Raises PictureError: several pictures, modes that are not supported, too large; what
    Pillow raises besides."""
    file.seek(0)
    with OPENERS[kind](file) as image:
        deep = kind == "AVIF" and avif.depth(file) > 8
        channels = 4 if image.mode == "P" else len(image.getbands())
        allow(Size(image.height, image.width), channels, 16 if deep else 8)
        dropped = [name for key, name in _TOLD.items() if image.info.get(key)]
        if (frames := getattr(image, "n_frames", 1)) > 1:
            if image.format != "MPO":
                raise PictureError(f"holds {frames} pictures; extract the one that you want")
            dropped.append("1 more picture" if frames == 2 else f"{frames - 1} more pictures")
        if kind == "JPEG":
            dropped += _other_segments(image)
            dropped += _behind_jpegs(file, frames)
        if deep:
            pixels, profile = avif.deep_pixels(file), image.info.get("icc_profile")
        else:
            pixels, profile = _shown(image)
        if kind == "AVIF" and avif.is_gray(file) and pixels.ndim == 3:  # Pillow has them as RGB if they have alpha
            pixels = pixels[..., 0] if pixels.shape[2] == 3 else pixels[..., [0, -1]]
        if kind == "BMP":
            profile = _bmp_profile(file)
            if _has_fourth(file, image):
                dropped.append("a fourth byte in each pixel, which may be alpha")
        cicp = avif.cicp(file) if kind == "AVIF" and profile is None else None
        colour = Colour(icc_profile=profile, cicp=cicp, dpi=_dpi(image))
        return Found(pixels, colour, orientation(image), tuple(dropped))


def _other_segments(image: Image.Image) -> list[str]:
    """What is said of a JPEG's segments that Pillow leaves alone."""
    told = []
    for name, data in getattr(image, "applist", ()):
        if data.startswith(b"http://ns.adobe.com/xmp/extension/\0"):
            told.append("XMP")
        elif name == "APP11" and b"c2pa" in data:
            told.append("content credentials")
        elif not data.startswith(_SEGMENTS.get(name, ())):
            told.append(PRIVATE)
    return told


def _behind_jpegs(file: BinaryIO, count: int) -> list[str]:
    """`behind` of so many JPEGs, whose ends only their segments tell: there may be others within, as thumbnails."""
    file.seek(0)
    data, at = file.read(), 0
    for _ in range(count):
        if (start := data.find(b"\xff\xd8", at)) < 0:
            return []
        at = start + 2
        while (match := _MARKER.search(data, at)) and match[0] != b"\xff\xd9":
            at = match.end() + int.from_bytes(data[match.end() : match.end() + 2], "big")
        if match is None:
            return []
        at = match.end()
    file.seek(at)
    return behind(file)


def _bmp_profile(file: BinaryIO) -> bytes | None:
    """That of a BMP whose header is of version 5, which Pillow passes over."""
    file.seek(0)
    head = file.read(138)
    if len(head) < 138 or int.from_bytes(head[14:18], "little") < 124 or head[70:74] != b"DEBM":  # an embedded one
        return None
    offset, length = (int.from_bytes(head[at : at + 4], "little") for at in (126, 130))
    file.seek(14 + offset)
    return file.read(min(length, 2**26)) or None


def _has_fourth(file: BinaryIO, image: Image.Image) -> bool:
    """Whether a BMP has bytes besides its colours that say something. Its format says that they do not."""
    file.seek(10)
    start = int.from_bytes(file.read(4), "little")
    file.seek(28)
    if image.mode != "RGB" or int.from_bytes(file.read(2), "little") != 32:
        return False
    file.seek(start)
    fourth = np.fromfile(file, np.uint8, 4 * image.width * image.height)[3::4]
    return bool(fourth.size) and not (fourth.max() == 0 or fourth.min() == 255)


def from_image(image: Image.Image) -> Picture:
    """A picture that Pillow holds, upright: L, LA, RGB, RGBA and I;16; bitmaps, palettes and transparent colours as
    what they show; CMYK through its profile. Raises PictureError for other modes, for several pictures in one, and for
    what is damaged or closed.

    Pillow itself opens some files with fewer bits than they have; `read_picture` does not.
    """
    try:
        if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
            raise PictureError(f"holds {frames} pictures; choose one, and copy() it")
        pixels, profile = _shown(image)
    except PictureError as error:
        raise PictureError(f"the Pillow picture {error}") from error
    except Exception as error:  # what Pillow raises for damaged files, and for closed ones, is of nearly any type
        raise PictureError(f"the Pillow picture is damaged or closed ({first_line(error)})") from error
    return upright(Found(pixels, Colour(icc_profile=profile, dpi=_dpi(image)), orientation(image)))


def to_image(picture: Picture) -> Image.Image:
    """`picture` as Pillow holds it, with profile and resolution in `info`. Raises PictureError for 16 bits unless it is
    gray: Pillow has no modes for others."""
    if picture.depth == 16 and picture.channels > 1:
        raise PictureError("Pillow has no 16-bit colours and no 16-bit alpha; take the pixels, or save the picture")
    image = Image.fromarray(picture.pixels)
    said = {"icc_profile": picture.colour.icc_profile, "dpi": picture.colour.dpi}
    image.info.update({key: value for key, value in said.items() if value is not None})
    return image


def _shown(image: Image.Image) -> tuple[np.ndarray, bytes | None]:
    """The pixels as in `Picture`, and the profile of their colours."""
    profile = image.info.get("icc_profile") or None
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N"):
        return np.asarray(image).astype(np.uint16), profile
    if image.mode == "CMYK":
        return np.asarray(from_cmyk(image, profile)), None
    mode = _SHOWN.get(image.mode, image.mode)
    if "transparency" in image.info:
        mode = {"L": "LA", "RGB": "RGBA"}.get(mode, mode)
    if mode not in ("L", "LA", "RGB", "RGBA"):
        reason = _REFUSED.get(image.mode, f"is of the kind {image.mode}, which is not supported")
        raise PictureError(f"{reason}; convert it to RGB")
    return np.asarray(image if mode == image.mode else image.convert(mode)), profile


def from_cmyk(image: Image.Image, profile: bytes | None) -> Image.Image:
    """In sRGB. Which colours CMYK means only a profile says."""
    if profile is None:
        raise PictureError("is CMYK without a colour profile, so its colours are not known; convert it to RGB")
    try:
        return (
            ImageCms.profileToProfile(  # as what people see it in does: black stays black
                image,
                ImageCms.ImageCmsProfile(BytesIO(profile)),
                ImageCms.createProfile("sRGB"),
                renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                outputMode="RGB",
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
            or image
        )
    except (ImageCms.PyCMSError, OSError) as error:
        raise PictureError("is CMYK, and its colour profile cannot be used; convert it to RGB") from error


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    """Where the file says one. Of JPEGs that leave it to EXIF, Pillow takes one number for both, or makes up 72."""
    try:
        if image.format in ("JPEG", "MPO") and not image.info.get("jfif_unit"):
            exif = image.getexif()
            unit = INCHES[exif.get(0x0128, 2)]
            across, down = unit * float(exif[0x011A]), unit * float(exif[0x011B])
        else:
            across, down = map(float, image.info["dpi"])
    except Exception:  # noqa: BLE001 (what Pillow raises for EXIF that is none is of nearly any type)
        return None
    return (across, down) if across > 0 and down > 0 else None


def save(kind: str, file: BinaryIO, picture: Picture, **options: object) -> None:
    """Writes by Pillow's `kind` with its options, and the profile and resolution, which some kinds leave out."""
    image = to_image(picture)
    image.save(file, kind, **{**{str(key): value for key, value in image.info.items()}, **options})
