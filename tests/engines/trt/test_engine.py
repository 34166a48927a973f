"""TensorRT plans as an engine, over a TensorRT and a CUDA that are played here: memory is real, and so is copying."""

from __future__ import annotations

import ctypes
import json
import pickle
import re
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines import EngineError, OutOfMemory, Tiled, open_engine
from engines.base import LayerTime
from engines.trt import gpu as cuda
from engines.trt.engine import TensorRTEngine
from engines.trt.manifest import write_manifest
from plugins import library
from ribsr.base.installation import pip_install
from ribsr.base.pictures import Picture, to_pixels, write_picture
from ribsr.base.sizes import Limits, Size
from tests.engines import fakes
from tests.engines.trt import test_manifest as test_plan

SMALLEST, LARGEST = (1, 3, 4, 4), (1, 3, 32, 48)


class Code(Enum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100


class CUDA:
    """The functions of cuda.bindings.runtime that engines.trt.gpu calls. `limit`: bytes; `held`: what was not freed."""

    cudaError_t = Code
    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self) -> None:
        self.limit, self.failure = 1 << 30, Code.cudaSuccess
        self.held: dict[int, Any] = {}
        self.mallocs: list[int] = []
        self.streams: set[int] = set()
        self.events: set[int] = set()
        self.recording: dict[int, list[Callable[[], None]]] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.launches = 0
        self._lock = threading.Lock()
        self._number = 0

    def _next(self) -> int:
        with self._lock:
            self._number += 1
            return self._number

    def cudaGetDevice(self) -> tuple[Code, int]:
        return self.failure, 0

    def cudaSetDevice(self, index: int) -> tuple[Code]:
        return (Code.cudaSuccess,)

    def cudaGetDeviceProperties(self, index: int) -> tuple[Code, Any]:
        return Code.cudaSuccess, SimpleNamespace(name=b"NVIDIA H100\0", major=9, minor=0)

    def cudaDriverGetVersion(self) -> tuple[Code, int]:
        return Code.cudaSuccess, 13000

    def cudaMemGetInfo(self) -> tuple[Code, int, int]:
        return Code.cudaSuccess, self.limit - sum(len(block) for block in self.held.values()), self.limit

    def cudaMalloc(self, size: int) -> tuple[Code, int]:
        if size > self.limit:
            return Code.cudaErrorMemoryAllocation, 0
        block = ctypes.create_string_buffer(size)
        with self._lock:
            self.held[ctypes.addressof(block)] = block
            self.mallocs.append(size)
        return Code.cudaSuccess, ctypes.addressof(block)

    cudaMallocHost = cudaMalloc

    def cudaFree(self, address: int) -> tuple[Code]:
        if address != 0:  # CUDA's null: nothing happens, but that CUDA starts
            del self.held[address]
        return (Code.cudaSuccess,)

    cudaFreeHost = cudaFree

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Code, int]:
        number = self._next()
        self.streams.add(number)
        return Code.cudaSuccess, number

    def cudaStreamDestroy(self, stream: int) -> tuple[Code]:
        self.streams.remove(stream)
        return (Code.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Code]:
        return (Code.cudaSuccess,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[Code]:
        ctypes.memmove(to, source, size)
        return (Code.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Code]:
        self.recording[stream] = []
        return (Code.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Code, list]:
        return Code.cudaSuccess, self.recording.pop(stream)

    def cudaGraphInstantiate(self, graph: list, flags: int) -> tuple[Code, int]:
        number = self._next()
        self.graphs[number] = graph
        return Code.cudaSuccess, number

    def cudaGraphDestroy(self, graph: list) -> tuple[Code]:
        return (Code.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph: int) -> tuple[Code]:
        del self.graphs[graph]
        return (Code.cudaSuccess,)

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[Code]:
        self.launches += 1
        for work in self.graphs[graph]:
            work()
        return (Code.cudaSuccess,)

    def cudaEventCreate(self) -> tuple[Code, int]:
        number = self._next()
        self.events.add(number)
        return Code.cudaSuccess, number

    def cudaEventDestroy(self, event: int) -> tuple[Code]:
        self.events.remove(event)
        return (Code.cudaSuccess,)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[Code]:
        return (Code.cudaSuccess,)

    def cudaEventSynchronize(self, event: int) -> tuple[Code]:
        return (Code.cudaSuccess,)

    def cudaEventElapsedTime(self, start: int, end: int) -> tuple[Code, float]:
        return Code.cudaSuccess, 1.5


def network(x: np.ndarray) -> np.ndarray:
    """What the played engine computes: every pixel four times, inverted."""
    return 1 - x.repeat(2, axis=2).repeat(2, axis=3)


def view(address: int, shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address)).reshape(shape)


class Context:
    """An execution context that notices when two threads use it at once.

    As in 8.6 the first one of an engine has its profile, and any other only if it asks.
    """

    def __init__(self, played: TensorRT):
        self._played, self._addresses, self._shape = played, {}, (0, 0, 0, 0)
        self._used = threading.Lock()
        self.profiler: Any = None
        self.active_optimization_profile = -1 if played.contexts else 0

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream in self._played.cuda.streams
        if self._played.shares_profile:
            self.active_optimization_profile = index
        return self._played.shares_profile

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        return self.active_optimization_profile == 0

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        b, c, h, w = self._shape
        return b, c, 2 * h, 2 * w

    def set_tensor_address(self, name: str, address: int) -> None:
        self._addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        if self._played.failures is not None:
            self._played.complain(self._played.failures(self._shape))
            return False
        if self._played.failure:
            self._played.complain(self._played.failure)
            return False
        source, target, shape = self._addresses["input"], self._addresses["output"], self._shape

        def work() -> None:
            assert self._used.acquire(blocking=False), "two threads in one context"
            result = network(view(source, shape))
            if self._played.meet is not None:
                self._played.meet.wait(10)
            view(target, self.get_tensor_shape("output"))[...] = result
            self._used.release()

        recording = self._played.cuda.recording.get(stream)
        work() if recording is None else recording.append(work)
        if self.profiler is not None:
            self.profiler.report_layer_time("attention", 2.0)
            self.profiler.report_layer_time("convolution", 0.5)
        return True


class TensorRT:
    """The module, for one engine. failure: TensorRT's error when it runs; failures: the same by the input's shape.
    meet: a barrier that all runs wait at."""

    __version__ = "8.6.0"
    device_memory_size = 5000

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3)

    class IProfiler:
        pass

    def __init__(self, played_cuda: CUDA):
        self.cuda, self.failure = played_cuda, ""
        self.failures: Callable[[tuple[int, ...]], str] | None = None
        self.shares_profile = True
        self.meet: threading.Barrier | None = None
        self.contexts: list[Context] = []
        self.log: Any = None

    def Runtime(self, log: Any) -> TensorRT:
        self.log = log
        return self

    def complain(self, message: str) -> None:
        self.log.log(self.ILogger.Severity.ERROR, message)

    def deserialize_cuda_engine(self, plan: bytes) -> TensorRT | None:
        if plan != b"engine":
            self.complain("magic tag does not match")
            return None
        return self

    def get_tensor_profile_shape(self, name: str, profile: int) -> tuple[tuple[int, ...], ...]:
        return SMALLEST, (1, 3, 16, 16), LARGEST

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(low if low == high else -1 for low, high in zip(SMALLEST, LARGEST, strict=True))

    num_layers = 2
    LayerInformationFormat = SimpleNamespace(JSON="json")

    def create_engine_inspector(self) -> TensorRT:
        return self

    def get_layer_information(self, index: int, form: str) -> str:
        layers = ({"Name": "attention", "LayerType": "PluginV2", "PluginType": "Attention"}, "convolution")
        return json.dumps(layers[index])

    def create_execution_context(self) -> Context | None:
        if self.failure:
            self.complain(self.failure)
            return None
        self.contexts.append(Context(self))
        return self.contexts[-1]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> CUDA:
    played = CUDA()
    monkeypatch.setattr(cuda, "runtime", lambda: played)
    return played


@pytest.fixture
def trt(gpu: CUDA, monkeypatch: pytest.MonkeyPatch) -> TensorRT:
    played = TensorRT(gpu)
    monkeypatch.setitem(sys.modules, "tensorrt", played)
    return played


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A plan without plugins, for this TensorRT and GPU."""
    path = tmp_path / "x2.fp16.plan"
    path.write_bytes(b"engine")
    write_manifest(path, replace(test_plan.manifest(path), plugin=None))
    return path


def rewrite(plan: Path, **changes: Any) -> None:
    write_manifest(plan, replace(test_plan.manifest(plan), **{"plugin": None, **changes}))


def refusal(plan: Path, **options: Any) -> str:
    with pytest.raises(EngineError) as error:
        open_engine(plan, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_it_computes_and_describes_itself(trt: TensorRT, plan: Path) -> None:
    with open_engine(plan) as engine:
        for h, w in ((5, 7), (32, 48), (4, 4), (5, 7)):
            x = fakes.picture(h, w)
            np.testing.assert_array_equal(engine.run(x), network(x))
        described = engine.describe()
    assert (described.runtime, described.runtime_version, described.device) == (
        "tensorrt",
        "8.6.0",
        "cuda:0 NVIDIA H100",
    )
    assert (described.precision, described.form, described.scale) == ("fp16", "plugin", 2)
    assert described.batch == 1
    assert described.limits == Limits(Size(4, 4), Size(32, 48))


def test_the_next_run_changes_no_result(trt: TensorRT, plan: Path) -> None:
    x = fakes.picture(8, 10)
    with open_engine(plan) as engine:
        y = engine.run(x)
        engine.run(1 - x)
    np.testing.assert_array_equal(y, network(x))


def test_a_part_of_a_result_goes_where_it_is_wanted(trt: TensorRT, plan: Path) -> None:
    x, canvas = fakes.picture(8, 10), np.zeros((1, 3, 20, 30), np.float32)
    part = slice(3, 13), slice(0, 12)
    with open_engine(plan) as engine:
        engine.run_into(x, canvas[..., 2:12, 5:17], part)
        with pytest.raises(EngineError, match=re.escape("is [1, 3, 10, 12], the array to put it in [2, 3, 10, 12]")):
            engine.run_into(x, np.zeros((2, 3, 10, 12), np.float32), part)
        with pytest.raises(EngineError, match="needs a float32 array that can be written to"):
            engine.run_into(x, np.zeros((1, 3, 10, 12), np.uint8), part)
        assert len(trt.contexts) == 1, "nothing ran, and nothing was thrown away"
        np.testing.assert_array_equal(engine.run(x), network(x))
    expected = np.zeros_like(canvas)
    expected[..., 2:12, 5:17] = network(x)[..., 3:13, :12]
    np.testing.assert_array_equal(canvas, expected)


def test_everything_is_given_back(trt: TensorRT, gpu: CUDA, plan: Path) -> None:
    engine = TensorRTEngine(plan, cuda_graphs=True)
    for _ in range(3):
        engine.run(fakes.picture(8, 8))
    assert gpu.held
    assert gpu.streams
    assert gpu.graphs
    engine.close()
    engine.close()
    assert not gpu.held
    assert not gpu.streams
    assert not gpu.graphs
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.run(fakes.picture(8, 8))


def test_buffers_are_reused_and_grow(trt: TensorRT, gpu: CUDA, plan: Path) -> None:
    with open_engine(plan) as engine:
        engine.run(fakes.picture(16, 16))
        first = len(gpu.mallocs)
        engine.run(fakes.picture(16, 16))
        engine.run(fakes.picture(5, 9))
        assert len(gpu.mallocs) == first
        engine.run(fakes.picture(20, 20))
        assert len(gpu.mallocs) == 2 * first
        assert len(gpu.held) == first, "the smaller ones are freed"


def test_what_a_run_needs_is_known(trt: TensorRT, gpu: CUDA, plan: Path) -> None:
    size, larger = Size(8, 8), Size(16, 16)
    with open_engine(plan) as engine:
        assert engine.needs(size) == 5000 + 5 * 4 * 3 * 8 * 8
        assert engine.needs(size, 2) == 5000 + 2 * 5 * 4 * 3 * 8 * 8
        engine.run(fakes.picture(8, 8))
        assert engine.needs(size) == 0
        assert engine.needs(larger) == 5 * 4 * 3 * (16 * 16 - 8 * 8)
        held = sum(len(block) for block in gpu.held.values())
        assert held > 0
        assert engine.device_memory() == gpu.limit - held
        engine.release()
        assert not gpu.held
        assert engine.needs(size) == 5000 + 5 * 4 * 3 * 8 * 8
    assert engine.needs(size) is None


def test_tiles_suit_the_memory_of_the_gpu(trt: TensorRT, gpu: CUDA, plan: Path) -> None:
    picture = fakes.picture(30, 40)
    with open_engine(plan) as engine:
        assert Tiled(engine).largest(Size(30, 40)) == (30, 40)
        gpu.limit = 5000
        with pytest.raises(EngineError, match="even in tiles of 40x30"):  # windows leave no smaller ones
            Tiled(engine).run(picture)
        gpu.limit = 1 << 30
        np.testing.assert_array_equal(Tiled(engine).run(picture), network(picture))


def test_threads_have_contexts_of_their_own_which_are_reused(trt: TensorRT, plan: Path) -> None:
    pictures = [fakes.picture(6 + i, 9, seed=i) for i in range(4)]
    with open_engine(plan) as engine, ThreadPoolExecutor(4) as pool:
        trt.meet = threading.Barrier(4)  # all four are inside at once
        outputs = list(pool.map(engine.run, pictures))
        trt.meet = None
        engine.run(pictures[0])
    for x, y in zip(pictures, outputs, strict=True):
        np.testing.assert_array_equal(y, network(x))
    assert len(trt.contexts) == 4


def test_a_plan_for_one_thread_says_so_and_goes_on_in_that_one(trt: TensorRT, gpu: CUDA, plan: Path) -> None:
    """Plans of TensorRT 8.6 that another tool or an older release of this one built."""
    trt.shares_profile = False
    x = fakes.picture(8, 8)
    with TensorRTEngine(plan) as engine, engine._lane(x):
        held = set(gpu.streams)
        with pytest.raises(EngineError, match="runs in one thread at a time; build it again"):
            engine.run(x)
        assert gpu.streams == held, "what the second one had is given back"


def test_graphs_are_recorded_at_the_second_run_and_dropped_with_the_size(trt: TensorRT, gpu: CUDA, plan: Path) -> None:
    with open_engine(plan, cuda_graphs=True) as engine:
        launches = []
        for seed, size in enumerate(((8, 8), (8, 8), (8, 8), (9, 8), (8, 8), (8, 8))):
            x = fakes.picture(*size, seed=seed)
            np.testing.assert_array_equal(engine.run(x), network(x))
            launches.append(gpu.launches)
        assert launches == [0, 1, 2, 2, 2, 3]
        assert len(gpu.graphs) == 1


def test_sizes_outside_the_profile(trt: TensorRT, plan: Path) -> None:
    with open_engine(plan) as engine:
        for h, w in ((33, 20), (3, 20)):
            with pytest.raises(EngineError) as error:
                engine.run(fakes.picture(h, w))
            assert f"takes pictures of 4x4 to 48x32, got {Size(h, w)}; give --tile, or build one for" in str(
                error.value
            )
            assert "python -m export.trt --onnx x2.onnx --fp16" in str(error.value)
        with pytest.raises(EngineError, match="takes 1 at a time, got 2"):
            engine.run(np.zeros((2, 3, 8, 8), np.float32))


def test_too_little_memory_names_the_picture_and_leaves_nothing(trt: TensorRT, gpu: CUDA, plan: Path) -> None:
    with open_engine(plan) as engine:
        gpu.limit = 4000
        with pytest.raises(EngineError, match="out of memory on a picture of 48x32"):
            engine.run(fakes.picture(32, 48))
        assert not gpu.held
        gpu.limit = 1 << 30
        trt.failure = "Error Code 2: OutOfMemory (no further information)"
        with pytest.raises(EngineError, match="out of memory on a picture of 48x32"):
            engine.run(fakes.picture(32, 48))
        trt.failure = ""
        engine.run(fakes.picture(32, 48))


def test_what_fails_in_tensorrt_is_one_line_and_the_engine_goes_on(trt: TensorRT, gpu: CUDA, plan: Path) -> None:
    x = fakes.picture(8, 8)
    with open_engine(plan) as engine:
        engine.run(x)
        trt.failure = "enqueueV3: \n bad  state"
        with pytest.raises(EngineError, match=r"TensorRT failed \(enqueueV3: bad state\)"):
            engine.run(x)
        assert not gpu.held, "the context that failed is not used again"
        trt.failure = ""
        np.testing.assert_array_equal(engine.run(x), network(x))


def test_an_illegal_memory_access_ends_the_run_as_it_is(
    trt: TensorRT, plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Smaller tiles are tried where memory is lacking, and not for what only speaks of it."""
    from engines.upscale import main

    trt.failure = "1: [a.cpp::b::1] Error Code 1: Cuda Runtime (an illegal memory access was encountered)"
    with open_engine(plan) as engine, pytest.raises(EngineError, match="an illegal memory access") as error:
        engine.run(fakes.picture(8, 8))
    assert not isinstance(error.value, OutOfMemory)
    source = tmp_path / "in.png"
    write_picture(source, Picture(to_pixels(fakes.picture(30, 40))))
    with pytest.raises(SystemExit, match="1"):
        main([str(plan), str(source), str(tmp_path / "out.png")])
    said = capsys.readouterr().err
    assert "an illegal memory access was encountered" in said
    assert "Note" not in said


def test_threads_that_fail_at_the_same_time_tell_their_own_reasons(trt: TensorRT, plan: Path) -> None:
    meet = threading.Barrier(4)

    def reason(shape: tuple[int, ...]) -> str:
        meet.wait(10)
        trt.complain(f"reason of {shape[2]}")
        meet.wait(10)  # all have spoken before any has failed
        return "and another"

    def failure(rows: int) -> str:
        with pytest.raises(EngineError) as error:
            engine.run(fakes.picture(rows, 8))
        return str(error.value)

    trt.failures = reason
    with open_engine(plan) as engine, ThreadPoolExecutor(4) as pool:
        told = list(pool.map(failure, range(4, 8)))
    assert told == [f"{plan}: TensorRT failed (reason of {rows})" for rows in range(4, 8)]


def test_timer_and_profile(trt: TensorRT, gpu: CUDA, plan: Path) -> None:
    with TensorRTEngine(plan) as engine:
        timer = engine.timer(fakes.picture(8, 8))
        assert timer.once() == 1.5
        assert not gpu.events
        taken = timer.peak_memory() or 0
        assert taken >= 8 * 8 * 3 * 4 * 5, "input and output, on the device"
        gpu.limit -= 1 << 20
        assert timer.peak_memory() == taken, "what another process takes is not this engine's"
        assert engine.profile(fakes.picture(8, 8), runs=2) == [
            LayerTime("attention", 2.0, "Attention"),
            LayerTime("convolution", 0.5, "unreadable"),
        ]
        assert [context.profiler for context in trt.contexts] == [None]


def test_a_plan_for_another_tensorrt_and_gpu(trt: TensorRT, plan: Path) -> None:
    rewrite(plan, tensorrt="10.3.0", compute_capability="8.9")
    message = refusal(plan)
    assert "TensorRT 10.3.0, here is 8.6.0" in message
    assert "compute capability 8.9, here is 9.0" in message
    assert "python -m export.trt --onnx x2.onnx --fp16 " in message


def test_the_plugin_library_must_be_the_one_it_was_built_with(
    trt: TensorRT, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ribsr.base.files import sha256

    loaded: list[Path] = []
    monkeypatch.setattr(library, "load_tensorrt", lambda _, path: loaded.append(path))
    elsewhere = tmp_path / "elsewhere.so"
    monkeypatch.setenv(library.TENSORRT_VARIABLE, str(elsewhere))
    rewrite(plan, plugin={"file": "libribsr_tensorrt8.so", "sha256": "2" * 64})
    assert "needs the plugin library libribsr_tensorrt8.so" in refusal(plan)
    elsewhere.write_bytes(b"kernels")
    assert f"was built with another build of {elsewhere}" in refusal(plan)
    rewrite(plan, plugin={"file": "libribsr_tensorrt8.so", "sha256": sha256(elsewhere)})
    open_engine(plan).close()
    beside = plan.with_name("libribsr_tensorrt8.so")
    beside.write_bytes(b"kernels")
    open_engine(plan).close()
    assert loaded == [elsewhere, beside]


def test_a_plan_that_tensorrt_cannot_read(trt: TensorRT, plan: Path) -> None:
    plan.write_bytes(b"not an engine")
    rewrite(plan)
    assert "TensorRT cannot read this plan (magic tag does not match)" in refusal(plan)


@pytest.mark.parametrize(
    ("code", "advice"),
    [(Code.cudaErrorInsufficientDriver, "update the driver"), (Code.cudaErrorNoDevice, "check nvidia-smi")],
)
def test_without_a_driver_or_gpu(trt: TensorRT, gpu: CUDA, plan: Path, code: Code, advice: str) -> None:
    gpu.failure = code
    message = refusal(plan)
    assert advice in message
    assert code.name in message


def test_errors_of_cuda_go_from_process_to_process() -> None:
    error = pickle.loads(pickle.dumps(cuda.CUDAError("cudaErrorMemoryAllocation", "out of GPU memory")))
    assert error.out_of_memory
    assert str(error) == "out of GPU memory"


def test_it_runs_on_gpus_only(trt: TensorRT, plan: Path) -> None:
    assert "runs on a GPU only" in refusal(plan, device="cpu")


def test_cuda_functions_exist_where_cuda_python_is_installed() -> None:
    bindings = pytest.importorskip("cuda.bindings.runtime")
    used = [name for name in vars(CUDA) if name.startswith("cuda")]
    assert not [name for name in used if not hasattr(bindings, name)]
    assert hasattr(bindings.cudaMemcpyKind, "cudaMemcpyHostToDevice")
    assert hasattr(bindings.cudaStreamCaptureMode, "cudaStreamCaptureModeThreadLocal")


# The lean runtime, and plans for later releases


@pytest.fixture
def lean(trt: TensorRT, monkeypatch: pytest.MonkeyPatch) -> TensorRT:
    """The lean runtime of the same version, and no other TensorRT."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_lean", trt)
    return trt


def test_a_version_compatible_plan_runs_in_the_lean_runtime_where_that_is_all_there_is(
    lean: TensorRT, plan: Path
) -> None:
    rewrite(plan, version_compatible=True)
    with open_engine(plan) as engine:
        described = engine.describe()
        x = fakes.picture(5, 7)
        np.testing.assert_array_equal(engine.run(x), network(x))
        assert engine.profile(x, runs=1)[0] == LayerTime("attention", 2.0, "")
    assert (described.runtime, described.runtime_version) == ("tensorrt-lean", "8.6.0")


def test_all_of_tensorrt_comes_first(trt: TensorRT, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_lean", SimpleNamespace(__version__="8.6.1"))
    rewrite(plan, version_compatible=True)
    with open_engine(plan) as engine:
        assert (engine.describe().runtime, engine.describe().runtime_version) == ("tensorrt", "8.6.0")


def test_a_later_release_runs_version_compatible_plans(
    trt: TensorRT, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt, "__version__", "8.6.1", raising=False)
    assert "was built for TensorRT 8.6.0, here is 8.6.1; build it here: " in refusal(plan)
    rewrite(plan, version_compatible=True)
    with open_engine(plan) as engine:
        assert engine.describe().runtime_version == "8.6.1"


def test_other_plans_are_refused_in_the_lean_runtime(lean: TensorRT, plan: Path) -> None:
    message = refusal(plan)
    assert "was built without --version-compatible, and TensorRT's lean runtime takes no such plan" in message
    assert pip_install("trt") in message


def test_a_version_compatible_plan_of_another_major_version(
    lean: TensorRT, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lean, "__version__", "10.16.1.11", raising=False)
    rewrite(plan, version_compatible=True)
    message = refusal(plan)
    assert "was built for TensorRT 8.6.0, here is 10.16.1.11; it runs in TensorRT 8 from 8.6.0 on" in message
    assert "--fp16 --no-plugin --version-compatible --shapes" in message


def test_neither_is_there(gpu: CUDA, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_lean", "tensorrt_lean_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    rewrite(plan, version_compatible=True)
    assert refusal(plan) == f"TensorRT for Python is not installed: {pip_install('trt')}"
