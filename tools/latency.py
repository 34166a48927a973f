#!/usr/bin/env python3
"""How long do models take, side by side, on this machine? tools/README.md says how that is measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from engines.base import EngineError
from engines.options import engine_options, tile_option
from ribsr.base.command import Command, show_traceback
from ribsr.base.sizes import Size
from tools._common import ModelName, console, json_option, model_name, open_model, show_table
from tools._timing import Setup, picture, publish, report, size_option, timed

if TYPE_CHECKING:
    from rich.console import Console


def show_layers(out: Console, name: ModelName, size: Size, options: dict[str, Any], count: int) -> None:
    """Prints the `count` layers of a model that take longest. Raises EngineError if it cannot be run or profiled."""
    with open_model(name, options) as engine:
        layers = engine.profile(picture(engine, size))
    total = sum(layer.milliseconds for layer in layers)
    columns = (f"{min(count, len(layers))} of {len(layers)} layers of {name} at {size}", "ms", "share")
    slowest = sorted(layers, key=lambda layer: layer.milliseconds, reverse=True)[:count]
    rows = [
        (one.name, f"{one.milliseconds:.3f}", f"{one.milliseconds / total:.1%}" if total else "") for one in slowest
    ]
    show_table(out, columns, rows)
    out.print(f"All layers: {total:.2f} ms, each timed on its own, which takes longer than a run", style="dim")


def read_results(path: str) -> dict[str, Any]:
    """A result file that --json wrote. Raises EngineError if it is none."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EngineError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        raise EngineError(f"{path}: not a JSON file; give files written by tools/latency.py --json") from None
    if not isinstance(values, dict) or values.get("tool") != "latency":
        raise EngineError(f"{path}: was not written by tools/latency.py --json")
    return values


def merge(paths: Sequence[str]) -> dict[str, Any]:
    """One report of several: all results, ratios to the first of them, and every environment they come from."""
    results: list[dict[str, Any]] = []
    environments: list[dict[str, Any]] = []
    settings: list[dict[str, Any]] = []
    for path in paths:
        part = read_results(path)
        environments.extend(seen for seen in part["environments"] if seen not in environments)
        settings.extend(part["settings"])
        for result in part["results"]:
            description = result["description"] or {}
            if "attention" in description:  # the form's name in files of before
                description["form"] = description.pop("attention")
            results.append({**result, "source": path})
    return report(results, environments, settings)


@click.command(cls=Command)
@click.argument("names", nargs=-1, required=True, metavar="MODEL...")
@size_option
@click.option("--rounds", type=click.IntRange(min=1), default=10, show_default=True, help="Timed runs of each model.")
@click.option("--warmup", type=click.IntRange(min=0), default=2, show_default=True, help="Runs before, not counted.")
@click.option(
    "--layers", type=click.IntRange(min=0), default=0, metavar="N", help="Also list N slowest layers of each."
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
    rounds: int,
    warmup: int,
    layers: int,
    merging: bool,
    json_target: str | None,
    **options: Any,
) -> None:
    """Times models side by side: median, 95th percentile, spread (between quartiles), memory, ratio to the first.

    Each model runs in a process of its own, one at a time, interleaved, on the same picture. A checkpoint runs in half
    precision as x2.pt@fp16, an .onnx file in another runtime as x2.onnx@openvino. Memory is the peak of the process;
    GPU, by how much the GPU's used memory grew; engine, what the engine itself held of that, without what CUDA needs
    for any process.
    """
    if merging and layers:
        raise click.UsageError("--layers runs models, which --merge does not; leave one of them out")
    out = console(stderr=json_target == "-")
    setup = Setup(rounds, warmup, options)
    made = merge(names) if merging else timed([model_name(name) for name in names], sizes, setup)
    all_ran = publish(out, made, json_target)
    for result in made["results"] if layers else ():
        if not result["failure"]:
            try:
                show_layers(out, model_name(result["file"]), Size.parse(result["size"]), options, layers)
            except EngineError as error:
                show_traceback(error)
                out.print(f"FAIL {error}", style="red", soft_wrap=True)
                all_ran = False
    if not all_ran:
        context.exit(1)


if __name__ == "__main__":
    main(prog_name="tools/latency.py")
