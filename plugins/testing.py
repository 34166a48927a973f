"""Inputs for the kernels, and what they should make of them in float64: for tests and tools. Needs PyTorch."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plugins import library, operators
from plugins.operators import CYCLIC_WINDOW_ATTENTION, Operator
from plugins.pytorch import Call

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
"""Of the relative error of the attention, the layer norm and the depthwise convolution."""


def poisoned(b: int, c: int, h: int, w: int, dtype: torch.dtype, layout: str) -> Tensor:
    """A [b, c, h, w] view of NaN-filled GPU memory.

    layout: nchw; packed: channels-last; padded: the same, with pixels a multiple of 8 channels apart.
    """
    if layout == "nchw":
        return torch.full((b, c, h, w), torch.nan, dtype=dtype, device="cuda")
    pixel = c if layout == "packed" else -(-c // 8) * 8
    return torch.full((b, h, w, pixel), torch.nan, dtype=dtype, device="cuda")[..., :c].permute(0, 3, 1, 2)


def random_map(b: int, c: int, h: int, w: int, dtype: torch.dtype, layout: str = "padded") -> Tensor:
    """The same, filled with normal values."""
    return poisoned(b, c, h, w, dtype, layout).copy_(torch.randn(b, c, h, w, device="cuda"))


def random_weights(operator: Operator, dtype: torch.dtype, device: str = "cuda", **widths: int) -> list[Tensor]:
    """An operator's arrays, such that no part of a sum is lost in another. widths: the integers in their shapes."""
    weights = []
    for name, shape in operator.tensors.items():
        if operators.is_map(shape):
            continue
        values = torch.randn(operators.sizes(shape, widths), device=device)
        if name.endswith("weight"):  # of a norm, or of a convolution
            values = 1 + 0.3 * values if values.ndim == 1 else values / math.prod(values.shape[1:]) ** 0.5
        weights.append(values.to(dtype))
    return weights


def on_cpu(
    operator: Operator,
    *inputs: Tensor | None,
    isa: str = "auto",
    bfloat16_products: bool = False,
    threads: int = 1,
    **attributes: Any,
) -> tuple[Tensor, ...]:
    """An operator's results by the library for CPUs, into maps full of NaN. inputs: float32; maps become channels-last.

    threads: how many run tasks at a time, in an order of their own.
    """
    inputs = tuple(
        x.contiguous(memory_format=torch.channels_last) if x is not None and operators.is_map(shape) else x
        for x, shape in zip(inputs, operator.tensors.values(), strict=True)
    )
    with ThreadPoolExecutor(threads) as pool:

        def run(_: int, task: Any, count: int, data: int) -> None:
            list(pool.map(lambda index: task(data, index), reversed(range(count))))

        parallel = library.Parallel(run) if threads > 1 else None
        executor = library.Executor.of(isa, bfloat16_products, threads, parallel)
        call = Call(operator, inputs, executor=executor, **attributes)
        for out in call.outputs:
            out.fill_(math.nan)
        call()
    return call.outputs


def exact(operator: Operator, *inputs: Tensor | None, **attributes: Any) -> Any:
    """The reference's output, or tuple of them, in float64; None for optional inputs."""
    return operator.reference(*(None if x is None else x.double() for x in inputs), **attributes)


def relative_error(out: Tensor, expected: Tensor) -> float:
    """The norm of the error over the norm of what is expected."""
    return ((out.double() - expected).norm() / expected.norm()).item()


def quadratic_bias(window: tuple[int, int], depth: float, mirrored: bool) -> tuple[Tensor, Tensor]:
    """Factors [N, 4] of a bias that falls with the squared distance, by `depth` from corner to corner.

    Mirrored: the distance from the query's mirror image in the window's centre.
    """
    y, x = (torch.linspace(-1, 1, size) for size in window)
    place = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2)
    a, ones = depth / 8, torch.ones(len(place), 1)
    square = place.square().sum(1, keepdim=True)
    factors_q = torch.cat([-a * square, ones, 2 * a * (-place if mirrored else place)], 1)
    return factors_q, torch.cat([ones, -a * square, place], 1)


@dataclass(frozen=True)
class AttentionCase:
    """An attention on random inputs: head width d, rank r, a map of `size` (height, width).

    layout: `poisoned`'s. path: one of library.PATHS. factor: q and rib_q are multiplied by it. depth: if not 0, every
    `every`th head's first four RIB factors are those of `quadratic_bias`, `mirrored` or not.
    """

    window: tuple[int, int]
    d: int
    r: int
    size: tuple[int, int]
    dtype: torch.dtype
    heads: int = 2
    batch: int = 1
    shift: tuple[int, int] = (0, 0)
    layout: str = "padded"
    path: str = "auto"
    factor: float = 1.0
    gate_sigmoid: bool = False
    depth: float = 0.0
    mirrored: bool = False
    every: int = 2

    def _attributes(self) -> dict[str, Any]:
        geometry = {"window": self.window, "heads": self.heads, "shift": self.shift, "scale": self.d**-0.5}
        return {**geometry, "gate_sigmoid": self.gate_sigmoid}

    def prepare(self) -> Call:
        """The call on fresh inputs, into an output full of NaN."""
        c, tokens = self.heads * self.d, self.window[0] * self.window[1]
        qkv, gate, out = (
            poisoned(self.batch, channels, *self.size, self.dtype, self.layout) for channels in (3 * c, c, c)
        )
        values = torch.randn(qkv.shape, device="cuda")
        values[:, :c] *= self.factor
        qkv.copy_(values)
        random = torch.randn if self.gate_sigmoid else torch.rand
        gate.copy_(random(gate.shape, device="cuda") * (4 if self.gate_sigmoid else 1))
        rib_q = torch.randn(self.heads, tokens, self.r, device="cuda") * self.factor
        rib_k = torch.randn(self.heads, tokens, self.r, device="cuda")
        if self.depth:
            biases = quadratic_bias(self.window, self.depth * self.d**0.5, self.mirrored)
            for factors, bias in zip((rib_q, rib_k), biases, strict=True):
                factors[:: self.every, :, :4] = bias.cuda()
        inputs = (qkv, rib_q.to(self.dtype), rib_k.to(self.dtype), gate)
        path = library.PATHS[self.path]
        return Call(CYCLIC_WINDOW_ATTENTION, inputs, [out], path=path, **self._attributes())

    def failure(self) -> str:
        """Runs it; what is wrong with the result, or an empty text."""
        call = self.prepare()
        call()
        torch.cuda.synchronize()
        (out,) = call.outputs
        error = relative_error(out, exact(CYCLIC_WINDOW_ATTENTION, *call.inputs.values(), **self._attributes()))
        if not error <= TOLERANCE[self.dtype]:  # NaN fails too
            return f"relative error {error:.2e}"
        b, c, h, w = out.shape
        if self.layout == "padded" and c % 8:  # what lies between the pixels is not ours
            between = out.as_strided((b, h, w, -c % 8), out.permute(0, 2, 3, 1).stride(), c)
            if not between.isnan().all():
                return "what lies between the pixels was written"
        return ""
