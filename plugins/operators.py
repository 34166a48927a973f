"""The table of operators: one row an operator, from which everything in Python derives.

A row gives the C structure and function (`plugins.library`), the PyTorch operator (`plugins.pytorch`), the names of the
ONNX nodes and TensorRT plugins (`plugins.fuse`), and which widths are taken where. tests/plugins/test_operators.py
holds the rows against include/ribsr_kernels.h and src/runtimes. A new operator is a row here, a structure in the
header, a folder of kernels and a test. Needs neither torch nor numpy; the references import torch when called.
"""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from torch import Tensor

DOMAIN = "ribsr"
"""Of the ONNX nodes, the PyTorch operators and the TensorRT plugins."""

CPU_BFLOAT16_DOMAIN = "ribsr.bf16"
"""Of ONNX nodes for a CPU whose matrix products are of factors in bfloat16."""

TENSORRT = {"plugin_version": "1", "plugin_namespace": DOMAIN}
"""Attributes of the nodes that lead TensorRT's parser to the plugin: below 10.10 it ignores a node's domain."""

MAP = "batch channels height width"
"""The shape of most maps."""


class Map(ctypes.Structure):
    """A [batch, channel, height, width] map: device pointer, strides in elements."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batch_stride", ctypes.c_int64),
        ("channel_stride", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("column_stride", ctypes.c_int64),
    )


class Params(ctypes.Structure):
    """What a C function takes. Each operator has its own subclass, `Operator.params`.

    Its fields: struct_size, which `library.call` fills in, dtype, the operator's integers, floats, maps and pointers.
    """

    operator: ClassVar[Operator]
    struct_size: int


@dataclass(frozen=True)
class Attribute:
    """An attribute of the ONNX node, and an argument of the PyTorch operator.

    fields: those of the structure that it fills; none given: the one of its own name. default: None if it has none.
    """

    name: str
    kind: Literal["int", "ints", "bool", "float"]
    fields: tuple[str, ...] = ()
    default: bool | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        return self.fields or (self.name,)


@dataclass(frozen=True)
class Widths:
    """Which widths an operator takes on GPUs; without names any. (On CPUs it takes all.)

    names: the structure's integers that limits are about. most: of each. multiple: what each must be a multiple of;
    without, 1. wide: those beyond these limits. tuned: of each, those that the kernel is made for; without, all.
    """

    names: tuple[str, ...] = ()
    most: tuple[int, ...] = ()
    multiple: tuple[int, ...] = ()
    wide: tuple[tuple[int, ...], ...] = ()
    tuned: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, eq=False)
class Operator:
    """A row of the table.

    name: of the ONNX node and the TensorRT plugin. function: of the C interface. integers: the structure's, in order.
    inputs, weights, outputs: name → shape, a dimension a product of numbers and of `integers`. PyTorch takes inputs one
    by one and weights as one list. Those that begin with `batch` are maps, the others contiguous arrays; the structure
    has first the maps, then the arrays, in this order, and last the workspace if there is one. attributes: in the order
    of PyTorch's arguments. optional: inputs that may be None, which the structure has as null. options: integers that
    are 0 unless a caller of the C interface wants otherwise. reference: (*inputs, *weights, **attributes) → the output,
    or a tuple of them, in PyTorch. plugin: whether TensorRT has it.
    """

    name: str
    function: str
    integers: tuple[str, ...]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    attributes: tuple[Attribute, ...]
    reference: Callable[..., Any]
    weights: Mapping[str, str] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    widths: Widths = Widths()
    has_workspace: bool = False
    plugin: bool = True

    @property
    def short(self) -> str:
        """Its name in folders and options: feed_forward."""
        return self.function.removeprefix("ribsr_")

    @property
    def struct(self) -> str:
        """The C structure's name: RibsrFeedForwardParams."""
        return f"Ribsr{self.short.title().replace('_', '')}Params"

    @property
    def torch_name(self) -> str:
        """The PyTorch operator's name in the namespace `ribsr`: feed_forward."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", self.name).lower()

    @cached_property
    def tensors(self) -> dict[str, str]:
        """Inputs, then weights: name → shape."""
        return {**self.inputs, **self.weights}

    @cached_property
    def floats(self) -> tuple[str, ...]:
        return tuple(attribute.name for attribute in self.attributes if attribute.kind == "float")

    @cached_property
    def maps(self) -> tuple[str, ...]:
        return tuple(name for name, shape in {**self.tensors, **self.outputs}.items() if is_map(shape))

    @cached_property
    def pointers(self) -> tuple[str, ...]:
        arrays = tuple(name for name, shape in self.tensors.items() if not is_map(shape))
        return (*arrays, "workspace") if self.has_workspace else arrays

    @cached_property
    def params(self) -> type[Params]:
        """The C structure. Its `in` is called `x`, as in ONNX and PyTorch."""
        fields: list[tuple[str, Any]] = [("struct_size", ctypes.c_uint32), ("dtype", ctypes.c_int32)]
        kinds = (ctypes.c_int32, ctypes.c_float, Map, ctypes.c_void_p)
        for names, kind in zip((self.integers, self.floats, self.maps, self.pointers), kinds, strict=True):
            fields += [(name, kind) for name in names]
        return type(self.struct, (Params,), {"_fields_": fields, "operator": self, "__doc__": self.struct})

    def fits(self, *widths: int, on_cpu: bool = False) -> bool:
        """Whether layers of these widths (`widths.names`) are taken: on GPUs, or on CPUs."""
        if on_cpu:
            return all(width > 0 for width in widths)
        if widths in self.widths.wide:
            return True
        multiples = self.widths.multiple or (1,) * len(widths)
        limits = zip(widths, self.widths.most, multiples, strict=True)
        return all(0 < width <= most and width % multiple == 0 for width, most, multiple in limits)

    def is_tuned(self, *widths: int) -> bool:
        """Whether the kernel is made for layers of these widths (`widths.names`), rather than only correct."""
        return not self.widths.tuned or all(
            width in tuned for width, tuned in zip(widths, self.widths.tuned, strict=True)
        )

    def values(self, shapes: Sequence[Sequence[int] | None], **given: Any) -> dict[str, Any]:
        """The structure's integers and floats, from the shapes of `tensors`, the attributes and the options.

        Of a tensor that is None the shape is None. Raises ValueError that names a tensor which does not fit, TypeError
        for attributes that are missing or unknown.
        """
        values: dict[str, Any] = {name: given.pop(name, 0) for name in self.options}
        for attribute in self.attributes:
            value = given.pop(attribute.name, attribute.default)
            if value is None:
                raise TypeError(f"{self.name}: {attribute.name} is missing")
            parts = value if attribute.kind == "ints" else (value,)
            values.update(zip(attribute.targets, parts, strict=True))
        if given:
            raise TypeError(f"{self.name} has no attribute {', '.join(given)}")
        if len(shapes) != len(self.tensors):
            raise ValueError(f"{self.name}: got {len(shapes)} tensors, expected {', '.join(self.tensors)}")
        for (name, expected), shape in zip(self.tensors.items(), shapes, strict=True):
            if shape is None and name in self.optional:
                continue
            known = dict(values)
            dimensions = _dimensions(expected)
            pairs = zip(dimensions, shape or (), strict=False)
            fits = shape is not None and len(shape) == len(dimensions)
            if not fits or not all(_solve(*one, size, values) for one, size in pairs):
                found = None if shape is None else list(shape)
                raise ValueError(f"{self.name}: {name} is {found}, expected {_explained(expected, known)}")
        return values


def is_map(shape: str) -> bool:
    """Whether a tensor of this shape is a map, which may have any strides, rather than a contiguous array."""
    return shape.startswith("batch ")


def sizes(shape: str, values: Mapping[str, int]) -> list[int]:
    """The dimensions of a tensor, where all integers are known."""
    return [math.prod([values[name] for name in names], start=number) for number, names in _dimensions(shape)]


@cache
def _dimensions(shape: str) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """Each dimension as a number and names, whose product it is."""
    dimensions = (dimension.split("*") for dimension in shape.split())
    return tuple(
        (math.prod(int(one) for one in factors if one.isdigit()), tuple(one for one in factors if not one.isdigit()))
        for factors in dimensions
    )


def _solve(number: int, names: Sequence[str], size: int, values: dict[str, Any]) -> bool:
    """Whether a dimension may be of this size. The name that has no value yet, if there is one, gets it."""
    unknown = None
    for name in names:
        if name in values:
            number *= values[name]
        else:
            unknown = name
    if unknown is None:
        return size == number
    if number < 1 or size % number:
        return False
    values[unknown] = size // number
    return True


def _explained(shape: str, values: Mapping[str, Any]) -> str:
    """A shape for messages: [hidden, channels, 1, 1] with channels = 48."""
    known = [f"{name} = {values[name]}" for name in dict.fromkeys(re.findall(r"[a-z_]+", shape)) if name in values]
    return f"[{', '.join(shape.split())}]" + (f" with {', '.join(known)}" if known else "")


def _attention(
    qkv: Tensor, rib_q: Tensor, rib_k: Tensor, gate: Tensor, *, gate_sigmoid: bool = False, **geometry: Any
) -> Tensor:
    """`ribsr.attention.reference`, its geometry flat as in a node; gate_sigmoid: of gate's logistic function."""
    from ribsr.attention import Geometry, reference

    return reference(qkv, rib_q, rib_k, gate.sigmoid() if gate_sigmoid else gate, Geometry(**geometry))


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Layer normalisation over the channels of every pixel."""
    from torch.nn.functional import layer_norm

    return layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, epsilon).permute(0, 3, 1, 2)


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor, add_gelu: bool, input_gelu: bool = False) -> Tensor:
    """Depthwise convolution, padded by one zero; x + gelu of it if add_gelu. input_gelu: all that of gelu(x), not x."""
    from torch.nn.functional import conv2d, gelu

    x = gelu(x) if input_gelu else x
    y = conv2d(x, weight, bias, padding=1, groups=x.shape[1])
    return x + gelu(y) if add_gelu else y


def _feed_forward(
    x: Tensor,
    *weights: Tensor,
    epsilon: float,
    norm: Callable[..., Tensor] = _layer_norm,
    depthwise: Callable[..., Tensor] = _depthwise,
) -> Tensor:
    """x + contract(u + gelu(depthwise(u))) of u = gelu(expand(norm(x))), the second half of a layer.

    norm, depthwise: what computes these parts.
    """
    from torch.nn.functional import conv2d

    y = conv2d(norm(x, *weights[:2], epsilon), weights[2], weights[3])
    return x + conv2d(depthwise(y, *weights[4:6], True, True), weights[6], weights[7])


def _attention_inputs(
    x: Tensor,
    *weights: Tensor,
    epsilon: float,
    norm: Callable[..., Tensor] = _layer_norm,
    depthwise: Callable[..., Tensor] = _depthwise,
) -> tuple[Tensor, Tensor]:
    """project(n) and mix(depthwise(n)) of n = norm(x): qkv and, before its sigmoid, the gate of a layer's attention.

    norm, depthwise: what computes these parts.
    """
    from torch.nn.functional import conv2d

    n = norm(x, *weights[:2], epsilon)
    gate = depthwise(n, *weights[4:6], False, False)
    return conv2d(n, weights[2], weights[3]), conv2d(gate, weights[6], weights[7])


def _convolution(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, negative_slope: float) -> Tensor:
    """LeakyReLU of a convolution that is padded with zeros to the same size, plus residual."""
    from torch.nn.functional import conv2d, leaky_relu

    y = conv2d(x, weight.permute(0, 3, 1, 2), bias, padding=weight.shape[1] // 2)
    y = leaky_relu(y, negative_slope)
    return y if residual is None else y + residual


CYCLIC_WINDOW_ATTENTION = Operator(
    name="CyclicWindowAttention",
    function="ribsr_attention",
    integers=(
        *("path", "batch", "height", "width", "heads", "head_width", "rank"),
        *("window_height", "window_width", "shift_y", "shift_x", "gate_sigmoid"),
    ),
    inputs={
        "qkv": "batch 3*heads*head_width height width",
        "rib_q": "heads window_height*window_width rank",
        "rib_k": "heads window_height*window_width rank",
        "gate": "batch heads*head_width height width",
    },
    outputs={"out": "batch heads*head_width height width"},
    attributes=(
        Attribute("window", "ints", ("window_height", "window_width")),
        Attribute("heads", "int"),
        Attribute("shift", "ints", ("shift_y", "shift_x")),
        Attribute("scale", "float"),
        Attribute("gate_sigmoid", "bool", default=False),
    ),
    options=("path",),
    widths=Widths(("head_width", "rank"), most=(64, 64), tuned=((16, 32), (16, 24, 32))),
    reference=_attention,
)
CHANNEL_LAYER_NORM = Operator(
    name="ChannelLayerNorm",
    function="ribsr_layer_norm",
    integers=("batch", "channels", "height", "width"),
    inputs={"x": MAP, "weight": "channels", "bias": "channels"},
    outputs={"out": MAP},
    attributes=(Attribute("epsilon", "float"),),
    reference=_layer_norm,
)
DEPTHWISE_CONV3X3 = Operator(
    name="DepthwiseConv3x3",
    function="ribsr_depthwise",
    integers=("input_gelu", "epilogue", "batch", "channels", "height", "width"),
    inputs={"x": MAP, "weight": "channels 1 3 3", "bias": "channels"},
    outputs={"out": MAP},
    attributes=(Attribute("add_gelu", "bool", ("epilogue",)), Attribute("input_gelu", "bool", default=False)),
    reference=_depthwise,
)
FEED_FORWARD = Operator(
    name="FeedForward",
    function="ribsr_feed_forward",
    integers=("path", "batch", "channels", "hidden", "height", "width"),
    inputs={"x": MAP},
    weights={
        "norm_weight": "channels",
        "norm_bias": "channels",
        "expand_weight": "hidden channels 1 1",
        "expand_bias": "hidden",
        "depthwise_weight": "hidden 1 3 3",
        "depthwise_bias": "hidden",
        "contract_weight": "channels hidden 1 1",
        "contract_bias": "channels",
    },
    outputs={"out": MAP},
    attributes=(Attribute("epsilon", "float"),),
    options=("path",),
    widths=Widths(("channels", "hidden"), most=(64, 96), multiple=(8, 8), wide=((180, 225), (192, 384), (224, 448))),
    has_workspace=True,
    reference=_feed_forward,
)
ATTENTION_INPUTS = Operator(
    name="AttentionInputs",
    function="ribsr_attention_inputs",
    integers=("path", "batch", "channels", "height", "width"),
    inputs={"x": MAP},
    weights={
        "norm_weight": "channels",
        "norm_bias": "channels",
        "project_weight": "3*channels channels 1 1",
        "project_bias": "3*channels",
        "depthwise_weight": "channels 1 3 3",
        "depthwise_bias": "channels",
        "mix_weight": "channels channels 1 1",
        "mix_bias": "channels",
    },
    outputs={"qkv": "batch 3*channels height width", "gate": MAP},
    attributes=(Attribute("epsilon", "float"),),
    options=("path",),
    widths=Widths(("channels",), most=(64,), multiple=(8,), wide=((192,), (224,))),
    has_workspace=True,
    reference=_attention_inputs,
)
CONVOLUTION = Operator(
    name="Convolution",
    function="ribsr_convolution",
    integers=("batch", "channels", "outputs", "kernel", "height", "width"),
    inputs={
        "x": MAP,
        "residual": "batch outputs height width",
        "weight": "outputs kernel kernel channels",
        "bias": "outputs",
    },
    outputs={"out": "batch outputs height width"},
    attributes=(Attribute("negative_slope", "float"),),
    optional=("residual",),
    widths=Widths(("channels", "outputs"), most=(256, 512), multiple=(8, 1)),
    plugin=False,
    reference=_convolution,
)

OPERATORS = (
    *(CYCLIC_WINDOW_ATTENTION, CHANNEL_LAYER_NORM, DEPTHWISE_CONV3X3),
    *(FEED_FORWARD, ATTENTION_INPUTS, CONVOLUTION),
)
PLUGINS = tuple(operator.name for operator in OPERATORS if operator.plugin)
"""Those that TensorRT has."""
