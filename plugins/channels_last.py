"""Graphs for ONNX Runtime with our operators: from the `plugin` form to channels-last maps from end to end.

There the operators' maps are [B, H, W, C], and the dense convolutions between them are operators, too. Nothing is
transposed but the picture and the result, and no convolution of the runtime's is left, for which it would search the
fastest algorithm at every new size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from plugins import fuse, operators
from plugins.operators import CONVOLUTION, OPERATORS, Operator, is_map

ELEMENTWISE = ("Add", "Cast", "Div", "Erf", "Gelu", "LeakyRelu", "Mul", "Relu", "Sigmoid", "Sub")
"""Operators of ONNX that do the same to every value."""

_ROWS = {operator.name: operator for operator in OPERATORS}
_TO_LAST, _TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


def to_channels_last(plugin: onnx.ModelProto, on_cpu: bool = False) -> onnx.ModelProto:
    """A graph in plugin form for ONNX Runtime with a library of custom operators.

    on_cpu: as of `plugins.fuse`. Inputs and outputs of the graph stay as they are. For GPUs, operators that may need a
    workspace have it as one more output, and channels that are convolved are a multiple of 8.
    """
    model = fuse.join_convolutions(plugin, on_cpu)
    layout = _Layout(model.graph.initializer, on_cpu)
    for node in [*model.graph.node, *_outputs_apart(model.graph)]:
        row = _ROWS.get(node.op_type) if node.domain == operators.DOMAIN else None
        if row is not None:
            layout.write_operator(node, row)
        elif node.op_type == "DepthToSpace" and node.input[0] in layout.maps:
            layout.write_shuffle(node)
        elif node.op_type in ELEMENTWISE and layout.is_inside(node):
            layout.write(node, [layout.last(name) for name in node.input])
        else:
            layout.write(node, [layout.first(name) for name in node.input], last=False)
    del model.graph.node[:], model.graph.value_info[:], model.graph.initializer[:]
    model.graph.node.extend(layout.nodes)
    read = {name for node in layout.nodes for name in node.input}
    model.graph.initializer.extend(tensor for name, tensor in layout.constants.items() if name in read)
    return model


def _outputs_apart(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Nodes that make the graph's outputs of what its own nodes return under other names from now on."""
    names = {output.name: f"{output.name}/inside" for output in graph.output}
    for node in graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(name, name) for name in tensors]
    return [helper.make_node("Identity", [inside], [name], name=name) for name, inside in names.items()]


class _Layout:
    """The nodes of the new graph as they are written, and which of its tensors are channels-last."""

    def __init__(self, constants: Sequence[TensorProto], on_cpu: bool):
        self._on_cpu = on_cpu
        self.constants = {tensor.name: tensor for tensor in constants}
        self.nodes: list[onnx.NodeProto] = []
        self.maps: set[str] = set()
        """Tensors of the old graph that the new one has channels-last."""
        self._turned: set[str] = set()
        """Those that it has in the other layout, too."""
        self._padded: set[str] = set()

    def is_inside(self, node: onnx.NodeProto) -> bool:
        """Whether a node reads a channels-last map, and besides only other maps and single values."""
        single = [name for name in node.input if self._is_constant(name) and math.prod(self.constants[name].dims) == 1]
        others = [name for name in node.input if name not in single]
        return any(name in self.maps for name in others) and not any(map(self._is_constant, others))

    def _is_constant(self, name: str) -> bool:
        return name in self.constants

    def last(self, name: str) -> str:
        """The name under which a tensor is channels-last; a constant keeps its own."""
        return name if not name or name in self.maps or self._is_constant(name) else self._turn(name, _TO_LAST)

    def first(self, name: str) -> str:
        """The name under which a tensor is as in the old graph."""
        return self._turn(name, _TO_FIRST) if name in self.maps else name

    def _turn(self, name: str, order: list[int]) -> str:
        other = f"{name}/turned"
        if other not in self._turned:
            self.nodes.append(helper.make_node("Transpose", [name], [other], name=other, perm=order))
            self._turned.add(other)
        return other

    def write(
        self, node: onnx.NodeProto, inputs: Sequence[str], more: Sequence[str] = (), *, last: bool = True
    ) -> None:
        """The node with other inputs and more outputs; last: whether its outputs are channels-last maps."""
        written = onnx.NodeProto()
        written.CopyFrom(node)
        del written.input[:]
        written.input.extend(inputs)
        self.maps.update(written.output if last else ())
        written.output.extend(more)
        self.nodes.append(written)

    def write_operator(self, node: onnx.NodeProto, row: Operator) -> None:
        """One of our operators, its workspace as an output that nothing reads."""
        inputs = list(node.input)
        if row is CONVOLUTION:
            inputs[0], inputs[2] = self._kernel(inputs[0], inputs[2])
        tensors = zip(inputs, row.tensors.values(), strict=True)
        inputs = [self.last(name) if is_map(shape) else name for name, shape in tensors]
        has_workspace = row.has_workspace and not self._on_cpu
        self.write(node, inputs, [f"{node.output[0]}/workspace"] if has_workspace else [])

    def write_shuffle(self, node: onnx.NodeProto) -> None:
        """A pixel shuffle, [B, H, W, C·s²] → [B, sH, sW, C], which ONNX has for channels-first maps only.

        Its channels are ordered (C, s, s). The map is not transposed to that order and back.
        """
        (x,), (y,) = node.input, node.output
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if attributes.get("mode") != b"CRD":
            return self.write(node, [self.first(x)], last=False)
        s = attributes["blocksize"]
        apart, shape, sides, size = (f"{y}/{part}" for part in ("apart", "shape", "sides", "size"))
        self._constant(f"{y}/split", [0, 0, 0, -1, s, s])  # zeros keep the dimension
        self._constant(f"{y}/factors", [1, s, s])
        self._constant(f"{y}/channels", [-1])
        self.nodes += [
            helper.make_node("Reshape", [x, f"{y}/split"], [f"{y}/six"], name=f"{y}/six"),
            helper.make_node("Transpose", [f"{y}/six"], [apart], name=apart, perm=[0, 1, 4, 2, 5, 3]),
            helper.make_node("Shape", [x], [shape], name=shape, end=3),
            helper.make_node("Mul", [shape, f"{y}/factors"], [sides], name=sides),
            helper.make_node("Concat", [sides, f"{y}/channels"], [size], name=size, axis=0),
            helper.make_node("Reshape", [apart, size], [y], name=y),
        ]
        self.maps.add(y)
        return None

    def _constant(self, name: str, values: Sequence[int]) -> str:
        self.constants[name] = helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
        return name

    def _kernel(self, x: str, weight: str) -> tuple[str, str]:
        """A convolution's map and weights: [outputs, rows, columns, channels].

        Channels that lack on a GPU are zeros.
        """
        kernel = np.transpose(_bits(self.constants[weight]), _TO_LAST)
        multiple = 1 if self._on_cpu else CONVOLUTION.widths.multiple[0]
        if lacking := -kernel.shape[-1] % multiple:
            kernel = np.pad(kernel, [(0, 0)] * 3 + [(0, lacking)])
            x = self._pad(x, lacking)
        name = f"{weight}/last"
        if name not in self.constants:
            data_type = self.constants[weight].data_type
            self.constants[name] = helper.make_tensor(name, data_type, kernel.shape, kernel.tobytes(), raw=True)
        return x, name

    def _pad(self, x: str, lacking: int) -> str:
        """A map with zeros behind its channels. Where it is cast, that is done before: Pad has no bfloat16 on GPUs."""
        padded = f"{x}/padded"
        if padded not in self._padded:
            cast = next((node for node in self.nodes if x in node.output and node.op_type == "Cast"), None)
            source = x if cast is None else cast.input[0]
            pads = [0] * 7 + [lacking] if source in self.maps else [0] * 5 + [lacking, 0, 0]
            wide = padded if cast is None else f"{padded}/wide"
            inputs = [source, self._constant(f"{padded}/pads", pads)]
            self.nodes.append(helper.make_node("Pad", inputs, [wide], name=wide))
            if cast is not None:
                self.nodes.append(helper.make_node("Cast", [wide], [padded], name=padded, to=cast.attribute[0].i))
            if source in self.maps:
                self.maps.add(padded)
            self._padded.add(padded)
        return padded


def _bits(tensor: TensorProto) -> np.ndarray:
    """A constant's values; those of half precision as the integers that they are in memory: NumPy lacks bfloat16."""
    if tensor.data_type == TensorProto.FLOAT:
        return numpy_helper.to_array(tensor)
    bits = np.dtype(f"u{helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize}")
    values = np.frombuffer(tensor.raw_data, bits) if tensor.raw_data else np.array(tensor.int32_data, bits)
    return values.reshape(tensor.dims)
