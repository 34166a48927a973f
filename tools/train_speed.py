#!/usr/bin/env python3
"""One training step of ours beside the paper authors' code, in one run: milliseconds and peak memory.

    tools/train_speed.py SST_REPO
    tools/train_speed.py SST_REPO --case sst-light:32:64 --json speed.json

SST_REPO is a checkout of github dslisleedh/SST, which needs einops; none of its code is here. A step is forward, L1,
backward and AdamW under autocast to bfloat16, on random pictures that lie on the GPU; what runs is the model as
`python -m ribsr train` prepares and steps it, and theirs as their trainer does (cuDNN's search on, nothing compiled).
Each has a process of its own, so that memory is that model's alone. The last row is how fast batches are cut.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from engines.base import EngineError, Timer, host_clock
from ribsr.base.command import Command
from ribsr.base.errors import first_line
from tools._common import conclude, console, json_option, show_table
from tools._timing import Child, failure

FORMS = ("authors", "eager", "compiled")
"""Theirs; ours without and with torch.compile, both replayed as CUDA graphs on a GPU."""


class Case(click.ParamType):
    """NETWORK:BATCH:CROP."""

    name = "NETWORK:BATCH:CROP"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int, int]:
        parts = value.split(":")
        if len(parts) != 3 or not (parts[1].isdigit() and parts[2].isdigit()):
            self.fail(f"{value!r} is not {self.name}, e.g. sst-light:32:64", param, ctx)
        return parts[0], int(parts[1]), int(parts[2])


def prepare(form: str, repository: str, network: str, scale: int, device: Any) -> Any:
    """The model of a form, ready for training on `device`."""
    import torch

    import ribsr
    from ribsr.training import fast
    from tools._authors import build_authors

    torch.manual_seed(0)
    config = ribsr.config(network, scale)
    if form != "authors":
        return fast.prepare(ribsr.build(config), device, half=True, compiled=form == "compiled").train()
    return build_authors(Path(repository), config).to(device).train()


def stepper(model: Any, batch: int, crop: int, scale: int, device: Any, ours: bool) -> Timer:
    """Times one step at a time. ours: with our trainer's optimizer and graph."""
    import torch
    import torch.nn.functional as F

    from engines.pytorch import cuda_timer
    from ribsr.training.fast import Replayed

    torch.backends.cudnn.benchmark = True
    low = torch.rand(batch, 3, crop, crop, device=device)
    high = torch.rand(batch, 3, crop * scale, crop * scale, device=device)
    replayed = ours and device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, (0.9, 0.9), weight_decay=0, fused=ours, capturable=replayed)

    def work(low: torch.Tensor, high: torch.Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.l1_loss(model(low), high)
        loss.backward()
        optimizer.step()

    advance = Replayed(work) if replayed else work
    step = partial(advance, low, high)
    return cuda_timer(step, device) if device.type == "cuda" else Timer("host clock", host_clock(step))


def worker(pipe: Connection, form: str, repository: str, case: tuple[str, int, int], scale: int, rounds: int) -> None:
    """A form's process: sends its figures, or an error."""
    import torch

    network, batch, crop = case
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    start = time.perf_counter()
    try:
        model = prepare(form, repository, network, scale, device)
        timer = stepper(model, batch, crop, scale, device, ours=form != "authors")
        timer.once()
        first = time.perf_counter() - start
        if device.type == "cuda":
            for _ in range(2):
                timer.once()
            torch.cuda.reset_peak_memory_stats(device)
            timer.once()  # the recording of a graph is when its memory is taken
        times = sorted(timer.once() for _ in range(rounds))
        figures = {"median_ms": times[len(times) // 2], "fastest_ms": times[0], "peak": timer.peak_memory()}
        pipe.send({**figures, "first_step_s": first})
    except (RuntimeError, ValueError) as error:
        pipe.send(failure(error, first_line(error)))


def batches_per_second(batch: int, crop: int, scale: int, rounds: int) -> dict[str, Any]:
    """How fast batches come from 100 pictures of 480x320 (as those of BSDS500 are), where training keeps them."""
    import numpy as np
    import torch

    from ribsr.training.data import Batches, Crops, Pair, storage_device

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    rng = np.random.default_rng(0)
    low = rng.integers(0, 256, (160, 240, 3), dtype=np.uint8)
    pairs = [Pair(low, rng.integers(0, 256, (160 * scale, 240 * scale, 3), dtype=np.uint8)) for _ in range(100)]
    seen: dict[str, Any] = {}
    for name, stored in (("device", storage_device(pairs, device)), ("host", torch.device("cpu"))):
        batches = Batches(Crops(pairs, scale, crop, stored), 0, batch, device)
        for step in range(rounds + 3):
            if step == 3:
                wait()
                start = time.perf_counter()
            batches[step]
        wait()
        seen[f"from_{name}"] = rounds / (time.perf_counter() - start)
    return seen


@click.command(cls=Command)
@click.argument("repository", metavar="SST_REPO")
@click.option(
    "--case",
    "cases",
    multiple=True,
    type=Case(),
    default=("sst-light:32:64", "sst-l+:8:96"),
    show_default=True,
    help="Network, batch and side of the low-resolution crops; may be repeated.",
)
@click.option("--scale", type=click.IntRange(2, 4), default=2, show_default=True)
@click.option("--form", "forms", multiple=True, type=click.Choice(FORMS), default=FORMS, help="Leave others out.")
@click.option("--rounds", type=click.IntRange(min=1), default=10, show_default=True, help="Timed steps of each.")
@json_option
def main(
    repository: str,
    cases: tuple[tuple[str, int, int], ...],
    scale: int,
    forms: tuple[str, ...],
    rounds: int,
    json_target: str | None,
) -> None:
    """Times training steps of the authors' model and of ours, on the GPU if there is one."""
    if "authors" in forms:
        from tools._authors import import_authors

        import_authors(Path(repository))
    out = console(stderr=json_target == "-")
    results = []
    for case in cases:
        base = None
        for form in forms:
            with Child(worker, form, repository, case, scale, rounds) as child:
                child.listen()
            answer = child.told
            base = base or (answer.get("median_ms") if form == "authors" else None)
            if base and "median_ms" in answer:
                answer["times_faster"] = base / answer["median_ms"]
            results.append({"network": case[0], "batch": case[1], "crop": case[2], "form": form, **answer})
            # Now, too: a run may be cut off before its table.
            out.print(" ".join(filter(None, _cells(results[-1]))), soft_wrap=True)
    pipeline = batches_per_second(cases[0][1], cases[0][2], scale, 10 * rounds)
    columns = ("network", "batch", "crop", "form", "ms", "steps/s", "peak GiB", "times faster", "first step s")
    show_table(out, columns, map(_cells, results))
    rates = ", ".join(f"{rate:.0f} {name.replace('_', ' ')}" for name, rate in pipeline.items())
    out.print(f"Batches of {cases[0][1]} crops of {cases[0][2]} a second: {rates}", soft_wrap=True)
    conclude(out, "train_speed", {"scale": scale, "results": results, "batches_per_second": pipeline}, json_target)
    if failed := sum("failure" in result for result in results):
        raise EngineError(f"{failed} of {len(results)} failed, as said above")


def _cells(result: dict[str, Any]) -> list[str]:
    named = [str(result[name]) for name in ("network", "batch", "crop", "form")]
    if "failure" in result:
        return [*named, result["failure"], "", "", "", ""]
    ms, peak, ratio = result["median_ms"], result["peak"], result.get("times_faster")
    return [
        *named,
        f"{ms:.1f}",
        f"{1000 / ms:.2f}",
        f"{peak / 2**30:.1f}" if peak else "",
        f"{ratio:.2f}" if ratio else "",
        f"{result['first_step_s']:.1f}",
    ]


if __name__ == "__main__":
    main(prog_name="tools/train_speed.py")
