"""Building an engine: TensorRT's calls in their order, with signs of life, a timing cache and a way out by Ctrl-C."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from export import ExportError
from export.trt.graph import Graph, Options, Shapes
from ribsr.base.files import atomic

if TYPE_CHECKING:
    from export.trt.inspection import Inspection
    from export.trt.progress import Progress

T = TypeVar("T")

GIB = 2**30

TICK = 0.2
"""Seconds between two looks at whether a build has ended."""

CANCEL_SECONDS = 60.0
"""How long a build may take to notice that it is cancelled."""


class StillBuilding(KeyboardInterrupt):
    """Ctrl-C during a build that cannot be cancelled: TensorRT's thread goes on until the process ends."""


@dataclass
class Built:
    """A plan and how it was made. seconds: of the build alone."""

    plan: bytes
    seconds: float
    notes: list[str] = field(default_factory=list)


def build(trt: Any, log: Any, graph: Graph, shapes: Shapes, options: Options, gpu: str, progress: Progress) -> Built:
    """The plan of a graph, for the GPU of that name.

    Raises EngineError with TensorRT's reason, KeyboardInterrupt, and StillBuilding.
    """
    from engines.trt import versions as api

    def set_up() -> tuple[Any, Any, Any]:
        builder = api.builder(trt, log)
        network = api.network(trt, builder)
        api.parse(trt, network, log, graph.model.SerializeToString())
        workspace = None if options.workspace is None else int(options.workspace * GIB)
        config = api.config(trt, builder, network, graph.precision == "fp16", workspace, options.optimization_level)
        api.add_profile(builder, config, "input", *((1, 3, *size) for size in shapes))
        return builder, network, config

    progress.phase("reading the graph")
    builder, network, config = in_background(set_up, progress)
    cancellable = api.has_progress_monitor(trt)
    if cancellable:
        config.progress_monitor = api.progress_monitor(trt, progress.start, progress.step, progress.finish)
    cache = options.timing_cache or default_timing_cache(trt.__version__, gpu)
    notes = []
    data = cache.read_bytes() if cache.is_file() else b""
    if not api.use_timing_cache(config, data):
        if options.timing_cache is not None:  # who knows what it is
            raise ExportError(f"{cache}: is no timing cache of this TensorRT and GPU; name another file, or remove it")
        notes.append(f"{cache}: is no timing cache of this TensorRT and GPU; it is not used, and replaced")
    progress.phase("building")
    start = time.monotonic()
    plan = in_background(lambda: api.build(trt, builder, network, config, log), progress, cancellable)
    built = Built(plan, time.monotonic() - start, notes)
    progress.phase("writing the timing cache")
    try:
        if options.timing_cache is None:
            cache.parent.mkdir(parents=True, exist_ok=True)
        with atomic(cache) as temporary:
            temporary.write_bytes(api.timing_cache(config))
    except OSError as error:  # the plan is worth more than the time that the next build would save
        notes.append(f"{cache}: the timing cache could not be written ({error.strerror or error})")
    return built


def default_timing_cache(version: str, gpu: str) -> Path:
    """In the user's cache folder ($XDG_CACHE_HOME, else ~/.cache), one file for each TensorRT and kind of GPU."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ribsr"
    return folder / f"tensorrt-{version}-{re.sub(r'[^A-Za-z0-9]+', '-', gpu)}.timing"


def inspect_plan(trt: Any, log: Any, plan: bytes, graph: Graph, path: Path) -> tuple[Inspection, int]:
    """What the engine of a plan consists of, and the bytes of GPU memory that a context of it takes.

    Raises ExportError if it does not compute in the precision promised.
    """
    from engines.trt import versions as api
    from export.trt import inspection

    engine = api.deserialise(api.runtime(trt, log), log, plan, path.name)
    found = inspection.inspect(api.layers(trt, engine))
    if graph.precision != "fp32":
        try:
            inspection.check(found, graph.precision, graph.plugins, graph.float32)
        except inspection.PrecisionError as error:
            raise ExportError(
                f"TensorRT {trt.__version__} did not build what --{graph.precision} promises: {error}; nothing was "
                "written: try --optimization-level 5, another form or another TensorRT"
            ) from None
    return found, api.device_memory(engine)


def in_background(work: Callable[[], T], progress: Progress, cancellable: bool = False) -> T:
    """work(), in a thread, so that Ctrl-C is noticed: TensorRT returns to Python only when it is done, or to call the
    logger, and a KeyboardInterrupt that is raised there is lost.

    cancellable: whether the work ends soon after `progress.cancel()`. If it does not, Ctrl-C raises StillBuilding.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 (raised again where the result is asked for)
            future.set_exception(error)

    try:
        threading.Thread(target=run, daemon=True).start()
        while not _ends(future, TICK):
            progress.tick()
        return future.result()
    except KeyboardInterrupt:
        progress.cancel()
        if cancellable and _ends(future, CANCEL_SECONDS):
            raise
        raise StillBuilding from None


def _ends(future: Future, seconds: float) -> bool:
    return bool(wait([future], timeout=seconds).done)
