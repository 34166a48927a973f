#!/usr/bin/env python3
"""How good are a model's pictures? PSNR and SSIM on benchmark sets, by the field's protocol.

    tools/evaluate.py x2.pt x2.onnx x2.fp16.plan --data benchmark --bicubic

Low-resolution pictures are made from the high-resolution ones (MATLAB-style antialiased bicubic, bit for bit the
published ones), models get and give 8-bit pictures, and the luma is compared without a border as wide as the scale.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from engines.base import EngineError, check_finite
from engines.compare import finite
from engines.options import engine_options, tile_option
from ribsr.base.command import Command, message, report
from ribsr.base.progress import Progress
from tools._common import conclude, console, json_option, model_name, open_model, seen_from, show_table, where

if TYPE_CHECKING:
    import numpy as np

    from engines import Engine
    from ribsr.benchmark import Score, Upscaler


DEFAULT_SCALE = 2
"""Of bicubic interpolation, where no model is named."""


def as_upscaler(engine: Engine) -> Upscaler:
    """The engine on 8-bit pictures [H, W, 3]. Raises EngineError when NaN or infinite values come out."""
    from ribsr.base.pictures import to_input, to_pixels

    def upscale(pixels: np.ndarray) -> np.ndarray:
        y = engine.run(to_input(pixels))
        check_finite(y, f"{engine.describe().path}: no score, since")
        return to_pixels(y)

    return upscale


@contextmanager
def opened(name: str, scale: int | None, options: dict[str, Any]) -> Iterator[tuple[Upscaler, dict[str, Any]]]:
    """The model (or `bicubic`) as an upscaler, and what the report says about it. scale: None: that of the model."""
    if name == "bicubic":
        from ribsr.benchmark import bicubic

        yield bicubic(scale or DEFAULT_SCALE), {"file": name, "description": None}
        return
    with open_model(model_name(name), options) as engine:
        description = engine.describe()
        if scale not in (None, description.scale):
            ours = description.scale
            raise EngineError(f"{name}: enlarges x{ours}, not x{scale}; evaluate it by itself, or with --scale {ours}")
        yield as_upscaler(engine), {"file": name, "description": asdict(description)}


@dataclass
class Scored:
    """A model on a set: the scores of the pictures, why others have none, and where the enlarged ones were saved."""

    scores: list[Score] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    saved: dict[str, Path] = field(default_factory=dict)

    def mean(self, of: str) -> float:
        """Of the pictures with a score; NaN where there is none."""
        return math.fsum(getattr(score, of) for score in self.scores) / len(self.scores) if self.scores else math.nan

    def __str__(self) -> str:
        """As the table shows it."""
        shown = f"{self.mean('psnr'):.3f} / {self.mean('ssim'):.4f}" if self.scores else "-"
        count = len(self.scores)
        return f"{shown} ({count} of {count + len(self.failed)})" if self.failed else shown

    def to_json(self, json_target: str | None) -> dict[str, Any]:
        """Null are an infinite PSNR (equal pictures), means of no pictures, and what is not saved."""
        return {
            "psnr": finite(self.mean("psnr")),
            "ssim": finite(self.mean("ssim")),
            "pictures": [
                {
                    **{"picture": of.picture, "psnr": finite(of.psnr), "ssim": of.ssim},
                    "saved": seen_from(json_target, self.saved[of.picture]) if of.picture in self.saved else None,
                }
                for of in self.scores
            ],
            "failed": [{"picture": picture, "reason": reason} for picture, reason in self.failed.items()],
        }


def evaluate(
    upscaler: Upscaler, paths: list[Path], scale: int, as_rgb: bool, progress: Progress, folder: Path | None = None
) -> Scored:
    """Scores every picture; those that cannot be read or enlarged are named, and the others go on.

    folder: where the enlarged ones are saved, if anywhere.
    """
    from ribsr import benchmark
    from ribsr.base.pictures import Picture, write_picture

    scored = Scored()
    for path in paths:
        kept: list[np.ndarray] = []

        def keep(pixels: np.ndarray, kept: list[np.ndarray] = kept) -> np.ndarray:
            kept.append(upscaler(pixels))
            return kept[0]

        try:
            scored.scores += benchmark.score(keep, [path], scale, as_rgb)
        except (benchmark.DataError, EngineError, MemoryError) as error:
            reason = message(error)
            scored.failed[path.name] = reason
            line = reason if reason.startswith(f"{path}: ") else f"{path}: {reason}"
            progress.aside(partial(report, error))(line)
        else:
            if folder is not None:
                scored.saved[path.name] = target = folder / f"{path.name}.png"
                folder.mkdir(parents=True, exist_ok=True)
                write_picture(target, Picture(kept[0]))
        progress.advance()
    return scored


def plain(number: int, name: str) -> str:
    """What the folder of a model or a set, the so-manyth, may be called."""
    safe = re.sub(r"[^\w.@+-]+", "_", name)
    return f"{number}-{safe}"


def check_saving(folder: Path, json_target: str | None) -> None:
    """Raises UsageError where pictures would be mixed with those of another run, or the report would refuse them."""
    if folder.is_dir() and any(folder.iterdir()):
        raise click.UsageError(f"--save {folder}: is not empty; give another folder, or remove it")
    if json_target not in (None, "-") and not folder.resolve().is_relative_to(Path(json_target).resolve().parent):
        raise click.UsageError(f"--save {folder}: must lie in the folder of --json, or below, for tools/report.py")


def save_originals(
    sets: dict[str, list[Path]], scale: int, folder: Path, json_target: str | None
) -> dict[str, dict[str, str]]:
    """Writes what the enlarged pictures were compared with, as far as they could be; set → picture → file."""
    from ribsr import benchmark
    from ribsr.base.pictures import Picture, write_picture

    saved: dict[str, dict[str, str]] = {}
    for number, (title, paths) in enumerate(sets.items(), 1):
        saved[title] = {}
        for path in paths:
            if benchmark.why_not(path, scale) is None:
                target = folder / plain(number, title) / plain(0, "original") / f"{path.name}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                write_picture(target, Picture(benchmark.read_original(path, scale)))
                saved[title][path.name] = seen_from(json_target, target)
    return saved


def show(out: Any, results: list[dict[str, Any]]) -> None:
    """One row a model, PSNR / SSIM of every set."""
    sets = list(results[0]["sets"])
    columns = ("model", "runs on", "precision", *(f"{name} PSNR / SSIM" for name in sets))
    rows = []
    for result in results:
        description = result["description"]
        about = (where(description), description["precision"]) if description else ("numpy", "")
        rows.append((result["file"], *about, *(str(result["sets"][name]) for name in sets)))
    show_table(out, columns, rows)


@click.command(cls=Command)
@click.argument("names", nargs=-1, metavar="MODEL...")
@click.option(
    "--data",
    "folders",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of pictures, or of sets NAME/HR; may be repeated.",
)
@click.option("--scale", type=click.IntRange(2, 4), help="Upscaling factor; default: that of the first MODEL, else 2.")
@click.option("--bicubic", is_flag=True, help="Score bicubic interpolation, too.")
@click.option("--gray-as-rgb", is_flag=True, help="Studio-range luma for gray pictures (see ribsr/benchmark.py).")
@click.option(
    "--save", type=click.Path(path_type=Path), metavar="DIR", help="Save the pictures here, for tools/report.py."
)
@json_option
@engine_options
@tile_option
@click.pass_context
def main(
    context: click.Context,
    names: tuple[str, ...],
    folders: tuple[Path, ...],
    scale: int | None,
    bicubic: bool,
    gray_as_rgb: bool,
    save: Path | None,
    json_target: str | None,
    **options: Any,
) -> None:
    """PSNR (dB) and SSIM of MODELs (.pt, .onnx, .plan; a checkpoint in half precision as x2.pt@fp16, another
    runtime as x2.onnx@openvino).

    Pictures are RGB or gray, of 8 bits. Those that cannot be scored are named; the means are then those of the others,
    `(4 of 5)`, and the exit code is 1.
    """
    if not names and not bicubic:
        raise click.UsageError("nothing to evaluate: name a model, or give --bicubic")
    from ribsr import benchmark

    if save is not None:
        check_saving(save, json_target)
    out = console(stderr=json_target == "-")
    sets = benchmark.find_sets(*folders)
    if count := benchmark.sidecars({path.parent for paths in sets.values() for path in paths}):
        out.print(f"Note: {count} sidecar files (._*) are skipped; they are no pictures", soft_wrap=True)
    if len(names) > 1:  # one that cannot be opened, or has another scale, is to be known before minutes of work
        for name in names:
            with opened(name, scale, options) as (_, entry):
                scale = int(entry["description"]["scale"]) if entry["description"] else scale
    results: list[dict[str, Any]] = []
    for name in [*names, *(["bicubic"] if bicubic else [])]:  # bicubic has no scale of its own
        with opened(name, scale, options) as (upscaler, entry):
            scale = used = int(entry["description"]["scale"]) if entry["description"] else scale or DEFAULT_SCALE
            for note in (entry["description"] or {}).get("notes", ()):
                out.print(f"Note: {note}", soft_wrap=True)
            entry["sets"] = {}
            for number, (title, paths) in enumerate(sets.items(), 1):
                folder = None if save is None else save / plain(number, title) / plain(len(results) + 1, name)
                with Progress(f"{name} on {title}", len(paths)) as progress:
                    entry["sets"][title] = evaluate(upscaler, paths, used, gray_as_rgb, progress, folder)
        results.insert(0 if name == "bicubic" else len(results), entry)
    show(out, results)
    complete = not any(scored.failed for result in results for scored in result["sets"].values())
    protocol = {"scale": scale, "border": scale, "gray": "rgb" if gray_as_rgb else "plane", "complete": complete}
    originals = {} if save is None else save_originals(sets, scale or DEFAULT_SCALE, save, json_target)
    for result in results:
        result["sets"] = {title: scored.to_json(json_target) for title, scored in result["sets"].items()}
    conclude(out, "evaluate", {**protocol, "originals": originals, "results": results}, json_target)
    if not complete:
        context.exit(1)


if __name__ == "__main__":
    main(prog_name="tools/evaluate.py")
