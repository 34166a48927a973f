"""Pictures in, larger pictures out, with one model: what programs use, and `python -m engines.upscale` too."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from engines import planes
from engines.base import WHOLE, Description, Engine, EngineError, LayerTime, OutOfMemory
from engines.tiles import Tiled, empty_result
from ribsr.base.sizes import Size

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from typing_extensions import Self

    from ribsr.base.pictures import Picture

LAYOUTS = ("HWC", "NCHW")

Advance = Callable[[int, int], object]
"""Called with the tiles done, and of how many."""


class Upscaler:
    """A model that enlarges whatever pictures are given to it, in tiles where needed:

        from engines import Upscaler
        with Upscaler("sst-light-x2") as upscaler:
            upscaler("photo.jpg").save("large.png")

    model: a file or bundled name, which `engines.open_engine` opens with `options` (device, threads, precision, …); or
    an engine that is open, which stays the caller's to close. tile: the largest tiles, None for those that suit memory;
    smaller ones from the picture on for which memory does not suffice all the same. memory: bytes to do with, None for
    what is free. say: is given what the user should know about a picture's size, one line each, once; None: nobody is.

    scale: the model's. Threads may share it: the model runs for one of them at a time, as the memory that is predicted
    for a run is that of one; pictures are taken apart and put together beside it. Raises EngineError as `open_engine`
    does.
    """

    def __init__(
        self,
        model: str | Path | Engine,
        *,
        tile: Size | None = None,
        memory: int | None = None,
        say: Callable[[str], None] | None = None,
        **options: Any,
    ):
        for name, value, kind, right in (
            ("model", model, (str, Path, Engine), "a path, a bundled name or an engine"),
            ("tile", tile, (Size, type(None)), "a Size, such as Size(128, 128)"),
            ("memory", memory, (int, float, type(None)), "a number of bytes"),
            ("threads", options.get("threads"), (int, type(None)), "a whole number"),
        ):
            if not isinstance(value, kind):
                raise EngineError(f"{name} must be {right}, got {value!r}")
        self._owned = not isinstance(model, Engine)
        if isinstance(model, Engine):
            if options:
                path = model.describe().path
                raise EngineError(f"{path}: is open already, and {', '.join(options)} can be chosen for files only")
            self._engine = _Shared(model)
        else:
            from engines import open_engine

            self._engine = _Shared(open_engine(model, **options))
        self._tile, self._memory, self._tell = tile, memory, say
        self._said: set[str] = set()
        self._lock = threading.Lock()
        self.scale = self._engine.describe().scale

    @property
    def seconds(self) -> float:
        """That the model has run so far, for all threads."""
        return self._engine.seconds

    def describe(self) -> Description:
        """The engine's: what the model is and where it runs."""
        return self._engine.describe()

    @overload
    def __call__(self, picture: np.ndarray, *, layout: str = "HWC") -> np.ndarray: ...
    @overload
    def __call__(self, picture: Image.Image) -> Image.Image: ...
    @overload
    def __call__(self, picture: Picture | Path | str) -> Picture: ...

    def __call__(self, picture: Any, *, layout: str = "HWC") -> Any:
        """The picture `scale` times as large, of the kind that is given:

        - a numpy array, uint8, uint16, or float32 in [0, 1] → an array of the same dtype, rounded to nearest, or as
          float32 clipped alone. layout "HWC": [H, W] or [H, W, C], of 1 to 4 channels: gray, gray and alpha, RGB, RGB
          and alpha (straight); "NCHW": [N, C, H, W], each as if it were alone.
        - a Pillow picture → one, upright and with its colour profile and resolution. Of its modes 1 becomes L, and
          palettes what they show, RGB or RGBA.
        - a `ribsr.base.pictures.Picture` → one, as of `enlarge`; a path → what is made of the `Picture` there: it holds
          16 bits per channel, too, and has `save`.

        Raises EngineError as `enlarge` does, and for what is none of these; PictureError for files and Pillow pictures
        that cannot be read or kept.
        """
        import numpy as np
        from PIL import Image

        from ribsr.base.pictures import Picture, from_image, read_picture, to_image

        if layout not in LAYOUTS:
            raise EngineError(f"layout {layout!r} is unknown; choose one of {', '.join(LAYOUTS)}")
        if isinstance(picture, np.ndarray):
            return self._array(picture, layout)
        if layout != LAYOUTS[0]:
            raise EngineError(f"layout is for numpy arrays, and the picture is {type(picture).__name__}; leave it out")
        if isinstance(picture, Picture):
            return self.enlarge(picture)
        if isinstance(picture, (str, Path)):
            return self.enlarge(read_picture(picture))
        if isinstance(picture, Image.Image):
            return to_image(self.enlarge(from_image(picture)))
        raise EngineError(
            f"a picture must be a numpy array, a Pillow picture, a path or a Picture, got {type(picture).__name__}"
        )

    def _array(self, array: np.ndarray, layout: str) -> np.ndarray:
        if layout == "HWC":
            if array.ndim == 4:
                raise EngineError(
                    f"layout HWC takes one picture, [H, W] or [H, W, C], got {list(array.shape)}; give batches as "
                    'layout="NCHW"'
                )
            return self._run(_Request(array, self.scale))
        if array.ndim != 4 or not 1 <= array.shape[1] <= 4 or min(array.shape) < 1:
            raise EngineError(f"layout NCHW takes [N, C, H, W] with 1 to 4 channels, got {list(array.shape)}")
        shape = (*array.shape[:2], *Size.of(array).times(self.scale))
        made = empty_result(self._engine.describe().path, shape, array.dtype)
        for i, (place, pixels) in enumerate(zip(made, array, strict=True)):
            waiting = made[i:].nbytes  # asked for, and not taken yet
            request = _Request(pixels.transpose(1, 2, 0), self.scale, promised=waiting)
            place[...] = self._run(request).transpose(2, 0, 1)
        return made

    def tile_for(self, pixels: np.ndarray) -> Size:
        """The largest tile that such pixels are cut into, as there is memory now: for frames of a video, whose seams
        are not to move. Raises EngineError as `enlarge` does."""
        request = _Request(pixels, self.scale)
        with self._engine.turn:
            return Tiled(self._engine, self._tile, self._memory).largest(request.size, request.result, request.alpha)

    def enlarge(
        self,
        picture: Picture,
        *,
        target: Path | str = "",
        advance: Advance | None = None,
        tile: Size | None = None,
        promised: int = 0,
    ) -> Picture:
        """The picture `scale` times as large, with its colour; what was dropped when it was read stays told.

        target: where it is to be written, whose format's need of memory counts, and for messages. advance: called after
        each tile of a picture that is cut; from 1 on again where tiles become smaller. tile: the largest of this
        picture, unless memory did not suffice for such before. promised: bytes that look free, and that others are
        about to take. Raises EngineError where the smallest tiles need too much memory, too, for values that are not
        finite, and for pixels of other kinds (`planes.check_pixels`).
        """
        request = _Request(picture.pixels, self.scale, target, advance or _no_progress, tile, promised)
        return replace(picture, pixels=self._run(request))

    def _run(self, request: _Request) -> np.ndarray:
        """`Tiled.enlarge` in tiles for which memory suffices."""
        planes.check_pixels(request.pixels)
        tile = first = _smallest(request.tile, self._tile)
        while True:
            tiled = Tiled(self._engine, tile, self._memory, request.promised)
            try:
                made = self._attempt(tiled, request)
                break
            except (OutOfMemory, MemoryError):
                tile = self._smaller(tiled, request)
            self._engine.release()  # here the error, and what it kept alive, is gone
        if tile is not None and tile != first:  # of a picture for which no tile is small enough, the next know nothing
            with self._lock:
                self._tile = _smallest(tile, self._tile)
        return made

    def _attempt(self, tiled: Tiled, request: _Request) -> np.ndarray:
        with self._engine.turn:  # what there is while nothing runs
            rows, columns = tiled.spans(request.size, request.result, alpha=request.alpha)
        count, largest = len(rows) * len(columns), tiled.largest(request.size, request.result, request.alpha)
        if count > 1:
            self._say(f"{request.size} in {count} tiles of {largest}")
        elif largest != request.size:
            self._say(f"continued by mirroring to {largest}, the smallest that the model takes")
        done = itertools.count(1)
        return tiled.enlarge(
            request.pixels,
            lambda _: request.advance(next(done), count) if count > 1 else None,
            result=request.result,
            prefix=f"{request.target}: not written, since" if str(request.target) else "",
        )

    def _smaller(self, tiled: Tiled, request: _Request) -> Size:
        largest = tiled.largest(request.size, request.result, request.alpha)
        tile = tiled.smaller(request.size, request.result, request.alpha)
        if tile is None:
            path = self._engine.describe().path
            raise EngineError(f"{path}: out of memory on {largest}, and tiles cannot be smaller; free memory")
        self._say(f"out of memory on {largest}; trying smaller tiles")
        return tile

    def _say(self, note: str) -> None:
        with self._lock:
            told = note in self._said
            self._said.add(note)
        if self._tell is not None and not told:
            self._tell(note)

    def close(self) -> None:
        """Closes the engine that it opened; one that it was given stays open. Twice is fine."""
        if self._owned:
            self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _smallest(*tiles: Size | None) -> Size | None:
    return min((tile for tile in tiles if tile is not None), key=math.prod, default=None)


def _no_progress(done: int, count: int) -> None:
    """Nobody is told."""


@dataclass(frozen=True)
class _Request:
    """Pixels, how often they are enlarged and where they are to be written, who is told of tiles, and how large those
    may be.

    promised: bytes that look free and are not, whatever becomes of this picture.
    """

    pixels: np.ndarray
    scale: int
    target: Path | str = ""
    advance: Advance = _no_progress
    tile: Size | None = None
    promised: int = 0

    @property
    def size(self) -> Size:
        return Size(*self.pixels.shape[:2])

    @property
    def alpha(self) -> bool:
        return planes.has_alpha(self.pixels)

    @property
    def result(self) -> int:
        """Bytes that a pixel of the result takes until the caller is done with it."""
        from ribsr.base.pictures import bytes_to_write

        count, each, made = planes.channels(self.pixels), self.pixels.itemsize, self.size.times(self.scale)
        if not str(self.target):
            return count * each
        return math.ceil(bytes_to_write(self.target, made, count, 8 * each) / (made.height * made.width))


class _Shared(Engine):
    """An engine that runs for one thread at a time: then a run takes what is predicted for one, which threads take
    turns does not show in results, and none runs while memory is given back.

    turn: held while it runs. seconds: that it ran.
    """

    def __init__(self, engine: Engine):
        self._engine = engine
        self.turn = threading.Lock()
        self.seconds = 0.0

    @contextmanager
    def _running(self) -> Iterator[None]:
        with self.turn:
            start = time.perf_counter()
            try:
                yield
            finally:
                self.seconds += time.perf_counter() - start

    def describe(self) -> Description:
        return self._engine.describe()

    def run(self, x: np.ndarray) -> np.ndarray:
        with self._running():
            return self._engine.run(x)

    def run_into(self, x: np.ndarray, out: np.ndarray, part: tuple[slice, slice] = WHOLE) -> None:
        with self._running():
            self._engine.run_into(x, out, part)

    def needs(self, size: Size, batch: int = 1) -> int | None:
        return self._engine.needs(size, batch)

    def device_memory(self) -> int | None:
        return self._engine.device_memory()

    def release(self) -> None:
        with self.turn:
            self._engine.release()

    def profile(self, x: np.ndarray, runs: int = 5) -> list[LayerTime]:
        with self.turn:
            return self._engine.profile(x, runs)

    def close(self) -> None:
        self._engine.close()
