"""The little of CUDA that running a plan takes, through cuda-python: the GPU, memory, streams and graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from engines.base import EngineError, NotInstalled
from ribsr.base.installation import pip_install


class CUDAError(EngineError):
    """A CUDA call that failed. args: CUDA's own name, e.g. `cudaErrorMemoryAllocation`, and the message."""

    def __str__(self) -> str:
        return self.args[1]

    @property
    def out_of_memory(self) -> bool:
        return self.args[0] == "cudaErrorMemoryAllocation"


_ADVICE = {
    "cudaErrorInsufficientDriver": "the NVIDIA driver is missing, or older than the CUDA of cuda-python: install or "
    "update the driver, or take an older cuda-bindings",
    "cudaErrorNoDevice": "the NVIDIA driver finds no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES",
    "cudaErrorMemoryAllocation": "out of GPU memory",
}


def runtime() -> Any:
    """cuda-python's module of the CUDA runtime. Raises EngineError where it is not installed."""
    try:
        from cuda.bindings import runtime as module  # pyright: ignore[reportAttributeAccessIssue]
    except ModuleNotFoundError as error:
        if error.name not in ("cuda", "cuda.bindings"):
            raise
        raise NotInstalled(
            f"running TensorRT plans needs cuda-python 12.6 or later, which is not installed: {pip_install('trt')}"
        ) from None
    return module


def call(name: str, *args: Any) -> Any:
    """What the CUDA runtime's function `name` returns: nothing, a value or a tuple. Raises CUDAError."""
    module = runtime()
    code, *values = getattr(module, name)(*args)
    if code != module.cudaError_t.cudaSuccess:
        known = getattr(code, "name", str(code))
        raise CUDAError(known, f"{_ADVICE.get(known, 'CUDA failed')} ({name}: {known})")
    return values[0] if len(values) == 1 else tuple(values) if values else None


@dataclass(frozen=True)
class GPU:
    """The current device: its number and name, compute capability such as `9.0`, and the driver's CUDA version."""

    index: int
    name: str
    compute_capability: str
    cuda: str


def current_gpu() -> GPU:
    """The GPU that this thread uses. Raises CUDAError where there is none, EngineError without cuda-python.

    CUDA starts here, so that TensorRT never finds that it cannot, which it would say in words of its own.
    """
    index = call("cudaGetDevice")
    call("cudaFree", 0)
    properties = call("cudaGetDeviceProperties", index)
    version = call("cudaDriverGetVersion")
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    cuda = f"{version // 1000}.{version % 1000 // 10}"
    return GPU(index, name.rstrip("\0"), f"{properties.major}.{properties.minor}", cuda)


def free_memory() -> int:
    """Bytes of GPU memory that nobody holds."""
    free, _ = call("cudaMemGetInfo")
    return int(free)


class Buffer:
    """The same number of bytes on the GPU and, pinned, on the host."""

    def __init__(self, size: int):
        self.size = size
        self.device = int(call("cudaMalloc", size))
        try:
            self.host = int(call("cudaMallocHost", size))
        except CUDAError:
            call("cudaFree", self.device)
            raise

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        """The host side as float32 of `shape`."""
        import ctypes

        count = int(np.prod(shape))
        return np.ctypeslib.as_array((ctypes.c_float * count).from_address(self.host)).reshape(shape)

    def close(self) -> None:
        call("cudaFree", self.device)
        call("cudaFreeHost", self.host)


class Stream:
    """A stream of its own, on which work can be timed and recorded as a graph."""

    def __init__(self) -> None:
        self.handle = call("cudaStreamCreateWithFlags", runtime().cudaStreamNonBlocking)

    def upload(self, buffer: Buffer, size: int) -> None:
        kind = runtime().cudaMemcpyKind.cudaMemcpyHostToDevice
        call("cudaMemcpyAsync", buffer.device, buffer.host, size, kind, self.handle)

    def download(self, buffer: Buffer, size: int) -> None:
        kind = runtime().cudaMemcpyKind.cudaMemcpyDeviceToHost
        call("cudaMemcpyAsync", buffer.host, buffer.device, size, kind, self.handle)

    def wait(self) -> None:
        call("cudaStreamSynchronize", self.handle)

    def time(self, work: Callable[[], object]) -> float:
        """Milliseconds that what `work` puts on the stream takes, by CUDA events."""
        start, end = call("cudaEventCreate"), call("cudaEventCreate")
        call("cudaEventRecord", start, self.handle)
        work()
        call("cudaEventRecord", end, self.handle)
        call("cudaEventSynchronize", end)
        milliseconds = float(call("cudaEventElapsedTime", start, end))
        for event in (start, end):
            call("cudaEventDestroy", event)
        return milliseconds

    def close(self) -> None:
        call("cudaStreamDestroy", self.handle)


class Graph:
    """What `work` puts on a stream, recorded instead of done, to be launched as a whole."""

    def __init__(self, stream: Stream, work: Callable[[], object]):
        self._stream = stream
        # Other threads may allocate memory meanwhile.
        mode = runtime().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call("cudaStreamBeginCapture", stream.handle, mode)
        try:
            work()
        except BaseException:  # what failed invalidated the capture; ending it frees the stream
            runtime().cudaStreamEndCapture(stream.handle)
            raise
        graph = call("cudaStreamEndCapture", stream.handle)
        self._executable = call("cudaGraphInstantiate", graph, 0)
        call("cudaGraphDestroy", graph)

    def launch(self) -> None:
        call("cudaGraphLaunch", self._executable, self._stream.handle)

    def close(self) -> None:
        call("cudaGraphExecDestroy", self._executable)
