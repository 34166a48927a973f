"""Builds the libraries of kernels, and those for TensorRT and ONNX Runtime; `python -m plugins.build` calls it.

For GPUs, with nvcc, one object per source: every `.cu` file in a folder of plugins/src, so that an operator's folder is
compiled because it is there. Libraries are linked with the static CUDA runtime: they need the NVIDIA driver and nothing
else. No GPU is needed to build. For CPUs, with a C++ compiler, each operator's `cpu.cpp` once for each instruction set.

An object is made again when its source, a header of ours that it includes, the options or the compiler change.
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
from ribsr.base.progress import Progress

ROOT = Path(__file__).resolve().parent
SOURCE = ROOT / "src"
INCLUDE = ROOT / "include"
RUNTIMES = SOURCE / "runtimes"
LIBRARY = ROOT / "build" / "libribsr_kernels.so"
CPU_LIBRARY = LIBRARY.with_name("libribsr_cpu.so")

GPUS = ("8.0", "8.6", "8.9", "9.0", "12.0")
"""The compute capabilities that there is machine code for: A100; RTX 30 and 40; H100, H200; RTX 50."""
HOPPER = "9.0"
"""Whose kernels of its own need code for 9.0a."""
NVCC_OPTIONS = ("-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall", "-cudart=static")
NVCC_LINK = ("-shared", "-cudart=static", "-Xcompiler=-static-libstdc++,-static-libgcc", "-Xlinker=-z,defs")

CXX_NAMES = ("g++", "clang++", "c++")
CXX_OPTIONS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall")
CXX_LINK = ("-shared", "-pthread", "-static-libstdc++", "-static-libgcc", "-Wl,-z,defs")
CPU_KERNEL_OPTIONS = ("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
INSTRUCTION_SETS = {
    "baseline": (),
    "avx2": ("-march=x86-64-v3",),
    "avx512": ("-march=x86-64-v4",),
    "avx512_bf16": ("-march=x86-64-v4", "-mavx512bf16"),
}
"""Of x86-64, by their names in include/ribsr_cpu.h; elsewhere there is the first alone."""

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


class NoCompiler(BuildError):
    """There is no compiler, and nobody named one."""


def _named(*names: tuple[str, str | None]) -> Path | None:
    """The first program that an option or a variable names, if one does. Raises BuildError if it does not exist."""
    for name, value in names:
        if value:
            found = shutil.which(value)
            if found is None:
                raise BuildError(f"{name} names {value!r}, which is not an executable file")
            return Path(found)
    return None


def find_cxx(given: str | None = None) -> Path:
    """The C++ compiler: the given one, $CXX, or on the PATH g++, clang++ or c++.

    Raises BuildError if a named one does not exist, NoCompiler if none is found.
    """
    if named := _named(("--cxx", given), ("CXX", os.environ.get("CXX"))):
        return named
    for name in CXX_NAMES:
        if found := shutil.which(name):
            return Path(found)
    raise NoCompiler(f"no C++ compiler on the PATH ({', '.join(CXX_NAMES)}): install one, or name it with --cxx")


def find_nvcc(given: str | None = None) -> Path:
    """CUDA's compiler: the given one, $NVCC, $CUDA_HOME/bin/nvcc, the one on the PATH, /usr/local/cuda/bin/nvcc.

    Raises BuildError if a named one does not exist, NoCompiler if none is found.
    """
    if named := _named(("--nvcc", given), ("NVCC", os.environ.get("NVCC"))):
        return named
    candidates = [Path(value) / "bin" / "nvcc" for value in (os.environ.get("CUDA_HOME"),) if value]
    on_path = shutil.which("nvcc")
    if on_path:
        candidates.append(Path(on_path))
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    for candidate in candidates:
        if os.access(candidate, os.X_OK):
            return candidate
    raise NoCompiler(
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
class _Source:
    """A file to compile. options: its own. variant: part of its object's name, where it is compiled more than once."""

    path: Path
    options: tuple[str, ...] = ()
    variant: str = ""

    def object_in(self, folder: Path) -> Path:
        """Files in different folders may have the same name."""
        return folder / f"{self.path.parent.name}.{self.path.name}{self.variant and f'.{self.variant}'}.o"


@dataclass(frozen=True)
class _Object:
    path: Path
    digest: str
    made: bool


@dataclass(frozen=True)
class _Compiler:
    """options: of every source, before its own. link: of libraries. script: of a version script, before its path."""

    path: Path
    version: bytes
    jobs: int
    options: tuple[str, ...]
    link_options: tuple[str, ...]
    script: str

    @classmethod
    def nvcc(cls, given: str | None, jobs: int | None) -> _Compiler:
        """That of `find_nvcc`, for `jobs` files at a time. Raises BuildError."""
        path = find_nvcc(given)
        version = _asked(path, "--version", "a CUDA compiler")
        return cls(path, version, jobs or os.cpu_count() or 1, NVCC_OPTIONS, NVCC_LINK, "-Xlinker=--version-script=")

    @classmethod
    def cxx(cls, given: str | None, jobs: int | None) -> _Compiler:
        """That of `find_cxx`. Raises BuildError."""
        path = find_cxx(given)
        version = _asked(path, "--version", "a C++ compiler")
        return cls(path, version, jobs or os.cpu_count() or 1, CXX_OPTIONS, CXX_LINK, "-Wl,--version-script=")

    def compile(self, sources: Sequence[_Source], folder: Path, headers: Sequence[Path] = ()) -> list[_Object]:
        """An object in `folder` for each source, made anew if it, an option or a header changed.

        headers: a runtime's, all in one folder; ours are found.
        """
        folder.mkdir(parents=True, exist_ok=True)
        shared = [self.version, *(header.read_bytes() for header in headers)]
        includes = [f"-I{path}" for path in (SOURCE, INCLUDE, *{header.parent for header in headers})]

        def compile_one(source: _Source) -> _Object:
            used = [*self.options, *source.options]  # headers' content counts, not where they are
            contents = [file.read_bytes() for file in (source.path, *_included(source.path))]
            digest = _digest([*shared, *contents, *(option.encode() for option in used)])
            target = source.object_in(folder)
            made = _made_to(target, digest, [str(self.path), *used, *includes, "-c", str(source.path)])
            progress.advance()
            return _Object(target, digest, made)

        title = f"compiling {folder.stem}"
        with Progress(title, len(sources)) as progress, ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(compile_one, sources))

    def link(self, objects: Sequence[_Object], exports: Path, output: Path) -> bool:
        """The shared library of these objects, exporting what the version script says; True if it was made."""
        options = [option.encode() for option in self.link_options]
        digest = _digest([*(one.digest.encode() for one in objects), exports.read_bytes(), *options])
        script = f"{self.script}{exports}"
        command = [str(self.path), *self.link_options, script, *(str(one.path) for one in objects)]
        return _made_to(output, digest, command) or any(one.made for one in objects)


def _asked(path: Path, option: str, what: str) -> bytes:
    """What a compiler says of itself. Raises BuildError if it is none."""
    asked = subprocess.run([path, option], capture_output=True, check=False)
    if asked.returncode != 0:
        raise BuildError(f"{path} {option} failed with exit code {asked.returncode}: is it {what}?")
    return asked.stdout


_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


def _included(source: Path) -> list[Path]:
    """The headers of ours that a source includes, and those that these do, in some order that is always the same."""
    found: dict[Path, None] = {}
    ahead = [source]
    while ahead:
        file = ahead.pop()
        for name in _INCLUDE.findall(file.read_text(encoding="utf-8")):
            places = (folder / name for folder in (file.parent, SOURCE, INCLUDE))
            header = next((place.resolve() for place in places if place.is_file()), None)
            if header is not None and header not in found:
                found[header] = None
                ahead.append(header)
    return list(found)


def check_nvcc(given: str | None = None) -> None:
    """Raises NoCompiler or BuildError where `build` would, for want of a compiler."""
    _Compiler.nvcc(given, None)


def choose_gpus(given: Sequence[str] = (), nvcc: str | None = None) -> tuple[str, ...]:
    """The compute capabilities to make machine code for: the given ones, else those of GPUS that nvcc knows.

    Raises BuildError for one that is not of GPUS, or that this nvcc makes no code for.
    """
    if unknown := [gpu for gpu in given if gpu not in GPUS]:
        raise BuildError(f"--gpu {unknown[0]}: there is machine code for {', '.join(GPUS)}; what is newer runs the PTX")
    path = find_nvcc(nvcc)
    listed = _asked(path, "--list-gpu-code", "a CUDA compiler").decode().split()
    known = {gpu for gpu in GPUS if _code_for(gpu).removesuffix("a") in listed}
    if missing := [gpu for gpu in given if gpu not in known]:
        raise BuildError(f"--gpu {missing[0]}: {path} is too old for it, and knows {', '.join(sorted(known))} of ours")
    return tuple(gpu for gpu in GPUS if gpu in (given or known))


def _code_for(gpu: str) -> str:
    """sm_80, as nvcc names the machine code for compute capability 8.0."""
    return f"sm_{gpu.replace('.', '')}{'a' if gpu == HOPPER else ''}"


def kernel_sources() -> list[Path]:
    """What is compiled into every library for GPUs: the `.cu` files in the operators' folders and in src/shared."""
    return sorted(SOURCE.glob("*/*.cu"))


def _kernels(compiler: _Compiler, folder: Path, gpus: Sequence[str]) -> list[_Object]:
    """The kernels' objects, which every library for GPUs has in it, in a folder under `folder`."""
    sources = [_Source(path, _gpu_options(path, gpus)) for path in kernel_sources()]
    return compiler.compile(sources, folder / f"{LIBRARY.stem}.objects")


def gpu_code(gpus: Sequence[str]) -> tuple[str, ...]:
    """What a library for these GPUs has, as nvcc names it: machine code for each, and the PTX that others translate."""
    return (*map(_code_for, gpus), "compute_80")


def _gpu_options(source: Path, gpus: Sequence[str]) -> tuple[str, ...]:
    """nvcc's options for a source. The kernels are what compute capability 8.0 has; Hopper's own need 9.0a.

    The bodies of Hopper's own are empty elsewhere, but their launchers and symbols must exist once: RIBSR_HOPPER says
    whether they are to be used.
    """
    hopper = HOPPER in gpus
    portable = ",".join([_code_for(gpu) for gpu in gpus if gpu != HOPPER] + ["compute_80"])
    options = [f"-gencode=arch=compute_80,code=[{portable}]"]
    if hopper:
        options.append(f"-gencode=arch=compute_90a,code={_code_for(HOPPER)}")
    code = options[-1:] if "hopper" in source.name else options
    if source.name == "interface.cu":
        code.append(f"-DRIBSR_GPU_CODE={'+'.join(gpu_code(gpus))}")  # nvcc takes what is behind a comma for more
    return (*code, f"-DRIBSR_HOPPER={int(hopper)}")


def build(
    output: Path = LIBRARY, *, gpus: Sequence[str] | None = None, nvcc: str | None = None, jobs: int | None = None
) -> bool:
    """Build the library at `output`, objects in a folder beside it; True if anything had to be made.

    gpus: `choose_gpus`'s. Raises BuildError.
    """
    compiler = _Compiler.nvcc(nvcc, jobs)
    objects = _kernels(compiler, output.parent, gpus or choose_gpus(nvcc=nvcc))
    return compiler.link(objects, SOURCE / "kernels.map", output)


def build_cpu(
    output: Path = CPU_LIBRARY, *, include: Path | None = None, cxx: str | None = None, jobs: int | None = None
) -> bool:
    """Build the library of kernels for CPUs, which is ONNX Runtime's custom operators, too; True if it had to be made.

    include: as of `build_onnxruntime`. Raises BuildError.
    """
    compiler = _Compiler.cxx(cxx, jobs)
    header, headers = _real_header(include)
    once = [SOURCE / "cpu" / "interface.cpp", RUNTIMES / "operators.cpp", RUNTIMES / "onnxruntime" / "cpu.cpp", *header]
    kernels = sorted(SOURCE.glob("*/cpu.cpp"))
    # What instruction sets share, such as functions of the C++ library, the linker takes from the first: the baseline.
    sources = [_Source(path) for path in once] + [
        _Source(path, (*CPU_KERNEL_OPTIONS, *options, f"-DRIBSR_ISA={name}"), name)
        for name, options in _instruction_sets(compiler).items()
        for path in kernels
    ]
    objects = compiler.compile(sources, output.parent / f"{output.stem}.objects", headers)
    return compiler.link(objects, SOURCE / "cpu" / "exports.map", output)


def _instruction_sets(compiler: _Compiler) -> Mapping[str, tuple[str, ...]]:
    """Those that a C++ compiler makes code for, and its options for them."""
    target = subprocess.run([compiler.path, "-dumpmachine"], capture_output=True, text=True, check=False).stdout
    return INSTRUCTION_SETS if target.startswith("x86_64") else {"baseline": ()}


def build_tensorrt(
    include: Path,
    folder: Path = LIBRARY.parent,
    *,
    gpus: Sequence[str] | None = None,
    nvcc: str | None = None,
    jobs: int | None = None,
) -> tuple[Path, bool]:
    """Build the plugin library for the TensorRT headers in `include`: its file in `folder`, whether it had to be made.

    gpus: as of `build`. Raises BuildError.
    """
    major = tensorrt_major(include)
    output = folder / f"libribsr_tensorrt{major}.so"
    own = RUNTIMES / "tensorrt"
    sources = [own / "common.cpp", own / PLUGIN_SOURCES[major]]
    made = _build_face(sources, sorted(include.glob("Nv*.h")), output, gpus, nvcc, jobs)
    return output, made


def build_onnxruntime(
    include: Path | None = None,
    folder: Path = LIBRARY.parent,
    *,
    gpus: Sequence[str] | None = None,
    nvcc: str | None = None,
    jobs: int | None = None,
) -> tuple[Path, bool]:
    """Build the library of custom operators for ONNX Runtime on GPUs: its file in `folder`, whether it had to be made.

    include: a folder with ONNX Runtime's header, against which the declarations of our own are checked. gpus: as of
    `build`. Raises BuildError.
    """
    output = folder / "libribsr_onnxruntime.so"
    header, headers = _real_header(include)
    sources = [RUNTIMES / "onnxruntime" / "cuda.cpp", *header]
    return output, _build_face(sources, headers, output, gpus, nvcc, jobs)


def _real_header(include: Path | None) -> tuple[list[Path], list[Path]]:
    """What compares our declarations with ONNX Runtime's header, and its headers; nothing where none is named."""
    if include is None:
        return [], []
    return [RUNTIMES / "onnxruntime" / "header.cpp"], sorted(onnxruntime_include(include).glob("onnxruntime*.h"))


def _build_face(
    sources: Sequence[Path],
    runtime: Sequence[Path],
    output: Path,
    gpus: Sequence[str] | None,
    nvcc: str | None,
    jobs: int | None,
) -> bool:
    """The library of GPUs' kernels with a runtime's face, whose sources lie in one folder; True if it had to be made.

    runtime: the runtime's headers, all in one folder.
    """
    compiler = _Compiler.nvcc(nvcc, jobs)
    exports = sources[0].parent / "exports.map"
    files = [_Source(path) for path in (RUNTIMES / "operators.cpp", *sources)]
    objects = _kernels(compiler, output.parent, gpus or choose_gpus(nvcc=nvcc))
    objects += compiler.compile(files, output.parent / f"{output.stem}.objects", runtime)
    return compiler.link(objects, exports, output)
