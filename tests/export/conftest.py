"""Traced graphs of the golden models: tracing takes seconds, so each is done once."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime

from export.canonical import trace
from export.fold import fold
from tests.conftest import Golden, load_golden


@cache
def traced(name: str, opset: int) -> tuple[Golden, onnx.ModelProto]:
    """A golden model and its canonical graph without body."""
    golden = load_golden(name)
    return golden, trace(fold(golden.model())[0], opset)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """What stock ONNX Runtime makes of a model."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["output"], {"input": x})[0])
