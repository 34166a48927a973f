#!/usr/bin/env python3
"""Our files beside the paper authors' own PyTorch code and its peers, in one run: the ratio that their users would see.

    tools/beside_authors.py SST_REPO sst-light x2.onnx --size 128x128 --size 256x256
    tools/beside_authors.py SST_REPO sst-light --device cuda --size 640x360 --json authors.json
    tools/beside_authors.py SST_REPO sst-l+ l.pt@fp16 PFT-SR/options/test/001_PFT_SRx2_scratch.yml --device cuda

SST_REPO is a checkout of github dslisleedh/SST, which needs einops; none of its code is here. Their model runs as they
run it: on a CPU float32 with the attention in bfloat16; on a GPU float32 with TF32, and half precision as a second row.
A peer is a network of somebody else: the options file of a checkout made with BasicSR, whose kernels are built and
installed as its README says. Weights are random, since only the time counts. tools/README.md says more.

Where a plan needs another Python than PyTorch does, time it there with tools/latency.py --json and put both files into
one table with tools/latency.py --merge authors.json plan.json.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from engines.options import engine_options
from ribsr.base.command import Command
from ribsr.base.sizes import Size
from tools._common import console, json_option, model_name
from tools._latency_tables import publish
from tools._timing import Setup, size_option, timed

WARMUP = {"cpu": 1, "cuda": 2}
"""Runs before the first that counts. On a GPU one more has gone before: `OthersEngine.timer`."""


@click.command(cls=Command)
@click.argument("repository", metavar="SST_REPO", type=click.Path(path_type=Path))
@click.argument("network", metavar="NETWORK")
@click.argument("names", nargs=-1, metavar="[MODEL...]")
@click.option("--scale", type=click.IntRange(2, 4), default=2, show_default=True, help="Of the authors' model.")
@size_option
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Timed runs of each model.")
@json_option
@engine_options
@click.pass_context
def main(
    context: click.Context,
    repository: Path,
    network: str,
    names: tuple[str, ...],
    scale: int,
    sizes: tuple[Size, ...],
    rounds: int,
    json_target: str | None,
    **options: Any,
) -> None:
    """Times MODELs beside the authors' PyTorch NETWORK (e.g. sst-light); ratios are to the first. On the CPU, unless
    --device cuda.

    A MODEL that ends in .yml is a peer: a BasicSR options file in its checkout. `authors` among the MODELs stands for
    the authors' network; without, it comes first, on a GPU as authors@fp16, too."""
    from tools._authors import AUTHORS, ROWS, import_authors, open_beside

    out = console(stderr=json_target == "-")
    import_authors(repository)
    device = "cuda" if options["device"] == "cuda" else "cpu"
    models = [model_name(name) for name in names]
    if not any(model.path == AUTHORS for model in models):
        models = [*ROWS[device], *models]
    opener = partial(open_beside, repository, network, scale)
    setup = Setup(rounds, WARMUP[device], {**options, "device": device}, opener)
    if not publish(out, timed(models, sizes, setup), json_target):
        context.exit(1)


if __name__ == "__main__":
    main(prog_name="tools/beside_authors.py")
