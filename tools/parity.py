#!/usr/bin/env python3
"""Does an exported model compute what its checkpoint computes? Measured on real pictures, by the rule of
`engines.compare`: float32 within 1e-4, half precision at most twice as far off as PyTorch, and never NaN.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from engines import SUFFIXES, is_checkpoint
from engines.base import EngineError
from engines.compare import HALF_FACTOR, MAX_ERROR, CannotJudge, Pictures, Proof, Rule, prove
from engines.compare_layers import LayerDifference, compare_layers, first_outside
from engines.options import engine_options, tile_option
from ribsr.base.command import Command, FiniteRange, SizeType, show_traceback
from ribsr.base.files import check_target
from ribsr.base.progress import Progress
from ribsr.base.sizes import Limits, Size
from tools._common import (
    ModelName,
    conclude,
    console,
    json_option,
    model_name,
    open_model,
    seen_from,
    show_table,
    where,
)
from tools._error_map import ErrorMaps, file_for
from tools._recordings import ModelReference, RecordedReference

if TYPE_CHECKING:
    from rich.text import Text

    from engines import Description, Engine
    from engines.metadata import Stamp

References = ModelReference | RecordedReference


@dataclass(frozen=True)
class Asked:
    """What the command line asks for, besides models, pictures and how engines are opened.

    max_error: of any model, instead of the rule; half_factor: of the rule. layers: compare them, too. error_map: the
    file to draw errors into; several: there is more than one model, so that each has a file of its own.
    """

    max_error: float | None = None
    half_factor: float = HALF_FACTOR
    layers: bool = False
    error_map: Path | None = None
    several: bool = False


@dataclass(frozen=True)
class Layers:
    """A model's layers beside the reference's. picture: on which one. failure: why they cannot be compared."""

    found: list[LayerDifference]
    picture: str = ""
    failure: str | None = None

    def to_json(self) -> dict[str, Any]:
        first, before = first_outside(self.found)
        return {
            "failure": self.failure,
            "picture": self.picture,
            "first": first and first.to_json(),
            "before": before if first else None,
            "layers": [layer.to_json() for layer in self.found],
        }


@dataclass
class Measured:
    """A model beside the reference: what it is, how far it is off, and whether that passes.

    layers: the same of its layers, on the picture on which it is farthest off. error_map: what was drawn where.
    """

    name: str
    description: Description | None = None
    proof: Proof = field(default_factory=lambda: Proof({}, Rule("")))
    failure: str | None = None
    warnings: list[str] = field(default_factory=list)
    layers: Layers | None = None
    error_map: dict[str, Any] | None = None

    def to_json(self, json_target: str | None) -> dict[str, Any]:
        drawn = self.error_map
        return {
            "file": self.name,
            "passed": self.failure is None,
            "failure": self.failure,
            "rule": self.proof.rule.text,
            "description": self.description.to_json() if self.description else None,
            **self.proof.total.to_json(),
            "pictures": {name: found.to_json() for name, found in self.proof.pictures.items()},
            "warnings": self.warnings,
            "layers": self.layers.to_json() if self.layers else None,
            "error_map": drawn and {**drawn, "file": seen_from(json_target, drawn["file"])},
        }


def measure(name: ModelName, reference: References, options: dict[str, Any], asked: Asked) -> Measured:
    """Runs a model on the reference's pictures. What stops it from running is its failure, not an exception."""
    measured, maps = Measured(str(name)), None if asked.error_map is None else ErrorMaps()
    rule = None if asked.max_error is None else Rule.exact(asked.max_error)
    try:
        beside = f"{name} beside {reference.description['path']}"
        with Progress(beside) as progress, open_model(name, options) as engine:
            description = measured.description = engine.describe()
            measured.warnings = [*description.notes, *_differences(str(name), description, reference)]
            pictures, left_out = _within(description, reference)
            measured.warnings += [f"{name}: {line}" for line in left_out]
            see = None if maps is None else maps.see
            progress.phase(beside, 1)
            measured.proof = prove(engine, reference, pictures, rule, asked.half_factor, see, progress.reach)
            if asked.layers:
                progress.phase(f"{beside}, layer by layer")
                measured.layers = _compare_layers(engine, reference, pictures, measured.proof, asked)
        measured.warnings += [f"{name}: {note}" for note in measured.proof.notes]
        measured.failure = measured.proof.failure
    except CannotJudge as error:
        show_traceback(error)
        measured.failure = f"{error}; give the checkpoint or a recording of it as REF, or --max-error"
    except EngineError as error:
        show_traceback(error)
        measured.failure = str(error).removeprefix(f"{name.path}: ")
    if maps is not None and asked.error_map is not None:
        measured.error_map = maps.write(file_for(asked.error_map, str(name), asked.several))
    return measured


def _compare_layers(engine: Engine, reference: References, pictures: Pictures, proof: Proof, asked: Asked) -> Layers:
    """On the picture on which the model is farthest off, NaN first."""
    if isinstance(reference, RecordedReference):
        return Layers([], failure="a recording has no layers; give the checkpoint as REF")
    worst = max(proof.pictures, key=lambda name: (proof.pictures[name].nan, proof.pictures[name].max_error))
    x = dict(pictures)[worst].repeat(engine.describe().batch or 1, axis=0)
    limits = (MAX_ERROR if asked.max_error is None else asked.max_error, asked.half_factor)
    try:
        return Layers(list(compare_layers(engine, reference.engine(), reference.engine, x, *limits)), worst)
    except EngineError as error:
        show_traceback(error)
        return Layers([], worst, failure=str(error))


def _within(description: Description, reference: References) -> tuple[Pictures, list[str]]:
    """The pictures whose size model and reference take, and a line about those that they do not.

    Raises EngineError where none is left.
    """
    limits, taken = description.limits, reference.limits
    pictures = reference.pictures(limits)
    fitting = [(name, x) for name, x in pictures if limits.takes(Size.of(x)) and taken.takes(Size.of(x))]
    whose = f"takes pictures of {limits}" + ("" if taken == Limits() else f", the reference of {taken}")
    if not fitting:
        raise EngineError(f"{whose}; {reference.advice(limits)}")
    outside = ", ".join(sorted({name for name, _ in pictures} - {name for name, _ in fitting}))
    return fitting, [f"not compared on {outside}: it {whose}"] if outside else []


def _differences(name: str, description: Description, reference: References) -> list[str]:
    """Raises EngineError when a comparison makes no sense; returns warnings for those of doubtful sense."""
    of = reference.description
    if description.scale != of["scale"]:
        raise EngineError(f"enlarges x{description.scale}, the reference x{of['scale']}")
    if not description.checkpoint_sha256:
        return [f"{name}: does not say which checkpoint it was made from, since a tool has dropped its metadata"]
    if description.checkpoint_sha256 != of["checkpoint_sha256"]:
        ours, others = description.checkpoint_sha256[:12], of["checkpoint_sha256"][:12]
        return [f"{name}: compares different weights: it was made from checkpoint {ours}…, {of['path']} from {others}…"]
    if description.model != of["model"]:
        return [f"{name}: says it is {description.model}, the reference {of['model']}"]
    return []


Comparison = list[ModelName]
"""A reference, and behind it what is compared with it."""

Network = tuple[str, int, str]
"""Name, scale and checkpoint of a file's network."""


def discover(options: dict[str, Any]) -> tuple[list[Comparison], list[str]]:
    """All of this toolkit's models in the working directory, a comparison a network; and what was left out, why."""
    groups: dict[Network, dict[ModelName, str]] = {}
    skipped = []
    for path in sorted(Path().iterdir()):
        if path.suffix in SUFFIXES and path.is_file():
            name = ModelName(str(path))
            try:
                told = _identify(name, options)
            except EngineError as error:
                skipped.append(str(error))
            else:
                groups.setdefault((told.model, told.scale, told.checkpoint_sha256), {})[name] = told.precision
    comparisons = []
    for network, precisions in groups.items():
        reference = _choose_reference(precisions)
        if reference is None or len(precisions) == 1:
            skipped.extend(f"{name}: {_why_alone(name, network, groups)}" for name in precisions)
        else:
            comparisons.append([reference, *(name for name in precisions if name != reference)])
    return comparisons, skipped


def _identify(name: ModelName, options: dict[str, Any]) -> Stamp | Description:
    """What a file says of its network, without opening a session for it."""
    from engines.metadata import read_stamp
    from engines.trt.manifest import PLAN, RTX_PLAN, read_manifest

    if name.path.endswith((PLAN, RTX_PLAN)):
        return read_manifest(name.path).stamp
    if not name.path.endswith(".onnx"):
        with open_model(name, {**options, "device": "cpu"}) as engine:
            return engine.describe()
    stamp = read_stamp(name.path)
    if stamp.form == "plugin":
        raise EngineError(f"{name}: is in plugin form, which only TensorRT runs")
    return stamp


def _choose_reference(precisions: dict[ModelName, str]) -> ModelName | None:
    """The checkpoint; where there is none, a float32 .onnx file."""
    checkpoints = [name for name in precisions if is_checkpoint(name.path)]
    full = [name for name, precision in precisions.items() if name.path.endswith(".onnx") and precision == "fp32"]
    return next(iter([*checkpoints, *full]), None)


def _why_alone(name: ModelName, network: Network, groups: dict[Network, dict[ModelName, str]]) -> str:
    if is_checkpoint(name.path):
        return "nothing here was exported from it"
    others = [other for key, names in groups.items() if key[:2] == network[:2] and key != network for other in names]
    if other := next((other for other in others if is_checkpoint(other.path)), None):
        return f"was made from another checkpoint than {other}; export it again, or compare with {other} by name"
    return f"the checkpoint of {network[0]} x{network[1]} that it was made from is not here"


def _show(out: Any, reference: References, results: list[Measured]) -> None:
    of = reference.description
    out.print(
        f"Reference: {of['path']}, {of['model']} x{of['scale']} {of['precision']}, {where(of)}, {of['form']}",
        soft_wrap=True,
    )
    if pictures := sorted({name for result in results for name in result.proof.pictures}):
        out.print(f"Pictures: {', '.join(pictures)}", soft_wrap=True)
    show_table(out, COLUMNS, map(_row, results))
    for result in results:
        for warning in result.warnings:
            out.print(f"Warning: {warning}", style="yellow", soft_wrap=True)
        if result.failure:
            out.print(f"FAIL {result.name}: {result.failure}", style="red", soft_wrap=True)
        if result.layers:
            _show_layers(out, result.name, result.layers)
        if drawn := result.error_map:
            shown = f"white is {drawn['full_scale']:.3g}" + (", magenta NaN or infinite" if drawn["nan"] else "")
            out.print(f"Errors of {result.name} drawn in {drawn['file']}: {shown}", soft_wrap=True)


def _show_layers(out: Any, name: str, layers: Layers) -> None:
    """Says which layer is the first that leaves the tolerance, and lists it and those around it."""
    if layers.failure:
        out.print(f"No layers of {name}: {layers.failure}", style="yellow", soft_wrap=True)
        return
    first, before = first_outside(layers.found)
    if first is None:
        shown = [max(layers.found, key=lambda layer: layer.error / layer.limit if layer.limit else 0.0)]
        told = f"all {len(layers.found)} are within the tolerance; closest to it is {shown[0].name}"
    else:
        at = layers.found.index(first)
        shown = layers.found[max(0, at - 2) : at + 3]
        told = f"{first.name} is the first of {len(layers.found)} out of tolerance, after {before or 'the picture'}"
    out.print(f"Layers of {name} on {layers.picture}: {told}", soft_wrap=True)
    columns = ("layer", "error", "limit", "of", "largest value", "NaN", "")
    show_table(out, columns, [_layer_row(layer) for layer in shown])


def _layer_row(layer: LayerDifference) -> list[str | Text]:
    from rich.text import Text

    verdict = Text("within", "green") if layer.within else Text("OUTSIDE", "bold red")
    error, limit, largest = (f"{number:.2e}" for number in (layer.error, layer.limit, layer.largest))
    return [layer.name, error, limit, layer.measure, largest, str(layer.nan), verdict]


COLUMNS = (
    "model", "runs on", "form", "precision", "PSNR dB", "max error", "mean error", "rmse", "8-bit off", "NaN",
    "rule", "",
)  # fmt: skip


def _row(result: Measured) -> list[str | Text]:
    from rich.text import Text

    verdict = Text("FAIL", "bold red") if result.failure else Text("pass", "green")
    if result.description is None or not result.proof.pictures:
        return [result.name, *[""] * (len(COLUMNS) - 2), verdict]
    errors, description = result.proof.total, result.description
    return [
        result.name,
        where(vars(description)),
        description.form,
        description.precision,
        f"{errors.psnr:.1f}",
        f"{errors.max_error:.2e}",
        f"{errors.mean_error:.2e}",
        f"{errors.rmse:.2e}",
        f"{errors.share_off:.2%}",
        str(errors.nan),
        result.proof.rule.text,
        verdict,
    ]


def _comparisons(
    names: Sequence[str], record: str | None, options: dict[str, Any]
) -> tuple[list[Comparison], list[str]]:
    if not names:
        if record:
            raise click.UsageError("--record needs the model to record: tools/parity.py MODEL --record ref.npz")
        return discover(options)
    reference, *models = map(model_name, names)
    if not models and not record:
        raise click.UsageError(f"nothing to compare with {reference}: name more models, or --record a file")
    if recorded := next((model for model in models if model.path.endswith(".npz")), None):
        raise click.UsageError(f"{recorded}: a recording can only stand first, as REF")
    return [[reference, *models]], []


def _open_reference(name: ModelName, options: dict[str, Any], images: Pictures, sizes: Sequence[Size]) -> References:
    if not name.path.endswith(".npz"):
        return ModelReference(name, {**options, "tile": None}, images, sizes)  # it shows what a whole picture gives
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
@click.option("--layers", is_flag=True, help="Compare layer by layer, too: which is the first that is off.")
@click.option("--error-map", type=click.Path(path_type=Path), metavar="FILE.png", help="Draw where models are off.")
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
    layers: bool,
    error_map: Path | None,
    json_target: str | None,
    **options: Any,
) -> None:
    """Compares models with a reference on real pictures; exit code 1 if one of them fails.

    REF is a model, usually the checkpoint, or a recording of one (.npz). Without arguments: all of this toolkit's
    models in the working directory, each with its checkpoint. A checkpoint runs in half precision as x2.pt@fp16, an
    .onnx file in another runtime as x2.onnx@openvino or x2.onnx@openvino@bf16.

    A float32 model passes if no value is off by more than 1e-4; a half-precision one if its root mean square error is
    at most twice that of PyTorch in the same precision. NaN never passes.

    With --tile MODELs run in tiles, and REF as a whole; --max-error then says how far off seams may be.
    """
    from ribsr.base.pictures import read_input

    _check_options(record, images, sizes, layers, error_map, options)
    out = console(stderr=json_target == "-")
    pictures = [(path, read_input(path)) for path in images]
    comparisons, skipped = _comparisons(names, record, options)
    several = sum(len(models) - 1 for models in comparisons) > 1
    asked = Asked(max_error, half_factor, layers, error_map, several)
    reports, passed = [], True
    for name, *models in comparisons:
        with _open_reference(name, options, pictures, sizes) as reference:
            results = [measure(name, reference, options, asked) for name in models]
            if results:
                _show(out, reference, results)
            if record:
                _record(out, reference, record, not no_half)
            reports.append(
                {"reference": reference.description, "models": [result.to_json(json_target) for result in results]}
            )
            passed = passed and all(result.failure is None for result in results)
    for reason in skipped:
        out.print(f"Skipped {reason}", soft_wrap=True)
    conclude(out, "parity", {"passed": passed, "comparisons": reports, "skipped": skipped}, json_target)
    if not comparisons:
        raise EngineError(
            "no two models of this toolkit here have a checkpoint in common; name them (REF MODEL…), "
            "or make one with python -m export.onnx"
        )
    if not passed:
        context.exit(1)


def _check_options(
    record: str | None,
    images: Sequence[str],
    sizes: Sequence[Size],
    layers: bool,
    error_map: Path | None,
    options: dict[str, Any],
) -> None:
    """Raises click.UsageError for options that do not fit together, OSError for files that cannot be written."""
    if record is not None and not record.endswith(".npz"):
        raise click.UsageError(f"--record writes .npz files, got {record}")
    if error_map is not None and error_map.suffix != ".png":
        raise click.UsageError(f"--error-map writes .png files, got {error_map}")
    for target in (record, error_map):
        if target is not None:
            check_target(target)
    if images and sizes:
        raise click.UsageError("--image and --size exclude each other")
    if layers and options.get("tile"):
        raise click.UsageError("--layers compares whole pictures; leave out --tile")


def _record(out: Any, reference: References, path: str, halves: bool) -> None:
    if not isinstance(reference, ModelReference):
        raise click.UsageError("a recording cannot be recorded again; copy it")
    with Progress(f"recording {path}"):
        count = reference.record(path, halves)
    out.print(f"Recorded {count} pictures in {path}", soft_wrap=True)


if __name__ == "__main__":
    main(prog_name="tools/parity.py")
