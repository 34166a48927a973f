#!/usr/bin/env python3
"""How long do models take, side by side, on this machine? tools/README.md says how that is measured."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from engines.base import EngineError
from engines.options import engine_options, tile_option
from ribsr.base.command import Command, show_traceback
from ribsr.base.progress import Progress
from ribsr.base.sizes import Size
from tools._common import console, json_option, model_name, open_model, read_run
from tools._kinds import grouped
from tools._latency_tables import publish
from tools._timing import Setup, picture, report, size_option, timed, with_ratios


def add_layers(made: dict[str, Any], options: dict[str, Any]) -> None:
    """Adds to a report what each layer of the models that ran takes, or why that is not known."""
    for result in made["results"]:
        if result["failure"]:
            continue
        name, size = model_name(result["file"]), Size.parse(result["size"])
        try:
            with Progress(f"{size}: timing the layers of {name}"), open_model(name, options) as engine:
                result["layers"] = grouped(engine.profile(picture(engine, size, result["batch"])))
        except EngineError as error:
            show_traceback(error)
            result["layers"] = {**grouped([]), "failure": str(error)}


def merge(paths: Sequence[str]) -> dict[str, Any]:
    """One report of several: all results, ratios to the first of them, and every command they come from."""
    from rich.console import Console

    results: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    for path in paths:
        part = read_run(path, "latency")
        try:
            rated = with_ratios(part["results"])
            publish(Console(file=io.StringIO()), {"results": rated, "runs": part["runs"]}, None)  # would it show?
            added = [{**result, "run": result["run"] + len(runs)} for result in rated]
            runs += [{**run, "source": run["source"] or path} for run in part["runs"]]
        except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError):
            raise EngineError(f"{path}: is not what tools/latency.py --json writes; measure again") from None
        results += added
    return report(results, runs)


class Batches(click.ParamType):
    """Numbers of pictures, with commas between: `1,4`."""

    name = "N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int | None, ...]:
        if not isinstance(value, str):
            return value
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isascii() and part.isdecimal() and 0 < int(part[:6]) < 1000 for part in parts):
            self.fail(f"{value!r} is no list of batches; give numbers from 1 to 999, e.g. 1,4", param, ctx)
        return tuple(dict.fromkeys(map(int, parts)))


@click.command(cls=Command)
@click.argument("names", nargs=-1, required=True, metavar="MODEL...")
@size_option
@click.option("--batch", "batches", type=Batches(), default=(None,), help="Pictures a run, e.g. 1,4; default: 1.")
@click.option("--rounds", type=click.IntRange(min=1), help="Timed runs of each; default: 10 to 50, by what they take.")
@click.option("--warmup", type=click.IntRange(min=0), help="Runs before, not counted; default: until times are stable.")
@click.option("--profile", is_flag=True, help="Also show where the time goes, by kinds of layers.")
@click.option(
    "--layers", type=click.IntRange(min=0), default=0, metavar="N", help="--profile, and the N slowest layers of each."
)
@click.option("--merge", "merging", is_flag=True, help="MODELs are result files of --json: show them as one table.")
@json_option
@engine_options
@tile_option
@click.pass_context
def main(
    context: click.Context,
    names: tuple[str, ...],
    sizes: tuple[Size, ...],
    batches: tuple[int | None, ...],
    rounds: int | None,
    warmup: int | None,
    profile: bool,
    layers: int,
    merging: bool,
    json_target: str | None,
    **options: Any,
) -> None:
    """Times models side by side: median, 90th and 99th percentile, spread (between quartiles), memory, ratio to the
    first with its interval of 95 %, and what of the chip is used.

    Each model runs in a process of its own, one at a time, interleaved, on the same picture. A checkpoint runs in half
    precision as x2.pt@fp16, an .onnx file in another runtime as x2.onnx@openvino, with CUDA graphs as x2.onnx@graphs.
    On a GPU the times are the network's alone; end to end is from host to host. Memory is the peak of the process;
    GPU, by how much the GPU's used memory grew; engine, what the engine itself held of that, without what CUDA needs
    for any process.
    """
    if merging and (profile or layers):
        raise click.UsageError("--profile and --layers run models, which --merge does not; leave them out")
    out = console(stderr=json_target == "-")
    setup = Setup(rounds, warmup, options)
    made = merge(names) if merging else timed([model_name(name) for name in names], sizes, setup, batches)
    if profile or layers:
        add_layers(made, options)
    if not publish(out, made, json_target, layers):
        context.exit(1)


if __name__ == "__main__":
    main(prog_name="tools/latency.py")
