"""PyTorch as an engine: the reference that exported files are measured against. The only module here with torch."""

from __future__ import annotations

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engines import base, memory, pinned
from engines.base import Description, Engine, EngineError, LayerTime, NotInstalled, Timer
from ribsr.base.errors import RibsrError, first_line
from ribsr.base.files import sha256
from ribsr.base.installation import build_kernels, pip_install

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise NotInstalled(f"checkpoints need PyTorch, which is not installed: {pip_install('export')}") from None

from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity

import ribsr
from plugins import library as kernel_library
from plugins.operators import CYCLIC_WINDOW_ATTENTION
from ribsr.attention import WindowAttention
from ribsr.base.sizes import Size
from ribsr.configs import Config, ESCRIBConfig

if TYPE_CHECKING:
    from ribsr.layers import RIBModel

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

_NO_MEMORY = re.compile(
    r"\[enforce fail at \w+\.cpp:\d+\].* DefaultCPUAllocator: (can't allocate|not enough) memory: you tried to |"
    r"CUDA error: out of memory$",
    re.MULTILINE,
)
"""How errors begin that have no type of their own: those of the CPU's allocator, and of CUDA outside of PyTorch's."""

RECORDINGS = 4
"""CUDA graphs that an engine keeps, one for a shape of input, each with the memory of its activations: as many as there
are sizes of tiles in a picture."""

_capturing = threading.Lock()
"""Held while a CUDA graph is made: what waits for the whole GPU would break it, and to make one begins with that."""


class PyTorchEngine(Engine):
    """A checkpoint run by PyTorch; `engines.open_engine` says what the arguments mean.

    float32 is float32: at each run on a GPU TF32 is switched off, or on with tf32, for the process; engines that differ
    in it are for one thread. `threads` sets PyTorch's threads for the process too.

    attention="kernel", which `auto` is for half precision on a GPU where the kernels are built and made for the model's
    widths: all layers run our operators (`plugins.modules`), and the work of each shape of input is recorded as a CUDA
    graph at its first run. The last RECORDINGS shapes are kept; threads that share the engine run one after another.
    """

    _graphs: Graphs | None = None
    _tf32 = False
    _first = memory.FIRST_RUN["pytorch"]

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "auto",
        threads: int | None = None,
        precision: str = "fp32",
        attention: str = "auto",
        model: str | None = None,
        config: str | Path | None = None,
        tf32: bool = False,
    ):
        base.check_choice("precision", precision, base.PRECISIONS)
        self._path = str(path)
        self._dtype = _DTYPES[precision]
        self._device = _choose_device(device)
        if threads is not None:
            torch.set_num_threads(threads)
        self._tf32 = tf32
        if tf32:
            base.check_tf32(self._path, precision, self._device.type == "cuda")
        try:
            loaded = ribsr.load(path, model=model, config=config)
        except (RibsrError, OSError) as error:
            raise EngineError(first_line(error)) from error
        notes: list[str] = []
        if attention == "auto" and _suits_kernel(loaded, self._device, self._dtype):
            if kernel_library.path().exists():
                attention = "kernel"
            else:
                notes.append(f"{path}: runs PyTorch's attention; {build_kernels()} makes a faster one (needs nvcc)")
        if attention == "kernel":
            _register_kernel()
        try:
            ribsr.set_attention(loaded, attention)
        except ValueError as error:
            raise EngineError(first_line(error)) from error
        # The RIB stays in float32: its module refuses to be cast to half precision.
        self._model: RIBModel | None = loaded.requires_grad_(False).to(self._device, self._dtype)
        if attention == "kernel" and self._device.type == "cuda":
            self._model = _fused(self._model)
            self._graphs = Graphs(self._model, self._device)
        self._network = _network(loaded.config)
        self._description = self._describe(loaded, "tf32" if tf32 else precision, attention, tuple(notes))

    def _describe(self, model: RIBModel, precision: str, attention: str, notes: tuple[str, ...]) -> Description:
        from ribsr.attention import choose_backend

        device = "cpu"
        if self._device.type == "cuda":
            device = f"cuda:{self._device.index} {torch.cuda.get_device_name(self._device)}"
        config = model.config
        return Description(
            path=self._path,
            runtime="pytorch",
            runtime_version=torch.__version__,
            device=device,
            precision=precision,
            model=config.name,
            scale=config.scale,
            windows=tuple((side, side) for side in config.windows),
            form=choose_backend(self._device, self._dtype) if attention == "auto" else attention,
            version=ribsr.__version__,
            checkpoint_sha256=sha256(self._path),
            notes=notes,
            cuda_graphs=self._graphs is not None if self._device.type == "cuda" else None,
        )

    def run(self, x: np.ndarray) -> np.ndarray:
        base.check_input(x, self._description)
        if (graphs := self._graphs) is not None:
            return self._guarded(x, lambda _: graphs.run(x))
        return self._guarded(x, lambda model: self._forward(model, self._place(x)).float().cpu().numpy())

    def needs(self, size: Size, batch: int = 1) -> int | None:
        told = self._description
        if self._device.type == "cpu":
            return batch * memory.pytorch_on_cpu(self._network, told.form, told.precision, size)
        if self._graphs is not None and self._graphs.has((batch, 3, *size)):
            return 0
        needed = batch * memory.pytorch_on_gpu(self._network, told.form, told.precision, size)
        # What the allocator keeps, in recordings, too, is taken for a new size where nothing else is left.
        kept = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return max(0, needed + self._first - kept)

    def device_memory(self) -> int | None:
        return torch.cuda.mem_get_info(self._device)[0] if self._device.type == "cuda" else None

    def release(self) -> None:
        if (graphs := self._graphs) is not None:
            graphs.forget()
        _free_unused(self._device)
        memory.trim_heap()

    def _place(self, x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(self._device, self._dtype)

    def _forward(self, model: RIBModel, x: torch.Tensor) -> torch.Tensor:
        slow = self._device.type == "cpu" and self._dtype == torch.float16
        if self._device.type == "cuda":  # settings of the process, which another engine may have changed
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self._tf32
        with torch.inference_mode(), _Float32Convolutions() if slow else nullcontext():
            return model(x)

    def _guarded(self, x: np.ndarray, use: Callable[[RIBModel], Any]) -> Any:
        """use(model), with an exhausted memory as an EngineError."""
        model = self._model
        if model is None:
            raise base.closed(self._path)
        try:
            result = use(model)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise EngineError(f"{self._path}: PyTorch failed on {list(x.shape)} ({first_line(error)})") from error
        else:
            self._first = 0
            return result
        # Raised here, the error does not keep alive what the failed run held.
        _free_unused(self._device)
        raise base.out_of_memory(self._path, x)

    def timer(self, x: np.ndarray) -> Timer:
        if self._device.type != "cuda":
            return super().timer(x)
        base.check_input(x, self._description)
        if (graphs := self._graphs) is not None:
            timer: Timer = self._guarded(x, lambda _: graphs.timer(x))
            return Timer(timer.clock, lambda: self._guarded(x, lambda _: timer.once()), timer.peak_memory)
        placed = self._guarded(x, lambda _: self._place(x))
        return cuda_timer(lambda: self._guarded(x, lambda model: self._forward(model, placed)), self._device)

    def profile(self, x: np.ndarray, runs: int = 5) -> list[LayerTime]:
        """As `Engine.profile`, summed up by name: of the kernels on a GPU, of PyTorch's operators on a CPU."""
        base.check_input(x, self._description)
        if self._graphs is not None:
            self._graphs.forget()  # for a run that is not recorded, which takes as much memory again
        placed = self._guarded(x, lambda _: self._place(x))
        return operator_times(lambda: self._guarded(x, lambda model: self._forward(model, placed)), self._device, runs)

    def layers(self) -> list[str]:
        """As `Engine.layers`, found by a run on a small picture: all modules that return a map, and the network."""
        found: list[str] = []
        self._watch(np.zeros((1, 3, 8, 8), np.float32), None, lambda name, y: found.append(name))
        return found

    def layer_outputs(self, x: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        base.check_input(x, self._description)
        found: dict[str, np.ndarray] = {}
        self._watch(x, names, lambda name, y: found.update({name: y.float().cpu().numpy()}))
        return found

    def _watch(self, x: np.ndarray, names: Sequence[str] | None, see: Callable[[str, torch.Tensor], None]) -> None:
        """Runs x, and calls see(name, what it returns) for modules of these names, or for all. Nothing is recorded."""

        def watched(model: RIBModel) -> None:
            for name, module in model.named_modules():
                if names is None or (name or "output") in names:
                    hooks.append(module.register_forward_hook(partial(seen, name or "output")))
            self._forward(model, self._place(x))

        def seen(name: str, module: torch.nn.Module, inputs: Any, y: Any) -> None:
            if isinstance(y, torch.Tensor) and y.dim() == 4:
                see(name, y)

        hooks: list[Any] = []
        if self._graphs is not None:
            self._graphs.forget()  # as for `profile`
        try:
            self._guarded(x, watched)
        finally:
            for hook in hooks:
                hook.remove()

    def close(self) -> None:
        graphs, self._graphs, self._model = self._graphs, None, None
        if graphs is not None:
            graphs.forget()
        _free_unused(self._device)


def _network(config: Config) -> memory.Network:
    """What memory depends on, of a configuration."""
    hidden = config.dim * (4 if isinstance(config, ESCRIBConfig) else config.expansion)
    direct = config.upsampler == "direct"
    return memory.Network(
        channels=config.dim,
        positions=max(heads * rank for heads, rank in zip(config.heads, config.ranks, strict=True)),
        heads=max(config.heads),
        hidden=int(hidden),
        enlarged=config.scale**2 * (3 if direct else config.intermediate_dim),
        windows=tuple((side, side) for side in sorted(set(config.windows))),
    )


class Graphs:
    """A model's work as CUDA graphs, one for a shape of input, which are made at its first run, and replayed later.

    One thread at a time uses them; all of it is done on a stream of their own.
    """

    def __init__(self, model: RIBModel, device: torch.device):
        self._model, self._device = model, device
        self._lock = threading.Lock()
        self._recordings: OrderedDict[tuple[int, ...], Recording] = OrderedDict()  # the one used last is the last
        self._pinned = torch.empty(0)
        self._results = pinned.Pool()
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))  # where the model comes to be

    def run(self, x: np.ndarray) -> np.ndarray:
        """x [B, 3, H, W] → [B, 3, sH, sW], in memory as of `engines.pinned`."""
        with self._alone():
            recording = self._launched(x)
            y = self._results.array(recording.output.shape)
            torch.from_numpy(y).copy_(recording.output, non_blocking=True)
            self._stream.synchronize()
            return y

    def has(self, shape: tuple[int, ...]) -> bool:
        """Whether the work for inputs of this shape is recorded."""
        return shape in self._recordings

    def timer(self, x: np.ndarray) -> Timer:
        """Times the network on x, from float32 to float32 on the GPU."""
        with self._alone():
            self._recordings.pop(x.shape, None)  # or what it takes would not be counted
            timer = cuda_timer(lambda: recording.launch(), self._device)
            recording = self._launched(x)
            self._stream.synchronize()

        def once() -> float:
            with self._alone():
                return timer.once()

        return Timer(timer.clock, once, timer.peak_memory)

    def forget(self) -> None:
        """Drops what is recorded. What runs is waited for."""
        with self._lock:
            self._recordings.clear()
        self._results.clear()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._lock, torch.cuda.stream(self._stream), torch.inference_mode():
            yield

    def _launched(self, x: np.ndarray) -> Recording:
        """The recording for x's shape, launched on x. If memory runs out, it drops all others and tries again."""
        try:
            return self._launch(x)
        except (RuntimeError, MemoryError) as error:
            if not (_is_out_of_memory(error) and self._recordings):
                raise
        self._recordings.clear()
        _free_unused(self._device)
        return self._launch(x)

    def _launch(self, x: np.ndarray) -> Recording:
        recording = self._recordings.pop(x.shape, None)
        if recording is None:
            while len(self._recordings) >= RECORDINGS:
                self._recordings.popitem(last=False)
            recording = Recording(self._model, x.shape, self._device)
        given = self._input(recording.input.shape)
        np.copyto(given.numpy(), x)
        recording.input.copy_(given, non_blocking=True)
        recording.launch()
        self._recordings[x.shape] = recording  # one that failed is not kept
        return recording

    def _input(self, shape: Sequence[int]) -> torch.Tensor:
        """Memory of the host that the GPU reads from; the next call has the same."""
        size = math.prod(shape)
        if self._pinned.numel() < size:
            self._pinned = torch.empty(size, pin_memory=self._device.type == "cuda")
        return self._pinned[:size].view(*shape)


class Recording:
    """The work of a model on pictures of one shape, float32 on the GPU, from `input` to `output`."""

    def __init__(self, model: RIBModel, shape: Sequence[int], device: torch.device):
        batch, channels, *size = shape
        self._model = model
        self.input = torch.empty(*shape, device=device)
        self.output = torch.empty(batch, channels, *(side * model.config.scale for side in size), device=device)
        self._replay: Callable[[], None] | None = None

    def launch(self) -> None:
        """Enqueues the work on the current stream. The first time it also records it, which waits for the GPU."""
        if self._replay is not None:
            return self._replay()
        self._enqueue()  # what is loaded and chosen at a first run cannot be while it is recorded
        self._replay = _capture(self._enqueue)
        return None

    def _enqueue(self) -> None:
        self.output.copy_(self._model(self.input))


def _capture(work: Callable[[], None]) -> Callable[[], None]:
    """A function that launches as a whole what `work` enqueues on the current stream, which is not done now.

    The graph and its memory go with the function.
    """
    graph = torch.cuda.CUDAGraph()
    with _capturing, torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
        work()
    return graph.replay


def cuda_timer(run: Callable[[], object], device: torch.device) -> Timer:
    """A timer of what `run` does on a GPU; the memory is the most that PyTorch's allocator held since then."""
    torch.cuda.reset_peak_memory_stats(device)

    def once() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return Timer("CUDA events, pictures on the GPU", once, lambda: torch.cuda.max_memory_allocated(device))


def kernel_times(run: Callable[[], object], runs: int) -> list[LayerTime]:
    """`operator_times` of what this process runs on the GPU, by whatever library. Raises EngineError without a GPU."""
    if not torch.cuda.is_available():
        raise EngineError(f"kernels are timed by PyTorch, and PyTorch {torch.__version__} finds no usable GPU")
    torch.cuda.synchronize()  # PyTorch has its context then, without which its profiler sees nothing
    return operator_times(run, torch.device("cuda"), runs)


def operator_times(run: Callable[[], object], device: torch.device, runs: int) -> list[LayerTime]:
    """Where the time of `run` goes, by names in the order of the first run; one more run before is not counted.

    On a GPU: its kernels and copies. On a CPU: operators, each without those that it calls.
    """
    run()
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity], acc_events=True) as profiler:  # or torch 2.11 warns
        for _ in range(runs):
            run()
    times: dict[str, float] = {}
    for event in sorted(profiler.events() or (), key=lambda event: event.time_range.start):
        if event.device_type.name.lower() == device.type:  # not the host's calls of CUDA
            own = event.self_cpu_time_total if device.type == "cpu" else event.time_range.elapsed_us()
            times[event.name] = times.get(event.name, 0.0) + own / 1e3 / runs  # from µs
    return [LayerTime(name, milliseconds) for name, milliseconds in times.items()]


class _Float32Convolutions(TorchFunctionMode):
    """float16 convolutions with float32 arithmetic, rounded to float16 at the end, as GPUs compute them.

    PyTorch's own ones on a CPU take ten times as long (depthwise ones run a channel at a time).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.conv2d or args[0].dtype != torch.float16:
            return func(*args, **kwargs)
        return func(*(a.float() if isinstance(a, torch.Tensor) else a for a in args), **kwargs).half()


def _free_unused(device: torch.device) -> None:
    """Gives memory that PyTorch keeps for later back to the GPU."""
    if device.type == "cuda":
        with _capturing:
            torch.cuda.empty_cache()


def _is_out_of_memory(error: Exception) -> bool:
    """Also where memory ran out while a graph was recorded, and CUDA complains of the graph instead."""
    known = isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError))
    return known or isinstance(error.__context__, torch.cuda.OutOfMemoryError) or bool(_NO_MEMORY.match(str(error)))


def _fused(model: RIBModel) -> RIBModel:
    from plugins.modules import fuse

    try:
        return fuse(model)
    except (TypeError, ValueError, kernel_library.LibraryError) as error:
        raise EngineError(f"attention backend 'kernel': {first_line(error)}") from error


def _suits_kernel(model: RIBModel, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the fused kernel is made for this device, precision and every attention layer of the model."""
    if device.type != "cuda" or dtype == torch.float32 or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    layers = [module for module in model.modules() if isinstance(module, WindowAttention)]
    widths = [layer.to_qkv.out_channels // (3 * layer.core.geometry.heads) for layer in layers]
    ranks = [layer.to_q.shape[2] for layer in layers]
    return all(map(CYCLIC_WINDOW_ATTENTION.is_tuned, widths, ranks))


def _register_kernel() -> None:
    """Gives ribsr the fused CUDA kernel as its backend `kernel`."""
    if not kernel_library.path().exists():
        raise EngineError(f"attention backend 'kernel' is not built; run {build_kernels()} (it needs nvcc)")
    import plugins.pytorch  # noqa: F401 (registers itself)


def _choose_device(device: str) -> torch.device:
    base.check_choice("device", device, base.DEVICES)
    if device == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if device == "cuda":
        reason = "finds no usable GPU" if torch.version.cuda else "is a build without CUDA"
        raise EngineError(f"device cuda was asked for, but PyTorch {torch.__version__} {reason}; use --device cpu")
    return torch.device("cpu")
