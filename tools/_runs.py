"""What `--json` of latency, parity and evaluate wrote, for the report: read with care, since files may hold anything.

Texts are fit to be shown (no control characters, not endless), numbers finite, and what is wrong is named.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from engines.base import EngineError
from ribsr.base.errors import clipped, shown
from tools._common import environment_line, read_run, where
from tools._kinds import KINDS

TOOLS = ("latency", "parity", "evaluate")

LONGEST = 500
"""Characters of a text."""

T = TypeVar("T")


class Value:
    """A value in a file, and where it is. What asks for a type raises EngineError, one line, if it has another one."""

    def __init__(self, value: Any, place: str):
        self._value, self._place = value, place

    def wrong(self, wanted: str) -> EngineError:
        return EngineError(f"{self._place} must be {wanted}, got {shown(self._value)}; write the file again")

    def __getitem__(self, name: str) -> Value:
        if not isinstance(self._value, dict):
            raise self.wrong("an object")
        return Value(self._value.get(name), f"{self._place}.{name}")

    def items(self) -> Iterator[tuple[str, Value]]:
        if not isinstance(self._value, dict):
            raise self.wrong("an object")
        for name, value in self._value.items():
            yield _text(name), Value(value, f"{self._place}.{_text(name)}")

    def list(self) -> list[Value]:
        if not isinstance(self._value, list):
            raise self.wrong("a list")
        return [Value(value, f"{self._place}[{i}]") for i, value in enumerate(self._value)]

    def one_or_more(self) -> list[Value]:
        """Those of a list, or the value itself; none for null."""
        return [] if self._value is None else self.list() if isinstance(self._value, list) else [self]

    def text(self) -> str:
        if not isinstance(self._value, str):
            raise self.wrong("text")
        return _text(self._value)

    def number(self) -> float:
        value = self._value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
            raise self.wrong("a number")
        return float(value)

    def flag(self) -> bool:
        if not isinstance(self._value, bool):
            raise self.wrong("true or false")
        return self._value

    def given(self) -> Value | None:
        """None for null."""
        return None if self._value is None else self

    def maybe(self, read: Callable[[Value], T]) -> T | None:
        """None for null; else what `read` makes of it."""
        return None if self._value is None else read(self)


def _text(value: str) -> str:
    return clipped(value.encode("utf-8", "replace").decode("utf-8"), LONGEST)


@dataclass(frozen=True)
class Machine:
    """Where and how figures were measured. name: what tells it from others at a glance."""

    name: str
    line: str
    command: str
    date: str


@dataclass(frozen=True)
class Model:
    """A model as tables name it: the file, and what it ran in (empty where it did not)."""

    file: str
    runs_on: str = ""
    precision: str = ""
    form: str = ""


@dataclass(frozen=True)
class Timing:
    """A row of latency. Times in ms: from the host, or of the device alone (`clock` says which). groups: ms a kind of
    layer, where layers were timed. beside: the model that `ratio` is to. use: rates of work, with the share of what the
    chip can do, where that is known."""

    model: Model
    machine: Machine
    size: str
    batch: int
    failure: str | None
    median: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    fastest: float = 0.0
    spread: float = 0.0
    pictures_per_second: float = 0.0
    memory: float | None = None
    gpu_memory: float | None = None
    ratio: float | None = None
    ratio_interval: tuple[float, float] | None = None
    beside: str = ""
    clock: str = ""
    groups: dict[str, float] = field(default_factory=dict)
    use: dict[str, tuple[float, float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Compared:
    """A row of parity. psnr: None where both are equal. error_map: a file, the error that is white in it, and the
    pictures from left to right."""

    model: Model
    reference: str
    failure: str | None
    rule: str
    psnr: float | None
    max_error: float
    rmse: float
    share_off: float
    nan: int
    layers: tuple[Layer, ...]
    error_map: ErrorMap | None


@dataclass(frozen=True)
class Layer:
    """A layer's error beside what it may be; None where that is not finite."""

    name: str
    error: float | None
    limit: float | None
    within: bool


@dataclass(frozen=True)
class ErrorMap:
    file: Path
    full_scale: float
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class Scored:
    """A model's score of a picture, or of a set (`saved` is None then). PSNR in dB, None for equal pictures. failed:
    pictures of the set that have no score."""

    psnr: float | None
    ssim: float | None
    saved: Path | None = None
    failed: int = 0


@dataclass(frozen=True)
class Scores:
    """A model on the sets of an evaluation: set → its mean, and set → picture → score."""

    model: Model
    means: dict[str, Scored]
    pictures: dict[str, dict[str, Scored]]


@dataclass(frozen=True)
class Evaluation:
    """originals: set → picture → file, where pictures were saved."""

    machine: Machine
    scale: int
    models: tuple[Scores, ...]
    originals: dict[str, dict[str, Path]]


@dataclass
class Runs:
    """All files together."""

    timings: list[Timing] = field(default_factory=list)
    comparisons: list[tuple[Machine, list[Compared]]] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    machines: list[Machine] = field(default_factory=list)


def read_runs(paths: list[str]) -> Runs:
    """Raises EngineError, one line, for a file that is none of these tools', damaged, or of another version."""
    runs = Runs()
    for path in paths:
        values = read_run(path, *TOOLS)
        kind, top = values.get("kind"), Value(values, path)
        folder = Path(path).parent
        if kind == "latency":
            machines = [_machine(run, run["environment"]) for run in top["runs"].list()]
            runs.machines += machines
            runs.timings += _beside([_timing(result, machines) for result in top["results"].list()])
            continue
        machine = _machine(top, top["environment"])
        runs.machines.append(machine)
        if kind == "parity":
            compared = [one for of in top["comparisons"].list() for one in _compared(of, folder)]
            runs.comparisons.append((machine, compared))
        else:
            runs.evaluations.append(_evaluation(top, machine, folder))
    return _named_shortly(runs)


def _beside(rows: list[Timing]) -> list[Timing]:
    """A file's rows with what their ratios are to: the first that ran at the size and batch."""
    first: dict[tuple[str, int], str] = {}
    for row in rows:
        if row.failure is None:
            first.setdefault((row.size, row.batch), row.model.file)
    return [replace(row, beside=first.get((row.size, row.batch), "")) for row in rows]


def _named_shortly(runs: Runs) -> Runs:
    """Files without their folders, as far as that tells them apart."""
    files = {row.model.file for row in runs.timings}
    files |= {file for _, models in runs.comparisons for one in models for file in (one.model.file, one.reference)}
    files |= {of.model.file for evaluation in runs.evaluations for of in evaluation.models}
    names = short_names(files)

    def named(model: Model) -> Model:
        return replace(model, file=names[model.file])

    return replace(
        runs,
        timings=[
            replace(row, model=named(row.model), beside=names.get(row.beside, row.beside)) for row in runs.timings
        ],
        comparisons=[
            (machine, [replace(one, model=named(one.model), reference=names[one.reference]) for one in models])
            for machine, models in runs.comparisons
        ],
        evaluations=[
            replace(of, models=tuple(replace(scores, model=named(scores.model)) for scores in of.models))
            for of in runs.evaluations
        ],
    )


_BUNDLED = re.compile(r".*/ribsr/checkpoints/([^/]+)\.safetensors(@[^/]*)?")


def short_names(files: Iterable[str]) -> dict[str, str]:
    """File → its name, with so many of the folders before it that no two are called alike; bundled checkpoints as users
    call them."""
    bundled = {file: _BUNDLED.sub(r"\1\2", file) for file in files}
    installs = Counter(name for file, name in bundled.items() if file != name)
    called = {file: name if installs[name] <= 1 else file for file, name in bundled.items()}
    parts = {name: name.split("/") for name in called.values()}
    short = {name: name for name in parts}
    for count in range(1, max(map(len, parts.values()), default=1)):
        names = {name: "/".join(of[-count:]) for name, of in parts.items()}
        if len({*names.values()}) == len(names):
            short = names
            break
    return {file: short[name] for file, name in called.items()}


def _machine(run: Value, environment: Value) -> Machine:
    gpus = [gpu.text() for gpu in environment["gpus"].list()]
    seen = {
        "cpu": environment["cpu"].text(),
        "cores": environment["cores"].maybe(Value.number) or 0,
        "memory_bytes": environment["memory_bytes"].maybe(Value.number),
        "gpus": gpus,
        "system": environment["system"].text(),
        "versions": {name: version.text() for name, version in environment["versions"].items()},
    }
    seen["cores"] = round(seen["cores"])
    command = " ".join(part.text() for part in run["command"].maybe(Value.list) or [])
    date = (run["date"].maybe(Value.text) or "")[:16].replace("T", " ")
    return Machine(gpus[0] if gpus else seen["cpu"], environment_line(seen), command, date and f"{date} UTC")


def _model(result: Value) -> Model:
    file, description = result["file"].text(), result["description"].given()
    if description is None:
        return Model(file)
    told = {name: description[name].text() for name in ("runtime", "runtime_version", "device")}
    return Model(file, where(told), description["precision"].text(), description["form"].text())


def _timing(result: Value, machines: list[Machine]) -> Timing:
    index = round(result["run"].number())
    if not 0 <= index < len(machines):
        raise result["run"].wrong("the number of one of `runs`")
    failure = result["failure"].maybe(Value.text)
    batch = round(result["batch"].maybe(Value.number) or 1)
    row = (_model(result), machines[index], result["size"].text(), batch, failure)
    if failure is not None:
        return Timing(*row)
    times = result["device"].given() or result["end_to_end"]
    interval = result["ratio_interval"].maybe(Value.list)
    groups = result["layers"].maybe(lambda layers: {name: ms.number() for name, ms in layers["groups"].items()}) or {}
    return Timing(
        *row,
        **{name: times[name].number() for name in ("median", "p90", "p99", "spread")},
        fastest=times["min"].number(),
        pictures_per_second=result["pictures_per_second"].number(),
        memory=result["peak_memory"].maybe(Value.number),
        gpu_memory=result["gpu_memory"].maybe(Value.number),
        ratio=result["ratio"].maybe(Value.number),
        ratio_interval=(interval[0].number(), interval[1].number()) if interval and len(interval) == 2 else None,
        beside="",
        clock=result["clock"].text(),
        groups={name: ms for name, ms in groups.items() if name in KINDS},
        use=_use(result),
    )


def _use(result: Value) -> dict[str, tuple[float, float | None]]:
    achieved, limits = (result[name].given() for name in ("achieved", "limits"))
    if achieved is None:
        return {}
    found = {}
    for name in ("operations", "bytes", "scores"):
        if (rate := achieved[name].maybe(Value.number)) is not None:
            found[name] = (rate, None if limits is None else _share(rate, limits[name]))
    return found


def _share(rate: float, limit: Value) -> float | None:
    """Of the limit; of its lower end where it is a range, as in latency's table."""
    least = min((one.number() for one in limit.one_or_more()), default=0.0)
    return rate / least if least else None


def _compared(comparison: Value, folder: Path) -> Iterator[Compared]:
    reference = comparison["reference"]["path"].text()
    for model in comparison["models"].list():
        failure = model["failure"].maybe(Value.text)
        layers = model["layers"].maybe(lambda value: value["layers"].maybe(Value.list)) or []
        yield Compared(
            model=_model(model),
            reference=reference,
            failure=failure,
            rule=model["rule"].text(),
            psnr=model["psnr"].maybe(Value.number),
            max_error=model["max_error"].number(),
            rmse=model["rmse"].number(),
            share_off=model["share_off_8bit"].number(),
            nan=round(model["nan"].number()),
            layers=tuple(_layer(layer) for layer in layers),
            error_map=model["error_map"].maybe(lambda value: _error_map(value, folder)),
        )


def _layer(layer: Value) -> Layer:
    error, limit = (layer[name].maybe(Value.number) for name in ("error", "limit"))
    return Layer(layer["name"].text(), error, limit, layer["within"].flag())


def _error_map(value: Value, folder: Path) -> ErrorMap:
    pictures = tuple(name.text() for name in value["pictures"].list())
    return ErrorMap(_file(value["file"], folder), value["full_scale"].number(), pictures)


def _file(value: Value, folder: Path) -> Path:
    """A file that a run names. Raises EngineError for one outside of the folder of the run: whoever wrote the JSON does
    not get to choose what of this machine is shown."""
    path = folder / value.text()
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle
        inside = False
    if not inside:
        raise value.wrong(f"a file in {folder.resolve()} or below, where the JSON is")
    return path


def _evaluation(top: Value, machine: Machine, folder: Path) -> Evaluation:
    models = []
    for result in top["results"].list():
        means, pictures = {}, {}
        for title, of in result["sets"].items():
            failed = len(of["failed"].maybe(Value.list) or [])
            means[title] = replace(_scored(of, folder), failed=failed)
            pictures[title] = {one["picture"].text(): _scored(one, folder) for one in of["pictures"].list()}
        models.append(Scores(_model(result), means, pictures))
    originals = {
        title: {name: _file(file, folder) for name, file in of.items()}
        for title, of in (top["originals"].maybe(Value.items) or ())
    }
    return Evaluation(machine, round(top["scale"].number()), tuple(models), originals)


def _scored(value: Value, folder: Path) -> Scored:
    psnr, ssim = (value[name].maybe(Value.number) for name in ("psnr", "ssim"))
    return Scored(psnr, ssim, value["saved"].maybe(lambda file: _file(file, folder)))


def gain(evaluation: Evaluation) -> tuple[Scores, float] | None:
    """The model that gains most over bicubic in the mean of the sets, and how much, in dB: on pictures that both have
    a score of."""
    bicubic = next((of for of in evaluation.models if of.model.file == "bicubic"), None)
    if bicubic is None:
        return None
    gains = []
    for of in evaluation.models:
        sets = [_gains(scores, bicubic.pictures.get(title, {})) for title, scores in of.pictures.items()]
        means = [math.fsum(one) / len(one) for one in sets if one]
        if of is not bicubic and means:
            gains.append((of, math.fsum(means) / len(means)))
    return max(gains, key=lambda one: one[1], default=None)


def _gains(ours: dict[str, Scored], base: dict[str, Scored]) -> list[float]:
    """Differences in dB, of pictures that both have."""
    pairs = [(one.psnr, base[name].psnr) for name, one in ours.items() if name in base]
    return [mine - theirs for mine, theirs in pairs if mine is not None and theirs is not None]
