"""How models are timed side by side, so that figures can be compared: what the commands that do it share.

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
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines.base import EngineError
from ribsr.base.command import SizeType, message
from ribsr.base.sizes import Size
from tools._common import (
    ModelName,
    environment,
    environment_line,
    gpu_query,
    open_model,
    progress,
    table,
    where,
    write_json,
)

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console
    from typing_extensions import Self

    from engines import Engine

PAUSE = 0.02
"""Seconds between two runs: OpenMP's and ONNX Runtime's threads spin for some milliseconds after their work."""

size_option = click.option(
    "--size",
    "sizes",
    multiple=True,
    type=SizeType(),
    default=("128x128",),
    show_default=True,
    help="Of the input (repeatable).",
)


@dataclass(frozen=True)
class Setup:
    """How models are timed: runs that count and runs before, the options that engines open with, and what opens them.

    All of it is sent to other processes, so it must be picklable.
    """

    rounds: int
    warmup: int
    options: dict[str, Any]
    opener: Callable[[ModelName, dict[str, Any]], Engine] = open_model


class Child:
    """A process that runs `work(pipe, *arguments)`, which must be picklable, and this end of the pipe."""

    def __init__(self, title: str, work: Callable[..., None], *arguments: Any):
        self._title = title
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, *arguments))
        self._process.start()
        theirs.close()

    def receive(self) -> Any:
        """What it sends next. Raises the EngineError that it sent, or one if the process has ended."""
        try:
            answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            hint = " (killed: out of memory?)" if code == -9 else ""
            raise EngineError(f"{self._title}: its process ended with code {code}{hint}") from None
        if isinstance(answer, EngineError):
            raise answer
        return answer

    def ask(self, question: Any) -> Any:
        """Its answer. Raises EngineError as `receive` does."""
        with suppress(BrokenPipeError):  # its process has ended; what it sent last, or its exit code, says why
            self._pipe.send(question)
        return self.receive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def worker(pipe: Connection, name: ModelName, size: Size, setup: Setup) -> None:
    """A model's process. Sends fields of its `Result`, or an error, once it is open and warmed up.

    Then it sends a time in ms for every True that it receives, and at False the fields that are known at the end.
    """
    try:
        with setup.opener(name, setup.options) as engine:
            timer = engine.timer(picture(engine, size))
            for _ in range(setup.warmup):
                timer.once()
            pipe.send({"description": engine.describe().to_json(), "clock": timer.clock})
            while pipe.recv():
                pipe.send(timer.once())
            pipe.send({"peak_memory": _peak_memory(), "gpu_allocated": timer.peak_memory()})
    except (RuntimeError, MemoryError, OSError, ValueError) as error:
        pipe.send(EngineError(message(error)))  # types with more arguments do not survive the way


def picture(engine: Engine, size: Size) -> np.ndarray:
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


def _gpu_memory() -> int | None:
    """Bytes in use on the first visible GPU, by whatever process."""
    used = gpu_query("memory.used")
    return int(used[0]) * 2**20 if used and used[0].isdigit() else None


def _grown(before: int | None, device: str) -> int | None:
    """By how many bytes the GPU's used memory has grown since `before`; None for models on the CPU."""
    used = _gpu_memory()
    on_cpu = device in ("cpu", "CPUExecutionProvider")
    return None if on_cpu or used is None or before is None else used - before


@dataclass(frozen=True)
class Result:
    """One model at one size. Times in ms, memory in bytes; `failure` instead of times if it did not run.

    gpu_memory: by how much the GPU's used memory grew: context, weights, workspace and caches, whatever the runtime.
    gpu_allocated: most that the engine itself held of it, where it says: weights, activations, inputs and outputs.
    """

    file: str
    size: str
    description: dict[str, Any] | None = None
    clock: str = ""
    times: tuple[float, ...] = ()
    peak_memory: int | None = None
    gpu_memory: int | None = None
    gpu_allocated: int | None = None
    failure: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), **statistics(self.times)}


def statistics(times: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile, spread (between the quartiles) and fastest of times; empty for none."""
    if not times:
        return {}
    import numpy as np

    low, median, high, p95 = (float(value) for value in np.percentile(times, (25, 50, 75, 95)))
    return {"median": median, "p95": p95, "spread": high - low, "fastest": min(times)}


class Run:
    """A model at one size in a process of its own, and what is known of it so far; asked no more once it has failed.

    gpu_before: bytes in use on the GPU before its process started.
    """

    def __init__(self, name: ModelName, size: Size, child: Child, gpu_before: int | None):
        self._path, self._child = name.path, child
        self.result = Result(str(name), str(size))

        def opened() -> dict[str, Any]:
            told = child.receive()
            return {**told, "gpu_memory": _grown(gpu_before, told["description"]["device"])}

        self._add(opened)

    def time(self) -> None:
        self._add(lambda: {"times": (*self.result.times, self._child.ask(True))})

    def finish(self) -> Result:
        self._add(lambda: self._child.ask(False))
        return self.result

    def _add(self, tell: Callable[[], dict[str, Any]]) -> None:
        """Adds the fields that `tell` returns to the result, or puts why it does not in the place of all."""
        if self.result.failure:
            return
        try:
            self.result = replace(self.result, **tell())
        except EngineError as error:
            failure = str(error).removeprefix(f"{self._path}: ")
            self.result = Result(self.result.file, self.result.size, failure=failure)


def measure(names: Sequence[ModelName], size: Size, setup: Setup) -> list[Result]:
    """Times models at one size, interleaved. A model that fails is left out of further rounds."""
    with ExitStack() as stack:
        runs: list[Run] = []
        for name in names:
            with progress(f"{size}: opening and warming up {name}"):
                before = _gpu_memory()
                child = stack.enter_context(Child(str(name), worker, name, size, setup))
                runs.append(Run(name, size, child, before))
        with progress(f"{size}: timing"):
            for number in range(setup.rounds):
                for run in _rotated([run for run in runs if not run.result.failure], number):
                    time.sleep(PAUSE)
                    run.time()
        return [run.finish() for run in runs]


def _rotated(items: list[Any], number: int) -> list[Any]:
    start = number % max(1, len(items))
    return items[start:] + items[:start]


def timed(names: Sequence[ModelName], sizes: Sequence[Size], setup: Setup) -> dict[str, Any]:
    """The report of models at several sizes, timed on this machine."""
    results = [result.to_json() for size in sizes for result in measure(names, size, setup)]
    settings = {"rounds": setup.rounds, "warmup": setup.warmup}
    settings |= {name: setup.options[name] for name in ("device", "threads")}
    return report(results, [environment()], [settings])


def report(results: list[dict[str, Any]], environments: list[dict[str, Any]], settings: list[Any]) -> dict[str, Any]:
    """What --json writes: the results with their ratios, and the machines and settings they come from."""
    return {"tool": "latency", "results": with_ratios(results), "environments": environments, "settings": settings}


def with_ratios(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds `ratio`: the median over that of the first model of the list at the same size."""
    first: dict[str, float] = {}
    rated = []
    for result in results:
        median = result.get("median")
        ratio = median and median / first.setdefault(result["size"], median)
        rated.append({**result, "ratio": ratio})
    return rated


def conclude(out: Console, made: dict[str, Any], json_target: str | None) -> bool:
    """Prints a report, and writes it where --json says. Returns whether every model ran."""
    show(out, made["results"])
    for seen in made["environments"]:
        out.print(environment_line(seen), style="dim", soft_wrap=True)
    # What is installed on a machine does not make it another one.
    if len({(seen["cpu"], seen["cores"], tuple(seen["gpus"])) for seen in made["environments"]}) > 1:
        out.print("Warning: these figures come from different machines", style="yellow")
    if json_target:
        write_json(json_target, made)
    return not any(result["failure"] for result in made["results"])


def show(out: Console, results: list[dict[str, Any]]) -> None:
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
        memory = (result[column] for column in ("peak_memory", "gpu_memory", "gpu_allocated"))
        rows.add_row(
            result["file"],
            result["size"],
            where(description),
            description["form"],
            description["precision"],
            *(f"{result[column]:.2f}" for column in ("median", "p95", "spread")),
            *("" if amount is None else f"{amount / 2**20:.0f}" for amount in memory),
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
