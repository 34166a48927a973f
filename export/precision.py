"""Half precision as a property of the graph: every tensor is typed, and what would overflow stays in float32.

Works on a canonical graph, before lowering, whose outer tensors are all floating point. Decided by running real
pictures through the float32 model in ONNX Runtime, because fp16's loudest failure is a residual stream that outgrows
it on real pictures: black or NaN output. LayerNorm's statistics are float32 by its definition (stash_type 1), the
attention's softmax by the operator's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from engines import samples
from engines.base import release
from engines.ort import FIRST_FOR_CPU_KERNELS
from engines.ort_kernels import WINDOW_SIDES
from export.cyclic_window import NAME
from plugins import library
from ribsr.base.sizes import Size

CHECK_SIZE = Size(40, 56)
"""Of the pictures for calibration and for the check of a new file: no multiple of a window, and soon done."""

LIMIT = 65504 / 4
"""Largest magnitude, on the calibration pictures, that a tensor may have to go into float16: a quarter of its range."""


@dataclass(frozen=True)
class Report:
    """What `to_half` decided: the largest activation seen and the tensor's name, the nodes kept in float32, and how
    many are not."""

    largest: float
    largest_tensor: str
    float32_nodes: tuple[str, ...]
    half_nodes: int


def check_pictures(static: Size | None) -> list[np.ndarray]:
    """Real pictures [1, 3, H, W], at the file's size if it is fixed."""
    return [picture for _, picture in samples.at(static or CHECK_SIZE)]


def calibrated(bare: onnx.ModelProto, runnable: onnx.ModelProto, say: Callable[[str], None]) -> onnx.ModelProto:
    """`to_half` of a graph by what the same with a body gives on real pictures; says what float16 does to it.

    The pictures are the same for every file: at a fixed size of 640x360 they would take half an hour on two cores.
    """
    half, report = to_half(bare, measure(runnable, check_pictures(None)))
    say(f"float16: largest activation on the sample pictures {report.largest:.4g} ({report.largest_tensor})")
    if kept := report.float32_nodes:
        nodes = len(kept) + report.half_nodes
        say(f"  {len(kept)} of {nodes} nodes stay in float32 to be safe from overflow, the first is {kept[0]}")
    return half


def measure(model: onnx.ModelProto, pictures: Iterable[np.ndarray]) -> dict[str, float]:
    """Largest magnitude of every activation of `model` over `pictures`, each [1, 3, H, W] float32 in [0, 1]; infinite
    for one that is not finite, and for the output if a NaN has got there: ONNX Runtime's maximum passes over those.

    model: one that ONNX Runtime runs (the canonical form), whose fixed size, if it has one, does not count. Raises
    ModuleNotFoundError without ONNX Runtime.
    """
    import onnxruntime

    names = [name for node in model.graph.node for name in node.output]
    output = model.graph.output[0].name
    options = onnxruntime.SessionOptions()
    options.enable_mem_pattern = False  # a second run's plan would take new memory for all of it at once
    options.log_severity_level = 4  # errors are exceptions
    probe = _probe(model, names)
    attentions = [node for node in model.graph.node if node.op_type == NAME]
    if attentions and _our_kernels_run(attentions):
        options.register_custom_ops_library(str(library.cpu_path().resolve()))
        _use_our_kernels(probe)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    del probe  # what it takes is wanted for the runs
    largest = dict.fromkeys(names, 0.0)
    for picture in pictures:
        *values, y = session.run([*(f"{name}/max" for name in names), output], {"input": picture})
        for name, value in zip(names, map(float, values), strict=True):  # pyright: ignore[reportArgumentType]
            largest[name] = max(largest[name], value) if np.isfinite(value) else np.inf
        if not np.isfinite(np.asarray(y)).all():
            largest[output] = np.inf
    return largest


def _probe(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """`model` for pictures of any size, with the largest magnitude of each of these tensors as one more output."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    graph = probe.graph
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.ClearField("shape")
    # ONNX Runtime goes back from the results, the last node's first: like this each tensor is reduced, and let go, soon
    # after it is made. In the other order all of them are held until the end: 3.4 GiB more for sst-l+.
    for name in reversed(list(names)):
        graph.node.append(onnx.helper.make_node("Abs", [name], [f"{name}/abs"]))
        graph.node.append(onnx.helper.make_node("ReduceMax", [f"{name}/abs"], [f"{name}/max"], keepdims=0))
        graph.output.append(onnx.helper.make_tensor_value_info(f"{name}/max", onnx.TensorProto.FLOAT, []))
    return probe


def _our_kernels_run(attentions: Iterable[onnx.NodeProto]) -> bool:
    """Whether our library for CPUs is there, and runs these: ONNX Runtime itself takes ten times as long."""
    import onnxruntime

    windows = (item.ints for node in attentions for item in node.attribute if item.name == "window")
    sides = {side for window in windows for side in window}
    if not sides <= {*WINDOW_SIDES} or release(onnxruntime.__version__) < FIRST_FOR_CPU_KERNELS:
        return False
    try:
        library.opened(library.cpu_path())
    except library.LibraryError:
        return False
    return True


def _use_our_kernels(probe: onnx.ModelProto) -> None:
    """Makes the attentions operators of the library's, whose maps are channels-last. All else stays as it is."""
    nodes: list[onnx.NodeProto] = []
    for node in probe.graph.node:
        if node.op_type == NAME:
            maps, output = (0, 3), node.output[0]  # qkv and the gate
            inputs = [f"{name}/{output}" if index in maps else name for index, name in enumerate(node.input)]
            for index in maps:
                nodes.append(_transpose(node.input[index], inputs[index], [0, 2, 3, 1]))
            ours = onnx.NodeProto()
            ours.CopyFrom(node)
            ours.input[:], ours.output[:] = inputs, [f"{output}/last"]
            ours.attribute.append(onnx.helper.make_attribute("gate_sigmoid", 0))
            nodes += [ours, _transpose(f"{output}/last", output, [0, 3, 1, 2])]
        else:
            nodes.append(node)
    del probe.graph.node[:], probe.functions[:]
    probe.graph.node.extend(nodes)


def _transpose(source: str, target: str, order: list[int]) -> onnx.NodeProto:
    return onnx.helper.make_node("Transpose", [source], [target], perm=order)


def to_half(bare: onnx.ModelProto, magnitudes: dict[str, float]) -> tuple[onnx.ModelProto, Report]:
    """A float16 version of a canonical graph without body, and what was kept in float32.

    A node is float32 if a tensor it reads or writes, weights included, would exceed LIMIT, and float16 otherwise;
    one Cast stands wherever a tensor changes type. Input and output stay float32.

    magnitudes: what `measure` gave for the same graph. Raises ValueError if the float32 model itself is not finite.
    """
    if broken := [name for name, value in magnitudes.items() if not np.isfinite(value)]:
        raise ValueError(f"the model gives NaN or infinite values in float32 already, first in {broken[0]}")
    wide = {name for name, value in magnitudes.items() if value > LIMIT}
    half, kept, others = _typed(bare, np.float16, lambda node: _needs_float32(node, wide))
    name = max(magnitudes, key=lambda key: magnitudes[key])
    return half, Report(magnitudes[name], name, kept, others)


def to_bfloat16(bare: onnx.ModelProto) -> onnx.ModelProto:
    """A bfloat16 version of a canonical graph without body. Input and output stay float32.

    No node is: bfloat16 has float32's range, so nothing can overflow that did not before.
    """
    import ml_dtypes  # comes with onnx-graphsurgeon

    return _typed(bare, ml_dtypes.bfloat16, lambda node: False)[0]


def _typed(
    bare: onnx.ModelProto, half: type, is_single: Callable[[gs.Node], bool]
) -> tuple[onnx.ModelProto, tuple[str, ...], int]:
    """`bare` with all nodes in the type `half` but those that `is_single`, the names of these, the number of others."""
    graph: Any = gs.import_onnx(bare)  # graphsurgeon declares its lists as sequences that cannot be changed
    nodes = list(graph.nodes)
    kept = [node for node in nodes if is_single(node)]
    single = {id(node) for node in kept}
    copies: dict[tuple[int, type], gs.Variable | gs.Constant] = {}

    def typed(tensor: gs.Variable | gs.Constant, dtype: type) -> gs.Variable | gs.Constant:
        """`tensor` in `dtype`: itself, a converted constant, or the output of one shared Cast."""
        if tensor.dtype == dtype or not _is_float(tensor):
            return tensor
        if (id(tensor), dtype) not in copies:
            name = f"{tensor.name}/{np.dtype(dtype).name}"
            if isinstance(tensor, gs.Constant):
                copy = gs.Constant(name, tensor.values.astype(dtype))
            else:
                copy = gs.Variable(name, dtype=dtype)
                graph.nodes.append(_cast(tensor, copy))
            copies[id(tensor), dtype] = copy
        return copies[id(tensor), dtype]

    for node in nodes:
        dtype = np.float32 if id(node) in single else half
        node.inputs = [typed(tensor, dtype) for tensor in node.inputs]
        for tensor in node.outputs:
            tensor.dtype = dtype
    _restore_output(graph)
    graph.cleanup().toposort()
    made = gs.export_onnx(graph)
    made.ir_version, made.producer_name = bare.ir_version, bare.producer_name
    del made.graph.value_info[:]
    names = tuple(f"{node.op} → {node.outputs[0].name}" for node in kept)
    return made, names, len(nodes) - len(kept)


def _needs_float32(node: gs.Node, wide: set[str]) -> bool:
    tensors = [*node.inputs, *node.outputs]
    constants = (tensor.values for tensor in tensors if isinstance(tensor, gs.Constant) and _is_float(tensor))
    return any(tensor.name in wide for tensor in tensors) or any(np.abs(values).max() > LIMIT for values in constants)


def _is_float(tensor: gs.Tensor) -> bool:
    """Integer constants (indices, split sizes) keep their type; every activation of a canonical graph is a float."""
    return not isinstance(tensor, gs.Constant) or np.issubdtype(tensor.values.dtype, np.floating)


def _cast(source: gs.Tensor, target: gs.Variable) -> gs.Node:
    to = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(target.dtype))
    return gs.Node("Cast", name=f"{target.name}/cast", attrs={"to": int(to)}, inputs=[source], outputs=[target])


def _restore_output(graph: Any) -> None:
    """The graph's output under its own name and in float32."""
    (output,) = graph.outputs
    if output.dtype == np.float32:
        return
    final = gs.Variable(output.name, dtype=np.float32, shape=output.shape)
    output.name = f"{output.name}/half"
    graph.nodes.append(_cast(output, final))
    graph.outputs = [final]
