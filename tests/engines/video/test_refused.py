"""Videos that cannot be enlarged as they are, and what is said of them before the model runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.base import NotInstalled
from engines.video import VideoError
from ribsr.base.sizes import Size
from tests.engines.video.clips import Repeating, colours, enlarge, make_clip, paint

av = pytest.importorskip("av")


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
