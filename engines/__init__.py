"""Running models, exported or not: one `Engine` interface, one module per runtime, pictures in and out.

    with open_engine("x2.onnx") as engine:
        y = engine.run(x)  # float32 [B, 3, H, W] → [B, 3, sH, sW]

`Tiled(open_engine("x2.fp16.plan"))` is an engine for pictures of any size; `Upscaler("x2.onnx")` takes pictures
as people have them.

From a file to its result: `jobs` (what is to be done), `pipeline` (reading and writing beside the model), `upscaler`,
`tiles`, `planes` (what a network gets of gray, alpha and 16 bits), and a runtime: `pytorch`, `ort`, `ov`, `trt`. Where
several open a file, `choice` takes one. `video` does frames. `memory` foresees what a run takes; `compare` proves that
two engines compute the same.

Importing it is instant: a runtime is imported when its first engine opens. Only `engines.pytorch` imports torch.
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines import choice
from engines.base import MOST_THREADS, Description, Engine, EngineError, OutOfMemory, Timer, check_choice
from engines.tiles import Tiled
from engines.upscaler import Upscaler
from ribsr import bundled
from ribsr.base.files import no_file
from ribsr.base.installation import check_folders

__all__ = [
    "RUNTIMES",
    "RUNTIME_NAMES",
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
    "runtimes_of",
]

check_folders("plugins")


@dataclass(frozen=True)
class Runtime:
    """Who opens which files. engine: `module:class`, imported when the first of them is opened.

    name: as users ask for it. options: arguments of `open_engine` that it takes besides path and device.
    """

    name: str
    engine: str
    suffixes: tuple[str, ...]
    options: tuple[str, ...]


PYTORCH = Runtime(
    "pytorch",
    "engines.pytorch:PyTorchEngine",
    (".pt", ".pth", ".safetensors"),
    ("threads", "precision", "attention", "model", "config", "tf32"),
)

RUNTIMES = (
    PYTORCH,
    Runtime(
        "onnxruntime", "engines.ort:ORTEngine", (".onnx",), ("threads", "precision", "kernels", "tf32", "cuda_graphs")
    ),
    Runtime("openvino", "engines.ov:OpenVINOEngine", (".onnx",), ("threads", "precision", "hint", "cache")),
    Runtime("tensorrt", "engines.trt.engine:TensorRTEngine", (".plan",), ("cuda_graphs",)),
    Runtime("tensorrt-rtx", "engines.trt.rtx_engine:RTXEngine", (".rtx",), ("cuda_graphs", "specialization", "cache")),
)

SUFFIXES = tuple(dict.fromkeys(suffix for runtime in RUNTIMES for suffix in runtime.suffixes))
"""Of model files."""

RUNTIME_NAMES = ("auto", *(runtime.name for runtime in RUNTIMES))


def runtimes_of(path: str | Path) -> tuple[Runtime, ...]:
    """Who opens files of this name; empty if nobody does."""
    return tuple(runtime for runtime in RUNTIMES if Path(path).suffix in runtime.suffixes)


def is_checkpoint(path: str | Path) -> bool:
    """Whether PyTorch runs this file, so that precision, attention, model and config are for the caller to choose."""
    return runtimes_of(path) == (PYTORCH,)


def open_engine(
    path: str | Path,
    *,
    runtime: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    precision: str | None = None,
    attention: str | None = None,
    model: str | None = None,
    config: str | Path | None = None,
    tf32: bool = False,
    kernels: bool = True,
    cuda_graphs: bool = False,
    hint: str | None = None,
    cache: str | Path | None = None,
    specialization: str | None = None,
) -> Engine:
    """Opens a model file with the runtime that its suffix names, or a bundled checkpoint by its name.

    runtime: one of RUNTIME_NAMES, for .onnx files, which several run: `auto` takes the one that has the options given,
    or is faster by the rule of `engines.choice`, and the description says why.
    device: `auto` (the GPU if the runtime can use it), `cpu` or `cuda`; the last fails rather than fall back.
    The rest is for the files whose row in RUNTIMES names it; None leaves it to the runtime.
    threads: CPU threads. precision: of checkpoints fp32 (default), fp16 or bf16; bf16 for float32 .onnx files on CPUs
    that have it; other files fix it at export. attention: PyTorch backend, `auto` by default.
    model, config: which network an authors' checkpoint holds (see `ribsr.load`).
    tf32: float32 on a GPU multiplies in TF32, with 10 bits of mantissa; the description's precision is `tf32` then.
    kernels: False leaves out our own (checkpoints have attention for it). cuda_graphs: launch the work of
    repeated sizes as a whole.
    hint: of OpenVINO: `latency` (default) or `throughput`. specialization: of TensorRT RTX: `lazy`, `eager` or `none`.
    cache: of both, the folder where they keep what they compile.

    Raises EngineError for a file that is missing, damaged or not this toolkit's, for a device that cannot be used, and
    for options that do not fit the file.
    """
    path = bundled.find(path)
    runtimes = _of_file(path)
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
        "hint": hint,
        "cache": cache,
        "specialization": specialization,
    }
    given = {name: value for name, value in options.items() if value is not None}
    taken, why = _choose(path, _named(path, runtimes, runtime), device, given)
    engine = pkgutil.resolve_name(taken.engine)(path, device=device, **given)
    if why:
        engine.chosen(f"{taken.name}: {why}")
    return engine


def _of_file(path: Path) -> tuple[Runtime, ...]:
    """Who opens a file that exists. Raises EngineError for any other."""
    runtimes = runtimes_of(path)
    if not runtimes:
        raise EngineError(
            f"{path}: unknown kind of model file; engines open {', '.join(SUFFIXES)}, and bundled checkpoints by their "
            f"names: {', '.join(bundled.names())}"
        )
    if what := no_file(path, "a model"):
        raise EngineError(f"{path}: {what}")
    return runtimes


def _named(path: Path, runtimes: tuple[Runtime, ...], name: str) -> tuple[Runtime, ...]:
    """Those of the runtimes that `name` allows. Raises EngineError where none is."""
    if check_choice("runtime", name, RUNTIME_NAMES) == "auto":
        return runtimes
    if named := tuple(runtime for runtime in runtimes if runtime.name == name):
        return named
    does = " and ".join(runtime.name for runtime in runtimes) + (" do" if len(runtimes) > 1 else " does")
    raise EngineError(f"{path}: {name} does not run such files, {does}")


def _choose(path: Path, runtimes: tuple[Runtime, ...], device: str, given: dict[str, Any]) -> tuple[Runtime, str]:
    """The runtime, and why where there were several. Raises EngineError where none has all the options given."""
    fitting = [runtime for runtime in runtimes if {*given} <= {*runtime.options}]
    if len(fitting) > 1:
        name, why = choice.for_onnx(path, device, given.get("precision"), given.get("kernels", True))
        return next(runtime for runtime in fitting if runtime.name == name), why
    if fitting:
        only = [name for name in given if any(name not in runtime.options for runtime in runtimes)]
        return fitting[0], f"it alone has the option {', '.join(only)}" if only else ""
    known = {option for runtime in runtimes for option in runtime.options}
    if wrong := [name for name in given if name not in known]:
        takers = [runtime for runtime in RUNTIMES if wrong[0] in runtime.options]
        if here := [runtime.name for runtime in takers if {*runtime.suffixes} & {*runtimes[0].suffixes}]:
            raise EngineError(f"{path}: {wrong[0]} can be chosen with {', '.join(here)} only")
        suffixes = dict.fromkeys(suffix for runtime in takers for suffix in runtime.suffixes)
        raise EngineError(f"{path}: {wrong[0]} can be chosen for {', '.join(suffixes)} files only")
    raise EngineError(f"{path}: no runtime has all of {', '.join(given)}; leave one of them out")
