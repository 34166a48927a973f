"""Pictures in flight: in order, each failure its own, and in bounded memory."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engines import memory, pipeline
from engines.base import is_gpu
from engines.jobs import Job
from engines.pipeline import enlarge_all, room
from ribsr.base import pictures
from ribsr.base.pictures import Picture

SCALE = 2

DEVICES = ("CPUExecutionProvider", "cuda:0 NVIDIA H200")


class Repeating:
    """An `Upscaler` that repeats pixels. device: what it says to run on."""

    scale = SCALE

    def __init__(self, device: str = "CPUExecutionProvider"):
        self._device = device

    def describe(self) -> Any:
        return SimpleNamespace(device=self._device, on_gpu=is_gpu(self._device))

    def enlarge(self, picture: Picture, **_: Any) -> Picture:
        return Picture(picture.pixels.repeat(SCALE, 0).repeat(SCALE, 1), picture.colour)


class Live:
    """Counts the bytes of pictures that are alive between reading and the end of writing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.02):
        self.held = self.most = self.count = 0
        self._lock, self._seconds = threading.Lock(), seconds
        self._read, self._write = pictures.read_picture, pictures.write_picture
        monkeypatch.setattr(pictures, "read_picture", self.read)
        monkeypatch.setattr(pictures, "write_picture", self.write)

    def add(self, pixels: np.ndarray) -> None:
        with self._lock:
            self.held += pixels.nbytes
            self.count += 1
            self.most = max(self.most, self.held)
        weakref.finalize(pixels, self.drop, pixels.nbytes)

    def drop(self, size: int) -> None:
        with self._lock:
            self.held -= size
            self.count -= 1

    def read(self, path: Path, *_: Any) -> Picture:
        picture = self._read(path)
        self.add(picture.pixels)
        return picture

    def write(self, path: Path, picture: Picture, *_: Any) -> None:
        self.add(picture.pixels)
        time.sleep(self._seconds)
        path.touch()


def jobs_in(folder: Path, sizes: Iterable[tuple[int, int]]) -> list[Job]:
    jobs = []
    for number, (height, width) in enumerate(sizes):
        source = folder / f"{number:02}.png"
        Image.fromarray(np.full((height, width, 3), number, np.uint8)).save(source)
        jobs.append(Job(source, folder / f"{number:02}.ppm"))
    return jobs


def cost(job: Job) -> int:
    return pipeline._cost(job, SCALE)


@pytest.mark.parametrize("device", DEVICES)
def test_all_of_them_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(pipeline, "WRITERS", 4)
    jobs = jobs_in(tmp_path, [(4, 5 + number) for number in range(20)])
    done = list(enlarge_all(jobs, Repeating(device)))  # type: ignore[arg-type]
    assert [job for job, _ in done] == jobs
    for number, (job, outcome) in enumerate(done):
        assert str(outcome.result().after) == f"{2 * (5 + number)}x8"
        assert (np.asarray(Image.open(job.target)) == number).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("share", [0.5, 3.0, 5.5])
def test_memory_is_bounded_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, device: str) -> None:
    """However many may be written at once. Beside what may be kept, one is read or enlarged."""
    monkeypatch.setattr(pipeline, "WRITERS", 8)
    jobs = jobs_in(tmp_path, [(40, 50)] * 24)
    each = cost(jobs[0])
    live = Live(monkeypatch)
    done = list(enlarge_all(jobs, Repeating(device), most=round(share * each)))  # type: ignore[arg-type]
    assert [outcome.exception() for _, outcome in done] == [None] * len(jobs)
    assert live.most <= max(1, share) * each
    gc.collect()
    assert (live.held, live.count) == (0, 0)


def test_without_a_bound_many_are_on_their_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the bound is for: the same pictures take more without one."""
    monkeypatch.setattr(pipeline, "WRITERS", 8)
    jobs = jobs_in(tmp_path, [(40, 50)] * 24)
    live = Live(monkeypatch, 0.1)
    assert len(list(enlarge_all(jobs, Repeating()))) == len(jobs)  # type: ignore[arg-type]
    assert live.most > 4 * 40 * 50 * 3 * SCALE**2


def test_a_picture_larger_than_the_bound_goes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "WRITERS", 8)
    jobs = jobs_in(tmp_path, [(10, 10)] * 5 + [(100, 100)] + [(10, 10)] * 5)
    live = Live(monkeypatch)
    done = list(enlarge_all(jobs, Repeating(), most=2 * cost(jobs[0])))  # type: ignore[arg-type]
    assert [job for job, _ in done] == jobs
    assert live.most <= 100 * 100 * 3 * (1 + SCALE**2)


def test_a_picture_that_has_to_wait_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, asked, header = jobs_in(tmp_path, [(40, 50)] * 12), [], pictures.read_header
    most = cost(jobs[0])
    monkeypatch.setattr(pictures, "read_header", lambda path, *rest: asked.append(path) or header(path, *rest))
    Live(monkeypatch)
    done = list(enlarge_all(jobs, Repeating(), most=most))  # type: ignore[arg-type]
    assert [outcome.exception() for _, outcome in done] == [None] * len(jobs)
    assert asked == [job.source for job in jobs]


@pytest.mark.parametrize("device", DEVICES)
def test_pictures_that_fail_keep_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """An exception holds the frames that it went through, and they hold the picture."""
    monkeypatch.setattr(pipeline, "WRITERS", 2)
    jobs = jobs_in(tmp_path, [(40, 50)] * 12)
    live = Live(monkeypatch, 0)
    enlarge, write = Repeating.enlarge, pictures.write_picture

    def failing(upscaler: Repeating, picture: Picture, **_: Any) -> Picture:
        made = enlarge(upscaler, picture)
        live.add(made.pixels)
        if picture.pixels[0, 0, 0] < 6:
            raise MemoryError
        return made

    def unwritten(path: Path, picture: Picture, *_: Any) -> None:
        write(path, picture)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Repeating, "enlarge", failing)
    monkeypatch.setattr(pictures, "write_picture", unwritten)
    kept = [outcome.exception() for _, outcome in enlarge_all(jobs, Repeating(device))]  # type: ignore[arg-type]
    assert [type(error) for error in kept] == [MemoryError] * 6 + [OSError] * 6
    gc.collect()
    assert live.held == 0


def test_a_picture_is_told_what_those_before_it_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until they are written: encoders take their memory late, when tiles have been chosen already."""
    monkeypatch.setattr(pipeline, "WRITERS", 4)
    jobs, promised, written = jobs_in(tmp_path, [(40, 50)] * 4), [], threading.Event()
    enlarge = Repeating.enlarge

    def noted(upscaler: Repeating, picture: Picture, **options: Any) -> Picture:
        promised.append(options["promised"])
        if len(promised) == 3:
            written.set()
        return enlarge(upscaler, picture)

    monkeypatch.setattr(Repeating, "enlarge", noted)
    monkeypatch.setattr(pictures, "write_picture", lambda *_: written.wait(timeout=30))
    done = list(enlarge_all(jobs, Repeating()))  # type: ignore[arg-type]
    assert [outcome.exception() for _, outcome in done] == [None] * len(jobs)
    assert promised[:3] == [0, cost(jobs[0]), 2 * cost(jobs[0])]


def test_what_a_header_says_is_what_a_picture_takes(tmp_path: Path) -> None:
    Image.new("L", (50, 40)).save(tmp_path / "gray.png")
    Image.new("RGBA", (50, 40)).save(tmp_path / "alpha.png")
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    gray, alpha, damaged = (
        pipeline._cost(Job(tmp_path / name, tmp_path / "out.png"), SCALE)
        for name in ("gray.png", "alpha.png", "damaged.png")
    )
    assert gray >= (1 + SCALE**2) * 40 * 50
    assert alpha >= 4 * (1 + SCALE**2) * 40 * 50
    assert damaged == 0


def test_room_is_a_share_of_what_is_free_or_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 1000)
    assert room() == 1000 * pipeline.SHARE
    assert room(400) == 400 * pipeline.SHARE
    assert room(4000) == room()
    monkeypatch.setattr(memory, "available", lambda: None)
    assert room() is None
    assert room(400) == 400 * pipeline.SHARE


@pytest.mark.parametrize(("device", "together"), [(DEVICES[0], 1), (DEVICES[1], 3)])
def test_a_gpu_is_given_the_next_picture_before_the_last_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, together: int
) -> None:
    """So many are enlarged at the same time: each waits until as many are. On a CPU it is the caller's thread."""
    jobs = jobs_in(tmp_path, [(4, 5)] * (2 * together))
    barrier = threading.Barrier(together)
    threads = set()
    enlarge = Repeating.enlarge

    def together_only(upscaler: Repeating, picture: Picture, **_: Any) -> Picture:
        barrier.wait(timeout=30)
        threads.add(threading.current_thread())
        return enlarge(upscaler, picture)

    monkeypatch.setattr(Repeating, "enlarge", together_only)
    done = list(enlarge_all(jobs, Repeating(device)))  # type: ignore[arg-type]
    assert [(job, outcome.exception()) for job, outcome in done] == [(job, None) for job in jobs]
    assert (threads == {threading.current_thread()}) is (together == 1)


@pytest.mark.parametrize("device", DEVICES)
def test_ctrl_c_ends_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    def interrupted(*_: Any, **__: Any) -> Picture:
        raise KeyboardInterrupt

    monkeypatch.setattr(Repeating, "enlarge", interrupted)
    jobs = jobs_in(tmp_path, [(4, 5)] * 9)
    with pytest.raises(KeyboardInterrupt):
        [outcome.result() for _, outcome in enlarge_all(jobs, Repeating(device))]  # type: ignore[arg-type]
    assert not list(tmp_path.glob("*.ppm"))
