"""Pictures in, larger pictures out, with one model: what programs use, and `python -m engines.upscale` too."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.base import Description, Engine, EngineError, OutOfMemory
from engines.tiles import Tiled
from ribsr.base.sizes import Size

if TYPE_CHECKING:
    from typing_extensions import Self

    from ribsr.base.pictures import Picture


class Upscaler:
    """An engine for picture after picture, in tiles where needed. What it does about their size is said once.

    model: a file or bundled name, which `engines.open_engine` opens with `options`; or an engine that is open, which
    stays the caller's to close. tile: the largest tiles, None for those that suit memory; smaller ones from the picture
    on for which memory does not suffice all the same. memory: bytes to do with, None for what is free. say: is given
    what the user should know, a line each; None: nobody is told.

    scale: the model's. seconds: that all runs took. Raises EngineError as `open_engine` does.
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
        self._owned = not isinstance(model, Engine)
        if isinstance(model, Engine):
            if options:
                raise EngineError(
                    f"{model.describe().path}: is open; {', '.join(options)} can be chosen for files only"
                )
            self._engine = model
        else:
            from engines import open_engine

            self._engine = open_engine(model, **options)
        self._tile, self._memory, self._tell = tile, memory, say
        self._said: set[str] = set()
        self._lock = threading.Lock()
        self.scale = self._engine.describe().scale
        self.seconds = 0.0

    def describe(self) -> Description:
        """The engine's: what the model is and where it runs."""
        return self._engine.describe()

    def enlarge(
        self,
        picture: Picture,
        *,
        target: Path | str = "",
        advance: Callable[[int, int], object] = lambda done, count: None,
    ) -> Picture:
        """The picture `scale` times as large, with its colour.

        target: where it would be written, whose format's need of memory counts, and for messages. advance: called with
        the tiles done and how many there are after each tile of a picture that is cut. Raises EngineError where the
        smallest tiles need too much memory, too, and for values that are not finite.
        """
        from ribsr.base.pictures import bytes_to_write

        start, tile = time.perf_counter(), self._tile
        try:
            while True:
                tiled = Tiled(self._engine, tile, self._memory)
                try:
                    made = self._attempt(tiled, picture, target, advance)
                    self._tile = tile  # of a picture for which no tile is small enough, the next ones know nothing
                    return made
                except (OutOfMemory, MemoryError):
                    tile = self._smaller(tiled, picture.size, bytes_to_write(target))
                self._engine.release()  # here the error, and what it kept alive, is gone
        finally:
            with self._lock:
                self.seconds += time.perf_counter() - start

    def _attempt(
        self, tiled: Tiled, picture: Picture, target: Path | str, advance: Callable[[int, int], object]
    ) -> Picture:
        from ribsr.base.pictures import bytes_to_write

        size, result = picture.size, bytes_to_write(target)
        rows, columns = tiled.spans(size, result)
        count, largest = len(rows) * len(columns), tiled.largest(size, result)
        if count > 1:
            self._say(f"{size} in {count} tiles of {largest}")
        elif largest != size:
            self._say(f"continued by mirroring to {largest}, the smallest that the model takes")
        done = 0

        def count_up(tiles: int) -> None:
            nonlocal done
            done += tiles
            if count > 1:
                advance(done, count)

        prefix = f"{target}: not written, since" if target else ""
        return replace(picture, pixels=tiled.enlarge(picture.pixels, count_up, result=result, prefix=prefix))

    def _smaller(self, tiled: Tiled, size: Size, result: int) -> Size:
        largest, tile = tiled.largest(size, result), tiled.smaller(size, result)
        if tile is None:
            path = self._engine.describe().path
            raise EngineError(f"{path}: out of memory on {largest}, and tiles cannot be smaller; free memory")
        self._say(f"out of memory on {largest}; trying smaller tiles")
        return tile

    def _say(self, note: str) -> None:
        with self._lock:
            told, _ = note in self._said, self._said.add(note)
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
