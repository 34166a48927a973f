"""`python -m export.trt --fp16` makes x2.fp16.plan, a TensorRT engine, of the x2.onnx that `export.onnx` wrote.

With --rtx, or where TensorRT RTX is the only TensorRT: x2.fp16.rtx, for GeForce and RTX cards, on any machine.

Needs TensorRT (8.6 or later) and a GPU, or TensorRT RTX, and onnx, onnx-graphsurgeon and ONNX Runtime, but no PyTorch,
unless the file is to be made of a checkpoint first (--ckpt). What comes out is checked in two ways before it gets its
name: the engine's layers must compute in the precision asked for, and, where there is a GPU that runs it, pictures must
come out as ONNX Runtime makes them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from engines.metadata import read_stamp
from engines.trt.rtx import CURRENT
from export.trt.source import Options, Shapes, check_targets, find_onnx
from ribsr.base.command import Command, FiniteRange, SizeType
from ribsr.base.sizes import Size


class CapabilitiesType(click.ParamType):
    """`8.9,12.0`, or `current`, as a tuple of strings."""

    name = "LIST"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        names = tuple(name.strip() for name in str(value).split(","))
        for name in names:
            if name != CURRENT and not re.fullmatch(r"[1-9]\d*\.\d", name):
                self.fail(f"{name!r} is no compute capability, such as 8.9 or 12.0, nor {CURRENT}", param, ctx)
        return names


@click.command(cls=Command)
@click.option("--onnx", "onnx_file", type=click.Path(path_type=Path), help="Default: this toolkit's only .onnx here.")
@click.option("--ckpt", type=click.Path(path_type=Path), help="Make the ONNX file first, as export.onnx does.")
@click.option("--model", metavar="NAME", help="With --ckpt: which network an authors' checkpoint holds, e.g. sst-l+.")
@click.option("--config", type=click.Path(), help="With --ckpt, instead of --model: own JSON, or the authors' YAML.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Default: the ONNX file's name here, as .plan, or as .rtx."
)
@click.option("--fp16", is_flag=True, help="float16; what would overflow stays in float32.")
@click.option("--bf16", is_flag=True, help="bfloat16 (TensorRT 10 and later): float32's range, coarser than float16.")
@click.option("--rtx", is_flag=True, default=None, help="TensorRT RTX, for GeForce and RTX cards; needs no GPU.")
@click.option(
    "--gpu",
    type=CapabilitiesType(),
    help="For TensorRT RTX: the cards to build for, by compute capability, or current; default: all but 7.5.",
)
@click.option(
    "--shapes",
    type=SizeType(),
    nargs=3,
    metavar="MIN OPT MAX",
    help="Sizes of the pictures, each WIDTHxHEIGHT: the smallest, the one to be fastest at, the largest.  "
    "[default: 64x64 640x360 1280x720]",
)
@click.option("--size", type=SizeType(), help="Instead of --shapes: the only size, WIDTHxHEIGHT.")
@click.option(
    "--timing-cache",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with what earlier builds measured; default: one for this TensorRT and GPU in ~/.cache/ribsr.",
)
@click.option("--workspace", type=FiniteRange(min=0, min_open=True), metavar="GIB", help="Scratch memory a layer.")
@click.option("--optimization-level", type=click.IntRange(0, 5), help="More is slower to build; default: TensorRT's.")
@click.option("--version-compatible", is_flag=True, help="For later releases of TensorRT and its lean runtime, too.")
@click.option("--no-plugin", is_flag=True, help="Without our plugin: standard operators only.")
@click.option(
    "--score-limit",
    type=FiniteRange(min=0),
    default=Options.score_limit,
    show_default=True,
    metavar="GIB",
    help="Largest score tensor that the form 'matmul' may make, at MAX.",
)
@click.option(
    "--verify/--no-verify",
    default=None,
    help="Compare pictures of up to 192x192 with ONNX Runtime; default: where that is quick.",
)
def main(
    onnx_file: Path | None,
    ckpt: Path | None,
    model: str | None,
    config: str | None,
    output: Path | None,
    fp16: bool,
    bf16: bool,
    shapes: Shapes | None,
    size: Size | None,
    gpu: tuple[str, ...] | None,
    no_plugin: bool,
    **options: Any,
) -> None:
    """Build a TensorRT engine (.plan, or .rtx) from the ONNX file of export.onnx."""
    for first, second in (((onnx_file, "--onnx"), (ckpt, "--ckpt")), ((fp16, "--fp16"), (bf16, "--bf16"))):
        if first[0] and second[0]:
            raise click.UsageError(f"{first[1]} and {second[1]} exclude each other")
    if shapes and size:
        raise click.UsageError("--shapes and --size exclude each other")
    if (model or config) and ckpt is None:
        raise click.UsageError("--model and --config say what a checkpoint holds: they need --ckpt")
    chosen = Options(
        precision="fp16" if fp16 else "bf16" if bf16 else None,
        shapes=(size, size, size) if size else shapes or None,
        plugin=not no_plugin,
        gpu=gpu or (),
        **options,
    )
    from export.trt.convert import export_trt
    from export.trt.machine import find_machine

    machine = find_machine(chosen)
    if ckpt is not None:
        onnx_file = Path(f"{ckpt.stem}.onnx")
        if output is not None:
            check_targets(output, chosen, machine.suffix)
        from export import convert

        convert.export_onnx(ckpt, onnx_file, convert.Options(), model, config, say=click.echo)
    onnx_file = onnx_file or find_onnx(Path())
    precision = chosen.precision or read_stamp(onnx_file).precision
    output = output or Path(f"{onnx_file.stem.removesuffix('.' + precision)}.{precision}{machine.suffix}")
    export_trt(onnx_file, output, machine, chosen, say=click.echo)


if __name__ == "__main__":
    main()
