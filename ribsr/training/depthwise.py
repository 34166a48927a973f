"""Depthwise 3x3 convolution for training: on a GPU, Triton kernels that read and write every map once.

`depthwise(x, weight, bias)` is a PyTorch operator with a gradient, which torch.compile leaves whole. The backward pass
is one kernel: the nine shifted gradients that the input's gradient adds up are those that the weight's gradient needs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 16
"""Rows of a map that one program walks down."""

TILE = 1024
"""Pixels times channels that a program holds of each row."""


@torch.library.custom_op("ribsr::depthwise_for_training", mutates_args=())
def depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolution padded with one zero on every side, accumulated in float32.

    x [B, H, W, C] of any floating-point type; weight [C, 1, 3, 3] and bias [C] float32. Returns x's shape and type.
    """
    if not x.is_cuda:
        y = F.conv2d(x.float().permute(0, 3, 1, 2), weight, bias, padding=1, groups=len(bias))
        return y.permute(0, 2, 3, 1).to(x.dtype).contiguous()
    kernels = _kernels()
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    grid, sizes = _launch(x)
    kernels.forward[grid](x.contiguous(), weight.contiguous(), bias, out, **sizes)
    return out


@torch.library.custom_op("ribsr::depthwise_for_training_backward", mutates_args=())
def depthwise_backward(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `depthwise`'s arguments, given its output's: of x's type, float32 and float32."""
    if not x.is_cuda:
        g, inputs = (t.float().permute(0, 3, 1, 2) for t in (gradient, x))
        dx, dw, db = torch.ops.aten.convolution_backward(
            g, inputs, weight, [len(weight)], [1, 1], [1, 1], [1, 1], False, [0, 0], len(weight), [True, True, True]
        )
        return dx.permute(0, 2, 3, 1).to(x.dtype).contiguous(), dw.contiguous(), db
    kernels = _kernels()
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    grid, sizes = _launch(x)
    sums = x.new_empty((grid[0] * grid[1], 10, x.shape[3]), dtype=torch.float32)
    kernels.backward[grid](gradient.contiguous(), x.contiguous(), weight.contiguous(), dx, sums, **sizes)
    total = sums.sum(0)
    return dx, total[:9].t().reshape(weight.shape).contiguous(), total[9].clone()


@depthwise.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@depthwise_backward.register_fake
def _(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        torch.empty_like(weight, memory_format=torch.contiguous_format),
        weight.new_empty(len(weight)),
    )


depthwise.register_autograd(
    lambda ctx, gradient: depthwise_backward(gradient, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[:2]),
)


def _launch(x: Tensor) -> tuple[tuple[int, int, int], dict[str, int]]:
    """The grid, and what the kernels are compiled for: sizes are constants, so that loads are known to be aligned."""
    b, h, w, c = x.shape
    channels = 64 if c >= 128 else 16
    pixels = TILE // channels
    grid = (b * -(-h // ROWS), -(-w // pixels), -(-c // channels))
    return grid, {"H": h, "W": w, "C": c, "ROWS": ROWS, "PIXELS": pixels, "CHANNELS": channels}


def _kernels() -> Any:
    """The module of Triton kernels, loaded on a GPU only: elsewhere PyTorch comes without Triton."""
    from ribsr.training import depthwise_kernels

    return depthwise_kernels
