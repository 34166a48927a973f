"""Timing models side by side: processes, rounds, results, and the table of them.

How it is measured, so that figures can be compared:
- Each model has a process of its own: threads that one runtime leaves spinning do not slow another one down, and peak
  memory is that model's alone.
- One process works at a time. Each round runs every model once, and the order rotates, so that a machine that slows
  down or speeds up does so for all of them. Between two runs there is a pause in which idle threads go to sleep.
- All get the same picture. On a GPU it lies there already, and CUDA events measure (where the runtime has none: the
  host clock around a synchronous run); on a CPU the host clock measures the whole run.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from engines.base import EngineError
from ribsr.base.command import message
from ribsr.base.sizes import Size
from tools._common import ModelName, environment_line, gpu_query, open_model, progress, table, where, write_json

if TYPE_CHECKING:
    import numpy as np

    from engines import Engine

DEFAULT_SIZES = (Size(128, 128),)

PAUSE = 0.02
"""Seconds between two runs: OpenMP's and ONNX Runtime's threads spin for some milliseconds after their work."""


Opener = Callable[[ModelName, dict[str, Any]], "Engine"]
"""What opens a model in its process: picklable, so that it can be sent there."""

T = TypeVar("T")


def serve(pipe: Connection, name: ModelName, size: Size, options: dict[str, Any], opener: Opener = open_model) -> None:
    """A model's process. Sends its description or an error, then a time in ms for every True that it receives.

    At False it sends its peak memory (process, GPU allocator) in bytes and ends.
    """
    try:
        with opener(name, options) as engine:
            timer = engine.timer(picture_for(engine, size))
            pipe.send({"description": engine.describe().to_json(), "clock": timer.clock})
            while pipe.recv():
                pipe.send(timer.once())
            pipe.send((_peak_memory(), timer.peak_memory()))
    except (EngineError, MemoryError, OSError, ValueError) as error:
        pipe.send(EngineError(message(error)))  # subclasses with more arguments do not survive the way


def picture_for(engine: Engine, size: Size) -> np.ndarray:
    """The picture that is timed, as often as the engine's batch wants it."""
    from engines.samples import sample

    return sample("astronaut", size).repeat(engine.describe().batch or 1, axis=0)


def _peak_memory() -> int:
    """Most memory that this process has held, in bytes.

    Linux: VmHWM, since getrusage's figure is carried over from the parent process.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


class Worker:
    """The parent's end of a model's process. Every method raises EngineError when the model or its process fails."""

    def __init__(self, name: ModelName, size: Size, options: dict[str, Any], opener: Opener):
        self.name = name
        self.used_before = _gpu_memory()
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, size, options, opener), daemon=True)
        self._process.start()
        theirs.close()
        self.opened: dict[str, Any] = self._receive()

    def _receive(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            hint = " (killed: out of memory?)" if code == -9 else ""
            raise EngineError(f"{self.name}: its process ended with code {code}{hint}") from None
        if isinstance(answer, EngineError):
            raise answer
        return answer

    def time(self) -> float:
        """Milliseconds of one run."""
        with suppress(BrokenPipeError):  # its process has ended; what it sent last, or its exit code, says why
            self._pipe.send(True)
        return self._receive()

    def finish(self) -> tuple[int, int | None]:
        """Peak memory in bytes, of the process and of the runtime's GPU allocator if it says."""
        self._pipe.send(False)
        return self._receive()

    def stop(self) -> None:
        self._pipe.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


@contextmanager
def started(name: ModelName, size: Size, options: dict[str, Any], opener: Opener) -> Iterator[Worker]:
    running = Worker(name, size, options, opener)
    try:
        yield running
    finally:
        running.stop()


def _gpu_memory() -> int | None:
    """Bytes in use on the first visible GPU, by whatever process."""
    used = gpu_query("memory.used")
    return int(used[0]) * 2**20 if used and used[0].isdigit() else None


@dataclass
class Result:
    """One model at one size. Times in ms, memory in bytes; `failure` instead of times if it did not run.

    gpu_memory: by how much the GPU's used memory grew: context, weights, workspace and caches, whatever the runtime.
    gpu_allocated: most that the engine itself held of it, where it says: weights, activations, inputs and outputs.
    """

    file: str
    size: str
    description: dict[str, Any] | None = None
    clock: str = ""
    times: list[float] = field(default_factory=list)
    peak_memory: int | None = None
    gpu_memory: int | None = None
    gpu_allocated: int | None = None
    failure: str | None = None

    def to_json(self) -> dict[str, Any]:
        kept = Result(self.file, self.size, failure=self.failure) if self.failure else self
        return {**asdict(kept), **statistics(kept.times)}

    @contextmanager
    def attempt(self, path: str) -> Iterator[None]:
        """What fails in the block becomes the failure of this model, whose file is `path`."""
        try:
            yield
        except EngineError as error:
            self.failure = str(error).removeprefix(f"{path}: ")


def statistics(times: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile, spread (between the quartiles) and fastest of times; empty for none."""
    if not times:
        return {}
    import numpy as np

    low, median, high, p95 = (float(value) for value in np.percentile(times, (25, 50, 75, 95)))
    return {"median": median, "p95": p95, "spread": high - low, "fastest": min(times)}


def measure(
    names: Sequence[ModelName],
    size: Size,
    options: dict[str, Any],
    rounds: int,
    warmup: int,
    opener: Opener = open_model,
) -> list[Result]:
    """Times models at one size, interleaved. A model that fails is left out of further rounds."""
    results = [Result(str(name), str(size)) for name in names]
    running: list[tuple[Result, Worker]] = []
    with ExitStack() as stack:
        for name, result in zip(names, results, strict=True):
            with progress(f"{size}: opening and warming up {name}"), result.attempt(name.path):
                worker = stack.enter_context(started(name, size, options, opener))
                result.description, result.clock = worker.opened["description"], worker.opened["clock"]
                for _ in range(warmup):
                    worker.time()
                result.gpu_memory = _grown(worker)
                running.append((result, worker))
        with progress(f"{size}: timing"):
            for number in range(rounds):
                for result, worker in _rotated([entry for entry in running if not entry[0].failure], number):
                    time.sleep(PAUSE)
                    with result.attempt(worker.name.path):
                        result.times.append(worker.time())
        for result, worker in (entry for entry in running if not entry[0].failure):
            with result.attempt(worker.name.path):
                result.peak_memory, result.gpu_allocated = worker.finish()
    return results


def _rotated(items: list[T], number: int) -> list[T]:
    start = number % max(1, len(items))
    return items[start:] + items[:start]


def _grown(running: Worker) -> int | None:
    """By how much the GPU's used memory has grown since before the process; None for models on the CPU."""
    used = _gpu_memory()
    on_cpu = running.opened["description"]["device"] in ("cpu", "CPUExecutionProvider")
    return None if on_cpu or used is None or running.used_before is None else used - running.used_before


def with_ratios(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds `ratio`: the median over that of the first model of the list at the same size."""
    first: dict[str, float] = {}
    rated = []
    for result in results:
        if "median" in result:
            first.setdefault(result["size"], result["median"])
        ratio = result["median"] / first[result["size"]] if "median" in result else None
        rated.append({**result, "ratio": ratio})
    return rated


def show(out: Any, results: list[dict[str, Any]]) -> None:
    """Prints results with their ratios as a table, and which clock, failures and notes belong to which model."""
    rows = table(
        "model", "size", "runs on", "form", "precision", "median ms", "p95", "spread",
        "memory MiB", "GPU MiB", "engine MiB", "ratio",
    )  # fmt: skip
    for result in results:
        if result["failure"]:
            rows.add_row(result["file"], result["size"], "failed")
            continue
        description = result["description"]
        rows.add_row(
            result["file"],
            result["size"],
            where(description),
            description["form"],
            description["precision"],
            *(f"{result[column]:.2f}" for column in ("median", "p95", "spread")),
            _mebibytes(result["peak_memory"]),
            _mebibytes(result["gpu_memory"]),
            _mebibytes(result["gpu_allocated"]),
            f"{result['ratio']:.3f}",
        )
    out.print(rows)
    for clock in dict.fromkeys(result["clock"] for result in results if result["clock"]):
        files = dict.fromkeys(result["file"] for result in results if result["clock"] == clock)
        out.print(f"Clock of {', '.join(files)}: {clock}", style="dim", soft_wrap=True)
    for result in results:
        if result["failure"]:
            out.print(f"FAIL {result['file']} at {result['size']}: {result['failure']}", style="red", soft_wrap=True)
        for note in (result["description"] or {}).get("notes", ()):
            out.print(f"Note: {note}", style="yellow", soft_wrap=True)


def _mebibytes(value: int | None) -> str:
    return "" if value is None else f"{value / 2**20:.0f}"


def report(
    results: list[dict[str, Any]], environments: list[dict[str, Any]], settings: list[dict[str, Any]]
) -> dict[str, Any]:
    """What --json writes: the results with their ratios, and the machines and settings they come from."""
    return {"tool": "latency", "results": results, "environments": environments, "settings": settings}


def finish(out: Any, built: dict[str, Any], json_target: str | None) -> bool:
    """Prints a report and writes it where it is wanted; returns whether every model ran."""
    show(out, built["results"])
    for seen in built["environments"]:
        out.print(environment_line(seen), style="dim", soft_wrap=True)
    if _machines(built["environments"]) > 1:
        out.print("Warning: these figures come from different machines", style="yellow")
    if json_target:
        write_json(json_target, built)
    return not any(result["failure"] for result in built["results"])


def _machines(environments: list[dict[str, Any]]) -> int:
    """How many different machines: what is installed on them does not count."""
    return len({(seen["cpu"], seen["cores"], tuple(seen["gpus"])) for seen in environments})
