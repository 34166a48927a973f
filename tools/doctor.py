#!/usr/bin/env python3
"""What runs here? Python and packages, the GPU, the runtimes, our own libraries; and what brings what is missing."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

import ribsr
from engines import driver, open_engine
from plugins import compiler, library
from ribsr.base.command import Command, message
from ribsr.base.installation import FOLDER, pip_install
from tools._common import console, gpu_query, json_option, write_json

BUILD = "python -m plugins.build"


@dataclass(frozen=True)
class Finding:
    """state: what there is, or why it does not work. command: what brings it, where that is known."""

    name: str
    ok: bool
    state: str
    command: str | None = None


PACKAGES = {
    "numpy": "ort",
    "pillow": "ort",
    "torch": "export",
    "safetensors": "export",
    "PyYAML": "export",
    "onnx": "export",
    "onnxscript": "export",
    "onnx-graphsurgeon": "export",
    "onnxruntime": "ort",
    "onnxruntime-gpu": "ort-gpu",
    "tensorrt": "trt",
    "cuda-bindings": "trt",
    "flash-attn": "flash",
}
"""Distributions, and an extra that brings each."""

SAME_PACKAGE = {"onnxruntime": "onnxruntime-gpu", "onnxruntime-gpu": "onnxruntime"}
"""One of two is enough."""


def packages() -> Iterator[Finding]:
    versions = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    for name, extra in PACKAGES.items():
        if name in versions:
            yield Finding(name, True, versions[name])
        elif SAME_PACKAGE.get(name) not in versions:
            yield Finding(name, False, "not installed", pip_install(extra))


def gpu() -> Finding:
    try:
        capability = driver.capability()
    except driver.NoGPU as error:
        return Finding("GPU", False, str(error))
    named = next(iter(gpu_query("name,driver_version")), "NVIDIA")
    return Finding("GPU", True, f"{named}, compute capability {capability}")


def pytorch() -> str:
    with open_engine("sst-light-x2") as engine:
        told = engine.describe()
    return f"{told.runtime_version} runs sst-light-x2 on {told.device}"


def onnxruntime() -> str:
    from engines import ort

    runtime = ort.import_runtime()
    providers = [name for name in (ort.CUDA, ort.CPU) if name in runtime.get_available_providers()]
    return f"{runtime.__version__} with {', '.join(providers)}"


def tensorrt() -> str:
    from engines.trt import gpu
    from engines.trt.messages import Log
    from engines.trt.versions import TensorRT

    trt = TensorRT.load()
    device = gpu.current_gpu()
    trt.start("Runtime", Log(trt.module))
    return f"{trt.version} on {device.name}"


def runtimes() -> Iterator[Finding]:
    """Each opened, as far as that goes without a file."""
    for name, opened, extra in (
        ("PyTorch opens", pytorch, "export"),
        ("ONNX Runtime opens", onnxruntime, "ort"),
        ("TensorRT opens", tensorrt, "trt"),
    ):
        try:
            yield Finding(name, True, opened())
        except Exception as error:  # noqa: BLE001 (whatever is wrong with a runtime is what is asked for)
            line, command = message(error), pip_install(extra)
            yield Finding(name, False, line, command if command in line else None)


def libraries() -> Iterator[Finding]:
    """Our own, as built."""
    rows = [("kernels for PyTorch", library.path(), BUILD)]
    rows += [("kernels for ONNX Runtime", library.onnxruntime_path(), BUILD)]
    headers, plugins = f"{BUILD} --tensorrt-include DIR", {n: library.tensorrt_path(n) for n in compiler.PLUGIN_SOURCES}
    built = [n for n, file in plugins.items() if file.exists()]
    rows += [(f"plugin for TensorRT {n}", plugins[n], headers) for n in built]
    if not built:
        yield Finding("plugin for TensorRT", False, "none is built", headers)
    for name, file, command in rows:
        if not file.exists():
            yield Finding(name, False, f"{file} is not built", command)
            continue
        try:
            library.opened(file)
            yield Finding(name, True, f"{file}, interface version {library.INTERFACE_VERSION}")
        except library.LibraryError as error:
            yield Finding(name, False, message(error), command)


def nvcc() -> Finding:
    try:
        return Finding("nvcc", True, str(compiler.find_nvcc()))
    except compiler.BuildError as error:
        return Finding("nvcc", False, message(error))


def examine() -> Iterator[Finding]:
    yield Finding("ribsr", True, f"{ribsr.__version__} in {FOLDER}")
    yield Finding("Python", True, f"{platform.python_version()}, {sys.executable}")
    yield from packages()
    yield gpu()
    yield from runtimes()
    yield nvcc()
    yield from libraries()


@click.command(cls=Command)
@json_option
def main(json_target: str | None) -> None:
    """Tells what runs here, and of what is missing which command brings it. Exit code 0 either way.

    Not everything is needed: a machine that runs .onnx files needs ONNX Runtime alone.
    """
    out = console(stderr=json_target == "-")
    found = []
    for one in examine():
        found.append(one)
        extra = f": {one.command}" if one.command and one.command not in one.state else ""
        out.print(f"{'ok' if one.ok else '--'}  {one.name}: {one.state}{extra}", soft_wrap=True)
    if json_target:
        write_json(json_target, {"tool": "doctor", "findings": [asdict(one) for one in found]})


if __name__ == "__main__":
    main(prog_name="tools/doctor.py")
