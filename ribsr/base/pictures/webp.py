"""Reading WebP: libwebp, through imagecodecs, decodes the pixels; the chunks around them are read here. (Pillow refuses
large ones by a number that all of a process shares.)"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

from PIL import Image

from ribsr.base.pictures.found import PRIVATE, Allow, Found, orientation
from ribsr.base.pictures.picture import Colour, PictureError
from ribsr.base.sizes import Size

_KEPT = (b"VP8X", b"ICCP", b"EXIF", b"XMP ")
_PIXELS = (b"VP8 ", b"VP8L", b"ALPH")


def read_webp(file: BinaryIO, allow: Allow) -> Found:
    """RGB, with alpha where the file has it. Raises PictureError: animated, damaged, too large."""
    import imagecodecs

    chunks: dict[bytes, bytes] = {}
    end, at = os.fstat(file.fileno()).st_size, 12
    while at + 8 <= end:
        file.seek(at)
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind in (b"ANIM", b"ANMF"):
            raise PictureError("is an animation; extract the picture that you want")
        chunks.setdefault(kind, file.read(length if kind in _KEPT else 10))
        at += 8 + length + length % 2
    size, alpha = _size(chunks)
    allow(size, 4 if alpha else 3, 8)
    file.seek(0)
    pixels = imagecodecs.webp_decode(file.read())
    image = Image.Image()
    image.info = {"exif": chunks.get(b"EXIF"), "xmp": chunks.get(b"XMP ")}
    dropped = [name for kind, name in ((b"EXIF", "EXIF"), (b"XMP ", "XMP")) if kind in chunks]
    if any(kind.strip(b"\0") and kind not in (*_KEPT, *_PIXELS) for kind in chunks):
        dropped.append(PRIVATE)
    return Found(pixels, Colour(icc_profile=chunks.get(b"ICCP") or None), orientation(image), tuple(dropped))


def _size(chunks: dict[bytes, bytes]) -> tuple[Size, bool]:
    """And whether there is alpha."""
    if len(head := chunks.get(b"VP8X", b"")) >= 10:
        width, height = (1 + int.from_bytes(head[at : at + 3], "little") for at in (4, 7))
        return Size(height, width), bool(head[0] & 0x10)
    if len(head := chunks.get(b"VP8L", b"")) >= 5:
        bits = int.from_bytes(head[1:5], "little")
        return Size(1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)), bool(bits >> 28 & 1)
    if len(head := chunks.get(b"VP8 ", b"")) >= 10:
        width, height = (size & 0x3FFF for size in struct.unpack("<2H", head[6:10]))
        return Size(height, width), False
    raise PictureError("damaged or unreadable (it has no pixels)")
