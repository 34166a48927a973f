"""Lowering: from the canonical graph to a file for one runtime, by onnx-graphsurgeon passes.

canonical: the operator's nodes with one model-local function as their body: runs in ONNX Runtime as it is.
plugin: the nodes alone: TensorRT with the plugin.
mha, attention, matmul: flat, the body inlined around com.microsoft::MultiHeadAttention (ONNX Runtime), around ONNX
Attention (opset 23), or in basic operators (anything, for small pictures: it materialises the scores).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal, get_args

import onnx
import onnx.inliner
import onnx_graphsurgeon as gs

from export import cyclic_window

Form = Literal["canonical", "mha", "attention", "matmul", "plugin"]
FORMS: tuple[Form, ...] = get_args(Form)

LARGEST_CONSTANT = 1 << 20
"""Bytes above which a constant expression is left to the runtime: a file should not carry every window's RIB."""


def lower(bare: onnx.ModelProto, form: Form) -> onnx.ModelProto:
    """A canonical graph without body, as `export.canonical.trace` gives it, in the form for one runtime.

    Raises ValueError where the form needs a newer opset than the graph has.
    """
    opset = opset_of(bare)
    if form == "attention" and opset < 23:
        raise ValueError(f"the form 'attention' needs opset 23 (ONNX Attention), the graph has {opset}; use --opset 23")
    if form == "plugin":
        return bare
    model = onnx.ModelProto()
    model.CopyFrom(bare)
    model.functions.append(cyclic_window.function("mha" if form == "canonical" else form, opset))
    if form in ("canonical", "mha"):
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return model if form == "canonical" else _inline(model)


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators that `model` uses."""
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _inline(model: onnx.ModelProto) -> onnx.ModelProto:
    flat = onnx.inliner.inline_local_functions(model)
    kept = [entry for entry in flat.opset_import if entry.domain != cyclic_window.DOMAIN]
    del flat.opset_import[:]
    flat.opset_import.extend(kept)
    graph = gs.import_onnx(flat)
    graph.fold_constants(size_threshold=LARGEST_CONSTANT)
    _share_equal_nodes(graph)
    graph.cleanup().toposort()
    lowered = gs.export_onnx(graph)
    lowered.ir_version = flat.ir_version
    lowered.producer_name = flat.producer_name
    return lowered


def _share_equal_nodes(graph: gs.Graph) -> None:
    """One node where several compute the same: the index arithmetic of layers with equal windows."""
    graph.toposort()
    outputs = {id(tensor) for tensor in graph.outputs}
    seen: dict[Hashable, gs.Node] = {}
    for node in graph.nodes:
        key = (node.op, node.domain, tuple(map(_identity, node.inputs)), repr(sorted(node.attrs.items(), key=str)))
        twin = seen.setdefault(key, node)
        if twin is node or any(id(tensor) in outputs for tensor in node.outputs):
            continue
        for mine, theirs in zip(list(node.outputs), twin.outputs, strict=True):
            for consumer in list(mine.outputs):
                consumer.inputs = [theirs if tensor is mine else tensor for tensor in consumer.inputs]


def _identity(tensor: gs.Tensor) -> Hashable:
    """Small constants are equal by value, everything else by being the same tensor."""
    if isinstance(tensor, gs.Constant) and tensor.values.nbytes <= 64:
        return (tensor.values.dtype.str, tensor.values.shape, tensor.values.tobytes())
    return id(tensor)


def set_shape(value: onnx.ValueInfoProto, shape: tuple[int | str, ...]) -> None:
    """Gives an input or output the dimensions `shape`: numbers, or names of dynamic ones."""
    dims = value.type.tensor_type.shape
    del dims.dim[:]
    for size in shape:
        dims.dim.add(**{"dim_param" if isinstance(size, str) else "dim_value": size})


def fix_shape(model: onnx.ModelProto, height: int, width: int, scale: int) -> None:
    """Makes `model` take one size only: batch 1, 3 x height x width in, scale times that out."""
    set_shape(model.graph.input[0], (1, 3, height, width))
    set_shape(model.graph.output[0], (1, 3, height * scale, width * scale))


@dataclass(frozen=True)
class Scores:
    """One layer's attention scores for a picture: its window and how many there are."""

    window: tuple[int, int]
    count: int

    @property
    def bytes(self) -> int:
        """What the `matmul` form materialises, in float32."""
        return 4 * self.count


def attention_scores(bare: onnx.ModelProto, height: int, width: int) -> list[Scores]:
    """Per layer of a canonical graph, for one picture: heads · padded pixels · tokens of a window."""
    layers = []
    for node in bare.graph.node:
        if node.op_type == cyclic_window.NAME:
            attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
            wh, ww = attributes["window"]
            pixels = -(-height // wh) * wh * (-(-width // ww) * ww)
            layers.append(Scores((wh, ww), attributes["heads"] * pixels * wh * ww))
    return layers
