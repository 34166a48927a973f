#!/usr/bin/env python3
"""How long do models take, side by side, on this machine? `tools/_timing.py` says how it is measured."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from engines.options import engine_options, tile_option
from ribsr.base.command import Command, SizeType
from ribsr.base.sizes import Size
from tools._common import ModelName, console, environment, json_option, model_name, open_model, read_results, table
from tools._timing import DEFAULT_SIZES, finish, measure, picture_for, report, with_ratios


def show_layers(out: Any, name: ModelName, size: Size, options: dict[str, Any], count: int) -> None:
    """Prints the `count` layers or operators of a model that take longest. Raises EngineError if it cannot be run."""
    with open_model(name, options) as engine:
        layers = engine.profile(picture_for(engine, size))
    total = sum(layer.milliseconds for layer in layers)
    rows = table(f"{min(count, len(layers))} of {len(layers)} layers of {name} at {size}", "ms", "share")
    for layer in sorted(layers, key=lambda layer: layer.milliseconds, reverse=True)[:count]:
        rows.add_row(layer.name, f"{layer.milliseconds:.3f}", f"{layer.milliseconds / total:.1%}" if total else "")
    out.print(rows)
    out.print(f"All layers: {total:.2f} ms, each timed on its own, which takes longer than a run", style="dim")


def merge(paths: Sequence[str]) -> dict[str, Any]:
    """One report of several: all results, ratios to the first of them, and every environment they come from."""
    parts = [read_results(path, "latency") for path in paths]
    results = [
        {**result, "source": path} for path, part in zip(paths, parts, strict=True) for result in part["results"]
    ]
    environments: list[dict[str, Any]] = []
    for part in parts:
        environments.extend(seen for seen in part["environments"] if seen not in environments)
    return report(with_ratios(results), environments, [entry for part in parts for entry in part["settings"]])


@click.command(cls=Command)
@click.argument("names", nargs=-1, required=True, metavar="MODEL...")
@click.option("--size", "sizes", multiple=True, type=SizeType(), help="Of the input (repeatable).  [default: 128x128]")
@click.option("--rounds", type=click.IntRange(min=1), default=10, show_default=True, help="Timed runs of each model.")
@click.option("--warmup", type=click.IntRange(min=0), default=2, show_default=True, help="Runs before, not counted.")
@click.option("--layers", type=click.IntRange(min=1), metavar="N", help="Also list the N slowest layers of each model.")
@click.option("--merge", "merging", is_flag=True, help="MODELs are result files of --json: show them as one table.")
@json_option
@engine_options
@tile_option
@click.pass_context
def main(
    context: click.Context,
    names: tuple[str, ...],
    sizes: tuple[Size, ...],
    rounds: int,
    warmup: int,
    layers: int | None,
    merging: bool,
    json_target: str | None,
    **options: Any,
) -> None:
    """Times models side by side: median, 95th percentile, spread (between quartiles), memory, ratio to the first.

    Each model runs in a process of its own, one at a time, interleaved, on the same picture. A checkpoint runs in half
    precision as x2.pt@fp16. Memory is the peak of the process; GPU, by how much the GPU's used memory grew; engine,
    what the engine itself held of that, without what CUDA needs for any process.
    """
    if layers is not None and merging:
        raise click.UsageError("--layers runs the models, and --merge only shows results: leave one of them out")
    out = console(stderr=json_target == "-")
    models = [] if merging else [model_name(name) for name in names]
    if merging:
        built = merge(names)
    else:
        results = []
        for size in sizes or DEFAULT_SIZES:
            results += [result.to_json() for result in measure(models, size, options, rounds, warmup)]
        settings = {"rounds": rounds, "warmup": warmup, "device": options["device"], "threads": options["threads"]}
        built = report(with_ratios(results), [environment()], [settings])
    ran = finish(out, built, json_target)
    if layers is not None:
        failed = {(result["file"], result["size"]) for result in built["results"] if result["failure"]}
        for name in dict.fromkeys(models):
            for size in sizes or DEFAULT_SIZES:
                if (str(name), str(size)) not in failed:
                    show_layers(out, name, size, options, layers)
    if not ran:
        context.exit(1)


if __name__ == "__main__":
    main(prog_name="tools/latency.py")
