"""Build the shared library of CUDA kernels: python -m plugins.build

One object per source in plugins/src, rebuilt when its inputs, the options or the compiler change, linked to
plugins/build/libribsr_attention.so with the static CUDA runtime: the library needs the NVIDIA driver and nothing else.
Machine code for compute capability 8.0 and 9.0a, and PTX for later ones. No GPU is needed to build.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent
SOURCES = ("attention.cu", "portable_fp16.cu", "portable_bf16.cu", "hopper_fp16.cu", "hopper_bf16.cu")
LIBRARY = ROOT / "build" / "libribsr_attention.so"
PORTABLE = ("-gencode=arch=compute_80,code=[sm_80,compute_80]",)
HOPPER = ("-gencode=arch=compute_90a,code=sm_90a",)
OPTIONS = ("-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall", "-cudart=static")


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


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise BuildError(
            f"{' '.join(command)}\nfailed with exit code {result.returncode}:\n{result.stdout}{result.stderr}"
        )


def _made_to(target: Path, digest: str, command: list[str]) -> bool:
    """Run command, whose output goes to `target`, unless it was made from the same digest; True if it ran."""
    stamp = target.with_name(target.name + ".digest")
    if target.exists() and stamp.exists() and stamp.read_text() == digest:
        return False
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        _run([*command, "-o", str(made)])
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


def build(output: Path = LIBRARY, *, nvcc: str | None = None, jobs: int | None = None) -> bool:
    """Build the library at `output`, objects in a folder beside it; True if anything had to be made.

    Raises BuildError.
    """
    compiler = find_nvcc(nvcc)
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    headers = sorted([*(ROOT / "src").glob("*.h"), *(ROOT / "src").glob("*.cuh"), *(ROOT / "include").glob("*.h")])
    shared = [version, *(header.read_bytes() for header in headers)]
    objects = output.parent / f"{output.stem}.objects"
    objects.mkdir(parents=True, exist_ok=True)

    def compile_one(name: str) -> tuple[bool, str]:
        # The Hopper kernels' bodies are empty elsewhere, but their launchers and symbols must exist once.
        targets = HOPPER if name.startswith("hopper") else PORTABLE + HOPPER
        options = [*OPTIONS, *targets]
        digest = _digest([*shared, (ROOT / "src" / name).read_bytes(), *(option.encode() for option in options)])
        command = [str(compiler), *options, "-c", str(ROOT / "src" / name)]
        return _made_to(objects / f"{name}.o", digest, command), digest

    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        results = list(pool.map(compile_one, SOURCES))
    digest = _digest([result[1].encode() for result in results])
    link = [str(compiler), "-shared", "-cudart=static", "-Xcompiler=-static-libstdc++,-static-libgcc"]
    return _made_to(output, digest, [*link, *(str(objects / f"{name}.o") for name in SOURCES)])


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--nvcc", metavar="PATH", help="The CUDA compiler, when it is not on the PATH or in CUDA_HOME.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=LIBRARY, help="The library to write.")
@click.option("-j", "--jobs", type=click.IntRange(1), help="Compilers at a time; the number of cores unless given.")
def main(nvcc: str | None, output: Path, jobs: int | None) -> None:
    try:
        made = build(output.resolve(), nvcc=nvcc, jobs=jobs)
    except BuildError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{output}: {'built' if made else 'up to date'}")


if __name__ == "__main__":
    main()
