"""`export_trt`: all the steps from an ONNX file of this toolkit to a plan, in their order."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from engines.trt import gpu as cuda
from engines.trt.gpu import GPU
from engines.trt.manifest import manifest_path
from engines.trt.plan import Plan
from engines.trt.versions import TensorRT
from export.progress import Progress
from export.trt.build import build, in_background
from export.trt.graph import prepare
from export.trt.inspection import Inspection, inspect_plan
from export.trt.manifest import describe
from export.trt.source import Options, check_targets, choose_shapes, read
from export.trt.verify import verify
from ribsr.base.files import amount, atomic, temporary_folder


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
            describe(trial, source, graph, shapes, trt, gpu, built, inspection)
            progress.phase("checking pictures")
            verdict = in_background(lambda: verify(trial, source, graph.precision, shapes, options), progress)
        for line in (*built.notes, verdict):
            say(line)
        # The plan goes first: with the manifest of an older plan beside it, it is refused for its hash.
        for made, target in ((trial, output), (manifest_path(trial), manifest_path(output))):
            with atomic(target) as temporary:
                shutil.move(made, temporary)
    sizes = " ".join(map(str, dict.fromkeys(shapes)))
    say(f"{inspection}; {amount(memory)} of GPU memory for activations at the largest size")
    say(
        f"wrote {output}: {graph.form}, {graph.precision}, pictures {sizes}, {amount(len(built.plan))}, "
        f"built in {built.seconds:.0f} s"
    )


def find_machine() -> tuple[TensorRT, GPU]:
    """TensorRT and the GPU that it will build for. Raises EngineError where one of them is missing."""
    return TensorRT.load(), cuda.current_gpu()
