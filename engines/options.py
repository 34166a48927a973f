"""The options of commands that open engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from engines import RUNTIME_NAMES
from engines.base import DEVICES, HINTS, MOST_THREADS, SPECIALIZATIONS
from ribsr.base.command import F, FiniteRange, SizeType


def _added(command: F, options: Sequence[Callable[[F], F]]) -> F:
    """In the order in which help is to show them."""
    for option in reversed(options):
        command = option(command)
    return command


def engine_options(command: F) -> F:
    """Adds the options that `engines.open_engine` takes, under its names."""
    options = [
        click.option(
            "--runtime",
            type=click.Choice(RUNTIME_NAMES),
            default="auto",
            show_default=True,
            help="What runs .onnx files: onnxruntime or openvino; auto takes the faster one.",
        ),
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
        click.option("--kernels/--no-kernels", default=True, help="ONNX files, where our kernels are built: run them."),
        click.option(
            "--cuda-graphs", is_flag=True, help="Plans, ONNX files with our kernels: launch repeated sizes at once."
        ),
        click.option(
            "--hint",
            type=click.Choice(HINTS),
            help="OpenVINO: one picture soon (latency, default), or many at once.",
        ),
        click.option(
            "--cache",
            metavar="DIR",
            help="OpenVINO, TensorRT RTX: where what they compile is kept; default: a cache of the user.",
        ),
        click.option(
            "--specialization",
            type=click.Choice(SPECIALIZATIONS),
            help="TensorRT RTX: kernels for a size beside its runs (lazy), before the first (eager), or none.",
        ),
    ]
    return _added(command, options)


def picture_options(command: F) -> F:
    """Adds `suffix`, `quality` and `max_pixels`, for reading and writing pictures."""
    options = [
        click.option(
            "--format", "suffix", type=SuffixType(), help="Of a folder's results; default: each picture's own."
        ),
        click.option(
            "--quality", type=click.IntRange(1, 100), help="Of JPEG (95 without), AVIF and WebP (lossless without)."
        ),
        click.option(
            "--max-pixels",
            type=click.IntRange(min=1),
            help="Refuse larger pictures; take all others, however small their files are.",
        ),
    ]
    return _added(command, options)


def video_options(command: F) -> F:
    """Adds `codec` and `crf`, as `engines.video.enlarge_video` takes them."""
    options = [
        click.option("--codec", metavar="NAME", help="Of videos: h264, hevc, vp9, av1, ...; default: that of IN."),
        click.option("--crf", type=click.IntRange(min=0), help="Of videos: constant quality, 0 the best."),
    ]
    return _added(command, options)


class SuffixType(click.ParamType):
    """A format by its suffix, `.png` or `png`."""

    name = "SUFFIX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return f".{str(value).lower().removeprefix('.')}"


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
