#!/usr/bin/env python3
"""How fast are the kernels, beside what PyTorch runs?

Attention: ours is the whole operator, from the channels-last qkv map to the gated output map. cuDNN's is
scaled_dot_product_attention alone, on ready-made contiguous [windows, heads, N, D + R] inputs, with V of width D or
padded to D + R, the faster of both.

Layer norm and depthwise convolution: channels-last maps whose pixels are padded to 8 channels, beside PyTorch's eager
operators on the same memory. The feed-forward half of a layer, and what comes before its attention: beside those two
kernels and PyTorch's 1x1 convolutions. Dense convolutions: with residual, beside PyTorch's three operators. Their floor
is reading and writing the maps once at 3.0 TB/s, about what an H100 reaches.

Each is captured in a CUDA graph over several input sets, larger together than the caches; medians of replays.
Attention's and cuDNN's graphs are replayed in turn, and the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from plugins import library
from plugins.operators import OPERATORS
from ribsr.base.command import Command
from tools._common import json_option, write_json
from tools._kernels import (
    ATTENTION_LAYERS,
    MAP_LAYERS,
    Layer,
    attention_calls,
    cudnn_calls,
    in_turn,
    map_calls,
    measure,
    require_gpu,
)

Result = tuple[str, dict[str, Any]]
"""A case's line, and its figures for the JSON file."""


def attention_row(layer: Layer, bf16: bool, path: str, repeats: int, cudnn: bool) -> Result:
    """Measure one case. The ratio is the median over rounds, each with its own."""
    alternatives = [attention_calls(layer, bf16, path), *(cudnn_calls(layer, bf16) if cudnn else ())]
    rounds, *others = in_turn(alternatives, repeats)
    ours = median(rounds)
    line = f"{layer}: {ours:7.3f} ms {layer.scores / ours / 1e9:5.2f}e12 scores/s"
    row = {"operator": layer.operator.short, **layer.sizes, "ours_ms": ours}
    if cudnn:
        faster = min(others, key=median)
        row["cudnn_ms"] = theirs = median(faster)
        row["ratio"] = ratio = median(b / a for a, b in zip(rounds, faster, strict=True))
        line += f"   cuDNN {theirs:7.3f} ms {layer.scores / theirs / 1e9:5.2f}   {ratio:5.2f}x"
    return line, row


def map_row(layer: Layer, bf16: bool, repeats: int, torch_too: bool) -> Result:
    """Measure one case."""
    ours = measure(map_calls(layer, bf16, ours=True), repeats)
    line = f"{layer}: {ours:7.4f} ms {layer.bytes / ours / 1e9:5.2f} TB/s   {ours / layer.floor_ms:5.2f} floors"
    row = {"operator": layer.operator.short, **layer.sizes, **layer.attributes, "ours_ms": ours}
    row["floor_ms"] = layer.floor_ms
    if torch_too:
        row["torch_ms"] = theirs = measure(map_calls(layer, bf16, ours=False), repeats)
        other = "apart" if layer.operator.weights else "torch"
        line += f"   {other} {theirs:7.4f} ms   {theirs / ours:5.2f}x"
    return line, row


SHORT = [operator.short for operator in OPERATORS]


@click.command(cls=Command, help=(__doc__ or "").split("\n")[0])
@click.option("--only", type=click.Choice(SHORT), multiple=True, help="These operators (repeatable); else all.")
@click.option("--bf16", is_flag=True, help="bfloat16 instead of float16.")
@click.option("--path", type=click.Choice(list(library.PATHS)), default="auto", help="Attention's kernel.")
@click.option("--ours", is_flag=True, help="Time ours alone.")
@click.option("--repeats", default=15, show_default=True, help="Graph replays per case.")
@json_option
def main(only: tuple[str, ...], bf16: bool, path: str, ours: bool, repeats: int, json_target: str | None) -> None:
    require_gpu()
    import torch

    def show(line: str) -> None:
        click.echo(line, err=json_target == "-")

    device, capability = torch.cuda.get_device_name(), "{}.{}".format(*torch.cuda.get_device_capability())
    show(f"{device}, torch {torch.__version__}, {'bf16' if bf16 else 'fp16'}, path {path}")
    results = []
    for layer in (*ATTENTION_LAYERS, *MAP_LAYERS):
        if layer.operator.short not in (only or SHORT):
            continue
        if not layer.fits(capability):
            show(f"{layer}: not on compute capability {capability}")
            continue
        if layer in ATTENTION_LAYERS:
            line, row = attention_row(layer, bf16, path, repeats, not ours)
        else:
            line, row = map_row(layer, bf16, repeats, not ours)
        show(line)
        results.append(row)
    if json_target:
        write_json(json_target, {"tool": "kernel_benchmark", "device": device, "results": results})


if __name__ == "__main__":
    main(prog_name="tools/kernel_benchmark.py")
