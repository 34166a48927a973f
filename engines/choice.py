"""Which runtime `auto` takes where several open a file: by what was measured, told as the description's `chosen`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from engines import driver
from engines.base import HALVES, OLDEST_OPENVINO, release
from engines.metadata import has_external_data, read_stamp

ONNXRUNTIME, OPENVINO = "onnxruntime", "openvino"


def for_onnx(path: str | Path, device: str, precision: str | None, kernels: bool) -> tuple[str, str]:
    """The runtime of an .onnx file, by its name, and why; no reason where there is nothing to choose.

    Measured, sst-light x2, float32, seconds of one thread (`resource.getrusage`, so that other work does not count):

    | | our kernels | ONNX Runtime 1.32, canonical | OpenVINO 2026.4.1, MultiHeadAttention inlined |
    |---|---|---|---|
    | AMD EPYC with AVX-512, without AMX, 128x128 | 1.84 | 3.02 | 3.70 (Attention 4.62, basic operators 3.75) |
    | the same with products of bfloat16 | 1.20 | none | 2.58 |
    | Intel with AMX, times of one form beside each other | | 1 | 0.64 to 0.89 |
    | Intel with AMX, two threads, 256x256, seconds | 3.0 to 3.2 | | 9.9 |
    | the same with products of bfloat16 | 4.7 to 5.0 | none | 5.7 |

    At 256x256 ONNX Runtime's own operators took 12.65 and OpenVINO 15.96, at the first run of that size. So our
    kernels, in ONNX Runtime, are the fastest where they are built; without them ONNX Runtime is faster than OpenVINO
    without AMX, and slower with it. Half-precision files were not compared: ONNX Runtime has them, as before there was
    anything to choose.

    Raises EngineError for a file that is none of this toolkit's.
    """
    if not _installed(OPENVINO):
        return ONNXRUNTIME, ""
    if not _installed(ONNXRUNTIME):
        return OPENVINO, "ONNX Runtime is not installed"
    if device == "cuda" or (device == "auto" and _has_gpu()):
        return ONNXRUNTIME, "OpenVINO runs on the CPU only"
    stamp = read_stamp(path)
    if stamp.form == "plugin":
        return ONNXRUNTIME, "OpenVINO does not run the form plugin"
    if stamp.precision in HALVES:
        return ONNXRUNTIME, f"with {stamp.precision} files OpenVINO was not measured"
    isas = _our_kernels() if kernels and stamp.form == "canonical" else ()
    if "avx512_bf16" in isas or (isas and precision != "bf16"):
        return ONNXRUNTIME, "our kernels for it are built"
    if stamp.form == "canonical" and not _installed("onnx"):
        return ONNXRUNTIME, "OpenVINO needs the package onnx for such files"
    if has_external_data(path):
        return ONNXRUNTIME, "OpenVINO does not run files whose weights are in another file"
    if precision == "bf16":
        return OPENVINO, "our kernels, with which ONNX Runtime computes in bf16, are not built, or not for this CPU"
    if has_amx() and _knows_our_files():
        return OPENVINO, "it is faster than ONNX Runtime on CPUs with AMX"
    return ONNXRUNTIME, "it is faster than OpenVINO on CPUs without AMX"


def has_amx(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies matrices in tiles, which Linux tells; False elsewhere."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any("amx_tile" in line.split() for line in lines if line.startswith("flags"))


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _knows_our_files() -> bool:
    """Whether the OpenVINO that is installed is recent enough, as far as its package says."""
    try:
        return release(importlib.metadata.version(OPENVINO)) >= OLDEST_OPENVINO
    except importlib.metadata.PackageNotFoundError:
        return True


def _has_gpu() -> bool:
    try:
        driver.capability()
    except driver.NoGPU:
        return False
    return True


def _our_kernels() -> tuple[str, ...]:
    """The instruction sets of our kernels for CPUs; none where the library is not built, or cannot be loaded."""
    from plugins import library  # engines checks first that it is ours

    try:
        return library.cpu_isas()
    except library.LibraryError:
        return ()
