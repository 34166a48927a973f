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
import math
import os
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from engines.base import NotInstalled
from ribsr.base.errors import RibsrError, first_line
from ribsr.base.files import atomic, check_target, no_file
from ribsr.base.installation import pip_install
from ribsr.base.sizes import Size

if TYPE_CHECKING:
    import numpy as np
    from av import Packet, VideoFrame

    from engines.upscaler import Upscaler

T = TypeVar("T")
R = TypeVar("R")

SUFFIXES: Mapping[str, str] = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
"""Files that can be written, in lower case → FFmpeg's name of the container that is written."""

READABLE = (*SUFFIXES, ".avi", ".flv", ".ts", ".m2ts", ".mts")
"""Files that are taken for videos where they are named, in lower case."""

RELEASES = (18, 1), (19,)
"""Of PyAV: from the first that tells whether a video is interlaced to before 19, whose `open` does not take
`metadata_errors`."""

AHEAD = 3
"""Frames that are read before their turn."""

MAKERS = 2
"""Frames that are with the model. It runs for one at a time; the other becomes its input, or pixels, meanwhile."""

BEHIND = 2
"""Enlarged frames that wait to be written. What the encoder looks ahead at comes on top."""


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

_MATRICES = {1: "ITU709", 4: "FCC", 5: "ITU601", 6: "ITU601", 7: "SMPTE240M", 9: "BT2020"}
"""H.273's number of a matrix → PyAV's name of it. Those left out are not linear, or not in the scaler."""

_RGB, _UNSPECIFIED, _BT709, _BT601 = 0, 2, 1, 6
"""H.273's numbers of no matrix, of one that is not told, and of the two that are taken then."""

_LIMITED, _FULL = 1, 2
"""FFmpeg's numbers of colour ranges."""

_LOST = {
    "A53_CC": "closed captions",
    "DOVI_RPU_BUFFER": "Dolby Vision metadata",
    "DOVI_METADATA": "Dolby Vision metadata",
    "DYNAMIC_HDR_PLUS": "HDR10+ metadata",
    "DYNAMIC_HDR_VIVID": "HDR Vivid metadata",
    "SPHERICAL": "the mark of a spherical video",
    "STEREO3D": "the mark of a stereoscopic video",
    "ICC_PROFILE": "the colour profile",
    "S12M_TIMECODE": "time codes",
}
"""What frames have beside them that cannot be carried over with PyAV → how it is called."""

_HDR = {
    "libx264": ("x264-params", "mastering-display", "cll", 50_000, 10_000),
    "libx265": ("x265-params", "master-display", "max-cll", 50_000, 10_000),
    "libsvtav1": ("svtav1-params", "mastering-display", "content-light", 1, 1),
}
"""Encoder → the option for its own parameters, what they call the mastering display and the light level, and what they
multiply chromaticities and luminances with."""

_READING = {"format_whitelist": "mov,matroska,mpegts,avi,flv", "protocol_whitelist": "file"}
"""What files are taken for, whatever their suffix: no playlists, which name other files and servers."""

_ONE_A_PACKET = ("h264", "hevc", "vp9", "av1", "ffv1")
"""Codecs of which every packet has just one frame that is shown."""

_OWN = ("encoder", "duration", "major_brand", "minor_version", "compatible_brands", "bps", "number_of_", "_statistics")
"""How metadata begin that describe the old file, not the video."""


class VideoError(RibsrError, RuntimeError):
    """A video that cannot be read, enlarged or written."""


@dataclass(frozen=True)
class Enlarged:
    """What became of a video. seconds: that all of it took."""

    frames: int
    before: Size
    after: Size
    encoder: str
    seconds: float


@dataclass(frozen=True)
class Look:
    """What all frames of a video have in common. pixels: FFmpeg's name of the pixel format. The rest are H.273's
    numbers, and FFmpeg's of the range; what the file does not tell is replaced by what players assume."""

    size: Size
    pixels: str
    deep: bool
    matrix: int
    range: int
    primaries: int
    transfer: int

    @classmethod
    def of(cls, frame: VideoFrame) -> Look:
        size, matrix, full = Size(frame.height, frame.width), frame.colorspace, frame.color_range == _FULL
        if frame.format.is_rgb:
            matrix, full = _RGB, True
        elif matrix == _UNSPECIFIED and len(frame.format.components) > 1:
            matrix = _BT709 if size.height > 576 or size.width >= 1280 else _BT601
        name = frame.format.name
        if name.startswith("yuvj"):  # an old way of saying full range
            name, full = f"yuv{name[4:]}", True
        deep = max(component.bits for component in frame.format.components) > 8
        range_ = _FULL if full else _LIMITED
        return cls(size, name, deep, matrix, range_, frame.color_primaries, frame.color_trc)


@dataclass(frozen=True)
class Part:
    """A frame, and the packets of streams that are copied which come before it. pixels: RGB [H, W, 3], uint8 or uint16.
    pts, duration: when it is shown and how long, in the stream's time base."""

    packets: list[Packet]
    pixels: np.ndarray
    pts: int
    duration: int


def enlarge_video(
    upscaler: Upscaler,
    source: str | Path,
    target: str | Path,
    *,
    codec: str | None = None,
    crf: int | None = None,
    say: Callable[[str], object] = lambda note: None,
    progress: Callable[[int, int | None], object] = lambda done, count: None,
) -> Enlarged:
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
        encoder = _choose(clip, target, codec, crf)
        with Film(clip, temporary, target, encoder, crf, upscaler.scale, say) as film:
            for done in _pass(clip, film, upscaler):
                progress(done, clip.count)
            film.finish(clip.rest)
        return Enlarged(clip.frames, clip.look.size, film.size, encoder, time.perf_counter() - start)


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


def _choose(clip: Clip, target: Path, codec: str | None, crf: int | None) -> str:
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


class Clip:
    """A video that is read: its streams, and what its first frame says. A context manager; iterating gives its Parts.

    look: of all frames. count: how many there are, if the file says so; frames: how many have been read. first: the
    first frame. rest: packets of the streams that are copied, after the last. matrix: the display matrix, nine numbers,
    if it is to be turned. hdr: the first frame's mastering display and light level, as FFmpeg has them in memory.
    """

    def __init__(self, path: Path, say: Callable[[str], object]):
        import av
        from av.error import FFmpegError

        self.path, self._say = path, say
        try:
            self.container = av.open(f"file:{path}", "r", container_options=_READING, metadata_errors="replace")
        except (FFmpegError, OSError) as error:
            raise VideoError(f"{path}: not a video, or damaged ({_reason(error)})") from None
        try:
            self._open()
        except BaseException:
            self.container.close()
            raise

    def _open(self) -> None:
        streams = self.container.streams
        moving = [stream for stream in streams.video if not _is_cover(stream)]
        if len(moving) != 1:
            raise VideoError(f"{self.path}: has {len(moving) or 'no'} video streams; give a file with just one")
        self.video = moving[0]
        context = self.video.codec_context
        if context is None:
            raise VideoError(f"{self.path}: its codec is not known to this PyAV; convert the video first")
        context.thread_type = "AUTO"  # PyAV's own choice decodes most videos in one thread
        self.codec = context.codec.canonical_name
        self.rate = self.video.average_rate or self.video.guessed_rate or Fraction(25)
        seconds = (self.container.duration or 0) / 1_000_000
        self.count = self.video.frames or round(seconds * self.rate) or None
        self.frames = 0
        self._last: int | None = None
        self._said: set[str] = set()
        self._end = Fraction(0)
        self._due: set[int] = set()
        self.rest: list[Packet] = []
        self._decoded = self._decode()
        first = next(self._decoded, None)
        if first is None:
            raise VideoError(f"{self.path}: has no frames")
        self._decoded = itertools.chain([first], self._decoded)
        self.first = frame = first[1]
        self._check_kind(frame)
        self.look = Look.of(frame)
        self.matrix, self.hdr = _side_data(frame)
        if frame.colorspace != self.look.matrix and not frame.format.is_rgb:
            shown = "BT.709" if self.look.matrix == _BT709 else "BT.601"
            self._say(f"{self.path}: does not name its colour matrix; taken for {shown}, and marked so")

    def _check_kind(self, frame: VideoFrame) -> None:
        """Raises VideoError for a video of which something would be lost."""
        reason, colours = None, len(frame.format.components) > 1 and not frame.format.is_rgb
        if frame.interlaced_frame or self.video.codec_context.field_order > 1:
            reason = "is interlaced; deinterlace it first, as with ffmpeg -i IN -vf bwdif OUT"
        elif self.video.metadata.get("alpha_mode", "0") != "0" or any(c.is_alpha for c in frame.format.components):
            reason = "has an alpha channel, which is not supported yet; remove it first"
        elif colours and Look.of(frame).matrix not in _MATRICES:
            reason = f"has the colour matrix {frame.colorspace} of H.273, which is not supported; convert it to BT.709"
        if reason:
            raise VideoError(f"{self.path}: {reason}")

    def _decode(self) -> Iterator[tuple[list[Packet], VideoFrame]]:
        """Frames, with the packets of other streams that come before each. Raises VideoError where one is damaged."""
        from av.error import FFmpegError

        waiting: list[Packet] = []
        packets = self.container.demux()
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                self._note_end(packet)
                if packet.stream.index != self.video.index:  # `stream_index` is 0 in the marks of streams' ends
                    if packet.size or packet.dts is not None:  # else it is such a mark; a cover has no time
                        waiting.append(packet)
                    continue
                frames = [] if packet.is_corrupt else self.video.decode(packet)
            except (FFmpegError, OSError) as error:
                raise self._damaged(_reason(error)) from None
            if packet.is_corrupt:
                raise self._damaged("it is cut off there")
            if packet.pts is not None and not packet.is_discard and self.codec in _ONE_A_PACKET:
                self._due.add(packet.pts)
            for frame in frames:
                if frame.is_corrupt:
                    raise self._damaged("parts of it cannot be decoded")
                if frame.pts is not None:
                    self._check_lost(frame.pts)
                yield waiting, frame
                waiting = []
        self._check_lost(math.inf)
        self.rest = waiting

    def _check_lost(self, now: float) -> None:
        """Raises VideoError if a frame did not come that is to be shown between the last and the one of time `now`:
        decoders leave out what they cannot decode. Those before the first depend on what was cut off."""
        lost = {pts for pts in self._due if pts < now}
        self._due -= {*lost, now}
        if self._last is not None and any(pts > self._last for pts in lost):
            raise self._damaged("the decoder leaves it out")

    def _note_end(self, packet: Packet) -> None:
        if packet.pts is not None and packet.time_base:
            self._end = max(self._end, (packet.pts + (packet.duration or 0)) * packet.time_base)

    def _damaged(self, reason: str) -> VideoError:
        at = "" if self._last is None else f", after {float(self._last * self._time_base):.2f} s"
        return VideoError(f"{self.path}: frame {self.frames + 1} is damaged{at} ({reason}); repair or cut it first")

    @property
    def _time_base(self) -> Fraction:
        return self.video.time_base or Fraction(1, 1000)

    def __iter__(self) -> Iterator[Part]:
        scaler = Scaler(self.look)
        for packets, frame in self._decoded:
            self._check_frame(frame)
            self._tell_lost(frame)
            self.frames += 1
            yield Part(packets, scaler.to_rgb(frame).to_ndarray(), frame.pts or 0, frame.duration)
        self._check_end()

    def _check_frame(self, frame: VideoFrame) -> None:
        """Raises VideoError for a frame that does not go on from the last."""
        where = f"{self.path}: frame {self.frames + 1}"
        if frame.pts is None:
            raise VideoError(f"{where} has no time; write the video anew first, as with ffmpeg -i IN -c copy OUT")
        if self._last is not None and frame.pts <= self._last:
            raise VideoError(f"{where} is shown no later than the one before; write the video anew first")
        if frame.interlaced_frame:
            raise VideoError(f"{where} is interlaced; deinterlace the video first, as with ffmpeg -i IN -vf bwdif OUT")
        if (look := Look.of(frame)) != self.look:
            old, new = (f"{one.size} {one.pixels}" for one in (self.look, look))
            change = f"from {old} to {new}" if old != new else "its colours' meaning"
            raise VideoError(f"{where} changes {change}; cut the video there, and enlarge the parts")
        self._last = frame.pts

    def _tell_lost(self, frame: VideoFrame) -> None:
        side_data: Any = frame.side_data
        for data in side_data:
            what = _LOST.get(data.type.name)
            if what is not None and what not in self._said:
                self._said.add(what)
                self._say(f"{self.path}: {what} of its frames cannot be carried over, and is left out")

    def _check_end(self) -> None:
        """Raises VideoError if the file says that it is longer, by more than containers are wrong about it."""
        told = Fraction((self.container.start_time or 0) + (self.container.duration or 0), 1_000_000)
        if self._end + Fraction(1, 2) < told:
            raise VideoError(
                f"{self.path}: ends after {float(self._end):.1f} s of {float(told):.1f}, as if cut off; copy it again, "
                "or take what is there with ffmpeg -i IN -c copy OUT"
            )

    def __enter__(self) -> Clip:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()


class Scaler:
    """FFmpeg's scaler between a video's frames and RGB, for one thread."""

    def __init__(self, look: Look):
        from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

        self._scaler = VideoReformatter()
        self.rgb = "rgb48le" if look.deep else "rgb24"
        matrix = Colorspace[_MATRICES.get(look.matrix, "ITU709")]  # of RGB and gray, none is applied
        # Without these flags FFmpeg takes shortcuts: luma one level of 8 bits too dark, chroma of every second pixel.
        accurate = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
        self._options: Any = {
            "src_colorspace": matrix,
            "dst_colorspace": matrix,
            "interpolation": Interpolation.BICUBIC | accurate,
        }
        self._range = look.range

    def to_rgb(self, frame: VideoFrame, size: Size | None = None) -> VideoFrame:
        """The frame in RGB, uint8 or uint16, of full range; of another size if one is given."""
        height, width = size or (None, None)
        return self._scale(frame, self.rgb, self._range, _FULL, width=width, height=height)

    def from_rgb(self, frame: VideoFrame, pixels: str) -> VideoFrame:
        """A frame of RGB in the clip's matrix and range."""
        return self._scale(frame, pixels, _FULL, self._range)

    def reduce(self, frame: VideoFrame, pixels: str) -> VideoFrame:
        """A frame of the clip's matrix and range with less chroma or fewer bits."""
        return self._scale(frame, pixels, self._range, self._range)

    def _scale(self, frame: VideoFrame, pixels: str, before: int, after: int, **size: int | None) -> VideoFrame:
        ranges: Any = {"src_color_range": before, "dst_color_range": after}
        return self._scaler.reformat(frame, format=pixels, **size, **ranges, **self._options)


class Painter:
    """Makes frames of RGB arrays, with the look of a clip.

    Where a clip's chroma lies between its pixels, PyAV does not tell. Frames made of its frames know it, and the scaler
    minds it, but not on the way from RGB to reduced chroma at once. So one frame of RGB is made of the clip's first,
    for every array to be put into, and chroma is reduced in a step of its own.
    """

    def __init__(self, look: Look, first: VideoFrame, size: Size):
        from av import VideoFormat

        self._look = look
        self._whole, self._reduced = Scaler(look), Scaler(look)
        self._canvas = self._whole.to_rgb(_bare(first), size)
        form = VideoFormat(look.pixels, 64, 64)
        self._between = "yuv444p16le" if look.deep else "yuv444p"
        self._reduces = not form.is_rgb and (form.chroma_width(), form.chroma_height()) not in ((64, 64), (0, 0))

    def paint(self, pixels: np.ndarray) -> VideoFrame:
        """[H, W, 3], uint8 or uint16 → a frame as the encoder takes it, with no time."""
        import numpy as np

        plane: Any = self._canvas.planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        values = np.ascontiguousarray(pixels).view(np.uint8).reshape(plane.height, -1)
        rows[:, : values.shape[1]] = values
        if self._reduces:
            frame = self._reduced.reduce(self._whole.from_rgb(self._canvas, self._between), self._look.pixels)
        else:
            frame = self._whole.from_rgb(self._canvas, self._look.pixels)
        frame.colorspace, frame.color_range = self._look.matrix, self._look.range
        frame.color_primaries, frame.color_trc = self._look.primaries, self._look.transfer
        return frame


def _bare(frame: VideoFrame) -> VideoFrame:
    """The frame without what is beside it (captions), which is that frame's alone."""
    from av.filter import Graph

    graph = Graph()
    start = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
    )
    graph.link_nodes(start, graph.add("sidedata", "mode=delete"), graph.add("buffersink")).configure()
    graph.push(frame)
    return cast("VideoFrame", graph.pull())


class Film:
    """A video that is written: all that a clip has but its frames, which are given one by one. A context manager."""

    def __init__(
        self,
        clip: Clip,
        temporary: Path,
        target: Path,
        encoder: str,
        crf: int | None,
        scale: int,
        say: Callable[[str], object],
    ):
        import av
        from av.error import FFmpegError

        self._clip, self._target, self._say = clip, target, say
        self.size = clip.look.size.times(scale)
        self._painter = Painter(clip.look, clip.first, self.size)
        self._streams: dict[int, Any] = {}
        self._durations: dict[int, int] = {}
        self._check_size(encoder)
        kind = SUFFIXES[target.suffix.lower()]
        self._container = av.open(f"file:{temporary}", "w", format=kind)
        try:
            self._check_codec(encoder)
            self._video = self._add_video(encoder, crf, scale)
            self._add_others(kind)
            self._describe()
            self._container.start_encoding()
        except VideoError:
            self._abandon()
            raise
        except (FFmpegError, OSError, ValueError, OverflowError) as error:
            self._abandon()
            raise VideoError(f"{target}: {encoder} cannot be started for {self.size} ({_reason(error)})") from None

    def _check_codec(self, encoder: str) -> None:
        held = [kind.codec for name, kind in ENCODERS.items() if name in self._container.supported_codecs]
        if ENCODERS[encoder].codec not in held:
            raise VideoError(
                f"{self._target}: {self._target.suffix} files cannot hold {ENCODERS[encoder].codec}; "
                f"choose with --codec: {', '.join(held)}, or write .mkv"
            )

    def _check_size(self, encoder: str) -> None:
        from av import VideoFormat

        form = VideoFormat(self._clip.look.pixels, *reversed(self.size))
        halved = [
            side
            for side, reduced in ((form.width, form.chroma_width()), (form.height, form.chroma_height()))
            if reduced < side and side % 2
        ]
        if ENCODERS[encoder].even and halved:
            raise VideoError(
                f"{self._target}: {encoder} takes no odd sides of {self._clip.look.pixels}, and these are {self.size}; "
                "cut off a row or column first, or choose another with --codec"
            )

    def _add_video(self, encoder: str, crf: int | None, scale: int) -> Any:
        clip, look, kind = self._clip, self._clip.look, ENCODERS[encoder]
        hdr = _hdr_options(encoder, clip.hdr)
        options = dict(kind.options)
        for name, value in hdr.items():
            options[name] = ":".join(filter(None, (options.get(name), value)))
        if kind.crf is not None:
            options["crf"] = str(kind.crf[0] if crf is None else crf)
        stream: Any = self._container.add_stream(
            encoder, rate=clip.rate, options=options, time_base=clip.video.time_base
        )
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = self.size.width, self.size.height, look.pixels
        context.thread_type = "AUTO"  # PyAV's own choice has x264 cut every frame into slices
        context.colorspace, context.color_range = look.matrix, look.range
        context.color_primaries, context.color_trc = look.primaries, look.transfer
        if clip.video.sample_aspect_ratio:
            context.sample_aspect_ratio = clip.video.sample_aspect_ratio
        if kind.codec == "hevc" and self._container.format.name in ("mp4", "mov"):
            context.codec_tag = "hvc1"  # what Apple's players want to see; FFmpeg's own is hev1
        if clip.matrix is not None:
            *turn, x, y, w = clip.matrix
            stream.set_display_matrix((*turn, x * scale, y * scale, w))  # pixels that it is moved by
        if any(clip.hdr) and not hdr:
            self._say(f"{self._target}: {encoder} cannot be told the HDR mastering metadata, which are left out")
        self._tell_aspect(kind.codec)
        _copy_tags(clip.video, stream)
        return stream

    def _tell_aspect(self, codec: str) -> None:
        """H.264 and HEVC say the pixel aspect ratio themselves; PyAV cannot say it in Matroska's way."""
        ratio = self._clip.video.sample_aspect_ratio
        in_matroska = self._container.format.name in ("matroska", "webm")
        if ratio and ratio != 1 and in_matroska and codec not in ("h264", "hevc"):
            self._say(f"{self._target}: the pixel aspect ratio {ratio} cannot be kept in this kind of file; write .mp4")

    def _add_others(self, kind: str) -> None:
        """Streams that are copied as they are. Raises VideoError for one that the container cannot hold."""
        dropped, chapters = [], self._clip.container.chapters()
        for stream in self._clip.container.streams:
            if stream.index == self._clip.video.index:
                continue
            if stream.type == "data" and _codec(stream) == "bin_data" and chapters:
                continue  # these are the chapters, which come as such
            cover = _is_cover(stream) and kind not in ("mp4", "mov")
            unknown = stream.codec_context is None and stream.type != "attachment"
            if cover or unknown or stream.type == "data":
                dropped.append("a cover picture" if cover else f"a {stream.type} track ({_codec(stream)})")
                continue
            try:
                copy = self._container.add_stream_from_template(stream, opaque=True)
            except ValueError:
                advice = ".mkv" if self._clip.path.suffix.lower() == ".mkv" else f"{self._clip.path.suffix} or .mkv"
                raise VideoError(
                    f"{self._target}: cannot hold the {stream.type} stream {stream.index} ({_codec(stream)}) "
                    f"of {self._clip.path}; give OUT the suffix {advice}"
                ) from None
            _copy_tags(stream, copy)
            self._streams[stream.index] = copy
        for what in dict.fromkeys(dropped):
            self._say(f"{self._clip.path}: {what} is left out")

    def _describe(self) -> None:
        source = self._clip.container
        self._container.metadata.update(_kept(source.metadata))
        if chapters := source.chapters():
            self._container.set_chapters(chapters)

    def write(self, part: Part) -> None:
        """Raises VideoError where it cannot be written."""
        with self._telling():
            self._copy(part.packets)
            frame = self._painter.paint(part.pixels)
            frame.pts, frame.duration, frame.time_base = part.pts, part.duration, self._clip.video.time_base
            self._durations[part.pts] = part.duration
            self._encode(frame)

    def finish(self, packets: list[Packet]) -> None:
        """Writes what comes after the last frame, what the encoder holds back, and the end of the file."""
        with self._telling():
            self._copy(packets)
            self._encode(None)
            self._container.close()

    def _encode(self, frame: VideoFrame | None) -> None:
        for packet in self._video.encode(frame):
            # FFmpeg guesses durations by the rate, and has no flag against it that SVT-AV1 minds.
            packet.duration = self._durations.pop(packet.pts, packet.duration)
            self._container.mux(packet)

    def _copy(self, packets: list[Packet]) -> None:
        for packet in packets:
            if (copy := self._streams.get(packet.stream.index)) is not None:
                packet.stream = copy
                self._container.mux(packet)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        from av.error import FFmpegError

        try:
            yield
        except (FFmpegError, OSError) as error:
            raise VideoError(f"{self._target}: cannot be written ({_reason(error)})") from error

    def _abandon(self) -> None:
        from av.error import FFmpegError

        with suppress(FFmpegError, OSError, ValueError):
            self._container.close()

    def __enter__(self) -> Film:
        return self

    def __exit__(self, *_: object) -> None:
        self._abandon()  # after `finish` it does nothing


def _is_cover(stream: Any) -> bool:
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)


def _codec(stream: Any) -> str:
    return getattr(stream, "name", None) or "of an unknown codec"  # audio streams of such have no name at all


def _copy_tags(source: Any, target: Any) -> None:
    """Language, title, and whether it is the one to play."""
    target.metadata.update(_kept(source.metadata))
    target.disposition = source.disposition


def _kept(metadata: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in metadata.items() if not name.lower().startswith(_OWN)}


def _side_data(frame: VideoFrame) -> tuple[tuple[int, ...] | None, tuple[bytes | None, bytes | None]]:
    """A frame's display matrix, mastering display and light level."""
    side_data: Any = frame.side_data
    found = {data.type.name: bytes(data) for data in side_data}
    matrix = found.get("DISPLAYMATRIX")
    hdr = found.get("MASTERING_DISPLAY_METADATA"), found.get("CONTENT_LIGHT_LEVEL")
    return None if matrix is None else struct.unpack("=9i", matrix), hdr


def _hdr_options(encoder: str, hdr: tuple[bytes | None, bytes | None]) -> Mapping[str, str]:
    """What tells an encoder the mastering display and the light level; empty where it cannot be told."""
    if encoder not in _HDR or not any(hdr):
        return {}
    params, display_name, light_name, chromaticity, luminance = _HDR[encoder]
    display, light = hdr
    told = []
    if display is not None and (shown := _mastering_display(display, chromaticity, luminance)):
        told.append(f"{display_name}={shown}")
    if light is not None:
        told.append(f"{light_name}={','.join(map(str, struct.unpack('=2I', light[:8])))}")
    return {params: ":".join(told)} if told else {}


def _mastering_display(data: bytes, chromaticity: int, luminance: int) -> str | None:
    """AVMasteringDisplayMetadata, ten fractions and two flags, in the words of encoders; None if it is not all told."""
    *numbers, has_primaries, has_luminance = struct.unpack("=22i", data[:88])
    if not (has_primaries and has_luminance) or not all(numbers[1::2]):
        return None
    values = [Fraction(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]

    def shown(value: Fraction, unit: int) -> str:
        return str(round(value * unit)) if unit > 1 else f"{float(value):.6g}"

    red, green, blue, white = (
        "({},{})".format(*(shown(value, chromaticity) for value in values[at : at + 2])) for at in (0, 2, 4, 6)
    )
    least, most = (shown(value, luminance) for value in values[8:])
    return f"G{green}B{blue}R{red}WP{white}L({most},{least})"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or first_line(error)


@contextmanager
def on_terminal() -> Iterator[Callable[[int, int | None], None]]:
    """Yields a `progress` for `enlarge_video`, which shows frames, frames/s and the time left; on terminals alone."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as display:
        task, start = display.add_task("", total=None), time.perf_counter()

        def show(done: int, count: int | None) -> None:
            rate = done / max(time.perf_counter() - start, 1e-3)
            of_all = "" if count is None else f" of {count}"
            display.update(task, completed=done, total=count, description=f"{done}{of_all} frames, {rate:.1f}/s")

        yield show
