"""Every ONNX form of the operator against the PyTorch reference in float64, over geometry and sizes."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export import cyclic_window
from export.lower import lower
from plugins import operators
from ribsr.attention import Geometry, reference

FORMS = [("canonical", 17), ("canonical", 23), ("mha", 17), ("matmul", 17), ("attention", 23)]
INPUTS = ("qkv", "rib_q", "rib_k", "gate")


@cache
def session(form: str, opset: int, geometry: tuple[tuple[str, Any], ...]) -> onnxruntime.InferenceSession:
    """One node in the given form; every size but those the operator fixes is dynamic."""
    node = onnx.helper.make_node(
        cyclic_window.NAME,
        INPUTS,
        ["output"],
        domain=cyclic_window.DOMAIN,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in geometry},
        **operators.TENSORRT,
    )
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in (*INPUTS, "output")]
    opsets = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(cyclic_window.DOMAIN, 1)]
    bare = onnx.helper.make_model(
        onnx.helper.make_graph([node], "one", values[:4], values[4:]),
        opset_imports=opsets,
        ir_version=onnx.helper.find_min_ir_version_for(opsets, ignore_unknown=True),
    )
    lowered = lower(bare, form)  # pyright: ignore[reportArgumentType]
    return onnxruntime.InferenceSession(lowered.SerializeToString(), providers=["CPUExecutionProvider"])


GEOMETRIES = [
    {"window": (8, 8), "heads": 3, "shift": (0, 0), "scale": 0.25},
    {"window": (4, 6), "heads": 2, "shift": (2, 5), "scale": 0.3},
    {"window": (12, 5), "heads": 1, "shift": (1, 0), "scale": 16**-0.5},
    {"window": (16, 16), "heads": 2, "shift": (8, 8), "scale": 1.0},
]


@pytest.mark.parametrize(("form", "opset"), FORMS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_form_equals_the_reference(form, opset, data):
    geometry = data.draw(st.sampled_from(GEOMETRIES))
    b, h, w = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    d, r = data.draw(st.sampled_from([16, 32])), data.draw(st.sampled_from([8, 24]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    heads, n = geometry["heads"], geometry["window"][0] * geometry["window"][1]
    shapes = [(b, 3 * heads * d, h, w), (heads, n, r), (heads, n, r), (b, heads * d, h, w)]
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    expected = reference(*(t.double() for t in tensors), geometry=Geometry(**geometry))
    feeds = dict(zip(INPUTS, (t.numpy() for t in tensors), strict=True))
    y = np.asarray(session(form, opset, tuple(geometry.items())).run(None, feeds)[0])
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected.numpy(), rtol=0, atol=5e-5)


@pytest.mark.parametrize(("form", "opset"), FORMS)
def test_scale_multiplies_the_scores_and_not_the_rounded_queries(form, opset):
    """At logits of 2e4, scaling q first would round it again and err by about 7e-3."""
    generator = torch.Generator().manual_seed(0)
    geometry = {"window": (8, 8), "heads": 1, "shift": (0, 0), "scale": 0.1825741858}
    shapes = [(1, 96, 8, 8), (1, 64, 8), (1, 64, 8), (1, 32, 8, 8)]
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    tensors[0][:, :64] *= 60  # content scores of several thousand
    expected = reference(*(t.double() for t in tensors), geometry=Geometry(**geometry))
    feeds = dict(zip(INPUTS, (t.numpy() for t in tensors), strict=True))
    y = np.asarray(session(form, opset, tuple(geometry.items())).run(None, feeds)[0])
    np.testing.assert_allclose(y, expected.numpy(), rtol=0, atol=2e-3)
