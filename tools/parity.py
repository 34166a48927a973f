#!/usr/bin/env python3
"""Does an exported model compute what its checkpoint computes? Measured on real pictures, against a rule.

The rule, per model: no NaN, and
- float32: no value is off by more than 1e-4 (values are 0 to 1);
- half precision: the root mean square error is at most twice that of PyTorch running the checkpoint in the same
  precision. So a runtime may round as PyTorch does, but must not lose more.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from engines import SUFFIXES, is_checkpoint
from engines.base import HALVES, EngineError
from engines.options import engine_options, tile_option
from ribsr.base.command import Command, FiniteRange, SizeType
from ribsr.base.errors import first_line
from ribsr.base.files import atomic, check_target
from ribsr.base.sizes import Limits, Size
from tools._common import (
    ModelName,
    console,
    environment,
    environment_line,
    json_option,
    model_name,
    open_model,
    progress,
    table,
    where,
    write_json,
)

if TYPE_CHECKING:
    import numpy as np

    from engines import Description, Engine

MAX_ERROR = 1e-4
HALF_FACTOR = 2.0
RECORDING_FORMAT = 1

Pictures = list[tuple[str, "np.ndarray"]]
"""Name and RGB float32 [1, 3, H, W] of each."""


@dataclass
class Errors:
    """What was seen over any number of outputs; NaN and infinite values are counted and left out of the rest."""

    values: int = 0
    nan: int = 0
    max_error: float = 0.0
    absolute: float = 0.0
    squared: float = 0.0
    pixels: int = 0
    pixels_off: int = 0

    def add(self, reference: np.ndarray, output: np.ndarray) -> None:
        """Compares two outputs [B, 3, H, W]; pixels are compared as they would be written, rounded to 8 bits."""
        import numpy as np

        from ribsr.base.pictures import to_bytes

        finite = np.isfinite(output)
        difference = np.where(finite, output, 0).astype(np.float64) - np.where(finite, reference, 0)
        self.values += output.size
        self.nan += int(output.size - np.count_nonzero(finite))
        self.max_error = max(self.max_error, float(np.abs(difference).max()))
        self.absolute += float(np.abs(difference).sum())
        self.squared += float(np.square(difference).sum())
        off = to_bytes(np.where(finite, output, -1)) != to_bytes(reference)
        self.pixels += off[:, 0].size
        self.pixels_off += int(np.count_nonzero(off.any(axis=1) | ~finite.all(axis=1)))

    @property
    def mean_error(self) -> float:
        return self.absolute / max(1, self.values - self.nan)

    @property
    def rmse(self) -> float:
        return math.sqrt(self.squared / max(1, self.values - self.nan))

    @property
    def psnr(self) -> float:
        """10·log10(1 / mean square error) in dB; infinite where both are equal."""
        return -20 * math.log10(self.rmse) if self.rmse else math.inf

    @property
    def share_off(self) -> float:
        """Share of pixels of which some channel differs after rounding to 8 bits."""
        return self.pixels_off / max(1, self.pixels)

    def to_json(self) -> dict[str, Any]:
        """`psnr` is null where both are equal."""
        return {
            "psnr": self.psnr if math.isfinite(self.psnr) else None,
            "max_error": self.max_error,
            "mean_error": self.mean_error,
            "rmse": self.rmse,
            "share_off_8bit": self.share_off,
            "nan": self.nan,
        }


class Reference(Protocol):
    """What models are compared with: a model that runs now, or a recording of one."""

    description: dict[str, Any]
    """The fields of `engines.Description`, as in JSON."""

    def pictures(self, limits: Limits) -> Pictures:
        """The pictures to compare on, for a model of these limits."""
        ...

    def output(self, name: str, x: np.ndarray) -> np.ndarray:
        """The reference's output for a picture of `pictures`."""
        ...

    def half_output(self, precision: str, name: str, x: np.ndarray) -> np.ndarray | None:
        """PyTorch's output in half precision for the same weights; None if the reference cannot say."""
        ...


@dataclass
class Measured:
    """A model beside the reference: what it is, how far it is off, and whether that passes."""

    name: str
    description: Description | None = None
    errors: Errors = field(default_factory=Errors)
    per_picture: dict[str, Errors] = field(default_factory=dict)
    rule: str = ""
    failure: str | None = None
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.name,
            "passed": self.failure is None,
            "failure": self.failure,
            "rule": self.rule,
            "description": asdict(self.description) if self.description else None,
            **self.errors.to_json(),
            "pictures": {name: errors.to_json() for name, errors in self.per_picture.items()},
            "warnings": self.warnings,
        }


class LiveReference(AbstractContextManager):
    """A model as reference. Its outputs are kept, so that each picture runs once per precision."""

    def __init__(self, name: ModelName, options: dict[str, Any], given: Pictures, sizes: Sequence[Size]):
        self._name, self._options, self._given, self._sizes = name, options, given, sizes
        self._engines: dict[str | None, Engine] = {}
        self._stack = ExitStack()
        self.inputs: dict[str, np.ndarray] = {}
        self.outputs: dict[tuple[str | None, str], np.ndarray] = {}
        description = self._engine(name.precision).describe()
        self.description: dict[str, Any] = asdict(description)
        self._limits = description.limits

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _engine(self, precision: str | None) -> Engine:
        if precision not in self._engines:
            options = self._options
            if precision is not None and is_checkpoint(self._name.path) and options.get("attention") is None:
                options = {**options, "attention": "sdpa"}  # not our own kernel, whose errors would excuse themselves
            engine = open_model(ModelName(self._name.path, precision), options)
            self._engines[precision] = self._stack.enter_context(engine)
        return self._engines[precision]

    def pictures(self, limits: Limits) -> Pictures:
        from engines import samples

        fixed = limits.fixed or self._limits.fixed
        if self._given:
            fitting = [(name, x) for name, x in self._given if fixed in (None, Size.of(x))]
            if not fitting:
                raise EngineError(f"takes pictures of {fixed} only; give one of that size with --image")
            return fitting
        if fixed is not None:
            return samples.at(fixed)
        return [picture for size in self._sizes for picture in samples.at(size)] or samples.load()

    def output(self, name: str, x: np.ndarray) -> np.ndarray:
        import numpy as np

        y = self._run(self._name.precision, name, x)
        if not np.isfinite(y).all():
            raise EngineError(f"{self._name}: the reference itself gives NaN or infinite values on {name}")
        return y

    def half_output(self, precision: str, name: str, x: np.ndarray) -> np.ndarray | None:
        return self._run(precision, name, x) if is_checkpoint(self._name.path) else None

    def _run(self, precision: str | None, name: str, x: np.ndarray) -> np.ndarray:
        key = (precision, name)
        if key not in self.outputs:
            self.inputs[name] = x
            self.outputs[key] = self._engine(precision).run(x)
        return self.outputs[key]

    def record(self, path: str, halves: bool) -> int:
        """Writes inputs and outputs of all pictures that were used, or of the default ones; returns their number."""
        import numpy as np

        for name, x in list(self.inputs.items()) or self.pictures(self._limits):
            self.output(name, x)
            for precision in HALVES if halves else ():
                self.half_output(precision, name, x)
        arrays = {f"input/{i}": x for i, x in enumerate(self.inputs.values())}
        for i, name in enumerate(self.inputs):
            arrays[f"output/{i}"] = self.output(name, self.inputs[name])
            halves_of = {p: self.outputs[p, name] for p in HALVES if (p, name) in self.outputs}
            arrays.update({f"{precision}/{i}": y for precision, y in halves_of.items()})
        meta = {
            "format": RECORDING_FORMAT,
            "description": self.description,
            "environment": environment(),
            "pictures": list(self.inputs),
        }
        with atomic(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, meta=np.array(json.dumps(meta)), **arrays)
        return len(self.inputs)


class RecordedReference(AbstractContextManager):
    """A recording as reference: what `LiveReference.record` wrote, on whatever machine."""

    def __init__(self, path: str):
        self._path = path
        self._arrays = _read_recording(path)
        meta = json.loads(str(self._arrays["meta"]))
        if meta["format"] != RECORDING_FORMAT:
            raise EngineError(f"{path}: a recording of format {meta['format']}; this version reads {RECORDING_FORMAT}")
        self.description: dict[str, Any] = meta["description"]
        self.description.setdefault("form", self.description.get("attention"))  # its name until 0.1
        self._names: list[str] = meta["pictures"]

    def __exit__(self, *_: object) -> None:
        self._arrays.clear()

    def pictures(self, limits: Limits) -> Pictures:
        recorded = [(name, self._arrays[f"input/{i}"]) for i, name in enumerate(self._names)]
        fitting = [(name, x) for name, x in recorded if limits.fixed in (None, Size.of(x))]
        if not fitting:
            size = limits.fixed
            raise EngineError(f"takes pictures of {size} only, and {self._path} has none; record with --size {size}")
        return fitting

    def output(self, name: str, x: np.ndarray) -> np.ndarray:
        return self._arrays[f"output/{self._names.index(name)}"]

    def half_output(self, precision: str, name: str, x: np.ndarray) -> np.ndarray | None:
        return self._arrays.get(f"{precision}/{self._names.index(name)}")


def _read_recording(path: str) -> dict[str, np.ndarray]:
    import zipfile

    import numpy as np

    if not Path(path).is_file():
        raise EngineError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise EngineError(f"{path}: not a recording, or damaged ({first_line(error)})") from None
    if "meta" not in arrays or "input/0" not in arrays:
        raise EngineError(f"{path}: not a recording; make one with tools/parity.py MODEL --record {path}")
    return arrays


def measure(
    name: ModelName,
    reference: Reference,
    options: dict[str, Any],
    max_error: float | None,
    half_factor: float,
) -> Measured:
    """Runs a model on the reference's pictures. What stops it from running is its failure, not an exception."""
    import numpy as np

    measured = Measured(str(name))
    try:
        with open_model(name, options) as engine:
            description = measured.description = engine.describe()
            measured.warnings = [*description.notes, *_differences(str(name), description, reference)]
            pictures, left_out = _within(description, reference.pictures(description.limits))
            measured.warnings += [f"{name}: {line}" for line in left_out]
            for title, x in pictures:
                y = engine.run(np.repeat(x, description.batch or 1, axis=0))
                wanted = np.broadcast_to(reference.output(title, x), y.shape)
                measured.per_picture[title] = Errors()
                for errors in (measured.errors, measured.per_picture[title]):
                    errors.add(wanted, y)
            _judge(measured, description, reference, pictures, max_error, half_factor)
    except EngineError as error:
        measured.failure = str(error).removeprefix(f"{name.path}: ")
    return measured


def _within(description: Description, pictures: Pictures) -> tuple[Pictures, list[str]]:
    """The pictures whose size the model takes, and a line about those that it does not. Raises EngineError for none."""
    limits = description.limits
    fitting = [(name, x) for name, x in pictures if limits.takes(Size.of(x))]
    if not fitting:
        raise EngineError(f"takes pictures of {limits}; compare on such a size (--size)")
    outside = [title for title, x in pictures if all(x is not kept for _, kept in fitting)]
    if not outside:
        return fitting, []
    return fitting, [f"not compared on {', '.join(outside)}: it takes pictures of {limits}"]


def _differences(name: str, description: Description, reference: Reference) -> list[str]:
    """Raises EngineError when a comparison makes no sense; returns warnings for those of doubtful sense."""
    of = reference.description
    if description.scale != of["scale"]:
        raise EngineError(f"enlarges x{description.scale}, the reference x{of['scale']}")
    warnings = []
    if description.checkpoint_sha256 != of["checkpoint_sha256"]:
        warnings.append(
            f"{name}: compares different weights: it was made from checkpoint {description.checkpoint_sha256[:12]}…, "
            f"{of['path']} from {of['checkpoint_sha256'][:12]}…"
        )
    elif description.model != of["model"]:
        warnings.append(f"{name}: says it is {description.model}, the reference {of['model']}")
    return warnings


def _judge(
    measured: Measured,
    description: Description,
    reference: Reference,
    pictures: Pictures,
    max_error: float | None,
    half_factor: float,
) -> None:
    """Sets the rule and, if the model breaks it, the failure."""
    errors, precision = measured.errors, description.precision
    if max_error is not None or precision not in HALVES:
        limit = MAX_ERROR if max_error is None else max_error
        measured.rule = f"max ≤ {limit:.3g}"
        off = errors.max_error > limit
        found = f"largest error {errors.max_error:.3g} is above {limit:.3g}"
    else:
        used, allowed = _half_error(measured, reference, precision, pictures)
        limit = half_factor * allowed
        measured.rule = f"rmse ≤ {half_factor:g} × {allowed:.3g}"
        off = errors.rmse > limit
        found = f"rmse {errors.rmse:.3g} is above {half_factor:g} × {allowed:.3g}, PyTorch's in {used}"
    if errors.nan:
        measured.failure = f"{errors.nan} NaN or infinite values of {errors.values}"
    elif off:
        measured.failure = found


def _half_error(measured: Measured, reference: Reference, precision: str, pictures: Pictures) -> tuple[str, float]:
    """The precision that PyTorch's error was taken in, and that error (rmse).

    Where PyTorch overflows in fp16, an exported model that keeps what overflows in float32 does better than it: its
    yardstick is bf16 then.
    """
    for used in (precision, "bf16"):
        errors = Errors()
        for title, x in pictures:
            half = reference.half_output(used, title, x)
            if half is None:
                raise EngineError(
                    f"cannot be judged: the reference has no {used} outputs of PyTorch; "
                    "give the checkpoint or a recording of it as REF, or --max-error"
                )
            errors.add(reference.output(title, x), half)
        if not errors.nan:
            return used, errors.rmse
        measured.warnings.append(f"{measured.name}: PyTorch itself gives {errors.nan} NaN or infinite values in {used}")
    raise EngineError("cannot be judged: PyTorch overflows in half precision; give --max-error")


@dataclass(frozen=True)
class Comparison:
    """A reference and what is compared with it."""

    reference: ModelName
    models: tuple[ModelName, ...]


def discover(folder: Path, options: dict[str, Any]) -> tuple[list[Comparison], list[str]]:
    """All of this toolkit's models in a folder, grouped by network, scale and checkpoint; and what was left out, why.

    The reference of a group is its checkpoint; where there is none, a float32 .onnx file.
    """
    groups: dict[tuple[str, int, str], list[ModelName]] = {}
    precisions: dict[str, str] = {}
    skipped = []
    for path in sorted(folder.iterdir()):
        if path.suffix not in SUFFIXES or not path.is_file():
            continue
        name = ModelName(str(path.relative_to(folder)) if folder == Path() else str(path))
        try:
            key, precisions[name.path] = _identify(name, options)
        except EngineError as error:
            skipped.append(str(error))
            continue
        groups.setdefault(key, []).append(name)
    comparisons = []
    for key, names in groups.items():
        reference = _choose_reference(names, precisions)
        if reference is None or len(names) == 1:
            skipped.extend(f"{name}: {_why_alone(name, key, groups)}" for name in names)
            continue
        comparisons.append(Comparison(reference, tuple(name for name in names if name != reference)))
    return comparisons, skipped


def _identify(name: ModelName, options: dict[str, Any]) -> tuple[tuple[str, int, str], str]:
    """(network, scale, checkpoint) and precision of a file, without opening a session for it."""
    from engines.metadata import read_stamp
    from engines.trt.manifest import read_manifest

    if name.path.endswith(".onnx"):
        stamp = read_stamp(name.path)
        if stamp.form == "plugin":
            raise EngineError(f"{name}: is in plugin form, which only TensorRT runs")
        return (stamp.model, stamp.scale, stamp.checkpoint_sha256), stamp.precision
    if name.path.endswith(".plan"):
        manifest = read_manifest(name.path)
        return (manifest.stamp.model, manifest.stamp.scale, manifest.stamp.checkpoint_sha256), manifest.precision
    with open_model(name, {**options, "device": "cpu"}) as engine:
        described = engine.describe()
    return (described.model, described.scale, described.checkpoint_sha256), described.precision


def _choose_reference(names: list[ModelName], precisions: dict[str, str]) -> ModelName | None:
    checkpoints = [name for name in names if is_checkpoint(name.path)]
    full = [name for name in names if name.path.endswith(".onnx") and precisions[name.path] == "fp32"]
    return next(iter([*checkpoints, *full]), None)


def _why_alone(name: ModelName, key: tuple[str, int, str], groups: dict[tuple[str, int, str], list[ModelName]]) -> str:
    if is_checkpoint(name.path):
        return "nothing here was exported from it"
    others = [other for group, names in groups.items() if group[:2] == key[:2] and group != key for other in names]
    if other := next((other for other in others if is_checkpoint(other.path)), None):
        return f"was made from another checkpoint than {other}; export it again, or compare with {other} by name"
    return f"the checkpoint of {key[0]} x{key[1]} that it was made from is not here"


def _read_images(paths: Sequence[str]) -> Pictures:
    from ribsr.base.pictures import read_input

    return [(path, read_input(path)) for path in paths]


def _show(out: Any, reference: Reference, results: list[Measured], pictures: list[str]) -> None:
    from rich.text import Text

    of = reference.description
    out.print(
        f"Reference: {of['path']}, {of['model']} x{of['scale']} {of['precision']}, {where(of)}, {of['form']}",
        soft_wrap=True,
    )
    if pictures:
        out.print(f"Pictures: {', '.join(pictures)}", soft_wrap=True)
    rows = table(
        "model", "runs on", "form", "precision", "PSNR dB", "max error", "mean error", "rmse", "8-bit off", "NaN",
        "rule", "",
    )  # fmt: skip
    for result in results:
        verdict = Text("FAIL", "bold red") if result.failure else Text("pass", "green")
        if result.description is None or not result.errors.values:
            rows.add_row(result.name, *[""] * 10, verdict)
            continue
        errors, description = result.errors, result.description
        rows.add_row(
            result.name,
            where(description),
            description.form,
            description.precision,
            f"{errors.psnr:.1f}",
            f"{errors.max_error:.2e}",
            f"{errors.mean_error:.2e}",
            f"{errors.rmse:.2e}",
            f"{errors.share_off:.2%}",
            str(errors.nan),
            result.rule,
            verdict,
        )
    out.print(rows)
    for result in results:
        for warning in result.warnings:
            out.print(f"Warning: {warning}", style="yellow", soft_wrap=True)
        if result.failure:
            out.print(f"FAIL {result.name}: {result.failure}", style="red", soft_wrap=True)


def _comparisons(
    names: Sequence[str], record: str | None, options: dict[str, Any]
) -> tuple[list[Comparison], list[str]]:
    if not names:
        if record:
            raise click.UsageError("--record needs the model to record: tools/parity.py MODEL --record ref.npz")
        return discover(Path(), options)
    reference, *models = (model_name(name) for name in names)
    if not models and not record:
        raise click.UsageError(f"nothing to compare with {reference}: name more models, or --record a file")
    if recorded := next((model for model in models if model.path.endswith(".npz")), None):
        raise click.UsageError(f"{recorded}: a recording can only stand first, as REF")
    return [Comparison(reference, tuple(models))], []


def _open_reference(
    name: ModelName, options: dict[str, Any], images: Pictures, sizes: Sequence[Size]
) -> LiveReference | RecordedReference:
    if not name.path.endswith(".npz"):
        return LiveReference(name, {**options, "tile": None}, images, sizes)  # it shows what a whole picture gives
    if images or sizes:
        raise click.UsageError(f"{name} brings its own pictures; leave out --image and --size")
    return RecordedReference(name.path)


@click.command(cls=Command)
@click.argument("names", nargs=-1, metavar="[REF MODEL...]")
@click.option("--image", "images", multiple=True, metavar="FILE", help="Compare on this picture; may be repeated.")
@click.option(
    "--size", "sizes", multiple=True, type=SizeType(), help="Compare on the samples at this size; may be repeated."
)
@click.option("--record", metavar="FILE.npz", help="Write the inputs and outputs of REF, to stand as REF elsewhere.")
@click.option("--no-half", is_flag=True, help="Leave PyTorch's half-precision outputs out of the recording.")
@click.option(
    "--max-error", type=FiniteRange(min=0), help=f"Largest error of any model; {MAX_ERROR:g} for float32 ones."
)
@click.option(
    "--half-factor",
    type=FiniteRange(min=0),
    default=HALF_FACTOR,
    show_default=True,
    help="Half precision: how many times PyTorch's error.",
)
@json_option
@engine_options
@tile_option
@click.pass_context
def main(
    context: click.Context,
    names: tuple[str, ...],
    images: tuple[str, ...],
    sizes: tuple[Size, ...],
    record: str | None,
    no_half: bool,
    max_error: float | None,
    half_factor: float,
    json_target: str | None,
    **options: Any,
) -> None:
    """Compares models with a reference on real pictures; exit code 1 if one of them fails.

    REF is a model, usually the checkpoint, or a recording of one (.npz). Without arguments: all of this toolkit's
    models in the working directory, each with its checkpoint. A checkpoint runs in half precision as x2.pt@fp16.

    A float32 model passes if no value is off by more than 1e-4; a half-precision one if its root mean square error is
    at most twice that of PyTorch in the same precision. NaN never passes.

    With --tile MODELs run in tiles, and REF as a whole; --max-error then says how far off seams may be.
    """
    if record is not None and not record.endswith(".npz"):
        raise click.UsageError(f"--record writes .npz files, got {record}")
    if record is not None:
        check_target(record)
    if images and sizes:
        raise click.UsageError("--image and --size exclude each other")
    out = console(stderr=json_target == "-")
    comparisons, skipped = _comparisons(names, record, options)
    pictures = _read_images(images)
    reports, passed = [], True
    for comparison in comparisons:
        with _open_reference(comparison.reference, options, pictures, sizes) as reference:
            results = list(_measure_all(comparison, reference, options, max_error, half_factor))
            if results:
                _show(out, reference, results, sorted({name for result in results for name in result.per_picture}))
            if record:
                _record(out, reference, record, not no_half)
            reports.append({"reference": reference.description, "models": [result.to_json() for result in results]})
            passed = passed and all(result.failure is None for result in results)
    for reason in skipped:
        out.print(f"Skipped {reason}", soft_wrap=True)
    seen = environment()
    out.print(environment_line(seen), style="dim", soft_wrap=True)
    if json_target:
        report = {"tool": "parity", "passed": passed, "comparisons": reports, "skipped": skipped, "environment": seen}
        write_json(json_target, report)
    if not comparisons:
        raise EngineError(
            "no two models of this toolkit here have a checkpoint in common; name them (REF MODEL…), "
            "or make one with python -m export.onnx"
        )
    if not passed:
        context.exit(1)


def _measure_all(
    comparison: Comparison,
    reference: Reference,
    options: dict[str, Any],
    max_error: float | None,
    half_factor: float,
) -> Iterator[Measured]:
    for name in comparison.models:
        with progress(f"{name} beside {comparison.reference}"):
            yield measure(name, reference, options, max_error, half_factor)


def _record(out: Any, reference: LiveReference | RecordedReference, path: str, halves: bool) -> None:
    if not isinstance(reference, LiveReference):
        raise click.UsageError("a recording cannot be recorded again; copy it")
    with progress(f"recording {path}"):
        count = reference.record(path, halves)
    out.print(f"Recorded {count} pictures in {path}", soft_wrap=True)


if __name__ == "__main__":
    main(prog_name="tools/parity.py")
