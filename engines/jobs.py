"""What `python -m engines.upscale` is to do: which pictures of IN, and where what is made of each goes.

All that can be known before a model is opened, which takes long, is said here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from engines.base import EngineError

if TYPE_CHECKING:
    from PIL.Image import Image

Job = tuple[Path, Path]
"""A picture, and where what is made of it goes."""

MOST_NAMED = 5
"""Files of a kind that are named where they are left out; the others are counted."""


def find_jobs(source: Path, target: Path, model: Path) -> list[Job]:
    """Of a picture, or of those of a folder, by name. A picture goes into a folder under its own name.

    Raises EngineError, PictureError or OSError if there is none, or OUT does not suit, or is IN or the model's file.
    """
    from ribsr.base.files import check_folder
    from ribsr.base.pictures import SUFFIXES, check_output, check_source, pictures_in

    if source.is_dir():
        if target.exists() and not target.is_dir():
            raise EngineError(f"{target}: IN is a folder, so OUT has to be one, too; give another name")
        if not target.parent.is_dir():
            raise EngineError(f"{target}: there is no folder {target.parent}")
        jobs = [(path, target / path.name) for path in pictures_in(source)]
        if not jobs:
            others = f"; {found}" if (found := left_out(source)) else ""
            raise EngineError(f"{source}: has no pictures ({', '.join(SUFFIXES)}); subfolders are not searched{others}")
        check_folder(target if target.is_dir() else target.parent)
    else:
        check_source(source)
        jobs = [(source, target / source.name if target.is_dir() else target)]
        check_output(jobs[0][1])
    for picture, enlarged in jobs:
        for name, path in (("IN", picture), ("MODEL", model)):
            if enlarged.exists() and path.exists() and enlarged.samefile(path):
                raise EngineError(f"{enlarged}: OUT is the same file as {name}; give another name")
    return jobs


def left_out(folder: Path) -> str | None:
    """What of a folder is not enlarged, counted and named; None if nothing is. Hidden files are not spoken of."""
    from ribsr.base.pictures import SUFFIXES

    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    folders = [f"{path.name}/" for path in entries if path.is_dir()]
    files = [path for path in entries if not path.is_dir() and path.suffix.lower() not in SUFFIXES]
    kinds = (
        ("of other kinds", [path.name for path in files if path.suffix]),
        ("without a suffix", [path.name for path in files if not path.suffix]),
        ("subfolder" if len(folders) == 1 else "subfolders", folders),
    )
    told = [f"{len(names)} {kind} ({_named(names)})" for kind, names in kinds if names]
    return f"left out: {', '.join(told)}" if told else None


def _named(names: list[str]) -> str:
    return ", ".join([*names[:MOST_NAMED], *(["…"] if len(names) > MOST_NAMED else [])])


def unfinished(jobs: Iterable[Job]) -> list[Job]:
    """Those whose result is not there yet, as a whole picture."""
    from PIL import Image

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # what was enlarged may well be large
    try:
        return [job for job in jobs if not (job[1].is_file() and _is_whole(job[1]))]
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _is_whole(path: Path) -> bool:
    """Whether a picture can be read to its end: PNGs by their checksums, JPEGs at an eighth of their size."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            _read_through(image)
    except Exception:  # noqa: BLE001 (what Pillow's decoders raise for damaged files is of nearly any type)
        return False
    return True


def _read_through(image: Image) -> None:
    if image.format == "PNG":
        image.verify()
    else:
        image.draft(image.mode, (1, 1))
        image.load()
