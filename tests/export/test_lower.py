from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export import lower, precision
from export.cyclic_window import DOMAIN, NAME
from plugins import fuse
from ribsr.base.sizes import Size
from tests.engines import halves
from tests.export.conftest import run, traced

OPSET_FORMS = [(17, "canonical"), (17, "mha"), (17, "matmul"), (20, "canonical"), (23, "attention")]


@pytest.mark.parametrize(("opset", "form"), OPSET_FORMS)
def test_golden_vectors_in_every_form(name, opset, form):
    golden, bare = traced(name, opset)
    model = lower.lower(bare, form)
    onnx.checker.check_model(model)
    assert np.abs(run(model, golden.x) - golden.y).max() <= 1e-5


@pytest.mark.parametrize(("opset", "form"), OPSET_FORMS)
@pytest.mark.parametrize("name", ["escrib_x2", "sst_shifted_x2"])
def test_batch_height_and_width_are_dynamic(name, opset, form):
    golden, bare = traced(name, opset)
    model, reference = lower.lower(bare, form), golden.model()
    generator = np.random.default_rng(0)
    for shape in [(1, 3, 1, 1), (3, 3, 5, 37), (2, 3, 16, 16), (1, 3, 33, 2)]:
        x = generator.random(shape, dtype=np.float32)
        with torch.inference_mode():
            expected = reference(torch.from_numpy(x)).numpy()
        assert np.abs(run(model, x) - expected).max() <= 1e-5, shape


def test_canonical_graph_has_one_node_a_layer_and_no_shape_arithmetic(name):
    golden, bare = traced(name, 17)
    ops = [node.op_type for node in bare.graph.node]
    layers = sum(key.endswith("to_q") for key in golden.params)
    assert ops.count(NAME) == layers
    assert not {"Shape", "Slice", "Pad", "Range", "Mod", "Expand", "Where", "If", "Resize"} & set(ops)
    assert [value.name for value in bare.graph.input] == ["input"]
    assert [value.name for value in bare.graph.output] == ["output"]


def test_canonical_file_carries_one_function_and_strip_takes_it_away(name):
    _, bare = traced(name, 17)
    canonical = lower.lower(bare, "canonical")
    assert [(function.domain, function.name) for function in canonical.functions] == [(DOMAIN, NAME)]
    assert canonical.ir_version == 8
    assert fuse.strip(canonical) == bare


@pytest.mark.parametrize(
    ("form", "opset", "domains"),
    [("mha", 17, {"", "com.microsoft"}), ("matmul", 17, {""}), ("attention", 23, {""})],
)
def test_flat_files_use_no_domain_of_ours(name, form, opset, domains):
    _, bare = traced(name, opset)
    flat = lower.lower(bare, form)
    assert not flat.functions
    assert {node.domain for node in flat.graph.node} == domains
    assert {entry.domain for entry in flat.opset_import} == domains


def test_matmul_form_has_only_what_tensorrt_8_6_reads(name):
    """Its parser has no CastLike, and ignores `start` and `end` of a Shape in silence."""
    golden, bare = traced(name, 17)
    half, _ = precision.to_half(bare, precision.measure(lower.lower(bare, "canonical"), [golden.x]))
    for model in (bare, half):
        nodes = lower.lower(model, "matmul").graph.node
        assert "CastLike" not in {node.op_type for node in nodes}
        assert not any(node.attribute for node in nodes if node.op_type == "Shape")


def test_casts_to_float16_are_known_by_their_names(name):
    """What goes by them for TensorRT 8.6, `engines.trt.builder`, would take all behind another name for float32."""
    golden, bare = traced(name, 17)
    half, _ = precision.to_half(bare, precision.measure(lower.lower(bare, "canonical"), [golden.x]))
    for form in ("plugin", "matmul"):
        casts = [node for node in lower.lower(half, form).graph.node if node.op_type == "Cast"]
        to_half = [node.attribute[0].i == onnx.TensorProto.FLOAT16 for node in casts]
        assert any(to_half)
        assert [node.output[0].endswith("/float16") for node in casts] == to_half


def test_attention_needs_opset_23():
    _, bare = traced("sst_shifted_x2", 17)
    with pytest.raises(ValueError, match="opset 23"):
        lower.lower(bare, "attention")


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_attention_is_what_tensorrts_parser_takes(dtype):
    """Keys and values of one width and no softmax_precision, which it refuses."""
    bare = traced("sst_cyclic_x2", 23)[1]
    model = lower.lower(halves.to_half(bare) if dtype == "fp16" else bare, "attention")
    known = {
        v.name: v for v in onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph.value_info
    }
    nodes = [node for node in model.graph.node if node.op_type == "Attention"]
    assert len(nodes) == 6
    for node in nodes:
        assert [attribute.name for attribute in node.attribute] == ["scale"]
        assert len({str(known[name].type.tensor_type.shape.dim[3].dim_value) for name in node.input}) == 1


@pytest.mark.parametrize(("opset", "form"), OPSET_FORMS)
def test_fixed_shape_is_the_only_one_taken(opset, form):
    golden, dynamic = traced("sst_cyclic_x2", opset)
    bare = onnx.ModelProto()
    bare.CopyFrom(dynamic)
    lower.fix_shape(bare, Size(9, 14), 2)
    model = lower.lower(bare, form)
    x = golden.x[:1, :, :9, :14]
    with torch.inference_mode():
        expected = golden.model()(torch.from_numpy(x)).numpy()
    assert np.abs(run(model, x) - expected).max() <= 1e-5
    with pytest.raises(Exception, match="invalid dimensions"):
        run(model, golden.x[:1])


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize(("opset", "form"), [*OPSET_FORMS, (17, "plugin")])
@pytest.mark.parametrize("name", ["escrib_x2", "sst_shifted_x2"])
def test_strict_shape_inference_finds_every_tensor(name, opset, form, dtype):
    """It knows nothing of our operators, nor of other domains', and fails behind them unless they are declared."""
    if form == "plugin" and dtype == "fp32":
        pytest.skip("the plugins compute in half precision")
    bare = traced(name, opset)[1]
    model = lower.lower(halves.to_half(bare) if dtype == "fp16" else bare, form)
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    known = {
        value.name for value in (*inferred.value_info, *inferred.output) if value.type.tensor_type.HasField("shape")
    }
    assert [name for node in model.graph.node for name in node.output if name not in known] == []


@pytest.mark.parametrize("size", [None, Size(9, 14)])
def test_declared_shapes_are_those_that_come_out(size):
    """Of all forms that ONNX Runtime runs: the declared tensors, made outputs, have the declared sizes and type."""
    for opset, form in OPSET_FORMS:
        bare = onnx.ModelProto()
        bare.CopyFrom(traced("sst_cyclic_x2", opset)[1])
        if size:
            lower.fix_shape(bare, size, 2)
        model = lower.lower(bare, form)
        declared = list(model.graph.value_info)
        assert len(declared) == 6  # attentions
        model.graph.output.extend(declared)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found = session.run([value.name for value in declared], {"input": np.zeros((1, 3, 9, 14), np.float32)})
        sizes = {"batch": 1, "height": 9, "width": 14}
        for value, tensor in zip(declared, found, strict=True):
            dims = value.type.tensor_type.shape.dim
            told = [dim.dim_value or sizes.get(dim.dim_param) for dim in dims]
            assert [size or actual for size, actual in zip(told, np.shape(tensor), strict=True)] == list(
                np.shape(tensor)
            )
            assert form != "canonical" or None not in told


def test_attention_scores_are_counted_in_whole_windows():
    _, bare = traced("sst_cyclic_x2", 17)  # windows 4, 8, 12 in each of two blocks; three heads
    scores = lower.attention_scores(bare, Size(13, 5))
    assert [entry.window for entry in scores] == [(4, 4), (8, 8), (12, 12)] * 2
    assert [entry.count for entry in scores[:3]] == [3 * 16 * 8 * 16, 3 * 16 * 8 * 64, 3 * 24 * 12 * 144]
    assert scores[2].bytes == 4 * scores[2].count
