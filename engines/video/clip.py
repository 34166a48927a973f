"""A video that is read."""

from __future__ import annotations

import itertools
import math
import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.video.formats import VideoError
from engines.video.frames import BT709, MATRICES, Look, Scaler
from ribsr.base.errors import reason_of

if TYPE_CHECKING:
    import numpy as np
    from av import Packet, VideoFrame


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


_READING = {"format_whitelist": "mov,matroska,mpegts,avi,flv", "protocol_whitelist": "file"}
"""What files are taken for, whatever their suffix: no playlists, which name other files and servers."""

_ONE_A_PACKET = ("h264", "hevc", "vp9", "av1", "ffv1")
"""Codecs of which every packet has just one frame that is shown."""


@dataclass(frozen=True)
class Part:
    """A frame, and the packets of streams that are copied which come before it. pixels: RGB [H, W, 3], uint8 or uint16.
    pts, duration: when it is shown and how long, in the stream's time base."""

    packets: list[Packet]
    pixels: np.ndarray
    pts: int
    duration: int


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
            raise VideoError(f"{path}: not a video, or damaged ({reason_of(error)})") from None
        try:
            self._open()
        except BaseException:
            self.container.close()
            raise

    def _open(self) -> None:
        streams = self.container.streams
        moving = [stream for stream in streams.video if not is_cover(stream)]
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
        self._untold: deque[int] | None = deque() if self.container.format.name == "avi" else None
        self.rest: list[Packet] = []
        self._decoded = self._decode()
        first = next(self._decoded, None)
        if first is None:
            raise VideoError(f"{self.path}: has no frames")
        self._decoded = itertools.chain([first], self._decoded)
        self.first = frame = first[1]
        self._check_kind(frame)
        self.look = Look.of(frame)
        self.matrix, self.hdr = side_data_of(frame)
        if frame.colorspace != self.look.matrix and not frame.format.is_rgb:
            shown = "BT.709" if self.look.matrix == BT709 else "BT.601"
            self._say(f"{self.path}: does not name its colour matrix; taken for {shown}, and marked so")

    def _check_kind(self, frame: VideoFrame) -> None:
        """Raises VideoError for a video of which something would be lost."""
        reason, colours = None, len(frame.format.components) > 1 and not frame.format.is_rgb
        if frame.interlaced_frame or self.video.codec_context.field_order > 1:
            reason = "is interlaced; deinterlace it first, as with ffmpeg -i IN -vf bwdif OUT"
        elif self.video.metadata.get("alpha_mode", "0") != "0" or any(c.is_alpha for c in frame.format.components):
            reason = "has an alpha channel, which is not supported yet; remove it first"
        elif colours and Look.of(frame).matrix not in MATRICES:
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
                raise self._damaged(reason_of(error)) from None
            if packet.is_corrupt:
                raise self._damaged("it is cut off there")
            if self._untold is not None:
                _tell_times(packet, frames, self._untold)
            elif packet.pts is not None and not packet.is_discard and self.codec in _ONE_A_PACKET:
                self._due.add(packet.pts)
            for frame in frames:
                if frame.is_corrupt:
                    raise self._damaged("parts of it cannot be decoded")
                if frame.pts is not None:
                    self._check_lost(frame.pts)
                yield waiting, frame
                waiting = []
        self._check_lost(math.inf)
        if self._untold and self.codec in _ONE_A_PACKET:
            raise VideoError(f"{self.path}: {len(self._untold)} of its frames cannot be decoded; repair it first")
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


def _tell_times(packet: Packet, frames: list[VideoFrame], times: deque[int]) -> None:
    """Of AVI, which counts packets in the order of decoding: FFmpeg guesses wrong where frames are shown that wait for
    later ones. They come in the right order, at the same times."""
    if packet.size and packet.dts is not None:
        times.append(packet.dts)
    for frame in frames:
        if times:
            frame.pts = times.popleft()


def is_cover(stream: Any) -> bool:
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)


def side_data_of(frame: VideoFrame) -> tuple[tuple[int, ...] | None, tuple[bytes | None, bytes | None]]:
    """A frame's display matrix, mastering display and light level."""
    side_data: Any = frame.side_data
    found = {data.type.name: bytes(data) for data in side_data}
    matrix = found.get("DISPLAYMATRIX")
    hdr = found.get("MASTERING_DISPLAY_METADATA"), found.get("CONTENT_LIGHT_LEVEL")
    return None if matrix is None else struct.unpack("=9i", matrix), hdr
