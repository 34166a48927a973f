"""`python -m export.trt --fp16` makes x2.fp16.plan, a TensorRT engine, of the x2.onnx that `export.onnx` wrote.

Needs TensorRT (8.6 or later), a GPU, onnx, onnx-graphsurgeon and ONNX Runtime, but no PyTorch, unless the file is to be
made of a checkpoint first (--ckpt). What comes out is checked in two ways before it gets its name: the engine's layers
must compute in the precision asked for (`export.inspection`), and pictures must come out as ONNX Runtime makes them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import click

from engines.metadata import read_stamp
from export import ExportError
from export.trt.build import Built, StillBuilding, build, in_background, inspect_plan
from export.trt.graph import Graph, Options, Shapes, Source, choose_shapes, prepare, read
from ribsr.base.command import Command, FiniteRange, SizeType
from ribsr.base.files import check_target, sha256
from ribsr.base.sizes import Limits, Size

if TYPE_CHECKING:
    import numpy as np

    from engines.trt.gpu import GPU
    from export.trt.inspection import Inspection

T = TypeVar("T")

GIB = 2**30

VERIFY_SIZES = (Size(192, 192), Size(97, 131))
"""Of the pictures that a new engine is checked on, brought into its range: whole windows, and odd sides."""

VERIFY_SCORES = 4 * 10**10
"""Attention scores of the check pictures up to which the check is made unasked: a minute or two on a few cores."""

LEAST_PSNR = {"fp32": 60.0, "fp16": 50.0, "bf16": 32.0}
"""dB that an engine's pictures must reach against ONNX Runtime's in float32: for float16 what the toolkit promises;
for bfloat16 its three bits of mantissa less, 18 dB; for float32 an error of 1e-3, which TF32 would not keep to."""


def export_trt(onnx_file: Path, output: Path, options: Options, say: Callable[[str], None] = lambda line: None) -> None:
    """Builds the engine of an ONNX file of this toolkit and writes plan and manifest, or nothing at all.

    say: is told of each step. Raises ExportError, EngineError, ValueError, OSError, plugins.library.LibraryError; and
    KeyboardInterrupt, StillBuilding if the build goes on nevertheless.
    """
    from engines.trt import versions as api
    from engines.trt.manifest import manifest_path
    from export.trt.progress import Progress
    from plugins.library import HOPPER

    check_targets(output, options)
    source = read(onnx_file)
    shapes = choose_shapes(source, options)
    trt, gpu = find_machine()
    say(f"{onnx_file}: {source.stamp.model} x{source.stamp.scale}; TensorRT {trt.__version__} on {gpu.name}")
    graph = prepare(trt, source, shapes, options, gpu.compute_capability == HOPPER, say)
    with TemporaryDirectory(prefix=f".{output.name}.", suffix=".tmp", dir=output.parent) as folder:
        trial = Path(folder) / output.name
        log = api.logger(trt)
        with Progress() as progress:
            built = build(trt, log, graph, shapes, options, gpu.name, progress)
            progress.phase("reading the plan back")
            inspection, memory = in_background(lambda: inspect_plan(trt, log, built.plan, graph, trial), progress)
            progress.phase("writing")
            trial.write_bytes(built.plan)
            write_manifest_of(trial, source, graph, shapes, trt, gpu, built, inspection)
            progress.phase("checking pictures")
            verdict = in_background(lambda: verify(trial, source, graph, shapes, options), progress)
        for line in (*built.notes, verdict):
            say(line)
        # The plan goes first: with the manifest of an older plan beside it, it is refused for its hash.
        os.replace(trial, output)
        os.replace(manifest_path(trial), manifest_path(output))
    sizes = " ".join(map(str, dict.fromkeys(shapes)))
    say(f"{inspection}; {memory / 2**20:.0f} MiB of GPU memory for activations at the largest size")
    say(
        f"wrote {output}: {graph.form}, {graph.precision}, pictures {sizes}, {len(built.plan) / 2**20:.1f} MiB, "
        f"built in {built.seconds:.0f} s"
    )


# What can be known before anything takes long


def check_targets(output: Path, options: Options) -> None:
    """Raises ExportError for a name by which no engine would open the plan, OSError for what cannot be written."""
    if output.suffix != ".plan":
        raise ExportError(f"{output}: a plan's name ends in .plan, by which the engines know what it is")
    for path in filter(None, (output, options.timing_cache)):
        check_target(path)


def find_machine() -> tuple[Any, GPU]:
    """TensorRT and the GPU that it will build for. Raises EngineError where one of them is missing."""
    from engines.trt import versions as api
    from engines.trt.gpu import current_gpu

    return api.import_tensorrt(), current_gpu()


# Which file


def find_onnx(folder: Path) -> Path:
    """The only ONNX file of this toolkit in a folder. Raises ExportError that lists what there is otherwise."""
    from engines.base import EngineError

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


def write_manifest_of(
    path: Path, source: Source, graph: Graph, shapes: Shapes, trt: Any, gpu: Any, built: Built, inspection: Inspection
) -> None:
    """The manifest beside the plan `path`: what it was made of, by what, for what."""
    from engines.trt.manifest import FORMAT, Manifest, write_manifest

    smallest, preferred, largest = ([1, 3, *size] for size in shapes)
    library = graph.library
    write_manifest(
        path,
        Manifest(
            format=FORMAT,
            plan_sha256=sha256(path),
            onnx=source.path.name,
            onnx_sha256=sha256(source.path),
            tensorrt=trt.__version__,
            cuda=gpu.cuda,
            gpu=gpu.name,
            compute_capability=gpu.compute_capability,
            precision=graph.precision,
            form=graph.form,
            profile={"min": smallest, "opt": preferred, "max": largest},
            plugin=None if library is None else {"file": library.name, "sha256": sha256(library)},
            stamp=source.stamp,
            build_seconds=built.seconds,
            layers=inspection.summary(),
        ),
    )


# The check


def verify(plan: Path, source: Source, graph: Graph, shapes: Shapes, options: Options) -> str:
    """Runs the plan beside ONNX Runtime on sample pictures, if that is asked or quick; returns what to tell the user.

    Raises ExportError when the plan computes something else.
    """
    from engines import samples
    from engines.ort import ORTEngine
    from engines.trt.engine import TensorRTEngine

    if options.verify is False:
        return "not run, as asked: tools/parity.py compares it with other engines"
    if source.stamp.form == "plugin":
        return "not run: only TensorRT runs a file in form 'plugin'; tools/parity.py compares it with other engines"
    sizes = check_sizes(shapes)
    scores = [_scores(source, size) for size in sizes]
    if options.verify is None:
        sizes = [size for size, count in zip(sizes, scores, strict=True) if count <= VERIFY_SCORES]
    if not sizes:
        return f"not run: its {min(scores) / 1e9:.0f}e9 attention scores take long on a CPU; use --verify"
    worst, peak = math.inf, 0.0
    with TensorRTEngine(plan) as engine, ORTEngine(source.path, device="cpu") as reference:
        for size in sizes:
            for name, picture in samples.at(size)[:2]:
                quality, error = compare(engine.run(picture), reference.run(picture), name)
                worst, peak = min(worst, quality), max(peak, error)
    least = LEAST_PSNR[graph.precision]
    if worst < least:
        raise ExportError(
            f"the plan's pictures are {worst:.1f} dB from ONNX Runtime's, {least:.0f} dB is the least for "
            f"{graph.precision}; nothing was written: "
            + ("try --bf16 (TensorRT 10 and later) or no half precision" if graph.precision == "fp16" else "report it")
        )
    shown = ", ".join(map(str, sizes))
    return (
        f"checked against ONNX Runtime on pictures of {shown}: PSNR at least {worst:.1f} dB, largest error {peak:.1e}"
    )


def compare(output: np.ndarray, reference: np.ndarray, name: str) -> tuple[float, float]:
    """PSNR in dB (peak 1) and largest error of a picture. Raises ExportError if it is not finite."""
    import numpy as np

    if not np.isfinite(output).all():
        raise ExportError(
            f"the plan gives NaN or infinite values on {name}; nothing was written: try --bf16 (TensorRT 10 and later) "
            "or no half precision"
        )
    difference = output.astype(np.float64) - reference
    error = float(np.square(difference).mean())
    return (10 * math.log10(1 / error) if error else math.inf), float(np.abs(difference).max())


def check_sizes(shapes: Shapes) -> list[Size]:
    """VERIFY_SIZES within the profile."""
    return list(dict.fromkeys(map(Limits(shapes[0], shapes[2]).nearest, VERIFY_SIZES)))


def _scores(source: Source, size: Size) -> int:
    """Attention scores of a picture; none are known of a flat file, whose pictures are small anyway."""
    from export.lower import attention_scores

    return sum(layer.count for layer in attention_scores(source.model, size))


# The command


@click.command(cls=Command)
@click.option("--onnx", "onnx_file", type=click.Path(path_type=Path), help="Default: this toolkit's only .onnx here.")
@click.option("--ckpt", type=click.Path(path_type=Path), help="Make the ONNX file first, as export.onnx does.")
@click.option("--model", metavar="NAME", help="With --ckpt: which network an authors' checkpoint holds, e.g. sst-l+.")
@click.option("--config", type=click.Path(), help="With --ckpt, instead of --model: own JSON, or the authors' YAML.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: the ONNX file's name here, as .plan.")
@click.option("--fp16", is_flag=True, help="float16; what would overflow stays in float32.")
@click.option("--bf16", is_flag=True, help="bfloat16 (TensorRT 10 and later): float32's range, coarser than float16.")
@click.option(
    "--shapes",
    type=SizeType(),
    nargs=3,
    metavar="MIN OPT MAX",
    help="Sizes of the pictures, each WIDTHxHEIGHT: the smallest, the one to be fastest at, the largest.  "
    "[default: 64x64 640x360 1280x720]",
)
@click.option("--size", type=SizeType(), help="Instead of --shapes: the only size, WIDTHxHEIGHT.")
@click.option(
    "--timing-cache",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with what earlier builds measured; default: one for this TensorRT and GPU in ~/.cache/ribsr.",
)
@click.option("--workspace", type=FiniteRange(min=0, min_open=True), metavar="GIB", help="Scratch memory a layer.")
@click.option("--optimization-level", type=click.IntRange(0, 5), help="More is slower to build; default: TensorRT's.")
@click.option("--no-plugin", is_flag=True, help="Without our plugin: standard operators only.")
@click.option(
    "--score-limit",
    type=FiniteRange(min=0),
    default=Options.score_limit,
    show_default=True,
    metavar="GIB",
    help="Largest score tensor that the form 'matmul' may make, at MAX.",
)
@click.option(
    "--verify/--no-verify",
    default=None,
    help="Compare pictures of up to 192x192 with ONNX Runtime; default: where that is quick.",
)
def main(
    onnx_file: Path | None,
    ckpt: Path | None,
    model: str | None,
    config: str | None,
    output: Path | None,
    fp16: bool,
    bf16: bool,
    shapes: Shapes | None,
    size: Size | None,
    no_plugin: bool,
    **options: Any,
) -> None:
    """Build a TensorRT engine (.plan) from the ONNX file of export.onnx."""
    for first, second in (((onnx_file, "--onnx"), (ckpt, "--ckpt")), ((fp16, "--fp16"), (bf16, "--bf16"))):
        if first[0] and second[0]:
            raise click.UsageError(f"{first[1]} and {second[1]} exclude each other")
    if shapes and size:
        raise click.UsageError("--shapes and --size exclude each other")
    if (model or config) and ckpt is None:
        raise click.UsageError("--model and --config say what a checkpoint holds: they need --ckpt")
    chosen = Options(
        precision="fp16" if fp16 else "bf16" if bf16 else None,
        shapes=(size, size, size) if size else shapes or None,
        plugin=not no_plugin,
        **options,
    )
    try:
        if ckpt is not None:
            onnx_file = Path(f"{ckpt.stem}.onnx")
            if output is not None:
                check_targets(output, chosen)
            find_machine()
            _export_checkpoint(ckpt, onnx_file, model, config)
        onnx_file = onnx_file or find_onnx(Path())
        precision = chosen.precision or read_stamp(onnx_file).precision
        output = output or Path(f"{onnx_file.stem.removesuffix('.' + precision)}.{precision}.plan")
        export_trt(onnx_file, output, chosen, say=click.echo)
    except StillBuilding:
        # TensorRT 8.6 cannot be told to stop, and ending Python in the usual way would wait for it.
        click.echo("Aborted!", err=True)
        os._exit(1)


def _export_checkpoint(checkpoint: Path, output: Path, model: str | None, config: str | None) -> None:
    from export.convert import Options as ONNXOptions
    from export.convert import export_onnx

    export_onnx(checkpoint, output, ONNXOptions(), model, config, say=click.echo)


if __name__ == "__main__":
    main()
