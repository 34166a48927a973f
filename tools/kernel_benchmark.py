"""Time the kernels beside what PyTorch runs: python -m plugins.benchmark

Attention: ours is the whole operator, from the channels-last qkv map to the gated output map. cuDNN's is
scaled_dot_product_attention alone, on ready-made contiguous [windows, heads, N, D + R] inputs, with V of width D or
padded to D + R, the faster of both.

Layer norm and depthwise convolution: channels-last maps whose pixels are padded to 8 channels, beside PyTorch's eager
operators on the same memory. The feed-forward half of a layer, and what comes before its attention: beside those two
kernels and PyTorch's 1x1 convolutions. Their floor is reading and writing the maps once at 3.0 TB/s, about what an H100
reaches.

Each is captured in a CUDA graph over several input sets, larger together than the caches; medians of replays.
Attention's and cuDNN's graphs are replayed in turn, and the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from plugins import library

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Case:
    """One layer: square windows on a map of `height` x `width` pixels."""

    window: int
    head_width: int
    rank: int
    heads: int
    height: int = 360
    width: int = 640

    @property
    def windows(self) -> int:
        return -(-self.height // self.window) * -(-self.width // self.window)

    @property
    def scores(self) -> int:
        return self.windows * self.heads * self.window**4

    def __str__(self) -> str:
        layer = f"window {self.window:2d}  D {self.head_width} R {self.rank}"
        return f"{layer}  {self.windows:4d} windows x {self.heads} heads"


CASES = (
    Case(96, 32, 32, 6),
    Case(64, 32, 32, 6),
    Case(48, 32, 32, 6),
    Case(48, 32, 16, 6),
    Case(32, 32, 16, 6),
    Case(16, 32, 16, 6),
    Case(96, 16, 24, 3),
    Case(64, 16, 24, 3),
    Case(48, 16, 16, 3),
    Case(32, 16, 24, 3),
    Case(32, 16, 16, 3),
    Case(16, 16, 24, 3),
    Case(16, 16, 16, 3),
    Case(8, 16, 16, 3),
)


@dataclass(frozen=True)
class MapCase:
    """One memory-bound operator on a map of `height` x `width` pixels."""

    operator: str
    channels: int
    add_gelu: bool = False
    input_gelu: bool = False
    hidden: int = 0
    height: int = 360
    width: int = 640

    @property
    def bytes(self) -> int:
        maps = 5 if self.operator == "attention_inputs" else 2  # of `channels`
        return 2 * maps * self.channels * self.height * self.width

    @property
    def floor_ms(self) -> float:
        return self.bytes / FLOOR * 1e3

    def fits(self, hopper: bool) -> bool:
        """Whether the kernel takes these widths; hopper: on compute capability 9.0."""
        if self.operator == "feed_forward":
            return library.fits_feed_forward(self.channels, self.hidden, hopper=hopper)
        if self.operator == "attention_inputs":
            return library.fits_attention_inputs(self.channels, hopper=hopper)
        return True

    def __str__(self) -> str:
        epilogue = f" hidden {self.hidden}" if self.hidden else " + gelu" * self.add_gelu + " of gelu" * self.input_gelu
        return f"{self.operator:16}  C {self.channels:3d}{epilogue:16}"


FUSED = ("feed_forward", "attention_inputs")
"""Kernels of several layers, timed beside these apart."""

FLOOR = 3.0e12
"""Bytes per second of the floor."""

MAP_CASES = (
    *(MapCase("layer_norm", channels) for channels in (48, 64, 180, 192, 256)),
    *(MapCase("depthwise", channels) for channels in (96, 192, 384)),
    *(MapCase("depthwise", channels, True) for channels in (72, 96, 192, 384)),
    *(MapCase("depthwise", channels, True, True) for channels in (96, 384)),
    *(
        MapCase("feed_forward", channels, hidden=hidden)
        for channels, hidden in ((48, 72), (64, 80), (64, 96), (192, 384))
    ),
    *(MapCase("attention_inputs", channels) for channels in (48, 64, 192)),
)


def in_turn(alternatives: Sequence[list[Callable[[], object]]], repeats: int) -> list[list[float]]:
    """Milliseconds per call of each alternative, one figure per round.

    Each is a graph of its calls. A round replays all of them one after the other: clocks fall under load, so that only
    what ran side by side compares.
    """
    import torch

    graphs = []
    for calls in alternatives:
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
        for calls, column in zip(alternatives, zip(*rounds[2:], strict=True), strict=True)
    ]


def measure(calls: list[Callable[[], object]], repeats: int) -> float:
    """Milliseconds per call: the median over graph replays of all `calls`, divided by their number."""
    return median(in_turn([calls], repeats)[0])


def our_calls(
    case: Case, bf16: bool, path: str, bias: Sequence[torch.Tensor] | None = None
) -> list[Callable[[], object]]:
    """Calls on random inputs; a bias [N, n] of queries and keys replaces the first n of the RIB factors."""
    import torch

    from plugins.pytorch import parameters

    dtype = torch.bfloat16 if bf16 else torch.float16
    channels, tokens = case.heads * case.head_width, case.window**2
    calls: list[Callable[[], object]] = []
    for _ in range(sets(5 * channels * case.height * case.width * 2)):
        shape = (1, 3 * channels, case.height, case.width)
        qkv = torch.randn(shape, device="cuda").to(dtype, memory_format=torch.channels_last)
        gate = torch.rand(1, channels, case.height, case.width, device="cuda").to(
            dtype, memory_format=torch.channels_last
        )
        factors = [torch.randn(case.heads, tokens, case.rank, device="cuda").to(dtype) for _ in range(2)]
        for factor, given in zip(factors, bias or (), strict=False):
            factor[..., : given.shape[1]] = given.cuda()
        out = torch.empty_like(gate)
        scale = case.head_width**-0.5
        window = [case.window, case.window]
        params = parameters(out, qkv, factors[0], factors[1], gate, window, case.heads, [0, 0], scale, path)

        def call(params: Any = params, keep: object = (out, qkv, factors, gate)) -> None:
            library.call(params, torch.cuda.current_stream().cuda_stream)

        calls.append(call)
    return calls


def cudnn_calls(case: Case, bf16: bool, width_v: int) -> list[Callable[[], object]]:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    dtype = torch.bfloat16 if bf16 else torch.float16
    tokens, joint = case.window**2, case.head_width + case.rank
    calls: list[Callable[[], object]] = []
    for _ in range(sets(case.windows * case.heads * tokens * (2 * joint + 2 * width_v) * 2)):
        shape = (case.windows, case.heads, tokens)
        q, k, v = (torch.randn(*shape, n, device="cuda").to(dtype) for n in (joint, joint, width_v))

        def call(q: torch.Tensor = q, k: torch.Tensor = k, v: torch.Tensor = v) -> None:
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                scaled_dot_product_attention(q, k, v, scale=case.head_width**-0.5)

        calls.append(call)
    return calls


def padded_map(case: MapCase, dtype: torch.dtype, times: int = 1) -> torch.Tensor:
    """A random channels-last map, the distance between pixels a multiple of 8 channels, as TensorRT has it.

    times: how many times as many channels it has.
    """
    import torch

    channels = times * case.channels
    pixel = -(-channels // 8) * 8
    values = torch.randn(1, case.height, case.width, pixel, device="cuda").to(dtype)
    return values[..., :channels].permute(0, 3, 1, 2)


def time_fused(case: MapCase, bf16: bool, repeats: int, *, ours: bool) -> float:
    """Milliseconds of one of the kernels of several layers, or of our others around PyTorch's 1x1 convolutions."""
    import torch
    from torch.nn.functional import conv2d

    from plugins import pytorch as operators

    dtype = torch.bfloat16 if bf16 else torch.float16
    c, forward = case.channels, case.operator == "feed_forward"
    first, inner, last = (case.hidden, case.hidden, c) if forward else (3 * c, c, c)
    shapes = ((c,), (c,), (first, c, 1, 1), (first,), (inner, 1, 3, 3), (inner,), (last, inner, 1, 1), (last,))
    weights = [(torch.randn(shape, device="cuda") / 4).to(dtype) for shape in shapes]

    def apart(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        n = operators.channel_layer_norm(x, *weights[:2], 1e-6)
        y = conv2d(n, weights[2], weights[3])
        d = operators.depthwise_conv3x3(y if forward else n, weights[4], weights[5], forward, forward)
        z = conv2d(d, weights[6], weights[7])
        return (x + z,) if forward else (y, z)

    calls: list[Callable[[], object]] = []
    keep = []
    for _ in range(sets(case.bytes)):
        x, *out = (padded_map(case, dtype, times) for times in ((1, 1) if forward else (1, 3, 1)))
        if not ours:
            calls.append(lambda x=x: apart(x))
            continue
        if forward:
            workspace = operators.feed_forward_workspace(x, weights)
            params = operators.feed_forward_parameters(out[0], x, weights, 1e-6, workspace)
        else:
            workspace = operators.attention_inputs_workspace(x)
            params = operators.attention_inputs_parameters(out[0], out[1], x, weights, 1e-6, workspace)
        keep.append((x, out, workspace))
        calls.append(lambda params=params: library.call(params, torch.cuda.current_stream().cuda_stream))
    return measure(calls, repeats)


def time_map(case: MapCase, bf16: bool, repeats: int, *, ours: bool) -> float:
    """Milliseconds of our kernel, or of PyTorch's operators."""
    import torch

    from plugins import pytorch as operators

    if case.operator in FUSED:
        return time_fused(case, bf16, repeats, ours=ours)
    dtype = torch.bfloat16 if bf16 else torch.float16
    bias = torch.randn(case.channels, device="cuda").to(dtype)
    norm = case.operator == "layer_norm"
    weight = torch.randn(bias.shape if norm else (case.channels, 1, 3, 3), device="cuda").to(dtype)
    calls, keep = [], []
    for _ in range(sets(case.bytes)):
        x = padded_map(case, dtype)
        if not ours:
            if norm:
                calls.append(lambda x=x: operators.layer_norm_reference(x, weight, bias, 1e-5))
            else:
                calls.append(lambda x=x: operators.depthwise_reference(x, weight, bias, case.add_gelu, case.input_gelu))
            continue
        out = padded_map(case, dtype)
        if norm:
            params = operators.layer_norm_parameters(out, x, weight, bias, 1e-5)
        else:
            params = operators.depthwise_parameters(out, x, weight, bias, case.add_gelu, case.input_gelu)
        keep.append((x, out))
        calls.append(lambda params=params: library.call(params, torch.cuda.current_stream().cuda_stream))
    return measure(calls, repeats)


def sets(size: int) -> int:
    """How many input sets of `size` bytes make 400 MB, at most 8."""
    return min(8, max(1, math.ceil(4e8 / size)))


def attention_row(case: Case, bf16: bool, path: str, repeats: int, cudnn: bool) -> dict[str, Any]:
    """Measure and print one case. The ratio is the median over rounds, each with its own."""
    alternatives = [our_calls(case, bf16, path)]
    if cudnn:
        alternatives += [cudnn_calls(case, bf16, width) for width in (case.head_width, case.head_width + case.rank)]
    rounds, *others = in_turn(alternatives, repeats)
    ours = median(rounds)
    line = f"{case}: {ours:7.3f} ms {case.scores / ours / 1e9:5.2f}e12 scores/s"
    row = {**asdict(case), "ours_ms": ours}
    if cudnn:
        faster = min(others, key=median)
        row["cudnn_ms"] = theirs = median(faster)
        row["ratio"] = ratio = median(b / a for a, b in zip(rounds, faster, strict=True))
        line += f"   cuDNN {theirs:7.3f} ms {case.scores / theirs / 1e9:5.2f}   {ratio:5.2f}x"
    click.echo(line)
    return row


def map_row(case: MapCase, bf16: bool, repeats: int, torch_too: bool) -> dict[str, Any]:
    """Measure and print one case."""
    ours = time_map(case, bf16, repeats, ours=True)
    line = f"{case}: {ours:7.4f} ms {case.bytes / ours / 1e9:5.2f} TB/s   {ours / case.floor_ms:5.2f} floors"
    row = {**asdict(case), "ours_ms": ours, "floor_ms": case.floor_ms}
    if torch_too:
        row["torch_ms"] = theirs = time_map(case, bf16, repeats, ours=False)
        other = "apart" if case.operator in FUSED else "torch"
        line += f"   {other} {theirs:7.4f} ms   {theirs / ours:5.2f}x"
    click.echo(line)
    return row


OPERATORS = ("attention", "layer_norm", "depthwise", *FUSED)


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--only", type=click.Choice(OPERATORS), multiple=True, help="These operators (repeatable); else all.")
@click.option("--bf16", is_flag=True, help="bfloat16 instead of float16.")
@click.option("--path", type=click.Choice(["auto", "portable", "hopper"]), default="auto", help="Attention's kernel.")
@click.option("--ours", is_flag=True, help="Time ours alone.")
@click.option("--repeats", default=15, show_default=True, help="Graph replays per case.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the results there.")
def main(only: tuple[str, ...], bf16: bool, path: str, ours: bool, repeats: int, json_file: Path | None) -> None:
    import torch

    if not torch.cuda.is_available():
        raise click.ClickException("no CUDA device: the benchmark needs one")
    click.echo(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {'bf16' if bf16 else 'fp16'}, path {path}")
    wanted = only or OPERATORS
    results = []
    if "attention" in wanted:
        results += [attention_row(case, bf16, path, repeats, not ours) for case in CASES]
    hopper = "{}.{}".format(*torch.cuda.get_device_capability()) == library.HOPPER
    for case in MAP_CASES:
        if case.operator not in wanted:
            continue
        if case.fits(hopper):
            results.append(map_row(case, bf16, repeats, not ours))
        else:
            click.echo(f"{case}: on compute capability 9.0 alone")
    if json_file:
        json_file.write_text(json.dumps({"device": torch.cuda.get_device_name(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
