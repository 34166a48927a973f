"""One build in a process of its own, which TensorRT RTX may end: its parser was seen to end the process without a word.

    python -m export.trt.building FOLDER

`export.trt.apart` starts it, and finds a plan in FOLDER, or the reason in what it prints: JSON, a line each.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from engines.base import EngineError
from engines.trt.builder import Builder
from engines.trt.versions import TensorRT


def tell(**values: Any) -> None:
    print(json.dumps(values), flush=True)


class Teller:
    """Passes on how a build goes on."""

    def start(self, name: str, parent: str | None, steps: int) -> None:
        tell(start=[name, parent, steps])

    def step(self, name: str, index: int) -> bool:
        tell(step=[name, index])
        return True

    def finish(self, name: str) -> None:
        tell(finish=[name])


def build(folder: Path) -> None:
    """From the model and the task in a folder to the plan there. Raises EngineError and LibraryError."""
    from plugins import library

    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    trt = TensorRT.load(rtx=True)
    if task["library"] is not None:
        library.load_tensorrt(trt.module, Path(task["library"]))
    builder = Builder(trt)
    builder.parse((folder / "model.onnx").read_bytes())
    builder.configure(task["half"], task["workspace"], task["optimization_level"])
    builder.target(task["capabilities"])
    builder.add_profile(*map(tuple, task["shapes"]))
    layers = builder.layers()
    tell(phase="building")
    builder.report_to(Teller())
    start = time.monotonic()
    (folder / "plan").write_bytes(builder.build())
    tell(seconds=time.monotonic() - start, layers=layers)


def main(folder: str) -> None:
    from plugins.library import LibraryError

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all of a terminal's processes; the first one ends us
    try:
        build(Path(folder))
    except (EngineError, LibraryError, OSError) as error:
        tell(error=str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
