#!/usr/bin/env python3
"""How fast are the kernels, beside what PyTorch runs? Which of several builds is the fastest, and are all right?

    tools/kernel_benchmark.py --only feed_forward
    tools/kernel_benchmark.py --path hopper /tmp/ab/base.so /tmp/ab/variant.so  # of python -m plugins.build -o FILE

Attention: ours is the whole operator, from the channels-last qkv map to the gated output map. cuDNN's is
scaled_dot_product_attention alone, on ready-made contiguous [windows, heads, N, D + R] inputs, with V of width D or
padded to D + R, the faster of both.

Layer norm and depthwise convolution: channels-last maps whose pixels are padded to 8 channels, beside PyTorch's eager
operators on the same memory. The feed-forward half of a layer, and what comes before its attention: beside those two
kernels and PyTorch's 1x1 convolutions. Dense convolutions: with residual, beside PyTorch's three operators. Their floor
is reading and writing the maps once at 3.0 TB/s, about what an H100 reaches.

Each is captured in a CUDA graph over several input sets, larger together than the caches. All graphs of a layer are
replayed in turn; times are medians, and the ratio is the median of the rounds' ratios.

Of builds that are given, the attention is compared with float64 first, each in its own process. Those that are right
are then timed on the same inputs. What hangs is killed, at whatever step.
"""

from __future__ import annotations

import faulthandler
import itertools
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from plugins import library, operators
from plugins.operators import Operator
from ribsr import work
from ribsr.base.command import Command
from ribsr.base.sizes import Size
from tools._common import json_option, write_json

if TYPE_CHECKING:
    import torch

Calls = Sequence[Callable[[], object]]
"""One call for each of several input sets, larger together than the caches."""

FLOOR = 3.0e12
"""Bytes per second of the floor: about what an H100 reaches."""


@dataclass(frozen=True)
class Layer:
    """An operator on a map of `height` x `width` pixels.

    widths: the other integers in the shapes of its tensors; the attention has a `window` for both sides.
    """

    operator: Operator
    widths: dict[str, int]
    attributes: dict[str, Any] = field(default_factory=dict)
    height: int = 360
    width: int = 640

    @property
    def sizes(self) -> dict[str, int]:
        """All integers in the shapes of its maps."""
        return {"batch": 1, **self.widths, "height": self.height, "width": self.width}

    def map_sizes(self, shape: str) -> tuple[int, int, int, int]:
        """Of a map of this shape in the table."""
        batch, channels, height, width = operators.sizes(shape, self.sizes)
        return batch, channels, height, width

    @property
    def bytes(self) -> int:
        """Of its maps, each once."""
        shapes = {**self.operator.tensors, **self.operator.outputs}
        return 2 * sum(math.prod(operators.sizes(shapes[name], self.sizes)) for name in self.operator.maps)

    @property
    def floor_ms(self) -> float:
        return self.bytes / FLOOR * 1e3

    @property
    def is_attention(self) -> bool:
        return self.operator is operators.CYCLIC_WINDOW_ATTENTION

    @property
    def windows(self) -> int:
        """Of an attention."""
        return -(-self.height // self.widths["window"]) * -(-self.width // self.widths["window"])

    @property
    def scores(self) -> int:
        """Of an attention."""
        return work.scores(Size(self.height, self.width), (self.widths["window"],) * 2, self.widths["heads"])

    def speed(self, ms: float) -> str:
        """What a time means: scores a second of an attention, else bytes a second, and the time in floors."""
        if self.is_attention:
            return f"{self.scores / ms / 1e9:5.2f}e12 scores/s"
        return f"{self.bytes / ms / 1e9:5.2f} TB/s {ms / self.floor_ms:5.2f} floors"

    def __str__(self) -> str:
        words = [f"{name} {value}" for name, value in self.widths.items()]
        words += [name for name, value in self.attributes.items() if value is True]
        return f"{self.operator.short:16} {' '.join(words):43}"


def _attention(heads: int, head_width: int, *windows_and_ranks: tuple[int, int]) -> list[Layer]:
    widths = {"heads": heads, "head_width": head_width}
    named = ({"window": window, "rank": rank, **widths} for window, rank in windows_and_ranks)
    return [Layer(operators.CYCLIC_WINDOW_ATTENTION, one) for one in named]


_NORM = {"epsilon": 1e-6}
_GELUS = (
    ((96, 192, 384), {"add_gelu": False, "input_gelu": False}),
    ((72, 96, 192, 384), {"add_gelu": True, "input_gelu": False}),
    ((96, 384), {"add_gelu": True, "input_gelu": True}),
)
_HIDDEN = ((48, 72), (64, 80), (64, 96), *operators.FEED_FORWARD.widths.wide)
_CONVOLUTIONS = (
    *((48, 48, 3), (48, 48, 1), (192, 192, 3), (192, 192, 1)),
    *((8, 48, 3), (48, 12, 3), (192, 64, 3), (64, 256, 3), (64, 3, 3)),
)
LAYERS = (
    *_attention(6, 32, (96, 32), (64, 32), (48, 32), (48, 16), (32, 16), (16, 16)),
    *_attention(3, 16, (96, 24), (64, 24), (48, 16), (32, 24), (32, 16), (16, 24), (16, 16), (8, 16)),
    *(Layer(operators.CHANNEL_LAYER_NORM, {"channels": c}, _NORM) for c in (48, 64, 180, 192, 256)),
    *(Layer(operators.DEPTHWISE_CONV3X3, {"channels": c}, gelus) for channels, gelus in _GELUS for c in channels),
    *(Layer(operators.FEED_FORWARD, {"channels": c, "hidden": hidden}, _NORM) for c, hidden in _HIDDEN),
    *(Layer(operators.ATTENTION_INPUTS, {"channels": c}, _NORM) for c in (48, 64, 192, 224)),
    *(
        Layer(operators.CONVOLUTION, {"channels": c, "outputs": outputs, "kernel": kernel}, {"negative_slope": 0.1})
        for c, outputs, kernel in _CONVOLUTIONS
    ),
)


def our_calls(layer: Layer, dtype: torch.dtype, path: str, **inputs: Any) -> Calls:
    """Our kernel, on maps with pixels a multiple of 8 channels apart, as TensorRT has them.

    path: of operators that have several. inputs: of an attention, more fields of `plugins.testing.AttentionCase`.
    """
    from plugins.pytorch import Call
    from plugins.testing import AttentionCase, poisoned

    if layer.is_attention:
        window, d, r, heads = (layer.widths[name] for name in ("window", "head_width", "rank", "heads"))
        shape = {"window": (window, window), "d": d, "r": r, "heads": heads, "size": (layer.height, layer.width)}
        case = AttentionCase(**shape, dtype=dtype, path=path, **inputs)
        return [case.prepare() for _ in range(_sets(layer.bytes))]
    calls = []
    attributes = dict(layer.attributes)
    if "path" in layer.operator.options:
        attributes["path"] = library.PATHS[path]
    for tensors in _map_inputs(layer, dtype):
        outputs = [poisoned(*layer.map_sizes(shape), dtype, "padded") for shape in layer.operator.outputs.values()]
        calls.append(Call(layer.operator, tensors, outputs, **attributes))
    return calls


def their_calls(layer: Layer, dtype: torch.dtype) -> list[Calls]:
    """PyTorch's operators on the same memory; for an attention cuDNN's, with V of its own width and that of Q and K.

    Beside a kernel of several layers PyTorch runs its 1x1 convolutions alone, and our kernels what lies between.
    """
    import torch

    if layer.is_attention:
        d = layer.widths["head_width"]
        return [_cudnn_calls(layer, dtype, width) for width in (d, d + layer.widths["rank"])]
    inputs = _map_inputs(layer, dtype)
    own = torch.ops.ribsr
    parts = {"norm": own.channel_layer_norm, "depthwise": own.depthwise_conv3x3} if layer.operator.weights else {}
    reference = partial(layer.operator.reference, **layer.attributes, **parts)
    return [[partial(reference, *tensors) for tensors in inputs]]


def _map_inputs(layer: Layer, dtype: torch.dtype) -> list[list[torch.Tensor]]:
    """Input sets: a map of each one's own, and the same weights."""
    from plugins.testing import random_map, random_weights

    weights = random_weights(layer.operator, dtype, "cuda", **layer.sizes)
    sets = []
    for _ in range(_sets(layer.bytes)):
        arrays = iter(weights)
        shapes = layer.operator.tensors.values()
        sets.append([random_map(*layer.map_sizes(s), dtype) if operators.is_map(s) else next(arrays) for s in shapes])
    return sets


def _cudnn_calls(layer: Layer, dtype: torch.dtype, width_v: int) -> Calls:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            scaled_dot_product_attention(q, k, v, scale=layer.widths["head_width"] ** -0.5)

    shape = (layer.windows, layer.widths["heads"], layer.widths["window"] ** 2)
    joint = layer.widths["head_width"] + layer.widths["rank"]
    calls = []
    for _ in range(_sets(math.prod(shape) * (2 * joint + 2 * width_v) * 2)):
        inputs = (torch.randn(*shape, n, device="cuda").to(dtype) for n in (joint, joint, width_v))
        calls.append(partial(call, *inputs))
    return calls


def _sets(size: int) -> int:
    """How many input sets of `size` bytes make 400 MB, at most 8."""
    return min(8, max(1, math.ceil(4e8 / size)))


SHORT = [operator.short for operator in operators.OPERATORS]
ATTENTION = operators.CYCLIC_WINDOW_ATTENTION.short
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
CHECKED: dict[str, dict[str, Any]] = {  # how inputs differ from normal ones; far and large overflow in most items
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


def use(build: Path) -> None:
    """Make plugins.library call this file from now on."""
    os.environ[library.VARIABLE] = str(build)
    library.load.cache_clear()
    library.load()


def check(build: Path, dtype: torch.dtype, path: str, timeout: float) -> None:
    """Print what is wrong with a build's attention; exits with 1 if anything is, or if it takes longer."""
    import torch

    from plugins.testing import AttentionCase

    faulthandler.dump_traceback_later(timeout, exit=True)
    use(build)
    torch.manual_seed(0)
    wrong = count = 0
    for (window, size), d, r, (name, inputs) in itertools.product(SHAPES, (32, 16), (32, 24, 16), CHECKED.items()):
        count += 1
        layer = {"window": window, "d": d, "r": r, "size": size, "heads": 3, "shift": (3, 1)}
        if failure := AttentionCase(**layer, dtype=dtype, path=path, **inputs).failure():
            wrong += 1
            click.echo(f"{build.stem}: window {window} on {size}, D {d} R {r}, {name}: {failure}", err=True)
    click.echo(f"{build.stem}: {count} comparisons, {wrong} wrong", err=True)
    raise SystemExit(wrong > 0)


def right_ones(builds: Sequence[Path], *arguments: Any) -> list[Path]:
    """The builds that pass `check`, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=check, args=(build, *arguments)) for build in builds]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [build for build, process in zip(builds, processes, strict=True) if process.exitcode == 0]


def in_turn(alternatives: Sequence[tuple[Path, Calls]], repeats: int) -> list[list[float]]:
    """Milliseconds per call of each alternative, calls with the build that they use; one figure per round.

    Each is a graph of its calls. A round replays all of them one after the other: clocks fall under load, so that only
    what ran side by side compares.
    """
    import torch

    graphs = []
    for build, calls in alternatives:
        use(build)
        for call in calls:
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        graphs.append(graph)
    rounds = []
    for _ in range(2 + repeats):
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in graphs]
        for graph, (start, end) in zip(graphs, events, strict=True):
            start.record()
            graph.replay()
            end.record()
        rounds.append(events)
    torch.cuda.synchronize()
    return [
        [start.elapsed_time(end) / len(calls) for start, end in column]
        for (_, calls), column in zip(alternatives, zip(*rounds[2:], strict=True), strict=True)
    ]


def measure(
    layer: Layer, builds: Sequence[Path], ours: Calls, others: Sequence[Calls], repeats: int
) -> list[tuple[str, dict[str, Any]]]:
    """A line, and figures for the JSON file, of each build; beside it the fastest of the others, if there are any."""
    rounds = in_turn([*((build, ours) for build in builds), *((builds[0], calls) for calls in others)], repeats)
    theirs = min(rounds[len(builds) :], key=median, default=None)
    name = "cuDNN" if layer.is_attention else "apart" if layer.operator.weights else "torch"
    results = []
    for build, own in zip(builds, rounds, strict=False):
        ms = median(own)
        line = f"{layer} {build.stem:>16} {ms:7.4f} ms {layer.speed(ms)}"
        row = {"operator": layer.operator.short, **layer.sizes, **layer.attributes, "build": str(build), "ours_ms": ms}
        if not layer.is_attention:
            row["floor_ms"] = layer.floor_ms
        if theirs:
            row["cudnn_ms" if layer.is_attention else "torch_ms"] = beside = median(theirs)
            row["ratio"] = median(b / a for a, b in zip(own, theirs, strict=True))
            line += f"   {name} {beside:7.4f} ms {layer.speed(beside)}   {row['ratio']:5.3f}x"
        results.append((line, row))
    return results


@click.command(cls=Command, help=(__doc__ or "").split("\n")[0])
@click.argument("builds", nargs=-1, metavar="[BUILD...]", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--only", type=click.Choice(SHORT), multiple=True, help="These operators (repeatable); else all.")
@click.option("--bf16", is_flag=True, help="bfloat16 instead of float16.")
@click.option(
    "--path", type=click.Choice(list(library.PATHS)), default="auto", help="The kernel, of operators with several."
)
@click.option("--data", type=click.Choice(list(TIMED)), default="normal", help="Of the attention that is timed.")
@click.option("--window", "windows", type=int, multiple=True, help="Attention of these windows alone (repeatable).")
@click.option("--ours", is_flag=True, help="Time ours alone.")
@click.option("--repeats", default=15, show_default=True, help="Graph replays per case.")
@click.option("--timeout", default=180.0, show_default=True, help="Seconds for a build's checks, and for each layer.")
@json_option
def main(
    builds: tuple[Path, ...],
    only: tuple[str, ...],
    bf16: bool,
    path: str,
    data: str,
    windows: tuple[int, ...],
    ours: bool,
    repeats: int,
    timeout: float,
    json_target: str | None,
) -> None:
    if builds and set(only) - {ATTENTION}:
        raise click.UsageError(f"builds are compared by {ATTENTION} alone; leave out other --only")
    import torch

    if not torch.cuda.is_available():
        raise library.LibraryError("no CUDA device: the kernels need one")

    show = partial(click.echo, err=json_target == "-")
    dtype = torch.bfloat16 if bf16 else torch.float16
    device = torch.cuda.get_device_name()
    show(f"{device}, torch {torch.__version__}, {'bf16' if bf16 else 'fp16'}, path {path}")
    used = right_ones([build.resolve() for build in builds], dtype, path, timeout) if builds else [library.path()]
    timed = only or ([ATTENTION] if builds else SHORT)
    results = []
    for layer in LAYERS if used else ():
        if layer.operator.short not in timed or (windows and layer.widths.get("window") not in windows):
            continue
        faulthandler.dump_traceback_later(timeout, exit=True)
        use(used[0])
        alternatives = our_calls(layer, dtype, path, **TIMED[data]), [] if ours else their_calls(layer, dtype)
        for line, row in measure(layer, used, *alternatives, repeats):
            show(line)
            results.append(row)
    faulthandler.cancel_dump_traceback_later()
    if json_target:
        write_json(json_target, {"tool": "kernel_benchmark", "device": device, "results": results})
    for build in used if builds and results and not ours else ():
        ratios = [row["ratio"] for row in results if row["build"] == str(build)]
        show(f"{build.stem}: {mean(ratios):.3f}x in the mean")
    if len(used) < len(builds):
        raise click.ClickException(f"some were left out: wrong, or not checked within {timeout:.0f} s")


if __name__ == "__main__":
    main(prog_name="tools/kernel_benchmark.py")
