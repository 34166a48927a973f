"""What every runtime's engine offers, and the checks they share."""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ribsr.base.errors import RibsrError
from ribsr.base.sizes import Limits, Size

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Self

WHOLE = (slice(None), slice(None))
"""All rows and columns of a picture."""

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("fp32", "fp16", "bf16")
HALVES = ("fp16", "bf16")
HINTS = ("latency", "throughput")
SPECIALIZATIONS = ("lazy", "eager", "none")
"""When TensorRT RTX makes kernels for the size at hand: beside runs with general ones, before the first run, never."""

OLDEST_OPENVINO = (2026, 3)
"""OpenVINO 2026.2 and earlier know no MultiHeadAttention, 2025.4 no Attention either."""

MOST_THREADS = 1024
"""Each takes memory before it does anything."""


class EngineError(RibsrError, RuntimeError):
    """A model that cannot be opened or run."""


class NotInstalled(EngineError):
    """A package that this machine lacks; the message names how to install it."""


class OutOfMemory(EngineError):
    """An input too large for the memory there is; a smaller one may do."""


@dataclass(frozen=True)
class Stamp:
    """What a file of this toolkit says about itself.

    model, scale, windows: the network's name, upscaling factor, and [rows, columns] of each layer of a block.
    precision: fp32, fp16 or bf16: that of weights and of most of the arithmetic; tf32: float32, but for products of
        10 bits of mantissa. Inputs and outputs are float32 always.
    form: of the attention: that of the file, or PyTorch's backend.
    version: the release of this toolkit that made the file.
    checkpoint_sha256: of the checkpoint that the weights come from.
    """

    model: str
    scale: int
    windows: tuple[tuple[int, int], ...]
    precision: str
    form: str
    version: str
    checkpoint_sha256: str


@dataclass(frozen=True)
class Description(Stamp):
    """What an open engine is and where it runs, found out after opening rather than assumed.

    path: the file it was opened from.
    runtime, runtime_version: which runtime, e.g. `onnxruntime`, and which release of it.
    device: what runs it really, e.g. `CPUExecutionProvider` or `cuda:0 NVIDIA H100`.
    batch: the only number of pictures that it takes at once; None for any.
    limits: the sizes of pictures that it takes.
    notes: what the user should know about this choice, e.g. why it does not run on the GPU. One line each.
    chosen: why `auto` took this runtime, where there were others to take; empty where there was nothing to choose.
    cuda_graphs: whether the work of a repeated size is launched as a whole; None where there is no such thing.
    """

    path: str
    runtime: str
    runtime_version: str
    device: str
    batch: int | None = None
    limits: Limits = Limits()
    notes: tuple[str, ...] = ()
    chosen: str = ""
    cuda_graphs: bool | None = None

    @property
    def on_gpu(self) -> bool:
        return is_gpu(self.device)

    def to_json(self) -> dict[str, Any]:
        """The fields, but instead of batch and limits: the `shape` [B, 3, H, W] that it takes, null where any will do,
        and the smallest and the largest [H, W] as `sizes`, null where `shape` says it all."""
        values = {name: value for name, value in vars(self).items() if name not in ("batch", "limits")}
        least, most = self.limits.least, self.limits.most
        height, width = (low if low == high else None for low, high in zip(least, most, strict=True))
        sizes = None if self.limits == Limits.only(height, width) else [least, most]
        return {**values, "shape": [self.batch, 3, height, width], "sizes": sizes}


def is_gpu(device: str) -> bool:
    """Whether a description's device is a GPU."""
    return not device.startswith(("cpu", "CPUExecutionProvider"))


@dataclass(frozen=True)
class LayerTime:
    """What one layer or operator of a network takes: its name in the runtime, and mean milliseconds a run.

    operator: what it computes, as the runtime calls that; empty where the name says it, as a kernel's does.
    """

    name: str
    milliseconds: float
    operator: str = ""


@dataclass(frozen=True)
class Timer:
    """Times an engine on one input: `once()` runs the network once and returns milliseconds.

    clock: what measures, and what it includes.
    peak_memory: bytes that the engine's allocator has held on the GPU at most since the timer was made; None if the
        runtime does not say.
    """

    clock: str
    once: Callable[[], float]
    peak_memory: Callable[[], int | None] = lambda: None


class Engine(ABC):
    """An open model: pictures in, larger pictures out. A context manager.

    `run` keeps no state on the object, so threads may share an engine.
    """

    _description: Description

    def describe(self) -> Description:
        """What it is and where it runs."""
        return self._description

    def chosen(self, why: str) -> None:
        """Has the description say why this runtime was taken."""
        self._description = replace(self._description, chosen=why)

    @abstractmethod
    def run(self, x: np.ndarray) -> np.ndarray:
        """RGB in [0, 1]: float32 [B, 3, H, W] → float32 [B, 3, sH, sW], neither clipped nor rounded.

        x may be a view with any strides. Raises EngineError for a wrong dtype or shape, when memory runs out, and when
        the engine is closed.
        """

    def run_into(self, x: np.ndarray, out: np.ndarray, part: tuple[slice, slice] = WHOLE) -> None:
        """`run(x)[:, :, *part]` to `out`, an array or view of just that shape; part: rows and columns of the result.

        What the runtime leaves in memory of its own is copied once, and memory for 4K pictures, which costs as much as
        such a copy, is not asked for again and again. Raises EngineError as `run` does, and for an `out` that is not
        float32, not of that shape or read-only.
        """
        told = self.describe()
        check_input(x, told)
        check_out(out, x, told, part)
        out[...] = self.run(x)[(..., *part)]

    def needs(self, size: Size, batch: int = 1) -> int | None:
        """Bytes that a run on pictures of this size takes at most beyond what is held now; None: that is not known.

        They are the GPU's where `device_memory` tells of one, else the host's. A prediction, from measurements.
        """
        return None

    def device_memory(self) -> int | None:
        """Bytes that are free on the GPU that it runs on; None: it runs on the CPU, or nobody says."""
        return None

    def release(self) -> None:  # noqa: B027 (most hold nothing)
        """Gives back what is held for the next runs, after one that was too large; the model stays open."""

    @abstractmethod
    def close(self) -> None:
        """Frees the model. Closing twice is fine; `run` afterwards is an EngineError."""

    def timer(self, x: np.ndarray) -> Timer:
        """A timer of this engine on x [B, 3, H, W]. On a GPU inputs and outputs stay there between calls."""
        return Timer("host clock around run()", host_clock(lambda: self.run(x)))

    @abstractmethod
    def profile(self, x: np.ndarray, runs: int = 5) -> list[LayerTime]:
        """Where the time on x [B, 3, H, W] goes, in the order of the first run. Raises EngineError as `run` does.

        Layers are timed one by one, which costs time: together they take longer than a run.
        """

    def layers(self) -> list[str]:
        """Names of the network's layers that `layer_outputs` has, in the order in which they are computed.

        They are those of the model's modules in PyTorch: `body.0.0.attn.to_qkv`. Raises EngineError where the runtime
        shows no layer's output.
        """
        raise self._no_layers()

    def layer_outputs(self, x: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """What some of `layers` give on x [B, 3, H, W]: float32 [B, C, H, W] of each.

        All of them are in memory at once, so ask for few. Raises EngineError as `layers` and `run` do.
        """
        raise self._no_layers()

    def _no_layers(self) -> EngineError:
        told = self.describe()
        return EngineError(f"{told.path}: {told.runtime} does not show here what its layers compute")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def host_clock(run: Callable[[], object]) -> Callable[[], float]:
    """A function that calls `run`, which must return only when the work is done, and returns milliseconds."""

    def once() -> float:
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3

    return once


def check_tf32(path: str, precision: str, on_gpu: bool) -> None:
    """Raises EngineError where TF32 is asked for that there is none of."""
    if precision != "fp32" or not on_gpu:
        what = "runs on the CPU" if precision == "fp32" else f"computes in {precision}"
        raise EngineError(f"{path}: TF32 is for float32 on a GPU, and this {what}; leave out --tf32")


def precision_of(stamp: Stamp, path: str, asked: str | None) -> str:
    """What an .onnx file is to compute in on a CPU: its own precision, or bf16 where a float32 file is asked for it.

    Raises EngineError for any other.
    """
    if asked is None or asked == stamp.precision:
        return stamp.precision
    check_choice("precision", asked, PRECISIONS)
    if (stamp.precision, asked) == ("fp32", "bf16"):
        return asked
    advice = "or --precision bf16 on a CPU" if stamp.precision == "fp32" else "or leave out --precision"
    raise EngineError(f"{path}: is in {stamp.precision}, not in {asked}; export it in that precision, {advice}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """`value` if it is one of `choices`; an EngineError that lists them otherwise."""
    if value not in choices:
        raise EngineError(f"{name} {value!r} is unknown; choose one of {', '.join(choices)}")
    return value


def check_input(x: Any, told: Description, advice: str = "or export it without --size") -> None:
    """Raises EngineError unless x is a float32 array [B, 3, H, W] of sizes ≥ 1 that the engine takes.

    advice: what else helps where its size is not taken.
    """
    import numpy as np

    path = told.path
    if not isinstance(x, np.ndarray):
        raise EngineError(f"{path}: the input must be a numpy array, got {type(x).__name__}")
    if x.dtype != np.float32:
        raise EngineError(f"{path}: the input must be float32 in [0, 1], got {x.dtype}; convert and scale it")
    if x.ndim != 4 or x.shape[1] != 3:
        raise EngineError(f"{path}: the input must be [B, 3, H, W], got {list(x.shape)}")
    if min(x.shape) < 1:
        raise EngineError(f"{path}: every size of the input must be at least 1, got {list(x.shape)}")
    if told.batch not in (None, len(x)):
        raise EngineError(f"{path}: takes {told.batch} at a time, got {len(x)}; run it once for each")
    if not told.limits.takes(size := Size.of(x)):
        raise EngineError(f"{path}: takes pictures of {told.limits}, got {size}; give --tile, {advice}")


def check_out(out: Any, x: np.ndarray, told: Description, part: tuple[slice, slice]) -> None:
    """Raises EngineError unless `out` takes this part of x's result as it is: NumPy would repeat or round it."""
    import numpy as np

    sides = (len(range(side)[kept]) for side, kept in zip(Size.of(x).times(told.scale), part, strict=True))
    shape = [*x.shape[:2], *sides]
    if not isinstance(out, np.ndarray) or out.dtype != np.float32 or not out.flags.writeable:
        raise EngineError(f"{told.path}: the result needs a float32 array that can be written to")
    if list(out.shape) != shape:
        raise EngineError(f"{told.path}: the result is {shape}, the array to put it in {list(out.shape)}")


def check_finite(y: np.ndarray, prefix: str) -> None:
    """Raises EngineError when values of a result are NaN or infinite: they would become black pixels."""
    import numpy as np

    if bad := int(np.count_nonzero(~np.isfinite(y))):
        raise EngineError(
            f"{prefix} the engine produced {bad} NaN or infinite values of {y.size}; "
            "its weights hold such, or it overflows in its precision (use bf16 or fp32 then)"
        )


def out_of_memory(path: str, x: np.ndarray) -> OutOfMemory:
    """The error for an input too large for the memory there is."""
    pictures = f"{len(x)} pictures" if len(x) > 1 else "a picture"
    return OutOfMemory(
        f"{path}: out of memory on {pictures} of {Size.of(x)}; give a smaller one, or cut it into tiles (--tile)"
    )


def closed(path: str) -> EngineError:
    """The error for running a closed engine."""
    return EngineError(f"{path}: the engine is closed; open it again")


def release(version: str) -> tuple[int, ...]:
    """The first two numbers of a version: (1, 19) of 1.19.2, (2026, 4) of 2026.4.1-22982."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))
