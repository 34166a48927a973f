"""Damaged pictures, made at random from our own ones: cut, changed, with lengths and chunks that are not right."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tests.pictures.by_hand import SIGNATURE, chunk, chunks_of
from tests.pictures.corpus import Made

Random = np.random.Generator

EXTREMES = (0, 1, 2, 0x7F, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclass(frozen=True)
class Mutated:
    """name: of the file, after the picture that it was made of."""

    name: str
    data: bytes


def mutated(pictures: Sequence[Made], count: int, seed: int = 0) -> Iterator[Mutated]:
    """Number n is the same whatever `count` is, so that one can be made again on its own."""
    small = [picture for picture in pictures if len(picture.data) < 100_000]
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        picture, other = (small[index] for index in rng.integers(0, len(small), 2))
        kinds = (*ANY, *((swapped, renamed, resized, rewritten) if is_png(picture.data) else ()))
        kind = kinds[rng.integers(len(kinds))]
        data = spliced(rng, picture.data, other.data) if kind is spliced else kind(rng, picture.data)
        yield Mutated(f"{number:04}-{kind.__name__}-{picture.name}", data)


def is_png(data: bytes) -> bool:
    return data.startswith(SIGNATURE) and len(data) < 100_000 and data.endswith(b"\xaeB`\x82")


def cut(rng: Random, data: bytes) -> bytes:
    return data[: rng.integers(0, len(data))]


def flipped(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for at in rng.integers(0, len(data), rng.integers(1, 20)):
        changed[at] = rng.integers(256)
    return bytes(changed)


def head_flipped(rng: Random, data: bytes) -> bytes:
    """Where most of what decoders believe is."""
    return flipped(rng, data[:80]) + data[80:]


def extreme(rng: Random, data: bytes) -> bytes:
    """A number of two or four bytes, which may be a length, an offset or a side."""
    code = ("<I", ">I", "<H", ">H")[rng.integers(4)]
    value = EXTREMES[rng.integers(len(EXTREMES))] & (0xFFFFFFFF if code[1] == "I" else 0xFFFF)
    at = int(rng.integers(0, min(len(data), 400)))
    written = struct.pack(code, value)
    return data[:at] + written + data[at + len(written) :]


def inserted(rng: Random, data: bytes) -> bytes:
    at, count = rng.integers(0, len(data)), int(rng.integers(1, 200))
    return data[:at] + (bytes(count) if rng.integers(2) else rng.bytes(count)) + data[at:]


def removed(rng: Random, data: bytes) -> bytes:
    at = rng.integers(0, len(data))
    return data[:at] + data[at + rng.integers(1, 100) :]


def spliced(rng: Random, data: bytes, other: bytes = b"") -> bytes:
    """The beginning of one, and the end of another."""
    return data[: rng.integers(1, len(data) + 1)] + other[rng.integers(0, len(other)) :]


ANY: tuple[Callable[..., bytes], ...] = (cut, flipped, head_flipped, extreme, inserted, removed, spliced)


# PNGs whose checksums are right all the same, so that decoders get further


def _joined(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    return SIGNATURE + b"".join(chunk(*one) for one in chunks)


def swapped(rng: Random, data: bytes) -> bytes:
    """Two chunks change places, or one comes twice, or is missing."""
    chunks = list(chunks_of(data))
    one, other = rng.integers(0, len(chunks), 2)
    if one != other:
        chunks[one], chunks[other] = chunks[other], chunks[one]
    elif rng.integers(2):
        chunks.insert(one, chunks[one])
    else:
        del chunks[one]
    return _joined(chunks)


def renamed(rng: Random, data: bytes) -> bytes:
    """A chunk holds what another kind of chunk would hold, or noise."""
    chunks = list(chunks_of(data))
    at = rng.integers(1, len(chunks))
    names = (b"PLTE", b"tRNS", b"iCCP", b"gAMA", b"cHRM", b"cICP", b"sRGB", b"pHYs", b"eXIf", b"iTXt", b"zTXt", b"acTL")
    chunks.insert(at, (names[rng.integers(len(names))], rng.bytes(int(rng.integers(0, 40)))))
    return _joined(chunks)


def resized(rng: Random, data: bytes) -> bytes:
    """The header tells of other sides, another depth or another colour type."""
    (name, head), *rest = chunks_of(data)
    fields = list(struct.unpack(">2I5B", head))
    at = rng.integers(len(fields))
    choices = (EXTREMES, EXTREMES, (1, 2, 4, 8, 16, 32), range(8), range(3), range(3), range(3))[at]
    fields[at] = choices[rng.integers(len(choices))]
    return _joined([(name, struct.pack(">2I5B", *fields)), *rest])


def rewritten(rng: Random, data: bytes) -> bytes:
    """Bytes within one chunk are others."""
    chunks = list(chunks_of(data))
    at = rng.integers(len(chunks))
    name, inner = chunks[at]
    chunks[at] = name, flipped(rng, inner) if inner else rng.bytes(9)
    return _joined(chunks)
