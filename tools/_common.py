"""What the tools share: naming models, opening them, describing the machine, tables and JSON."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines import RUNTIMES, Tiled, open_engine, runtimes_of
from engines.base import PRECISIONS, EngineError
from ribsr import bundled
from ribsr.base.command import F
from ribsr.base.errors import printable, shown
from ribsr.base.files import atomic, check_target

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from engines import Engine


@dataclass(frozen=True)
class ModelName:
    """A model as a user names it: a file, and behind it a runtime, a precision, `graphs` or `no-graphs`."""

    path: str
    precision: str | None = None
    runtime: str | None = None
    graphs: str | None = None

    def __str__(self) -> str:
        return "@".join([self.path, *(part for part in (self.runtime, self.precision, self.graphs) if part)])


def model_name(text: str) -> ModelName:
    """Splits `x2.pt@fp16` and `x2.onnx@openvino@bf16`; a file that really has that name is taken as it is.

    Bundled checkpoints go by name.
    """
    path, named = text, dict[str, str]()
    while not Path(path).exists() and (match := re.fullmatch(rf"(.+)@({'|'.join(_NAMED)})", path)):
        path, kind = match[1], _NAMED[match[2]]
        if kind in named:
            raise click.UsageError(f"{text}: names two {kind}s")
        named[kind] = match[2]
    return ModelName(str(bundled.find(path)), **named)


GRAPHS = {"graphs": True, "no-graphs": False}
"""What stands behind a model's name → whether the work of repeated sizes is recorded as CUDA graphs."""

_NAMED = {
    **dict.fromkeys(PRECISIONS, "precision"),
    **{runtime.name: "runtime" for runtime in RUNTIMES},
    **dict.fromkeys(GRAPHS, "graphs"),
}
"""What may stand behind a file's name, and what it is."""


def engine_options_for(name: ModelName, options: dict[str, Any]) -> dict[str, Any]:
    """Of the options of `engines.options`, those that `open_engine` takes for this model, and what its name says."""
    runtimes = runtimes_of(name.path)
    asked = name.runtime or options.get("runtime", "auto")
    named = [runtime for runtime in runtimes if runtime.name == asked]
    told: dict[str, Any] = {"runtime": asked} if named or name.runtime else {}
    if name.graphs:  # said of this model: an error where it has none
        told["cuda_graphs"] = GRAPHS[name.graphs]
    taken = {"device", *(option for runtime in named or runtimes for option in runtime.options)}
    return {**{option: options[option] for option in options if option in taken}, **told}


def open_model(name: ModelName, options: dict[str, Any]) -> Engine:
    """Opens a model with the options of `engines.options` (engine_options, tile_option), each where it belongs."""
    engine = open_engine(name.path, precision=name.precision, **engine_options_for(name, options))
    return Tiled(engine, options["tile"]) if options.get("tile") else engine


def where(description: dict[str, Any]) -> str:
    """Runtime, version and device, as the tables show them."""
    device = description["device"].replace("ExecutionProvider", "")
    return f"{description['runtime']} {description['runtime_version']}, {device}"


_PACKAGES = (
    *("numpy", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "cuda-bindings"),
    *("nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
)
"""Whose versions figures depend on."""


def environment() -> dict[str, Any]:
    """The machine and the software that figures depend on."""
    import importlib.metadata

    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "gpus": gpu_query("name,driver_version"),
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions,
    }


def environment_line(values: dict[str, Any]) -> str:
    """`environment()` on one line."""
    memory = f", {values['memory_bytes'] / 2**30:.0f} GiB" if values["memory_bytes"] else ""
    gpus = "".join(f"; {gpu}" for gpu in values["gpus"])
    versions = ", ".join(f"{name} {version}" for name, version in values["versions"].items())
    return f"{values['cpu']}, {values['cores']} cores{memory}{gpus}; {values['system']}; {versions}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such figures on this system
        return None


def gpu_query(fields: str) -> list[str]:
    """nvidia-smi's answer, a line per visible GPU; empty where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        command += ["-i", visible]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, timeout=30)
    except (subprocess.SubprocessError, OSError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


UNLIMITED = 10**5
"""Columns of what is no terminal."""


def console(stderr: bool = False) -> Console:
    """A rich console. In files and pipes it does not wrap lines; brackets in file names are no markup."""
    from rich.console import Console, ConsoleDimensions

    made = Console(stderr=stderr, highlight=False, markup=False)
    if not made.file.isatty():  # whatever FORCE_COLOR, TERM and COLUMNS say
        made.size = ConsoleDimensions(UNLIMITED, 25)
    return made


def show_table(out: Console, columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """Prints a table, its first column left-aligned, or, where that is wider than the terminal, a list: a block a row.

    Nothing is cut. A row's last cells may be missing. Cells of a column without a name follow the block's title.
    """
    from rich import box
    from rich.measure import Measurement
    from rich.table import Table

    rows = [list(row) for row in rows]
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    needed = Measurement.get(out, out.options.update(width=UNLIMITED), made).maximum
    if needed <= out.width:
        out.print(made)
        return
    for row in rows:
        _show_block(out, columns, row)


def _show_block(out: Console, columns: Sequence[str], row: Sequence[str | Text]) -> None:
    from rich.text import Text

    cells = list(zip(columns[1:], row[1:], strict=False))
    unnamed = [cell for name, cell in cells if not name]
    out.print(Text(" ").join([Text.assemble((str(row[0]), "bold")), *map(_as_text, unnamed)]), soft_wrap=True)
    for name, cell in cells:
        if name and str(cell):
            out.print(Text(f"  {name}: ") + _as_text(cell), soft_wrap=True)
    out.print()


def _as_text(cell: str | Text) -> Text:
    from rich.text import Text

    return Text(cell) if isinstance(cell, str) else cell


def json_option(command: F) -> F:
    """Adds `--json FILE` as `json_target`, for `write_json`; a file that cannot be written is refused at the start."""

    def check(context: click.Context, option: click.Parameter, target: str | None) -> str | None:
        if target is not None and target != "-":
            try:
                check_target(target)
            except OSError as error:
                raise click.BadParameter(str(error)) from None
        return target

    return click.option(
        "--json", "json_target", metavar="FILE", callback=check, help="Also write the results as JSON; - for stdout."
    )(command)


def seen_from(json_target: str | None, path: str | Path) -> str:
    """How the JSON of --json names a file: as seen from its own folder, with slashes on every system."""
    folder = Path(json_target).parent if json_target and json_target != "-" else Path()
    return Path(os.path.relpath(path, folder)).as_posix()


def write_json(target: str, values: Any) -> None:
    """Writes JSON to a file (whole or not at all), or to stdout for `-`."""
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    if target == "-":
        click.echo(text, nl=False)
        return
    with atomic(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


VERSION = 1
"""Of what --json writes. Raise it when a field changes its meaning or goes."""


def document(kind: str, **values: Any) -> dict[str, Any]:
    """What a tool's --json writes: what it is, in which version, and `values`. `read_run` reads it."""
    return {"kind": kind, "version": VERSION, **values}


def read_run(path: str, *kinds: str) -> dict[str, Any]:
    """A file that --json of one of the tools `kinds` wrote. Raises EngineError for any other, and other versions."""
    tools = " or ".join(f"tools/{kind}.py" for kind in kinds)
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EngineError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError):  # ValueError: also numbers of thousands of digits
        raise EngineError(f"{path}: not a JSON file; give one that {tools} --json wrote") from None
    if not isinstance(values, dict) or not ({"kind", "tool"} & {*values}):
        raise EngineError(f"{path}: was not written by {tools} --json")
    if (kind := values.get("kind", values.get("tool"))) not in kinds:
        raise EngineError(f"{path}: was written by another tool ({shown(kind)}); give one of {tools} --json")
    if values.get("version") != VERSION:
        found = f"has version {shown(values['version'])}" if "version" in values else "is of before there were versions"
        raise EngineError(f"{path}: {found}, this release reads {VERSION}; measure again")
    return _harmless(values)


def _harmless(value: Any) -> Any:
    """JSON without what would do something to a terminal."""
    if isinstance(value, dict):
        return {printable(name): _harmless(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_harmless(one) for one in value]
    return printable(value) if isinstance(value, str) else value


def provenance() -> dict[str, Any]:
    """The command line that runs, without its folder, and the time, as ISO 8601 in UTC."""
    from datetime import datetime, timezone

    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return {"command": command, "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}


def conclude(out: Console, kind: str, values: dict[str, Any], json_target: str | None) -> None:
    """Prints the machine and the software that `values` come from, and writes all of it where --json says."""
    seen = environment()
    out.print(environment_line(seen), style="dim", soft_wrap=True)
    if json_target:
        write_json(json_target, document(kind, **provenance(), **values, environment=seen))
