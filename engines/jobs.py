"""What `python -m engines.upscale` is to do: which pictures of IN…, and where what is made of each goes.

All that can be known before a model is opened, which takes long, is said here.
"""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from engines.base import EngineError

MOST_NAMED = 5
"""Files of a kind that are named where they are left out; the others are counted."""

SIDECAR = "._"
"""How the names of files begin in which macOS keeps attributes where file systems have none: `._photo.png`."""


class Job(NamedTuple):
    """A picture or a video, and where what is made of it goes."""

    source: Path
    target: Path


@dataclass(frozen=True)
class JobList:
    """What is to be done.

    jobs: in the order in which they were given, those of a folder by name. folder: OUT, if results go into it under
    names of their own, and not to OUT itself. one: a single file was named, no folder and no pattern. notes: what is
    left out.
    """

    jobs: list[Job]
    folder: Path | None
    one: bool
    notes: tuple[str, ...] = ()


def find_jobs(
    sources: Sequence[str],
    target: str,
    model: Path,
    *,
    recursive: bool = False,
    suffix: str | None = None,
    quality: int | None = None,
) -> JobList:
    """What IN… and OUT of a command line mean.

    sources: files, folders, and patterns, which not every shell expands. recursive: folders with those in them, whose
    structure is kept. suffix: of all results in a folder, such as `.png`; None: that of each picture. quality: for
    formats that have one.

    Raises EngineError, PictureError or OSError if there is nothing to do, or OUT does not suit: no file can be written
    there, it is IN or the model's file, or the same for two pictures.
    """
    from ribsr.base.pictures import WITH_QUALITY, check_output

    if not all((target, *sources)):
        raise EngineError("the name of IN or OUT is empty; for the folder that you are in, write .")
    out = Path(target)
    given = _given(sources, out)
    one = len(sources) == 1 and given == [Path(sources[0])] and not given[0].is_dir()
    if one and not out.is_dir() and not target.endswith(("/", os.sep)):
        if suffix is not None:
            raise EngineError(f"{out}: is one result, whose format its suffix chooses; --format is for folders")
        plan = JobList([Job(given[0], out)], None, one)
    else:
        _check_folder(out, given)
        plan = _into_folder(given, out, one, recursive, suffix)
    _check_targets(plan.jobs, model)
    pictures = [job for job in plan.jobs if not is_video(job.source)]
    if quality is not None and not any(takes_quality(job.target) for job in pictures):
        raise EngineError(f"{out}: --quality is for {', '.join(sorted(WITH_QUALITY))}, and no result is such a picture")
    if one and pictures:
        place = pictures[0].target
        check_output(place if place.parent.is_dir() else out.parent / place.name, quality=quality)
    return plan


def _given(sources: Sequence[str], out: Path) -> list[Path]:
    """The files and folders that are named, each once. What a pattern finds of OUT are results, and left out."""
    from ribsr.base.pictures import PictureError, check_source

    found: dict[tuple[Path, str], Path] = {}
    missing: list[str] = []
    for text in sources:
        paths = [Path(text)]
        if glob.has_magic(text) and not os.path.exists(text):
            paths = _matches(text, out)
        elif not paths[0].is_dir():
            try:
                check_source(paths[0])
            except PictureError as error:
                missing.append(str(error))
        for path in paths:
            found.setdefault((_real(path), path.name), path)  # `**` meets a file again through links to folders
    if missing:
        more = [f"and {len(missing) - MOST_NAMED} more"] if len(missing) > MOST_NAMED else []
        raise PictureError("; ".join([*missing[:MOST_NAMED], *more]))
    return list(found.values())


def _matches(pattern: str, out: Path) -> list[Path]:
    """What a pattern finds; without what is in OUT, where that is a folder below the one that is searched."""
    found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    if not found:
        raise EngineError(f"{pattern}: no file has such a name")
    searched = _real(Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts)))
    results = _real(out)
    if searched in results.parents:
        found = [path for path in found if not _real(path).is_relative_to(results)]
    if not found:
        raise EngineError(f"{pattern}: finds only files in {out}, which are taken for results; name another OUT")
    return found


def _real(path: Path) -> Path:
    """Through symbolic links; `Path.resolve` raises an error, until Python 3.12, for those that lead in circles."""
    return Path(os.path.realpath(path))


def _check_folder(out: Path, given: Iterable[Path]) -> None:
    """Raises EngineError or OSError unless OUT is, or can become, a folder for results, and is none of IN…."""
    from ribsr.base.files import check_folder

    if out.exists() and not out.is_dir():
        raise EngineError(f"{out}: IN is a folder or several files, so OUT has to be a folder; give another name")
    if out.is_symlink() and not out.exists():
        raise EngineError(f"{out}: is a link that leads nowhere, and has to be a folder; give another name")
    if not out.parent.is_dir():
        raise EngineError(f"{out}: there is no folder {out.parent}")
    if any(path.is_dir() and _real(path) == _real(out) for path in given):
        raise EngineError(f"{out}: OUT is the same folder as IN; give another name")
    check_folder(out if out.is_dir() else out.parent)


def _into_folder(given: Sequence[Path], out: Path, one: bool, recursive: bool, suffix: str | None) -> JobList:
    from ribsr.base.pictures import SUFFIXES, WRITABLE

    if suffix is not None and suffix not in WRITABLE:
        raise EngineError(f"--format {suffix}: cannot write pictures of this kind; choose one of {', '.join(WRITABLE)}")

    def result(path: Path) -> Path:
        bitmap = path.suffix.lower() == ".pbm"  # what is enlarged is gray
        kind = ".pgm" if suffix is None and bitmap else suffix
        return out / (path if kind is None else path.with_suffix(kind))

    jobs: list[Job] = []
    notes: list[str] = []
    for path in given:
        if not path.is_dir():
            jobs.append(Job(path, out / _video_name(path) if is_video(path) else result(Path(path.name))))
            continue
        entries = list(_entries(path, recursive, _real(out)))
        pictures = [entry for entry in entries if _is_picture(entry)]
        jobs += [Job(picture, result(picture.relative_to(path))) for picture in pictures]
        others = _left_out(path, entries)
        if not pictures:
            hint = "" if recursive else "; subfolders are searched with --recursive"
            none = f"has no pictures ({', '.join(SUFFIXES)}){hint}"
            others = f"{none}; {others}" if others else none
        if others:
            notes.append(f"{path}: {others}")
    if not jobs:
        raise EngineError("; ".join(notes))
    return JobList(jobs, out, one, tuple(notes))


def _entries(folder: Path, recursive: bool, results: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """What is in a folder, by name, and in those in it, which linked ones are as well, but not in circles; results'
    folder is left out. Folders that are not entered are told, hidden files are not, but for sidecars."""
    real = _real(folder)
    if real == results or real in above:
        return
    try:
        entries = sorted(folder.iterdir())
    except PermissionError:
        if not above:
            raise
        yield folder
        return
    for entry in entries:
        if recursive and entry.is_dir() and not entry.name.startswith("."):
            yield from _entries(entry, recursive, results, (*above, real))
        elif not entry.name.startswith(".") or entry.name.startswith(SIDECAR):
            yield entry


def _is_picture(path: Path) -> bool:
    """By its name. A link that leads nowhere is one, too, which cannot be read; a pipe is none, which would wait."""
    from ribsr.base.pictures import SUFFIXES

    named = path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    return named and (path.is_file() or not path.exists())


def _left_out(folder: Path, entries: Iterable[Path]) -> str | None:
    """What of a folder's entries is not enlarged, counted and named; None if nothing is."""
    left = [entry for entry in entries if not _is_picture(entry)]
    sidecars = [path for path in left if path.name.startswith(SIDECAR)]
    folders = [path for path in left if path.is_dir() and path not in sidecars]
    files = [path for path in left if path not in sidecars and path not in folders]
    kinds = (
        ("of other kinds", [path for path in files if path.suffix]),
        ("without a suffix", [path for path in files if not path.suffix]),
        ("subfolder" if len(folders) == 1 else "subfolders", folders),
        ("sidecar" if len(sidecars) == 1 else "sidecars", sidecars),
    )
    told = [f"{len(paths)} {kind} ({_names(folder, paths)})" for kind, paths in kinds if paths]
    return f"left out: {', '.join(told)}" if told else None


def _names(folder: Path, paths: Sequence[Path]) -> str:
    names = [f"{path.relative_to(folder)}{'/' if path.is_dir() else ''}" for path in paths[:MOST_NAMED]]
    return ", ".join([*names, *(["…"] if len(paths) > MOST_NAMED else [])])


def _check_targets(jobs: Sequence[Job], model: Path) -> None:
    """Raises EngineError where a result would take the place of what is read, or of another result."""
    read = {_identity(model): "MODEL", **{_identity(job.source): f"IN {job.source}" for job in jobs}}
    made: dict[Path, Path] = {}
    for source, target in jobs:
        if (other := made.setdefault(target, source)) != source:
            raise _of_two(other, source, target)
        if (place := _identity(target)) is not None and place in read:
            named = "IN" if place == _identity(source) else read[place]
            raise EngineError(f"{target}: OUT is the same file as {named}; give another name")
        if target.parent.exists() and not target.parent.is_dir():
            raise EngineError(f"{target.parent}: is a file, and would have to be a folder; give another OUT")
    _check_case(jobs)


def _check_case(jobs: Sequence[Job]) -> None:
    """As `_check_targets`, of names that differ in case only, where the file system makes no difference."""
    made: dict[str, Job] = {}
    for job in jobs:
        other = made.setdefault(str(job.target).casefold(), job)
        if other is not job and _ignores_case(job.target.parent):
            raise _of_two(other.source, *job)


def _ignores_case(folder: Path) -> bool:
    from ribsr.base.files import temporary_folder

    while not folder.is_dir():
        folder = folder.parent
    with temporary_folder(folder) as made:
        return made.with_name(made.name.swapcase()).exists()


def _of_two(first: Path, second: Path, target: Path) -> EngineError:
    return EngineError(f"{first} and {second} would both become {target}; rename one, or give each an OUT of its own")


def _identity(path: Path) -> tuple[int, int] | None:
    """What a file is, whatever it is called; None where there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def is_video(path: Path) -> bool:
    """By its name."""
    from engines.video import READABLE

    return path.suffix.lower() in READABLE


def _video_name(path: Path) -> str:
    """What becomes of a video in a folder; Matroska holds what containers hold that are only read, such as AVI."""
    from engines.video import SUFFIXES

    return path.name if path.suffix.lower() in SUFFIXES else f"{path.stem}.mkv"


def takes_quality(path: Path) -> bool:
    """Whether a picture's format has a quality to choose."""
    from ribsr.base.pictures import WITH_QUALITY

    return path.suffix.lower() in WITH_QUALITY


def unfinished(jobs: Iterable[Job]) -> list[Job]:
    """Those whose result is not there yet, as a whole picture."""
    return [job for job in jobs if not (job.target.is_file() and _is_whole(job.target))]


def _is_whole(path: Path) -> bool:
    """Whether a picture can be read to its end. Videos are written whole or not at all."""
    from ribsr.base.pictures import PictureError, read_picture
    from ribsr.base.sizes import UNLIMITED

    if is_video(path):
        return True
    try:
        read_picture(path, max_pixels=UNLIMITED**2)  # what was enlarged may well be large
    except (PictureError, OSError, MemoryError):
        return False
    return True
