"""PNG. libpng, through imagecodecs, decodes and encodes the pixels of all kinds and depths; the chunks around them are
read and written here, where neither imagecodecs (which leaves them alone) nor Pillow (which limits text) serves."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image

from ribsr.base.pictures.found import PRIVATE, Allow, Found, behind, orientation
from ribsr.base.pictures.picture import Colour, Picture, PictureError
from ribsr.base.sizes import Size

SIGNATURE = b"\x89PNG\r\n\x1a\n"

LEVEL, FILTER = 4, 64
"""zlib-ng's level, and libpng's filter "average" in every row. A photograph enlarged to 3840x2160: 0.42 s and 7.49 MB;
with noise 0.53 s and 12.43 MB. Pillow takes 2.3 s for 7.26 MB and 4.0 s for 11.50 MB; it has no 16-bit RGB."""

_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
"""By colour type, where no colour is transparent."""

_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_COLOUR = (b"gAMA", b"cHRM", b"cICP", b"sRGB", b"iCCP", b"pHYs", b"eXIf")
_ANIMATION = (b"acTL", b"fcTL")
_TEXT = (b"iTXt", b"zTXt", b"tEXt")
_TOLD = {
    b"eXIf": "EXIF",
    b"bKGD": "background colour",
    b"sPLT": "suggested palette",
    b"mDCV": "HDR metadata",
    b"cLLI": "HDR metadata",
    b"caBX": "content credentials",
    b"tIME": "date",
    b"sBIT": "significant bits",
    b"oFFs": "position",
}
"""Chunks that are not carried over, and what the user calls them."""

_XMP, _OLD_EXIF = b"XML:com.adobe.xmp\0", b"Raw profile type exif\0"
_LONGEST_TEXT = 2**24
"""Of XMP and EXIF in text chunks, in which an orientation may be."""

_LONGEST_PROFILE = 2**26


def read_png(file: BinaryIO, allow: Allow) -> Found:
    """Gray, palette, RGB and alpha of 1 to 16 bits. Raises PictureError: animated, damaged, too large."""
    import imagecodecs

    parts: list[bytes] = [SIGNATURE]
    said: dict[bytes, bytes] = {}
    info, dropped, shown = {}, [], False
    for kind, length in _chunks(file):
        if kind in _PIXELS or kind in _COLOUR:
            if kind in (b"IDAT", b"IEND") and not shown:
                _check_header(said, allow)
                shown = True
            data = _data(file, kind, length)
            said.setdefault(kind, data)
            if kind in _PIXELS:
                parts.append(_chunk(kind, data))
        elif kind in _ANIMATION:
            _check_animation(kind, file.read(4), shown)
        elif kind in _TEXT:
            _read_text(kind, file, length, info, dropped)
        elif kind not in _TOLD:
            dropped.append(PRIVATE)
        if kind in _TOLD:
            dropped.append(_TOLD[kind])
    dropped += behind(file)
    if b"eXIf" in said:
        info["exif"] = said[b"eXIf"]
    image = Image.Image()
    image.info = info
    pixels = imagecodecs.png_decode(b"".join(parts))
    return Found(pixels, _colour(said, dropped), orientation(image), tuple(dropped))


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Kind and length of every chunk; the file is at its data. Raises PictureError where the file ends too early."""
    size, at = os.fstat(file.fileno()).st_size, len(SIGNATURE)
    kind = b""
    while kind != b"IEND":
        file.seek(at)
        head = file.read(8)
        length = int.from_bytes(head[:4], "big")
        kind, at = head[4:], at + length + 12
        if len(head) < 8 or at > size:
            raise PictureError("damaged or unreadable (the file ends before the picture does)")
        yield kind, length


def _data(file: BinaryIO, kind: bytes, length: int) -> bytes:
    """A chunk's data. Raises PictureError where its checksum is wrong."""
    data = file.read(length)
    if zlib.crc32(kind + data) != int.from_bytes(file.read(4), "big"):
        raise PictureError(f"damaged or unreadable (the checksum of its {kind.decode()} chunk is wrong)")
    return data


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _check_header(said: dict[bytes, bytes], allow: Allow) -> None:
    """By what stands before the pixels."""
    header = said.get(b"IHDR", b"")
    if len(header) != 13:
        raise PictureError("damaged or unreadable (it has no header)")
    width, height, bits, colour, compression, filters, interlaced = struct.unpack(">IIBBBBB", header)
    if colour not in _CHANNELS or bits not in (1, 2, 4, 8, 16) or compression or filters or interlaced > 1:
        raise PictureError("damaged or unreadable (its header says what PNG does not know)")
    allow(Size(height, width), _CHANNELS[colour] + (b"tRNS" in said and colour < 4), max(bits, 8))


def _check_animation(kind: bytes, data: bytes, shown: bool) -> None:
    """Raises PictureError for more than one picture: acTL counts them, and fcTL behind the pixels begins another."""
    frames = int.from_bytes(data, "big") if kind == b"acTL" else 1 + shown
    if frames > 1:
        raise PictureError(f"is an animation of {frames} pictures or more; extract the one that you want")


def _read_text(kind: bytes, file: BinaryIO, length: int, info: dict, dropped: list[str]) -> None:
    """What a text chunk may say of the orientation. Whatever it holds, it is no reason to refuse a picture."""
    head = file.read(min(length, 80))
    if head.startswith(_XMP):
        dropped.append("XMP")
    elif head.startswith(_OLD_EXIF):
        dropped.append("EXIF")
    else:
        dropped.append("text")
        return
    if length > _LONGEST_TEXT:
        return
    data = head + file.read(length - len(head))
    try:
        if head.startswith(_XMP):
            info["xmp"] = data[len(_XMP) :]
        elif kind == b"zTXt":
            text = zlib.decompressobj().decompress(data[len(_OLD_EXIF) + 1 :], _LONGEST_TEXT)
            info["Raw profile type exif"] = text.decode("latin-1")
        else:
            info["Raw profile type exif"] = data[len(_OLD_EXIF) :].decode("latin-1")
    except zlib.error:
        return


def _colour(said: dict[bytes, bytes], dropped: list[str]) -> Colour:
    """Of the chunks that say it. Those of a wrong length, or that say nothing possible, count as absent."""

    def numbers(kind: bytes, layout: str) -> tuple[int, ...] | None:
        data = said.get(kind, b"")
        return struct.unpack(layout, data) if len(data) == struct.calcsize(layout) else None

    gamma, primaries, cicp = numbers(b"gAMA", ">I"), numbers(b"cHRM", ">8I"), numbers(b"cICP", "4B")
    intent, each = numbers(b"sRGB", "B"), numbers(b"pHYs", ">IIB")
    dpi = None
    if each and min(each[:2]) > 0:
        if each[2] == 1:
            dpi = (each[0] * 0.0254, each[1] * 0.0254)
        elif each[0] != each[1]:
            dropped.append("pixel aspect ratio")
    return Colour(
        icc_profile=_profile(said[b"iCCP"], dropped) if b"iCCP" in said else None,
        gamma=gamma[0] / 100000 if gamma and gamma[0] else None,
        chromaticities=tuple(value / 100000 for value in primaries) if primaries else None,
        cicp=(cicp[0], cicp[1], cicp[2], cicp[3]) if cicp else None,
        srgb_intent=intent[0] if intent and intent[0] < 4 else None,
        dpi=dpi,
    )


def _profile(data: bytes, dropped: list[str]) -> bytes | None:
    name, _, rest = data.partition(b"\0")
    try:
        unpacker = zlib.decompressobj()
        profile = unpacker.decompress(rest[1:], _LONGEST_PROFILE)
        if unpacker.eof and profile:
            return profile
    except zlib.error:
        pass
    dropped.append("a damaged colour profile")
    return None


def write_png(file: BinaryIO, picture: Picture) -> None:
    """uint8 and uint16, all four kinds of channels, and all of `Colour`."""
    import imagecodecs

    encoded = memoryview(imagecodecs.png_encode(np.ascontiguousarray(picture.pixels), level=LEVEL, filter=FILTER))
    header = len(SIGNATURE) + 25
    file.write(encoded[:header])
    for kind, data in _colour_chunks(picture.colour):
        file.write(_chunk(kind, data))
    file.write(encoded[header:])


def _colour_chunks(colour: Colour) -> Iterator[tuple[bytes, bytes]]:
    """The chunks that say what pixels mean, in an order that is allowed: all of them go before PLTE and IDAT."""
    if colour.cicp is not None:
        yield b"cICP", bytes(colour.cicp)
    if colour.icc_profile is not None:
        yield b"iCCP", b"ICC profile\0\0" + zlib.compress(colour.icc_profile)
    elif colour.srgb_intent is not None:  # PNG allows one of both
        yield b"sRGB", bytes([colour.srgb_intent])
    if colour.gamma is not None:
        yield b"gAMA", struct.pack(">I", round(colour.gamma * 100000))
    if colour.chromaticities is not None:
        yield b"cHRM", struct.pack(">8I", *(round(value * 100000) for value in colour.chromaticities))
    if colour.dpi is not None:
        yield b"pHYs", struct.pack(">IIB", *(round(value / 0.0254) for value in colour.dpi), 1)
