"""`export_trt`: all the steps from an ONNX file of this toolkit to a plan, in their order."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from engines.trt import gpu as cuda
from engines.trt.gpu import GPU
from engines.trt.manifest import Manifest, manifest_path, write_manifest
from engines.trt.plan import Plan
from engines.trt.versions import TensorRT
from export.trt.build import Built, build, in_background
from export.trt.graph import Graph, prepare
from export.trt.inspection import Inspection, inspect_plan
from export.trt.source import Options, Shapes, Source, check_targets, choose_shapes, read
from export.trt.verify import verify
from ribsr.base.files import amount, atomic, sha256, temporary_folder
from ribsr.base.progress import Progress


def export_trt(onnx_file: Path, output: Path, options: Options, say: Callable[[str], None] = lambda line: None) -> None:
    """Builds the engine of an ONNX file of this toolkit and writes plan and manifest, or nothing at all.

    say: is told of each step. Raises ExportError, EngineError, ValueError, OSError, plugins.library.LibraryError; and
    KeyboardInterrupt, after which the build may still go on.
    """
    check_targets(output, options)
    source = read(onnx_file)
    shapes = choose_shapes(source, options)
    trt, gpu = find_machine()
    say(f"{onnx_file}: {source.stamp.model} x{source.stamp.scale}; TensorRT {trt.version} on {gpu.name}")
    graph = prepare(trt, source, shapes, options, gpu.compute_capability, say)
    with temporary_folder(beside=output.parent) as folder:
        trial = folder / output.name

        def inspected() -> tuple[Inspection, int]:
            plan = Plan(trt, built.plan, output.name)
            return inspect_plan(plan, graph), plan.device_memory

        with Progress() as progress:
            built = build(trt, graph, shapes, options, gpu.name, progress)
            progress.phase("reading the plan back")
            inspection, memory = in_background(inspected, progress)
            progress.phase("writing")
            trial.write_bytes(built.plan)
            write_manifest(trial, describe(trial, source, graph, shapes, trt, gpu, built, inspection))
            progress.phase("checking pictures")
            verdict = in_background(lambda: verify(trial, source, graph.precision, shapes, options), progress)
        for line in (*built.notes, verdict):
            say(line)
        # The plan goes first: with the manifest of an older plan beside it, it is refused for its hash.
        for made, target in ((trial, output), (manifest_path(trial), manifest_path(output))):
            with atomic(target) as temporary:
                shutil.copyfile(made, temporary)  # moved, it would not be the file that is locked
    sizes = " ".join(map(str, dict.fromkeys(shapes)))
    say(f"{inspection}; {amount(memory)} of GPU memory for activations at the largest size")
    say(
        f"wrote {output}: {graph.form}, {graph.precision}, pictures {sizes}, {amount(len(built.plan))}, "
        f"built in {built.seconds:.0f} s"
    )


def find_machine() -> tuple[TensorRT, GPU]:
    """TensorRT and the GPU that it will build for. Raises EngineError where one of them is missing."""
    return TensorRT.load(), cuda.current_gpu()


def describe(
    plan: Path,
    source: Source,
    graph: Graph,
    shapes: Shapes,
    trt: TensorRT,
    gpu: GPU,
    built: Built,
    inspection: Inspection,
) -> Manifest:
    """What the plan in the file `plan` was made of, by what, for what."""
    library = graph.library
    return Manifest(
        plan_sha256=sha256(plan),
        onnx=source.path.name,
        onnx_sha256=sha256(source.path),
        tensorrt=trt.version,
        cuda=gpu.cuda,
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        precision=graph.precision,
        form=graph.form,
        profile={name: [1, 3, *size] for name, size in zip(("min", "opt", "max"), shapes, strict=True)},
        plugin=None if library is None else {"file": library.name, "sha256": sha256(library)},
        stamp=source.stamp,
        build_seconds=built.seconds,
        layers=inspection.summary(),
    )
