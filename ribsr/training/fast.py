"""The form of a model that trains fast: channels-last maps, regions that torch.compile fuses, steps that are replayed.

The parameters are those of the plain model, under the same names, so that checkpoints and exports do not know of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch._functorch.config as functorch
import torch.nn.functional as F
from torch import Tensor, nn

from ribsr import attention, escrib, sst
from ribsr.layers import RIBModel
from ribsr.training.depthwise import depthwise

MEMORY_BUDGET = 0.9
"""AOTAutograd's budget for what the backward pass needs. Below 1 it computes elementwise results again instead of
keeping them: sst-l+ (8 crops of 96, H100) takes 20.8 GiB instead of 31.2, and 3 % more time."""


class Pointwise(nn.Module):
    """A 1x1 convolution as a matrix product with its bias fused, which it is on a channels-last map."""

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        assert convolution.bias is not None
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class Depthwise(nn.Module):
    """A depthwise 3x3 convolution by `ribsr.training.depthwise`, in the type of autocast where that is on."""

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        assert convolution.bias is not None
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return depthwise(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


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
            elif isinstance(child, nn.Conv2d) and child.groups == child.in_channels > 1:
                setattr(parent, name, Depthwise(child))
    if compiled:
        functorch.activation_memory_budget = MEMORY_BUDGET  # read when the first step compiles
        for module in model.modules():
            if isinstance(module, (sst.Layer, escrib.Block)):
                module.compile(dynamic=False)
    return model


class Replayed:
    """A function of tensors as a CUDA graph: a step of small kernels is then bound by the GPU, not by launching them.

    The first calls run as usual, in a stream of their own, so that kernels are compiled and chosen; the next one is
    recorded. `work` returns nothing, gets tensors of the same shapes in every call, and changes tensors in place.
    """

    FIRST = 3

    def __init__(self, work: Callable[..., None]):
        self._work = work
        self._calls = 0
        self._stream = torch.cuda.Stream()
        self._inputs: tuple[Tensor, ...] = ()
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> None:
        if self._graph is None and self._calls < self.FIRST:
            self._calls += 1
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._work(*inputs)
            torch.cuda.current_stream().wait_stream(self._stream)
            return
        if self._graph is None:
            self._graph = self._record(inputs)
        for place, given in zip(self._inputs, inputs, strict=True):
            place.copy_(given)
        self._graph.replay()

    def _record(self, inputs: tuple[Tensor, ...]) -> torch.cuda.CUDAGraph:
        """The graph, not run yet, over copies of these inputs."""
        self._inputs = tuple(given.clone() for given in inputs)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # what the first calls took: the graph has memory of its own
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on calling CUDA: one cuts the next batch where pictures stay in host memory.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._work(*self._inputs)
        return graph
