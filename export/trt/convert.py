"""`export_trt`: all the steps from an ONNX file of this toolkit to a plan, in their order."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from engines.trt.manifest import Manifest, manifest_path, write_manifest
from engines.trt.plan import Plan
from export.trt.apart import build_apart
from export.trt.build import Built, build, in_background
from export.trt.graph import Graph, prepare
from export.trt.inspection import Inspection, check_built
from export.trt.machine import Machine
from export.trt.source import Options, Shapes, Source, check_targets, choose_shapes, read
from export.trt.verify import check_verifiable, verify
from ribsr.base.files import amount, atomic, sha256, temporary_folder
from ribsr.base.progress import Progress


def export_trt(
    onnx_file: Path, output: Path, machine: Machine, options: Options, say: Callable[[str], None] = lambda line: None
) -> None:
    """Builds the engine of an ONNX file of this toolkit and writes plan and manifest, or nothing at all.

    say: is told of each step. Raises ExportError, EngineError, ValueError, OSError, plugins.library.LibraryError; and
    KeyboardInterrupt, after which the build may still go on.
    """
    check_targets(output, options, machine.suffix)
    source = read(onnx_file)
    shapes = choose_shapes(source, options)
    check_verifiable(machine, options)
    say(f"{onnx_file}: {source.stamp.model} x{source.stamp.scale}; {machine}")
    graph = prepare(machine, source, shapes, options, say)
    with temporary_folder(beside=output.parent) as folder:
        trial = folder / output.name
        with Progress() as progress:
            built, inspection, memory = make(machine, graph, shapes, options, folder, progress)
            progress.phase("writing")
            trial.write_bytes(built.plan)
            manifest = describe(trial, source, graph, shapes, machine, built, inspection, options.version_compatible)
            write_manifest(trial, manifest)
            progress.phase("checking pictures")
            verdict = in_background(lambda: verify(trial, source, machine, graph.precision, shapes, options), progress)
        for line in (*built.notes, verdict):
            say(line)
        # The plan goes first: with the manifest of an older plan beside it, it is refused for its hash.
        for made, target in ((trial, output), (manifest_path(trial), manifest_path(output))):
            with atomic(target) as temporary:
                shutil.copyfile(made, temporary)  # moved, it would not be the file that is locked
    sizes = " ".join(map(str, dict.fromkeys(shapes)))
    say(f"{inspection}{memory}")
    say(
        f"wrote {output}: {graph.form}, {graph.precision}, pictures {sizes}, {amount(len(built.plan))}, "
        f"built in {built.seconds:.0f} s"
    )


def make(
    machine: Machine, graph: Graph, shapes: Shapes, options: Options, folder: Path, progress: Progress
) -> tuple[Built, Inspection, str]:
    """The plan, what it consists of, and what to say of the memory that it takes.

    An engine of TensorRT RTX cannot be read where it is built, but where it runs: there the network is looked at that
    it was made of, whose types are what is computed in.
    """
    trt = machine.trt
    if machine.gpu is None:
        built, layers = build_apart(trt, graph, shapes, machine.capabilities, options, folder, progress)
        return built, check_built(trt, layers, graph), ", in the network that TensorRT RTX made the engine of"
    built = build(trt, graph, shapes, options, machine.gpu.name, progress)

    def read_back() -> tuple[Inspection, str]:
        plan = Plan(trt, built.plan, "the new plan")
        memory = f"; {amount(plan.device_memory)} of GPU memory for activations at the largest size"
        return check_built(trt, plan.layers(), graph), memory

    progress.phase("reading the plan back")
    return (built, *in_background(read_back, progress))


def describe(
    plan: Path,
    source: Source,
    graph: Graph,
    shapes: Shapes,
    machine: Machine,
    built: Built,
    inspection: Inspection,
    version_compatible: bool,
) -> Manifest:
    """What the plan in the file `plan` was made of, by what, for what."""
    library, gpu = graph.library, machine.gpu
    return Manifest(
        plan_sha256=sha256(plan),
        onnx=source.path.name,
        onnx_sha256=sha256(source.path),
        tensorrt=machine.trt.version,
        cuda="" if gpu is None else gpu.cuda,
        gpu="" if gpu is None else gpu.name,
        compute_capability=machine.noted,
        precision=graph.precision,
        form=graph.form,
        profile={name: [1, 3, *size] for name, size in zip(("min", "opt", "max"), shapes, strict=True)},
        plugin=None if library is None else {"file": library.name, "sha256": sha256(library)},
        stamp=source.stamp,
        build_seconds=built.seconds,
        layers=inspection.summary(),
        version_compatible=version_compatible,
    )
