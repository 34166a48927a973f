"""Build the libraries of kernels, for CPUs and GPUs, and those for ONNX Runtime and TensorRT: python -m plugins.build

For CPUs, with a C++ compiler: plugins/build/libribsr_cpu.so, which PyTorch and ONNX Runtime take. For GPUs, where nvcc
is: libribsr_kernels.so, which PyTorch takes, and libribsr_onnxruntime.so, ONNX Runtime's custom operators. TensorRT's
headers add libribsr_tensorrt8.so, 9, 10 or 11: one per major version. They are not in its wheels, but in the include
folder of github.com/NVIDIA/TensorRT, one tag per version. No GPU is needed.
"""

from __future__ import annotations

from pathlib import Path

import click

from plugins import compiler
from ribsr.base.command import Command


@click.command(cls=Command, help=(__doc__ or "").split("\n")[0])
@click.option("--only", type=click.Choice(["cpu", "gpu"]), help="Leave out the other's libraries.")
@click.option(
    "--gpu",
    "gpus",
    metavar="LIST",
    callback=lambda _, __, value: tuple(value.split(",")) if value else (),
    help=f"Machine code for these compute capabilities alone, of {','.join(compiler.GPUS)}.  [default: all]",
)
@click.option("--cxx", metavar="PATH", help="The C++ compiler, instead of $CXX, or g++ or clang++ on the PATH.")
@click.option("--nvcc", metavar="PATH", help="The CUDA compiler, when it is not on the PATH or in CUDA_HOME.")
@click.option(
    "--tensorrt-include",
    "includes",
    metavar="DIR",
    multiple=True,
    type=click.Path(path_type=Path),
    help="TensorRT headers to build the plugins for, once per major version; found in the usual places unless given.",
)
@click.option(
    "--onnxruntime-include",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="ONNX Runtime's headers, to check our own declarations against; the libraries are made without them, too.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=compiler.LIBRARY,
    help="The kernel library for GPUs to write; the others go to its folder.",
)
@click.option("-j", "--jobs", type=click.IntRange(1), help="Compilers at a time; the number of cores unless given.")
def main(
    only: str | None,
    gpus: tuple[str, ...],
    cxx: str | None,
    nvcc: str | None,
    includes: tuple[Path, ...],
    onnxruntime_include: Path | None,
    output: Path,
    jobs: int | None,
) -> None:
    output = output.resolve()
    headers = {} if only == "cpu" else compiler.find_tensorrt([include.resolve() for include in includes])
    if onnxruntime_include is not None:
        onnxruntime_include = compiler.onnxruntime_include(onnxruntime_include.resolve())
    left_out = None if only == "cpu" else _missing(nvcc, needed=only == "gpu" or bool(includes))
    if only != "gpu":
        cpu = output.with_name(compiler.CPU_LIBRARY.name)
        _say(cpu, compiler.build_cpu(cpu, include=onnxruntime_include, cxx=cxx, jobs=jobs))
    if only == "cpu":
        return
    if left_out is not None:
        click.echo(f"the libraries for GPUs are left out: {left_out}")
        return
    gpus = compiler.choose_gpus(gpus, nvcc)
    _say(output, compiler.build(output, gpus=gpus, nvcc=nvcc, jobs=jobs))
    _say(*compiler.build_onnxruntime(onnxruntime_include, output.parent, gpus=gpus, nvcc=nvcc, jobs=jobs))
    for _, include in sorted(headers.items()):
        _say(*compiler.build_tensorrt(include, output.parent, gpus=gpus, nvcc=nvcc, jobs=jobs))
    click.echo(f"for GPUs: {', '.join(compiler.gpu_code(gpus))}, in {output.stat().st_size / 2**20:.0f} MiB")
    if not headers:
        click.echo("no headers of TensorRT 8 to 11 found, so no plugins for it: add them with --tensorrt-include DIR")


def _missing(nvcc: str | None, needed: bool) -> str | None:
    """Why there is no nvcc, where nothing that is needed is made by it. Raises BuildError."""
    try:
        compiler.check_nvcc(nvcc)
    except compiler.NoCompiler as error:
        if needed:
            raise
        return str(error)
    return None


def _say(library: Path, made: bool) -> None:
    click.echo(f"{library}: {'built' if made else 'up to date'}")


if __name__ == "__main__":
    main()
