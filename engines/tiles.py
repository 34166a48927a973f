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
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engines import memory, planes
from engines.base import Description, Engine, EngineError, LayerTime, check_finite, check_input, out_of_memory
from ribsr.base.sizes import UNLIMITED, Limits, Size

if TYPE_CHECKING:
    import numpy as np

LEAST_OVERLAP = 64
"""Pixels that neighbouring tiles share at least, in whole grids."""

FLOATS = 12
"""Bytes of a pixel of `Tiled.run`'s result."""

Cuts = tuple[tuple["Span", ...], tuple["Span", ...]]
"""Rows of tiles, and columns."""


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

    tile: the largest picture that the other engine is given; None: the largest that it takes and for which memory
    suffices, as far as that is known (`Engine.needs`). memory: bytes to do with instead of what is free. promised:
    bytes of the host's that look free and are not. Pictures smaller than the engine takes are continued by mirroring,
    and the result is cut. Closing it closes the other engine.
    """

    def __init__(self, engine: Engine, tile: Size | None = None, memory: int | None = None, promised: int = 0):
        self._engine, self._inner = engine, engine.describe()
        self._by_memory, self._memory, self._promised = tile is None, memory, promised
        self._chosen: dict[tuple[int, Size, int, bool], Limits] = {}
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

    def spans(self, size: Size, result: int = FLOATS, batch: int = 1, alpha: bool = False) -> Cuts:
        """How a picture is cut: rows of tiles, and columns; the same for the same size each time.

        result: bytes of a pixel of the result, such as FLOATS. alpha: whether the picture has it. Raises EngineError if
        tiles are to be smaller than the engine takes, or too small to overlap on the grid, and if memory does not
        suffice for the result or for the smallest tiles.
        """
        if not self._by_memory:
            return self._cut(size, self._tiles)
        key = (batch, size, result, alpha)
        if key not in self._chosen:
            self._chosen[key] = self._fitting(*key)
        return self._cut(size, self._chosen[key])

    def _cut(self, size: Size, tiles: Limits) -> Cuts:
        path = self._inner.path
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

    def _fitting(self, batch: int, size: Size, result: int, alpha: bool) -> Limits:
        """The limits of tiles with which the least is computed twice, of those for which memory suffices."""
        tiles, scale = self._tiles, self._inner.scale
        gpu = self._engine.device_memory()
        free = memory.available() if gpu is not None or self._memory is None else self._memory - memory.resident()
        host = math.inf if free is None else (1 - memory.MARGIN) * free - self._promised
        if (kept := batch * result * scale**2 * size.height * size.width) > host:
            left = f"{memory.told(free)} are free; free memory, or give less"
            if gpu is None and self._memory is not None:
                own = memory.told(memory.resident())
                left = f"--memory allows {memory.told(self._memory)}, of which this process takes {own}; allow more"
            raise EngineError(
                f"{self._inner.path}: out of memory: what {size} gives, {size.times(scale)}, takes "
                f"{memory.told(kept)} by itself, and {left}"
            )
        room = host - kept
        if gpu is not None:
            room = (1 - memory.MARGIN) * (gpu if self._memory is None else self._memory)

        def fits(tile: Size) -> bool:
            needed = self._engine.needs(tile, batch)
            floats = (1 + alpha) * (FLOATS + 2 * FLOATS * scale**2)  # the tile, what the engine gives, what is kept
            beside = 0 if gpu is not None else batch * floats * tile.height * tile.width
            return needed is None or needed + beside <= room

        if fits(self._largest(self._cut(size, tiles))):
            return tiles
        best = min(self._candidates(size, fits), default=None)
        if best is None:
            raise self._no_room(size, batch, room)
        return Limits(tiles.least, best[-1])

    def _candidates(self, size: Size, fits: Callable[[Size], bool]) -> Iterator[tuple[int, int, int, Size]]:
        """For every height of tiles the widest that fit: pixels computed, number, difference of sides, and tile."""
        heights, widths = map(self._sides, (0, 1), size)
        for height in heights:
            count = bisect_right(widths, False, key=lambda width, height=height: not fits(Size(height, width)))
            if count:
                tile = Size(height, widths[count - 1])
                cuts = self._cut(size, Limits(self._tiles.least, tile))
                rows, columns = (sum(span.size for span in spans) for spans in cuts)
                yield rows * columns, len(cuts[0]) * len(cuts[1]), abs(tile.height - tile.width), tile

    def _sides(self, axis: int, length: int) -> list[int]:
        """Of tiles along an axis, from small to large: on the grid, and the picture's own."""
        step, low, high = self._grid[axis], self._tiles.least[axis], self._tiles.most[axis]
        own = [max(length, low)] if length <= high else []
        first = math.ceil(max(low, self._least[axis]) / step) * step
        last = min(high, max(length, low) - 1)
        return [*range(first, last + 1, step), *own] or [high]

    def _no_room(self, size: Size, batch: int, room: float) -> EngineError:
        tile = Size(*(self._sides(axis, side)[0] for axis, side in enumerate(size)))
        needed, left = memory.told(self._engine.needs(tile, batch)), memory.told(max(0, room))
        return EngineError(
            f"{self._inner.path}: out of memory: {size} takes {needed} even in tiles of {tile}, and there are {left} "
            "for it; free memory, or give --memory or --tile to try all the same"
        )

    @staticmethod
    def _largest(cuts: Cuts) -> Size:
        return Size(*(max(span.size for span in spans) for spans in cuts))

    def largest(self, size: Size, result: int = FLOATS, alpha: bool = False) -> Size:
        """The sides of the largest tile that a picture is cut into. Raises EngineError as `spans` does."""
        return self._largest(self.spans(size, result, alpha=alpha))

    def smaller(self, size: Size, result: int = FLOATS, alpha: bool = False) -> Size | None:
        """About half the largest tile that a picture is cut into; None if it cannot be smaller."""
        sides = list(self.largest(size, result, alpha))
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
        rows, columns = cuts = self.spans(size, FLOATS, len(x))
        if (rows[0].size, columns[0].size) == size:
            return self._engine.run(x)
        try:
            y = np.empty((*x.shape[:2], *size.times(scale)), np.float32)
        except MemoryError:
            raise out_of_memory(self._inner.path, x) from None
        for tile, row, column in _tiles_of(x, cuts):
            place = y[..., row.place(scale), column.place(scale)]
            self._engine.run_into(tile, place, (row.kept(scale), column.kept(scale)))
            advance(1)
        return y

    def enlarge(
        self,
        pixels: np.ndarray,
        advance: Callable[[int], object] = lambda tiles: None,
        *,
        result: int | None = None,
        prefix: str = "",
    ) -> np.ndarray:
        """A picture as it is read to one as it is written, of the same dtype and channels (`planes.check_pixels`):
        [H, W, ..] → [sH, sW, ..], clipped; uint8 and uint16 rounded to nearest. RGB is the same as of `run`.

        Only the tile at work is in floats. One with alpha that is not opaque everywhere runs twice, one that nothing is
        seen of not at all. result: bytes of a pixel that the result takes until the caller is done with it; None: its
        own. advance: called with 1 after every tile. Raises EngineError as `run` does, for pixels of other kinds, and
        at the first tile whose result is not finite; prefix: how that begins.
        """
        planes.check_pixels(pixels)
        size, own = Size(*pixels.shape[:2]), planes.channels(pixels) * pixels.itemsize
        cuts = self.spans(size, result or own, alpha=planes.has_alpha(pixels))
        canvas = empty_result(self._inner.path, (*size.times(self._inner.scale), *pixels.shape[2:]), pixels.dtype)
        for tile, row, column in _tiles_of(pixels, cuts, axes=(0, 1)):
            self._enlarge_tile(tile, row, column, canvas, prefix or f"{self._inner.path}:")
            advance(1)
        return canvas

    def _enlarge_tile(self, tile: np.ndarray, row: Span, column: Span, canvas: np.ndarray, prefix: str) -> None:
        """A tile of a picture to its place in the result."""
        scale = self._inner.scale
        place = canvas[row.place(scale), column.place(scale)]
        x, alpha = planes.split(tile)
        enlarged = None
        if alpha is not None:
            if not alpha.any():
                place[...] = 0
                return
            gray, _ = planes.split(alpha)
            made = planes.as_gray(self._run_tile(gray, row, column, prefix))
            enlarged = planes.within(made, alpha, (row.kept(1), column.kept(1)))
        planes.put(place, self._run_tile(x, row, column, prefix), enlarged)

    def _run_tile(self, x: np.ndarray, row: Span, column: Span, prefix: str) -> np.ndarray:
        """What is kept of the engine's result for a tile [1, 3, H, W]."""
        import numpy as np

        kept = (row.kept(self._inner.scale), column.kept(self._inner.scale))
        sides = tuple(part.stop - part.start for part in kept)
        if sides == Size.of(x).times(self._inner.scale):
            y = self._engine.run(x)
        else:
            y = np.empty((1, 3, *sides), np.float32)
            self._engine.run_into(x, y, kept)
        check_finite(y, prefix)
        return y

    def profile(self, x: np.ndarray, runs: int = 5) -> list[LayerTime]:
        """As `Engine.profile`, each layer's time summed up over the picture's tiles."""
        check_input(x, self.describe())
        total: dict[tuple[str, str], float] = {}
        for tile, _, _ in _tiles_of(x, self.spans(Size.of(x), FLOATS, len(x))):
            for layer in self._engine.profile(tile, runs):
                key = (layer.name, layer.operator)
                total[key] = total.get(key, 0.0) + layer.milliseconds
        return [LayerTime(name, milliseconds, operator) for (name, operator), milliseconds in total.items()]

    def close(self) -> None:
        self._engine.close()

    def needs(self, size: Size, batch: int = 1) -> int | None:
        """As `Engine.needs`, of the largest tile and the result."""
        needed = self._engine.needs(self.largest(size), batch)
        return None if needed is None else needed + batch * FLOATS * self._inner.scale**2 * size.height * size.width

    def device_memory(self) -> int | None:
        return self._engine.device_memory()

    def release(self) -> None:
        self._chosen.clear()
        self._engine.release()


def empty_result(path: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory for a result. Raises EngineError where there is none; path: the model's, which begins the message."""
    import numpy as np

    try:
        return np.empty(shape, dtype)
    except (MemoryError, ValueError):  # the latter where no address would do
        raise EngineError(
            f"{path}: out of memory: the result, {list(shape)}, takes {memory.told(math.prod(shape) * dtype.itemsize)} "
            "by itself; free memory, or give less"
        ) from None


def _tiles_of(x: np.ndarray, cuts: Cuts, axes: tuple[int, int] = (2, 3)) -> Iterator[tuple[np.ndarray, Span, Span]]:
    """What an engine gets of a picture, tile by tile, and which rows and columns that is. axes: x's of both.

    The picture goes on as its mirror image, the last pixel twice: the mirror stands at the picture's edge. In the
    last pixel's middle it would make that pixel's s enlarged ones symmetric, whatever they show: 0.4 to 1.6 dB less
    in the last four rows of four Set14 pictures, here 0.4 at most.
    """
    import numpy as np

    rows, columns = cuts
    beyond = [(0, 0)] * x.ndim
    for axis, spans in zip(axes, cuts, strict=True):
        beyond[axis] = (0, spans[-1].stop - x.shape[axis])
    if any(after for _, after in beyond):
        x = np.pad(x, beyond, "symmetric")
    before = (slice(None),) * axes[0]
    for row in rows:
        for column in columns:
            yield x[(*before, slice(row.start, row.stop), slice(column.start, column.stop))], row, column
