"""The PyTorch engine's CUDA graphs: on a GPU, and where there is none with stand-ins for streams and graphs."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines import fakes

torch = pytest.importorskip("torch")

import ribsr  # noqa: E402
from engines import EngineError, OutOfMemory, Tiled, open_engine  # noqa: E402
from engines import pytorch as module  # noqa: E402
from engines.base import Timer  # noqa: E402
from engines.pytorch import RECORDINGS, Graphs, PyTorchEngine, Recording  # noqa: E402
from plugins import library  # noqa: E402
from plugins.modules import fuse  # noqa: E402
from ribsr.base.sizes import Size  # noqa: E402


class Stream:
    """One on which everything is done at once."""

    def __init__(self, device: object = None):
        pass

    def wait_stream(self, other: object) -> None:
        pass

    def synchronize(self) -> None:
        pass


class Stand:
    """An engine on a CPU whose graphs are functions. captured: how often; fail: called instead of a capture."""

    def __init__(self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
        self.captured = 0
        self.fail: Callable[[], None] | None = None
        self.recordings: list[weakref.ref[Recording]] = []
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Stream())
        monkeypatch.setattr(module, "_capture", self._capture)
        opened = open_engine(checkpoint, device="cpu")
        assert isinstance(opened, PyTorchEngine)
        assert opened._model is not None
        self.engine = opened
        self.model = opened._model = fuse(opened._model)
        self.graphs = opened._graphs = Graphs(self.model, torch.device("cpu"))

    def _capture(self, work: Any) -> Callable[[], None]:
        if self.fail is not None:
            self.fail()
        self.captured += 1
        self.recordings.append(weakref.ref(work.__self__))
        return work

    def alive(self) -> int:
        gc.collect()
        return sum(recording() is not None for recording in self.recordings)

    def expected(self, x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self.model(torch.from_numpy(np.ascontiguousarray(x))).numpy()


@pytest.fixture
def stand(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    return Stand(checkpoint, monkeypatch)


def test_a_shape_is_recorded_once(stand: Stand) -> None:
    pictures = [fakes.picture(9, 11, seed=i) for i in range(3)] + [fakes.picture(4, 6)]
    for x in pictures:
        np.testing.assert_array_equal(stand.engine.run(x), stand.expected(x))
    assert stand.captured == 2


def test_results_are_the_callers_own(stand: Stand) -> None:
    first = stand.engine.run(x := fakes.picture(8, 8))
    stand.engine.run(fakes.picture(8, 8, seed=1))
    np.testing.assert_array_equal(first, stand.expected(x))


@pytest.mark.parametrize("view", [lambda x: x[:, :, ::-1, 2:7], lambda x: x.swapaxes(2, 3), lambda x: x.repeat(2, 0)])
def test_inputs_may_have_any_strides_and_results_be_put_into_parts(
    stand: Stand, view: Callable[[np.ndarray], np.ndarray]
) -> None:
    x = view(fakes.picture(9, 11))
    expected = stand.expected(x)
    out = np.zeros((len(x), 3, 20, 30), np.float32)
    part = (slice(2, 8), slice(1, 5))
    stand.engine.run_into(x, out[:, :, 3:9, 7:11], part)
    np.testing.assert_array_equal(out[:, :, 3:9, 7:11], expected[(..., *part)])
    assert not out[:, :, :3].any()
    assert not out[:, :, :, 11:].any()
    with pytest.raises(EngineError, match="the array to put it in"):
        stand.engine.run_into(x, out)


def test_the_shapes_used_last_are_kept(stand: Stand) -> None:
    pictures = [fakes.picture(4 + i, 5) for i in range(RECORDINGS + 1)]
    for x in [*pictures[:-1], pictures[0]]:
        stand.engine.run(x)
    assert stand.captured == stand.alive() == RECORDINGS
    stand.engine.run(pictures[-1])  # in the place of the second
    stand.engine.run(pictures[0])
    assert stand.captured == RECORDINGS + 1
    assert stand.alive() == RECORDINGS
    stand.engine.run(pictures[1])
    assert stand.captured == RECORDINGS + 2
    assert stand.alive() == RECORDINGS


def test_threads_have_each_their_own_result(stand: Stand) -> None:
    pictures = [fakes.picture(3 + i % 6, 9 - i % 6, seed=i) for i in range(24)]
    serial = [stand.expected(x) for x in pictures]
    with ThreadPoolExecutor(4) as pool:
        parallel = list(pool.map(stand.engine.run, pictures))
    for one, other in zip(serial, parallel, strict=True):
        np.testing.assert_array_equal(one, other)


def no_memory() -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")


def no_memory_at_the_end() -> None:
    """CUDA's complaint about the graph, while memory was what ran out."""
    try:
        no_memory()
    finally:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


@pytest.mark.parametrize("failing", [no_memory, no_memory_at_the_end])
def test_out_of_memory_leaves_the_engine_usable(stand: Stand, failing: Callable[[], None]) -> None:
    x = fakes.picture()
    stand.fail = failing
    with pytest.raises(OutOfMemory, match="out of memory on a picture of 11x9"):
        stand.engine.run(x)
    stand.fail = None
    assert not stand.graphs._recordings
    np.testing.assert_array_equal(stand.engine.run(x), stand.expected(x))


def test_out_of_memory_drops_the_other_recordings_first(stand: Stand) -> None:
    for height in (4, 5, 6):
        stand.engine.run(fakes.picture(height, 7))

    def fails_beside_others() -> None:
        if stand.graphs._recordings:
            no_memory()

    stand.fail = fails_beside_others
    x = fakes.picture(8, 7)
    np.testing.assert_array_equal(stand.engine.run(x), stand.expected(x))
    assert stand.alive() == 1


def test_other_failures_of_a_capture_are_errors(stand: Stand) -> None:
    def failing() -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    stand.fail = failing
    with pytest.raises(EngineError, match="operation not permitted when stream is capturing") as info:
        stand.engine.run(fakes.picture())
    assert not isinstance(info.value, OutOfMemory)
    assert "\n" not in str(info.value)


def test_a_closed_engine_has_let_go(stand: Stand) -> None:
    stand.engine.run(fakes.picture())
    stand.engine.close()
    stand.engine.close()
    assert stand.alive() == 0
    with pytest.raises(EngineError, match="the engine is closed"):
        stand.engine.run(fakes.picture())


def test_a_timer_times_what_is_recorded(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []

    def timer_of(run: Callable[[], object], device: object) -> Timer:
        def once() -> float:
            run()
            runs.append(stand.captured)
            return 1.0

        return Timer("clock", once)

    monkeypatch.setattr(module, "cuda_timer", timer_of)
    x = fakes.picture()
    stand.engine.run(x)
    timer = stand.graphs.timer(x)
    assert stand.captured == 2, "its memory is to be seen"
    assert [timer.once(), timer.once()] == [1, 1]
    stand.engine.run(x)
    assert runs == [2, 2]
    assert stand.captured == 2


# On a GPU

on_gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() and library.path().exists()), reason="needs a GPU and python -m plugins.build"
)


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One block of sst-light, random weights."""
    from dataclasses import replace

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("graphs") / "light.pt"
    ribsr.save(ribsr.build(replace(ribsr.config("sst-light"), blocks=1)), path)
    return path


@pytest.fixture
def engine(light: Path) -> Iterator[PyTorchEngine]:
    with open_engine(light, device="cuda", precision="fp16") as opened:
        assert isinstance(opened, PyTorchEngine)
        yield opened


def eager(engine: PyTorchEngine, x: np.ndarray) -> np.ndarray:
    assert engine._model is not None
    with torch.inference_mode():
        return engine._model(torch.from_numpy(x).cuda()).float().cpu().numpy()


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_replays_are_the_model_bit_for_bit(light: Path, precision: str) -> None:
    shapes = [(64, 64), (33, 70), (1, 1), (64, 64), (130, 97), (33, 70)]
    with open_engine(light, device="cuda", precision=precision) as engine:
        assert isinstance(engine, PyTorchEngine)
        assert engine.describe().form == "kernel"
        for i, shape in enumerate(shapes * 2):
            x = fakes.picture(*shape, seed=i)
            np.testing.assert_array_equal(engine.run(x), eager(engine, x))
        pair = np.concatenate([fakes.picture(40, 50, seed=i) for i in range(2)])
        for _ in range(2):
            np.testing.assert_array_equal(engine.run(pair), eager(engine, pair))
        assert len(engine._graphs._recordings) == RECORDINGS  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.gpu
@on_gpu
def test_it_computes_what_pytorch_computes(light: Path, engine: PyTorchEngine) -> None:
    x = fakes.picture(100, 130)
    with open_engine(light, device="cuda", precision="fp16", attention="sdpa") as other:
        assert other.describe().form == "sdpa"
        for _ in range(2):
            np.testing.assert_allclose(engine.run(x), other.run(x), atol=4e-3)


@pytest.mark.gpu
@on_gpu
def test_threads_and_engines_at_the_same_time(light: Path, engine: PyTorchEngine) -> None:
    """More shapes than are kept, so that graphs are recorded all the time."""
    pictures = [fakes.picture(20 + 9 * (i % 6), 60 - 7 * (i % 6), seed=i) for i in range(36)]
    serial = [eager(engine, x) for x in pictures]
    with open_engine(light, device="cuda", precision="fp16") as second, ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit((engine, second)[i % 2].run, x) for i, x in enumerate(pictures * 2)]
        for job, expected in zip(jobs, serial * 2, strict=True):
            np.testing.assert_array_equal(job.result(), expected)


@pytest.mark.gpu
@on_gpu
def test_parts_and_tiles(engine: PyTorchEngine) -> None:
    x = fakes.picture(300, 200)
    whole = engine.run(x)
    out = np.zeros((1, 3, 10, 20), np.float32)
    engine.run_into(x, out, (slice(30, 40), slice(7, 27)))
    np.testing.assert_array_equal(out, whole[:, :, 30:40, 7:27])
    tiled = Tiled(engine, Size(192, 128))
    np.testing.assert_array_equal(tiled.run(x), tiled.run(x))


@pytest.mark.gpu
@on_gpu
def test_memory_is_bounded_and_given_back(light: Path) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    reserved = []
    with open_engine(light, device="cuda", precision="fp16") as engine:
        for i in range(3 * RECORDINGS):
            engine.run(fakes.picture(256, 250 + i))
            reserved.append(torch.cuda.memory_reserved() - before)
        timer = engine.timer(fakes.picture(256, 256))
        assert 0 < timer.once() < 100
        peak = timer.peak_memory()
        assert peak is not None
        assert 256 * 256 * 48 * 2 * 4 < peak < 256 * 256 * 48 * 2 * 40
    assert max(reserved[RECORDINGS:]) < 1.3 * reserved[RECORDINGS]
    del timer
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() - before < 2**25


class WithoutMemory:
    """A model for which memory runs out while it is recorded, as long as `armed`."""

    def __init__(self, model: Any):
        self.model, self.config, self.armed = model, model.config, True

    def __call__(self, x: Any) -> Any:
        y = self.model(x)
        if self.armed and torch.cuda.is_current_stream_capturing():
            torch.empty(1 << 50, device="cuda")
        return y


@pytest.mark.gpu
@on_gpu
def test_an_engine_is_usable_after_a_capture_that_ran_out_of_memory(engine: PyTorchEngine) -> None:
    graphs, x = engine._graphs, fakes.picture(64, 70)
    assert graphs is not None
    expected = engine.run(x)
    graphs.forget()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    model: Any = WithoutMemory(engine._model)
    graphs._model = model
    for _ in range(2):
        with pytest.raises(OutOfMemory):
            engine.run(x)
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + 2**22
    model.armed = False
    for _ in range(3):
        np.testing.assert_array_equal(engine.run(x), expected)


@pytest.mark.gpu
@on_gpu
def test_too_large_a_picture_then_a_small_one(engine: PyTorchEngine) -> None:
    """With little memory: what is recorded makes room for another shape, and a large picture for a small one."""
    first, second = fakes.picture(640, 512), fakes.picture(512, 640)
    expected = [eager(engine, x) for x in (first, second)]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    engine.run(first)
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction(1.5 * torch.cuda.max_memory_reserved() / total)
        for x, y in [(second, expected[1]), (first, expected[0]), (first, expected[0])]:
            np.testing.assert_array_equal(engine.run(x), y)
        with pytest.raises(OutOfMemory):
            engine.run(fakes.picture(2000, 2000))
        np.testing.assert_array_equal(engine.run(first), expected[0])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.gpu
@on_gpu
def test_times_and_profiles(engine: PyTorchEngine) -> None:
    x = fakes.picture(360, 640)
    timer = engine.timer(x)
    times = [timer.once() for _ in range(5)]
    layers = engine.profile(x)
    assert any("attention" in layer.name for layer in layers)
    assert min(times) == pytest.approx(sum(layer.milliseconds for layer in layers), rel=0.4)
    before = engine.run(x)
    worker = threading.Thread(target=timer.once)
    worker.start()
    np.testing.assert_array_equal(engine.run(x), before)
    worker.join()
    engine.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        timer.once()
