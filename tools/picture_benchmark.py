#!/usr/bin/env python3
"""What do reading, writing and all else cost beside the engine, when `python -m engines.upscale` runs on a folder?

    tools/picture_benchmark.py x2.onnx                                          # 200 photos of 512x384
    tools/picture_benchmark.py x2.fp16.plan --size 1920x1080 --format .png --count 40

The command itself is timed, as a user starts it, on photographs made of the toolkit's samples. Its start (Python, the
packages, opening the model) is what a run on one small picture takes beyond the engine; it does not count as overhead.
Encoding is timed apart, on one core, and so is the engine: in the command, reading and writing take its cores from it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click
import numpy as np

from engines import Tiled, samples
from engines.base import EngineError
from engines.options import engine_options
from ribsr.base.command import Command, SizeType
from ribsr.base.pictures import SUFFIXES, Picture, read_input, read_picture, to_pixels, write_picture
from ribsr.base.progress import Progress
from ribsr.base.sizes import Size
from tools._common import (
    ModelName,
    conclude,
    console,
    engine_options_for,
    json_option,
    model_name,
    open_model,
    show_table,
)

ROOT = Path(__file__).resolve().parents[1]
START = Size(64, 64)
"""Of the picture that shows what starting costs."""

SAMPLE = 20
"""Pictures at most on which the engine and the encoder are timed alone."""


@dataclass(frozen=True)
class Times:
    """Seconds of a folder run: `whole`, of the process; `start`, before the first picture; `told`, of the engine as the
    command says; `engine`, alone; `encoding`, on one core. The last two are of SAMPLE pictures, for as many as all."""

    whole: float
    start: float
    told: float
    engine: float
    encoding: float

    def overhead(self, beside: float) -> float:
        """What the run takes beyond `beside` and its start, as a share of `beside`."""
        return (self.whole - self.start) / beside - 1


def write_photos(folder: Path, size: Size, suffix: str, count: int) -> None:
    """`count` photographs that differ, made of the samples, moved and mirrored."""
    photos = [to_pixels(x) for _, x in samples.at(size)]
    for number in range(count):
        pixels = np.roll(photos[number % len(photos)], 13 * number, axis=(number % 2))
        write_picture(folder / f"{number:05}{suffix}", Picture(pixels[:, :: -1 if number % 4 > 1 else 1]))


def words(options: dict[str, Any]) -> list[str]:
    """Options of `open_engine` as the command takes them."""
    made = []
    for name, value in options.items():
        word = f"--{name.replace('_', '-')}"
        if value is False and name == "kernels":
            made.append("--no-kernels")
        elif value is not None and value is not False:
            made += [word] if value is True else [word, str(value)]
    return made


def upscale(name: ModelName, source: Path, target: Path, options: dict[str, Any]) -> tuple[float, float]:
    """Seconds of the whole command, and those of the engine that it tells. Raises EngineError if it fails."""
    given = words({**engine_options_for(name, options), "precision": name.precision})
    command = [sys.executable, "-m", "engines.upscale", name.path, str(source), str(target), *given]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", errors="replace")
    whole = time.perf_counter() - start
    told = re.search(r", (\d+\.\d+) s for \d+ pictures?\s*$", done.stdout)
    if done.returncode or told is None:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise EngineError(f"{name}: engines.upscale failed: {lines[-1].removeprefix('Error: ')}")
    return whole, float(told[1])


def per_picture(work: Callable[[Path], object], paths: list[Path]) -> float:
    """Mean seconds."""
    start = time.perf_counter()
    for path in paths:
        work(path)
    return (time.perf_counter() - start) / len(paths)


def measure(name: ModelName, size: Size, suffix: str, count: int, options: dict[str, Any]) -> Times:
    """Raises EngineError if the model cannot be opened or run, and PictureError for what cannot be written."""
    with tempfile.TemporaryDirectory() as made, open_model(name, options) as engine:
        folder = Path(made)
        for part, sides, number in (("one", START, 1), ("all", size, count)):
            (folder / part).mkdir()
            write_photos(folder / part, sides, suffix, number)
        whole, told = upscale(name, folder / "one", folder / "one-out", options)
        start = whole - told
        whole, told = upscale(name, folder / "all", folder / "all-out", options)
        inputs = {path: read_input(path) for path in sorted((folder / "all").iterdir())[:SAMPLE]}
        results = {path: read_picture(path) for path in sorted((folder / "all-out").iterdir())[:SAMPLE]}
        tiled = Tiled(engine)
        tiled.run(next(iter(inputs.values())))
        alone = per_picture(lambda path: tiled.run(inputs[path]), list(inputs))
        encoding = per_picture(lambda path: write_picture(path, results[path]), list(results))
        return Times(whole, start, told, alone * count, encoding * count)


@click.command(cls=Command)
@click.argument("model_file", metavar="MODEL")
@click.option("--size", type=SizeType(), default="512x384", show_default=True, help="Of the photographs.")
@click.option("--count", type=click.IntRange(min=1), default=200, show_default=True, help="How many there are.")
@click.option("--format", "suffix", type=click.Choice(SUFFIXES), default=".jpg", show_default=True, help="In and out.")
@json_option
@engine_options
def main(model_file: str, size: Size, count: int, suffix: str, json_target: str | None, **options: Any) -> None:
    """Times engines.upscale with MODEL on a folder of photographs, and what it takes beside the engine.

    Overhead is what the whole takes, without its start, beyond the engine alone, and beyond the slower of the engine
    and the encoder on all cores. A checkpoint runs in half precision as x2.pt@fp16.
    """
    name, cores = model_name(model_file), os.cpu_count() or 1
    with Progress(f"{name} on {count} photographs of {size}"):
        times = measure(name, size, suffix, count, options)
    beside = times.overhead(times.engine)
    slower = times.overhead(max(times.engine, times.encoding / cores))
    out = console(stderr=json_target == "-")
    titles = ("whole", "start", "engine, as told", "engine, alone", "encoder, one core")
    rows = [
        (title, f"{value:.2f}", f"{value / count:.4f}") for title, value in zip(titles, astuple(times), strict=True)
    ]
    show_table(out, (f"{count} {suffix} of {size}", "s", "s a picture"), rows)
    out.print(
        f"Overhead: {beside:.1%} of the engine; {slower:.1%} of the slower of it and the encoder on {cores} cores"
    )
    values = {"model": str(name), "size": str(size), "count": count, "format": suffix, **asdict(times)}
    conclude(out, "picture_benchmark", {**values, "overhead": beside, "overhead_beside_slower": slower}, json_target)


if __name__ == "__main__":
    main(prog_name="tools/picture_benchmark.py")
