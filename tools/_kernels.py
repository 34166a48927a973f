"""What kernel_benchmark times: layers, and the calls that compute them with our kernels and with PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from plugins import operators
from plugins.operators import Operator

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
        return self.windows * self.widths["heads"] * self.widths["window"] ** 4

    def speed(self, ms: float) -> str:
        """What a time means: scores a second of an attention, else bytes a second, and the time in floors."""
        if self.is_attention:
            return f"{self.scores / ms / 1e9:5.2f}e12 scores/s"
        return f"{self.bytes / ms / 1e9:5.2f} TB/s {ms / self.floor_ms:5.2f} floors"

    def fits(self, capability: str) -> bool:
        """Whether the kernel takes these widths on this compute capability."""
        limited = (self.widths[name] for name in self.operator.widths.names)
        return self.operator.fits(*limited, capability=capability)

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
_HIDDEN = ((48, 72), (64, 80), (64, 96), (192, 384))
LAYERS = (
    *_attention(6, 32, (96, 32), (64, 32), (48, 32), (48, 16), (32, 16), (16, 16)),
    *_attention(3, 16, (96, 24), (64, 24), (48, 16), (32, 24), (32, 16), (16, 24), (16, 16), (8, 16)),
    *(Layer(operators.CHANNEL_LAYER_NORM, {"channels": c}, _NORM) for c in (48, 64, 180, 192, 256)),
    *(Layer(operators.DEPTHWISE_CONV3X3, {"channels": c}, gelus) for channels, gelus in _GELUS for c in channels),
    *(Layer(operators.FEED_FORWARD, {"channels": c, "hidden": hidden}, _NORM) for c, hidden in _HIDDEN),
    *(Layer(operators.ATTENTION_INPUTS, {"channels": c}, _NORM) for c in (48, 64, 192)),
)


def our_calls(layer: Layer, dtype: torch.dtype, path: str, **inputs: Any) -> Calls:
    """Our kernel, on maps with pixels a multiple of 8 channels apart, as TensorRT has them.

    path, inputs: of an attention, more fields of `plugins.testing.AttentionCase`.
    """
    from plugins.pytorch import Call
    from plugins.testing import AttentionCase, poisoned

    if layer.is_attention:
        window, d, r, heads = (layer.widths[name] for name in ("window", "head_width", "rank", "heads"))
        shape = {"window": (window, window), "d": d, "r": r, "heads": heads, "size": (layer.height, layer.width)}
        case = AttentionCase(**shape, dtype=dtype, path=path, **inputs)
        return [case.prepare() for _ in range(_sets(layer.bytes))]
    calls = []
    for tensors in _map_inputs(layer, dtype):
        shapes = [operators.sizes(shape, layer.sizes) for shape in layer.operator.outputs.values()]
        outputs = [poisoned(b, c, h, w, dtype, "padded") for b, c, h, w in shapes]
        calls.append(Call(layer.operator, tensors, outputs, **layer.attributes))
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
    b, c, h, w = operators.sizes(operators.MAP, layer.sizes)
    return [[random_map(b, c, h, w, dtype), *weights] for _ in range(_sets(layer.bytes))]


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
