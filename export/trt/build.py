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
from typing import TypeVar

from engines.base import EngineError
from engines.trt.builder import Builder
from engines.trt.versions import TensorRT
from export import ExportError
from export.trt.graph import Graph
from export.trt.source import Options, Shapes
from ribsr.base.files import atomic
from ribsr.base.progress import Progress

T = TypeVar("T")

GIB = 2**30

TICK = 0.2
"""Seconds between two looks at whether a build has ended."""

CANCEL_SECONDS = 0.7
"""How long a build may take to notice that it is cancelled; a command ends in any case (`ribsr.base.interrupt`)."""


@dataclass
class Built:
    """A plan and how it was made. seconds: of the build alone."""

    plan: bytes
    seconds: float
    notes: list[str] = field(default_factory=list)


def build(trt: TensorRT, graph: Graph, shapes: Shapes, options: Options, gpu: str, progress: Progress) -> Built:
    """The plan of a graph, for the GPU of that name.

    Raises EngineError with TensorRT's reason, ExportError, and KeyboardInterrupt, after which the build may go on.
    """
    progress.phase("reading the graph")
    builder = in_background(lambda: set_up(trt, graph, shapes, options), progress)
    cancellable = builder.report_to(progress)
    cache = options.timing_cache or default_timing_cache(trt.version, gpu)
    notes = []
    if not builder.use_timing_cache(cache.read_bytes() if cache.is_file() else b""):
        if options.timing_cache is not None:  # who knows what it is
            raise ExportError(f"{cache}: is no timing cache of this TensorRT and GPU; name another file, or remove it")
        notes.append(f"{cache}: is no timing cache of this TensorRT and GPU; it is not used, and replaced")
    progress.phase("building")
    start = time.monotonic()
    plan = in_background(lambda: run(builder), progress, cancellable)
    built = Built(plan, time.monotonic() - start, notes)
    progress.phase("writing the timing cache")
    try:
        if options.timing_cache is None:
            cache.parent.mkdir(parents=True, exist_ok=True)
        with atomic(cache) as temporary:
            temporary.write_bytes(builder.timing_cache)
    except OSError as error:  # the plan is worth more than the time that the next build would save
        notes.append(f"{cache}: the timing cache could not be written ({error.strerror or error})")
    return built


def set_up(trt: TensorRT, graph: Graph, shapes: Shapes, options: Options) -> Builder:
    """A builder that knows the graph and what is asked for."""
    builder = Builder(trt)
    builder.parse(graph.model.SerializeToString())
    workspace = None if options.workspace is None else int(options.workspace * GIB)
    builder.configure(graph.precision == "fp16", workspace, options.optimization_level, options.version_compatible)
    builder.add_profile(*((1, 3, *size) for size in shapes))
    return builder


def run(builder: Builder) -> bytes:
    """The plan. Errors tell how much memory is free: where too little is, 8.6 blames whatever it could not do, such as
    `Cask (no further information)`."""
    from engines.trt import gpu

    try:
        return builder.build()
    except EngineError as error:
        free = gpu.free_memory() / 2**20
        raise type(error)(f"{error}; {free:.0f} MiB of GPU memory are free") from None


def default_timing_cache(version: str, gpu: str) -> Path:
    """In the user's cache folder ($XDG_CACHE_HOME, else ~/.cache), one file for each TensorRT and kind of GPU."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ribsr"
    return folder / f"tensorrt-{version}-{re.sub(r'[^A-Za-z0-9]+', '-', gpu)}.timing"


def in_background(work: Callable[[], T], progress: Progress, cancellable: bool = False) -> T:
    """work(), in a thread, so that Ctrl-C is noticed: TensorRT returns to Python only when it is done, or to call the
    logger, and a KeyboardInterrupt that is raised there is lost.

    cancellable: whether the work ends soon after `progress.cancel()`. If it does not, it goes on until the end.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 (raised again where the result is asked for)
            future.set_exception(error)

    try:
        threading.Thread(target=run, daemon=True).start()
        while not _ends(future, TICK):  # a wait without end would not notice Ctrl-C on every system
            pass
        return future.result()
    except KeyboardInterrupt:
        progress.cancel()
        if cancellable:
            _ends(future, CANCEL_SECONDS)
        raise


def _ends(future: Future, seconds: float) -> bool:
    return bool(wait([future], timeout=seconds).done)
