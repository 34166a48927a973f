"""Running models, exported or not: one `Engine` interface, one module per runtime, pictures in and out.

    with open_engine("x2.onnx") as engine:
        y = engine.run(x)  # float32 [B, 3, H, W] → [B, 3, sH, sW]

`Tiled(open_engine("x2.fp16.plan"))` is an engine for pictures of any size; `Upscaler("x2.onnx")` takes pictures
as people have them.

From a file to its result: `jobs` (what is to be done), `pipeline` (reading and writing beside the model), `upscaler`,
`tiles`, `planes` (what a network gets of gray, alpha and 16 bits), and a runtime: `pytorch`, `ort`, `trt`. `video` does
frames. `memory` foresees what a run takes; `compare` proves that two engines compute the same.

Importing it is instant: a runtime is imported when its first engine opens. Only `engines.pytorch` imports torch.
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from pathlib import Path

from engines.base import MOST_THREADS, Description, Engine, EngineError, OutOfMemory, Timer
from engines.tiles import Tiled
from engines.upscaler import Upscaler
from ribsr import bundled
from ribsr.base.installation import check_folders

__all__ = [
    "RUNTIMES",
    "SUFFIXES",
    "Description",
    "Engine",
    "EngineError",
    "OutOfMemory",
    "Runtime",
    "Tiled",
    "Timer",
    "Upscaler",
    "is_checkpoint",
    "open_engine",
    "runtime_of",
]

check_folders("plugins")


@dataclass(frozen=True)
class Runtime:
    """Who opens which files. engine: `module:class`, imported when the first of them is opened.

    options: arguments of `open_engine` that it takes besides path and device.
    """

    engine: str
    suffixes: tuple[str, ...]
    options: tuple[str, ...]


PYTORCH = Runtime(
    "engines.pytorch:PyTorchEngine",
    (".pt", ".pth", ".safetensors"),
    ("threads", "precision", "attention", "model", "config", "tf32"),
)

RUNTIMES = (
    PYTORCH,
    Runtime("engines.ort:ORTEngine", (".onnx",), ("threads", "precision", "kernels", "tf32", "cuda_graphs")),
    Runtime("engines.trt.engine:TensorRTEngine", (".plan",), ("cuda_graphs",)),
)

SUFFIXES = tuple(suffix for runtime in RUNTIMES for suffix in runtime.suffixes)
"""Of model files."""


def runtime_of(path: str | Path) -> Runtime | None:
    """Who opens a file of this name; None if nobody does."""
    return next((runtime for runtime in RUNTIMES if Path(path).suffix in runtime.suffixes), None)


def is_checkpoint(path: str | Path) -> bool:
    """Whether PyTorch runs this file, so that precision, attention, model and config are for the caller to choose."""
    return runtime_of(path) is PYTORCH


def open_engine(
    path: str | Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    precision: str | None = None,
    attention: str | None = None,
    model: str | None = None,
    config: str | Path | None = None,
    tf32: bool = False,
    kernels: bool = True,
    cuda_graphs: bool = False,
) -> Engine:
    """Opens a model file with the runtime that its suffix names, or a bundled checkpoint by its name.

    device: `auto` (the GPU if the runtime can use it), `cpu` or `cuda`; the last fails rather than fall back.
    The rest is for the files whose row in RUNTIMES names it; None leaves it to the runtime.
    threads: CPU threads. precision: fp32 (default), fp16, bf16; of exported files in float32, bf16 on a CPU that has
    AVX512_BF16: products of bfloat16. attention: PyTorch backend, `auto` by default.
    model, config: which network an authors' checkpoint holds (see `ribsr.load`).
    tf32: float32 on a GPU multiplies in TF32, with 10 bits of mantissa; the description's precision is `tf32` then.
    kernels: False leaves out our own (checkpoints have attention for it). cuda_graphs: launch the work of
    repeated sizes as a whole.

    Raises EngineError for a file that is missing, damaged or not this toolkit's, for a device that cannot be used, and
    for options that do not fit the file.
    """
    path = bundled.find(path)
    runtime = runtime_of(path)
    if runtime is None:
        raise EngineError(
            f"{path}: unknown kind of model file; engines open {', '.join(SUFFIXES)}, and bundled checkpoints by their "
            f"names: {', '.join(bundled.names())}"
        )
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise EngineError(f"{path}: {what}")
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise EngineError(f"threads must be 1 to {MOST_THREADS}, got {threads}")
    options = {
        "threads": threads,
        "precision": precision,
        "attention": attention,
        "model": model,
        "config": config,
        "tf32": tf32 or None,
        "kernels": None if kernels else False,
        "cuda_graphs": cuda_graphs or None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if wrong := [name for name in given if name not in runtime.options]:
        takers = [suffix for other in RUNTIMES if wrong[0] in other.options for suffix in other.suffixes]
        raise EngineError(f"{path}: {wrong[0]} can be chosen for {', '.join(takers)} files only")
    return pkgutil.resolve_name(runtime.engine)(path, device=device, **given)
