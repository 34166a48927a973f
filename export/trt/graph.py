"""From an ONNX file of this toolkit to the graph that the TensorRT at hand is to get: its form and its precision."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.base import release
from engines.trt import rtx
from export import ExportError, Form
from export.trt.machine import Machine
from export.trt.source import Options, Shapes, Source
from ribsr.base.installation import build_kernels, pip_install

if TYPE_CHECKING:
    import onnx

SCORE_ADVICE = (
    f"use --fp16 with the plugin ({build_kernels()}), a smaller MAX in --shapes, a file exported with --opset 23 "
    "on TensorRT 10.14 or later, or --score-limit"
)
"""What to do where the form `matmul` would need too much memory."""


@dataclass(frozen=True)
class Graph:
    """What TensorRT gets, in which form and precision, and the plugin library that it needs.

    plugins: how many nodes are for the plugins. float32: how many convolutions and matrix products are in float32 on
    purpose.
    """

    model: onnx.ModelProto
    form: str
    precision: str
    library: Path | None
    plugins: int
    float32: int


def prepare(machine: Machine, source: Source, shapes: Shapes, options: Options, say: Callable[[str], None]) -> Graph:
    """The file's graph in the form and precision that this TensorRT is to get; loads the plugins if it needs them.

    Raises ExportError or ValueError for what cannot be had, and says what is taken instead of what.
    """
    from export import lower
    from plugins import fuse

    stamp, trt = source.stamp, machine.trt
    precision = check_precision(machine, source, options)
    opset = lower.opset_of(source.model)
    if opset > trt.newest_opset:
        raise ExportError(
            f"{source.path}: has opset {opset}, TensorRT {trt.version} reads {trt.newest_opset}; export without --opset"
        )
    form, library = choose_form(machine, source, precision, opset, options, say)
    model, attentions = fuse.strip(source.model), 0
    if stamp.form == "canonical":
        if precision != stamp.precision:
            model = type_graph(source, model, precision, say)
        if form == "matmul":
            say(lower.check_scores(model, shapes[2], options.score_limit, SCORE_ADVICE))
        attentions = lower.count_float32_attention(model)
        model = lower.lower(model, form)
    elif form == "plugin":
        model = fuse.with_whole_layers(model)
    _fix_batch(model, shapes, stamp.scale)
    plugins = sum(fuse.count(model).values())
    return Graph(model, form, precision, library, plugins, float32_products(model, attentions))


def check_precision(machine: Machine, source: Source, options: Options) -> str:
    """fp32, fp16 or bf16: what was asked for, or what the file is in. Raises ExportError if it cannot be."""
    stamp, trt = source.stamp, machine.trt
    wanted = options.precision or stamp.precision
    if wanted == "bf16" and not trt.has_bfloat16:
        raise ExportError(f"--bf16 needs TensorRT 10 or later, this is {trt.version}; use --fp16")
    if wanted == "bf16" and (old := [one for one in machine.capabilities if release(one) < (8, 0)]):
        raise ExportError(f"bfloat16 needs cards of compute capability 8.0 or later, --gpu names {', '.join(old)}")
    if wanted != stamp.precision and (stamp.precision != "fp32" or stamp.form != "canonical"):
        raise ExportError(
            f"{source.path}: is in {stamp.precision} and form '{stamp.form}', which leaves no choice of "
            f"precision; for {wanted} take the canonical float32 file: python -m export.onnx --ckpt MODEL.pt"
        )
    return wanted


def choose_form(
    machine: Machine, source: Source, precision: str, opset: int, options: Options, say: Callable[[str], None]
) -> tuple[Form, Path | None]:
    """The form, and the plugin library if it is `plugin`; says why if it is something else."""
    form: Any = source.stamp.form
    trt = machine.trt
    if form == "plugin":
        if not options.plugin:
            raise ExportError(f"{source.path}: is in form 'plugin'; for --no-plugin export it without --form")
        return "plugin", plugin_library(machine, say)
    if form == "attention" and not trt.reads_attention:
        raise ExportError(
            f"{source.path}: is in form 'attention', which TensorRT {trt.version} does not read (10.14 does); "
            "export it without --form"
        )
    if form == "attention" and trt.rtx and precision == "fp32":
        raise ExportError(
            f"{source.path}: is in form 'attention' and float32, for which TensorRT {trt.version} has no kernels: give "
            "the canonical file and --fp16 or --bf16; or, for small pictures, one exported with --form matmul"
        )
    if form != "canonical":
        return form, None
    reason = "--no-plugin was given"
    if options.plugin and precision == "fp32":
        reason = "the plugin computes in half precision (--fp16)"
    elif options.plugin:
        try:
            return "plugin", plugin_library(machine, say)
        except _NoPlugin as error:
            reason = str(error)
    if trt.reads_attention and opset >= 23 and not (trt.rtx and precision == "fp32"):
        say(f"form 'attention' instead of the plugin: {reason}")
        return "attention", None
    say(f"form 'matmul' instead of the plugin, slow and for small pictures: {reason}")
    return "matmul", None


class _NoPlugin(ExportError):
    """Why there is no plugin library and none can be built."""


def plugin_library(machine: Machine, say: Callable[[str], None]) -> Path:
    """The file of the plugins, built if it is not there, and loaded; for TensorRT RTX (`export.trt.building` loads it)
    found to have code for the GPUs.

    Raises _NoPlugin if there is none, LibraryError if there is one but it does not work.
    """
    from plugins import compiler, library

    trt = machine.trt
    path = library.tensorrt_path(trt.major)
    if not path.exists() and not os.environ.get(library.TENSORRT_VARIABLE):
        try:
            include = compiler.find_tensorrt().get(trt.major)
            if include is None:
                raise _NoPlugin(
                    f"{path.name} is not built and there are no headers of TensorRT {trt.major} to build it with: "
                    f"{build_kernels('--tensorrt-include DIR')}"
                )
            say(f"building {path} with the headers in {include}; this takes a few minutes")
            compiler.build_tensorrt(include)
        except compiler.BuildError as error:
            raise _NoPlugin(f"{path.name} cannot be built: {error}") from None
    if machine.gpu is None:
        library.check_gpus(path, machine.noted.removesuffix(rtx.LATER).split(","))
    else:
        library.load_tensorrt(trt.module, path)
    return path


def type_graph(source: Source, bare: onnx.ModelProto, precision: str, say: Callable[[str], None]) -> onnx.ModelProto:
    """A float32 graph in half precision; what would overflow float16 on real pictures stays in float32."""
    from export import precision as types

    if precision == "bf16":
        return types.to_bfloat16(bare)
    try:
        return types.calibrated(bare, source.model, say)
    except ModuleNotFoundError as error:
        raise ExportError(
            f"--fp16 needs {error.name} to find out what would overflow: {pip_install('trt')}, or use a file that was "
            "exported with --fp16"
        ) from None


def float32_products(model: onnx.ModelProto, attentions: int) -> int:
    """How many convolutions and matrix products of a lowered graph are in float32 on purpose.

    Convolutions by the type of their weights; in the form `matmul`, the product before each softmax; and one more for
    each of the `attentions` that are in float32 as a whole.
    """
    import onnx

    single = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    convolutions = sum(node.op_type == "Conv" and node.input[1] in single for node in model.graph.node)
    return convolutions + sum(node.op_type == "Softmax" for node in model.graph.node) + attentions


def _fix_batch(model: onnx.ModelProto, shapes: Shapes, scale: int) -> None:
    """One picture at a time, and of one size if there is only one: TensorRT optimises what it knows."""
    from export.lower import fix_shape, set_shape

    if len(set(shapes)) == 1:
        fix_shape(model, shapes[0], scale)
    else:
        set_shape(model.graph.input[0], (1, 3, "height", "width"))
        set_shape(model.graph.output[0], (1, 3, "output_height", "output_width"))
