"""Videos on their way: what goes wrong midway, and how much memory they take."""

from __future__ import annotations

import itertools
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines import EngineError, video
from engines.video import VideoError
from engines.video.frames import Painter, Scaler
from ribsr.base.pictures import Picture
from ribsr.base.sizes import Size
from tests.engines.video.clips import Repeating, decoded, enlarge, make_clip

av = pytest.importorskip("av")


@pytest.mark.parametrize(
    ("codec", "suffix", "reason"),
    [
        ("libx264", ".mp4", "is damaged, after 0.[67]"),
        ("libx265", ".mp4", r"frame [12]\d is damaged, after 0.\d\d s .the decoder leaves it out"),
        ("libvpx-vp9", ".webm", "frame 21 is damaged, after 0.76 s"),
        ("libx264", ".avi", "is damaged, after 0.[67]"),
    ],
)
def test_a_damaged_frame_ends_it_and_is_named(tmp_path: Path, codec: str, suffix: str, reason: str) -> None:
    source, target = make_clip(tmp_path / f"in{suffix}", codec, times=tuple(range(60))), tmp_path / "out.mkv"
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
    paint_frame, to_rgb = Painter.paint, Scaler.to_rgb

    def counted_read(self: Scaler, *arguments: Any) -> Any:
        count.read += 1
        count.ahead = max(count.ahead, count.read - count.made)
        return to_rgb(self, *arguments)

    def slow_paint(self: Painter, pixels: np.ndarray) -> Any:
        threading.Event().wait(0.02)
        count.painted += 1
        return paint_frame(self, pixels)

    class Counting(Repeating):
        def enlarge(self, picture: Picture, *, tile: Size | None = None) -> Picture:
            count.made += 1
            count.behind = max(count.behind, count.made - count.painted)
            return super().enlarge(picture)

    monkeypatch.setattr(Scaler, "to_rgb", counted_read)
    monkeypatch.setattr(Painter, "paint", slow_paint)
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
