"""Every form beside PyTorch with dynamic and with fixed sizes, no multiples of a window, in two runtimes.

Once sizes are fixed a runtime computes all indices in advance, with code of its own for constants, which may be wrong
where its operators are right (OpenVINO 2025.4 to 2026.4 leaves out an Abs of constants, without a message).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import onnx.inliner
import pytest
import torch

from export import Form, lower
from ribsr.base.sizes import Size
from tests.export.conftest import run, traced

FORMS = [(17, "canonical"), (23, "canonical"), (20, "mha"), (17, "matmul"), (23, "attention")]
SIZE = Size(13, 21)
"""No multiple of a window of the models tested, 4, 8, 12 and 16; smaller than one of them in one direction."""


@cache
def expected(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A picture of that size, and what PyTorch makes of it."""
    x = np.random.default_rng(0).random((1, 3, *SIZE), dtype=np.float32)
    with torch.inference_mode():
        return x, traced(name, 17)[0].model()(torch.from_numpy(x)).numpy()


def run_in_openvino(model: onnx.ModelProto, x: np.ndarray, reshape: bool = False) -> np.ndarray:
    """In float32, which is not OpenVINO's default on all CPUs. Model-local functions are inlined: it expands none."""
    openvino = pytest.importorskip("openvino")
    inlined = onnx.inliner.inline_local_functions(model)
    read = openvino.Core().read_model(inlined.SerializeToString())
    if reshape:
        read.reshape({"input": x.shape})
    compiled = openvino.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.asarray(compiled({"input": x})["output"])


def reshaped_in_openvino(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """A file of any size that the program around the runtime fixes, as vs-mlrt's OpenVINO plugin does."""
    return run_in_openvino(model, x, reshape=True)


def fixed_by_input(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """A file of any size whose input alone is given one, as onnxruntime.tools.make_dynamic_shape_fixed does."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    lower.set_shape(copy.graph.input[0], x.shape)
    return run(copy, x)


@pytest.mark.parametrize(("opset", "form"), FORMS)
@pytest.mark.parametrize("name", ["sst_cyclic_x2", "sst_shifted_x2", "escrib_x2"])
@pytest.mark.parametrize("runs", [run_in_openvino, reshaped_in_openvino, fixed_by_input])
def test_a_file_of_any_size(name: str, opset: int, form: Form, runs: Callable[..., np.ndarray]) -> None:
    x, y = expected(name)
    assert np.abs(runs(lower.lower(traced(name, opset)[1], form), x) - y).max() <= 1e-5


@pytest.mark.parametrize(("opset", "form"), FORMS)
@pytest.mark.parametrize("name", ["sst_cyclic_x2", "sst_shifted_x2", "escrib_x2"])
@pytest.mark.parametrize("runs", [run, run_in_openvino])
def test_a_file_of_one_size(name: str, opset: int, form: Form, runs: Callable[..., np.ndarray]) -> None:
    x, y = expected(name)
    bare = onnx.ModelProto()
    bare.CopyFrom(traced(name, opset)[1])
    lower.fix_shape(bare, SIZE, 2)
    assert np.abs(runs(lower.lower(bare, form), x) - y).max() <= 1e-5
