"""The kernels for GPUs on a CPU: their own sources, compiled with the headers of this folder in the place of CUDA's.

`build` makes a library with the same C interface, whose "device memory" is the CPU's. It shows what a GPU would compute
but for the order of sums, accesses outside shared memory, missing barriers and waits for copies, and how often ldmatrix
has to wait for a bank; include/emulator.h says how. Instructions of Hopper alone are left out. Slow: for small maps.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from plugins import operators
from plugins.operators import Operator
from plugins.pytorch import DTYPES

HERE = Path(__file__).resolve().parent
OPTIONS = (
    "-std=c++17",
    "-O2",
    "-march=native",
    "-fPIC",
    "-w",
    "-Wno-psabi",
    "-DRIBSR_GPU_CODE=emulated",
    "-DRIBSR_HOPPER=0",
)


def build(source: Path, folders: Iterable[str], cuda: Path, output: Path) -> None:
    """The library of the kernels in these folders of `source` (plugins/src), and its sources in C++ beside it.

    cuda: the toolkit's headers, as Hopper's launchers need cuda.h. Raises subprocess.CalledProcessError.
    """
    copy = output.with_suffix(".src")
    shutil.rmtree(copy, ignore_errors=True)
    for file in source.rglob("*"):
        if file.suffix in (".cu", ".cuh", ".h") and file.relative_to(source) != Path("shared/device.cuh"):
            target = copy / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(as_cpp(file.read_text(encoding="utf-8")), encoding="utf-8")
    kernels = [copy / "shared" / "interface.cu", *(file for name in folders for file in (copy / name).glob("*.cu"))]
    includes = [f"-I{HERE / 'include'}", f"-I{copy}", f"-I{source.parent / 'include'}", "-idirafter", str(cuda)]

    def compiled(file: Path) -> Path:
        target = copy / f"{file.parent.name}.{file.name}.o"
        subprocess.run(["g++", *OPTIONS, *includes, "-x", "c++", "-c", file, "-o", target], check=True)
        return target

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compiled, [HERE / "emulator.cpp", *kernels]))
    subprocess.run(["g++", "-shared", "-o", output, *objects], check=True)


def as_cpp(text: str) -> str:
    """A CUDA source in C++: launches, and the block's dynamic shared memory."""
    text = re.sub(r"extern __shared__ [^;]*?(\w+)\[\];", r"uint8_t *\1 = emulator::shared_memory;", text)
    return re.sub(r"(\w+(?:<[\w, ]+>)?)<<<(.*?)>>>\(", r"emulator::launch(\1, emulator::Config(\2), ", text)


def load(library: Path) -> ctypes.CDLL:
    """A library that `build` has made, its functions' types declared."""
    loaded = ctypes.CDLL(str(library))
    loaded.ribsr_error_message.restype = ctypes.c_char_p
    for function in (
        "emulator_matrices",
        "emulator_conflicts",
        *(f"{o.function}_workspace" for o in operators.OPERATORS),
    ):
        if hasattr(loaded, function):
            getattr(loaded, function).restype = ctypes.c_int64
    return loaded


def call(
    library: ctypes.CDLL,
    operator: Operator,
    inputs: Sequence[torch.Tensor],
    outputs: Sequence[torch.Tensor],
    **attributes: Any,
) -> None:
    """An operator's function on tensors of 16 bits, with a workspace full of NaN. Raises RuntimeError if it refuses."""
    values = operator.values([x.shape for x in inputs], **attributes)
    tensors = {**dict(zip(operator.tensors, inputs, strict=True)), **dict(zip(operator.outputs, outputs, strict=True))}
    if operator.has_workspace:
        size = getattr(library, f"{operator.function}_workspace")(*(values[name] for name in operator.widths.names))
        tensors["workspace"] = torch.full((size,), 255, dtype=torch.uint8)
    maps = {name: operators.Map(x.data_ptr(), *x.stride()) for name, x in tensors.items() if name in operator.maps}
    pointers = {name: x.data_ptr() for name, x in tensors.items() if name in operator.pointers}
    params = operator.params(dtype=DTYPES[inputs[0].dtype], **values, **maps, **pointers)
    params.struct_size = ctypes.sizeof(params)
    if getattr(library, operator.function)(ctypes.byref(params), None) != 0:
        raise RuntimeError(library.ribsr_error_message().decode())
