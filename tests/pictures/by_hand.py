"""Pictures written with struct and zlib alone, from arrays, so that no library's reading is proved by its own writing.

And the reader that looks at results: `read_png`, `chunks_of`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

Chunk = tuple[bytes, bytes]
"""A PNG chunk: its name and its data."""

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6
"""PNG's colour types."""

CHANNELS = {GRAY: 1, RGB: 3, PALETTE: 1, GRAY_ALPHA: 2, RGBA: 4}

WHOLE = ((0, 0, 1, 1),)
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""Passes: first row, first column, and the steps of both."""


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    samples: np.ndarray,
    kind: int,
    depth: int,
    before: Iterable[Chunk] = (),
    after: Iterable[Chunk] = (),
    interlaced: bool = False,
) -> bytes:
    """samples: integers [H, W] or [H, W, C] as they are in the file. before, after: chunks around the pixels."""
    height, width = samples.shape[:2]
    head = struct.pack(">2I5B", width, height, depth, kind, 0, 0, interlaced)
    samples = samples.reshape(height, width, CHANNELS[kind])
    parts = [samples[y::down, x::right] for y, x, down, right in (ADAM7 if interlaced else WHOLE)]
    rows = b"".join(b"\0" + _packed(row, depth) for part in parts if part.size for row in part)
    inner = (*before, (b"IDAT", zlib.compress(rows)), *after)
    return b"".join([SIGNATURE, *(chunk(*one) for one in ((b"IHDR", head), *inner, (b"IEND", b"")))])


def _packed(row: np.ndarray, depth: int) -> bytes:
    if depth == 16:
        return row.astype(">u2").tobytes()
    if depth == 8:
        return row.astype(np.uint8).tobytes()
    bits = np.unpackbits(row.astype(np.uint8).reshape(-1, 1), axis=1)[:, 8 - depth :]
    return np.packbits(bits).tobytes()


def chunks_of(data: bytes) -> Iterator[Chunk]:
    """Raises AssertionError for what is no PNG, or has a wrong checksum or length."""
    assert data.startswith(SIGNATURE), "no PNG"
    at = len(SIGNATURE)
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        name, inner = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert data[at + 8 + length : at + 12 + length] == struct.pack(">I", zlib.crc32(name + inner)), name
        yield name, inner
        at += 12 + length


@dataclass(frozen=True)
class ReadPNG:
    """samples: uint8 or uint16, [H, W] or [H, W, C], as they are in the file. chunks: the others, by name."""

    samples: np.ndarray
    kind: int
    chunks: dict[bytes, bytes]


def read_png(data: bytes) -> ReadPNG:
    """A PNG of 8 or 16 bits that is not interlaced."""
    found = list(chunks_of(data))
    chunks = dict(found)
    width, height, depth, kind, _, _, interlaced = struct.unpack(">2I5B", chunks[b"IHDR"])
    assert depth in (8, 16), f"{depth} bits"
    assert not interlaced
    step = CHANNELS[kind] * depth // 8
    raw = np.frombuffer(zlib.decompress(b"".join(inner for name, inner in found if name == b"IDAT")), np.uint8)
    raw = raw.reshape(height, 1 + width * step)
    rows, above = [], np.zeros(width * step, np.uint8)
    for row in raw:
        above = _unfiltered(int(row[0]), row[1:], above, step)
        rows.append(above)
    samples = np.stack(rows).view(np.uint8 if depth == 8 else ">u2").astype(np.uint8 if depth == 8 else np.uint16)
    samples = samples.reshape(height, width, CHANNELS[kind])
    return ReadPNG(samples[..., 0] if CHANNELS[kind] == 1 else samples, kind, chunks)


def _unfiltered(kind: int, row: np.ndarray, above: np.ndarray, step: int) -> np.ndarray:
    if kind in (0, 2):
        return row + above if kind else row
    out = np.zeros(len(row) + step, int)
    up = np.concatenate([np.zeros(step, int), above])
    for i in range(step, len(out)):
        left, top, corner = out[i - step], up[i], up[i - step]
        guess = left
        if kind == 3:
            guess = (left + top) // 2
        elif kind == 4:
            guess = min((left, top, corner), key=lambda value: abs(left + top - corner - value))
        out[i] = (row[i - step] + guess) & 255
    return out[step:].astype(np.uint8)


def pnm(samples: np.ndarray, maximum: int, text: bool = False, comment: str = "") -> bytes:
    """PBM where maximum is 1 (1 is black there), PGM, or PPM; text: with numbers as text."""
    height, width = samples.shape[:2]
    magic = (1 if maximum == 1 else 2 if samples.ndim == 2 else 3) + (0 if text else 3)
    head = f"P{magic}\n{comment}{width} {height}\n" + (f"{maximum}\n" if maximum > 1 else "")
    if text:
        lines = (" ".join(map(str, row.ravel())) for row in samples)
        return (head + "\n".join(lines) + "\n").encode()
    if maximum == 1:
        return head.encode() + np.packbits(samples.astype(np.uint8), axis=1).tobytes()
    return head.encode() + samples.astype(np.uint8 if maximum < 256 else ">u2").tobytes()


def bmp(bgra: np.ndarray, alpha: bool) -> bytes:
    """32 bits a pixel, from the top down. alpha: a header that says where alpha is; else the fourth byte means nothing.

    bgra: uint8 [H, W, 4].
    """
    height, width = bgra.shape[:2]
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) if alpha else b""
    rest = masks + b"BGRs" + bytes(48) if alpha else b""
    size = 40 + len(rest)
    info = struct.pack("<IiiHHIIiiII", size, width, -height, 1, 32, 3 if alpha else 0, bgra.size, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 14 + size + bgra.size, 0, 0, 14 + size) + info + rest + bgra.tobytes()


def profile(space: str) -> bytes:
    """A small ICC profile for GRAY, RGB (wider than sRGB) or CMYK (into Lab, by the 16 corners of the cube)."""
    text = b"made by a test"
    tags: dict[bytes, bytes] = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text + b"\0" + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": _xyz(0.9642, 1, 0.8249),
    }
    if space == "GRAY":
        tags[b"kTRC"] = _gamma(2.2)
    elif space == "RGB":
        primaries = {b"r": (0.5151, 0.2412, -0.0011), b"g": (0.2920, 0.6922, 0.0419), b"b": (0.1571, 0.0666, 0.7841)}
        for name, values in primaries.items():
            tags[name + b"XYZ"], tags[name + b"TRC"] = _xyz(*values), _gamma(1.8)
    else:
        tags[b"A2B0"] = _cmyk_table()
    return _profile(space, tags)


def _profile(space: str, tags: dict[bytes, bytes]) -> bytes:
    start = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">2I", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    kind = b"prtr" if space == "CMYK" else b"mntr"
    pcs = b"Lab " if space == "CMYK" else b"XYZ "
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"\0" * 4, 0x02200000, kind, space.ljust(4).encode(), pcs)
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    head += struct.pack(">3i", *(round(value * 65536) for value in (0.9642, 1, 0.8249)))
    return head.ljust(128, b"\0") + table + body


def _xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def _gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256)) + b"\0\0"


CORNERS = np.array([[c, m, y, k] for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)], np.uint8)
"""All inks on or off, in the order of the profile's table."""


def corner_lab() -> np.ndarray:
    """What the CMYK profile makes of CORNERS: CIELAB [16, 3], with colours of moderate strength."""
    c, m, y, k = CORNERS.T.astype(float)
    light = (1 - k) * (100 - 25 * c - 30 * m - 5 * y)
    a, b = (1 - k) * (-20 * c + 40 * m), (1 - k) * (-25 * c + 50 * y)
    return np.round(np.stack([light / 100 * 255, a + 128, b + 128], axis=1)) / [2.55, 1, 1] - [0, 128, 128]


def corner_rgb() -> np.ndarray:
    """The same in sRGB, float [16, 3] of 0 to 255: from CIELAB at D50, adapted to D65 by Bradford's matrix."""
    light, a, b = corner_lab().T
    fy = (light + 16) / 116
    f = np.stack([fy + a / 500, fy, fy - b / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * np.array([[0.9642], [1], [0.8249]])
    to_linear = np.array(
        [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
    )
    linear = np.clip(to_linear @ xyz, 0, 1)
    return (255 * np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)).T


def _cmyk_table() -> bytes:
    table = np.round((corner_lab() + [0, 128, 128]) * [2.55, 1, 1]).astype(np.uint8)
    straight = bytes(range(256))
    head = b"mft1\0\0\0\0" + struct.pack(">4B", 4, 3, 2, 0)
    head += struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    return head + straight * 4 + table.tobytes() + straight * 3
