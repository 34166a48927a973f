"""Builds the library of CUDA kernels, and those for TensorRT and ONNX Runtime; `python -m plugins.build` calls it.

One object per source: every `.cu` file in a folder of plugins/src, so that an operator's folder is compiled because it
is there. An object is made again when a header, its source, the options or the compiler change. Libraries are linked
with the static CUDA runtime: they need the NVIDIA driver and nothing else. No GPU is needed to build.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ribsr.base import interrupt
from ribsr.base.errors import RibsrError
from ribsr.base.files import atomic

ROOT = Path(__file__).resolve().parent
SOURCE = ROOT / "src"
INCLUDE = ROOT / "include"
RUNTIMES = SOURCE / "runtimes"
LIBRARY = ROOT / "build" / "libribsr_kernels.so"
PORTABLE = ("-gencode=arch=compute_80,code=[sm_80,compute_80]",)
HOPPER = ("-gencode=arch=compute_90a,code=sm_90a",)
"""Machine code for compute capability 8.0 and 9.0a, and with PORTABLE the PTX that later ones translate."""
OPTIONS = ("-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall", "-cudart=static")
LINK = ("-shared", "-cudart=static", "-Xcompiler=-static-libstdc++,-static-libgcc", "-Xlinker=-z,defs")

PLUGIN_SOURCES = {8: "plugin_v2.cpp", 9: "plugin_v2.cpp", 10: "plugin_v3.cpp", 11: "plugin_v3.cpp"}
"""The plugin interface of each TensorRT major version."""
TENSORRT_VARIABLE = "TENSORRT_INCLUDE"
TENSORRT_PLACES = (
    Path("/usr/include/x86_64-linux-gnu"),
    Path("/usr/include"),
    Path("/usr/local/tensorrt/include"),
    Path("/opt/tensorrt/include"),
)
"""Where TensorRT's headers are looked for after the folder that $TENSORRT_INCLUDE names."""
ONNXRUNTIME_HEADER = "onnxruntime_c_api.h"


class BuildError(RibsrError, RuntimeError):
    """The library could not be built; the message says why and what to do."""


def find_nvcc(given: str | None = None) -> Path:
    """The compiler: the given one, $NVCC, $CUDA_HOME/bin/nvcc, the one on the PATH, /usr/local/cuda/bin/nvcc.

    Raises BuildError if a named one does not exist or none is found.
    """
    for name, value in (("--nvcc", given), ("NVCC", os.environ.get("NVCC"))):
        if value:
            found = shutil.which(value)
            if found is None:
                raise BuildError(f"{name} names {value!r}, which is not an executable file")
            return Path(found)
    candidates = [Path(value) / "bin" / "nvcc" for value in (os.environ.get("CUDA_HOME"),) if value]
    on_path = shutil.which("nvcc")
    if on_path:
        candidates.append(Path(on_path))
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    for candidate in candidates:
        if os.access(candidate, os.X_OK):
            return candidate
    raise BuildError(
        "nvcc not found on the PATH, in $CUDA_HOME/bin or /usr/local/cuda/bin: "
        "install the CUDA toolkit (12.4 or later), or name its compiler with --nvcc"
    )


def tensorrt_major(include: Path) -> int:
    """The major version of the TensorRT headers in this folder. Raises BuildError."""
    header = include / "NvInferVersion.h"
    if not header.is_file() or not (include / "NvInfer.h").is_file():
        raise BuildError(
            f"{include} has no TensorRT headers (NvInfer.h, NvInferVersion.h): "
            "name the include folder of github.com/NVIDIA/TensorRT at the tag of your version"
        )
    # Later headers define the first through the second.
    found = re.search(
        r"#define\s+(?:NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE)\s+(\d+)", header.read_text(errors="replace")
    )
    if found is None:
        raise BuildError(f"{header} defines no NV_TENSORRT_MAJOR: it is no header of TensorRT 8 or later")
    major = int(found[1])
    if major not in PLUGIN_SOURCES:
        raise BuildError(f"{include} has the headers of TensorRT {major}; the plugins are made for 8 to 11")
    return major


def find_tensorrt(given: Sequence[Path] = ()) -> dict[int, Path]:
    """TensorRT's headers by major version: in the given folders, else in $TENSORRT_INCLUDE and the usual places.

    Raises BuildError if a named folder has none that can be used, or two given ones are of the same version.
    """
    found: dict[int, Path] = {}
    for include in given:
        major = tensorrt_major(include)
        if major in found:
            raise BuildError(f"{found[major]} and {include} are both of TensorRT {major}: name one of them")
        found[major] = include
    if given:
        return found
    named = os.environ.get(TENSORRT_VARIABLE)
    if named:
        found[tensorrt_major(Path(named))] = Path(named)
    for place in TENSORRT_PLACES:
        try:
            found.setdefault(tensorrt_major(place), place)
        except BuildError:  # nobody named it: what it has or lacks is no error
            continue
    return found


def onnxruntime_include(given: Path) -> Path:
    """The folder with ONNX Runtime's header: the given one, or one below it as in its sources. Raises BuildError."""
    for folder in (given, given / "onnxruntime", given / "onnxruntime" / "core" / "session"):
        if (folder / ONNXRUNTIME_HEADER).is_file():
            return folder
    raise BuildError(
        f"{given} has no {ONNXRUNTIME_HEADER}: name the include folder of github.com/microsoft/onnxruntime "
        "at the tag of your version, or of one of its release archives"
    )


def _run(command: list[str], log: Path) -> None:
    """Run a compiler; what it says goes to `log` if it fails, and its first error into the BuildError."""
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    said = result.stdout + result.stderr
    if result.returncode == 0:
        log.unlink(missing_ok=True)
        return
    if interrupt.arrived():  # it was ended, and said nothing of use
        raise BuildError("interrupted")
    log.write_text(f"{' '.join(command)}\n{said}")
    lines = [line.strip() for line in said.splitlines() if line.strip()] or [f"exit code {result.returncode}"]
    first = next((line for line in lines if re.search(r"\berror\b|undefined reference", line)), lines[0])
    raise BuildError(f"{Path(command[0]).name} failed: {first} (all of it: {log})")


def _made_to(target: Path, digest: str, command: list[str]) -> bool:
    """Run command, whose output goes to `target`, unless it was made from the same digest; True if it ran."""
    stamp = target.with_name(target.name + ".digest")
    if target.exists() and stamp.exists() and stamp.read_text() == digest:
        return False
    with atomic(target) as made:
        _run([*command, "-o", str(made)], target.with_name(target.name + ".log"))
        stamp.unlink(missing_ok=True)  # stopped from here on, the next build makes it again
    with atomic(stamp) as new_stamp:
        new_stamp.write_text(digest)
    return True


def _digest(parts: list[bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()


@dataclass(frozen=True)
class _Object:
    path: Path
    digest: str
    made: bool


@dataclass(frozen=True)
class _Compiler:
    path: Path
    version: bytes
    jobs: int

    @classmethod
    def find(cls, nvcc: str | None, jobs: int | None) -> _Compiler:
        """The compiler that find_nvcc finds, for `jobs` files at a time. Raises BuildError."""
        path = find_nvcc(nvcc)
        asked = subprocess.run([path, "--version"], capture_output=True, check=False)
        if asked.returncode != 0:
            raise BuildError(f"{path} --version failed with exit code {asked.returncode}: is it a CUDA compiler?")
        return cls(path, asked.stdout, jobs or os.cpu_count() or 1)

    def compile(
        self, sources: Sequence[Path], options: Mapping[Path, Sequence[str]], headers: Sequence[Path], folder: Path
    ) -> list[_Object]:
        """An object in `folder` for each source, made anew if a header, the source or an option changed."""
        folder.mkdir(parents=True, exist_ok=True)
        shared = [self.version, *(header.read_bytes() for header in headers)]

        def compile_one(source: Path) -> _Object:
            used = [*OPTIONS, *options[source]]
            digest = _digest([*shared, source.read_bytes(), *(option.encode() for option in used)])
            # Files in different folders may have the same name.
            target = folder / f"{source.parent.name}.{source.name}.o"
            includes = [f"-I{SOURCE}", f"-I{INCLUDE}"]  # their headers' content counts, not where they are
            made = _made_to(target, digest, [str(self.path), *used, *includes, "-c", str(source)])
            return _Object(target, digest, made)

        with ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(compile_one, sources))

    def link(self, objects: Sequence[_Object], exports: Path, output: Path) -> bool:
        """The shared library of these objects, exporting what the version script says; True if it was made."""
        digest = _digest([*(one.digest.encode() for one in objects), exports.read_bytes(), *map(str.encode, LINK)])
        script = f"-Xlinker=--version-script={exports}"
        command = [str(self.path), *LINK, script, *(str(one.path) for one in objects)]
        return _made_to(output, digest, command) or any(one.made for one in objects)


def kernel_sources() -> list[Path]:
    """What is compiled into every library: the `.cu` files in the operators' folders and in src/shared."""
    return sorted(SOURCE.glob("*/*.cu"))


def _kernels(compiler: _Compiler, folder: Path) -> list[_Object]:
    """The kernels' objects, which every library has in it, in a folder under `folder`."""
    sources = kernel_sources()
    headers = [*sorted([*SOURCE.glob("*/*.h"), *SOURCE.glob("*/*.cuh")]), *sorted(INCLUDE.glob("*.h"))]
    # The bodies of Hopper's kernels are empty elsewhere, but their launchers and symbols must exist once.
    options = {source: HOPPER if "hopper" in source.name else PORTABLE + HOPPER for source in sources}
    return compiler.compile(sources, options, headers, folder / f"{LIBRARY.stem}.objects")


def build(output: Path = LIBRARY, *, nvcc: str | None = None, jobs: int | None = None) -> bool:
    """Build the library at `output`, objects in a folder beside it; True if anything had to be made.

    Raises BuildError.
    """
    compiler = _Compiler.find(nvcc, jobs)
    return compiler.link(_kernels(compiler, output.parent), SOURCE / "kernels.map", output)


def build_tensorrt(
    include: Path, folder: Path = LIBRARY.parent, *, nvcc: str | None = None, jobs: int | None = None
) -> tuple[Path, bool]:
    """Build the plugin library for the TensorRT headers in `include`: its file in `folder`, whether it had to be made.

    Raises BuildError.
    """
    major = tensorrt_major(include)
    output = folder / f"libribsr_tensorrt{major}.so"
    own = RUNTIMES / "tensorrt"
    sources = [own / "common.cpp", own / PLUGIN_SOURCES[major]]
    made = _build_face(_Compiler.find(nvcc, jobs), sources, sorted(include.glob("Nv*.h")), output)
    return output, made


def build_onnxruntime(
    include: Path | None = None, folder: Path = LIBRARY.parent, *, nvcc: str | None = None, jobs: int | None = None
) -> tuple[Path, bool]:
    """Build the library of custom operators for ONNX Runtime: its file in `folder`, whether it had to be made.

    include: a folder with ONNX Runtime's header, against which the declarations of our own are checked. Raises
    BuildError.
    """
    output = folder / "libribsr_onnxruntime.so"
    own = RUNTIMES / "onnxruntime"
    sources, headers = [own / "custom_ops.cpp"], []
    if include is not None:
        sources, headers = [*sources, own / "header.cpp"], sorted(onnxruntime_include(include).glob("onnxruntime*.h"))
    return output, _build_face(_Compiler.find(nvcc, jobs), sources, headers, output)


def _build_face(compiler: _Compiler, sources: Sequence[Path], runtime: Sequence[Path], output: Path) -> bool:
    """The library of kernels with a runtime's face, whose sources lie in one folder; True if it had to be made.

    runtime: the runtime's headers, all in one folder.
    """
    own = sources[0].parent
    sources = [RUNTIMES / "operators.cpp", *sources]
    headers = sorted([*RUNTIMES.glob("*.h"), *own.glob("*.h"), *INCLUDE.glob("*.h")])
    options = ["-I", str(runtime[0].parent)] if runtime else []
    objects = _kernels(compiler, output.parent)
    objects += compiler.compile(
        sources, dict.fromkeys(sources, options), [*headers, *runtime], output.parent / f"{output.stem}.objects"
    )
    return compiler.link(objects, own / "exports.map", output)
