"""Pictures of any size for engines that cannot take them whole: cut into tiles on the picture's window grid.

Every layer cuts its map into windows from the top left corner on. A tile that starts and ends at multiples of all
windows' sides (the grid: 64 pixels for sst, 96 for the + models) has the same windows as the whole picture, so that
attention sees the same pixels; only the convolutions miss what lies beyond a cut inside the picture. Tiles therefore
overlap, and each gives up half of the overlap, where it is wrong most.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engines.base import Description, Engine, check_input
from engines.errors import EngineError

if TYPE_CHECKING:
    import numpy as np

LEAST_OVERLAP = 64
"""Pixels that two tiles share at least, in whole grids."""


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in pixels of the input: the engine gets [start, stop), of which [first, last) is kept.

    `stop` may lie beyond the picture, which is continued by mirroring there.
    """

    start: int
    stop: int
    first: int
    last: int

    @property
    def size(self) -> int:
        """Pixels that the engine gets."""
        return self.stop - self.start


def grid(windows: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The least sides (rows, columns) that are multiples of all windows' sides."""
    return math.lcm(*(rows for rows, _ in windows)), math.lcm(*(columns for _, columns in windows))


def overlap(step: int) -> int:
    """Pixels that neighbouring tiles share on a grid of `step` pixels."""
    return math.ceil(LEAST_OVERLAP / step) * step


def cut(length: int, step: int, low: int, high: float) -> tuple[Span, ...]:
    """Cuts an axis of `length` pixels into tiles of `low` to `high` pixels that start at multiples of `step`.

    No more tiles than needed, the last one not larger than the others, which are of one size. Where there are two or
    more, `high` must be at least `overlap(step) + step`.
    """
    if length <= high:
        return (Span(0, max(length, low), 0, length),)
    shared = overlap(step)
    furthest = int(high) // step * step - shared  # from one start to the next
    count = math.ceil((length - shared) / furthest)
    stride = math.ceil((length - shared) / count / step) * step
    spans = []
    for start in range(0, length - shared, stride):
        stop = min(start + stride + shared, length)
        first = start + shared // 2 if start > 0 else 0
        last = stop - shared // 2 if stop < length else length
        spans.append(Span(start, max(stop, start + low), first, last))
    return tuple(spans)


def mirrored(indices: np.ndarray, size: int) -> np.ndarray:
    """Indices ≥ 0 of an axis of `size` pixels that goes on by reflection, its last pixel not repeated."""
    import numpy as np

    return size - 1 - np.abs(size - 1 - indices % max(2 * (size - 1), 1))


class Tiled(Engine):
    """Another engine for pictures of any size: those that it does not take, or larger than `tile`, go in parts.

    tile: (H, W), the largest picture that the other engine is given; None: the largest that it takes. Pictures smaller
    than it takes are continued by mirroring, and the result is cut. Closing it closes the other engine.
    """

    def __init__(self, engine: Engine, tile: tuple[int, int] | None = None):
        self._engine, self._inner = engine, engine.describe()
        self._grid = grid(self._inner.windows)
        self._low, high = _limits(self._inner)
        self._high = (min(tile[0], high[0]), min(tile[1], high[1])) if tile else high

    def describe(self) -> Description:
        return replace(self._inner, shape=(self._inner.shape[0], 3, None, None), sizes=None)

    def spans(self, height: int, width: int) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
        """How a picture is cut: rows of tiles, and columns.

        Raises EngineError if tiles are to be smaller than the engine takes, or too small to overlap on the grid.
        """
        if any(high < low for low, high in zip(self._low, self._high, strict=True)):
            raise EngineError(
                f"{self._inner.path}: takes pictures from {_wxh(self._low)} on; give tiles as large or larger"
            )
        least = self._least
        if any(size > high < small for size, high, small in zip((height, width), self._high, least, strict=True)):
            raise EngineError(
                f"{self._inner.path}: {width}x{height} cannot be cut into tiles of {_wxh(self._high)}: this model's "
                f"must be {_wxh(least)} at least, to overlap on its window grid; give larger ones"
            )
        (rows, columns), (h0, w0), (h1, w1) = self._grid, self._low, self._high
        return cut(height, rows, h0, h1), cut(width, columns, w0, w1)

    def smaller(self, height: int, width: int) -> tuple[int, int] | None:
        """About half the tile (H, W) that a picture of this size is cut into; None if it cannot be smaller."""
        sizes = [spans[0].size for spans in self.spans(height, width)]
        floors = [max(low, least) for low, least in zip(self._low, self._least, strict=True)]
        for axis in sorted((0, 1), key=lambda axis: -sizes[axis]):
            if sizes[axis] > floors[axis]:
                sizes[axis] = max(floors[axis], math.ceil(sizes[axis] / 2))
                return sizes[0], sizes[1]
        return None

    def run(self, x: np.ndarray, advance: Callable[[int], object] | None = None) -> np.ndarray:
        """As `Engine.run`. advance: called with 1 after every tile."""
        import numpy as np

        check_input(x, self._inner.path, self.describe().shape)
        b, _, height, width = x.shape
        scale = self._inner.scale
        y = np.empty((b, 3, scale * height, scale * width), np.float32)
        rows, columns = self.spans(height, width)
        for row in rows:
            for column in columns:
                part = self._engine.run(_taken(_taken(x, 2, row), 3, column))
                kept_rows, kept_columns = (
                    slice(scale * (span.first - span.start), scale * (span.last - span.start)) for span in (row, column)
                )
                there = (slice(scale * span.first, scale * span.last) for span in (row, column))
                y[(..., *there)] = part[..., kept_rows, kept_columns]
                if advance is not None:
                    advance(1)
        return y

    def close(self) -> None:
        self._engine.close()

    @property
    def _least(self) -> tuple[int, int]:
        rows, columns = self._grid
        return overlap(rows) + rows, overlap(columns) + columns


def _taken(x: np.ndarray, axis: int, span: Span) -> np.ndarray:
    """What an engine gets of x [B, 3, H, W] along one axis."""
    import numpy as np

    return np.take(x, mirrored(np.arange(span.start, span.stop), x.shape[axis]), axis)


def _limits(description: Description) -> tuple[tuple[int, int], tuple[float, float]]:
    """The smallest and the largest (H, W) that an engine takes."""
    if description.sizes is not None:
        return description.sizes
    height, width = description.shape[2:]
    return (height or 1, width or 1), (height or math.inf, width or math.inf)


def _wxh(size: tuple[float, float]) -> str:
    return f"{size[1]:g}x{size[0]:g}"
