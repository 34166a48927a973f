"""What the layers of an ONNX file compute: their tensors by the names of PyTorch's modules, as outputs of the graph.

A node is a module's if it reads the module's weights, which keep their names in every form of a file. So nothing needs
to be written into files, and those of other tools that keep names can be looked into as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from plugins import operators

if TYPE_CHECKING:
    import onnx

OUTPUT = "output"
"""What the network itself is called among its layers."""

SUMS = (
    re.compile(r"(?P<whole>.+)\.ffn\.agg"),
    re.compile(r"(?P<whole>body\.\d+)\.\d+"),
    re.compile(r"(?P<whole>blocks\.\d+)\.conv_out"),
)
"""Modules that are last in `whole` but for a sum: a layer and a block of SST, a block of ESC-RIB."""


def tensors(model: onnx.ModelProto) -> dict[str, str]:
    """Names of modules → tensors of an ONNX file that are what they return, in the order of the graph."""
    weights = {tensor.name for tensor in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: dict[str, str] = {}
    for node in model.graph.node:
        # Weights in another precision are called `….weight/float16`. Those that several nodes read are of equal values,
        # as in networks that were never trained, and say nothing.
        own = (name for name in node.input if name in weights and len(readers[name]) == 1)
        for weight in (name.partition("/")[0] for name in own):
            module, _, kind = weight.rpartition(".")
            if kind == "rib_q" and node.op_type == operators.CYCLIC_WINDOW_ATTENTION.name:
                found[f"{module}.core"] = node.output[0]
            elif kind == "weight" and node.op_type == "Conv":
                if module.endswith(".to_out"):  # in flat forms nothing else says what the attention's output is
                    found.setdefault(f"{module.removesuffix('to_out')}core", node.input[0])
                found[module] = node.output[0]
                whole = next(filter(None, (rule.fullmatch(module) for rule in SUMS)), None)
                if whole and (total := _behind(node.output[0], "Add", readers)):
                    found[whole["whole"]] = total
            elif kind == "weight" and node.op_type == "LayerNormalization":
                last = _behind(node.output[0], "Transpose", readers)
                found |= {} if last is None else {module: last}
    return {**found, OUTPUT: OUTPUT}


def _behind(tensor: str, operator: str, readers: dict[str, list[onnx.NodeProto]]) -> str | None:
    """The output of a tensor's only reader, Casts apart, if that is such an operator."""
    while len(after := readers.get(tensor, [])) == 1 and after[0].op_type == "Cast":
        tensor = after[0].output[0]
    return after[0].output[0] if len(after) == 1 and after[0].op_type == operator else None


def turned(model: onnx.ModelProto) -> set[str]:
    """Of a file that was rewritten for our kernels: the tensors that are channels-last."""
    from plugins import channels_last  # which needs onnx

    found: set[str] = set()
    ours = (operators.DOMAIN, operators.CPU_BFLOAT16_DOMAIN)
    for node in model.graph.node:
        elementwise = node.op_type in channels_last.ELEMENTWISE and not found.isdisjoint(node.input)
        if node.domain in ours or elementwise:
            found.update(node.output)
    return found


def with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> bytes:
    """A copy of a file, serialised, whose outputs are these tensors."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = {output.name: output for output in model.graph.output}
    del copy.graph.output[:]
    copy.graph.output.extend(kept.get(name) or onnx.ValueInfoProto(name=name) for name in names)
    return copy.SerializeToString()
