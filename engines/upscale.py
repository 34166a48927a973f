"""`python -m engines.upscale MODEL IN.png OUT.png`: one picture, enlarged."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from engines.cli import Command, engine_options, tile_option

if TYPE_CHECKING:
    import numpy as np

    from engines import Engine


@click.command(cls=Command)
@click.argument("model_file", metavar="MODEL")
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@engine_options
@tile_option
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", "bf16"]), help="Of checkpoints; other files fix it at export."
)
def main(model_file: str, source: str, target: str, tile: tuple[int, int] | None, **options: Any) -> None:
    """Enlarges the picture IN with MODEL (.onnx, .plan, or a checkpoint for PyTorch) and writes OUT.

    The suffix of OUT chooses its format. An existing OUT is replaced, unless it is IN or MODEL. A picture that MODEL
    does not take whole, for its size or for want of memory, is cut into tiles, and a note says so.
    """
    import time

    from engines import open_engine
    from engines.pictures import Picture, check_output, read_picture, write_picture

    check_output(target)
    _check_not_overwritten(target, model_file, source)
    picture = read_picture(source)
    with open_engine(model_file, **options) as engine:
        description = engine.describe()
        for note in description.notes:
            click.echo(f"Note: {note}", err=True)
        start = time.perf_counter()
        enlarged = Picture(_enlarge(engine, picture.pixels, tile), picture.icc_profile)
        seconds = time.perf_counter() - start
    write_picture(target, enlarged)
    click.echo(f"{source} {picture.size} → {target} {enlarged.size}")
    click.echo(
        f"{description.model} x{description.scale} {description.precision}, {description.runtime} "
        f"{description.runtime_version} on {description.device}, {seconds:.2f} s"
    )


def _enlarge(engine: Engine, x: np.ndarray, tile: tuple[int, int] | None) -> np.ndarray:
    """engine.run(x), in tiles (H, W) if asked for or needed; smaller ones as long as the memory does not suffice."""
    from engines.errors import EngineError, OutOfMemory
    from engines.tiles import Tiled

    height, width = x.shape[2:]
    while True:
        tiled = Tiled(engine, tile)
        rows, columns = tiled.spans(height, width)
        count = len(rows) * len(columns)
        size = "{1}x{0}".format(*tiled.largest(height, width))
        if count > 1:
            click.echo(f"Note: in {count} tiles of {size} at most", err=True)
        elif size != f"{width}x{height}":
            click.echo(f"Note: continued by mirroring to {size}, the smallest that the model takes", err=True)
        try:
            if count == 1 or not sys.stderr.isatty():
                return tiled.run(x)
            with click.progressbar(length=count, file=sys.stderr) as bar:
                return tiled.run(x, bar.update)
        except OutOfMemory:
            tile = tiled.smaller(height, width)
            if tile is None:
                path = engine.describe().path
                raise EngineError(
                    f"{path}: out of memory on {size}, and tiles cannot be smaller; free memory"
                ) from None
            click.echo(f"Note: out of memory on {size}; trying smaller tiles", err=True)


def _check_not_overwritten(target: str, model_file: str, source: str) -> None:
    """Raises EngineError when OUT would replace what it is made from, under whatever name."""
    from pathlib import Path

    from engines.errors import EngineError

    for name, path in (("IN", source), ("MODEL", model_file)):
        if Path(target).exists() and Path(path).exists() and Path(target).samefile(path):
            raise EngineError(f"{target}: OUT is the same file as {name}; give another name")


if __name__ == "__main__":
    main(prog_name="python -m engines.upscale")
