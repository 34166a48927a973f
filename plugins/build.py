"""Build the shared library of CUDA kernels and the TensorRT plugins around them: python -m plugins.build

One object per source in plugins/src, rebuilt when its inputs, the options or the compiler change, linked with the
static CUDA runtime: a library needs the NVIDIA driver and nothing else. Machine code for compute capability 8.0 and
9.0a, and PTX for later ones. No GPU is needed to build.

plugins/build/libribsr_kernels.so is always made. TensorRT's headers add plugins/build/libribsr_tensorrt8.so, 9, 10 or
11: one per major version, the kernels inside. The headers are not in TensorRT's wheels, but in the include folder of
github.com/NVIDIA/TensorRT, one tag per version.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent
SOURCES = (
    "interface.cu",
    "attention.cu",
    "portable_fp16.cu",
    "portable_bf16.cu",
    "hopper_fp16.cu",
    "hopper_bf16.cu",
    "layer_norm.cu",
    "depthwise.cu",
    "feed_forward.cu",
    "hopper_feed_forward.cu",
    "attention_inputs.cu",
    "hopper_attention_inputs.cu",
)
LIBRARY = ROOT / "build" / "libribsr_kernels.so"
PORTABLE = ("-gencode=arch=compute_80,code=[sm_80,compute_80]",)
HOPPER = ("-gencode=arch=compute_90a,code=sm_90a",)
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


class BuildError(RuntimeError):
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


def _run(command: list[str], log: Path) -> None:
    """Run a compiler; what it says goes to `log` if it fails, and its first error into the BuildError."""
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    said = result.stdout + result.stderr
    if result.returncode == 0:
        log.unlink(missing_ok=True)
        return
    log.write_text(f"{' '.join(command)}\n{said}")
    lines = [line.strip() for line in said.splitlines() if line.strip()] or [f"exit code {result.returncode}"]
    first = next((line for line in lines if re.search(r"\berror\b|undefined reference", line)), lines[0])
    raise BuildError(f"{Path(command[0]).name} failed: {first} (all of it: {log})")


def _made_to(target: Path, digest: str, command: list[str]) -> bool:
    """Run command, whose output goes to `target`, unless it was made from the same digest; True if it ran."""
    stamp = target.with_name(target.name + ".digest")
    if target.exists() and stamp.exists() and stamp.read_text() == digest:
        return False
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        _run([*command, "-o", str(made)], target.with_name(target.name + ".log"))
        stamp.unlink(missing_ok=True)
        os.replace(made, target)
        new_stamp = Path(folder) / stamp.name
        new_stamp.write_text(digest)
        os.replace(new_stamp, stamp)
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
        path = find_nvcc(nvcc)
        version = subprocess.run([path, "--version"], capture_output=True, check=True).stdout
        return cls(path, version, jobs or os.cpu_count() or 1)

    def compile(
        self, sources: Sequence[Path], options: Mapping[Path, Sequence[str]], headers: Sequence[Path], folder: Path
    ) -> list[_Object]:
        """An object in `folder` for each source, made anew if a header, the source or an option changed."""
        folder.mkdir(parents=True, exist_ok=True)
        shared = [self.version, *(header.read_bytes() for header in headers)]

        def compile_one(source: Path) -> _Object:
            used = [*OPTIONS, *options[source]]
            digest = _digest([*shared, source.read_bytes(), *(option.encode() for option in used)])
            target = folder / f"{source.name}.o"
            made = _made_to(target, digest, [str(self.path), *used, "-c", str(source)])
            return _Object(target, digest, made)

        with ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(compile_one, sources))

    def link(self, objects: Sequence[_Object], exports: Path, output: Path) -> bool:
        """The shared library of these objects, exporting what the version script says; True if it was made."""
        digest = _digest([*(one.digest.encode() for one in objects), exports.read_bytes(), *map(str.encode, LINK)])
        script = f"-Xlinker=--version-script={exports}"
        command = [str(self.path), *LINK, script, *(str(one.path) for one in objects)]
        return _made_to(output, digest, command) or any(one.made for one in objects)


def _kernels(compiler: _Compiler, folder: Path) -> list[_Object]:
    """The kernels' objects, which every library has in it, in a folder under `folder`."""
    sources = [ROOT / "src" / name for name in SOURCES]
    # The Hopper kernels' bodies are empty elsewhere, but their launchers and symbols must exist once.
    targets = {source: HOPPER if source.name.startswith("hopper") else PORTABLE + HOPPER for source in sources}
    headers = sorted([*(ROOT / "src").glob("*.h"), *(ROOT / "src").glob("*.cuh"), *(ROOT / "include").glob("*.h")])
    return compiler.compile(sources, targets, headers, folder / f"{LIBRARY.stem}.objects")


def build(output: Path = LIBRARY, *, nvcc: str | None = None, jobs: int | None = None) -> bool:
    """Build the library at `output`, objects in a folder beside it; True if anything had to be made.

    Raises BuildError.
    """
    compiler = _Compiler.find(nvcc, jobs)
    return compiler.link(_kernels(compiler, output.parent), ROOT / "src" / "kernels.map", output)


def build_tensorrt(
    include: Path, folder: Path = LIBRARY.parent, *, nvcc: str | None = None, jobs: int | None = None
) -> tuple[Path, bool]:
    """Build the plugin library for the TensorRT headers in `include`: its file in `folder`, whether it had to be made.

    Raises BuildError.
    """
    major = tensorrt_major(include)
    compiler = _Compiler.find(nvcc, jobs)
    output = folder / f"libribsr_tensorrt{major}.so"
    own = ROOT / "src" / "tensorrt"
    sources = [own / "operators.cpp", own / PLUGIN_SOURCES[major]]
    headers = sorted([*own.glob("*.h"), *(ROOT / "include").glob("*.h"), *include.glob("Nv*.h")])
    objects = _kernels(compiler, folder)
    objects += compiler.compile(
        sources, dict.fromkeys(sources, ("-I", str(include))), headers, folder / f"{output.stem}.objects"
    )
    return output, compiler.link(objects, own / "plugins.map", output)


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--nvcc", metavar="PATH", help="The CUDA compiler, when it is not on the PATH or in CUDA_HOME.")
@click.option(
    "--tensorrt-include",
    "includes",
    metavar="DIR",
    multiple=True,
    type=click.Path(path_type=Path),
    help="TensorRT headers to build the plugins for, once per major version; found in the usual places unless given.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=LIBRARY, help="The kernel library to write.")
@click.option("-j", "--jobs", type=click.IntRange(1), help="Compilers at a time; the number of cores unless given.")
def main(nvcc: str | None, includes: tuple[Path, ...], output: Path, jobs: int | None) -> None:
    output = output.resolve()
    try:
        headers = find_tensorrt([include.resolve() for include in includes])
        _say(output, build(output, nvcc=nvcc, jobs=jobs))
        for _, include in sorted(headers.items()):
            _say(*build_tensorrt(include, output.parent, nvcc=nvcc, jobs=jobs))
    except (BuildError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if not headers:
        click.echo("no headers of TensorRT 8 to 11 found, so no plugins for it: add them with --tensorrt-include DIR")


def _say(library: Path, made: bool) -> None:
    click.echo(f"{library}: {'built' if made else 'up to date'}")


if __name__ == "__main__":
    main()
