"""Picture after picture through an `Upscaler`: read ahead and written behind by other threads, in bounded memory."""

from __future__ import annotations

import os
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
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
"""Pictures that are written at the same time: compressing one of 4K as PNG takes seconds, making it on a GPU less."""

SHARE = 0.25
"""Of the memory that is free at the start: what pictures that wait, and those on their way to the disk, may take."""


@dataclass(frozen=True)
class Enlarged:
    """A picture that has been written. before, after: its sizes. dropped: as of the picture that was read."""

    before: Size
    after: Size
    dropped: tuple[str, ...]


class Cost(NamedTuple):
    """Bytes that a picture takes: when it has been read, and what is made of it until it is written."""

    read: int
    made: int


class Waiting(NamedTuple):
    """A picture that is being read, or has been."""

    job: Job
    picture: Future[Picture]
    cost: Cost


class Leaving(NamedTuple):
    """A picture that is being written, or has been."""

    job: Job
    outcome: Future[Enlarged]
    made: int


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
) -> Iterator[tuple[Job, Future[Enlarged]]]:
    """Every job with what became of it, or the exception that ended it, in order, once it is over.

    Pictures are enlarged in this thread. Whatever exception one picture causes is its own affair: decoders and runtimes
    raise many, memory may run out. quality: for formats that have one. max_pixels: as `read_picture` takes it. most:
    bytes of pictures before and behind the one that is being enlarged (`room`); one too large for that goes alone.
    """
    coming, waiting, leaving = deque(jobs), deque[Waiting](), deque[Leaving]()

    def quality_of(job: Job) -> int | None:
        return quality if takes_quality(job.target) else None

    def fits(cost: Cost) -> bool:
        held = sum(sum(one.cost) for one in waiting) + sum(one.made for one in leaving if not one.outcome.done())
        return most is None or held == 0 or held + sum(cost) <= most

    with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(WRITERS) as writers:
        while coming or waiting or leaving:
            while coming and len(waiting) <= READERS and fits(cost := _cost(coming[0], upscaler.scale)):
                job = coming.popleft()
                waiting.append(
                    Waiting(job, readers.submit(_read, job, upscaler.scale, quality_of(job), max_pixels), cost)
                )
            if leaving and (leaving[0].outcome.done() or len(leaving) > WRITERS or not waiting):
                job, outcome, _ = leaving.popleft()
                wait([outcome])
                yield job, outcome
            else:
                leaving.append(_passed(waiting.popleft(), upscaler, advance, writers, quality_of))
                leaving[-1].outcome.add_done_callback(_let_go)


def _passed(
    one: Waiting, upscaler: Upscaler, advance: Advance, writers: Executor, quality_of: Callable[[Job], int | None]
) -> Leaving:
    """A picture through the model. In a function of its own, so that no frame that goes on holds the picture."""
    try:
        outcome = writers.submit(_write, one.job, *_enlarge(one, upscaler, advance), quality_of(one.job))
    except Exception as error:  # noqa: BLE001
        outcome = Future[Enlarged]()
        outcome.set_exception(error)
    return Leaving(one.job, outcome, one.cost.made)


def _cost(job: Job, scale: int) -> Cost:
    """By what the picture's file declares. Decoders and turning take as much again as the pixels."""
    from PIL import Image

    from ribsr.base.pictures import bytes_to_write

    try:
        with Image.open(job.source) as image:
            size, channels, depth = Size(image.height, image.width), len(image.getbands()), 8
    except Exception:  # noqa: BLE001
        return Cost(0, 0)  # reading it will say why
    pixels = size.height * size.width
    return Cost(2 * channels * depth // 8 * pixels, bytes_to_write(job.target, channels, depth) * scale**2 * pixels)


def _read(job: Job, scale: int, quality: int | None, max_pixels: int | None) -> Picture:
    """The picture, of which it is known by then that its result can be written."""
    from ribsr.base.pictures import check_output, read_picture

    picture = read_picture(job.source, max_pixels)
    check_output(job.target, picture.size.times(scale), picture, quality)
    return picture


def _enlarge(one: Waiting, upscaler: Upscaler, advance: Advance) -> tuple[Enlarged, Picture]:
    picture = one.picture.result()
    made = upscaler.enlarge(picture, target=one.job.target, advance=advance)
    return Enlarged(picture.size, made.size, picture.dropped), made


def _write(job: Job, enlarged: Enlarged, made: Picture, quality: int | None) -> Enlarged:
    from ribsr.base.pictures import write_picture

    write_picture(job.target, made, quality)
    return enlarged


def _let_go(outcome: Future[Enlarged]) -> None:
    """Frees the pictures that an exception's traceback holds."""
    error = outcome.exception()
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
