"""What is written beside a plan."""

from __future__ import annotations

from pathlib import Path

from engines.trt.gpu import GPU
from engines.trt.manifest import Manifest, write_manifest
from engines.trt.versions import TensorRT
from export.trt.build import Built
from export.trt.graph import Graph
from export.trt.inspection import Inspection
from export.trt.source import Shapes, Source
from ribsr.base.files import sha256


def describe(
    plan: Path,
    source: Source,
    graph: Graph,
    shapes: Shapes,
    trt: TensorRT,
    gpu: GPU,
    built: Built,
    inspection: Inspection,
) -> None:
    """Writes the manifest of the plan in the file `plan`: what it was made of, by what, for what."""
    smallest, preferred, largest = ([1, 3, *size] for size in shapes)
    library = graph.library
    write_manifest(
        plan,
        Manifest(
            plan_sha256=sha256(plan),
            onnx=source.path.name,
            onnx_sha256=sha256(source.path),
            tensorrt=trt.version,
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
