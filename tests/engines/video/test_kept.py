"""Videos, enlarged: what comes back is compared with what went in."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import Upscaler
from engines.video import VideoError
from engines.video.frames import Look, Scaler
from ribsr.base.pictures import Picture
from ribsr.base.sizes import Size
from tests.engines.video.clips import (
    BLOCK,
    WEIGHTS,
    Repeating,
    colours,
    decoded,
    enlarge,
    make_clip,
    middles,
    noted,
    packets,
    paint,
    planes,
    to_rgb,
)

av = pytest.importorskip("av")

from av.codec.context import Flags  # noqa: E402


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


@pytest.mark.parametrize(("codec", "options"), [("libx264", {}), ("mpeg4", {"bf": "2"}), ("mjpeg", {})])
def test_frames_of_avi_come_in_order_and_evenly(tmp_path: Path, codec: str, options: dict[str, str]) -> None:
    """Its packets have no times of showing. FFmpeg guesses those of H.264 wrong: some frames wait for later ones."""
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    source = make_clip(tmp_path / "in.avi", codec, pixels, full=codec == "mjpeg", options=options)
    before, upscaler = decoded(source), Repeating()
    assert (codec != "libx264") is ([frame.pts for frame in before] == sorted(frame.pts for frame in before))
    assert enlarge(source, tmp_path / "out.mkv", upscaler, codec="ffv1").frames == 10
    after = decoded(tmp_path / "out.mkv")
    times = [frame.pts * frame.time_base for frame in after]
    assert {later - sooner for sooner, later in itertools.pairwise(times)} == {Fraction(1, 25)}
    for made, frame in zip(after, before, strict=True):
        differences = middles(made)[..., 0].astype(int) - middles(frame)[..., 0]
        assert np.abs(differences).mean() < 10  # of another frame some 80


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
        scaler = Scaler(Look.of(first))
        alone = upscaler.enlarge(Picture(scaler.to_rgb(first).to_ndarray())).pixels
    made = scaler.to_rgb(decoded(tmp_path / "out.mkv")[0]).to_ndarray()
    assert made.shape == alone.shape == (96, 128, 3)
    assert np.abs(made.astype(int) - alone).max() <= 3  # 8 bits of YCbCr in between
