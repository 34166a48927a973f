"""From a folded model to the canonical graph: one `ribsr::CyclicWindowAttention` node a layer, no shape arithmetic."""

from __future__ import annotations

import logging
import warnings

import onnx
import torch
from onnxscript import opset18
from torch import Tensor

from export import cyclic_window
from export.lower import set_shape
from plugins import operators
from ribsr.attention import Geometry, register_attention, set_attention
from ribsr.layers import RIBModel


def _node(qkv: Tensor, rib_q: Tensor, rib_k: Tensor, gate: Tensor, geometry: Geometry) -> Tensor:
    """The attention backend `onnx`: in an export it leaves one node of the custom operator."""
    return torch.onnx.ops.symbolic(
        f"{cyclic_window.DOMAIN}::{cyclic_window.NAME}",
        (qkv, rib_q, rib_k, gate),
        attrs={**geometry._asdict(), **operators.TENSORRT},
        dtype=qkv.dtype,
        shape=gate.shape,
        version=cyclic_window.VERSION,
    )


register_attention("onnx", _node)


def trace(model: RIBModel, opset: int) -> onnx.ModelProto:
    """The canonical graph of a folded model, without a body for its operator.

    Input `input` [batch, 3, height, width] and output `output`, all but the channels dynamic. The model is traced on
    fake tensors: nothing is computed, whatever the size. opset: one of OPSETS.
    """
    set_attention(model, "onnx")
    dynamic = torch.export.Dim.DYNAMIC
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own use of deprecated pytree functions
        for name in ("torch.onnx", "onnxscript", "onnx_ir"):  # they tell of conversions that are checked below
            logging.getLogger(name).setLevel(logging.ERROR)
        program = torch.onnx.export(
            model,
            (torch.zeros(2, 3, 24, 40),),
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=["input"],
            output_names=["output"],
            dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},),
            # One node that every runtime has, where the default is ReduceMean, which changed in opset 18.
            custom_translation_table={
                torch.ops.aten.adaptive_avg_pool2d.default: lambda x, _: opset18.GlobalAveragePool(x)
            },
        )
    assert program is not None
    traced = program.model_proto
    written = next(entry.version for entry in traced.opset_import if not entry.domain)
    if written != opset:  # torch writes 18 or above and converts; where that fails, it keeps what it has
        raise RuntimeError(f"torch.onnx wrote opset {written} instead of {opset}; choose --opset {written}")
    return _clean(traced, opset)


def _clean(traced: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Only what the file needs: no traces of the exporter, the opset asked for, readable dimension names."""
    graph = traced.graph
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del value.metadata_props[:]
    del graph.value_info[:]
    set_shape(graph.input[0], ("batch", 3, "height", "width"))
    set_shape(graph.output[0], ("batch", 3, "output_height", "output_width"))
    opsets = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(cyclic_window.DOMAIN, 1)]
    cleaned = onnx.helper.make_model(graph, opset_imports=opsets, producer_name="ribsr")
    cleaned.ir_version = onnx.helper.find_min_ir_version_for(opsets, ignore_unknown=True)
    return cleaned
