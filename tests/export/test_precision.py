from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export import lower, precision
from export.cyclic_window import NAME
from plugins import library
from ribsr.base.sizes import Size
from tests.export.conftest import run, traced


def half_of(name: str, opset: int = 17):
    golden, bare = traced(name, opset)
    magnitudes = precision.measure(lower.lower(bare, "canonical"), [golden.x])
    return golden, *precision.to_half(bare, magnitudes)


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of each tensor, as the checker infers it from the weights on: the graph is truly typed."""
    stand_in = onnx.ModelProto()
    stand_in.CopyFrom(model)
    for node in stand_in.graph.node:
        if node.op_type == NAME:  # one type for everything, the shape of the gate
            del node.attribute[:]
            node.op_type, node.domain = "Identity", ""
            node.input[:] = [node.input[3]]
    inferred = onnx.shape_inference.infer_shapes(stand_in, check_type=True, strict_mode=True)
    graph = inferred.graph
    found = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output, *graph.value_info)}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


@pytest.mark.parametrize("form", ["canonical", "mha", "matmul"])
def test_half_precision_errs_at_most_twice_as_much_as_pytorch_in_it(name, form):
    golden, half, _ = half_of(name)
    y = run(lower.lower(half, form), golden.x)
    with torch.inference_mode():
        pytorch = golden.model().half()(torch.from_numpy(golden.x).half()).float().numpy()
    rms = [float(np.sqrt(np.square(out - golden.y).mean())) for out in (y, pytorch)]
    assert rms[0] <= 2 * rms[1]
    assert rms[0] > 1e-6  # it is half precision indeed


def test_the_graph_is_typed_half_all_through(name):
    _, half, report = half_of(name)
    assert report.float32_nodes == ()
    found = types(half)
    for node in half.graph.node:
        if node.op_type == "Cast":
            continue
        for tensor in (*node.input, *node.output):
            assert found[tensor] in (onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64), (node.op_type, tensor)
    assert [node.op_type for node in half.graph.node].count("Cast") == 2
    for value in (*half.graph.input, *half.graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def overflowing(gain: float):
    """The cyclic golden model with a residual stream of up to about 4·gain, and an output that stays small."""
    from export.canonical import trace
    from export.fold import fold

    golden, _ = traced("sst_cyclic_x2", 17)
    model = golden.model()
    with torch.no_grad():
        for parameter in model.proj.parameters():
            parameter *= gain
        for key, parameter in model.named_parameters():
            if key.startswith("body.") and key.split(".")[2] == "3":  # each block ends in a convolution of the stream
                parameter *= 0.5
        model.upsampler.up_conv.weight /= gain
    bare = trace(fold(model)[0], 17)
    with torch.inference_mode():
        expected = model(torch.from_numpy(golden.x)).numpy()
    return golden.x, expected, bare


def test_a_residual_stream_that_would_overflow_stays_in_float32():
    x, expected, bare = overflowing(1e5)
    magnitudes = precision.measure(lower.lower(bare, "canonical"), [x])
    assert max(magnitudes.values()) > 65504
    half, report = precision.to_half(bare, magnitudes)
    assert report.largest == max(magnitudes.values())
    assert 0 < len(report.float32_nodes) < report.half_nodes
    y = run(lower.lower(half, "canonical"), x)
    assert np.isfinite(y).all()
    assert np.sqrt(np.square(y - expected).mean()) < 5e-3
    found = types(half)
    for name, value in magnitudes.items():
        if value > precision.LIMIT:
            assert found[name] == onnx.TensorProto.FLOAT, name
    naive, _ = precision.to_half(bare, dict.fromkeys(magnitudes, 1.0))
    assert not np.isfinite(run(lower.lower(naive, "canonical"), x)).all()  # what the decision saves us from


def test_weights_beyond_half_precision_keep_their_node_in_float32():
    golden, bare = traced("sst_shifted_x2", 17)
    changed = onnx.ModelProto()
    changed.CopyFrom(bare)
    weight = next(tensor for tensor in changed.graph.initializer if tensor.name == "proj.bias")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0] = 1e5
    weight.CopyFrom(onnx.numpy_helper.from_array(values, "proj.bias"))
    magnitudes = dict.fromkeys((name for node in bare.graph.node for name in node.output), 1.0)
    _, report = precision.to_half(changed, magnitudes)
    assert len(report.float32_nodes) == 1
    assert report.float32_nodes[0].startswith("Conv")


def test_a_model_that_is_broken_in_float32_is_refused():
    _, bare = traced("sst_shifted_x2", 17)
    magnitudes = {name: 1.0 for node in bare.graph.node for name in node.output}
    magnitudes[next(iter(magnitudes))] = np.inf
    with pytest.raises(ValueError, match="NaN or infinite values in float32 already"):
        precision.to_half(bare, magnitudes)


@pytest.mark.parametrize("name", ["sst_cyclic_x2", "sst_shifted_x2", "escrib_x2"])
def test_our_kernels_find_what_onnxruntimes_own_operators_find(name: str, cpu_library: Path, monkeypatch) -> None:
    golden, bare = traced(name, 17)
    model = lower.lower(bare, "canonical")
    ours = precision.measure(model, [golden.x])
    monkeypatch.setattr(precision, "_our_kernels_run", lambda attentions: False)
    others = precision.measure(model, [golden.x])
    assert ours.keys() == others.keys()
    np.testing.assert_allclose(list(ours.values()), list(others.values()), rtol=1e-5)


@pytest.mark.usefixtures("cpu_library")
def test_our_kernels_find_what_would_overflow() -> None:
    x, _, bare = overflowing(1e5)
    _, report = precision.to_half(bare, precision.measure(lower.lower(bare, "canonical"), [x]))
    assert report.largest > 65504
    assert 0 < len(report.float32_nodes) < report.half_nodes


def test_our_kernels_are_left_out_where_they_cannot_run(cpu_library: Path, tmp_path: Path, monkeypatch) -> None:
    def node(side: int) -> onnx.NodeProto:
        return onnx.helper.make_node("CyclicWindowAttention", [], [], window=[8, side])

    assert precision._our_kernels_run([node(128)])
    assert not precision._our_kernels_run([node(8), node(129)])
    monkeypatch.setattr("onnxruntime.__version__", "1.16.3")
    assert not precision._our_kernels_run([node(8)])
    monkeypatch.undo()
    monkeypatch.setenv(library.CPU_VARIABLE, str(tmp_path / "none.so"))
    assert not precision._our_kernels_run([node(8)])


def test_a_fixed_size_does_not_count() -> None:
    golden, bare = traced("sst_cyclic_x2", 17)
    fixed = onnx.ModelProto()
    fixed.CopyFrom(bare)
    lower.fix_shape(fixed, Size(7, 9), 2)
    measured = [precision.measure(lower.lower(model, "canonical"), [golden.x]) for model in (bare, fixed)]
    assert measured[0] == measured[1]


def chain(*operators: str) -> onnx.ModelProto:
    """A model of operators of one input, one behind the other."""
    names = ["input", *(f"x{index}" for index in range(1, len(operators))), "output"]
    nodes = [
        onnx.helper.make_node(operator, [x], [y])
        for operator, x, y in zip(operators, names[:-1], names[1:], strict=True)
    ]
    start, end = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, "height", "width"])
        for name in ("input", "output")
    )
    graph = onnx.helper.make_graph(nodes, "chain", [start], [end])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def test_one_nan_among_many_values_is_found() -> None:
    x = np.ones((1, 3, 20, 30), np.float32)
    x[0, 1, 7, 9] = -1
    assert precision.measure(chain("Neg", "Neg"), [x]) == {"x1": 1, "output": 1}
    assert precision.measure(chain("Neg", "Neg", "Sqrt", "Neg"), [x])["output"] == np.inf


def test_activations_are_not_held_until_the_end() -> None:
    """200 of 12 MB each."""
    program = (
        "import numpy as np\n"
        "from export import precision\n"
        "from tests.export.test_precision import chain\n"
        "precision.measure(chain(*['Neg', 'Sigmoid'] * 100), [np.ones((1, 3, 1024, 1024), np.float32)])\n"
        # Its own: getrusage's includes what the process had that started it.
        "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM:')))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1 << 20  # KiB
