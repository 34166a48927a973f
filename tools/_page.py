"""The report as one page of HTML: tables, charts and pictures of runs, filled into page/report.html.

Nothing in it asks for anything from outside; its Content-Security-Policy allows one script, by its hash, so that not
even a mistake in escaping could run what a file brings along.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools import _charts as charts
from tools import _report_pictures as report_pictures
from tools._kinds import KINDS
from tools._runs import Compared, Evaluation, Machine, Runs, Timing, gain

FOLDER = Path(__file__).with_name("page")


@dataclass(frozen=True)
class Cell:
    """under: a second line. style: CSS class. kind: index of the kind of layer whose colour stands before it."""

    text: str
    under: str = ""
    style: str = ""
    kind: int | None = None


@dataclass(frozen=True)
class Table:
    """rows begin with what they are of. named: whether columns have names that users chose, of any length."""

    columns: list[str]
    rows: list[list[Cell]]
    caption: str = ""
    named: bool = False


@dataclass(frozen=True)
class Chart:
    """drawn: SVG by width. told: what is read aloud instead; `table` has the numbers."""

    title: str
    drawn: dict[str, Any]
    told: str
    table: Table | None = None
    note: str = ""


@dataclass(frozen=True)
class Fact:
    figure: str
    words: str
    bad: bool = False


@dataclass(frozen=True)
class Measured:
    """A machine with its software, and what ran on it: when, and the command."""

    name: str
    line: str
    commands: list[tuple[str, str]]


@dataclass
class Context:
    """What the template shows."""

    title: str
    subtitle: str
    facts: list[Fact]
    pictures: list[report_pictures.Comparison]
    evaluations: list[Table]
    parity: list[Table]
    error_maps: list[dict[str, str]]
    layer_charts: list[Chart]
    latency: list[Chart]
    layers: list[Chart]
    machines: list[Measured]
    notes: list[str]
    gradient: str = field(default_factory=report_pictures.gradient)


def page(runs: Runs) -> str:
    """Raises ModuleNotFoundError where what `[report]` installs is missing, EngineError for pictures that are none."""
    import jinja2

    script = (FOLDER / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    parts = {"css": (FOLDER / "report.css").read_text(encoding="utf-8"), "script": script}
    ours = {name: _trusted(text) for name, text in parts.items()}
    return environment.get_template("report.html").render(**vars(context(runs)), **ours, script_hash=f"sha256-{digest}")


def _trusted(text: str) -> Any:
    """Of this toolkit, or escaped by the library that made it."""
    import markupsafe

    return markupsafe.Markup(text)


def context(runs: Runs) -> Context:
    pictures = [shown for of in runs.evaluations for shown in report_pictures.comparisons(of)]
    compared = [one for _, models in runs.comparisons for one in models]
    models = dict.fromkeys(name for of in runs.evaluations for name in _names(of))
    models |= dict.fromkeys(one.model.file for one in (*compared, *runs.timings))
    dates = sorted({machine.date[:10] for machine in runs.machines if machine.date})
    several = len({row.machine.name for row in runs.timings}) > 1
    about = [", ".join(models), " to ".join(dict.fromkeys((dates or [""])[i] for i in (0, -1)))]
    return Context(
        title="ribsr report",
        subtitle=" · ".join(filter(None, about)),
        facts=facts(runs, compared),
        pictures=pictures,
        evaluations=[evaluation_table(of) for of in runs.evaluations],
        parity=[parity_table(models) for _, models in runs.comparisons if models],
        error_maps=[_error_map(one) for one in compared if one.error_map],
        layer_charts=[_layer_chart(one) for one in compared if one.layers],
        latency=[latency_chart(rows, several) for rows in grouped(runs.timings, _setting)],
        layers=[share_chart(rows) for rows in grouped([of for of in runs.timings if of.groups], _setting)],
        machines=measured(runs.machines),
        notes=notes(runs, pictures),
    )


def measured(machines: Sequence[Machine]) -> list[Measured]:
    """Each machine once, with the commands of all runs on it."""
    found: dict[str, Measured] = {}
    for machine in dict.fromkeys(machines):
        of = found.setdefault(machine.line, Measured(machine.name, machine.line, []))
        of.commands.append((machine.date, machine.command))
    return list(found.values())


def _names(evaluation: Evaluation) -> list[str]:
    return [of.model.file for of in evaluation.models if of.model.file != "bicubic"]


def _setting(row: Timing) -> str:
    return row.size if row.batch == 1 else f"{row.size}, {row.batch} pictures a run"


def grouped(rows: Sequence[Timing], key: Callable[[Timing], str]) -> list[list[Timing]]:
    """Rows of one setting each, in the order of the first of each."""
    groups: dict[str, list[Timing]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())


def facts(runs: Runs, compared: Sequence[Compared]) -> list[Fact]:
    """The three figures that answer the first questions: is it the same, how much faster, how much better?"""
    found = []
    if compared:
        passed = sum(one.failure is None for one in compared)
        found.append(Fact(f"{passed} of {len(compared)}", "compute what their reference does", passed < len(compared)))
    faster = [(row.ratio, row) for row in runs.timings if row.ratio and row.ratio < 1]
    if faster:
        ratio, fastest = min(faster, key=lambda one: one[0])
        words = f"as fast: {fastest.model.file} beside {fastest.beside}, {_setting(fastest)}"
        found.append(Fact(f"{1 / ratio:.1f} ×", words))
    gains = [(*best, of.scale) for of in runs.evaluations if (best := gain(of))]
    if gains:
        best, decibels, scale = max(gains, key=lambda one: one[1])
        found.append(Fact(f"{decibels:+.2f} dB", f"PSNR: {best.model.file} over bicubic, x{scale}"))
    return found


def evaluation_table(of: Evaluation) -> Table:
    """PSNR and SSIM of each model on each set."""
    sets = list(dict.fromkeys(title for model in of.models for title in model.means))
    rows = []
    for scores in of.models:
        row = [Cell(scores.model.file, _runs_on(scores.model.runs_on, scores.model.precision))]
        for title in sets:
            mean = scores.means.get(title)
            told = "" if mean is None or mean.psnr is None else f"{mean.psnr:.2f} dB"
            under = "" if mean is None or mean.ssim is None else f"SSIM {mean.ssim:.4f}"
            if mean is not None and mean.failed:
                scored = len(scores.pictures[title])
                under = ", ".join(filter(None, [under, f"{scored} of {scored + mean.failed} pictures"]))
            row.append(Cell(told, under))
        rows.append(row)
    return Table([f"x{of.scale}", *sets], rows, "PSNR and SSIM of the luma, beside the original", named=True)


def _runs_on(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def parity_table(models: Sequence[Compared]) -> Table:
    """One row a model; the reference is named above them."""
    rows = []
    for one in models:
        verdict = Cell("FAIL", one.failure or "", "bad long") if one.failure else Cell("pass", one.rule, "good")
        psnr = "equal" if one.psnr is None else f"{one.psnr:.1f}"
        figures = [psnr, _error(one.max_error), _error(one.rmse), f"{one.share_off:.2%}", str(one.nan)]
        ran = bool(one.rule)
        name = Cell(one.model.file, _runs_on(one.model.runs_on, one.model.form, one.model.precision))
        rows.append([name, *(Cell(figure if ran else "") for figure in figures), verdict])
    references = ", ".join(dict.fromkeys(one.reference for one in models))
    columns = ["model", "PSNR dB", "largest error", "rmse", "8-bit off", "NaN", "verdict"]
    return Table(columns, rows, f"beside {references}")


def _error(value: float) -> str:
    """`4.2e-7`; 0 where there is none."""
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if value else "0"


def _error_map(one: Compared) -> dict[str, str]:
    assert one.error_map is not None
    return {
        "uri": report_pictures.error_map(one.error_map),
        "model": one.model.file,
        "reference": one.reference,
        "pictures": ", ".join(one.error_map.pictures),
        "full_scale": _error(one.error_map.full_scale),
    }


def _layer_chart(one: Compared) -> Chart:
    first = next((layer for layer in one.layers if not layer.within), None)
    note = f"First beyond its tolerance: {first.name}." if first else "All layers are within their tolerance."
    title = f"{one.model.file} beside {one.reference}, layer by layer"
    finite = [(of.error, of.limit) for of in one.layers if of.error is not None and of.limit is not None]
    drawn = charts.layer_errors(*zip(*finite, strict=True)) if finite else {}
    told = f"Errors of {len(one.layers)} layers in their order, and their limits. {note}"
    note = f"{note} Dots are errors, dashes what they may be."
    return Chart(title, {width: _trusted(svg) for width, svg in drawn.items()}, told, note=note)


def latency_chart(rows: Sequence[Timing], several: bool) -> Chart:
    """Medians at one size, and a table of all figures. several: whether figures are of several machines."""
    setting, ran = _setting(rows[0]), [row for row in rows if row.failure is None]
    digits = _digits([row.median for row in ran])

    def named(row: Timing) -> str:
        return f"{row.model.file}, {row.machine.name}" if several else row.model.file

    made = [
        charts.Bar(named(row), row.median, row.fastest, max(row.p90, row.median), f"{row.median:,.{digits}f} ms")
        for row in ran
    ]
    told = f"Median times at {setting}: " + "; ".join(f"{bar.name} {bar.told}" for bar in made)
    drawn = {width: _trusted(svg) for width, svg in charts.bars(made).items()} if made else {}
    return Chart(setting, drawn, told, latency_table(rows, named, digits))


def _digits(values: Sequence[float]) -> int:
    """Decimals of a column: as many as let the smallest of it have three digits."""
    least = min(values, default=1.0)
    return 0 if least >= 100 else 1 if least >= 10 else 2


def latency_table(rows: Sequence[Timing], named: Callable[[Timing], str], digits: int) -> Table:
    table = []
    for row in rows:
        if row.failure is not None:
            table.append([Cell(named(row), f"failed: {row.failure}", "bad"), *[Cell("")] * 7])
            continue
        name = Cell(named(row), _runs_on(row.model.runs_on, row.model.form, row.model.precision))
        interval = f"{row.ratio_interval[0]:.3f} to {row.ratio_interval[1]:.3f}" if row.ratio_interval else ""
        memory = "" if row.gpu_memory is None else f"GPU {row.gpu_memory / 2**20:,.0f}"
        table.append(
            [
                name,
                *(Cell(f"{ms:,.{digits}f}") for ms in (row.median, row.p90, row.p99, row.spread)),
                Cell(f"{row.pictures_per_second:,.{_digits([row.pictures_per_second])}f}"),
                Cell("" if row.memory is None else f"{row.memory / 2**20:,.0f}", memory),
                Cell("" if row.ratio is None else f"{row.ratio:.3f}", interval),
            ]
        )
    columns = ["model", "median ms", "p90", "p99", "spread", "pictures/s", "memory MiB", "ratio"]
    return Table(columns, table)


def share_chart(rows: Sequence[Timing]) -> Chart:
    """Which kinds of layers take the time, of each model at one size."""
    parts = []
    for row in rows:
        total = sum(row.groups.values()) or 1.0
        shares = {kind: row.groups[kind] / total for kind in KINDS if row.groups.get(kind)}
        parts.append(charts.Parts(row.model.file, shares, f"{total:,.{_digits([total])}f} ms"))
    kinds = [kind for kind in KINDS if any(kind in part.shares for part in parts)]
    table = [
        [Cell(part.name), *(Cell(f"{part.shares.get(kind, 0.0):.1%}", kind=KINDS.index(kind)) for kind in kinds)]
        for part in parts
    ]
    told = "Shares of time: " + "; ".join(
        f"{part.name}: " + ", ".join(f"{kind} {share:.0%}" for kind, share in part.shares.items()) for part in parts
    )
    drawn = {width: _trusted(svg) for width, svg in charts.shares(parts).items()}
    return Chart(_setting(rows[0]), drawn, told, Table(["model", *kinds], table))


def notes(runs: Runs, pictures: Sequence[object]) -> list[str]:
    """Which clock timed what, rates of work, and what was done to the pictures for this page."""
    found = []
    for clock in dict.fromkeys(row.clock for row in runs.timings if row.clock):
        files = dict.fromkeys(row.model.file for row in runs.timings if row.clock == clock)
        found.append(f"Clock of {', '.join(files)}: {clock}.")
    for row in runs.timings:
        told = [text for name, (rate, share) in row.use.items() if (text := _rate(name, rate, share))]
        if told:
            found.append(f"{row.model.file} at {_setting(row)}: {', '.join(told)}.")
    if pictures:
        found.append(
            f"Pictures are shown as WebP of quality {report_pictures.QUALITY}; scores and error maps are of the files."
        )
    return found


def _rate(name: str, rate: float, share: float | None) -> str:
    unit, size = {
        "operations": ("TFLOP/s", 1e12) if rate >= 1e12 else ("GFLOP/s", 1e9),
        "bytes": ("GB/s", 1e9),
        "scores": ("billion attention scores/s", 1e9),
    }[name]
    of_chip = "" if share is None else f" ({share:.0%} of what the chip can do)"
    rounded = float(f"{rate / size:.3g}")
    return f"{rounded:,.10g} {unit}{of_chip}"
