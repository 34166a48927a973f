"""Picture after picture through an `Upscaler`: read ahead and written behind by other threads, in bounded memory."""

from __future__ import annotations

import os
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from engines import memory
from engines.jobs import Job, takes_quality
from engines.upscaler import Advance
from ribsr.base.sizes import Size

if TYPE_CHECKING:
    from engines.upscaler import Upscaler
    from ribsr.base.pictures import Picture

READERS = 2
"""Pictures that are read before their turn."""

WRITERS = min(8, os.cpu_count() or 1)
"""Pictures that are written at the same time: compressing one of 4K as PNG takes half a second, making it on a GPU an
eighth."""

SHARE = 0.25
"""Of the memory that is free at the start: what pictures that wait, and those on their way to the disk, may take."""


@dataclass(frozen=True)
class EnlargedPicture:
    """A picture that has been written. before, after: its sizes. dropped: what of its file is not in the new one."""

    before: Size
    after: Size
    dropped: tuple[str, ...]


class Leaving(NamedTuple):
    """A picture that is being enlarged or written, or has been. cost: bytes that it takes until that is done."""

    job: Job
    cost: int
    outcome: Future[EnlargedPicture]


class Waiting(NamedTuple):
    """A picture that is being read, or has been, and what will become of it.

    picture: a list of one, which `_made` takes out: frames that a traceback keeps have the list among their arguments.
    """

    leaving: Leaving
    picture: list[Future[Picture]]


def threads_for(upscaler: Upscaler) -> int:
    """Threads that enlarge pictures with it at the same time. A GPU waits while a picture of 4K goes from integers to
    floats and back, which takes as long as enlarging it. A CPU has nothing else to do, and is left to the caller's
    thread, which Ctrl-C can stop between two tiles."""
    return 3 if upscaler.describe().on_gpu else 1


def room(allowed: int | None = None) -> int | None:
    """Bytes for pictures on their way, of those that are `allowed`, or of what is free; None where that is unknown."""
    known = [size for size in (allowed, memory.available()) if size is not None]
    return round(SHARE * min(known)) if known else None


def enlarge_all(
    jobs: Iterable[Job],
    upscaler: Upscaler,
    *,
    quality: int | None = None,
    max_pixels: int | None = None,
    most: int | None = None,
    advance: Advance = lambda done, count: None,
) -> Iterator[tuple[Job, Future[EnlargedPicture]]]:
    """Every job with what became of it, or the exception that ended it, in order, once it is over.

    Whatever exception one picture causes is its own affair: decoders and runtimes raise many, memory may run out.
    quality: for formats that have one. max_pixels: as `read_picture` takes it. most: bytes of all pictures on their way
    (`room`); one too large for that goes alone. advance: as `Upscaler.enlarge` takes it.
    """
    coming, waiting, leaving = deque(jobs), deque[Waiting](), deque[Leaving]()
    threads = threads_for(upscaler)

    def held(pictures: Iterable[Leaving]) -> int:
        return sum(one.cost for one in pictures if not one.outcome.done())

    def fits(cost: int) -> bool:
        before = held((*(one.leaving for one in waiting), *leaving))
        return most is None or before == 0 or before + cost <= most

    with (
        ThreadPoolExecutor(READERS) as readers,
        ThreadPoolExecutor(WRITERS) as writers,
        ThreadPoolExecutor(threads) as enlargers,
    ):
        cost: int | None = None  # of the next to come, whose file is asked once
        while coming or waiting or leaving:
            while coming and len(waiting) <= READERS:
                if cost is None:
                    cost = _cost(coming[0], upscaler.scale, max_pixels)
                if not fits(cost):
                    break
                job = coming.popleft()
                reading = [readers.submit(_read, job, upscaler.scale, _quality(job, quality), max_pixels)]
                waiting.append(Waiting(Leaving(job, cost, Future()), reading))
                cost = None
            if leaving and (leaving[0].outcome.done() or len(leaving) >= WRITERS + threads or not waiting):
                job, _, outcome = leaving.popleft()
                wait([outcome])
                yield job, outcome
            else:
                one = waiting.popleft()
                promised = held(leaving)  # what encoders take, they do not take at once
                leaving.append(one.leaving)
                chosen = _quality(one.leaving.job, quality)
                if threads == 1:
                    _enlarge(one, upscaler, advance, promised, writers, chosen)
                else:
                    enlargers.submit(_enlarge, one, upscaler, advance, promised, writers, chosen)


def _quality(job: Job, quality: int | None) -> int | None:
    return quality if takes_quality(job.target) else None


def _cost(job: Job, scale: int, max_pixels: int | None = None) -> int:
    """Bytes, by what the picture's file declares. Decoders and turning take as much again as the pixels."""
    from ribsr.base.pictures import bytes_to_write, read_header

    try:
        found = read_header(job.source, max_pixels)
    except Exception:  # noqa: BLE001
        return 0  # reading it will say why
    read = 2 * found.channels * found.depth // 8 * found.size.height * found.size.width
    return read + bytes_to_write(job.target, found.size.times(scale), found.channels, found.depth)


def _read(job: Job, scale: int, quality: int | None, max_pixels: int | None) -> Picture:
    """The picture, of which it is known by then that its result can be written."""
    from ribsr.base.pictures import check_output, read_picture

    picture = read_picture(job.source, max_pixels)
    check_output(job.target, picture.size.times(scale), picture, quality)
    return picture


def _enlarge(
    one: Waiting, upscaler: Upscaler, advance: Advance, promised: int, writers: Executor, quality: int | None
) -> None:
    """Puts a picture through the model and has it written."""
    job, _, outcome = one.leaving
    outcome.add_done_callback(_let_go)
    try:
        writing = writers.submit(_write, job, *_made(job, one.picture, upscaler, advance, promised), quality)
    except BaseException as error:
        outcome.set_exception(error)
        if not isinstance(error, Exception):
            raise
    else:
        writing.add_done_callback(lambda written: _pass_on(written, outcome))


def _made(
    job: Job, read: list[Future[Picture]], upscaler: Upscaler, advance: Advance, promised: int
) -> tuple[EnlargedPicture, Picture]:
    from ribsr.base.pictures import left_out

    picture = read.pop().result()
    made = upscaler.enlarge(picture, target=job.target, advance=advance, promised=promised)
    return EnlargedPicture(picture.size, made.size, (*picture.dropped, *left_out(job.target, picture))), made


def _write(job: Job, enlarged: EnlargedPicture, made: Picture, quality: int | None) -> EnlargedPicture:
    from ribsr.base.pictures import write_picture

    write_picture(job.target, made, quality)
    return enlarged


def _pass_on(written: Future[EnlargedPicture], outcome: Future[EnlargedPicture]) -> None:
    error = written.exception()
    if error is None:
        outcome.set_result(written.result())
    else:
        outcome.set_exception(error)


def _let_go(outcome: Future[EnlargedPicture]) -> None:
    """Frees the pictures that an exception's traceback holds."""
    error = outcome.exception()
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
