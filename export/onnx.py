"""`python -m export.onnx --ckpt x2.pt` writes x2.onnx: the canonical graph, which ONNX Runtime runs as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from export import FORMS, READERS
from ribsr.base.command import Command, FiniteRange, SizeType, echo
from ribsr.base.sizes import Size

LONGEST_SIDE = 16384
"""Pixels of a side of --size. Larger pictures are cut into tiles anyhow."""


class HeightFirst(SizeType):
    """A `Size` that is written HEIGHTxWIDTH, as --static has it."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Size:
        try:
            read = Size.parse(value)
        except ValueError:
            self.fail(f"{value!r} is not HEIGHTxWIDTH in pixels; give HxW, e.g. 360x640", param, ctx)
        return Size(height=read.width, width=read.height)


@click.command(cls=Command)
@click.option(
    "--ckpt",
    required=True,
    type=click.Path(path_type=Path),
    help="Checkpoint: .pt, .pth, .safetensors, or the name of a bundled one.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="File to write; default: CKPT's name and what was chosen, here.",
)
@click.option("--model", metavar="NAME", help="Which network an authors' checkpoint holds, e.g. sst-l+.")
@click.option("--config", type=click.Path(), help="Instead of --model: own JSON, or the authors' option YAML.")
@click.option(
    "--form",
    type=click.Choice(FORMS),
    help="Form of the attention, by who is to read the file; default: canonical. "
    + " ".join(f"{form}: {readers}." for form, readers in READERS.items()),
)
@click.option("--attention", "old_form", type=click.Choice(FORMS), help="Old name of --form.")
@click.option("--fp16", "half", is_flag=True, help="Type the graph in float16; what would overflow stays in float32.")
@click.option("--opset", type=int, help="ONNX opset, 17 to 23; default 17, 23 for --form attention.")
@click.option("--size", type=SizeType(), help="Fix batch 1 and this size of the input, WIDTHxHEIGHT.")
@click.option("--static", type=HeightFirst(), help="Old form of --size, read as HEIGHTxWIDTH; not in the next release.")
@click.option(
    "--rib-tolerance",
    type=FiniteRange(min=0),
    default=0.0,
    show_default=True,
    help="Allow lower RIB ranks that change no attention logit by more than this.",
)
@click.option(
    "--score-limit",
    type=FiniteRange(min=0),
    default=4.0,
    show_default=True,
    metavar="GIB",
    help="Largest score tensor that --form matmul may make (at 192x192 if the size is dynamic).",
)
@click.option(
    "--verify/--no-verify", default=None, help="Run the file beside the checkpoint; default: where that is quick."
)
def main(
    ckpt: Path,
    output: Path | None,
    model: str | None,
    config: str | None,
    form: str | None,
    old_form: str | None,
    size: Size | None,
    static: Size | None,
    **options: Any,
) -> None:
    """Export a checkpoint to ONNX."""
    from export.convert import Options, default_name, export_onnx

    if form and old_form and form != old_form:
        raise click.UsageError(
            f"--form {form} and --attention {old_form} differ; --attention is the old name of --form"
        )
    if size and static:
        raise click.UsageError("--size and --static exclude each other; --static is the old name of --size")
    if static:
        echo(f"Note: --static, HEIGHTxWIDTH, was read as --size {static}; write that from now on", err=True)
    size = size or static
    if size and max(size) > LONGEST_SIDE:
        raise click.UsageError(f"--size {size} is too large; {LONGEST_SIDE} pixels a side are possible")
    chosen = Options(form or old_form or "canonical", static=size, **options)  # pyright: ignore[reportArgumentType] (one of FORM)
    export_onnx(ckpt, output or default_name(ckpt, chosen), chosen, model, config, say=echo)


if __name__ == "__main__":
    main()
