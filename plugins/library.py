"""The C interfaces (include/ribsr_kernels.h, ribsr_cpu.h) through ctypes. Needs neither torch nor numpy."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from plugins.operators import CYCLIC_WINDOW_ATTENTION, DOMAIN, OPERATORS, PLUGINS, Operator, Params
from ribsr.base.errors import RibsrError
from ribsr.base.installation import build_kernels

DEFAULT = Path(__file__).resolve().parent / "build" / "libribsr_kernels.so"
VARIABLE = "RIBSR_KERNELS_LIBRARY"
"""Environment variable that names another library file."""
INTERFACE_VERSION = 8
FLOAT16, BFLOAT16, FLOAT32 = 1, 2, 3
PATHS = {"auto": 0, "portable": 1, "hopper": 2}


class LibraryError(RibsrError, RuntimeError):
    """The library is missing, of another version, or refused a call."""


def path() -> Path:
    """The library's file: $RIBSR_KERNELS_LIBRARY, else the one `python -m plugins.build` makes."""
    return Path(os.environ.get(VARIABLE) or DEFAULT)


def opened(file: Path, advice: str = "") -> ctypes.CDLL:
    """A library of ours. advice: what mends one, if not the build.

    Raises LibraryError that says why it cannot be loaded, which runtimes do not, or of which other version it is.
    """
    try:
        library = ctypes.CDLL(str(file.resolve()))
    except OSError as error:
        raise LibraryError(f"{file} cannot be loaded: {error}{advice and f'; {advice}'}") from error
    # The TensorRT libraries of interface 5 and before do not export the function.
    version = library.ribsr_interface_version() if hasattr(library, "ribsr_interface_version") else "none"
    if version != INTERFACE_VERSION:
        advice = advice or f"run `{build_kernels()}`"
        raise LibraryError(f"{file} has interface version {version}, not {INTERFACE_VERSION}: {advice}")
    return library


def _declared(file: Path) -> ctypes.CDLL:
    """A library of kernels, its functions' types declared. Raises LibraryError: missing, or of another version."""
    if not file.exists():
        raise LibraryError(f"{file} does not exist: build it with `{build_kernels()}`")
    library = opened(file)
    for operator in OPERATORS:
        getattr(library, operator.function).argtypes = (ctypes.POINTER(operator.params), ctypes.c_void_p)
    library.ribsr_error_message.restype = ctypes.c_char_p
    return library


@cache
def load() -> ctypes.CDLL:
    """The library for GPUs, loaded once per process. Raises LibraryError if it is missing or of another version."""
    library = _declared(path())
    for operator in OPERATORS:
        if operator.has_workspace:
            workspace = getattr(library, f"{operator.function}_workspace")
            workspace.argtypes, workspace.restype = (ctypes.c_int32,) * len(operator.widths.names), ctypes.c_int64
    attention = ctypes.POINTER(CYCLIC_WINDOW_ATTENTION.params)
    library.ribsr_attention_path.argtypes = (attention, ctypes.POINTER(ctypes.c_int32))
    return library


def _check(library: ctypes.CDLL, params: Params, code: int) -> None:
    if code != 0:
        raise LibraryError(f"{params.operator.name}: {library.ribsr_error_message().decode()}")


def call(params: Params, stream: int) -> None:
    """Enqueue the operator of these parameters on a CUDA stream of the current device. Raises LibraryError."""
    library = load()
    params.struct_size = ctypes.sizeof(params)
    _check(library, params, getattr(library, params.operator.function)(ctypes.byref(params), stream))


def workspace(operator: Operator, *widths: int) -> int:
    """Bytes of device memory that a call needs besides its maps and weights, for `operator.widths.names` of these.

    0 where it needs none, without asking the library. Raises LibraryError.
    """
    return getattr(load(), f"{operator.function}_workspace")(*widths) if operator.has_workspace else 0


def chosen_path(params: Params) -> str:
    """Which path the attention would take on the current device: portable or hopper. Raises LibraryError."""
    library = load()
    params.struct_size = ctypes.sizeof(params)
    chosen = ctypes.c_int32()
    _check(library, params, library.ribsr_attention_path(ctypes.byref(params), ctypes.byref(chosen)))
    return next(name for name, number in PATHS.items() if number == chosen.value)


CPU_VARIABLE = "RIBSR_CPU_LIBRARY"
"""Environment variable that names another library for CPUs."""

ISAS = ("auto", "baseline", "avx2", "avx512", "avx512_bf16")
"""Instruction sets in the order of their numbers."""

Task = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
Parallel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, Task, ctypes.c_int64, ctypes.c_void_p)


class Executor(ctypes.Structure):
    """RibsrExecutor: how a call on a CPU runs."""

    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        ("isa", ctypes.c_int32),
        ("bfloat16_products", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("parallel", Parallel),
        ("pool", ctypes.c_void_p),
    )

    @classmethod
    def of(cls, isa: str = "auto", bfloat16_products: bool = False, threads: int = 1, parallel: Any = None) -> Executor:
        """parallel: a `Parallel`, which the caller keeps; without, all is done by the calling thread."""
        size = ctypes.sizeof(cls)
        return cls(size, ISAS.index(isa), bfloat16_products, threads, parallel or Parallel(), None)


def cpu_path() -> Path:
    """The library for CPUs: $RIBSR_CPU_LIBRARY, else the one `python -m plugins.build` makes.

    It has ONNX Runtime's custom operators, too.
    """
    return Path(os.environ.get(CPU_VARIABLE) or DEFAULT.with_name("libribsr_cpu.so"))


@cache
def load_cpu() -> ctypes.CDLL:
    """The library for CPUs, loaded once per process. Raises LibraryError if it is missing or of another version."""
    return _declared(cpu_path())


def cpu_isas() -> tuple[str, ...]:
    """The instruction sets that this CPU and the library have, the best one last. Raises LibraryError."""
    bits = load_cpu().ribsr_cpu_isas()
    return tuple(name for number, name in enumerate(ISAS) if bits >> number & 1)


def call_cpu(params: Params, executor: Executor | None = None) -> None:
    """Run the operator of these parameters on the CPU; None: on one thread. Raises LibraryError."""
    library = load_cpu()
    params.struct_size = ctypes.sizeof(params)
    how = None if executor is None else ctypes.byref(executor)
    _check(library, params, getattr(library, params.operator.function)(ctypes.byref(params), how))


ONNXRUNTIME_VARIABLE = "RIBSR_ONNXRUNTIME_LIBRARY"
"""Environment variable that names another library of ONNX Runtime's custom operators."""


def onnxruntime_path() -> Path:
    """The custom operators' file: $RIBSR_ONNXRUNTIME_LIBRARY, else the one `python -m plugins.build` makes."""
    return Path(os.environ.get(ONNXRUNTIME_VARIABLE) or DEFAULT.with_name("libribsr_onnxruntime.so"))


def gpu_code(file: Path, advice: str = "") -> tuple[str, ...]:
    """What a library for GPUs was compiled for, as nvcc has it: `sm_80` for machine code, `compute_80` for PTX.

    Raises LibraryError where it does not say, or cannot be loaded.
    """
    library = opened(file, advice)
    if not hasattr(library, "ribsr_gpu_code"):
        advice = advice or f"build it again with `{build_kernels()}`"
        raise LibraryError(f"{file} does not say which GPUs it has code for: {advice}")
    library.ribsr_gpu_code.restype = ctypes.c_char_p
    return tuple(library.ribsr_gpu_code().decode().split("+"))


def check_gpus(file: Path, capabilities: Sequence[str]) -> None:
    """Raises LibraryError unless a library for GPUs has code for all of these compute capabilities, such as `8.9`."""
    code = gpu_code(file, f"build it again with `{build_kernels('--tensorrt-include DIR')}`")
    lacking = [capability for capability in capabilities if not any(_runs(one, capability) for one in code)]
    if lacking:
        raise LibraryError(
            f"{file} has no code for compute capability {' and '.join(lacking)}, only {', '.join(code)}: leave "
            f"{'it' if len(lacking) == 1 else 'them'} out, or the plugin (--no-plugin)"
        )


def _runs(code: str, capability: str) -> bool:
    """Machine code runs on later cards of the same generation, PTX on all later ones; that of `sm_90a` on 9.0 alone."""
    kind, _, number = code.partition("_")
    major, minor = map(int, capability.split("."))
    if number.endswith("a"):
        return kind == "sm" and number == f"{major}{minor}a"
    for_major, for_minor = divmod(int(number), 10)
    return (major, minor) >= (for_major, for_minor) and (kind == "compute" or major == for_major)


TENSORRT_VARIABLE = "RIBSR_TENSORRT_LIBRARY"
"""Environment variable that names another TensorRT plugin library."""

_tensorrt_lock = threading.Lock()


def tensorrt_path(major: int) -> Path:
    """The plugin library for this TensorRT: $RIBSR_TENSORRT_LIBRARY, else the one `python -m plugins.build` makes."""
    return Path(os.environ.get(TENSORRT_VARIABLE) or DEFAULT.with_name(f"libribsr_tensorrt{major}.so"))


def load_tensorrt(trt: Any, path: Path) -> None:
    """Register the plugins in `path` with TensorRT (`trt` is its module), unless this process has them already.

    TensorRT loads the file itself (IPluginRegistry::loadLibrary, 8.6 and later) and asks it for its plugin creators;
    loading it in any other way registers nothing. Raises LibraryError.
    """
    registry = trt.get_plugin_registry()
    with _tensorrt_lock:
        if not _missing_plugins(registry):
            return
        if not path.exists():
            raise LibraryError(
                f"{path} does not exist: build it with `{build_kernels('--tensorrt-include DIR')}`, "
                f"DIR holding the headers of TensorRT {trt.__version__}"
            )
        opened(path, f"build it again with `{build_kernels('--tensorrt-include DIR')}`")
        registry.load_library(str(path.resolve()))
        missing = _missing_plugins(registry)
        if missing:
            raise LibraryError(
                f"{path} does not give TensorRT {trt.__version__} the plugins {', '.join(missing)}: it was built for "
                f"another TensorRT; run `{build_kernels('--tensorrt-include DIR')}` with the headers of this one"
            )


def _missing_plugins(registry: Any) -> list[str]:
    # To ask for one that is not there makes TensorRT log an error. From 10 on, the second list lacks IPluginV3.
    creators = registry.all_creators if hasattr(registry, "all_creators") else registry.plugin_creator_list
    known = {(creator.name, creator.plugin_version, creator.plugin_namespace) for creator in creators}
    return [name for name in PLUGINS if (name, "1", DOMAIN) not in known]
