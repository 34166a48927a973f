"""Files of pictures made byte by byte, from arrays: what readers are held against shares no code with them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np

KINDS = {"gray": 1, "gray and alpha": 2, "RGB": 3, "RGB and alpha": 4}


def pixels(channels: int, depth: int = 8, size: tuple[int, int] = (5, 7)) -> np.ndarray:
    """Noise in which the extremes are found, too; alpha is never 0."""
    rng, full = np.random.default_rng(channels), 2**depth - 1
    array = rng.integers(0, full + 1, (*size, channels), np.uint8 if depth == 8 else np.uint16)
    array[0, 0], array[-1, -1] = full, 0
    if channels in (2, 4):
        array[..., -1] |= 1
    return array[..., 0] if channels == 1 else array


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def packed_png(
    width: int, rows: Sequence[bytes], bits: int, colour: int, *chunks: bytes, behind: bytes = b"", interlace: int = 0
) -> bytes:
    """Of rows as PNG packs them; `chunks` go before the pixels."""
    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, interlace)
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + data + behind + chunk(b"IEND", b"")


def png(array: np.ndarray, *chunks: bytes, behind: bytes = b"") -> bytes:
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[1 if array.ndim == 2 else array.shape[2]]
    rows = [row.astype(">u2" if array.dtype == np.uint16 else np.uint8).tobytes() for row in array]
    return packed_png(array.shape[1], rows, 8 * array.dtype.itemsize, colour, *chunks, behind=behind)


def tiff(
    array: np.ndarray,
    photometric: int | None = None,
    *,
    planar: bool = False,
    order: str = "<",
    extra: int | None = 2,
    tags: Sequence[tuple[int, int, tuple[int, ...] | bytes]] = (),
    pages: int = 1,
) -> bytes:
    """Without compression, in one strip a plane. tags: number, type (3 short, 4 long, 5 ratio, 7 bytes), values; they
    take the place of those that the array asks for."""
    channels = 1 if array.ndim == 2 else array.shape[2]
    planes = [array[..., i] for i in range(channels)] if planar and channels > 1 else [array]
    strips = [plane.astype(np.dtype(f"{order}u{plane.dtype.itemsize}")).tobytes() for plane in planes]
    body, offsets = b"", []
    for strip in strips:
        offsets.append(8 + len(body))
        body += strip + b"\0" * (len(strip) % 2)
    entries: list[tuple[int, int, tuple[int, ...] | bytes]] = [
        (256, 4, (array.shape[1],)),
        (257, 4, (array.shape[0],)),
        (258, 3, (8 * array.dtype.itemsize,) * channels),
        (259, 3, (1,)),
        (262, 3, ((2 if channels > 2 else 1) if photometric is None else photometric,)),
        (273, 4, tuple(offsets)),
        (277, 3, (channels,)),
        (278, 4, (array.shape[0],)),
        (279, 4, tuple(map(len, strips))),
        (284, 3, (2 if len(planes) > 1 else 1,)),
        *([(338, 3, (extra,))] if extra is not None and channels in (2, 4) and photometric != 5 else []),
    ]
    named = {entry[0] for entry in tags}
    entries = [entry for entry in entries if entry[0] not in named] + list(tags)
    out = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8 + len(body)) + body
    for page in range(pages):
        out += _directory(sorted(entries), len(out), order, last=page == pages - 1)
    return out


def _directory(entries: list, at: int, order: str, last: bool) -> bytes:
    behind, table = b"", struct.pack(order + "H", len(entries))
    start = at + 2 + 12 * len(entries) + 4
    for number, kind, values in entries:
        data, count = values, len(values)
        if not isinstance(values, bytes):
            count = len(values) // 2 if kind == 5 else len(values)
            data = struct.pack(order + {3: "H", 4: "I", 5: "I"}[kind] * len(values), *values)
        if len(data) > 4:
            value = struct.pack(order + "I", start + len(behind))
            behind += data + b"\0" * (len(data) % 2)
        else:
            value = data.ljust(4, b"\0")
        table += struct.pack(order + "HHI", number, kind, count) + value
    return table + struct.pack(order + "I", 0 if last else start + len(behind)) + behind


def exif(orientation: int) -> bytes:
    """A TIFF directory of the orientation alone, as PNG's eXIf holds it."""
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """How `array`, as it lies in a file of that orientation, is to be seen."""
    return {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.swapaxes(0, 1),
        6: np.rot90(array, -1),
        7: array[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(array),
    }[orientation]
