"""ONNX Runtime's form with our operators: it computes the same, and nothing but picture and result is transposed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from export import lower
from plugins import fuse, operators
from plugins.channels_last import to_channels_last
from tests.export.conftest import run, traced
from tests.plugins.test_fuse import half_of, small


def evaluated(row: operators.Operator) -> type[OpRun]:
    """An operator for ONNX's reference evaluator as the custom operators are: channels-last, with a workspace."""

    def _run(self, *inputs, plugin_version, plugin_namespace, **attributes):
        shapes = row.tensors.values()
        tensors = [None if x is None else torch.from_numpy(np.asarray(x, np.float64)) for x in inputs]
        for index, shape in enumerate(shapes):
            x = tensors[index]
            if operators.is_map(shape) and x is not None:
                tensors[index] = x.permute(0, 3, 1, 2)
        row.values([None if x is None else x.shape for x in tensors], **attributes)
        results = row.reference(*tensors, **attributes)
        results = results if isinstance(results, tuple) else (results,)
        results = [result.permute(0, 2, 3, 1).numpy().astype(inputs[0].dtype) for result in results]
        return (*results, *([np.zeros(1, inputs[0].dtype)] * row.has_workspace))

    return type(row.name, (OpRun,), {"op_domain": operators.DOMAIN, "_run": _run})


OPERATORS = [evaluated(row) for row in operators.OPERATORS]
SHUFFLE = {"Reshape", "Transpose", "Shape", "Mul", "Concat"}
"""A pixel shuffle of channels-last maps."""
CONVOLUTION = operators.CONVOLUTION.name


def evaluate(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    (y,) = ReferenceEvaluator(model, new_ops=OPERATORS).run(None, {"input": x})
    return np.asarray(y)


def operations(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("opset", [17, 20])
def test_computes_the_same(name, opset, monkeypatch):
    """Exactly: in float32, which the fusion would leave alone otherwise."""
    golden, bare = traced(name, opset)
    monkeypatch.setattr(fuse, "HALF", (onnx.TensorProto.FLOAT,))
    model = to_channels_last(lower.lower(bare, "plugin"))
    x = golden.x[:1, :, :13, :10]
    np.testing.assert_allclose(evaluate(model, x), run(lower.lower(bare, "canonical"), x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize(("name", "transposed"), [("sst-light", 4), ("sst-l+", 4)])
def test_released_networks_run_in_our_operators(name, transposed, dtype):
    """The picture and its enlargement are transposed, the map that is shuffled to pixels, and the result."""
    half = half_of(small(name, 17), dtype)
    found = operations(to_channels_last(lower.lower(half, "plugin")))
    assert found["Transpose"] <= transposed
    ours = {row.name for row in operators.OPERATORS}
    assert set(found) - ours <= {*SHUFFLE, "Cast", "Transpose", "Pad", "Gather", "DepthToSpace", "Identity"}
