"""Half-precision ONNX files rewritten in memory for ONNX Runtime with our kernels: the file stays the one file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.metadata import Stamp
from plugins import library
from plugins.operators import ATTENTION_INPUTS, CYCLIC_WINDOW_ATTENTION
from ribsr.base.errors import first_line
from ribsr.base.installation import pip_install

if TYPE_CHECKING:
    import onnx

FORMS = ("canonical", "plugin")
"""The forms whose attentions are nodes of ours still."""

LEAST_CAPABILITY = (8, 0)
"""Of the GPUs that the kernels run on."""


class NoKernels(Exception):
    """Why our kernels do not run a file, and what to do about it, as the end of a sentence."""


def rewritten(path: str, stamp: Stamp, capability: str) -> bytes:
    """An ONNX file in half precision as ONNX Runtime runs it with `library.onnxruntime_path()`, serialised.

    capability: the GPU's compute capability, "9.0". Raises NoKernels.
    """
    if stamp.form not in FORMS:
        raise NoKernels(f"the form {stamp.form} has the attention spelled out: export it again without --form")
    if tuple(map(int, capability.split("."))) < LEAST_CAPABILITY:
        raise NoKernels(f"ours need a GPU of compute capability 8.0 or later, and this one has {capability}")
    file = library.onnxruntime_path()
    if not file.exists():
        raise NoKernels(f"there is no {file}: python -m plugins.build makes it (needs nvcc)")
    try:
        library.opened(file)
        import onnx

        from plugins import channels_last, fuse
    except library.LibraryError as error:
        raise NoKernels(first_line(error)) from None
    except ModuleNotFoundError as error:
        raise NoKernels(f"{error.name} is not installed: {pip_install('ort-gpu')}") from None
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path)
        if stamp.form == "canonical":
            model = fuse.to_plugins(fuse.strip(model), capability)
        else:
            model = fuse.for_capability(model, capability)
    except DecodeError:
        raise NoKernels("the file is damaged: export or copy it again") from None
    except ValueError:
        raise NoKernels("an attention in it is kept in float32, since it would overflow") from None
    _check_attentions(model)
    return channels_last.to_channels_last(model).SerializeToString()


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
