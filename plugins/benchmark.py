"""Time the fused operator beside cuDNN's bare attention: python -m plugins.benchmark

Ours is the whole operator, from the channels-last qkv map to the gated output map. cuDNN's is
scaled_dot_product_attention alone, on ready-made contiguous [windows, heads, N, D + R] inputs, with V of width D or
padded to D + R, the faster of both. Each is captured in a CUDA graph over several input sets, larger together than the
caches; medians of replays.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click


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


def measure(calls: list[Callable[[], object]], repeats: int) -> float:
    """Milliseconds per call: the median over graph replays of all `calls`, divided by their number."""
    import torch

    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    for _ in range(2):
        graph.replay()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, end in events:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return sorted(start.elapsed_time(end) for start, end in events)[repeats // 2] / len(calls)


def time_ours(case: Case, bf16: bool, path: str, repeats: int) -> float:
    import torch

    from plugins import library
    from plugins.torch import parameters

    dtype = torch.bfloat16 if bf16 else torch.float16
    channels, tokens = case.heads * case.head_width, case.window**2
    calls, keep = [], []
    for _ in range(sets(5 * channels * case.height * case.width * 2)):
        shape = (1, 3 * channels, case.height, case.width)
        qkv = torch.randn(shape, device="cuda").to(dtype, memory_format=torch.channels_last)
        gate = torch.rand(1, channels, case.height, case.width, device="cuda").to(
            dtype, memory_format=torch.channels_last
        )
        factors = [torch.randn(case.heads, tokens, case.rank, device="cuda").to(dtype) for _ in range(2)]
        out = torch.empty_like(gate)
        scale = case.head_width**-0.5
        window = [case.window, case.window]
        params = parameters(out, qkv, factors[0], factors[1], gate, window, case.heads, [0, 0], scale, path)
        keep.append((qkv, gate, factors, out))
        calls.append(lambda params=params: library.call(params, torch.cuda.current_stream().cuda_stream))
    return measure(calls, repeats)


def time_cudnn(case: Case, bf16: bool, repeats: int) -> float:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    dtype = torch.bfloat16 if bf16 else torch.float16
    tokens, joint = case.window**2, case.head_width + case.rank
    times = []
    for width_v in {case.head_width, joint}:
        calls = []
        for _ in range(sets(case.windows * case.heads * tokens * (2 * joint + 2 * width_v) * 2)):
            shape = (case.windows, case.heads, tokens)
            q, k, v = (torch.randn(*shape, n, device="cuda").to(dtype) for n in (joint, joint, width_v))
            calls.append(lambda q=q, k=k, v=v: scaled_dot_product_attention(q, k, v, scale=case.head_width**-0.5))
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            times.append(measure(calls, repeats))
    return min(times)


def sets(size: int) -> int:
    """How many input sets of `size` bytes make 400 MB, at most 8."""
    return min(8, max(1, math.ceil(4e8 / size)))


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--bf16", is_flag=True, help="bfloat16 instead of float16.")
@click.option("--path", type=click.Choice(["auto", "portable", "hopper"]), default="auto", help="Which kernel.")
@click.option("--no-cudnn", is_flag=True, help="Time ours only.")
@click.option("--repeats", default=15, show_default=True, help="Graph replays per case.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the results there.")
def main(bf16: bool, path: str, no_cudnn: bool, repeats: int, json_file: Path | None) -> None:
    import torch

    if not torch.cuda.is_available():
        raise click.ClickException("no CUDA device: the benchmark needs one")
    click.echo(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {'bf16' if bf16 else 'fp16'}, path {path}")
    results = []
    for case in CASES:
        ours = time_ours(case, bf16, path, repeats)
        line = f"{case}: {ours:7.3f} ms {case.scores / ours / 1e9:5.2f}e12 scores/s"
        row = {**asdict(case), "ours_ms": ours}
        if not no_cudnn:
            row["cudnn_ms"] = cudnn = time_cudnn(case, bf16, repeats)
            line += f"   cuDNN {cudnn:7.3f} ms {case.scores / cudnn / 1e9:5.2f}   {cudnn / ours:5.2f}x"
        results.append(row)
        click.echo(line)
    if json_file:
        json_file.write_text(json.dumps({"device": torch.cuda.get_device_name(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
