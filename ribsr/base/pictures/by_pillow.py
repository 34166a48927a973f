"""What Pillow reads and writes without loss: JPEG, BMP, AVIF, WebP (writing alone), and PPM in text or single bits."""

from __future__ import annotations

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

from ribsr.base.pictures import avif
from ribsr.base.pictures.found import Allow, Found, orientation, upright
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
        if deep:
            pixels, profile = avif.deep_pixels(file), image.info.get("icc_profile")
        else:
            pixels, profile = _shown(image)
        if kind == "AVIF" and avif.is_gray(file) and pixels.ndim == 3:  # Pillow has them as RGB if they have alpha
            pixels = pixels[..., 0] if pixels.shape[2] == 3 else pixels[..., [0, -1]]
        if kind == "BMP" and _has_fourth(file, image):
            dropped.append("a fourth byte in each pixel, which may be alpha")
        cicp = avif.cicp(file) if kind == "AVIF" and profile is None else None
        colour = Colour(icc_profile=profile, cicp=cicp, dpi=_dpi(image))
        return Found(pixels, colour, orientation(image), tuple(dropped))


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
    what they show; CMYK through its profile. Raises PictureError for other modes, and for several pictures in one.

    Pillow itself opens some files with fewer bits than they have; `read_picture` does not.
    """
    if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
        raise PictureError(f"the Pillow picture holds {frames} pictures; choose one, and copy() it")
    try:
        pixels, profile = _shown(image)
    except PictureError as error:
        raise PictureError(f"the Pillow picture {error}") from error
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
    """Where it says one; Pillow makes up 72 or 96 for some files that say none."""
    if image.format in ("JPEG", "MPO") and not image.info.get("jfif_unit") and 0x011A not in image.getexif():
        return None
    try:
        across, down = map(float, image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if 0 < across < 1e6 and 0 < down < 1e6 else None


def save(kind: str, file: BinaryIO, picture: Picture, **options: object) -> None:
    """Writes by Pillow's `kind` with its options, and the profile and resolution, which some kinds leave out."""
    image = to_image(picture)
    image.save(file, kind, **{**{str(key): value for key, value in image.info.items()}, **options})
