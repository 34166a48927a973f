"""Building in a process of its own, whatever becomes of it: for TensorRT RTX.

Its ONNX parser looks for a library by the name libtensorrt_rtx.so where it meets a plugin's node. NVIDIA's wheel has
libtensorrt_rtx.so.1 alone, and the parser that finds nothing ends the process. So the process gets a folder with that
name in it, which names the library that is used anyway; and what ends it all the same ends a child, and is one line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engines.base import EngineError
from engines.trt.versions import TensorRT
from export.trt.build import GIB, Built, in_background
from export.trt.graph import Graph
from export.trt.source import Options, Shapes
from ribsr.base.installation import FOLDER
from ribsr.base.progress import Progress

LIBRARY = "libtensorrt_rtx.so"
"""What the parser looks for."""

CHILD = ("-m", "export.trt.building")


def build_apart(
    trt: TensorRT,
    graph: Graph,
    shapes: Shapes,
    capabilities: tuple[str, ...],
    options: Options,
    folder: Path,
    progress: Progress,
) -> tuple[Built, list[dict[str, Any]]]:
    """The plan of a graph for these compute capabilities, and the layers that it was made of; `folder` is used up.

    Raises EngineError with TensorRT's reason, or saying how its process ended.
    """
    task = {
        "library": None if graph.library is None else str(graph.library.resolve()),
        "half": graph.precision == "fp16",
        "workspace": None if options.workspace is None else int(options.workspace * GIB),
        "optimization_level": options.optimization_level,
        "capabilities": capabilities,
        "shapes": [(1, 3, *size) for size in shapes],
    }
    (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
    (folder / "model.onnx").write_bytes(graph.model.SerializeToString())
    progress.phase("reading the graph")
    told = run(trt, folder, progress)
    if "error" in told:
        raise EngineError(told["error"])
    return Built((folder / "plan").read_bytes(), told["seconds"]), told["layers"]


def run(trt: TensorRT, folder: Path, progress: Progress) -> dict[str, Any]:
    """What the child says at last. Raises EngineError if it ends without that."""
    command = [sys.executable, *CHILD, str(folder.resolve())]
    errors = folder / "stderr"
    # In the toolkit's own folder Python finds it, and no other of that name.
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(
            command,
            cwd=FOLDER,
            env=environment(trt, folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
        ) as child,
    ):
        try:
            told = in_background(lambda: listen(child, progress), progress)
            code = child.wait()
        finally:
            child.kill()
    if not {"error", "seconds"} & told.keys():
        raise EngineError(
            f"TensorRT {trt.version} has ended its process while {told.get('phase', 'reading the graph')} "
            f"({ending(code)}{said(errors)}); nothing was written: try --no-plugin, or another release of it"
        )
    return told


def listen(child: subprocess.Popen[bytes], progress: Progress) -> dict[str, Any]:
    """All that a child says until it ends, put together; progress goes to `progress`."""
    show: dict[str, Callable[..., Any]] = {
        "start": progress.start,
        "step": progress.step,
        "finish": progress.finish,
        "phase": progress.phase,
    }
    told: dict[str, Any] = {}
    assert child.stdout is not None
    for line in child.stdout:
        try:
            values = json.loads(line)
        except ValueError:  # TensorRT prints, too
            continue
        for name, value in values.items() if isinstance(values, dict) else ():
            if name in show:
                show[name](*(value if isinstance(value, list) else [value]))
        told |= values if isinstance(values, dict) else {}
    return told


def environment(trt: TensorRT, folder: Path) -> dict[str, str]:
    """The child's: with what Python imports here, and a folder in which the parser finds TensorRT's library."""
    names = folder.resolve() / "lib"
    names.mkdir()
    (names / LIBRARY).symlink_to(loaded(trt))
    path = [str(names), os.environ.get("LD_LIBRARY_PATH", "")]
    imported = [os.path.abspath(place) for place in sys.path if place]
    return {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, path)),
        "PYTHONPATH": os.pathsep.join(imported),
        "PYTHONUNBUFFERED": "1",
    }


def loaded(trt: TensorRT, maps: Path = Path("/proc/self/maps")) -> Path:
    """The file of TensorRT's library that this process has loaded. Raises EngineError where that cannot be told."""
    for line in maps.read_text(encoding="utf-8", errors="replace").splitlines():
        path = Path(line.split(maxsplit=5)[-1])
        if path.name.startswith(LIBRARY):
            return path
    raise EngineError(f"TensorRT {trt.version} has not loaded {LIBRARY}.1: install it again")


def ending(code: int) -> str:
    """`exit code 1`, or `SIGABRT, exit code 134` for what a signal has ended, as shells count them."""
    if code >= 0:
        return f"exit code {code}"
    return f"{signal.Signals(-code).name}, exit code {128 - code}"


def said(errors: Path) -> str:
    """The last line of a file, as the end of a sentence."""
    lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f": {lines[-1].strip()[:200]}" if lines else ""
