"""`python -m ribsr train CONFIG.yaml` trains a model; `python -m ribsr recipe MODEL` writes such a file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import click

from ribsr.base.command import Command, FiniteRange, Group, echo


@click.group(cls=Group)
def main() -> None:
    """Training of RIB super-resolution transformers."""


@main.command(cls=Command)
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--init", metavar="FILE", help="Finished weights to start from, instead of the file's `init`.")
@click.option("--output", metavar="DIR", help="Instead of the file's `output`.")
@click.option("--stop-after", type=FiniteRange(min=0), metavar="SECONDS", help="Write the state then, and end.")
def train(config: Path, init: str | None, output: str | None, stop_after: float | None) -> None:
    """Trains as CONFIG says, and goes on where an earlier run into the same folder ended or was killed.

    On several GPUs: torchrun --nproc-per-node 4 -m ribsr train CONFIG.
    """
    from ribsr.training import recipe
    from ribsr.training.loop import train as run
    from ribsr.training.loop import weights_path
    from ribsr.training.report import Report

    given = {name: value for name, value in (("init", init), ("output", output)) if value is not None}
    followed = replace(recipe.read(config), **given)
    first = os.environ.get("RANK", "0") == "0"
    with Report(followed.steps if first else None) as report:
        run(followed, stop_after, report)
    if first:
        echo(f"wrote {weights_path(followed)}")


@main.command(cls=Command)
@click.argument("model")
@click.option("--scale", type=click.IntRange(2, 4), default=2, show_default=True, help="Upscaling factor.")
def recipe(model: str, scale: int) -> None:
    """Prints the paper's recipe for MODEL as a file to start from: fill in train, validation and output."""
    import yaml

    from ribsr.training import recipe

    values = recipe.to_dict(recipe.paper(model, scale))
    click.echo(yaml.safe_dump(values, sort_keys=False, default_flow_style=None), nl=False)


if __name__ == "__main__":
    main(prog_name="python -m ribsr")
