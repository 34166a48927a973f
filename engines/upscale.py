"""`python -m engines.upscale MODEL IN OUT`: a picture, or a folder of them, enlarged."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from engines.base import PRECISIONS, EngineError
from engines.jobs import Job, find_jobs, left_out, unfinished
from engines.memory import GIB
from engines.options import engine_options, memory_option, tile_option
from engines.tiles import Tiled
from engines.upscaler import Upscaler
from ribsr.base.command import Command, echo, message, report
from ribsr.base.sizes import Size

if TYPE_CHECKING:
    from ribsr.base.pictures import Picture

T = TypeVar("T")
R = TypeVar("R")

READERS = 2
"""Pictures of a folder that are read before their turn."""

WRITERS = min(8, os.cpu_count() or 1)
"""Pictures that are written at the same time: compressing one of 4K as PNG takes seconds, making it on a GPU less."""

Made = tuple[Path, Size, "Picture"]
"""Where it goes, the size that it was, and what was made of it."""

Advance = Callable[[int, int], object]
"""Called with the tiles done, and of how many."""


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
        upscaler = Upscaler(engine, tile=tile, memory=allowed, say=_note)
        show = _bar() if not whole_folder and sys.stderr.isatty() else lambda done, count: None
        for (picture, enlarged), outcome in _enlarge_all(jobs, upscaler, show):
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
        f"{description.runtime_version} on {description.device}, {upscaler.seconds:.2f} s{of_all}"
    )
    if failed:
        raise EngineError(f"{source}: {failed} of {len(jobs)} pictures failed, as said above")


def _note(line: str) -> None:
    click.echo(f"Note: {line}", err=True)


def _bar() -> Advance:
    """Shows a picture's tiles as a progress bar, from the first one on."""
    bars: list[Any] = []

    def advance(done: int, count: int) -> None:
        if not bars:
            bars.append(click.progressbar(length=count, file=sys.stderr).__enter__())
        bars[0].update(1)
        if done == count:
            bars.pop().__exit__(None, None, None)

    return advance


def _enlarge_all(
    jobs: list[Job], upscaler: Upscaler, advance: Advance
) -> Iterator[tuple[Job, Future[tuple[Size, Size]]]]:
    """Every job with the sizes before and after, or the exception that ended it, in order, once it is over.

    Pictures are read ahead and written behind in other threads, a few at a time; they are enlarged in this one.
    Whatever exception one picture causes is its own affair: Pillow and the runtimes raise many, memory may run out.
    """
    from ribsr.base.pictures import check_output, read_rgb, write_picture

    def read(job: Job) -> Picture:
        picture = read_rgb(job[0])
        check_output(job[1], picture.size.times(upscaler.scale), picture)
        return picture

    def enlarged(reads: Iterator[Future[Picture]]) -> Iterator[Made | Exception]:
        for (_, target), outcome in zip(jobs, reads, strict=True):
            try:
                picture = outcome.result()
                yield target, picture.size, upscaler.enlarge(picture, target=target, advance=advance)
            except Exception as error:  # noqa: BLE001
                yield error

    def finish(made: Made | Exception) -> tuple[Size, Size]:
        if isinstance(made, Exception):
            raise made
        target, size, picture = made
        write_picture(target, picture)
        return size, picture.size

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
