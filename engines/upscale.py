"""`python -m engines.upscale MODEL IN... OUT`: pictures, folders of them, and videos, enlarged."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import click

from engines import video
from engines.base import PRECISIONS, Description, Engine, EngineError
from engines.jobs import MOST_NAMED, Job, JobList, find_jobs, is_video, unfinished
from engines.memory import GIB, keep_heap_small
from engines.options import engine_options, memory_option, picture_options, tile_option, video_options
from engines.pipeline import EnlargedPicture, enlarge_all, room
from engines.tiles import Tiled
from engines.upscaler import Upscaler
from ribsr.base.command import Command, echo, message, report
from ribsr.base.progress import Progress
from ribsr.base.sizes import Size

Outcome = tuple[Job, "Future[EnlargedPicture] | Future[video.EnlargedVideo]"]
"""What became of a picture or a video."""


@click.command(cls=Command)
@click.argument("model_file", metavar="MODEL")
@click.argument("sources", metavar="IN...", nargs=-1, required=True)
@click.argument("target", metavar="OUT")
@engine_options
@tile_option
@memory_option
@click.option("--precision", type=click.Choice(PRECISIONS), help="Of checkpoints; bf16 of float32 .onnx files on CPUs.")
@click.option("-r", "--recursive", is_flag=True, help="Folders with all folders in them, whose structure is kept.")
@click.option("--skip-existing", is_flag=True, help="Go on with a folder: leave out what is there, and whole.")
@picture_options
@video_options
def main(
    model_file: str,
    sources: tuple[str, ...],
    target: str,
    tile: Size | None,
    memory: float | None,
    recursive: bool,
    skip_existing: bool,
    suffix: str | None,
    quality: int | None,
    max_pixels: int | None,
    codec: str | None,
    crf: int | None,
    **options: Any,
) -> None:
    """Enlarges pictures with MODEL (.onnx, .plan, or a checkpoint for PyTorch): the file IN becomes OUT.

    The suffix of OUT chooses its format; if OUT is a folder, the picture goes there under its name. An existing OUT is
    replaced, unless it is IN or MODEL. A picture that MODEL does not take whole, for its size or for want of memory, is
    cut into tiles, and a note says so: into the best for which there is memory, unless --tile names others.

    Several IN, folders, and patterns such as 'photos/*.png' go to the folder OUT, which is made if need be: every
    picture under its own name. Those that fail are reported, and the others go on. Hidden files are no pictures; what
    else of a folder is left out is named.

    Videos (.mp4, .mkv, ...) become videos, frame by frame; in folders they are left out.
    """
    from engines import open_engine

    todo = find_jobs(sources, target, Path(model_file), recursive=recursive, suffix=suffix, quality=quality)
    _check_options(todo, {"format": suffix, "max-pixels": max_pixels}, {"codec": codec, "crf": crf})
    video.check_choice(codec, crf)
    for note in todo.notes:
        _note(note)
    jobs = todo.jobs
    if skip_existing:
        jobs = unfinished(jobs)
        _note(f"{len(todo.jobs) - len(jobs)} of {len(todo.jobs)} are there already")
        if not jobs:
            return
    allowed = None if memory is None else round(memory * GIB)
    with Progress(f"opening {model_file}") as progress, open_engine(model_file, **options) as engine:
        note_above, description = progress.aside(_note), engine.describe()
        for note in description.notes:
            note_above(note)
        _make_ready(todo, jobs, engine, tile)
        upscaler = Upscaler(engine, tile=tile, memory=allowed, say=note_above)
        if not description.on_gpu:
            keep_heap_small()
        of_pictures = [job for job in jobs if not is_video(job.source)]
        progress.phase("enlarging", len(of_pictures) if len(of_pictures) > 1 else None)
        pictures = enlarge_all(
            of_pictures,
            upscaler,
            quality=quality,
            max_pixels=max_pixels,
            most=room(allowed),
            advance=progress.reach if len(of_pictures) == 1 else lambda done, count: None,
        )
        videos = _videos(jobs, upscaler, codec, crf, progress)
        failed = _tell(pictures, todo.one, progress) + _tell(videos, todo.one, progress)
    _summarise(description, upscaler.seconds, len(jobs), failed, todo.one)


def _check_options(todo: JobList, of_pictures: dict[str, Any], of_videos: dict[str, Any]) -> None:
    """Raises what makes videos impossible from the start, and what is asked for a kind of which there are none."""
    videos = [job for job in todo.jobs if is_video(job.source)]
    for name, value in of_videos.items():
        if value is not None and not videos:
            raise EngineError(f"--{name} is for videos ({', '.join(video.SUFFIXES)}), and IN holds none")
    for name, value in of_pictures.items():
        if value is not None and len(videos) == len(todo.jobs):
            raise EngineError(f"--{name} is for pictures, and IN holds videos alone")
    if videos and todo.one and (todo.folder is None or todo.folder.is_dir()):  # else it is to be made
        video.check(*videos[0])


def _note(line: str) -> None:
    echo(f"Note: {line}", err=True)


def _make_ready(todo: JobList, jobs: Iterable[Job], engine: Engine, tile: Size | None) -> None:
    """Makes the folders. Raises EngineError for tiles that cut nothing, which would fail for every picture."""
    if tile is not None and not todo.one:
        Tiled(engine, tile).spans(Size(tile.height + 1, tile.width + 1))
    if todo.folder is not None:
        for folder in dict.fromkeys(job.target.parent for job in jobs):
            folder.mkdir(parents=True, exist_ok=True)


def _videos(
    jobs: Iterable[Job], upscaler: Upscaler, codec: str | None, crf: int | None, progress: Progress
) -> Iterator[Outcome]:
    """One after the other, as `enlarge_all` does pictures."""
    for job in jobs:
        if not is_video(job.source):
            continue
        outcome: Future[video.EnlargedVideo] = Future()
        try:
            say, told = progress.aside(_note), _frames(job, progress)
            made = video.enlarge_video(upscaler, *job, codec=codec, crf=crf, say=say, progress=told)
            outcome.set_result(made)
        except Exception as error:  # noqa: BLE001
            outcome.set_exception(error)
        yield job, outcome


def _frames(job: Job, progress: Progress) -> Callable[[int, int | None], None]:
    """Begins the video's phase; returns what is told of its frames."""
    progress.phase(job.source.name)
    start = time.perf_counter()

    def show(done: int, count: int | None) -> None:
        rate = done / max(time.perf_counter() - start, 1e-3)
        of_all = "" if count is None else f" of {count}"
        progress.reach(done, count, f"{job.source.name}: {done}{of_all} frames, {rate:.1f}/s")

    return show


def _tell(outcomes: Iterable[Outcome], one: bool, progress: Progress) -> list[Job]:
    """Says what becomes of each, and at the end what is not carried over. Returns those that failed; raises the error
    of the one that there is."""
    failed: list[Job] = []
    dropped: Counter[str] = Counter()
    for job, outcome in outcomes:
        if (error := outcome.exception()) is None:
            done = outcome.result()
            frames = f", {done.frames} frames, {done.encoder}" if isinstance(done, video.EnlargedVideo) else ""
            progress.aside(echo)(f"{job.source} {done.before} → {job.target} {done.after}{frames}")
            dropped.update(set(done.dropped) if isinstance(done, EnlargedPicture) else ())
        elif one or not isinstance(error, Exception):
            raise error
        else:
            failed.append(job)
            line = message(error)  # that of a runtime names the model's file alone
            own = line.startswith((f"{job.source}: ", f"{job.target}: "))
            progress.aside(partial(report, error))(line if own else f"{job.source}: {line}")
        if not one:
            progress.advance()
    if dropped:
        progress.aside(_note)(
            "not carried over: " + ", ".join(what if one else f"{what} ({dropped[what]}x)" for what in sorted(dropped))
        )
    return failed


def _summarise(description: Description, seconds: float, count: int, failed: Sequence[Job], one: bool) -> None:
    """The last line. Raises EngineError if anything failed."""
    of_all = "" if one else f" for {count} {'picture' if count == 1 else 'pictures'}"
    echo(
        f"{description.model} x{description.scale} {description.precision}, {description.runtime} "
        f"{description.runtime_version} on {description.device}, {seconds:.2f} s{of_all}"
    )
    if failed:
        names = [job.source.name for job in failed[:MOST_NAMED]] + (["…"] if len(failed) > MOST_NAMED else [])
        raise EngineError(f"{count - len(failed)} of {count} enlarged, {len(failed)} failed: {', '.join(names)}")


if __name__ == "__main__":
    main(prog_name="python -m engines.upscale")
