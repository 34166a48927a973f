"""`python -m engines.upscale MODEL IN OUT`: a picture, or a folder of them, enlarged."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from engines.base import PRECISIONS, EngineError, OutOfMemory
from engines.jobs import Job, find_jobs, left_out, unfinished
from engines.memory import GIB
from engines.options import engine_options, memory_option, tile_option
from engines.tiles import Tiled
from ribsr.base.command import Command, echo, message, report
from ribsr.base.sizes import Size

if TYPE_CHECKING:
    import numpy as np

    from engines import Engine
    from ribsr.base.pictures import Colour

T = TypeVar("T")
R = TypeVar("R")

READERS = 2
"""Pictures of a folder that are read before their turn."""

WRITERS = min(8, os.cpu_count() or 1)
"""Pictures that are written at the same time: compressing one of 4K as PNG takes seconds, making it on a GPU less."""

Read = tuple["np.ndarray", "Colour"]
"""A picture's pixels, uint8 RGB [H, W, 3], and what they mean."""

Made = tuple[Path, Size, "np.ndarray", "Colour"]
"""Where it goes, the size that it was, what was made of it, uint8 RGB [sH, sW, 3], and what it means."""


@click.command(cls=Command)
@click.argument("model_file", metavar="MODEL")
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@engine_options
@tile_option
@memory_option
@click.option("--precision", type=click.Choice(PRECISIONS), help="Of checkpoints; other files fix it at export.")
@click.option("--skip-existing", is_flag=True, help="Go on with a folder: leave out what is there, and whole.")
def main(
    model_file: str,
    source: Path,
    target: Path,
    tile: Size | None,
    memory: float | None,
    skip_existing: bool,
    **options: Any,
) -> None:
    """Enlarges the picture IN with MODEL (.onnx, .plan, or a checkpoint for PyTorch) and writes OUT.

    The suffix of OUT chooses its format; if OUT is a folder, the picture goes there under its name. An existing OUT is
    replaced, unless it is IN or MODEL. A picture that MODEL does not take whole, for its size or for want of memory, is
    cut into tiles, and a note says so: into the best for which there is memory, unless --tile names others.

    If IN is a folder, so is OUT, which is made if need be: every picture of IN goes there under its name. Those that
    fail are reported, and the others go on. Hidden files are no pictures; what else is left out is named.
    """
    from engines import open_engine

    whole_folder = source.is_dir()
    jobs = find_jobs(source, target, Path(model_file))
    if whole_folder and (others := left_out(source)):
        echo(f"Note: {source}: {others}", err=True)
    if skip_existing:
        count, jobs = len(jobs), unfinished(jobs)
        click.echo(f"Note: {count - len(jobs)} of {count} are there already", err=True)
        if not jobs:
            return
    failed = 0
    with open_engine(model_file, **options) as engine:
        description = engine.describe()
        for note in description.notes:
            echo(f"Note: {note}", err=True)
        if whole_folder:
            target.mkdir(exist_ok=True)
            if tile is not None:  # one that cuts nothing would fail for every picture
                Tiled(engine, tile).spans(Size(tile.height + 1, tile.width + 1))
        allowed = None if memory is None else round(memory * GIB)
        enlarger = Enlarger(engine, tile, allowed, bar=not whole_folder and sys.stderr.isatty())
        for (picture, enlarged), outcome in _enlarge_all(jobs, enlarger):
            if (error := outcome.exception()) is None:
                before, after = outcome.result()
                echo(f"{picture} {before} → {enlarged} {after}")
            elif not whole_folder or not isinstance(error, Exception):
                raise error
            else:
                failed += 1
                line = message(error)  # that of a runtime names the model's file alone
                own = line.startswith((f"{picture}: ", f"{enlarged}: "))
                report(error, line if own else f"{picture}: {line}")
    of_all = f" for {len(jobs)} pictures" if whole_folder else ""
    click.echo(
        f"{description.model} x{description.scale} {description.precision}, {description.runtime} "
        f"{description.runtime_version} on {description.device}, {enlarger.seconds:.2f} s{of_all}"
    )
    if failed:
        raise EngineError(f"{source}: {failed} of {len(jobs)} pictures failed, as said above")


class Enlarger:
    """An engine for picture after picture, in tiles where needed. What it does about their size is said once.

    tile: the largest tiles, None for those that suit memory; smaller ones from the picture on for which memory does not
    suffice all the same. memory: bytes to do with, None for what is free. bar: show a picture's tiles as a progress
    bar. seconds: that all runs took. scale: the engine's.
    """

    def __init__(self, engine: Engine, tile: Size | None, memory: int | None = None, *, bar: bool = False):
        self._engine, self._tile, self._memory, self._bar = engine, tile, memory, bar
        self._said: set[str] = set()
        self.scale = engine.describe().scale
        self.seconds = 0.0

    def run(self, pixels: np.ndarray, target: Path | str = "") -> np.ndarray:
        """uint8 RGB [H, W, 3] → [sH, sW, 3]. Raises EngineError where the smallest tiles need too much memory, too, and
        for values that are not finite; target: where the picture would have gone, for that message."""
        from ribsr.base.pictures import bytes_to_write

        start, tile = time.perf_counter(), self._tile
        try:
            while True:
                tiled = Tiled(self._engine, tile, self._memory)
                try:
                    made = self._attempt(tiled, pixels, target)
                    self._tile = tile  # of a picture for which no tile is small enough, the next ones know nothing
                    return made
                except (OutOfMemory, MemoryError):
                    tile = self._smaller(tiled, Size(*pixels.shape[:2]), bytes_to_write(target))
                self._engine.release()  # here the error, and what it kept alive, is gone
        finally:
            self.seconds += time.perf_counter() - start

    def _attempt(self, tiled: Tiled, pixels: np.ndarray, target: Path | str) -> np.ndarray:
        from ribsr.base.pictures import bytes_to_write

        size, result, prefix = Size(*pixels.shape[:2]), bytes_to_write(target), f"{target}: not written, since"
        rows, columns = tiled.spans(size, result)
        count, largest = len(rows) * len(columns), tiled.largest(size, result)
        if count > 1:
            self._say(f"{size} in {count} tiles of {largest}")
        elif largest != size:
            self._say(f"continued by mirroring to {largest}, the smallest that the model takes")
        if count == 1 or not self._bar:
            return tiled.enlarge(pixels, result=result, prefix=prefix)
        with click.progressbar(length=count, file=sys.stderr) as bar:
            return tiled.enlarge(pixels, bar.update, result=result, prefix=prefix)

    def _smaller(self, tiled: Tiled, size: Size, result: int) -> Size:
        largest, tile = tiled.largest(size, result), tiled.smaller(size, result)
        if tile is None:
            path = self._engine.describe().path
            raise EngineError(f"{path}: out of memory on {largest}, and tiles cannot be smaller; free memory")
        self._say(f"out of memory on {largest}; trying smaller tiles")
        return tile

    def _say(self, note: str) -> None:
        if note not in self._said:
            self._said.add(note)
            click.echo(f"Note: {note}", err=True)


def _enlarge_all(jobs: list[Job], enlarger: Enlarger) -> Iterator[tuple[Job, Future[tuple[Size, Size]]]]:
    """Every job with the sizes before and after, or the exception that ended it, in order, once it is over.

    Pictures are read ahead and written behind in other threads, a few at a time; they are enlarged in this one.
    Whatever exception one picture causes is its own affair: Pillow and the runtimes raise many, memory may run out.
    """
    from ribsr.base.pictures import Picture, check_output, read_rgb, write_picture

    def read(job: Job) -> Read:
        picture = read_rgb(job[0])
        check_output(job[1], picture.size.times(enlarger.scale), picture)
        return picture.pixels, picture.colour

    def enlarged(reads: Iterator[Future[Read]]) -> Iterator[Made | Exception]:
        for (_, target), outcome in zip(jobs, reads, strict=True):
            try:
                pixels, colour = outcome.result()
                yield target, Size(*pixels.shape[:2]), enlarger.run(pixels, target), colour
            except Exception as error:  # noqa: BLE001
                yield error

    def finish(made: Made | Exception) -> tuple[Size, Size]:
        if isinstance(made, Exception):
            raise made
        target, size, pixels, colour = made
        write_picture(target, Picture(pixels, colour))
        return size, Size(*pixels.shape[:2])

    with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(WRITERS) as writers:
        reads = _ahead(readers, read, jobs, READERS)
        yield from zip(jobs, _ahead(writers, finish, enlarged(reads), WRITERS), strict=True)


def _ahead(pool: Executor, work: Callable[[T], R], items: Iterable[T], count: int) -> Iterator[Future[R]]:
    """work(item) of all items, in order: one when it is done, or `count` later ones are under way, too."""
    under_way: deque[Future[R]] = deque()
    for item in items:
        under_way.append(pool.submit(work, item))
        if len(under_way) > count or under_way[0].done():
            yield under_way.popleft()
    yield from under_way


if __name__ == "__main__":
    main(prog_name="python -m engines.upscale")
