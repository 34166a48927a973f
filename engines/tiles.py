"""Pictures of any size for engines that cannot take them whole: cut into tiles on the picture's window grid.

Every layer cuts its map into windows from the top left corner on. A tile that starts and ends at multiples of all
windows' sides (the grid: 64 pixels for sst, 96 for the + models) has the same windows as the whole picture. Only
convolutions miss what lies beyond a cut inside the picture, and pass it on to the windows at the cut. Tiles therefore
overlap, and each gives up half of the overlap, where it is wrong most.

What follows the whole picture follows the tile instead: the filters of esc-rib, and the windows that wrap around the
edges in models that shift them (those with windows of one size; none is published).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engines.base import Description, Engine, EngineError, LayerTime, check_input, out_of_memory
from ribsr.base.sizes import UNLIMITED, Limits, Size

if TYPE_CHECKING:
    import numpy as np

LEAST_OVERLAP = 64
"""Pixels that neighbouring tiles share at least, in whole grids."""


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

    def kept(self, scale: int) -> slice:
        """What is kept, of the engine's result."""
        return slice(scale * (self.first - self.start), scale * (self.last - self.start))

    def place(self, scale: int) -> slice:
        """What is kept, of the whole result."""
        return slice(scale * self.first, scale * self.last)


def grid(windows: tuple[tuple[int, int], ...]) -> Size:
    """The least sides that are multiples of all windows' sides."""
    return Size(math.lcm(*(rows for rows, _ in windows)), math.lcm(*(columns for _, columns in windows)))


def least_overlap(step: int) -> int:
    """Pixels that neighbouring tiles share at least on a grid of `step` pixels."""
    return math.ceil(LEAST_OVERLAP / step) * step


def cut(length: int, step: int, low: int, high: int) -> tuple[Span, ...]:
    """Cuts an axis of `length` pixels into tiles of `low` to `high` pixels that start at multiples of `step`.

    They share `least_overlap(step)` pixels, or twice that if they may be four times as large: then the windows at a cut
    are given up whole. No more tiles than this needs; all but the last are of one size. Where there are two or more,
    `high` must be at least `least_overlap(step) + step`.
    """
    if length <= high:
        return (Span(0, max(length, low), 0, length),)
    longest = high // step * step
    shared = least_overlap(step)
    if longest >= 4 * shared:
        shared *= 2
    furthest = longest - shared  # from one start to the next
    count = 1 + math.ceil((length - high) / furthest)  # the last tile ends with the picture, on the grid or not
    stride = min(furthest, math.ceil((length - shared) / count / step) * step)
    starts = range(0, length - shared, stride)[:count]
    spans = []
    for start in starts:
        stop = start + stride + shared if start != starts[-1] else length
        first = start + shared // 2 if start > 0 else 0
        last = stop - (shared - shared // 2) if stop < length else length
        spans.append(Span(start, max(stop, start + low), first, last))
    return tuple(spans)


class Tiled(Engine):
    """Another engine for pictures of any size: those that it does not take, or larger than `tile`, go in parts.

    tile: the largest picture that the other engine is given; None: the largest that it takes. Pictures smaller than it
    takes are continued by mirroring, and the result is cut. Closing it closes the other engine.
    """

    def __init__(self, engine: Engine, tile: Size | None = None):
        self._engine, self._inner = engine, engine.describe()
        self._grid = grid(self._inner.windows)
        self._least = Size(*(least_overlap(step) + step for step in self._grid))
        taken = self._inner.limits
        self._tiles = Limits(taken.least, Size(*map(min, tile, taken.most)) if tile else taken.most)

    def describe(self) -> Description:
        """The other engine's, without limits to the size, and with a note of where pictures are cut."""
        notes = self._inner.notes
        if min(self._tiles.most) < UNLIMITED:
            notes = (*notes, f"pictures larger than {self._tiles.most} are cut into tiles")
        return replace(self._inner, limits=Limits(), notes=notes)

    def spans(self, size: Size) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
        """How a picture is cut: rows of tiles, and columns.

        Raises EngineError if tiles are to be smaller than the engine takes, or too small to overlap on the grid.
        """
        path, tiles = self._inner.path, self._tiles
        if any(high < low for low, high in zip(tiles.least, tiles.most, strict=True)):
            raise EngineError(f"{path}: takes pictures of {self._inner.limits}; give no smaller tiles")
        taken = self._inner.limits.most
        for side, high, most, least in zip(size, tiles.most, taken, self._least, strict=True):
            if side > high < least:
                advice = "export or build it for larger pictures" if most < least else "give larger ones"
                raise EngineError(
                    f"{path}: {size} cannot be cut into tiles of {tiles.most}: this model's must be {self._least} at "
                    f"least, to overlap on its window grid; {advice}"
                )
        rows, columns = map(cut, size, self._grid, tiles.least, tiles.most)
        return rows, columns

    def largest(self, size: Size) -> Size:
        """The sides of the largest tile that a picture is cut into. Raises EngineError as `spans` does."""
        return Size(*(max(span.size for span in spans) for spans in self.spans(size)))

    def smaller(self, size: Size) -> Size | None:
        """About half the largest tile that a picture is cut into; None if it cannot be smaller."""
        sides = list(self.largest(size))
        floors = list(map(max, self._tiles.least, self._least))
        for axis in sorted((0, 1), key=lambda axis: -sides[axis]):
            if sides[axis] > floors[axis]:
                sides[axis] = max(floors[axis], math.ceil(sides[axis] / 2))
                return Size(*sides)
        return None

    def run(self, x: np.ndarray, advance: Callable[[int], object] = lambda tiles: None) -> np.ndarray:
        """As `Engine.run`. advance: called with 1 after every tile of a picture that is cut."""
        import numpy as np

        check_input(x, self.describe())
        size, scale = Size.of(x), self._inner.scale
        rows, columns = self.spans(size)
        if (rows[0].size, columns[0].size) == size:
            return self._engine.run(x)
        try:
            y = np.empty((*x.shape[:2], *size.times(scale)), np.float32)
        except MemoryError:
            raise out_of_memory(self._inner.path, x) from None
        for tile, row, column in self._tiles_of(x):
            place = y[..., row.place(scale), column.place(scale)]
            self._engine.run_into(tile, place, (row.kept(scale), column.kept(scale)))
            advance(1)
        return y

    def profile(self, x: np.ndarray, runs: int = 5) -> list[LayerTime]:
        """As `Engine.profile`, each layer's time summed up over the picture's tiles."""
        check_input(x, self.describe())
        total: dict[str, float] = {}
        for tile, _, _ in self._tiles_of(x):
            for layer in self._engine.profile(tile, runs):
                total[layer.name] = total.get(layer.name, 0.0) + layer.milliseconds
        return [LayerTime(name, milliseconds) for name, milliseconds in total.items()]

    def _tiles_of(self, x: np.ndarray) -> Iterator[tuple[np.ndarray, Span, Span]]:
        """What the engine gets of x [B, 3, H, W], tile by tile, and which rows and columns that is.

        The picture goes on as its mirror image, the last pixel twice: the mirror stands at the picture's edge. In the
        last pixel's middle it would make that pixel's s enlarged ones symmetric, whatever they show: 0.4 to 1.6 dB less
        in the last four rows of four Set14 pictures, here 0.4 at most.
        """
        import numpy as np

        rows, columns = self.spans(Size.of(x))
        beyond = (rows[-1].stop - x.shape[2], columns[-1].stop - x.shape[3])
        if any(beyond):
            x = np.pad(x, ((0, 0), (0, 0), (0, beyond[0]), (0, beyond[1])), "symmetric")
        for row in rows:
            for column in columns:
                yield x[..., row.start : row.stop, column.start : column.stop], row, column

    def close(self) -> None:
        self._engine.close()
