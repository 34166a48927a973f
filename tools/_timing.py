"""How models are timed side by side: what the commands that do it share. tools/README.md says how, and why so."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ribsr.base.command import SizeType, is_verbose, message
from ribsr.base.sizes import Size
from tools._common import (
    ModelName,
    environment,
    environment_line,
    gpu_query,
    open_model,
    progress,
    show_table,
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
    """A process that runs `work(pipe, *arguments)`, which must be picklable, and this end of the pipe.

    told: the fields that it has sent so far, a dict at a time. Of one that failed: `failure` alone, which is why.
    """

    def __init__(self, work: Callable[..., None], *arguments: Any):
        self.told: dict[str, Any] = {}
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, *arguments), daemon=True)
        with _deaf_to_ctrl_c():
            self._process.start()
        theirs.close()

    @property
    def failed(self) -> bool:
        return "failure" in self.told

    def listen(self) -> None:
        """Waits for more fields. If it has ended, that is its failure."""
        try:
            told = self._pipe.recv()
        except (EOFError, ConnectionResetError):  # the latter if it has not read what it was asked
            self._process.join()
            code = self._process.exitcode
            hint = " (killed: out of memory?)" if code == -9 else ""
            told = {"failure": f"its process ended with code {code}{hint}"}
        if (trace := told.pop("traceback", "")) and is_verbose():
            click.echo(trace, err=True, nl=False)
        self.told = told if "failure" in told else self.told | told

    def ask(self, question: Any) -> None:
        """Asks for more fields, unless it has failed."""
        if not self.failed:
            with suppress(BrokenPipeError):  # its process has ended; what it sent last, or its exit code, says why
                self._pipe.send(question)
            self.listen()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pipe.close()
        if kind is None:
            self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes that are started within it never hear of Ctrl-C, which they would tell of each; it is blocked here."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # a process of multiprocessing's own; to start it unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def failure(error: BaseException, line: str) -> dict[str, str]:
    """What a process sends of an error that ends it; the traceback is shown with `-v` alone."""
    return {"failure": line, "traceback": "".join(traceback.format_exception(error))}


def worker(pipe: Connection, name: ModelName, size: Size, setup: Setup) -> None:
    """A model's process. Sends fields of its `outcome` once it is open and warmed up, and the others at False.

    In between it runs once for every True, and answers with no fields. Whatever fails, it sends why.
    """
    times = []
    try:
        with setup.opener(name, setup.options) as engine:
            timer = engine.timer(picture(engine, size))
            for _ in range(setup.warmup):
                timer.once()
            pipe.send({"description": engine.describe().to_json(), "clock": timer.clock})
            while pipe.recv():
                times.append(timer.once())
                pipe.send({})
            pipe.send({"times": times, "peak_memory": _peak_memory(), "gpu_allocated": timer.peak_memory()})
    except (RuntimeError, MemoryError, OSError, ValueError) as error:
        with suppress(OSError):  # nobody is there any more
            pipe.send(failure(error, message(error).removeprefix(f"{name.path}: ")))
    except EOFError:  # as before
        pass


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
    on_cpu = device.startswith(("cpu", "CPUExecutionProvider"))
    return None if on_cpu or used is None or before is None else used - before


def outcome(name: ModelName, size: Size, told: dict[str, Any]) -> dict[str, Any]:
    """What --json says of one model at one size. Times in ms, memory in bytes; `failure` instead if it did not run.

    gpu_memory: by how much the GPU's used memory grew: context, weights, workspace and caches, whatever the runtime.
    gpu_allocated: most that the engine itself held of it, where it says: weights, activations, inputs and outputs.
    """
    empty = {"description": None, "clock": "", "times": []}
    empty |= dict.fromkeys(("peak_memory", "gpu_memory", "gpu_allocated", "failure"))
    return {"file": str(name), "size": str(size), **empty, **told, **statistics(told.get("times", []))}


def statistics(times: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile, spread (between the quartiles) and fastest of times; empty for none."""
    if not times:
        return {}
    import numpy as np

    low, median, high, p95 = (float(value) for value in np.percentile(times, (25, 50, 75, 95)))
    return {"median": median, "p95": p95, "spread": high - low, "fastest": min(times)}


def measure(names: Sequence[ModelName], size: Size, setup: Setup) -> list[dict[str, Any]]:
    """Times models at one size, interleaved. A model that fails is left out of further rounds."""
    with ExitStack() as stack:
        children: list[Child] = []
        for name in names:
            with progress(f"{size}: opening and warming up {name}"):
                before = _gpu_memory()
                child = stack.enter_context(Child(worker, name, size, setup))
                child.listen()
                if not child.failed:
                    child.told["gpu_memory"] = _grown(before, child.told["description"]["device"])
                children.append(child)
        with progress(f"{size}: timing"):
            for number in range(setup.rounds):
                for child in _rotated([child for child in children if not child.failed], number):
                    time.sleep(PAUSE)
                    child.ask(True)
        for child in children:
            child.ask(False)
        return [outcome(name, size, child.told) for name, child in zip(names, children, strict=True)]


def _rotated(items: list[Any], number: int) -> list[Any]:
    start = number % max(1, len(items))
    return items[start:] + items[:start]


def timed(names: Sequence[ModelName], sizes: Sequence[Size], setup: Setup) -> dict[str, Any]:
    """The report of models at several sizes, timed on this machine."""
    results = [result for size in sizes for result in measure(names, size, setup)]
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


def publish(out: Console, made: dict[str, Any], json_target: str | None) -> bool:
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


COLUMNS = (
    "model", "size", "runs on", "form", "precision", "median ms", "p95", "spread",
    "memory MiB", "GPU MiB", "engine MiB", "ratio",
)  # fmt: skip


def _row(result: dict[str, Any]) -> list[str]:
    if result["failure"]:
        return [result["file"], result["size"], "failed"]
    description = result["description"]
    memory = (result[column] for column in ("peak_memory", "gpu_memory", "gpu_allocated"))
    return [
        result["file"],
        result["size"],
        where(description),
        description["form"],
        description["precision"],
        *(f"{result[column]:.2f}" for column in ("median", "p95", "spread")),
        *("" if amount is None else f"{amount / 2**20:.0f}" for amount in memory),
        f"{result['ratio']:.3f}",
    ]


def show(out: Console, results: list[dict[str, Any]]) -> None:
    """Prints results with their ratios as a table, and which clock, failures and notes belong to which model."""
    show_table(out, COLUMNS, map(_row, results))
    for clock in dict.fromkeys(result["clock"] for result in results if result["clock"]):
        files = dict.fromkeys(result["file"] for result in results if result["clock"] == clock)
        out.print(f"Clock of {', '.join(files)}: {clock}", style="dim", soft_wrap=True)
    for result in results:
        if result["failure"]:
            out.print(f"FAIL {result['file']} at {result['size']}: {result['failure']}", style="red", soft_wrap=True)
        for note in (result["description"] or {}).get("notes", ()):
            out.print(f"Note: {note}", style="yellow", soft_wrap=True)
