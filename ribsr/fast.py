"""The form of a model that trains fast: channels-last maps, and regions that torch.compile fuses.

The parameters are those of the plain model, under the same names, so that checkpoints and exports do not know of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ribsr import attention, escrib, sst
from ribsr.layers import RIBModel


class Pointwise(nn.Module):
    """A 1x1 convolution as a matrix product with its bias fused, which it is on a channels-last map."""

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        assert convolution.bias is not None
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class Depthwise(nn.Module):
    """A depthwise 3x3 convolution as nine shifted products, which a compiler fuses with what stands around them.

    In float32, rounded to x's type at the end.
    """

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        assert convolution.bias is not None
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).float()
        out = self.bias
        for i in range(3):
            for j in range(3):
                out = out + padded[:, i : i + h, j : j + w] * self.weight[:, 0, i, j]
        return out.to(x.dtype).permute(0, 3, 1, 2)


def place(model: RIBModel, device: torch.device) -> None:
    """Moves the model to `device`, channels-last."""
    model.to(device)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for parameter in model.parameters():  # with the strides of a matrix, which the gradients of `Pointwise` have
        if parameter.dim() == 4 and parameter.shape[2:] == (1, 1):
            parameter.data = parameter.data.flatten(1)[..., None, None]


def prepare(model: RIBModel, device: torch.device, half: bool, compiled: bool) -> RIBModel:
    """`model` on `device` in the form for training; half: it will run under autocast to bfloat16.

    The model is changed in place. Compiled are its layers one by one: those of equal geometry share their code.
    """
    place(model, device)
    attention.set_attention(model, "cudnn" if half and device.type == "cuda" else "sdpa")
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and child.kernel_size == (1, 1):
                setattr(parent, name, Pointwise(child))
            elif compiled and isinstance(child, nn.Conv2d) and child.groups == child.in_channels > 1:
                setattr(parent, name, Depthwise(child))
    if compiled:
        for module in model.modules():
            if isinstance(module, (sst.Layer, escrib.Block)):
                module.compile(dynamic=False)
    return model
