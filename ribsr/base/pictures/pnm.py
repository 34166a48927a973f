"""PPM and PGM. Pillow reads the kinds with text or single bits; of 16-bit RGB it keeps 8 bits, so the others are read
and written here: a header, and the numbers."""

from __future__ import annotations

import os
import re
from typing import BinaryIO

import numpy as np

from ribsr.base.pictures.found import SEVERAL, Allow, Found, behind
from ribsr.base.pictures.picture import Colour, Picture, PictureError
from ribsr.base.sizes import Size

CHANNELS = {b"P5": 1, b"P6": 3}
"""Of the kinds that are read here: gray and RGB, in bytes."""

_ROWS = 64
"""Written at once: turned to big-endian all of them would take the picture's memory again."""


def header(file: BinaryIO) -> tuple[bytes, Size, int]:
    """Kind, size and the largest number (1 for bitmaps, which name none); then the file is at the pixels.

    Comments may be of any length. Raises PictureError for a header that is none.
    """
    kind, words = file.read(2), []
    while len(words) < (2 if kind in (b"P1", b"P4") else 3):
        words.append(_word(file))
    if not all(word.isdigit() and len(word) < 10 and int(word) for word in words):
        raise PictureError("damaged or unreadable (its header is none of a PPM or PGM)")
    width, height, *most = map(int, words)
    if most and most[0] > 65535:
        raise PictureError(f"damaged or unreadable (its largest number would be {most[0]})")
    return kind, Size(height, width), most[0] if most else 1


def _word(file: BinaryIO) -> bytes:
    """The next word of the header; what separates it from the next one is read, too."""
    word = b""
    while len(word) < 64:
        byte = file.read(1)
        if byte == b"#":
            while byte not in (b"\n", b"\r", b""):
                byte = file.read(1)
        if byte and not byte.isspace():
            word += byte
        elif word or not byte:
            break
    return word


def check_alone(file: BinaryIO, kind: bytes, size: Size) -> None:
    """Raises PictureError where another picture follows one of single bits (P4), or text (P1 to P3); the file is at its
    pixels."""
    if kind == b"P4":
        file.seek(size.height * ((size.width + 7) // 8), os.SEEK_CUR)
        _check_end(file)
    elif re.search(rb"P[1-6]\s", re.sub(rb"#[^\r\n]*", b"", file.read())):
        raise PictureError(SEVERAL)


def _check_end(file: BinaryIO) -> None:
    """Raises PictureError where another picture follows; else the file stays where it is."""
    end = file.tell()
    while (byte := file.read(1)).isspace():
        pass
    if byte == b"P" and file.read(1) in b"123456":
        raise PictureError(SEVERAL)
    file.seek(end)


def read_pnm(file: BinaryIO, allow: Allow) -> Found:
    """P5 and P6. Numbers whose largest is neither 255 nor 65535 are scaled to that, and rounded to nearest: no two
    become the same."""
    kind, size, most = header(file)
    channels, dtype = CHANNELS[kind], np.dtype(np.uint8 if most < 256 else ">u2")
    allow(size, channels, 8 * dtype.itemsize)
    count = size.height * size.width * channels
    if os.fstat(file.fileno()).st_size - file.tell() < count * dtype.itemsize:
        raise PictureError("damaged or unreadable (the file ends before the picture does)")
    numbers = np.fromfile(file, dtype, count)
    _check_end(file)
    shape = (*size, channels) if channels > 1 else tuple(size)
    full = 255 if most < 256 else 65535
    pixels = numbers.astype(np.uint8 if full == 255 else np.uint16, copy=False).reshape(shape)
    if most != full:
        if pixels.max() > most:
            raise PictureError(f"damaged or unreadable (it has numbers above {most}, its largest)")
        levels = (np.arange(most + 1) * full * 2 + most) // (2 * most)  # nearest, in whole numbers
        pixels = levels.astype(pixels.dtype)[pixels]
    return Found(pixels, Colour(), dropped=tuple(behind(file)))


def write_pnm(file: BinaryIO, picture: Picture) -> None:
    """Gray or RGB of 8 or 16 bits, which decide the kind, whatever the suffix says."""
    kind, most = ("P5" if picture.is_gray else "P6"), 2**picture.depth - 1
    file.write(f"{kind}\n{picture.size.width} {picture.size.height}\n{most}\n".encode())
    for start in range(0, picture.size.height, _ROWS):
        rows = picture.pixels[start : start + _ROWS]
        file.write(np.ascontiguousarray(rows, ">u2" if picture.depth == 16 else np.uint8).data)
