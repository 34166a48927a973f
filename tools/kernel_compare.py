#!/usr/bin/env python3
"""Which build of the attention kernel is faster on this GPU, and are all of them right?

Build the base, change the source, build the variant, and compare them:

    python -m plugins.build -o /tmp/ab/base.so
    python -m plugins.build -o /tmp/ab/variant.so
    tools/kernel_compare.py /tmp/ab/base.so /tmp/ab/variant.so

Each is first compared with float64, in its own process. Those that are right are then timed in turn beside cuDNN's bare
attention, in one more process: a line per case, milliseconds and the median of the rounds' ratios to cuDNN. What hangs
is killed, at whatever step.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import mean, median
from time import monotonic
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from plugins import library
from ribsr.base.command import Command
from tools._kernels import ATTENTION_LAYERS, attention_calls, cudnn_calls, dtype_of, in_turn, require_gpu

SHAPES = (  # window, map
    ((8, 8), (19, 45)),
    ((9, 8), (30, 31)),
    ((16, 16), (33, 50)),
    ((48, 48), (96, 144)),
    ((50, 45), (100, 90)),
    ((96, 96), (96, 192)),
    ((16, 16), (160, 200)),  # more items than multiprocessors
    ((32, 32), (224, 320)),
)
DATA: dict[str, dict[str, Any]] = {  # how inputs differ from normal ones; far and large overflow in most items
    "normal": {},
    "wide": {"factor": 6.0},
    "large": {"factor": 3000.0},
    "near 50": {"depth": 50.0},
    "far 50": {"depth": 50.0, "mirrored": True},
    "far 2000": {"depth": 2000.0, "mirrored": True},
}
TIMED: dict[str, dict[str, Any]] = {
    "normal": {},
    "near": {"depth": 50.0, "every": 1},
    "far": {"depth": 50.0, "mirrored": True, "every": 1},
}


def use(file: Path) -> None:
    """Make plugins.library call this file from now on."""
    os.environ[library.VARIABLE] = str(file)
    library.load.cache_clear()
    library.load()


def check(file: Path, bf16: bool) -> None:
    """Print what is wrong with a library; exits with 1 if anything is."""
    import torch

    from plugins.testing import AttentionCase

    use(file)
    torch.manual_seed(0)
    wrong = count = 0
    for (window, size), d, r, (name, inputs) in itertools.product(SHAPES, (32, 16), (32, 24, 16), DATA.items()):
        count += 1
        layer = {"window": window, "d": d, "r": r, "size": size, "heads": 3, "shift": (3, 1)}
        if failure := AttentionCase(**layer, dtype=dtype_of(bf16), path="hopper", **inputs).failure():
            wrong += 1
            click.echo(f"{file.stem}: window {window} on {size}, D {d} R {r}, {name}: {failure}")
    click.echo(f"{file.stem}: {count} comparisons, {wrong} wrong")
    raise SystemExit(wrong > 0)


def call_of(file: Path, call: Callable[[], object]) -> None:
    use(file)
    call()


def measure(files: Sequence[Path], bf16: bool, data: str, windows: Sequence[int]) -> None:
    """Print one line per case, and the mean ratios."""
    ratios = []
    click.echo(f"{'case':60} cuDNN ms" + "".join(f" | {file.stem[-14:]:>14}" for file in files))
    for layer in ATTENTION_LAYERS:
        if windows and layer.widths["window"] not in windows:
            continue
        calls = attention_calls(layer, bf16, "hopper", **TIMED[data])  # shared by all libraries
        alternatives = [[partial(call_of, file, call) for call in calls] for file in files]
        *ours, narrow, padded = in_turn([*alternatives, *cudnn_calls(layer, bf16)], repeats=9)
        theirs = min(narrow, padded, key=median)
        row = [median(b / a for a, b in zip(rounds, theirs, strict=True)) for rounds in ours]
        ratios.append(row)
        cells = "".join(f" | {median(ms):7.4f} {ratio:5.3f}x" for ms, ratio in zip(ours, row, strict=True))
        click.echo(f"{layer!s:60} {median(theirs):8.4f}{cells}")
    click.echo(f"{'mean':69}" + "".join(f" | {mean(column):13.3f}x" for column in zip(*ratios, strict=True)))


def start(target: Callable[..., None], *arguments: object) -> BaseProcess:
    """Run it in a process of its own."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    return process


def succeeds(process: BaseProcess, deadline: float) -> bool:
    """Whether it ends well; it is killed at the deadline."""
    process.join(max(0.0, deadline - monotonic()))
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode == 0


@click.command(cls=Command, help=(__doc__ or "").split("\n")[0])
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--bf16", is_flag=True, help="bfloat16 instead of float16.")
@click.option("--data", type=click.Choice(list(TIMED)), default="normal", help="Of the timing.")
@click.option("--window", "windows", type=int, multiple=True, help="Time these windows only (repeatable).")
@click.option("--timeout", default=180.0, show_default=True, help="Seconds for the checks, and for the timing.")
def main(files: tuple[Path, ...], bf16: bool, data: str, windows: tuple[int, ...], timeout: float) -> None:
    require_gpu()
    checks = [(file, start(check, file.resolve(), bf16)) for file in files]
    deadline = monotonic() + timeout
    right = [file.resolve() for file, process in checks if succeeds(process, deadline)]
    if right and not succeeds(start(measure, right, bf16, data, windows), monotonic() + timeout):
        raise click.ClickException(f"the timing failed, or took more than {timeout:.0f} s")
    if len(right) < len(files):
        raise click.ClickException(f"some were left out: wrong, or not checked within {timeout:.0f} s")


if __name__ == "__main__":
    main(prog_name="tools/kernel_compare.py")
