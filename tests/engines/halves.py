"""ONNX files in half precision of small networks, stamped as export.onnx does. Needs PyTorch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from export import lower, precision
from tests.engines import fakes

OPERATOR = "CyclicWindowAttention"


def to_half(bare: onnx.ModelProto, overflowing: Iterable[str] = ()) -> onnx.ModelProto:
    """A canonical graph without body in float16, but for the nodes that make the tensors named."""
    magnitudes = {name: 1.0 for node in bare.graph.node for name in node.output}
    return precision.to_half(bare, magnitudes | dict.fromkeys(overflowing, 1e6))[0]


def of(bare: onnx.ModelProto, dtype: str) -> onnx.ModelProto:
    """A canonical graph without body in a half precision, "fp16" or "bf16"."""
    return precision.to_bfloat16(bare) if dtype == "bf16" else to_half(bare)


def write(
    path: Path, bare: onnx.ModelProto, form: Any = "canonical", dtype: str = "fp16", scale: int = 2, **stamp: str
) -> Path:
    """The file of a graph without body that is in this precision. stamp: what is not as it is in all such files."""
    lowered = lower.lower(bare, form)
    nodes = [helper.get_node_attr_value(node, "window") for node in bare.graph.node if node.op_type == OPERATOR]
    values = {
        **{
            "model": "tiny",
            "scale": str(scale),
            "windows": json.dumps(nodes or [[8, 8]]),
            "precision": dtype,
            "form": form,
        },
        **{"version": "0.1.0", "checkpoint_sha256": fakes.SHA},
        **stamp,
    }
    helper.set_model_props(lowered, {f"ribsr.{name}": value for name, value in values.items()})
    onnx.save(lowered, str(path))
    return path
