"""Videos, enlarged: what comes back is compared with what went in, on clips that are made here."""

from __future__ import annotations

import itertools
import os
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines import EngineError, Upscaler
from engines.base import NotInstalled
from ribsr.base.pictures import Picture
from ribsr.base.sizes import Size

av = pytest.importorskip("av")

from av.codec.context import Flags  # noqa: E402

from engines import video  # noqa: E402
from engines.video import VideoError, enlarge_video  # noqa: E402

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


def enlarge(source: Path, target: Path, upscaler: Any = None, **options: Any) -> video.Enlarged:
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


# Colours


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le"])
@pytest.mark.parametrize("matrix", WEIGHTS)
@pytest.mark.parametrize("full", [False, True])
def test_colours_are_those_of_h273_and_come_back(tmp_path: Path, pixels: str, matrix: int, full: bool) -> None:
    source = make_clip(tmp_path / "in.mkv", "ffv1", pixels, matrix=matrix, full=full, times=(0,))
    upscaler = Repeating()
    enlarge(source, tmp_path / "out.mkv", upscaler)

    deep = "10" in pixels
    (seen,), (frame,) = upscaler.seen, decoded(tmp_path / "out.mkv")
    given = colours(0, pixels, matrix, full)
    assert seen.dtype == (np.uint16 if deep else np.uint8)
    expected = to_rgb(given, pixels, matrix, full) * (65535 if deep else 255)
    most = 65535 * 4.5 / 1023 if deep else 0.52  # swscale's white of 10 bits is 65280
    assert np.abs(seen[BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK] - expected).max() <= most
    assert (frame.format.name, frame.colorspace, frame.color_range) == (pixels, matrix, 2 if full else 1)
    off = np.abs(middles(frame).astype(int) - given)
    assert off.max() <= ((5 if deep else 1) if full else 0 if deep else 1)
    assert full or off.mean() < 0.03


@pytest.mark.parametrize(("place", "beside"), [("left", 0.0), ("center", 0.5)])
def test_chroma_stays_where_it_lies(tmp_path: Path, place: str, beside: float) -> None:
    """A slope of chroma, enlarged by the book: the result's chroma is the slope at the places of the result's chroma.

    beside: pixels by which chroma lies right of the first of its two pixels."""

    def slope(_: int) -> Any:
        frame = av.VideoFrame(64, 48, "yuv420p10le")
        luma, blue, red = planes(frame)
        luma[...], blue[...], red[...] = 500, 512, 256 + 16 * np.arange(32)
        return frame

    class Linear(Repeating):
        def enlarge(self, picture: Picture, *, tile: Size | None = None) -> Picture:
            at = (np.arange(128) + 0.5) / 2 - 0.5
            below, share = at.clip(0, 62).astype(int), (at - at.clip(0, 62).astype(int))[:, None]
            wide = picture.pixels[:, below] * (1 - share) + picture.pixels[:, below + 1] * share
            return Picture(wide.repeat(2, 0).clip(0, 65535).round().astype(np.uint16))

    options = {"chroma_sample_location": place}
    source = make_clip(tmp_path / "in.mkv", "ffv1", "yuv420p10le", options=options, frames=slope, times=(0,))
    enlarge(source, tmp_path / "out.mkv", Linear())
    red = planes(decoded(tmp_path / "out.mkv")[0])[2][24, 16:48].astype(float)
    of_result = (2 * np.arange(16, 48) + beside + 0.5) / 2 - 0.5  # where that chroma is, in pixels of the clip
    assert np.abs(red - (256 + 8 * (of_result - beside))).mean() < 0.5  # 2 levels were half a pixel


def test_a_matrix_that_is_not_named_is_taken_for_what_players_take_and_named(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", matrix=2, frames=lambda index: paint(colours(index, matrix=6), "yuv420p"))
    (note,) = noted(source, tmp_path / "out.mkv")
    assert note == f"{source}: does not name its colour matrix; taken for BT.601, and marked so"
    assert decoded(tmp_path / "out.mkv")[0].colorspace == 6


def test_primaries_transfer_mastering_display_and_light_level_are_kept(tmp_path: Path) -> None:
    told = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
    for codec, params in {
        "libx265": ("x265-params", f"log-level=none:master-display={told}:max-cll=1000,400"),
        "libx264": ("x264-params", f"mastering-display={told}:cll=1000,400"),
        "libsvtav1": (
            "svtav1-params",
            "mastering-display=G(0.265,0.69)B(0.15,0.06)R(0.68,0.32)WP(0.3127,0.329)L(1000,0.005):content-light=1000,400",
        ),
    }.items():
        source = make_clip(tmp_path / "in.mkv", codec, "yuv420p10le", matrix=9, options=dict([params]))
        assert noted(source, tmp_path / "out.mp4") == []
        before, after = (decoded(tmp_path / name)[0] for name in ("in.mkv", "out.mp4"))
        assert (after.color_primaries, after.color_trc) == (9, 16)
        for name in ("MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL"):
            assert bytes(after.side_data[name]) == bytes(before.side_data[name]), codec


def test_hdr_metadata_that_an_encoder_cannot_be_told_are_named(tmp_path: Path) -> None:
    options = {"x265-params": "log-level=none:max-cll=1000,400"}
    source = make_clip(tmp_path / "in.mp4", "libx265", "yuv420p10le", options=options)
    (note,) = noted(source, tmp_path / "out.mkv", codec="ffv1")
    assert "ffv1 cannot be told the HDR mastering metadata, which are left out" in note


# Streams


@pytest.mark.parametrize(
    ("codec", "kind", "pixels", "suffix"),
    [
        ("libx264", "h264", "yuv420p", ".mp4"),
        ("libx264", "h264", "yuv422p10le", ".mkv"),
        ("libx265", "hevc", "yuv420p10le", ".mp4"),
        ("libx265", "hevc", "gbrp", ".mov"),
        ("libvpx-vp9", "vp9", "yuv420p", ".webm"),
        ("libsvtav1", "av1", "yuv420p10le", ".mp4"),
        ("ffv1", "ffv1", "gray", ".mkv"),
    ],
)
def test_codec_pixels_times_and_shape_are_kept(tmp_path: Path, codec: str, kind: str, pixels: str, suffix: str) -> None:
    def prepare(_: Any, stream: Any) -> None:
        stream.sample_aspect_ratio = Fraction(4, 3)
        stream.set_display_rotation(90)

    def noise(index: int) -> Any:
        rgb = np.random.default_rng(index).integers(0, 256, (48, 64, 3), np.uint8)
        return av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=pixels)

    matrix = 0 if pixels == "gbrp" else 1
    source = make_clip(
        tmp_path / f"in{suffix}",
        codec,
        pixels,
        matrix=matrix,
        full=pixels == "gbrp",
        times=tuple(3003 * time for time in (0, 1, 2, 4, 5, 9, 10, 11, 20, 21)),
        time_base=Fraction(1, 90000),
        prepare=prepare,
        frames=noise,
    )
    before = decoded(source)
    told: list[tuple[int, int | None]] = []
    result = enlarge(source, tmp_path / f"out{suffix}", progress=lambda *done: told.append(done))
    after = decoded(tmp_path / f"out{suffix}")
    assert (result.frames, result.before, result.after) == (10, Size(48, 64), Size(96, 128))
    assert result.encoder == codec
    assert [done for done, _ in told] == list(range(1, 11))
    assert suffix in (".mkv", ".webm") or {count for _, count in told} == {10}
    assert [frame.pts * frame.time_base for frame in after] == [frame.pts * frame.time_base for frame in before]
    assert {(frame.width, frame.height, frame.format.name) for frame in after} == {(128, 96, pixels)}
    assert after[0].rotation == 90
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.codec.canonical_name == kind
        assert kind != "hevc" or stream.codec_tag == "hvc1"  # without which Apple's players show nothing
        assert suffix in (".mkv", ".webm") and kind != "h264" or stream.sample_aspect_ratio == Fraction(4, 3)


def test_frames_of_any_times_are_shown_when_they_were(tmp_path: Path) -> None:
    times = (256, 1000, 1033, 5000, 5001, 9000, 9333, 9666, 20000, 30000)
    source = make_clip(tmp_path / "in.mp4", times=times, time_base=Fraction(1, 12800))
    for codec in ("h264", "hevc", "av1"):
        enlarge(source, tmp_path / "out.mp4", codec=codec)
        assert [(frame.pts, frame.time_base) for frame in decoded(tmp_path / "out.mp4")] == [
            (time, Fraction(1, 12800)) for time in times
        ]


@pytest.mark.parametrize(("codec", "suffix"), [(None, ".mp4"), (None, ".mkv"), ("vp9", ".webm"), ("av1", ".mkv")])
def test_every_frame_is_shown_as_long_as_it_was(tmp_path: Path, codec: str | None, suffix: str) -> None:
    """The last, too, where a screen recording or a slide show often rests."""

    def prepare(_: Any, stream: Any) -> None:
        stream.codec_context.flags |= Flags.frame_duration

    def lasting(index: int) -> Any:
        frame = paint(colours(index), "yuv420p")
        frame.duration = (5000, 1000, 9000)[index]
        return frame

    options: Any = {"times": (0, 5000, 6000), "time_base": Fraction(1, 1000), "prepare": prepare, "frames": lasting}
    source, target = make_clip(tmp_path / "in.mp4", **options), tmp_path / f"out{suffix}"
    enlarge(source, target, codec=codec)
    for path in (source, target):
        assert [frame.duration * frame.time_base for frame in decoded(path)] == [5, 1, 9]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_sound_chapters_and_titles_are_kept(tmp_path: Path, suffix: str) -> None:
    def prepare(container: Any, stream: Any) -> None:
        container.metadata["title"] = "Größe"
        stream.metadata["language"] = "deu"
        container.set_chapters(
            [
                {
                    "id": number,
                    "start": start,
                    "end": start + 200,
                    "time_base": Fraction(1, 1000),
                    "metadata": {"title": name},
                }
                for number, (start, name) in enumerate([(0, "One"), (200, "Two")], 1)
            ]
        )

    source, target = make_clip(tmp_path / f"in{suffix}", prepare=prepare, sound=True), tmp_path / f"out{suffix}"
    assert noted(source, target) == []
    assert packets(target, "audio") == packets(source, "audio")
    with av.open(str(source)) as before, av.open(str(target)) as after:
        assert after.metadata["title"] == "Größe"
        assert after.chapters() == before.chapters()
        assert [stream.metadata.get("language") for stream in after.streams] == [
            stream.metadata.get("language") for stream in before.streams
        ]
        assert [stream.disposition for stream in after.streams] == [stream.disposition for stream in before.streams]


def with_subtitles(path: Path) -> Path:
    """A clip with SubRip subtitles and a font, made of two files as `ffmpeg -c copy` does."""
    clip, text = make_clip(path.with_name("bare.mkv"), "ffv1", sound=True), path.with_name("text.srt")
    text.write_text("1\n00:00:00,050 --> 00:00:00,200\nGrüße\n\n2\n00:00:00,210 --> 00:00:00,390\nWorld\n", "utf-8")
    with av.open(str(clip)) as pictures, av.open(str(text)) as words, av.open(str(path), "w") as container:
        streams: list[Any] = [*pictures.streams, *words.streams]
        copies = [container.add_stream_from_template(stream, opaque=True) for stream in streams]
        copies[-1].metadata["language"] = "fra"
        container.add_attachment("a.ttf", "font/ttf", b"a font" * 20)
        for source, offset in ((pictures, 0), (words, len(copies) - 1)):
            everything: Any = source.demux()
            for packet in everything:
                if packet.pts is not None:
                    packet.stream = copies[packet.stream.index + offset]
                    container.mux(packet)
    return path


def test_subtitles_and_attachments_are_kept(tmp_path: Path) -> None:
    source, target = with_subtitles(tmp_path / "in.mkv"), tmp_path / "out.mkv"
    enlarge(source, target)
    assert [data.decode() for data, _, _ in packets(target, "subtitles")] == ["Grüße", "World"]
    assert packets(target, "subtitles") == packets(source, "subtitles")
    with av.open(str(target)) as container:
        assert container.streams.subtitles[0].language == "fra"
        (font,) = (stream for stream in container.streams if stream.type == "attachment")
        assert (font.metadata["filename"], bytes(font.data)) == ("a.ttf", b"a font" * 20)


def test_a_stream_that_the_container_cannot_hold_is_named(tmp_path: Path) -> None:
    source = with_subtitles(tmp_path / "in.mkv")
    with pytest.raises(
        VideoError, match=r"out.mp4: cannot hold the subtitle stream 2 \(srt\) of .*; give OUT the suffix"
    ):
        enlarge(source, tmp_path / "out.mp4", codec="h264")
    assert not (tmp_path / "out.mp4").exists()


def test_the_pixel_aspect_ratio_that_matroska_would_lose_is_named(tmp_path: Path) -> None:
    def prepare(_: Any, stream: Any) -> None:
        stream.sample_aspect_ratio = Fraction(4, 3)

    source = make_clip(tmp_path / "in.mp4", prepare=prepare)
    (note,) = noted(source, tmp_path / "out.mkv", codec="vp9")
    assert "the pixel aspect ratio 4/3 cannot be kept in this kind of file; write .mp4" in note


def test_a_cover_picture_is_kept_or_named(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "bare.mp4")
    with av.open(str(source)) as bare, av.open(str(tmp_path / "in.mp4"), "w") as container:
        copy: Any = container.add_stream_from_template(bare.streams.video[0], opaque=True)
        cover: Any = container.add_stream("png", width=64, height=48, pix_fmt="rgb24")
        cover.disposition = av.stream.Disposition.attached_pic
        for packet in bare.demux(video=0):
            if packet.size:
                packet.stream = copy
                container.mux(packet)
        container.mux(cover.encode(av.VideoFrame(64, 48, "rgb24")))
    assert noted(tmp_path / "in.mp4", tmp_path / "out.mp4") == []
    covers = []
    for name in ("in.mp4", "out.mp4"):
        with av.open(str(tmp_path / name)) as container:
            found: Any = container.demux(container.streams[1])
            covers.append([bytes(packet) for packet in found if packet.size])
    assert covers[0] == covers[1] != []
    (note,) = noted(tmp_path / "in.mp4", tmp_path / "out.mkv")
    assert note.endswith("a cover picture is left out")


def test_a_display_matrix_moves_by_enlarged_pixels(tmp_path: Path) -> None:
    """Phones turn the picture about its corner, and move it back by its height."""

    def prepare(_: Any, stream: Any) -> None:
        stream.set_display_matrix((0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 1 << 30))

    source = make_clip(tmp_path / "in.mp4", prepare=prepare)
    enlarge(source, tmp_path / "out.mp4")
    data = bytes(decoded(tmp_path / "out.mp4")[0].side_data["DISPLAYMATRIX"])
    assert np.frombuffer(data, np.int32).tolist() == [0, 65536, 0, -65536, 0, 0, 96 << 16, 0, 1 << 30]


def test_full_range_in_the_old_way_stays_full_range(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", full=True)
    enlarge(source, tmp_path / "out.mp4", crf=0)
    before, after = decoded(source)[0], decoded(tmp_path / "out.mp4")[0]
    assert before.format.name == after.format.name == "yuvj420p"
    assert np.abs(middles(after).astype(int) - colours(0, full=True)).max() <= 8  # x264's losses, not 16 of a range


def test_names_with_colons_and_percents_are_files(tmp_path: Path) -> None:
    folder = tmp_path / "concat:a"
    folder.mkdir()
    source = make_clip(tmp_path / "in.mp4").rename(folder / "http:%d é.mp4")
    assert enlarge(source, folder / "file:out %s.mkv").frames == 10


def test_a_playlist_is_no_video(tmp_path: Path) -> None:
    make_clip(tmp_path / "secret.mp4", times=(0, 1))
    source = tmp_path / "in.mp4"
    source.write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with pytest.raises(VideoError, match="not a video, or damaged"):
        enlarge(source, tmp_path / "out.mp4")


def test_crf_chooses_the_quality(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4")
    sizes = []
    for crf in (0, 40):
        enlarge(source, tmp_path / "out.mp4", crf=crf)
        sizes.append((tmp_path / "out.mp4").stat().st_size)
    assert sizes[0] > 1.5 * sizes[1]


def test_a_real_model_enlarges_a_clip_of_8_bits(tmp_path: Path, onnx_file: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", pixels="yuv444p", times=(0, 1, 2))
    with Upscaler(onnx_file, device="cpu") as upscaler:
        enlarge(source, tmp_path / "out.mkv", upscaler, codec="ffv1")
        first = decoded(source)[0]
        scaler = video.Scaler(video.Look.of(first))
        alone = upscaler.enlarge(Picture(scaler.to_rgb(first).to_ndarray())).pixels
    made = scaler.to_rgb(decoded(tmp_path / "out.mkv")[0]).to_ndarray()
    assert made.shape == alone.shape == (96, 128, 3)
    assert np.abs(made.astype(int) - alone).max() <= 3  # 8 bits of YCbCr in between


# What is refused


def two_videos(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        streams: list[Any] = [container.add_stream("ffv1", rate=25) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for stream in streams:
            container.mux(stream.encode(paint(colours(0), "yuv420p")))
            container.mux(stream.encode(None))
    return path


def sound_alone(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=48000)
        samples: Any = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        samples.sample_rate = 48000
        container.mux(stream.encode(samples))
        container.mux(stream.encode(None))
    return path


def garbage(path: Path) -> Path:
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    return path


def empty(path: Path) -> Path:
    path.touch()
    return path


def interlaced(path: Path) -> Path:
    return make_clip(path, options={"flags": "+ildct+ilme"})


def transparent(path: Path) -> Path:
    return make_clip(path, "ffv1", "yuva420p", frames=lambda _: av.VideoFrame(64, 48, "yuva420p"))


def transparent_beside(path: Path) -> Path:
    """VP9 has alpha in a stream of its own, of which FFmpeg's decoder says nothing."""
    path = path.with_suffix(".webm")
    return make_clip(path, "libvpx-vp9", "yuva420p", frames=lambda _: av.VideoFrame(64, 48, "yuva420p"))


def not_linear(path: Path) -> Path:
    return make_clip(path, matrix=10, frames=lambda index: paint(colours(index), "yuv420p"))


def old_codec(path: Path) -> Path:
    return make_clip(path, "mpeg4")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (two_videos, "has 2 video streams"),
        (sound_alone, "has no video streams"),
        (garbage, "not a video, or damaged"),
        (empty, "not a video, or damaged"),
        (interlaced, "is interlaced; deinterlace it first"),
        (transparent, "has an alpha channel"),
        (transparent_beside, "has an alpha channel"),
        (not_linear, "has the colour matrix 10 of H.273"),
        (old_codec, "there is no encoder for mpeg4; choose another with --codec: h264"),
        (lambda path: path, "no such file"),
        (lambda path: path.parent, "is a folder, not a video"),
    ],
)
def test_what_would_lose_something_is_refused(tmp_path: Path, make: Callable[[Path], Path], reason: str) -> None:
    target = tmp_path / "out.mkv"
    target.write_text("what was there")
    upscaler = Repeating()
    with pytest.raises(VideoError, match=reason):
        enlarge(make(tmp_path / "in.mkv"), target, upscaler)
    assert upscaler.seen == []
    assert target.read_text() == "what was there"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("in.mp4", {}, "is the video itself"),
        ("link.mp4", {}, "is the video itself"),
        ("out.avi", {}, "cannot write videos of this kind; choose one of .mp4"),
        ("none/out.mp4", {}, "there is no folder"),
        ("out.webm", {}, "webm files cannot hold h264; choose with --codec: vp9, av1, or write .mkv"),
        ("out.mp4", {"codec": "h263"}, r"there is no encoder for h263; choose one of them: h264 \(libx264\)"),
        ("out.mp4", {"crf": 52}, "--crf: libx264 takes 0 to 51"),
        ("out.mp4", {"crf": -1}, "--crf: libx264 takes 0 to 51"),
        ("out.mkv", {"codec": "ffv1", "crf": 5}, "--crf: ffv1 is lossless and takes none"),
        ("out.mkv", {"codec": "av1"}, "libsvtav1 does not take yuv444p, which .*; choose with --codec: libx264"),
    ],
)
def test_a_target_that_cannot_be_is_refused_before_the_model_runs(
    tmp_path: Path, name: str, options: dict[str, Any], reason: str
) -> None:
    source = make_clip(tmp_path / "in.mp4", pixels="yuv444p")
    (tmp_path / "link.mp4").symlink_to(source)
    before, upscaler = source.read_bytes(), Repeating()
    with pytest.raises(VideoError, match=reason):
        enlarge(source, tmp_path / name, upscaler, **options)
    assert upscaler.seen == []
    assert source.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"in.mp4", "link.mp4"}


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "in.mp4")
    with pytest.raises(VideoError, match="in.mp4: is a pipe or device, not a file"):
        enlarge(tmp_path / "in.mp4", tmp_path / "out.mp4")


def test_odd_sides_are_refused_by_encoders_that_take_none(tmp_path: Path) -> None:
    def prepare(_: Any, stream: Any) -> None:
        stream.width, stream.height = 63, 47

    source = make_clip(
        tmp_path / "in.mkv", "ffv1", prepare=prepare, frames=lambda _: av.VideoFrame(63, 47, "yuv420p"), times=(0,)
    )
    assert enlarge(source, tmp_path / "out.mkv", Repeating(3)).after == Size(141, 189)
    assert enlarge(source, tmp_path / "out.mkv", Repeating(2), codec="h264").after == Size(94, 126)
    with pytest.raises(VideoError, match="libx264 takes no odd sides of yuv420p, and these are 189x141"):
        enlarge(source, tmp_path / "out.mkv", Repeating(3), codec="h264")


def test_without_a_pyav_that_fits_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for release in ("18.0.1", "19.0.2"):
        monkeypatch.setattr(av, "__version__", release)
        with pytest.raises(NotInstalled, match=rf"videos need PyAV 18.1 to 18.x, .* and this is PyAV {release}: pip "):
            enlarge(tmp_path / "in.mp4", tmp_path / "out.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(NotInstalled, match=r"videos need PyAV 18.1 to 18.x, .*: pip install .*video"):
        enlarge(tmp_path / "in.mp4", tmp_path / "out.mp4")


# What goes wrong midway


@pytest.mark.parametrize(
    ("codec", "suffix", "reason"),
    [
        ("libx264", ".mp4", "is damaged, after 0.[67]"),
        ("libx265", ".mp4", r"frame [12]\d is damaged, after 0.\d\d s .the decoder leaves it out"),
        ("libvpx-vp9", ".webm", "frame 21 is damaged, after 0.76 s"),
    ],
)
def test_a_damaged_frame_ends_it_and_is_named(tmp_path: Path, codec: str, suffix: str, reason: str) -> None:
    source, target = make_clip(tmp_path / f"in{suffix}", codec, times=tuple(range(60))), tmp_path / f"out{suffix}"
    with av.open(str(source)) as container:
        found: Any = [packet for packet in container.demux(video=0) if packet.size]
        start, size = found[20].pos, found[20].size
    data = bytearray(source.read_bytes())
    data[start + 8 : start + size] = bytes(size - 8)
    source.write_bytes(data)
    target.write_text("what was there")
    with pytest.raises(VideoError, match=f"in{suffix}: .*{reason}"):
        enlarge(source, target)
    assert target.read_text() == "what was there"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_file_that_is_cut_off_is_no_whole_video(tmp_path: Path, suffix: str) -> None:
    source = make_clip(tmp_path / f"in{suffix}", times=tuple(range(60)), sound=True)
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    with pytest.raises(VideoError, match="as if cut off|not a video, or damaged"):
        enlarge(source, tmp_path / f"out{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_frames_before_the_first_that_stands_alone_are_none(tmp_path: Path) -> None:
    """A clip cut by `ffmpeg -c copy` at a key frame in whose group others are shown first."""
    groups = "log-level=none:open-gop=1:keyint=10:min-keyint=10:scenecut=0:bframes=3"
    whole = make_clip(tmp_path / "whole.mkv", "libx265", times=tuple(range(40)), options={"x265-params": groups})
    with av.open(str(whole)) as container, av.open(str(tmp_path / "in.mkv"), "w") as cut:
        copy: Any = cut.add_stream_from_template(container.streams.video[0], opaque=True)
        found: Any = [packet for packet in container.demux(video=0) if packet.size]
        key = [index for index, packet in enumerate(found) if packet.is_keyframe][1]
        assert found[key + 1].pts < found[key].pts
        for packet in found[key:]:
            packet.stream = copy
            cut.mux(packet)
    shown = len(decoded(tmp_path / "in.mkv"))
    assert shown < len(found) - key
    assert enlarge(tmp_path / "in.mkv", tmp_path / "out.mkv").frames == shown


@pytest.mark.parametrize("error", [EngineError("the model broke"), KeyboardInterrupt()])
def test_what_ends_the_model_ends_it_and_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    class Breaking(Repeating):
        def enlarge(self, picture: Picture, *, tile: Size | None = None) -> Picture:
            if len(self.seen) == 5:
                raise error
            return super().enlarge(picture)

    threads = threading.active_count()
    with pytest.raises(type(error)) as caught:
        enlarge(make_clip(tmp_path / "in.mp4", sound=True), tmp_path / "out.mp4", Breaking())
    assert caught.value is error
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]
    assert threading.active_count() == threads


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files may have 20 kB at most, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, suffix: str, request: pytest.FixtureRequest
) -> None:
    source = make_clip(tmp_path / "in.mp4", times=tuple(range(60)), sound=True)
    request.getfixturevalue("small_files")
    with pytest.raises(VideoError, match=f"out{suffix}: cannot be written .File too large"):
        enlarge(source, tmp_path / f"out{suffix}", crf=0)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_few_frames_are_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are read wait for the model, and those that are made for the encoder."""
    count = SimpleNamespace(read=0, made=0, painted=0, ahead=0, behind=0)
    paint_frame, to_rgb = video.Painter.paint, video.Scaler.to_rgb

    def counted_read(self: video.Scaler, *arguments: Any) -> Any:
        count.read += 1
        count.ahead = max(count.ahead, count.read - count.made)
        return to_rgb(self, *arguments)

    def slow_paint(self: video.Painter, pixels: np.ndarray) -> Any:
        threading.Event().wait(0.02)
        count.painted += 1
        return paint_frame(self, pixels)

    class Counting(Repeating):
        def enlarge(self, picture: Picture, *, tile: Size | None = None) -> Picture:
            count.made += 1
            count.behind = max(count.behind, count.made - count.painted)
            return super().enlarge(picture)

    monkeypatch.setattr(video.Scaler, "to_rgb", counted_read)
    monkeypatch.setattr(video.Painter, "paint", slow_paint)
    enlarge(make_clip(tmp_path / "in.mp4", times=tuple(range(40))), tmp_path / "out.mp4", Counting())
    assert count.made == count.painted == 40
    assert count.ahead <= video.AHEAD + 2  # and one for the Painter's own frame
    assert count.behind <= video.BEHIND + video.MAKERS + 2


def test_seams_stay_where_they_are_when_memory_gets_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A video whose frames are cut elsewhere from some frame on would show it."""
    upscaler, left = Repeating(), itertools.count(64, -8)
    monkeypatch.setattr(upscaler, "tile_for", lambda pixels: Size(next(left), 64))
    enlarge(make_clip(tmp_path / "in.mkv"), tmp_path / "out.mkv", upscaler)
    assert upscaler.tiles == [Size(64, 64)] * len(upscaler.seen)


def test_progress_is_shown_on_terminals_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with video.on_terminal() as show:
        show(1, 10)
    assert capsys.readouterr() == ("", "")
