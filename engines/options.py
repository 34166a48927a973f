"""The options of commands that open engines."""

from __future__ import annotations

import click

from engines.base import DEVICES, MOST_THREADS
from ribsr.base.command import F, FiniteRange, SizeType


def engine_options(command: F) -> F:
    """Adds the options that `engines.open_engine` takes, under its names."""
    options = [
        click.option(
            "--device",
            type=click.Choice(DEVICES),
            default="auto",
            show_default=True,
            help="Where to run; cuda fails rather than fall back to the CPU.",
        ),
        click.option(
            "--threads", type=click.IntRange(1, MOST_THREADS), help="CPU threads; the runtime decides without."
        ),
        click.option("--attention", help="PyTorch attention backend of checkpoints: auto, reference, sdpa, flash, …"),
        click.option("--model", metavar="NAME", help="Which network an authors' checkpoint holds, e.g. sst-l+."),
        click.option(
            "--config",
            type=click.Path(exists=True, dir_okay=False),
            help="Instead of --model: own JSON, or the authors' option YAML.",
        ),
        click.option("--tf32", is_flag=True, help="float32 on a GPU: multiply in TF32, faster and less exact."),
        click.option(
            "--kernels/--no-kernels", default=True, help="ONNX files in half precision on a GPU: run our kernels."
        ),
        click.option(
            "--cuda-graphs", is_flag=True, help="Plans, ONNX files with our kernels: launch repeated sizes at once."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


tile_option = click.option(
    "--tile",
    type=SizeType(),
    help="Cut larger pictures into tiles of at most this size, for less memory and for sizes a plan lacks.",
)
"""Adds `tile`, as `engines.Tiled` takes it."""

memory_option = click.option(
    "--memory",
    type=FiniteRange(min=0, min_open=True),
    metavar="GIB",
    help="Memory that this may take: the process's, or the GPU's where that runs the model; default: what is free.",
)
"""Adds `memory`, in GiB. `engines.Tiled` takes bytes."""
