"""Videos, enlarged frame by frame: the same codec, depth and colours, the same times, sound and subtitles beside it.

Threads of their own read, run the model and write, with a few frames in flight between them. PyAV, FFmpeg for Python,
decodes and encodes.

Kept: the codec's kind, bits and chroma sampling; colour range, matrix, primaries and transfer; every frame's time and
duration, as exactly as the target's container can say it (Matroska and WebM count milliseconds); rotation, pixel aspect
ratio; mastering display and light level, where the encoder writes them; audio, subtitles, attachments, cover pictures,
chapters, languages and titles. Told where they are left out: closed captions, Dolby Vision, HDR10+ and data tracks.
Refused: interlaced video, alpha, more than one video stream, what changes its size or colours midway, damage.

Frames become RGB as their matrix and range say, 8-bit ones uint8 and deeper ones uint16, and go back the same way.
Flat colours in limited range come back exactly as they were; FFmpeg's scaler is not exact in full range, where chroma
comes back half a level of 8 bits too low on average, and 10-bit luma two levels too high. White of 10 bits in limited
range is 65283 of 65535.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from engines.video.clip import Clip, Part
from engines.video.film import Film
from engines.video.formats import ENCODERS, READABLE, SUFFIXES, VideoError, check, check_choice, choose
from ribsr.base.files import atomic
from ribsr.base.sizes import Size

if TYPE_CHECKING:
    from engines.upscaler import Upscaler

__all__ = [
    "ENCODERS",
    "READABLE",
    "SUFFIXES",
    "EnlargedVideo",
    "VideoError",
    "check",
    "check_choice",
    "enlarge_video",
]

T = TypeVar("T")
R = TypeVar("R")


AHEAD = 3
"""Frames that are read before their turn."""

MAKERS = 2
"""Frames that are with the model. It runs for one at a time; the other becomes its input, or pixels, meanwhile."""

BEHIND = 2
"""Enlarged frames that wait to be written. What the encoder looks ahead at comes on top."""


@dataclass(frozen=True)
class EnlargedVideo:
    """What became of a video. seconds: that all of it took."""

    frames: int
    before: Size
    after: Size
    encoder: str
    seconds: float


def enlarge_video(
    upscaler: Upscaler,
    source: str | Path,
    target: str | Path,
    *,
    codec: str | None = None,
    crf: int | None = None,
    say: Callable[[str], object] = lambda note: None,
    progress: Callable[[int, int | None], object] = lambda done, count: None,
) -> EnlargedVideo:
    """Enlarges the video at `source` to `target`, which is written whole or not at all.

    codec: one of ENCODERS, or what it writes (h264); None: what writes the source's. crf: the encoder's constant
    quality, 0 the best; None: that of ENCODERS. say: is given what is left out or assumed, a line each. progress:
    called in this thread with the frames done, and their number as far as it is known.

    Raises VideoError for what cannot be read or written as it is, NotInstalled without PyAV, EngineError as
    `Upscaler.enlarge` does, and OSError as `atomic` does.
    """
    start = time.perf_counter()
    source, target = Path(source), Path(target)
    check(source, target)
    with Clip(source, say) as clip, atomic(target) as temporary:
        encoder = choose(clip, target, codec, crf)
        with Film(clip, temporary, target, encoder, crf, upscaler.scale, say) as film:
            for done in _pass(clip, film, upscaler):
                progress(done, clip.count)
            film.finish(clip.rest)
        return EnlargedVideo(clip.frames, clip.look.size, film.size, encoder, time.perf_counter() - start)


def _pass(clip: Clip, film: Film, upscaler: Upscaler) -> Iterator[int]:
    """Every part from the clip through the model to the film; yields how many frames are done."""
    from ribsr.base.pictures import Picture

    tile: Size | None = None

    def enlarge(part: Part) -> Part:
        return replace(part, pixels=upscaler.enlarge(Picture(part.pixels), tile=tile).pixels)

    def cut_alike(parts: Iterable[Part]) -> Iterator[Part]:
        nonlocal tile
        for part in parts:
            tile = tile or upscaler.tile_for(part.pixels)
            yield part

    parts = iter(clip)
    pools = reader, makers, writer = ThreadPoolExecutor(1), ThreadPoolExecutor(MAKERS), ThreadPoolExecutor(1)
    try:
        read = _ahead(reader, lambda _: next(parts, None), itertools.repeat(None), AHEAD)
        given = (part for part in itertools.takewhile(bool, read) if part)
        made = _ahead(makers, enlarge, cut_alike(given), MAKERS)
        for done, _ in enumerate(_ahead(writer, film.write, made, BEHIND), 1):
            yield done
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)


def _ahead(pool: Executor, work: Callable[[T], R], items: Iterable[T], count: int) -> Iterator[R]:
    """work(item) of all items, in order, while `count` later ones are under way."""
    under_way: deque[Future[R]] = deque()
    for item in items:
        under_way.append(pool.submit(work, item))
        if len(under_way) > count:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()
