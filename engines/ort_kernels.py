"""ONNX files rewritten in memory for ONNX Runtime with our kernels, on GPUs and CPUs: the file stays the one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engines.base import HALVES
from engines.metadata import Stamp
from plugins import library, operators
from plugins.operators import ATTENTION_INPUTS, CYCLIC_WINDOW_ATTENTION
from ribsr.base.errors import first_line
from ribsr.base.installation import build_kernels, pip_install

if TYPE_CHECKING:
    import onnx

FORMS = ("canonical", "plugin")
"""The forms whose attentions are nodes of ours still."""

LEAST_CAPABILITY = (8, 0)
"""Of the GPUs that the kernels run on."""

WINDOW_SIDES = range(2, 129)
"""Of the attention's windows, in the kernels of GPUs and CPUs."""


class NoKernels(Exception):
    """Why our kernels do not run a file, and what to do about it, as the end of a sentence."""


def rewritten(path: str, stamp: Stamp, capability: str) -> bytes:
    """An ONNX file in half precision as ONNX Runtime runs it with `library.onnxruntime_path()`, serialised.

    capability: the GPU's compute capability, "9.0". Raises NoKernels.
    """
    _check_form(stamp)
    if tuple(map(int, capability.split("."))) < LEAST_CAPABILITY:
        raise NoKernels(f"ours need a GPU of compute capability 8.0 or later, and this one has {capability}")
    _check_library(library.onnxruntime_path(), f"{build_kernels()} makes it (needs nvcc)")
    model = _in_plugin_form(path, stamp)
    _check_attentions(model)
    return _channels_last(model).SerializeToString()


def rewritten_for_cpu(path: str, stamp: Stamp, bfloat16_products: bool) -> bytes:
    """An ONNX file as ONNX Runtime runs it with `library.cpu_path()`, serialised. Raises NoKernels.

    Half precision is computed in float32, with the weights that it has. bfloat16_products: the factors of matrix
    products are rounded to bfloat16.
    """
    _check_form(stamp)
    if odd := [side for window in stamp.windows for side in window if side not in WINDOW_SIDES]:
        raise NoKernels(f"its windows have sides of {odd[0]}, ours take {WINDOW_SIDES[0]} to {WINDOW_SIDES[-1]}")
    _check_library(library.cpu_path(), f"{build_kernels('--only cpu')} makes it (needs a C++ compiler)")
    if bfloat16_products and "avx512_bf16" not in library.cpu_isas():
        raise NoKernels("this CPU has no AVX512_BF16, the instructions for it")
    model = _channels_last(_in_plugin_form(path, stamp, on_cpu=True), on_cpu=True)
    if bfloat16_products:
        for node in model.graph.node:
            if node.domain == operators.DOMAIN:
                node.domain = operators.CPU_BFLOAT16_DOMAIN
        model.opset_import.add(domain=operators.CPU_BFLOAT16_DOMAIN, version=1)
    return model.SerializeToString()


def _check_form(stamp: Stamp) -> None:
    if stamp.form not in FORMS:
        raise NoKernels(f"the form {stamp.form} has the attention spelled out: export it again without --form")


def _check_library(file: Path, advice: str) -> None:
    """Raises NoKernels unless the library of custom operators is there and is of this version."""
    if not file.exists():
        raise NoKernels(f"there is no {file}: {advice}")
    try:
        library.opened(file)
    except library.LibraryError as error:
        raise NoKernels(first_line(error)) from None


def _in_plugin_form(path: str, stamp: Stamp, on_cpu: bool = False) -> onnx.ModelProto:
    """The file's graph with our nodes. on_cpu: as of `plugins.fuse`."""
    try:
        import onnx

        from plugins import fuse
    except ModuleNotFoundError as error:
        extra = "ort" if on_cpu else "ort-gpu"
        raise NoKernels(f"{error.name} is not installed: {pip_install(extra)}") from None
    from google.protobuf.message import DecodeError

    damaged = "the file is damaged: export or copy it again"
    try:
        model = onnx.load(path)
    except (DecodeError, onnx.checker.ValidationError, OSError):  # the latter two of data in another file
        raise NoKernels(damaged) from None
    if not any(node.op_type == CYCLIC_WINDOW_ATTENTION.name for node in model.graph.node):
        raise NoKernels("a tool has put the attention's body in its place: export the file again")
    try:
        if stamp.form == "canonical":
            model = fuse.strip(model)
        if on_cpu and stamp.precision in HALVES:
            model = fuse.to_float32(model)
        if stamp.form == "canonical":
            return fuse.to_plugins(model, on_cpu)
        return fuse.with_whole_layers(model, on_cpu)
    except fuse.WrongPrecision:
        why = "has weights that are no initializers" if on_cpu else "is kept in float32, since it would overflow"
        raise NoKernels(f"an attention in it {why}") from None
    except (ValueError, TypeError, KeyError):  # weights that lack, or are shorter than they say
        raise NoKernels(damaged) from None


def _channels_last(plugin: onnx.ModelProto, on_cpu: bool = False) -> onnx.ModelProto:
    from plugins import channels_last

    return channels_last.to_channels_last(plugin, on_cpu)


def _check_attentions(plugin: onnx.ModelProto) -> None:
    """Raises NoKernels if the kernel is not made for the heads of an attention, but only correct."""
    shapes = {tensor.name: tensor.dims for tensor in plugin.graph.initializer}
    producers = {name: node for node in plugin.graph.node for name in node.output}
    for node in plugin.graph.node:
        if node.op_type == CYCLIC_WINDOW_ATTENTION.name:
            before = producers[node.input[0]]
            while before.op_type == "Cast":  # behind what stays in float32
                before = producers[before.input[0]]
            weight = before.input[3 if before.op_type == ATTENTION_INPUTS.name else 1]
            heads, _, rank = shapes[node.input[1]]
            width = shapes[weight][0] // (3 * heads)
            if not CYCLIC_WINDOW_ATTENTION.is_tuned(width, rank):
                widths, ranks = CYCLIC_WINDOW_ATTENTION.widths.tuned
                raise NoKernels(
                    f"it has heads of {width} channels and rank {rank}, ours are made for {widths} and {ranks}"
                )
