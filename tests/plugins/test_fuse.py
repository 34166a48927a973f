"""The plugin form: what becomes a plugin's node, and that the graph still computes the same."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

import ribsr
from export import lower, precision
from export.canonical import trace
from export.fold import fold
from plugins import fuse, operators
from tests.export.conftest import run, traced


def evaluated(row: operators.Operator) -> type[OpRun]:
    """An operator for ONNX's reference evaluator: the table's reference, in float64."""

    def _run(self, *inputs, plugin_version, plugin_namespace, **attributes):
        results = row.reference(*(torch.from_numpy(np.asarray(x, np.float64)) for x in inputs), **attributes)
        results = results if isinstance(results, tuple) else (results,)
        return tuple(result.numpy().astype(inputs[0].dtype) for result in results)

    return type(row.name, (OpRun,), {"op_domain": operators.DOMAIN, "_run": _run})


PLUGINS = [evaluated(row) for row in operators.OPERATORS]
ATTENTION, LAYER_NORM = operators.CYCLIC_WINDOW_ATTENTION.name, operators.CHANNEL_LAYER_NORM.name
DEPTHWISE, FEED_FORWARD = operators.DEPTHWISE_CONV3X3.name, operators.FEED_FORWARD.name
ATTENTION_INPUTS = operators.ATTENTION_INPUTS.name


def evaluate(model: onnx.ModelProto, x: np.ndarray, name: str = "input") -> list[np.ndarray]:
    """What ONNX's reference evaluator makes of a model in plugin form."""
    return [np.asarray(y) for y in ReferenceEvaluator(model, new_ops=PLUGINS).run(None, {name: x})]


def half_of(bare: onnx.ModelProto, dtype: str = "fp16") -> onnx.ModelProto:
    if dtype == "bf16":
        return precision.to_bfloat16(bare)
    names = [name for node in bare.graph.node for name in node.output]
    return precision.to_half(bare, dict.fromkeys(names, 1.0))[0]


WIDE = ("sst-l", "sst-l+", "sst-xl+")
"""Networks with wide layers, of which both halves become one node each."""
FED = ("sst_shifted_x2", "sst_pixelshuffle_x3", "sst-light", "sst", *WIDE)
"""Networks whose feed-forward halves become one node."""
WITH_INPUTS = ("escrib_x2", "sst-light", "esc-rib", *WIDE)
"""The same of what comes before the attention; in the first two of FED, and sst, that has heads padded beyond the
channels."""


def attributes_of(node: onnx.NodeProto) -> dict:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


@pytest.mark.parametrize("opset", [17, 20])
def test_fused_graph_computes_the_same(name, opset, monkeypatch):
    """Exactly: in float32, which the fusion would leave alone otherwise."""
    golden, bare = traced(name, opset)
    monkeypatch.setattr(fuse, "HALF", (onnx.TensorProto.FLOAT,))
    fused = lower.lower(bare, "plugin")
    count = fuse.count(fused)
    assert (count.pop(FEED_FORWARD) > 0) == (name in FED)
    assert (count.pop(ATTENTION_INPUTS) > 0) == (name in WITH_INPUTS)
    assert min(count.values()) > 0
    x = golden.x[:1, :, :13, :10]
    (y,) = evaluate(fused, x)
    np.testing.assert_allclose(y, run(lower.lower(bare, "canonical"), x), rtol=0, atol=1e-5)


def test_fused_half_graph_errs_as_half_precision_does(name):
    """Up to three times as much as in ONNX Runtime: the evaluator's convolutions add up in float16."""
    golden, bare = traced(name, 17)
    half = half_of(bare)
    x = golden.x[:1, :, :13, :10]
    exact = run(lower.lower(bare, "canonical"), x)
    (fused,) = evaluate(lower.lower(half, "plugin"), x)
    canonical = run(lower.lower(half, "canonical"), x)
    error, allowed = (float(np.sqrt(np.square(y - exact).mean())) for y in (fused, canonical))
    assert 0 < error <= 3 * allowed


@cache
def small(name: str, opset: int) -> onnx.ModelProto:
    """A released network in bare form, with the fewest blocks: the others are alike."""
    config = ribsr.config(name)
    torch.manual_seed(0)
    return trace(fold(ribsr.build(replace(config, blocks=1)))[0], opset)


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["sst-light", "sst", "esc-rib", *WIDE])
def test_released_networks_are_fused_completely(name, dtype, opset):
    bare = small(name, opset)
    fused = lower.lower(half_of(bare, dtype), "plugin")
    before = [node.op_type for node in bare.graph.node]
    found, count = [node.op_type for node in fused.graph.node], fuse.count(fused)
    assert not {"LayerNormalization", "Transpose", "Sigmoid"} & set(found)
    assert count[FEED_FORWARD] == (count[ATTENTION] if name in FED else 0)
    assert count[ATTENTION_INPUTS] == (count[ATTENTION] if name in WITH_INPUTS else 0)
    norms = count[LAYER_NORM] + count[FEED_FORWARD] + count[ATTENTION_INPUTS]
    assert norms == before.count("LayerNormalization")
    assert count[ATTENTION] == before.count(ATTENTION)
    weights = {tensor.name: list(tensor.dims) for tensor in bare.graph.initializer}
    depthwise = [
        node
        for node in bare.graph.node
        if node.op_type == "Conv" and weights[node.input[1]] == [attributes_of(node)["group"], 1, 3, 3]
    ]
    assert count[DEPTHWISE] + count[FEED_FORWARD] + count[ATTENTION_INPUTS] == len(depthwise) > 0
    # One with GELU for each feed-forward block, one without for each attention's gate.
    nodes = [attributes_of(node) for node in fused.graph.node if node.op_type == DEPTHWISE]
    gates = sum(node["add_gelu"] == 0 for node in nodes)
    assert gates == count[ATTENTION] - count[ATTENTION_INPUTS]
    assert all(node["add_gelu"] == node["input_gelu"] for node in nodes)
    assert sum(found.count(op) for op in ("Erf", "Gelu")) == before.count("Erf") + before.count("Gelu") - 2 * (
        sum(node["add_gelu"] for node in nodes) + count[FEED_FORWARD]
    )


@pytest.mark.parametrize("name", WIDE)
def test_wide_network_fused_computes_the_same(name, monkeypatch):
    """Exactly: in float32, which the fusion would leave alone otherwise."""
    monkeypatch.setattr(fuse, "HALF", (onnx.TensorProto.FLOAT,))
    bare = small(name, 17)
    x = np.random.default_rng(0).random((1, 3, 13, 10), np.float32)
    (y,) = evaluate(lower.lower(bare, "plugin"), x)
    np.testing.assert_allclose(y, run(lower.lower(bare, "canonical"), x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["sst-light", "esc-rib", *WIDE])
def test_plugin_form_is_fused_later_as_at_once(name, dtype, opset, monkeypatch):
    """Files of earlier releases have wide layers apart."""
    half = half_of(small(name, opset), dtype)
    at_once = lower.lower(half, "plugin")
    assert fuse.with_whole_layers(at_once) == at_once
    with monkeypatch.context() as earlier:
        for operator in (operators.FEED_FORWARD, operators.ATTENTION_INPUTS):
            earlier.setitem(vars(operator), "widths", replace(operator.widths, wide=()))
        apart = lower.lower(half, "plugin")
    assert (apart == at_once) == (name not in WIDE)
    assert fuse.strip(fuse.with_whole_layers(apart)) == fuse.strip(at_once)


def test_which_wide_layers_are_fused():
    for model, name, fused in (
        (feed_forward(192, 384), FEED_FORWARD, True),
        (feed_forward(180, 225), FEED_FORWARD, True),
        (feed_forward(192, 96), FEED_FORWARD, False),
        (attention_inputs(192, 192), ATTENTION_INPUTS, True),
        (attention_inputs(180, 192), ATTENTION_INPUTS, False),
        (attention_inputs(384, 384), ATTENTION_INPUTS, False),
    ):
        assert fuse.count(fuse.to_plugins(model))[name] == int(fused)


@pytest.mark.parametrize(("dtype", "number"), [("fp16", onnx.TensorProto.FLOAT16), ("bf16", onnx.TensorProto.BFLOAT16)])
def test_plugin_nodes_have_their_attributes_inputs_and_one_type(name, dtype, number):
    _, bare = traced(name, 17)
    fused = lower.lower(half_of(bare, dtype), "plugin")
    onnx.checker.check_model(fused)
    constants = {tensor.name: tensor for tensor in fused.graph.initializer}
    assert not fused.functions
    rows = {row.name: row for row in operators.OPERATORS}
    expected = {ATTENTION, LAYER_NORM, DEPTHWISE}
    expected |= {FEED_FORWARD} if name in FED else set()
    expected |= {ATTENTION_INPUTS} if name in WITH_INPUTS else set()
    seen = set()
    for node in fused.graph.node:
        if node.domain != "ribsr":
            continue
        seen.add(node.op_type)
        attributes = attributes_of(node)
        row = rows[node.op_type]
        assert set(attributes) == {one.name for one in row.attributes} | {"plugin_version", "plugin_namespace"}
        assert (attributes["plugin_version"], attributes["plugin_namespace"]) == (b"1", b"ribsr")
        assert len(node.input) == len(row.tensors)
        assert len(node.output) == len(row.outputs)
        for tensor in node.input:
            assert tensor not in constants or constants[tensor].data_type == number
    assert seen == expected
    kinds = {tensor.data_type for tensor in fused.graph.initializer} - {onnx.TensorProto.INT64}
    assert kinds == {number}


def test_sigmoid_that_something_else_reads_stays(name):
    _, bare = traced(name, 17)
    half = half_of(bare)
    gates = [node.output[0] for node in half.graph.node if node.op_type == "Sigmoid"]
    half.graph.output.append(onnx.helper.make_tensor_value_info(gates[0], onnx.TensorProto.FLOAT16, None))
    nodes = lower.lower(half, "plugin").graph.node
    fused = [attributes_of(node)["gate_sigmoid"] for node in nodes if node.op_type == ATTENTION]
    assert sorted(fused) == [0] + [1] * (len(gates) - 1)
    assert [node.output[0] for node in nodes if node.op_type == "Sigmoid"] == gates[:1]


def test_missing_bias_becomes_zeros():
    """The released networks' convolutions have none where their weights have been found to be so."""
    _, bare = traced("sst_shifted_x2", 17)
    without = onnx.ModelProto()
    without.CopyFrom(bare)
    for node in without.graph.node:
        if node.op_type == "Conv" and attributes_of(node)["group"] > 1:
            del node.input[2:]
    fused = lower.lower(half_of(without), "plugin")
    constants = {tensor.name: tensor for tensor in fused.graph.initializer}
    for node in fused.graph.node:
        if node.op_type == DEPTHWISE:
            bias, weight = (onnx.numpy_helper.to_array(constants[node.input[i]]) for i in (2, 1))
            assert bias.shape == weight.shape[:1]
            assert not bias.any()


def test_float32_attention_is_refused_with_what_to_do():
    _, bare = traced("sst_shifted_x2", 17)
    with pytest.raises(ValueError, match=r"half precision.*CyclicWindowAttention nodes are in float32.*--bf16"):
        lower.lower(bare, "plugin")


def test_what_stays_in_float32_stays_a_standard_operator():
    """A wide residual stream: the LayerNorms that read it are float32 and none of the plugin's business."""
    _, bare = traced("sst_shifted_x2", 17)
    magnitudes = {name: 1.0 for node in bare.graph.node for name in node.output}
    norm = next(node for node in bare.graph.node if node.op_type == "LayerNormalization")
    magnitudes[norm.input[0]] = 1e5
    half, report = precision.to_half(bare, magnitudes)
    assert report.float32_nodes
    fused = lower.lower(half, "plugin")
    before = [node.op_type for node in bare.graph.node].count("LayerNormalization")
    count = fuse.count(fused)
    assert count[LAYER_NORM] + count[FEED_FORWARD] == before - 1
    assert [node.op_type for node in fused.graph.node].count("LayerNormalization") == 1


def one_block(consumer: bool, padding: int = 1, divisor: float = 2**0.5) -> onnx.ModelProto:
    """conv → GELU → + x, with half-precision weights; consumer: something else reads the convolution as well."""
    rng = np.random.default_rng(0)
    constants = {"w": rng.random((4, 1, 3, 3)), "b": rng.random(4), "r": divisor, "one": 1.0, "half": 0.5}
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float16[1, 4, h, w_] x) => (float16[1, 4, h, w_] out{", float16[1, 4, h, w_] more" if consumer else ""}) {{
      y = Conv <group = 4, kernel_shape = [3, 3], pads = [{", ".join([str(padding)] * 4)}]> (x, w, b)
      d = Div (y, r)
      e = Erf (d)
      s = Add (one, e)
      f = Mul (s, half)
      g1 = Mul (f, y)
      out = Add (g1, x)
      {"more = Sigmoid (y)" if consumer else ""}
    }}"""
    model = onnx.parser.parse_model(text)
    for name, value in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value, np.float16), name))
    return model


@pytest.mark.parametrize(
    ("model", "add_gelu"),
    [
        (one_block(consumer=False), 1),  # operands the other way round
        (one_block(consumer=True), 0),
        (one_block(consumer=False, divisor=1.5), 0),
    ],
)
def test_gelu_is_fused_only_where_it_is_one_and_nobody_else_reads_the_convolution(model, add_gelu):
    fused = fuse.to_plugins(model)
    (node,) = (node for node in fused.graph.node if node.op_type == DEPTHWISE)
    assert attributes_of(node)["add_gelu"] == add_gelu
    x = np.random.default_rng(1).random((1, 4, 6, 5)).astype(np.float16)
    for mine, theirs in zip(evaluate(fused, x, "x"), evaluate(model, x, "x"), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=6e-3)


def test_convolutions_of_another_padding_are_left_alone():
    assert fuse.count(fuse.to_plugins(one_block(consumer=False, padding=0)))[DEPTHWISE] == 0


def with_weights(text: str, shapes: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    """The model of a text, with random half-precision weights of these shapes."""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        values = rng.normal(size=shape) / 2
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float16), name))
    return model


def feed_forward(
    channels: int = 8, hidden: int = 16, read: str = "", residual: str = "x", kernel: int = 1
) -> onnx.ModelProto:
    """A feed-forward half of opset 20 with half-precision weights; read: a tensor in it that is an output as well."""
    shapes = {
        "nw": (channels,), "nb": (channels,), "ew": (hidden, channels, kernel, kernel), "eb": (hidden,),
        "dw": (hidden, 1, 3, 3), "db": (hidden,), "cw": (channels, hidden, 1, 1),
    }  # fmt: skip
    pads = ", ".join([str(kernel // 2)] * 4)
    text = f"""
    <ir_version: 8, opset_import: ["" : 20]>
    g (float16[1, {channels}, h, w] x, float16[1, {channels}, h, w] z)
      => (float16[1, {channels}, h, w] out{f", float16[1, c_, h, w] {read}" if read else ""}) {{
      t = Transpose <perm = [0, 2, 3, 1]> (x)
      n = LayerNormalization <axis = -1, epsilon = 0.001> (t, nw, nb)
      norm = Transpose <perm = [0, 3, 1, 2]> (n)
      expand = Conv <pads = [{pads}]> (norm, ew, eb)
      u = Gelu (expand)
      d = Conv <group = {hidden}, kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (u, dw, db)
      g1 = Gelu (d)
      sum = Add (u, g1)
      contract = Conv (sum, cw)
      out = Add ({residual}, contract)
    }}"""
    return with_weights(text, shapes)


@pytest.mark.parametrize(
    ("options", "fused"),
    [
        ({}, True),
        ({"channels": 64, "hidden": 96}, True),
        ({"channels": 72}, False),
        ({"hidden": 104}, False),
        ({"channels": 12}, False),
        ({"hidden": 12}, False),
        ({"residual": "z"}, False),
        ({"kernel": 3}, False),
        *(({"read": tensor}, False) for tensor in ("norm", "expand", "u", "sum", "contract")),
    ],
)
def test_feed_forward_is_fused_where_it_is_one_of_few_channels(options, fused):
    """In every case the graph computes the same; the bias that the last convolution lacks is zero."""
    model = feed_forward(**options)
    plugin = fuse.to_plugins(model)
    assert fuse.count(plugin)[FEED_FORWARD] == int(fused)
    assert fused == (len(plugin.graph.node) == 1)
    rng = np.random.default_rng(1)
    channels = options.get("channels", 8)
    inputs = {name: rng.normal(size=(1, channels, 6, 5)).astype(np.float16) for name in ("x", "z")}
    results = [ReferenceEvaluator(one, new_ops=PLUGINS).run(None, inputs) for one in (plugin, model)]
    for mine, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(np.asarray(mine), np.asarray(theirs), rtol=0, atol=6e-2)


def test_feed_forward_with_a_weight_in_float32_is_not_fused():
    model = feed_forward()
    for tensor in model.graph.initializer:
        if tensor.name == "cw":
            single = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(single, "cw"))
    count = fuse.count(fuse.to_plugins(model))
    assert (count[FEED_FORWARD], count[LAYER_NORM], count[DEPTHWISE]) == (0, 1, 1)


def attention_inputs(
    channels: int = 8, inner: int = 8, read: str = "", source: str = "norm", kernel: int = 1, gelu: bool = False
) -> onnx.ModelProto:
    """What comes before an attention, half-precision weights; read: a tensor in it that is an output as well."""
    shapes = {
        "nw": (channels,), "nb": (channels,), "pw": (3 * inner, channels, kernel, kernel), "pb": (3 * inner,),
        "dw": (channels, 1, 3, 3), "db": (channels,), "mw": (inner, channels, 1, 1),
    }  # fmt: skip
    pads = ", ".join([str(kernel // 2)] * 4)
    text = f"""
    <ir_version: 8, opset_import: ["" : 20]>
    g (float16[1, {channels}, h, w] x) => (float16[1, {3 * inner}, h, w] qkv, float16[1, {inner}, h, w] gate
      {f", float16[1, {channels}, h, w] {read}" if read else ""}) {{
      t = Transpose <perm = [0, 2, 3, 1]> (x)
      n = LayerNormalization <axis = -1, epsilon = 0.001> (t, nw, nb)
      norm = Transpose <perm = [0, 3, 1, 2]> (n)
      qkv = Conv <pads = [{pads}]> (norm, pw, pb)
      {"u = Gelu (norm)" if gelu else ""}
      d = Conv <group = {channels}, kernel_shape = [3, 3], pads = [1, 1, 1, 1]> ({source}, dw, db)
      {"e = Gelu (d)" if gelu else ""}
      {"sum = Add (u, e)" if gelu else ""}
      gate = Conv ({"sum" if gelu else "d"}, mw)
    }}"""
    return with_weights(text, shapes)


@pytest.mark.parametrize(
    ("options", "fused"),
    [
        ({}, True),
        ({"channels": 64, "inner": 64}, True),
        ({"channels": 72, "inner": 72}, False),
        ({"channels": 12, "inner": 12}, False),
        ({"inner": 16}, False),
        ({"kernel": 3}, False),
        ({"source": "x"}, False),
        ({"source": "u", "gelu": True}, False),
        *(({"read": tensor}, False) for tensor in ("norm", "d")),
    ],
)
def test_attention_inputs_are_fused_where_they_are_of_few_channels(options, fused):
    """In every case the graph computes the same; the bias that the last convolution lacks is zero."""
    model = attention_inputs(**options)
    plugin = fuse.to_plugins(model)
    assert fuse.count(plugin)[ATTENTION_INPUTS] == int(fused)
    assert fused == (len(plugin.graph.node) == 1)
    x = np.random.default_rng(1).normal(size=(1, options.get("channels", 8), 6, 5)).astype(np.float16)
    results = [ReferenceEvaluator(one, new_ops=PLUGINS).run(None, {"x": x}) for one in (plugin, model)]
    for mine, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(np.asarray(mine), np.asarray(theirs), rtol=0, atol=6e-2)


def test_attention_inputs_whose_norm_is_read_once_more_are_not_fused():
    model = attention_inputs()
    model.graph.node.append(onnx.helper.make_node("Sigmoid", ["norm"], ["more"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT16, None))
    assert fuse.count(fuse.to_plugins(model))[ATTENTION_INPUTS] == 0
