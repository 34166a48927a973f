"""Lowering: from the canonical graph to a file for one runtime, by onnx-graphsurgeon passes.

canonical: the operator's nodes with one model-local function as their body: runs in ONNX Runtime as it is.
plugin: the nodes alone, LayerNorm over channels and depthwise convolutions as more such nodes (`plugins.fuse`):
TensorRT with the plugins. They compute in half precision, so the graph has to be typed in it (`export.precision`).
mha, attention, matmul: flat, the body inlined around com.microsoft::MultiHeadAttention (ONNX Runtime), around ONNX
Attention (opset 23), or in basic operators (anything, for small pictures: it materialises the scores).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import onnx
import onnx.inliner
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from export import Form, cyclic_window
from plugins import fuse
from ribsr import work
from ribsr.base.sizes import Size

G_LOGGER.severity = G_LOGGER.ERROR
"""graphsurgeon warns of types that numpy lacks, which is taken care of here."""

TWINS = {cyclic_window.NAME: 3, "MultiHeadAttention": 2}
"""Operators that onnx's shape inference does not know, and the input that their output has the type and shape of: the
gate, the values."""

CORES: dict[Form, str] = {"mha": "MultiHeadAttention", "attention": "Attention", "matmul": "Softmax"}
"""The operator of each flat form that there is one of in an attention."""

LARGEST_CONSTANT = 1 << 20
"""Bytes above which a constant expression is left to the runtime: a file should not carry every window's RIB."""


def lower(bare: onnx.ModelProto, form: Form) -> onnx.ModelProto:
    """A canonical graph without body, as `export.canonical.trace` gives it, in the form for one runtime.

    Raises ValueError where the form needs a newer opset than the graph has, and `plugin` half precision that the graph
    does not have.
    """
    opset = opset_of(bare)
    if form == "attention" and opset < 23:
        raise ValueError(f"the form 'attention' needs opset 23 (ONNX Attention), the graph has {opset}; use --opset 23")
    if form == "plugin":
        return _with_declared_maps(fuse.to_plugins(bare), bare)
    model = onnx.ModelProto()
    model.CopyFrom(bare)
    model.functions.append(cyclic_window.function("mha" if form == "canonical" else form, opset))
    if form in ("canonical", "mha"):
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return _with_declared_maps(model, bare) if form == "canonical" else _with_declared_cores(_inline(model), form)


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators that `model` uses."""
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _inline(model: onnx.ModelProto) -> onnx.ModelProto:
    flat = onnx.inliner.inline_local_functions(model)
    kept = [entry for entry in flat.opset_import if entry.domain != cyclic_window.DOMAIN]
    del flat.opset_import[:]
    flat.opset_import.extend(kept)
    graph = gs.import_onnx(flat)
    graph.fold_constants(size_threshold=LARGEST_CONSTANT, should_exclude_node=_has_foreign_constant)
    _share_equal_nodes(graph)
    _resolve_cast_like(graph)
    graph.cleanup().toposort()
    lowered = gs.export_onnx(graph)
    lowered.ir_version = flat.ir_version
    lowered.producer_name = flat.producer_name
    return lowered


def _inferred(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """The type and shape of each tensor of a graph, where our operators and those of other domains are known, too."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.functions[:]
    for node in copy.graph.node:
        if (twin := TWINS.get(node.op_type)) is not None:
            node.CopyFrom(onnx.helper.make_node("Identity", [node.input[twin]], list(node.output)))
    inferred = onnx.shape_inference.infer_shapes(copy, strict_mode=True, data_prop=True).graph
    return {value.name: value for value in inferred.value_info}


def _with_declared_maps(model: onnx.ModelProto, bare: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with the types and shapes of its custom nodes' outputs, at which shape inference would stop.

    They are maps of the input's size. bare: the graph that it was made of, which has tensors of the same names.
    """
    known = _inferred(bare)
    custom = [name for node in model.graph.node if node.domain == cyclic_window.DOMAIN for name in node.output]
    for value in (known[name] for name in custom if name in known):  # a graph's output has been declared already
        batch, _, *size = (dim.dim_param or dim.dim_value for dim in bare.graph.input[0].type.tensor_type.shape.dim)
        set_shape(value, (batch, value.type.tensor_type.shape.dim[1].dim_value, *size))
        model.graph.value_info.append(value)
    return model


def _with_declared_cores(flat: onnx.ModelProto, form: Form) -> onnx.ModelProto:
    """`flat` with the types and shapes of its attentions' outputs: shape inference stops at those of other domains, and
    the tokens of a window are read there where a tool has dropped a file's metadata (`engines.metadata`)."""
    known = _inferred(flat)
    for value in (known[node.output[0]] for node in flat.graph.node if node.op_type == CORES[form]):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:  # a name that inference has made up
                dim.Clear()
        flat.graph.value_info.append(value)
    return flat


def _resolve_cast_like(graph: gs.Graph) -> None:
    """Cast instead of CastLike where the type is known, which every runtime has.

    Those to float16 are named as `export.precision` names its own: what TensorRT 8.6 is told of types depends on it
    (`engines.trt.builder`).
    """
    for node in graph.nodes:
        if node.op == "CastLike" and isinstance(node.inputs[1], gs.Constant):
            node.op = "Cast"
            node.attrs["to"] = fuse.type_of(node.inputs.pop())
            if node.attrs["to"] == onnx.TensorProto.FLOAT16:
                node.outputs[0].name += "/float16"


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


def _has_foreign_constant(node: gs.Node) -> bool:
    """Whether a node reads a constant of a type that numpy lacks: graphsurgeon can neither fold nor even look at it."""
    return any(isinstance(tensor, gs.Constant) and isinstance(tensor.dtype, int) for tensor in node.inputs)


def _identity(tensor: gs.Tensor) -> Hashable:
    """Small constants are equal by value, everything else by being the same tensor."""
    # (The values of a type that numpy lacks are left alone: reading them turns them to float32.)
    if isinstance(tensor, gs.Constant) and not isinstance(tensor.dtype, int) and tensor.values.nbytes <= 64:
        return (tensor.values.dtype.str, tensor.values.shape, tensor.values.tobytes())
    return id(tensor)


def set_shape(value: onnx.ValueInfoProto, shape: tuple[int | str, ...]) -> None:
    """Gives an input or output the dimensions `shape`: numbers, or names of dynamic ones."""
    dims = value.type.tensor_type.shape
    del dims.dim[:]
    for size in shape:
        dims.dim.add(**{"dim_param" if isinstance(size, str) else "dim_value": size})


def fix_shape(model: onnx.ModelProto, size: Size, scale: int) -> None:
    """Makes `model` take pictures of one size only, one at a time."""
    set_shape(model.graph.input[0], (1, 3, *size))
    set_shape(model.graph.output[0], (1, 3, *size.times(scale)))


@dataclass(frozen=True)
class Scores:
    """One layer's attention scores for a picture: its window and how many there are."""

    window: Size
    count: int

    @property
    def bytes(self) -> int:
        """What the `matmul` form materialises, in float32."""
        return 4 * self.count


def attention_scores(bare: onnx.ModelProto, size: Size) -> list[Scores]:
    """Per layer of a canonical graph, for one picture: heads · padded pixels · tokens of a window."""
    layers = []
    for node in bare.graph.node:
        if node.op_type == cyclic_window.NAME:
            attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
            window = Size(*attributes["window"])
            layers.append(Scores(window, work.scores(size, window, attributes["heads"])))
    return layers


def count_float32_attention(bare: onnx.ModelProto) -> int:
    """How many attentions of a canonical graph are in float32: those whose RIB is."""
    single = {tensor.name for tensor in bare.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    return sum(node.op_type == cyclic_window.NAME and node.input[1] in single for node in bare.graph.node)


def check_scores(bare: onnx.ModelProto, size: Size, limit: float, otherwise: str) -> str:
    """What to tell the user of a `matmul` graph: its largest score tensor for a picture of that size.

    limit: GiB that it may have. Raises ValueError above it; otherwise: what to do then.
    """
    largest = max(attention_scores(bare, size), key=lambda layer: layer.count)
    gib = largest.bytes / 2**30
    where = f"at {size}, window {largest.window}"
    if gib > limit:
        raise ValueError(
            f"largest score tensor: the form 'matmul' would materialise {gib:.1f} GiB of attention scores {where}; "
            f"the limit is {limit:g} GiB: {otherwise}"
        )
    return f"largest score tensor {gib:.2f} GiB a picture ({where})"
