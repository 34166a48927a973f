"""What people see of timed models: tables, and lines about clocks, failures and machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tools._chips import CLOCKS_ADVICE
from tools._common import environment_line, show_table, where, write_json
from tools._timing import main_times

if TYPE_CHECKING:
    from rich.console import Console


def publish(out: Console, made: dict[str, Any], json_target: str | None, slowest: int = 0) -> bool:
    """Prints a report, and writes it where --json says. Returns whether every model ran.

    slowest: layers of each model that are listed, of those that were profiled.
    """
    results, runs = made["results"], made["runs"]
    show(out, results)
    show_speeds(out, results)
    for result in results:
        if result["layers"]:
            show_layers(out, result, slowest)
    machines = [run["environment"] for run in runs]
    for line in dict.fromkeys(map(environment_line, machines)):
        out.print(line, style="dim", soft_wrap=True)
    # What is installed on a machine does not make it another one.
    if len({(seen["cpu"], seen["cores"], tuple(seen["gpus"])) for seen in machines}) > 1:
        out.print("Warning: these figures come from different machines", style="yellow")
    if json_target:
        write_json(json_target, made)
    return not any(result["failure"] or (result["layers"] or {}).get("failure") for result in results)


def _ms(times: dict[str, Any] | None, name: str) -> str:
    return "" if times is None else f"{times[name]:.2f}"


def _short(number: float) -> str:
    """Three digits of it, or all before the point."""
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"


def _mib(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:.0f}"


def _at(result: dict[str, Any]) -> str:
    """The size, and how many pictures where they are several."""
    many = f"{result['batch']} of " if result["batch"] not in (1, None) else ""
    return f"{many}{result['size']}"


def _ratio(result: dict[str, Any]) -> str:
    if result["ratio_interval"] is None:
        return f"{result['ratio']:.3f}"
    low, high = result["ratio_interval"]
    return f"{result['ratio']:.3f} ({low:.3f} to {high:.3f})"


def _cells(result: dict[str, Any], batches: bool) -> dict[str, str]:
    """A row, by the names of the columns."""
    named = {"model": result["file"], "size": result["size"], "batch": str(result["batch"] or "") if batches else ""}
    if result["failure"]:
        return {**named, "runs on": "failed"}
    told, times = result["description"], main_times(result)
    assert times is not None
    return {
        **named,
        "runs on": where(told),
        "form": told["form"],
        "precision": told["precision"],
        "graphs": {True: "yes", False: "no", None: ""}[told["cuda_graphs"]],
        **{column: _ms(times, name) for column, name in TIMES.items()},
        "end to end ms": _ms(result["end_to_end"], "median") if result["device"] else "",
        "pictures/s": _short(result["pictures_per_second"]),
        "memory MiB": _mib(result["peak_memory"]),
        "GPU MiB": _mib(result["gpu_memory"]),
        "engine MiB": _mib(result["gpu_allocated"]),
        "ratio": _ratio(result),
    }


TIMES = {"median ms": "median", "p90": "p90", "p99": "p99", "spread": "spread"}


def show(out: Console, results: Sequence[dict[str, Any]]) -> None:
    """Prints results with their ratios as a table, without the columns that say nothing, and which clock, failures and
    notes belong to which model."""
    rows = [_cells(result, any(one["batch"] not in (1, None) for one in results)) for result in results]
    columns = [column for column in max(rows, key=len, default={}) if any(row.get(column) for row in rows)]
    show_table(out, columns, [[row.get(column, "") for column in columns] for row in rows])
    for clock in dict.fromkeys(result["clock"] for result in results if result["clock"]):
        files = dict.fromkeys(result["file"] for result in results if result["clock"] == clock)
        out.print(f"Clock of {', '.join(files)}: {clock}", style="dim", soft_wrap=True)
    for result in results:
        _show_conditions(out, result)
        if result["failure"]:
            out.print(f"FAIL {result['file']} at {_at(result)}: {result['failure']}", style="red", soft_wrap=True)
        for note in (result["description"] or {}).get("notes", ()):
            out.print(f"Note: {note}", style="yellow", soft_wrap=True)
    if any(result["device"] and not result["clocks"] for result in results):
        out.print(f"GPU clocks unknown: {CLOCKS_ADVICE}", style="dim", soft_wrap=True)


def _show_conditions(out: Console, result: dict[str, Any]) -> None:
    """A line about the runs that were made, and the GPU's clocks."""
    if (times := main_times(result)) is None:
        return
    warmup = result["warmup"]
    settled = {True: ", stable then", False: ", not stable then", None: ""}[warmup["stable"]]
    line = f"{result['file']} at {_at(result)}: {times['runs']} runs after {warmup['runs']} to warm up{settled}"
    for when, seen in (result["clocks"] or {}).items():
        units = {"sm_mhz": "SM {} MHz", "memory_mhz": "memory {} MHz", "temperature_c": "{} °C", "power_w": "{:.0f} W"}
        told = [text.format(seen[name]) for name, text in units.items() if seen[name] is not None]
        line += f"; {when}: {', '.join(told) or 'clocks unknown'}"
    out.print(line, style="dim", soft_wrap=True)


UNITS = {"operations": ("TFLOP/s", 1e12), "bytes": ("GB/s", 1e9), "scores": ("1e12 scores/s", 1e12)}


def show_speeds(out: Console, results: Sequence[dict[str, Any]]) -> None:
    """Prints what models of known networks achieve, beside what their GPU can."""
    rows = []
    for result in results:
        if result["achieved"]:
            cells = [_speed(name, result["achieved"], result["limits"]) for name in UNITS]
            rows.append([result["file"], _at(result), f"{result['work']['operations'] / 1e12:.3g}", *cells])
    if not rows:
        return
    show_table(out, ("model", "size", "TFLOP a run", *(unit for unit, _ in UNITS.values())), rows)
    for known in {one["limits"]["chip"]: one["limits"] for one in results if one["limits"]}.values():
        out.print(f"Limits of {known['chip']}: {known['source']}", style="dim", soft_wrap=True)


def _speed(name: str, achieved: dict[str, float], limits: dict[str, Any] | None) -> str:
    """A rate, and of what the chip can how much it is: of the lower end, where that is a range."""
    factor = UNITS[name][1]
    limit: Any = limits and limits[name]
    if not limit:
        return _short(achieved[name] / factor)
    least, *more = [limit] if isinstance(limit, float) else limit
    top = _short(least / factor) + "".join(f" to {_short(most / factor)}" for most in more if most != least)
    return f"{_short(achieved[name] / factor)} of {top} ({achieved[name] / least:.0%})"


def show_layers(out: Console, result: dict[str, Any], count: int) -> None:
    """Prints where a model's time goes: by kind of layer, and the `count` layers that take longest."""
    name, layers = f"{result['file']} at {_at(result)}", result["layers"]
    if layers["failure"]:
        out.print(f"FAIL {layers['failure']}", style="red", soft_wrap=True)
        return
    total = sum(layers["groups"].values())
    rows = [(kind, f"{ms:.3f}", _share(ms, total)) for kind, ms in layers["groups"].items() if ms]
    show_table(out, (f"kinds of layers of {name}", "ms", "share"), rows)
    if count:
        slowest = sorted(layers["layers"], key=lambda layer: layer["milliseconds"], reverse=True)[:count]
        columns = (f"{len(slowest)} of {len(layers['layers'])} layers of {name}", "ms", "share", "kind")
        times = ((one["milliseconds"], one) for one in slowest)
        show_table(out, columns, [(one["name"], f"{ms:.3f}", _share(ms, total), one["kind"]) for ms, one in times])
    out.print(f"All layers: {total:.2f} ms, each timed on its own, which takes longer than a run", style="dim")


def _share(part: float, total: float) -> str:
    return f"{part / total:.1%}" if total else ""
