"""PyTorch operators on the CUDA kernels; importing this registers them.

Every row of `plugins.operators` becomes torch.ops.ribsr.<torch_name>: the kernel on CUDA, the row's reference on a CPU.
It also registers attention="kernel" with ribsr. The repository's root must be on the path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from plugins import library, operators
from plugins.operators import Operator
from ribsr import attention

DTYPES = {torch.float16: library.FLOAT16, torch.bfloat16: library.BFLOAT16}
"""Those of the kernels for GPUs."""

CPU_DTYPES = {torch.float32: library.FLOAT32}


class Call:
    """One call of an operator's kernel, ready to be made any number of times; it keeps its tensors.

    inputs: CUDA tensors of one 16-bit dtype or a CPU's in float32, shaped as `operator.tensors` says; maps of any
    strides that the kernel takes (on a CPU: channels-last); None for optional ones that are left out. outputs: where
    the results go; made in the layout of the first input if not given. workspace: another call's, if the two do not run
    at the same time. executor: how it runs on a CPU; None: on one thread. attributes: the operator's and its options.

    Raises TypeError for other dtypes and attributes, ValueError for shapes that do not fit, LibraryError if the library
    is missing; when called, LibraryError if the kernel refuses.
    """

    def __init__(
        self,
        operator: Operator,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[Tensor] | None = None,
        *,
        workspace: Tensor | None = None,
        executor: library.Executor | None = None,
        **attributes: Any,
    ):
        values = _values(operator, inputs, attributes)
        tensors = zip(operator.tensors.items(), inputs, strict=True)
        self.inputs = {
            name: x if operators.is_map(shape) else x.contiguous() for (name, shape), x in tensors if x is not None
        }
        first, *others = self.inputs.values()
        _check_dtypes(first, *others)
        if outputs is None:
            outputs = _empty_outputs(operator, first, values)
        elif (shapes := [list(out.shape) for out in outputs]) != (expected := _output_shapes(operator, values)):
            raise ValueError(f"{operator.name}: outputs are {shapes}, not {expected}")
        self.outputs = tuple(outputs)
        self.workspace, self.executor = workspace, executor
        if (
            workspace is None
            and first.is_cuda
            and (size := library.workspace(operator, *(values[n] for n in operator.widths.names)))
        ):
            self.workspace = torch.empty(size, dtype=torch.uint8, device=first.device)
        self.params = operator.params(dtype=(DTYPES | CPU_DTYPES)[first.dtype], **values, **self._addresses(operator))

    def _addresses(self, operator: Operator) -> dict[str, Any]:
        """The structure's maps and pointers; those that are not here stay null."""
        tensors = {**self.inputs, **dict(zip(operator.outputs, self.outputs, strict=True))}
        if self.workspace is not None:
            tensors["workspace"] = self.workspace
        maps = {n: operators.Map(x.data_ptr(), *x.stride()) for n, x in tensors.items() if n in operator.maps}
        return maps | {n: x.data_ptr() for n, x in tensors.items() if n in operator.pointers}

    def __call__(self) -> None:
        """Enqueues the kernel on PyTorch's current stream, or runs it on the CPU."""
        if not self.outputs[0].is_cuda:
            library.call_cpu(self.params, self.executor)
            return
        with torch.cuda.device(self.outputs[0].device):
            library.call(self.params, torch.cuda.current_stream().cuda_stream)


def kernel(qkv: Tensor, rib_q: Tensor, rib_k: Tensor, gate: Tensor, geometry: attention.Geometry) -> Tensor:
    """The operator as a ribsr attention backend; RIB factors are brought to qkv's dtype."""
    return torch.ops.ribsr.cyclic_window_attention(qkv, rib_q.to(qkv.dtype), rib_k.to(qkv.dtype), gate, *geometry)


def _check_dtypes(*inputs: Tensor) -> None:
    gpu = inputs[0].is_cuda
    if inputs[0].dtype not in (DTYPES if gpu else CPU_DTYPES) or any(x.dtype != inputs[0].dtype for x in inputs):
        dtypes = ", ".join(str(x.dtype) for x in inputs)
        takes = "CUDA kernel takes one of float16 and bfloat16" if gpu else "CPU's kernel takes float32"
        raise TypeError(f"the {takes} for all inputs, not {dtypes}")


def _values(operator: Operator, inputs: Sequence[Tensor | None], attributes: dict[str, Any]) -> dict[str, Any]:
    """The structure's integers and floats."""
    return operator.values([None if x is None else x.shape for x in inputs], **attributes)


def _empty_outputs(operator: Operator, like: Tensor, values: dict[str, Any]) -> list[Tensor]:
    """New tensors for the results, in the layout of `like`."""
    channels_last = like.stride(1) == 1 and like.shape[1] > 1
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return [
        torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)
        for shape in _output_shapes(operator, values)
    ]


def _output_shapes(operator: Operator, values: dict[str, Any]) -> list[list[int]]:
    return [operators.sizes(shape, values) for shape in operator.outputs.values()]


def _define(operator: Operator) -> None:
    """Registers the PyTorch operator of a row: its kernel on CUDA, its reference on a CPU, its shapes for tracing."""

    def on_cuda(*arguments: Any) -> Any:
        tensors, attributes = _sorted(operator, arguments)
        call = Call(operator, tensors, **attributes)
        call()
        return _result(call.outputs)

    def fake(*arguments: Any) -> Any:
        tensors, attributes = _sorted(operator, arguments)
        return _result(_empty_outputs(operator, tensors[0], _values(operator, tensors, attributes)))

    def on_cpu(*arguments: Any) -> Any:
        tensors, attributes = _sorted(operator, arguments)
        outputs = _empty_outputs(operator, tensors[0], _values(operator, tensors, attributes))
        results = operator.reference(*tensors, **attributes)
        results = results if isinstance(results, tuple) else (results,)
        return _result([out.copy_(result) for out, result in zip(outputs, results, strict=True)])

    defined = torch.library.custom_op(
        f"{operators.DOMAIN}::{operator.torch_name}",
        on_cuda,
        mutates_args=(),
        device_types="cuda",
        schema=_schema(operator),
    )
    defined.register_kernel("cpu", on_cpu)
    defined.register_fake(fake)


def _schema(operator: Operator) -> str:
    """PyTorch's text for arguments and results: inputs, the list of weights if there is one, attributes."""
    kinds = {"int": "SymInt", "ints": "SymInt[]", "bool": "bool", "float": "float"}
    arguments = [f"Tensor{'?' * (name in operator.optional)} {name}" for name in operator.inputs]
    arguments += ["Tensor[] weights"] * bool(operator.weights)
    for attribute in operator.attributes:
        default = "" if attribute.default is None else f"={attribute.default}"
        arguments.append(f"{kinds[attribute.kind]} {attribute.name}{default}")
    results = ", ".join(["Tensor"] * len(operator.outputs))
    return f"({', '.join(arguments)}) -> {results if len(operator.outputs) == 1 else f'({results})'}"


def _sorted(operator: Operator, arguments: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """All tensors, or None, and attributes by name, of a PyTorch call. It leaves out trailing arguments that are the
    default.
    """
    count = len(operator.inputs)
    tensors, others = list(arguments[:count]), list(arguments[count:])
    if operator.weights:
        tensors += others.pop(0)
    return tensors, dict(zip((attribute.name for attribute in operator.attributes), others, strict=False))


def _result(outputs: Sequence[Tensor]) -> Any:
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


for _operator in operators.OPERATORS:
    _define(_operator)
attention.register_attention("kernel", kernel)
