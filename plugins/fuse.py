"""The `plugin` form: what runtimes are slow at becomes nodes that our kernels take, in the domain `ribsr`.

`plugins.operators` is the table of these nodes: inputs, attributes, widths, and a reference. Here is what becomes one:

channel layer norm: Transpose → LayerNormalization → Transpose.
depthwise convolution: one of stride and padding 1; with add_gelu = 1 x + GELU(conv(x)); with input_gelu = 1 all of that
    of GELU(x), not of x. The feed-forward blocks are both: u + GELU(conv(u)) of u = GELU(x).
feed-forward half: the two above with a convolution behind each and a sum, where the widths fit.
attention's inputs: the first two and a convolution behind each, to qkv and to the gate, where the width fits.
The attention stays, with gate_sigmoid = 1 where its gate is a Sigmoid's output, whose input it takes then.

For GPUs only half-precision nodes are taken, which is what the plugins compute in; a node's type is that of its
constants. What `export.precision` keeps in float32, and whatever else looks different, stays in standard operators. For
CPUs (`on_cpu`) it is float32, and layers of any width become one node.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from plugins import operators

ATTENTION = operators.CYCLIC_WINDOW_ATTENTION
LAYER_NORM, DEPTHWISE = operators.CHANNEL_LAYER_NORM.name, operators.DEPTHWISE_CONV3X3.name
FEED_FORWARD, ATTENTION_INPUTS = operators.FEED_FORWARD, operators.ATTENTION_INPUTS
CONVOLUTION = operators.CONVOLUTION

HALF = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


class WrongPrecision(ValueError):
    """An attention's constants are not in a type that our operators have."""


def to_plugins(bare: onnx.ModelProto, on_cpu: bool = False) -> onnx.ModelProto:
    """A canonical graph without body in plugin form. Raises ValueError if an attention is in float32, on a GPU."""
    types = _types(on_cpu)
    graph: Any = gs.import_onnx(bare)  # graphsurgeon declares its lists as sequences that cannot be changed
    # Constants are read here and not from graphsurgeon, which turns those in bfloat16 to float32 as soon as they are.
    scalars = {tensor.name: _scalar(tensor) for tensor in bare.graph.initializer if math.prod(tensor.dims) == 1}
    attentions = [node for node in graph.nodes if node.op == ATTENTION.name]
    if single := [node for node in attentions if not _is_constant(node.inputs[1], types)]:
        raise WrongPrecision(
            f"the form 'plugin' computes in half precision, but {len(single)} of {len(attentions)} "
            f"{ATTENTION.name} nodes are in float32, the first is {single[0].outputs[0].name}: use --fp16, or "
            "where float16 would overflow --bf16 (TensorRT 10 and later), or another form"
        )
    for node in list(graph.nodes):
        if node.op == "LayerNormalization":
            _fuse_layer_norm(graph, node, types)
        elif node.op == "Conv":
            _fuse_depthwise(graph, node, scalars, types)
    for node in attentions:
        _fuse_gate(graph, node)
    graph.cleanup()  # what has been replaced reads no tensors any more
    return _with_whole_layers(bare, graph, on_cpu)


def strip(canonical: onnx.ModelProto) -> onnx.ModelProto:
    """The way back from a canonical file: the graph without body that `lower` made it from. A copy of any other."""
    bare = onnx.ModelProto()
    bare.CopyFrom(canonical)
    del bare.functions[:], bare.graph.value_info[:]
    kept = [entry for entry in bare.opset_import if entry.domain != "com.microsoft"]
    del bare.opset_import[:]
    bare.opset_import.extend(kept)
    return bare


def with_whole_layers(plugin: onnx.ModelProto, on_cpu: bool = False) -> onnx.ModelProto:
    """A graph in plugin form with layers as one node that an earlier release, or one for GPUs, has left apart."""
    return _with_whole_layers(plugin, gs.import_onnx(plugin), on_cpu)


def to_float32(half: onnx.ModelProto) -> onnx.ModelProto:
    """A graph without body in half precision, computed in float32: its weights are what they were rounded to.

    Each Cast in it is one between floating types. Other graphs stay as they are.
    """
    model = onnx.ModelProto()
    model.CopyFrom(half)
    for tensor in model.graph.initializer:
        if tensor.data_type in HALF:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in HALF:
                attribute.i = onnx.TensorProto.FLOAT
    del model.graph.value_info[:]
    graph: Any = gs.import_onnx(model)
    for node in [node for node in graph.nodes if node.op == "Cast"]:
        _bypass(graph, node)
    return _exported(graph, model)


def _bypass(graph: Any, cast: gs.Node) -> None:
    """Leaves out a node that changes nothing, unless it makes an output of the graph."""
    source, result = cast.inputs[0], cast.outputs[0]
    if any(result is output for output in graph.outputs):
        return
    for reader in list(result.outputs):
        for index, tensor in enumerate(reader.inputs):
            if tensor is result:
                reader.inputs[index] = source


def join_convolutions(plugin: onnx.ModelProto, on_cpu: bool = False) -> onnx.ModelProto:
    """A graph in plugin form whose dense convolutions are our nodes, too, with the LeakyReLU and the sum behind them.

    Those that the operator has the widths for, of kernels of 1 and 3; their weights are [outputs, channels, rows,
    columns] still.
    """
    graph: Any = gs.import_onnx(plugin)
    for node in list(graph.nodes):
        if node.op == "Conv":
            _join_convolution(graph, node, on_cpu)
    return _exported(graph, plugin)


def _join_convolution(graph: Any, conv: gs.Node, on_cpu: bool) -> None:
    """A dense convolution as one node, with the LeakyReLU and the sum behind it if they are."""
    if not _is_dense(conv, _types(on_cpu)):
        return
    outputs, channels = conv.inputs[1].shape[:2]
    padded = channels + -channels % CONVOLUTION.widths.multiple[0]
    if not CONVOLUTION.fits(padded, outputs, on_cpu=on_cpu):
        return
    x, y, slope, residual = conv.inputs[0], conv.outputs[0], 1.0, gs.Variable.empty()
    after = _behind(graph, y)
    if after is not None and after.op == "LeakyRelu":
        y, slope = after.outputs[0], after.attrs.get("alpha", 0.01)
        after = _behind(graph, y)
    if after is not None and after.op == "Add":
        others = [tensor for tensor in after.inputs if tensor is not y]
        if len(others) == 1 and isinstance(others[0], gs.Variable):
            y, residual = after.outputs[0], others[0]
    _replace(graph, CONVOLUTION.name, conv.name, {"negative_slope": slope}, [x, residual, *_with_bias(conv)], [y])


def _behind(graph: Any, tensor: Any) -> gs.Node | None:
    """The only node that reads a tensor, which is no output of the graph."""
    return None if any(tensor is output for output in graph.outputs) else _only_consumer(tensor)


def _exported(graph: Any, model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph that was made of `model`, in order and without what nothing reads."""
    graph.cleanup().toposort()
    lowered = gs.export_onnx(graph)
    lowered.ir_version, lowered.producer_name = model.ir_version, model.producer_name
    return lowered


def _with_whole_layers(model: onnx.ModelProto, graph: Any, on_cpu: bool) -> onnx.ModelProto:
    """The model that `graph` of layer norms and depthwise convolutions comes to, which was made of `model`."""
    for node in list(graph.nodes):
        if node.op == DEPTHWISE:
            _fuse_feed_forward(graph, node, on_cpu)
            _fuse_attention_inputs(graph, node, on_cpu)
    return _exported(graph, model)


def count(model: onnx.ModelProto) -> dict[str, int]:
    """How many nodes of each operator of the table a model has."""
    ops = [node.op_type for node in model.graph.node if node.domain == operators.DOMAIN]
    return {name: ops.count(name) for name in operators.PLUGINS}


def _fuse_gate(graph: Any, attention: gs.Node) -> None:
    """The Sigmoid before the gate becomes a matter of the attention, unless something else reads it."""
    gate = attention.inputs[3]
    before = _producer(gate)
    only = _only_consumer(gate) is attention and not any(gate is output for output in graph.outputs)
    fused = before is not None and before.op == "Sigmoid" and only
    attention.attrs["gate_sigmoid"] = int(fused)
    if before is not None and fused:
        attention.inputs[3] = before.inputs[0]


def _fuse_layer_norm(graph: Any, norm: gs.Node, types: Sequence[int]) -> None:
    """Transpose → norm → Transpose as one node, if that is what stands there."""
    before = _producer(norm.inputs[0])
    after = _only_consumer(norm.outputs[0])
    if (
        before is not None
        and after is not None
        and _permutes(before, [0, 2, 3, 1])
        and _permutes(after, [0, 3, 1, 2])
        and norm.attrs.get("axis", -1) in (-1, 3)
        and len(norm.outputs) == 1
        and _is_constant(norm.inputs[1], types)
    ):
        weight = norm.inputs[1]
        bias = norm.inputs[2] if len(norm.inputs) > 2 else _zeros(weight, norm)
        attributes = {"epsilon": norm.attrs.get("epsilon", 1e-5)}
        _replace(graph, LAYER_NORM, norm.name, attributes, [before.inputs[0], weight, bias], after.outputs)


def _fuse_depthwise(graph: Any, conv: gs.Node, scalars: dict[str, float], types: Sequence[int]) -> None:
    """A depthwise 3x3 convolution as one node, with the GELU and the addition behind it if they are."""
    x, weight = conv.inputs[:2]
    channels = conv.attrs.get("group", 1)
    if not (
        isinstance(weight, gs.Constant)
        and list(weight.shape) == [channels, 1, 3, 3]
        and conv.attrs.get("pads") == [1, 1, 1, 1]
        and conv.attrs.get("strides", [1, 1]) == [1, 1]
        and conv.attrs.get("dilations", [1, 1]) == [1, 1]
        and conv.attrs.get("auto_pad", "NOTSET") == "NOTSET"
        and _is_constant(weight, types)
    ):
        return
    total = _plus_gelu(x, conv.outputs[0], scalars)
    before = None if total is None else _before_gelu(x, scalars)
    attributes = {"add_gelu": int(total is not None), "input_gelu": int(before is not None)}
    x = x if before is None else before
    output = conv.outputs[0] if total is None else total
    _replace(graph, DEPTHWISE, conv.name, attributes, [x, *_with_bias(conv)], [output])


def _fuse_feed_forward(graph: Any, depthwise: gs.Node, on_cpu: bool) -> None:
    """norm → expand → depthwise with GELUs → contract → + x as one node, if that is what stands there."""
    if not (depthwise.attrs["add_gelu"] and depthwise.attrs["input_gelu"]):
        return
    types = _types(on_cpu)
    expand, contract = _producer(depthwise.inputs[0]), _only_consumer(depthwise.outputs[0])
    if expand is None or contract is None or not (_is_pointwise(expand, types) and _is_pointwise(contract, types)):
        return
    norm, total = _producer(expand.inputs[0]), _only_consumer(contract.outputs[0])
    if norm is None or norm.op != LAYER_NORM or total is None or total.op != "Add":
        return
    x = norm.inputs[0]
    hidden, channels = expand.inputs[1].shape[:2]
    between = [node.outputs[0] for node in (norm, expand, depthwise, contract)]
    if not (
        any(tensor is x for tensor in total.inputs)
        and list(contract.inputs[1].shape[:2]) == [channels, hidden]
        and FEED_FORWARD.fits(channels, hidden, on_cpu=on_cpu)
        and all(len(tensor.outputs) == 1 for tensor in between)
        and not any(tensor is output for tensor in between for output in graph.outputs)
    ):
        return
    weights = [*norm.inputs[1:], *_with_bias(expand), *depthwise.inputs[1:], *_with_bias(contract)]
    attributes = {"epsilon": norm.attrs["epsilon"]}
    _replace(graph, FEED_FORWARD.name, total.name, attributes, [x, *weights], total.outputs)


def _fuse_attention_inputs(graph: Any, depthwise: gs.Node, on_cpu: bool) -> None:
    """norm → project and norm → depthwise → mix as one node, if that is what stands there."""
    types = _types(on_cpu)
    norm, mix = _producer(depthwise.inputs[0]), _only_consumer(depthwise.outputs[0])
    if norm is None or norm.op != LAYER_NORM or mix is None or not _is_pointwise(mix, types):
        return
    x, n = norm.inputs[0], norm.outputs[0]
    channels = norm.inputs[1].shape[0]
    project = next((node for node in n.outputs if node is not depthwise), None)
    if not (
        not depthwise.attrs["add_gelu"]  # without which it has no input_gelu either
        and len(n.outputs) == 2
        and project is not None
        and _is_pointwise(project, types)
        and list(project.inputs[1].shape[:2]) == [3 * channels, channels]
        and list(mix.inputs[1].shape[:2]) == [channels, channels]
        and ATTENTION_INPUTS.fits(channels, on_cpu=on_cpu)
        and not any(tensor is output for tensor in (n, depthwise.outputs[0]) for output in graph.outputs)
    ):
        return
    weights = [*norm.inputs[1:], *_with_bias(project), *depthwise.inputs[1:], *_with_bias(mix)]
    attributes = {"epsilon": norm.attrs["epsilon"]}
    _replace(graph, ATTENTION_INPUTS.name, norm.name, attributes, [x, *weights], [project.outputs[0], mix.outputs[0]])


def _is_pointwise(node: gs.Node, types: Sequence[int]) -> bool:
    """Whether a node is a 1x1 convolution in one of these types that does nothing else."""
    return node.op == "Conv" and _is_dense(node, types) and list(node.inputs[1].shape[2:]) == [1, 1]


def _is_dense(conv: gs.Node, types: Sequence[int]) -> bool:
    """Whether a convolution in one of these types is one of 1x1 or 3x3 that keeps the size and is not grouped."""
    kernel = conv.inputs[1]
    return (
        _is_constant(kernel, types)
        and list(kernel.shape[2:]) in ([1, 1], [3, 3])
        and conv.attrs.get("group", 1) == 1
        and conv.attrs.get("pads", [0, 0, 0, 0]) == [kernel.shape[-1] // 2] * 4
        and conv.attrs.get("strides", [1, 1]) == [1, 1]
        and conv.attrs.get("dilations", [1, 1]) == [1, 1]
        and conv.attrs.get("auto_pad", "NOTSET") == "NOTSET"
    )


def _with_bias(conv: gs.Node) -> list[Any]:
    weight = conv.inputs[1]
    return [weight, conv.inputs[2] if len(conv.inputs) > 2 else _zeros(weight, conv)]


def _plus_gelu(x: Any, y: Any, scalars: dict[str, float]) -> Any:
    """The tensor x + GELU(y), or None if something else is made of y or of GELU(y)."""
    gelu = _gelu(y, scalars)
    total = None if gelu is None else _only_consumer(gelu)
    if total is None or total.op != "Add" or not any(tensor is x for tensor in total.inputs):
        return None
    return total.outputs[0]


def _before_gelu(x: Any, scalars: dict[str, float]) -> Any:
    """The tensor whose GELU x is, or None if x is something else, or is read by more than a convolution and a sum."""
    if len(x.inputs) != 1 or len(x.outputs) != 2:
        return None
    return next((y for y in x.inputs[0].inputs if isinstance(y, gs.Variable) and _gelu(y, scalars) is x), None)


def _gelu(y: Any, scalars: dict[str, float]) -> Any:
    """The tensor GELU(y): one Gelu from opset 20 on, y·(½·(erf(y/√2) + 1)) below. None if y is used otherwise."""
    gelu = _only_consumer(y)
    if gelu is not None and gelu.op == "Gelu":
        return gelu.outputs[0] if gelu.attrs.get("approximate", "none") == "none" else None
    factor = y
    for op, constant in (("Div", 2**0.5), ("Erf", None), ("Add", 1.0), ("Mul", 0.5)):
        factor = next(
            (node.outputs[0] for node in factor.outputs if _computes(node, op, factor, constant, scalars)), None
        )
        if factor is None or len(factor.outputs) != 1:
            return None
    (product,) = factor.outputs
    if product.op != "Mul" or len(y.outputs) != 2 or not any(tensor is y for tensor in product.inputs):
        return None
    return product.outputs[0]


def _computes(node: gs.Node, op: str, x: Any, constant: float | None, scalars: dict[str, float]) -> bool:
    """Whether node is op(x, constant), or op(x) if there is no constant, as far as half precision can tell."""
    others = [tensor.name for tensor in node.inputs if tensor is not x]
    if node.op != op or (op == "Div" and node.inputs[0] is not x):
        return False
    if constant is None:
        return not others
    return len(others) == 1 and math.isclose(scalars.get(others[0], math.nan), constant, rel_tol=4e-3)


def _replace(
    graph: Any, op: str, name: str, attributes: dict[str, Any], inputs: list[gs.Tensor], outputs: Sequence[Any]
) -> None:
    """`outputs` come from a new node. What they came from goes with the next clean-up, unless something needs it."""
    outputs = list(outputs)
    for output in outputs:
        (old,) = output.inputs
        old.outputs.clear()
    attributes = {**attributes, **operators.TENSORRT}
    graph.nodes.append(
        gs.Node(op, name=name, domain=operators.DOMAIN, attrs=attributes, inputs=inputs, outputs=outputs)
    )


def _producer(tensor: Any) -> gs.Node | None:
    return tensor.inputs[0] if tensor.inputs else None


def _only_consumer(tensor: Any) -> gs.Node | None:
    return tensor.outputs[0] if len(tensor.outputs) == 1 else None


def _permutes(node: gs.Node, order: list[int]) -> bool:
    return node.op == "Transpose" and node.attrs.get("perm") == order


def _zeros(weight: Any, node: gs.Node) -> gs.Constant:
    """A bias for a node that has none: the plugins always take one."""
    import ml_dtypes  # comes with onnx-graphsurgeon

    dtypes = {int(onnx.TensorProto.FLOAT): np.float32, int(onnx.TensorProto.FLOAT16): np.float16}
    dtype = dtypes.get(type_of(weight), ml_dtypes.bfloat16)
    return gs.Constant(f"{node.outputs[0].name}/bias", np.zeros(weight.shape[0], dtype))


def _types(on_cpu: bool) -> Sequence[int]:
    """The types that are computed in."""
    return (onnx.TensorProto.FLOAT,) if on_cpu else HALF


def _is_constant(tensor: gs.Tensor, types: Sequence[int]) -> bool:
    """Whether a tensor is a constant in one of these types."""
    return isinstance(tensor, gs.Constant) and type_of(tensor) in types


def type_of(tensor: gs.Tensor) -> int:
    """ONNX's number of a tensor's type, which graphsurgeon gives for types that numpy lacks only."""
    if isinstance(tensor.dtype, int):
        return tensor.dtype
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)))


def _scalar(tensor: onnx.TensorProto) -> float:
    return float(onnx.numpy_helper.to_array(tensor).reshape(()))
