"""Clips of flat squares, made here, and what can be read of a video, for the tests beside this file."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import video
from engines.video import enlarge_video
from ribsr.base.pictures import Picture
from ribsr.base.sizes import Size

av = pytest.importorskip("av")


BLOCK = 16
"""Sides of the flat squares that clips of 64x48 show, in pixels: chroma of their middle is theirs alone."""

SQUARES = (3, 4)
"""Rows and columns of them."""

WEIGHTS = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
"""H.273's numbers of matrices → what red and blue contribute to luma."""

ORDER = [0, 4, 1, 2, 3, 5, 6, 9, 8, 7]


class Repeating:
    """Stands for an Upscaler: repeats pixels. seen: what it was given; tiles: how large parts of it might be."""

    def __init__(self, scale: int = 2):
        self.scale = scale
        self.seen: list[np.ndarray] = []
        self.tiles: list[Size | None] = []

    def tile_for(self, pixels: np.ndarray) -> Size:
        return Size(*pixels.shape[:2])

    def enlarge(self, picture: Picture, *, tile: Size | None = None) -> Picture:
        self.seen.append(picture.pixels.copy())
        self.tiles.append(tile)
        return Picture(picture.pixels.repeat(self.scale, 0).repeat(self.scale, 1))


def enlarge(source: Path, target: Path, upscaler: Any = None, **options: Any) -> video.EnlargedVideo:
    given: Any = upscaler or Repeating()
    return enlarge_video(given, source, target, **options)


def noted(source: Path, target: Path, **options: Any) -> list[str]:
    notes: list[str] = []
    enlarge(source, target, say=notes.append, **options)
    return notes


def levels(pixels: str, full: bool) -> tuple[np.ndarray, np.ndarray]:
    """The least and the span of Y, Cb and Cr, by H.273."""
    bits = 10 if "10" in pixels else 8
    if full:
        return np.array([0, 2 ** (bits - 1), 2 ** (bits - 1)]), np.full(3, 2**bits - 1)
    return np.array([16, 128, 128]) * 2 ** (bits - 8), np.array([219, 224, 224]) * 2 ** (bits - 8)


def to_yuv(rgb: np.ndarray, pixels: str, matrix: int, full: bool) -> np.ndarray:
    """[.., 3] in [0, 1] → levels, by H.273's formulas."""
    red, blue = WEIGHTS[matrix]
    y = rgb @ [red, 1 - red - blue, blue]
    yuv = np.stack([y, (rgb[..., 2] - y) / (2 * (1 - blue)), (rgb[..., 0] - y) / (2 * (1 - red))], -1)
    least, span = levels(pixels, full)
    return np.rint(yuv * span + least).astype(np.uint16 if "10" in pixels else np.uint8)


def to_rgb(yuv: np.ndarray, pixels: str, matrix: int, full: bool) -> np.ndarray:
    """Levels [.., 3] → [.., 3], clipped to [0, 1]."""
    red, blue = WEIGHTS[matrix]
    least, span = levels(pixels, full)
    y, cb, cr = np.moveaxis((yuv.astype(float) - least) / span, -1, 0)
    r, b = y + 2 * (1 - red) * cr, y + 2 * (1 - blue) * cb
    return np.stack([r, (y - red * r - blue * b) / (1 - red - blue), b], -1).clip(0, 1)


def planes(frame: Any) -> list[np.ndarray]:
    """A frame's planes, as views that can be written to."""
    depth = np.uint16 if any(part.bits > 8 for part in frame.format.components) else np.uint8
    return [
        np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size).view(depth)[:, : plane.width]
        for plane in frame.planes
    ]


def colours(index: int, pixels: str = "yuv420p", matrix: int = 1, full: bool = False) -> np.ndarray:
    """Levels of the squares of a clip's frame, [3, 4, 3]."""
    return to_yuv(np.random.default_rng(index).random((*SQUARES, 3)), pixels, matrix, full)


def paint(yuv: np.ndarray, pixels: str) -> Any:
    """A frame of flat squares."""
    frame = av.VideoFrame(yuv.shape[1] * BLOCK, yuv.shape[0] * BLOCK, pixels)
    for plane, values in zip(planes(frame), np.moveaxis(yuv, -1, 0), strict=False):
        plane[...] = np.kron(values, np.ones((BLOCK, BLOCK), values.dtype))[
            :: len(values) * BLOCK // len(plane), :: yuv.shape[1] * BLOCK // plane.shape[1]
        ]
    return frame


def middles(frame: Any) -> np.ndarray:
    """The levels in the middle of each square of an enlarged frame, [3, 4, 3]."""
    found = []
    for plane in planes(frame):
        down, across = (side // count for side, count in zip(plane.shape, SQUARES, strict=True))
        found.append(plane[down // 2 :: down, across // 2 :: across])
    return np.stack(found, -1)


def make_clip(
    path: Path,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    *,
    matrix: int = 1,
    full: bool = False,
    times: tuple[int, ...] = tuple(range(10)),
    time_base: Fraction = Fraction(1, 25),
    options: dict[str, str] | None = None,
    prepare: Callable[[Any, Any], object] = lambda container, stream: None,
    sound: bool = False,
    frames: Callable[[int], Any] | None = None,
) -> Path:
    """A clip of 64x48. prepare: is given the container and the stream before anything is written."""
    quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options={**quiet, **(options or {})}, time_base=time_base)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        context = stream.codec_context
        context.colorspace, context.color_range = matrix, 2 if full else 1
        context.color_primaries, context.color_trc = (9, 16) if matrix == 9 else (1, 1)
        prepare(container, stream)
        heard: Any = container.add_stream("aac", rate=48000) if sound else None
        for index, pts in enumerate(times):
            frame = frames(index) if frames else paint(colours(index, pixels, matrix, full), pixels)
            frame.pts, frame.time_base = pts, time_base
            container.mux(stream.encode(frame))
        for index in range(20 if sound else 0):
            wave = np.sin(np.arange(1024) * index / 30).astype(np.float32)
            samples: Any = av.AudioFrame.from_ndarray(np.stack([wave, wave]), format="fltp", layout="stereo")
            samples.sample_rate, samples.pts = 48000, index * 1024
            container.mux(heard.encode(samples))
        for ended in filter(None, (stream, heard)):
            container.mux(ended.encode(None))
    return path


def decoded(path: Path) -> list[Any]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def packets(path: Path, kind: str) -> list[tuple[bytes, Fraction, Fraction]]:
    """All that a stream holds: bytes, when, and how long."""
    with av.open(str(path)) as container:
        found: Any = container.demux(**{kind: 0})
        return [
            (bytes(packet), packet.pts * packet.time_base, packet.duration * packet.time_base)
            for packet in found
            if packet.size
        ]
