"""What kernel_benchmark and kernel_compare share: cases, their calls, and the timing of CUDA graphs in turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from plugins import operators
from plugins.library import LibraryError
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
    def windows(self) -> int:
        """Of an attention."""
        return -(-self.height // self.widths["window"]) * -(-self.width // self.widths["window"])

    @property
    def scores(self) -> int:
        """Of an attention."""
        return self.windows * self.widths["heads"] * self.widths["window"] ** 4

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


ATTENTION_LAYERS = (
    *_attention(6, 32, (96, 32), (64, 32), (48, 32), (48, 16), (32, 16), (16, 16)),
    *_attention(3, 16, (96, 24), (64, 24), (48, 16), (32, 24), (32, 16), (16, 24), (16, 16), (8, 16)),
)
_NORM = {"epsilon": 1e-6}
_GELUS = (
    ((96, 192, 384), {"add_gelu": False, "input_gelu": False}),
    ((72, 96, 192, 384), {"add_gelu": True, "input_gelu": False}),
    ((96, 384), {"add_gelu": True, "input_gelu": True}),
)
_HIDDEN = ((48, 72), (64, 80), (64, 96), (192, 384))
_CONVOLUTIONS = (
    *((48, 48, 3), (48, 48, 1), (192, 192, 3), (192, 192, 1)),
    *((8, 48, 3), (48, 12, 3), (192, 64, 3), (64, 256, 3), (64, 3, 3)),
)
MAP_LAYERS = (
    *(Layer(operators.CHANNEL_LAYER_NORM, {"channels": c}, _NORM) for c in (48, 64, 180, 192, 256)),
    *(Layer(operators.DEPTHWISE_CONV3X3, {"channels": c}, gelus) for channels, gelus in _GELUS for c in channels),
    *(Layer(operators.FEED_FORWARD, {"channels": c, "hidden": hidden}, _NORM) for c, hidden in _HIDDEN),
    *(Layer(operators.ATTENTION_INPUTS, {"channels": c}, _NORM) for c in (48, 64, 192)),
    *(
        Layer(operators.CONVOLUTION, {"channels": c, "outputs": outputs, "kernel": kernel}, {"negative_slope": 0.1})
        for c, outputs, kernel in _CONVOLUTIONS
    ),
)
"""Operators whose time is that of reading and writing their maps, and wide convolutions, whose time is not."""


def require_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise LibraryError("no CUDA device: the kernels need one")


def dtype_of(bf16: bool) -> torch.dtype:
    import torch

    return torch.bfloat16 if bf16 else torch.float16


def in_turn(alternatives: Sequence[Calls], repeats: int) -> list[list[float]]:
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


def measure(calls: Calls, repeats: int) -> float:
    """Milliseconds per call: the median over graph replays of all `calls`, divided by their number."""
    return median(in_turn([calls], repeats)[0])


def attention_calls(layer: Layer, bf16: bool, path: str, **inputs: Any) -> Calls:
    """Our kernel; inputs: more fields of `plugins.testing.AttentionCase`."""
    from plugins.testing import AttentionCase

    window, d, r, heads = (layer.widths[name] for name in ("window", "head_width", "rank", "heads"))
    shape = {"window": (window, window), "d": d, "r": r, "heads": heads, "size": (layer.height, layer.width)}
    case = AttentionCase(**shape, dtype=dtype_of(bf16), path=path, **inputs)
    return [case.prepare() for _ in range(_sets(layer.bytes))]


def cudnn_calls(layer: Layer, bf16: bool) -> list[Calls]:
    """cuDNN's attention, with V of its own width and padded to that of Q and K."""
    d = layer.widths["head_width"]
    return [_cudnn_calls(layer, bf16, width) for width in (d, d + layer.widths["rank"])]


def _cudnn_calls(layer: Layer, bf16: bool, width_v: int) -> Calls:
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
        inputs = (torch.randn(*shape, n, device="cuda").to(dtype_of(bf16)) for n in (joint, joint, width_v))
        calls.append(partial(call, *inputs))
    return calls


def map_calls(layer: Layer, bf16: bool, *, ours: bool) -> Calls:
    """Our kernel, on maps with pixels a multiple of 8 channels apart, as TensorRT has them; or PyTorch's operators.

    Beside a kernel of several layers PyTorch runs its 1x1 convolutions alone, and our kernels what lies between.
    """
    import torch

    from plugins.pytorch import Call
    from plugins.testing import poisoned, random_map, random_weights

    operator, dtype = layer.operator, dtype_of(bf16)
    weights = random_weights(operator, dtype, "cuda", **layer.sizes)
    own = torch.ops.ribsr
    parts = {"norm": own.channel_layer_norm, "depthwise": own.depthwise_conv3x3} if operator.weights else {}
    calls = []
    for _ in range(_sets(layer.bytes)):
        arrays = iter(weights)
        inputs = [
            random_map(*layer.map_sizes(shape), dtype) if operators.is_map(shape) else next(arrays)
            for shape in operator.tensors.values()
        ]
        if ours:
            outputs = [poisoned(*layer.map_sizes(shape), dtype, "padded") for shape in operator.outputs.values()]
            calls.append(Call(operator, inputs, outputs, **layer.attributes))
        else:
            calls.append(partial(operator.reference, *inputs, **layer.attributes, **parts))
    return calls


def _sets(size: int) -> int:
    """How many input sets of `size` bytes make 400 MB, at most 8."""
    return min(8, max(1, math.ceil(4e8 / size)))
