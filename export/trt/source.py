"""What a plan is to be made of, and what may be chosen about it: all that can be known before anything takes long."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engines.base import EngineError
from engines.metadata import Stamp, read_stamp
from engines.trt.manifest import PLAN, manifest_path
from export import ExportError
from ribsr.base.files import check_target
from ribsr.base.installation import pip_install
from ribsr.base.sizes import Size

if TYPE_CHECKING:
    import onnx

Shapes = tuple[Size, Size, Size]
"""The smallest, the preferred and the largest size of pictures."""

SHAPES: Shapes = (Size(64, 64), Size(360, 640), Size(720, 1280))
"""From thumbnails over what makes a 1280x720 picture at x2 to that size itself."""

LONGEST_NAME = 255
"""Bytes that file systems allow a name."""


@dataclass(frozen=True)
class Options:
    """What may be chosen about a plan; the command line's options of the same names.

    precision: None: that of the file. shapes: None: SHAPES, or the file's only size. timing_cache: None: one for this
    TensorRT and GPU in the user's cache folder. workspace: GiB of scratch memory for a layer; None: all there is.
    plugin: False: without, even where it could be had. score_limit: GiB of attention scores in the form `matmul`.
    verify: None checks the engine on pictures where that is quick. rtx: TensorRT RTX or TensorRT; None: the latter,
    unless the former alone is installed. gpu: compute capabilities, or `current`, for TensorRT RTX; none: all of them.
    version_compatible: for later releases of TensorRT and its lean runtime, too.
    """

    precision: Literal["fp32", "fp16", "bf16"] | None = None
    shapes: Shapes | None = None
    timing_cache: Path | None = None
    workspace: float | None = None
    optimization_level: int | None = None
    plugin: bool = True
    score_limit: float = 4.0
    verify: bool | None = None
    rtx: bool | None = None
    gpu: tuple[str, ...] = ()
    version_compatible: bool = False


@dataclass(frozen=True)
class Source:
    """An ONNX file of this toolkit: its stamp, its content, and its only size if it has one."""

    path: Path
    stamp: Stamp
    model: onnx.ModelProto
    static: Size | None


def check_targets(output: Path, options: Options, suffix: str = PLAN) -> None:
    """Raises ExportError for a name by which no engine would open the plan, OSError for what cannot be written.

    suffix: PLAN or RTX_PLAN.
    """
    if output.suffix != suffix:
        whose = "a plan's name" if suffix == PLAN else "the name of a plan for TensorRT RTX"
        raise ExportError(f"{output}: {whose} ends in {suffix}, by which the engines know what it is")
    manifest = manifest_path(output)
    if (length := len(os.fsencode(manifest.name))) > LONGEST_NAME:
        raise ExportError(f"{output}: its manifest's name, {length} bytes, is too long; {LONGEST_NAME} are possible")
    for path in filter(None, (output, manifest, options.timing_cache)):
        check_target(path)


def find_onnx(folder: Path) -> Path:
    """The only ONNX file of this toolkit in a folder. Raises ExportError that lists what there is otherwise."""
    found: list[Path] = []
    foreign: list[Path] = []
    for path in sorted(folder.glob("*.onnx")):
        try:
            read_stamp(path)
            found.append(path)
        except EngineError:
            foreign.append(path)
    if len(found) == 1:
        return found[0]
    if found:
        raise ExportError(
            f"{len(found)} ONNX files to choose from: {', '.join(path.name for path in found)}; name one with --onnx"
        )
    others = f" (not {', '.join(path.name for path in foreign)}: of another tool, or damaged)" if foreign else ""
    raise ExportError(
        f"there is no ONNX file of this toolkit here{others}; make one with python -m export.onnx --ckpt MODEL.pt, or "
        "name it with --onnx"
    )


def read(path: Path) -> Source:
    """An ONNX file of this toolkit that TensorRT may take. Raises EngineError or ExportError for any other."""
    stamp = read_stamp(path)
    if stamp.form == "mha":
        raise ExportError(
            f"{path}: is in form 'mha', which only ONNX Runtime runs; export it again without --form: "
            "python -m export.onnx --ckpt MODEL.pt"
        )
    try:
        import onnx
        import onnx_graphsurgeon  # noqa: F401 (needed by what follows; better said now than in the middle)
    except ModuleNotFoundError as error:
        raise ExportError(f"making a plan needs {error.name}, which is not installed: {pip_install('trt')}") from None
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path))
    except DecodeError:
        raise ExportError(f"{path}: not an ONNX file, or damaged; export or copy it again") from None
    dims = model.graph.input[0].type.tensor_type.shape.dim
    height, width = (dim.dim_value for dim in dims[2:])
    return Source(path, stamp, model, Size(height, width) if height and width else None)


def choose_shapes(source: Source, options: Options) -> Shapes:
    """The profile's sizes. Raises ExportError if the file has one size and another was asked for, or for a mess."""
    if source.static is not None:
        if options.shapes is not None and set(options.shapes) != {source.static}:
            raise ExportError(
                f"{source.path}: takes pictures of {source.static} only; leave --shapes and --size out, or export it "
                "again without --size"
            )
        return source.static, source.static, source.static
    shapes = options.shapes or SHAPES
    for axis, name in ((0, "heights"), (1, "widths")):
        sides = [size[axis] for size in shapes]
        if sides != sorted(sides):
            raise ExportError(f"--shapes must not shrink from MIN over OPT to MAX; its {name} are {sides}")
    return shapes
