"""What Pillow does not tell of an AVIF: how many bits it has, and which colours they mean; and its pixels if they are
more than 8. Both stand in boxes of ISO/IEC 23000-22, searched for in the part before the pixels."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

_SRGB = {(primaries, transfer) for primaries in (1, 2) for transfer in (2, 13)}
"""sRGB and unspecified, which is taken for it."""


def depth(file: BinaryIO) -> int:
    """8, 10 or 12; of several pictures in the file the most."""
    boxes = _boxes(file, b"av1C")
    return max((12 if box[2] & 0x20 else 10 if box[2] & 0x40 else 8 for box in boxes if len(box) > 2), default=8)


def is_gray(file: BinaryIO) -> bool:
    """Whether it has no colours, but brightness alone, with or without alpha."""
    boxes = [box for box in _boxes(file, b"av1C") if len(box) > 2]
    return bool(boxes) and all(box[2] & 0x10 for box in boxes)


def cicp(file: BinaryIO) -> tuple[int, int, int, int] | None:
    """As PNG says it: of RGB in full range. None for sRGB."""
    for box in _boxes(file, b"colr"):
        if box[:4] == b"nclx" and len(box) >= 8:
            primaries, transfer = int.from_bytes(box[4:6], "big"), int.from_bytes(box[6:8], "big")
            if (primaries, transfer) not in _SRGB and max(primaries, transfer) < 256:
                return primaries, transfer, 0, 1
    return None


def deep_pixels(file: BinaryIO) -> np.ndarray:
    """Of 10 or 12 bits as uint16, all of its range, not turned."""
    import imagecodecs

    file.seek(0)
    pixels = imagecodecs.avif_decode(file.read())
    most = 2 ** depth(file) - 1
    wide = pixels.astype(np.uint32) * 65535
    return ((wide + most // 2) // most).astype(np.uint16)


def _boxes(file: BinaryIO, kind: bytes) -> list[bytes]:
    """What follows each such name in the `meta` box, 12 bytes of it."""
    file.seek(0)
    head = file.read(2**20)
    end = head.find(b"mdat")
    meta = head[: end if end >= 0 else None]
    return [part[:12] for part in meta.split(kind)[1:]]
