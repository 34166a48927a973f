"""Frames of a video to RGB, and back."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

from ribsr.base.sizes import Size

if TYPE_CHECKING:
    import numpy as np
    from av import VideoFrame


MATRICES = {1: "ITU709", 4: "FCC", 5: "ITU601", 6: "ITU601", 7: "SMPTE240M", 9: "BT2020"}
"""H.273's number of a matrix → PyAV's name of it. Those left out are not linear, or not in the scaler."""

RGB, UNSPECIFIED, BT709, BT601 = 0, 2, 1, 6
"""H.273's numbers of no matrix, of one that is not told, and of the two that are taken then."""

LIMITED, FULL = 1, 2
"""FFmpeg's numbers of colour ranges."""


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
        size, matrix, full = Size(frame.height, frame.width), frame.colorspace, frame.color_range == FULL
        if frame.format.is_rgb:
            matrix, full = RGB, True
        elif matrix == UNSPECIFIED and len(frame.format.components) > 1:
            matrix = BT709 if size.height > 576 or size.width >= 1280 else BT601
        name = frame.format.name
        if name.startswith("yuvj"):  # an old way of saying full range
            name, full = f"yuv{name[4:]}", True
        deep = max(component.bits for component in frame.format.components) > 8
        range_ = FULL if full else LIMITED
        return cls(size, name, deep, matrix, range_, frame.color_primaries, frame.color_trc)


class Scaler:
    """FFmpeg's scaler between a video's frames and RGB, for one thread."""

    def __init__(self, look: Look):
        from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

        self._scaler = VideoReformatter()
        self.rgb = "rgb48le" if look.deep else "rgb24"
        matrix = Colorspace[MATRICES.get(look.matrix, "ITU709")]  # of RGB and gray, none is applied
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
        return self._scale(frame, self.rgb, self._range, FULL, width=width, height=height)

    def from_rgb(self, frame: VideoFrame, pixels: str) -> VideoFrame:
        """A frame of RGB in the clip's matrix and range."""
        return self._scale(frame, pixels, FULL, self._range)

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
