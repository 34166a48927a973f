"""Writing large AVIFs in cells, each encoded by itself: an encoder takes some 50 bytes a pixel of what it is given.

That is a derived image of the type `grid` (ISO/IEC 23008-12, 6.6.2.3.2), which readers of AVIF put together. Pillow
encodes the cells; the boxes around them, which it does not write, are written here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import product
from typing import BinaryIO

import numpy as np

from ribsr.base.pictures.picture import Picture
from ribsr.base.sizes import Size

WHOLE = 2**24
"""Pixels up to which a picture needs no cells: not all programs know of them."""

LONGEST_CELL = 1792
"""Pixels of a side. Files grow by 0.4 to 3 %, the smaller the quality the more."""

_ALPHA = b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0"
_HIDDEN, _ESSENTIAL = 1, 0x80


def write_grid(file: BinaryIO, picture: Picture, encode: Callable[[BinaryIO, Picture], None]) -> None:
    """An AVIF of colours, and of alpha where it is not opaque throughout. encode: writes an AVIF of one cell, which has
    neither alpha nor a profile."""
    pixels = picture.pixels
    colours = pixels if not picture.has_alpha else pixels[..., 0] if picture.is_gray else pixels[..., :3]
    grids = [_encoded(colours, encode)]
    if picture.has_alpha and (pixels[..., -1] < 255).any():
        grids.append(_encoded(pixels[..., -1], encode))
    head = _head(grids, picture.colour.icc_profile, 0)
    file.write(_head(grids, picture.colour.icc_profile, len(head)))  # as long, whatever the numbers
    for grid in grids:
        for part in grid.parts:
            file.write(part)


@dataclass(frozen=True)
class _Grid:
    """Cells, encoded. parts: how they lie, as the format has it, and each cell. size: of the picture; cell: of one.
    properties: boxes that say how cells were encoded, and what their colours mean."""

    parts: list[bytes]
    size: Size
    cell: Size
    properties: list[bytes]


def _encoded(pixels: np.ndarray, encode: Callable[[BinaryIO, Picture], None]) -> _Grid:
    """Rows and columns of cells that are all of one size: the last repeat the picture's edge."""
    size = Size(*pixels.shape[:2])
    rows, columns = (-(-side // LONGEST_CELL) for side in size)
    height, width = (_even(-(-side // count)) for side, count in zip(size, (rows, columns), strict=True))
    parts = [struct.pack(">4B2H", 0, 0, rows - 1, columns - 1, size.width, size.height)]
    properties: list[bytes] = []
    for top, left in product(range(0, rows * height, height), range(0, columns * width, width)):
        cell = pixels[top : top + height, left : left + width]
        beyond = [(0, height - cell.shape[0]), (0, width - cell.shape[1]), (0, 0)]
        whole = BytesIO()
        encode(whole, Picture(np.pad(cell, beyond[: cell.ndim], "edge")))
        properties, data = _taken_apart(whole.getvalue())
        parts.append(data)
    return _Grid(parts, size, Size(height, width), properties)


def _even(side: int) -> int:
    """Chroma may be halved."""
    return side + side % 2


def _taken_apart(whole: bytes) -> tuple[list[bytes], bytes]:
    """Of an AVIF with one picture: its properties, but for its size, and its data."""
    boxes = dict(_boxes(whole))
    meta = dict(_boxes(boxes[b"meta"][4:]))
    said = _boxes(dict(_boxes(meta[b"iprp"]))[b"ipco"])
    return [_box(kind, data) for kind, data in said if kind != b"ispe"], boxes[b"mdat"]


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each, one after the other."""
    at = 0
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, data[at + 8 : at + length]
        at += length


def _box(kind: bytes, *content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + sum(map(len, content)), kind) + b"".join(content)


def _full(kind: bytes, *content: bytes, version: int = 0, flags: int = 0) -> bytes:
    """A box with a version."""
    return _box(kind, struct.pack(">I", version << 24 | flags), *content)


def _head(grids: list[_Grid], profile: bytes | None, length: int) -> bytes:
    """All that stands before the parts: `length` bytes."""
    places, items, references, associations, boxes = b"", b"", b"", b"", list[bytes]()
    number, at = 0, length

    def said(*wanted: bytes) -> bytes:
        """The properties of an item: places in the list of all."""
        boxes.extend(box for box in wanted if box not in boxes)
        marks = (_ESSENTIAL * (box[4:8] == b"av1C") | 1 + boxes.index(box) for box in wanted)
        return struct.pack(">HB", number, len(wanted)) + bytes(marks)

    for grid in grids:
        first, of_alpha = number + 1, grid is not grids[0]
        cells = range(first + 1, first + len(grid.parts))
        kept = grid.properties
        if of_alpha:  # which has no colours
            kept = [*(box for box in kept if box[4:8] != b"colr"), _full(b"auxC", _ALPHA)]
        for number, part in enumerate(grid.parts, first):
            whole = number == first
            places += struct.pack(">3H2I", number, 0, 1, at, len(part))
            kind = b"grid" if whole else b"av01"
            items += _full(
                b"infe", struct.pack(">2H", number, 0), kind, b"\0", version=2, flags=0 if whole else _HIDDEN
            )
            at += len(part)
            size = grid.size if whole else grid.cell
            own = [box for box in kept if not whole or box[4:8] != b"av1C"]
            if whole and profile is not None and not of_alpha:
                own.append(_box(b"colr", b"prof", profile))
            associations += said(_full(b"ispe", struct.pack(">2I", size.width, size.height)), *own)
        references += _box(b"dimg", struct.pack(f">{2 + len(cells)}H", first, len(cells), *cells))
        if of_alpha:
            references += _box(b"auxl", struct.pack(">3H", first, 1, 1))
    count = struct.pack(">H", number)
    meta = _full(
        b"meta",
        _full(b"hdlr", bytes(4), b"pict", bytes(13)),
        _full(b"pitm", struct.pack(">H", 1)),
        _full(b"iloc", b"\x44\0", count, places),
        _full(b"iinf", count, items),
        _full(b"iref", references),
        _box(b"iprp", _box(b"ipco", *boxes), _full(b"ipma", struct.pack(">I", number), associations)),
    )
    data = 8 + sum(len(part) for grid in grids for part in grid.parts)
    return _box(b"ftyp", b"avif", bytes(4), b"avifmif1miaf") + meta + struct.pack(">I4s", data, b"mdat")
