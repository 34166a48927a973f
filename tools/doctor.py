#!/usr/bin/env python3
"""What runs here? Python and packages, the GPU, the runtimes, our own libraries; what of this toolkit works with them,
and what brings what is missing."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

import ribsr
from engines import driver, open_engine
from engines.base import NotInstalled
from engines.choice import has_amx
from engines.ort_kernels import LEAST_CAPABILITY
from plugins import compiler, library
from ribsr.base.command import Command, message
from ribsr.base.files import temporary_folder
from ribsr.base.installation import FOLDER, build_kernels, pip_install
from tools._common import console, gpu_query, json_option, write_json

if TYPE_CHECKING:
    from rich.console import Console

BUILD = build_kernels()


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
    "imagecodecs": "ort",
    "tifffile": "ort",
    "av": "video",
    "torch": "export",
    "safetensors": "export",
    "PyYAML": "export",
    "onnx": "export",
    "onnxscript": "export",
    "onnx-graphsurgeon": "export",
    "onnxruntime": "ort",
    "onnxruntime-gpu": "ort-gpu",
    "openvino": "openvino",
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


def gpu() -> Iterator[Finding]:
    try:
        capability = driver.capability()
    except driver.NoGPU as error:
        yield Finding("GPU", False, str(error))
        yield Finding("GPU for our kernels", False, str(error))
        return
    named = next(iter(gpu_query("name,driver_version")), "NVIDIA")
    yield Finding("GPU", True, f"{named}, compute capability {capability}, CUDA {driver.cuda_version()}")
    suits = tuple(map(int, capability.split("."))) >= LEAST_CAPABILITY
    least = ".".join(map(str, LEAST_CAPABILITY))
    yield Finding("GPU for our kernels", suits, f"compute capability {capability}; {least} or later will do")


def pictures() -> str:
    """Formats in which a picture of 8 bits comes back."""
    return _formats("uint8", (".png", ".jpg", ".webp", ".tiff"))


def deep_pictures() -> str:
    """Those in which one of 16 bits does."""
    return _formats("uint16", (".png", ".tiff"))


def _formats(dtype: str, suffixes: tuple[str, ...]) -> str:
    """Writes a picture and reads it, in each format. Raises whatever happens, and ValueError for another picture."""
    import numpy as np

    from ribsr.base.pictures import Picture, read_picture, write_picture

    pixels = np.full((16, 16, 3), np.iinfo(dtype).max // 3 * 2, dtype)
    with temporary_folder() as folder:
        for suffix in suffixes:
            write_picture(folder / f"a{suffix}", Picture(pixels))
            found = read_picture(folder / f"a{suffix}").pixels
            if found.dtype != pixels.dtype or not np.allclose(found, pixels, atol=2):
                raise ValueError(f"a picture comes back changed from {suffix}")
    return ", ".join(suffix[1:] for suffix in suffixes)


def avif() -> str:
    from PIL import features

    if not features.check("avif"):
        raise NotInstalled(f"this Pillow was built without it: {pip_install('ort')} brings a release that has it")
    return "reads and writes"


def videos() -> str:
    import av

    from engines.video import ENCODERS

    there = sorted({*ENCODERS} & {*av.codecs_available})
    if not there:
        raise NotInstalled(f"this PyAV has none of {', '.join(ENCODERS)}: {pip_install('video')} brings one that has")
    return ", ".join(there)


def pytorch() -> str:
    with open_engine("sst-light-x2") as engine:
        told = engine.describe()
    return f"{told.runtime_version} runs sst-light-x2 on {told.device}"


def onnxruntime() -> str:
    from engines import ort

    runtime = ort.import_runtime()
    return f"{runtime.__version__} with {', '.join(runtime.get_available_providers())}"


def openvino() -> str:
    from engines import ov

    runtime = ov.import_runtime()
    core = ov.new_core(runtime)
    named = core.get_property("CPU", "FULL_DEVICE_NAME")
    amx = "with" if has_amx() else "without"
    return f"{ov.version(runtime)} on {named} {amx} AMX, computes in {', '.join(sorted(ov.capabilities(core)))}"


def onnxruntime_on_gpu() -> str:
    from engines import ort

    ort.check_cuda()
    return f"opens a session of {ort.CUDA}"


def pytorch_on_gpu() -> str:
    with open_engine("sst-light-x2", device="cuda") as engine:
        return f"runs sst-light-x2 on {engine.describe().device}"


def tensorrt() -> str:
    from engines.trt import gpu
    from engines.trt.messages import Log
    from engines.trt.versions import TensorRT

    trt = TensorRT.load()
    device = gpu.current_gpu()
    trt.start("Runtime", Log(trt.module))
    return f"{trt.version} on {device.name}"


def lean_tensorrt() -> str:
    from engines.trt import gpu
    from engines.trt.versions import TensorRT

    return f"{TensorRT.load_lean().version} on {gpu.current_gpu().name}"


def tensorrt_rtx() -> str:
    """What it builds for; and whether its plans run on the GPU here, which it does not need."""
    from engines.trt import rtx
    from engines.trt.versions import TensorRT

    trt = TensorRT.load(rtx=True)
    builds = f"{trt.version} builds for compute capability {', '.join(rtx.supported(trt))}"
    try:
        capability = driver.capability()
    except driver.NoGPU as error:
        return f"{builds}; no plan runs here: {error}"
    is_served = capability in rtx.supported(trt) or rtx.serves(rtx.noted(trt, ()), capability)
    runs = "its plans run" if is_served else "no plan runs"
    return f"{builds}; {runs} on the GPU here, which has {capability}"


def trials() -> Iterator[Finding]:
    """Each tried, as far as that goes without a file."""
    for name, tried, extra in (
        ("8-bit pictures", pictures, "ort"),
        ("16-bit pictures", deep_pictures, "ort"),
        ("AVIF in Pillow", avif, "ort"),
        ("video encoders", videos, "video"),
        ("PyTorch opens", pytorch, "export"),
        ("PyTorch on the GPU", pytorch_on_gpu, "export"),
        ("ONNX Runtime opens", onnxruntime, "ort"),
        ("ONNX Runtime on the GPU", onnxruntime_on_gpu, "ort-gpu"),
        ("OpenVINO opens", openvino, "openvino"),
        ("TensorRT opens", tensorrt, "trt"),
        ("TensorRT's lean runtime opens", lean_tensorrt, "trt-lean"),
        ("TensorRT RTX loads", tensorrt_rtx, "rtx"),
    ):
        try:
            yield Finding(name, True, tried())
        except Exception as error:  # noqa: BLE001 (whatever is wrong is what is asked for)
            yield Finding(name, False, message(error), _command_for(error, pip_install(extra)))


def _command_for(error: Exception, installs: str) -> str | None:
    """What brings a package that is missing, where that is the trouble: as the message has it, if it has it."""
    if told := re.search(rf"(pip uninstall [\w-]+ && )?{re.escape(installs)}", str(error)):
        return told[0]
    return installs if isinstance(error, ModuleNotFoundError) else None


def libraries() -> Iterator[Finding]:
    """Our own, as built."""
    rows = [("kernels for PyTorch", library.path(), BUILD)]
    rows += [("kernels for ONNX Runtime", library.onnxruntime_path(), BUILD)]
    rows += [("kernels for CPUs, in ONNX Runtime", library.cpu_path(), f"{BUILD} --only cpu")]
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


def parts() -> Iterator[Finding]:
    yield Finding("ribsr", True, f"{ribsr.__version__} in {FOLDER}")
    yield Finding("Python", True, f"{platform.python_version()}, {sys.executable}")
    yield from packages()
    yield from gpu()
    yield from trials()
    yield nvcc()
    yield from libraries()


@dataclass(frozen=True)
class Use:
    """Something that people do with this toolkit.

    command: which does it. extra: brings the packages. needs: names of findings; of a tuple of them, one is enough.
    """

    name: str
    command: str
    extra: str
    needs: tuple[str | tuple[str, ...], ...]


PLANS = ("TensorRT opens", "TensorRT's lean runtime opens")
RUNTIMES = ("ONNX Runtime opens", "PyTorch opens", "OpenVINO opens", *PLANS)
EXPORT = ("torch", "onnx", "onnxscript", "onnx-graphsurgeon", "safetensors", "PyYAML", "PyTorch opens")

USES = (
    Use("upscale pictures", "python -m engines.upscale", "ort", ("numpy", "pillow", "8-bit pictures", RUNTIMES)),
    Use(
        "upscale 16-bit pictures",
        "python -m engines.upscale",
        "ort",
        ("imagecodecs", "tifffile", "16-bit pictures", RUNTIMES),
    ),
    Use("upscale AVIF pictures", "python -m engines.upscale", "ort", ("AVIF in Pillow", RUNTIMES)),
    Use("upscale videos", "python -m engines.upscale", "video", ("av", "video encoders", RUNTIMES)),
    Use("run checkpoints", "python -m engines.upscale x2.pt", "export", ("safetensors", "PyYAML", "PyTorch opens")),
    Use(
        "run checkpoints in our kernels",
        "python -m engines.upscale x2.pt, tools/latency.py x2.pt@fp16",
        "export",
        ("GPU for our kernels", "PyTorch on the GPU", "kernels for PyTorch"),
    ),
    Use("run ONNX files on the CPU", "python -m engines.upscale x2.onnx", "ort", ("ONNX Runtime opens",)),
    Use(
        "run ONNX files in OpenVINO",
        "python -m engines.upscale x2.onnx --runtime openvino",
        "openvino",
        ("onnx", "OpenVINO opens"),
    ),
    Use(
        "run ONNX files on the GPU", "python -m engines.upscale x2.onnx", "ort-gpu", ("GPU", "ONNX Runtime on the GPU")
    ),
    Use(
        "run ONNX files in our kernels on the CPU",
        "python -m engines.upscale x2.onnx",
        "ort",
        ("ONNX Runtime opens", "onnx", "onnx-graphsurgeon", "kernels for CPUs, in ONNX Runtime"),
    ),
    Use(
        "run ONNX files in our kernels on the GPU",
        "python -m engines.upscale x2.fp16.onnx",
        "ort-gpu",
        ("GPU for our kernels", "ONNX Runtime on the GPU", "onnx", "onnx-graphsurgeon", "kernels for ONNX Runtime"),
    ),
    Use("run plans", "python -m engines.upscale x2.plan", "trt", ("GPU", "cuda-bindings", PLANS)),
    Use("export to ONNX", "python -m export.onnx", "export", EXPORT),
    Use(
        "build plans",
        "python -m export.trt",
        "trt",
        ("GPU", "onnx", "onnx-graphsurgeon", "ONNX Runtime opens", "TensorRT opens"),
    ),
    Use(
        "build plans for RTX cards",
        "python -m export.trt --rtx",
        "rtx",
        ("onnx", "onnx-graphsurgeon", "ONNX Runtime opens", "TensorRT RTX loads"),
    ),
    Use("train", "python -m ribsr train", "train", ("torch", "safetensors", "PyYAML", "PyTorch opens")),
)


def follow(use: Use, found: Mapping[str, Finding]) -> Finding:
    """Whether all is there that a use needs; if not, what is missing first."""
    for need in use.needs:
        names = (need,) if isinstance(need, str) else need
        if any(found[name].ok for name in names):
            continue
        first = found[names[0]]
        command = pip_install(use.extra) if first.name in PACKAGES else first.command
        return Finding(use.name, False, f"{first.name}: {first.state}", command)
    return Finding(use.name, True, use.command)


def show(out: Console, one: Finding, yes: str, no: str) -> None:
    extra = f": {one.command}" if one.command and one.command not in one.state else ""
    out.print(f"{yes if one.ok else no} {one.name}: {one.state}{extra}", soft_wrap=True, markup=False)


@click.command(cls=Command)
@json_option
def main(json_target: str | None) -> None:
    """Tells what runs here, what can be done with it, and which command brings what is missing. Exit code 0 either way.

    Not everything is needed: a machine that runs .onnx files needs ONNX Runtime alone.
    """
    out = console(stderr=json_target == "-")
    found: dict[str, Finding] = {}
    for one in parts():
        found[one.name] = one
        show(out, one, "ok ", "-- ")
    uses = [follow(use, found) for use in USES]
    out.print()
    for one in uses:
        show(out, one, "yes", "no ")
    if json_target:
        told = {"findings": [asdict(one) for one in found.values()], "uses": [asdict(one) for one in uses]}
        write_json(json_target, {"tool": "doctor", **told})


if __name__ == "__main__":
    main(prog_name="tools/doctor.py")
