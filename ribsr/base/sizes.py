"""Sizes of pictures, and which of them a model takes. Users read and write WIDTHxHEIGHT; arrays have height first."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

UNLIMITED = 2**31 - 1
"""A side that may be as long as it likes: longer than any runtime can name."""


class Size(NamedTuple):
    """A picture's sides in pixels. `str` gives, and `parse` reads, what users see: `640x360`, the width first."""

    height: int
    width: int

    @classmethod
    def parse(cls, text: str) -> Size:
        """Reads `WIDTHxHEIGHT`. Raises ValueError for anything else, and for a side below 1."""
        match = re.fullmatch(r"([1-9]\d*)[xX×]([1-9]\d*)", text, re.ASCII)
        if not match:
            raise ValueError(f"{text!r} is not WIDTHxHEIGHT in pixels; give WxH, e.g. 640x360")
        return cls(int(match[2]), int(match[1]))

    @classmethod
    def of(cls, x: np.ndarray) -> Size:
        """That of the pictures in an array [.., H, W]."""
        return cls(x.shape[-2], x.shape[-1])

    def times(self, scale: int) -> Size:
        """The size of the picture `scale` times enlarged."""
        return Size(self.height * scale, self.width * scale)

    def __str__(self) -> str:
        width, height = ("any" if side == UNLIMITED else str(side) for side in (self.width, self.height))
        return f"{width}x{height}"


@dataclass(frozen=True)
class Limits:
    """The sizes that a model takes: height and width, each from that of `least` to that of `most`."""

    least: Size = Size(1, 1)
    most: Size = Size(UNLIMITED, UNLIMITED)

    @classmethod
    def only(cls, height: int | None, width: int | None) -> Limits:
        """One size, where a side is given; any, where it is None."""
        return cls(Size(height or 1, width or 1), Size(height or UNLIMITED, width or UNLIMITED))

    @property
    def fixed(self) -> Size | None:
        """The only size that is taken, if there is just one."""
        return self.least if self.least == self.most else None

    def takes(self, size: Size) -> bool:
        return self.nearest(size) == size

    def nearest(self, size: Size) -> Size:
        """Of the sizes that are taken, the one with the least change to each side."""
        height, width = (max(low, min(side, high)) for side, low, high in zip(size, self.least, self.most, strict=True))
        return Size(height, width)

    def __str__(self) -> str:
        """As in `takes pictures of …`."""
        if self.fixed:
            return f"{self.fixed} only"
        if min(self.most) == UNLIMITED:
            return "any size" if self.least == (1, 1) else f"{self.least} and larger"
        return f"{self.least} to {self.most}"
