"""A video that is written."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.video.clip import Clip, Part, is_cover
from engines.video.formats import ENCODERS, SUFFIXES, VideoError
from engines.video.frames import Painter
from ribsr.base.errors import reason_of

if TYPE_CHECKING:
    from av import Packet, VideoFrame


_HDR = {
    "libx264": ("x264-params", "mastering-display", "cll", 50_000, 10_000),
    "libx265": ("x265-params", "master-display", "max-cll", 50_000, 10_000),
    "libsvtav1": ("svtav1-params", "mastering-display", "content-light", 1, 1),
}
"""Encoder → the option for its own parameters, what they call the mastering display and the light level, and what they
multiply chromaticities and luminances with."""


_OWN = ("encoder", "duration", "major_brand", "minor_version", "compatible_brands", "bps", "number_of_", "_statistics")
"""How metadata begin that describe the old file, not the video."""


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
            raise VideoError(f"{target}: {encoder} cannot be started for {self.size} ({reason_of(error)})") from None

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
            cover = is_cover(stream) and kind not in ("mp4", "mov")
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
            raise VideoError(f"{self._target}: cannot be written ({reason_of(error)})") from error

    def _abandon(self) -> None:
        from av.error import FFmpegError

        with suppress(FFmpegError, OSError, ValueError):
            self._container.close()

    def __enter__(self) -> Film:
        return self

    def __exit__(self, *_: object) -> None:
        self._abandon()  # after `finish` it does nothing


def _codec(stream: Any) -> str:
    return getattr(stream, "name", None) or "of an unknown codec"  # audio streams of such have no name at all


def _copy_tags(source: Any, target: Any) -> None:
    """Language, title, and whether it is the one to play."""
    target.metadata.update(_kept(source.metadata))
    target.disposition = source.disposition


def _kept(metadata: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in metadata.items() if not name.lower().startswith(_OWN)}


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
