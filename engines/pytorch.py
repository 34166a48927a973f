"""PyTorch as an engine: the reference that exported files are measured against. The only module here with torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engines import base
from engines.base import Description, Engine, EngineError, LayerTime, NotInstalled, Timer
from ribsr.base.errors import RibsrError, first_line
from ribsr.base.files import sha256

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise NotInstalled("checkpoints need PyTorch, which is not installed: pip install 'ribsr[export]'") from None

from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity

import ribsr
from plugins import library as kernel_library
from plugins.operators import CYCLIC_WINDOW_ATTENTION
from ribsr.attention import WindowAttention

if TYPE_CHECKING:
    from ribsr.layers import RIBModel

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

_NO_MEMORY = re.compile(
    r"\[enforce fail at \w+\.cpp:\d+\].* DefaultCPUAllocator: (can't allocate|not enough) memory: you tried to |"
    r"CUDA error: out of memory$",
    re.MULTILINE,
)
"""How errors begin that have no type of their own: those of the CPU's allocator, and of CUDA outside of PyTorch's."""


class PyTorchEngine(Engine):
    """A checkpoint run by PyTorch; `engines.open_engine` says what the arguments mean.

    float32 is float32: TF32 is switched off, for the process, when an engine opens on a GPU. `threads` sets PyTorch's
    threads for the process too.
    """

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
    ):
        base.check_choice("precision", precision, base.PRECISIONS)
        self._path = str(path)
        self._dtype = _DTYPES[precision]
        self._device = _choose_device(device)
        if threads is not None:
            torch.set_num_threads(threads)
        if self._device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False
        try:
            loaded = ribsr.load(path, model=model, config=config)
        except (RibsrError, OSError) as error:
            raise EngineError(first_line(error)) from error
        notes: list[str] = []
        if attention == "auto" and _suits_kernel(loaded, self._device, self._dtype):
            if kernel_library.path().exists():
                attention = "kernel"
            else:
                notes.append(
                    f"{path}: runs PyTorch's attention; python -m plugins.build makes a faster one (needs nvcc)"
                )
        if attention == "kernel":
            _register_kernel()
        try:
            ribsr.set_attention(loaded, attention)
        except ValueError as error:
            raise EngineError(first_line(error)) from error
        # The RIB stays in float32: its module refuses to be cast to half precision.
        placed = loaded.requires_grad_(False).to(self._device, self._dtype)
        # The kernel is made for channels-last maps; it takes others, slowly.
        self._layout = torch.channels_last if attention == "kernel" else torch.contiguous_format
        self._model: RIBModel | None = placed.to(memory_format=self._layout)  # pyright: ignore[reportCallIssue]
        self._description = self._describe(loaded, precision, attention, tuple(notes))

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
        )

    def run(self, x: np.ndarray) -> np.ndarray:
        base.check_input(x, self._description)
        return self._guarded(x, lambda model: self._forward(model, self._place(x)).float().cpu().numpy())

    def _place(self, x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(self._device, self._dtype, memory_format=self._layout)

    def _forward(self, model: RIBModel, x: torch.Tensor) -> torch.Tensor:
        slow = self._device.type == "cpu" and self._dtype == torch.float16
        with torch.inference_mode(), _Float32Convolutions() if slow else nullcontext():
            return model(x)

    def _guarded(self, x: np.ndarray, use: Callable[[RIBModel], Any]) -> Any:
        """use(model), with an exhausted memory as an EngineError."""
        model = self._model
        if model is None:
            raise base.closed(self._path)
        try:
            return use(model)
        except (torch.cuda.OutOfMemoryError, MemoryError):
            raise base.out_of_memory(self._path, x) from None
        except RuntimeError as error:
            if _NO_MEMORY.match(str(error)):
                raise base.out_of_memory(self._path, x) from None
            raise EngineError(f"{self._path}: PyTorch failed on {list(x.shape)} ({first_line(error)})") from error

    def timer(self, x: np.ndarray) -> Timer:
        if self._device.type != "cuda":
            return super().timer(x)
        base.check_input(x, self._description)
        placed = self._guarded(x, lambda _: self._place(x))
        return cuda_timer(lambda: self._guarded(x, lambda model: self._forward(model, placed)), self._device)

    def profile(self, x: np.ndarray, runs: int = 5) -> list[LayerTime]:
        """As `Engine.profile`, summed up by name: of the kernels on a GPU, of PyTorch's operators on a CPU."""
        base.check_input(x, self._description)
        placed = self._guarded(x, lambda _: self._place(x))
        return operator_times(lambda: self._guarded(x, lambda model: self._forward(model, placed)), self._device, runs)

    def close(self) -> None:
        self._model = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


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
        raise EngineError("attention backend 'kernel' is not built; run python -m plugins.build (it needs nvcc)")
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
