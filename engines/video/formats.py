"""What can be read and written: containers by their suffix, encoders, and what is refused before a video is opened."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.base import NotInstalled
from ribsr.base.errors import RibsrError
from ribsr.base.files import check_target, no_file
from ribsr.base.installation import pip_install

if TYPE_CHECKING:
    from engines.video.clip import Clip


SUFFIXES: Mapping[str, str] = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
"""Files that can be written, in lower case → FFmpeg's name of the container that is written."""

READABLE = (*SUFFIXES, ".avi", ".flv", ".ts", ".m2ts", ".mts")
"""Files that are taken for videos where they are named, in lower case."""

RELEASES = (18, 1), (19,)
"""Of PyAV: from the first that tells whether a video is interlaced to before 19, whose `open` does not take
`metadata_errors`."""


@dataclass(frozen=True)
class Encoder:
    """codec: what it writes, as FFmpeg calls it. crf: its constant quality, and the highest (worst) that it takes;
    None: it is lossless. even: it takes no odd sides where chroma is halved. options: FFmpeg's."""

    codec: str
    crf: tuple[int, int] | None
    even: bool
    options: Mapping[str, str]


ENCODERS: Mapping[str, Encoder] = {
    "libx264": Encoder("h264", (17, 51), True, {}),
    "libx265": Encoder("hevc", (19, 51), True, {"x265-params": "log-level=none"}),
    "libvpx-vp9": Encoder("vp9", (22, 63), False, {"row-mt": "1", "cpu-used": "2"}),
    "libsvtav1": Encoder("av1", (22, 63), True, {"preset": "8"}),
    "ffv1": Encoder("ffv1", None, False, {"level": "3"}),
}
"""By the names that FFmpeg has for them. Each quality is one at which losses are hard to see."""


class VideoError(RibsrError, RuntimeError):
    """A video that cannot be read, enlarged or written."""


def check(source: Path, target: Path) -> None:
    """Raises NotInstalled without PyAV, and VideoError where there is no video to read or it cannot be written."""
    needed = "videos need PyAV 18.1 to 18.x, for Python 3.11 or later"
    try:
        import av
    except ImportError:
        raise NotInstalled(f"{needed}: {pip_install('video')}") from None
    first, beyond = RELEASES
    if not first <= tuple(map(int, av.__version__.split(".")[:2])) < beyond:
        raise NotInstalled(f"{needed}, and this is PyAV {av.__version__}: {pip_install('video')}")
    if reason := no_file(source, "a video"):
        raise VideoError(f"{source}: {reason}")
    if target.suffix.lower() not in SUFFIXES:
        raise VideoError(f"{target}: cannot write videos of this kind; choose one of {', '.join(SUFFIXES)}")
    if target.exists() and target.samefile(source):
        raise VideoError(f"{target}: is the video itself; name another file")
    try:
        check_target(target)
    except OSError as error:
        raise VideoError(str(error)) from None


def choose(clip: Clip, target: Path, codec: str | None, crf: int | None) -> str:
    """The encoder: one that is there and takes the clip's pixels. Raises VideoError where none does."""
    from av.codec import Codec

    os.environ.setdefault("SVT_LOG", "0")  # SVT-AV1 tells all its settings on stderr otherwise
    there = {name: kind for name, kind in ENCODERS.items() if _is_there(name)}
    listed = ", ".join(f"{kind.codec} ({name})" for name, kind in there.items())
    wanted = codec or clip.codec
    name = next((name for name, kind in there.items() if wanted in (name, kind.codec)), None)
    if name is None:
        advice = "choose another with --codec" if codec is None else "choose one of them"
        raise VideoError(f"{target}: there is no encoder for {wanted}; {advice}: {listed}")
    taken = [pixels.name for pixels in Codec(name, "w").video_formats or ()]
    if clip.look.pixels not in taken:
        others = [name for name in there if clip.look.pixels in (f.name for f in Codec(name, "w").video_formats or ())]
        raise VideoError(
            f"{target}: {name} does not take {clip.look.pixels}, which {clip.path} has; "
            f"choose with --codec: {', '.join(others) or 'none here does, so convert the video first'}"
        )
    _check_crf(name, crf)
    return name


def check_choice(codec: str | None, crf: int | None) -> None:
    """Raises VideoError for what no video allows, before one is opened."""
    kinds = {name: kind for name, kind in ENCODERS.items() if codec in (None, name, kind.codec)}
    if not kinds:
        listed = ", ".join(f"{kind.codec} ({name})" for name, kind in ENCODERS.items())
        raise VideoError(f"--codec: there is no encoder for {codec}; choose one of {listed}")
    _check_crf(max(kinds, key=lambda name: kinds[name].crf or (0, 0)), crf)


def _check_crf(name: str, crf: int | None) -> None:
    best = ENCODERS[name].crf
    if crf is not None and (best is None or not 0 <= crf <= best[1]):
        raise VideoError(f"--crf: {name} {'is lossless and takes none' if best is None else f'takes 0 to {best[1]}'}")


def _is_there(name: str) -> bool:
    from av.codec import Codec
    from av.codec.codec import UnknownCodecError

    try:
        return Codec(name, "w").is_encoder
    except UnknownCodecError:
        return False
