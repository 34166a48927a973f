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

from engines.base import HALVES, Description, host_clock, is_gpu
from ribsr import work
from ribsr.base.command import SizeType, is_verbose, message
from ribsr.base.progress import Progress
from ribsr.base.sizes import Size
from tools._chips import clocks, limits
from tools._common import (
    ModelName,
    document,
    environment,
    gpu_query,
    open_model,
    provenance,
)
from tools._measured import WARMUP_SECONDS, is_stable, ratio_interval, rounds_for, statistics

if TYPE_CHECKING:
    import numpy as np
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

    rounds, warmup: None leaves their number to the rules of `tools._measured`. All of it is sent to other processes,
    so it must be picklable.
    """

    rounds: int | None
    warmup: int | None
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


def worker(pipe: Connection, name: ModelName, size: Size, batch: int | None, setup: Setup) -> None:
    """A model's process. Sends fields of its `outcome` once it is open and warmed up, and the others at False.

    In between it has a turn for every True, and answers with no fields. Whatever fails, it sends why. The field `turn`
    is the seconds that a turn takes; None after a warm-up of none.
    """
    try:
        with setup.opener(name, setup.options) as engine:
            told = engine.describe()
            runs = _Runs(engine, picture(engine, size, batch))
            warmup, turn = _warm_up(runs, setup.warmup)
            before = clocks(told)
            opened = {"description": told.to_json(), "clock": runs.timer.clock, "batch": len(runs.x), "warmup": warmup}
            pipe.send({**opened, "turn": turn, "work": _work(told, runs.x)})
            while pipe.recv():
                runs.once()
                pipe.send({})
            after = clocks(told)
            seen = {"clocks": before and after and {"before": before, "after": after}, **runs.statistics()}
            pipe.send({**seen, "peak_memory": _peak_memory(), "gpu_allocated": runs.timer.peak_memory()})
    except (RuntimeError, MemoryError, OSError, ValueError) as error:
        with suppress(OSError):  # nobody is there any more
            pipe.send(failure(error, message(error).removeprefix(f"{name.path}: ")))
    except EOFError:  # as before
        pass


class _Runs:
    """Runs an engine on x, and keeps the times: of the network alone, where it runs on a GPU, and from host to host."""

    def __init__(self, engine: Engine, x: np.ndarray):
        self.x = x
        self.timer = engine.timer(x)
        self.device: list[float] = []
        self.end_to_end: list[float] = []
        self._whole = host_clock(lambda: engine.run(x)) if engine.describe().on_gpu else None

    def once(self) -> float:
        """A turn: one run, on a GPU one of each kind. Returns the milliseconds of the first."""
        milliseconds = self.timer.once()
        if self._whole is None:
            self.end_to_end.append(milliseconds)
        else:
            self.device.append(milliseconds)
            self.end_to_end.append(self._whole())
        return milliseconds

    def forget(self) -> None:
        self.device.clear()
        self.end_to_end.clear()

    def statistics(self) -> dict[str, Any]:
        kinds = {"device": self.device, "end_to_end": self.end_to_end}
        return {kind: statistics(times) if times else None for kind, times in kinds.items()}


def _warm_up(runs: _Runs, fixed: int | None) -> tuple[dict[str, Any], float | None]:
    """Turns that do not count: what `outcome` says of them, and the seconds that one takes in the end.

    fixed: their number; None: two at least, and on until the times are stable or WARMUP_SECONDS are over since the
    first, in which runtimes load and choose.
    """
    times, seconds = list[float](), list[float]()
    start = time.perf_counter()
    while len(times) < (2 if fixed is None else fixed) or (
        fixed is None and sum(seconds[1:]) < WARMUP_SECONDS and not is_stable(times[1:])
    ):
        begun = time.perf_counter()
        times.append(runs.once())
        seconds.append(time.perf_counter() - begun)
    runs.forget()
    stable = None if fixed is not None else is_stable(times[1:])
    told = {"runs": len(times), "seconds": time.perf_counter() - start, "stable": stable}
    return told, seconds[-1] if seconds else None


def _work(told: Description, x: np.ndarray) -> dict[str, float] | None:
    """What one run on x takes, by the model's name; None for a network that is no published one."""
    network = work.known_config(told.model, told.scale, told.windows)
    if network is None:
        return None
    halves = told.precision in HALVES and (told.on_gpu or told.runtime == "pytorch")  # other CPU runtimes widen it
    return vars(work.count(network, Size.of(x), 2 if halves else 4, len(x)))


def picture(engine: Engine, size: Size, batch: int | None = None) -> np.ndarray:
    """The picture that is timed, `batch` times or else as often as the engine's batch wants it."""
    from engines.samples import sample

    return sample("astronaut", size).repeat(batch or engine.describe().batch or 1, axis=0)


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
    return used - before if is_gpu(device) and used is not None and before is not None else None


MEASURED = (
    *("failure", "description", "clock", "warmup", "device", "end_to_end", "peak_memory", "gpu_memory"),
    *("gpu_allocated", "clocks", "work"),
)


def outcome(name: ModelName, size: Size, batch: int | None, told: dict[str, Any]) -> dict[str, Any]:
    """What --json says of one model at one size. Times in ms, memory in bytes; `failure` instead if it did not run.

    device: the times of the network alone, on a GPU; end_to_end: from host to host.
    gpu_memory: by how much the GPU's used memory grew: context, weights, workspace and caches, whatever the runtime.
    gpu_allocated: most that the engine itself held of it, where it says: weights, activations, inputs and outputs.
    work: operations, bytes and scores of a run; achieved: those a second.
    """
    known = {field: told.get(field) for field in MEASURED}
    result = {"file": str(name), "size": str(size), "batch": told.get("batch", batch), **known, "layers": None}
    times = main_times(result)
    seconds = times and times["median"] / 1e3
    rate = result["end_to_end"] and 1e3 * result["batch"] / result["end_to_end"]["median"]
    achieved = seconds and known["work"] and {unit: amount / seconds for unit, amount in known["work"].items()}
    return {**result, "pictures_per_second": rate, "achieved": achieved or None}


def main_times(result: dict[str, Any]) -> dict[str, Any] | None:
    """Those that tables and ratios are of: of the network alone, or on a CPU from host to host."""
    return result["device"] or result["end_to_end"]


def measure(names: Sequence[ModelName], size: Size, batch: int | None, setup: Setup) -> list[dict[str, Any]]:
    """Times models at one size, interleaved. A model that fails is left out of further rounds."""
    with ExitStack() as stack:
        children: list[Child] = []
        for name in names:
            with Progress(f"{size}: opening and warming up {name}"):
                before = _gpu_memory()
                child = stack.enter_context(Child(worker, name, size, batch, setup))
                child.listen()
                if not child.failed:
                    child.told["gpu_memory"] = _grown(before, child.told["description"]["device"])
                children.append(child)
        rounds = setup.rounds or rounds_for(max((child.told.get("turn") or 0 for child in children), default=0))
        with Progress(f"{size}: timing", rounds) as progress:
            for number in range(rounds):
                for child in _rotated([child for child in children if not child.failed], number):
                    time.sleep(PAUSE)
                    child.ask(True)
                progress.advance()
        for child in children:
            child.ask(False)
        return [outcome(name, size, batch, child.told) for name, child in zip(names, children, strict=True)]


def _rotated(items: list[Any], number: int) -> list[Any]:
    start = number % max(1, len(items))
    return items[start:] + items[:start]


def timed(
    names: Sequence[ModelName], sizes: Sequence[Size], setup: Setup, batches: Sequence[int | None] = (None,)
) -> dict[str, Any]:
    """The report of models at several sizes and batches (None: each model's own), timed on this machine."""
    seen = environment()
    results = [one for size in sizes for batch in batches for one in measure(names, size, batch, setup)]
    for one in results:
        one |= {"run": 0, "limits": _limits(one["description"], seen["gpus"])}
    settings = {"rounds": setup.rounds, "warmup": setup.warmup, **setup.options}
    settings = {name: str(value) if isinstance(value, Size) else value for name, value in settings.items()}
    return report(results, [{**provenance(), "source": None, "settings": settings, "environment": seen}])


def _limits(told: dict[str, Any] | None, gpus: Sequence[str]) -> dict[str, Any] | None:
    """Those of the GPU that a model ran on: the first visible one."""
    if told is None or not is_gpu(told["device"]):
        return None
    name = gpus[0].partition(",")[0] if gpus else told["device"].partition(" ")[2]
    return limits(name, told["precision"])


def report(results: list[dict[str, Any]], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What --json writes: the results with their ratios, and for each command that measured them when and where."""
    return document("latency", runs=runs, results=with_ratios(results))


def with_ratios(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds `ratio`: the median over that of the first model that ran at the same size and batch; its interval of 95 %;
    and whether that is of rounds which both ran in."""
    first: dict[tuple[str, int], dict[str, Any]] = {}
    rated = []
    for result in results:
        ratio = interval = paired = None
        if (times := main_times(result)) is not None:
            base = first.setdefault((result["size"], result["batch"]), result)
            theirs = main_times(base)
            assert theirs is not None
            ratio = times["median"] / theirs["median"]
            if base is not result:
                paired = base["run"] == result["run"]
                interval = ratio_interval(times["times"], theirs["times"], paired)
        rated.append({**result, "ratio": ratio, "ratio_interval": interval and list(interval), "paired": paired})
    return rated
