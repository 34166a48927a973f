"""Running exported models: one `Engine` interface, one module per runtime, pictures in and out.

    with open_engine("x2.onnx") as engine:
        y = engine.run(x)  # float32 [B, 3, H, W] → [B, 3, sH, sW]

`Tiled(open_engine("x2.fp16.plan"))` is an engine for pictures of any size.

Importing it is instant: a runtime is imported when its first engine opens. Only `engines.pytorch` imports torch.
"""

from __future__ import annotations

from pathlib import Path

from engines.base import Description, Engine, EngineError, OutOfMemory, Timer
from engines.tiles import Tiled

__all__ = [
    "Description",
    "Engine",
    "EngineError",
    "OutOfMemory",
    "Tiled",
    "Timer",
    "find_model",
    "is_checkpoint",
    "open_engine",
]

CHECKPOINTS = (".pt", ".pth", ".safetensors")
"""Suffixes that PyTorch runs."""

SUFFIXES = (*CHECKPOINTS, ".onnx", ".plan")
"""Suffixes of model files."""


def is_checkpoint(path: str | Path) -> bool:
    """Whether PyTorch runs this file, so that precision, attention, model and config are for the caller to choose."""
    return Path(path).suffix in CHECKPOINTS


def find_model(path: str | Path) -> Path:
    """The file of a bundled checkpoint (`ribsr.bundled`) if `path` is the name of one; else `path` itself."""
    if Path(path).suffix:
        return Path(path)
    from ribsr import bundled  # here: files with a suffix are opened where ribsr is not installed

    return bundled.find(path)


def open_engine(
    path: str | Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    precision: str | None = None,
    attention: str | None = None,
    model: str | None = None,
    config: str | Path | None = None,
    cuda_graphs: bool = False,
) -> Engine:
    """Opens a model file with the runtime that its suffix names, or a bundled checkpoint by its name.

    device: `auto` (the GPU if the runtime can use it), `cpu` or `cuda`; the last fails rather than fall back.
    threads: CPU threads of the runtime; None leaves it to the runtime.
    For checkpoints (.pt, .pth, .safetensors) only, since other files fix them:
    precision: fp32 (default), fp16, bf16. attention: PyTorch backend, `auto` by default.
    model, config: which network an authors' checkpoint holds (see `ribsr.load`).
    cuda_graphs: for plans (.plan): launch the work of repeated sizes as a whole (see `engines.trt`).

    Raises EngineError for a file that is missing, damaged or not this toolkit's, for a device that cannot be used, and
    for options that do not fit the file.
    """
    path = find_model(path)
    if path.suffix not in SUFFIXES:
        raise EngineError(
            f"{path}: unknown kind of model file; engines open {', '.join(SUFFIXES)}, and bundled checkpoints by their "
            "names, such as sst-light-x2"
        )
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise EngineError(f"{path}: {what}")
    if threads is not None and threads < 1:
        raise EngineError(f"threads must be at least 1, got {threads}")
    if cuda_graphs and path.suffix != ".plan":
        raise EngineError(f"{path}: CUDA graphs can be chosen for TensorRT plans (.plan) only")
    if is_checkpoint(path):
        from engines.pytorch import PyTorchEngine

        return PyTorchEngine(
            path,
            device=device,
            threads=threads,
            precision=precision or "fp32",
            attention=attention or "auto",
            model=model,
            config=config,
        )
    chosen = {"precision": precision, "attention": attention, "model": model, "config": config}
    if given := [name for name, value in chosen.items() if value is not None]:
        raise EngineError(f"{path}: {' and '.join(given)} can be chosen for checkpoints only; exported files fix it")
    if path.suffix == ".plan":
        from engines.trt.engine import TensorRTEngine

        return TensorRTEngine(path, device=device, cuda_graphs=cuda_graphs)
    from engines.ort import ORTEngine

    return ORTEngine(path, device=device, threads=threads)
