#!/usr/bin/env python3
"""Which runtimes run which files, how exactly, and in what time? Pinned releases, each in an environment of its own.

    python -m export.onnx --ckpt x2.pt; python -m export.onnx --ckpt x2.pt --form mha; ...
    tools/runtimes.py x2.pt x2.onnx x2.mha.onnx x2.attention.onnx x2.matmul.onnx
    tools/runtimes.py x2.pt x2.mha.onnx --only OpenVINO --envs ~/runtimes     # keeps what it installs

The first model is what the others are compared with, in this toolkit's engine. Each run is a process of its own: a
runtime that refuses a file, crashes or never ends is a row that says so.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click
import numpy as np

from engines import samples
from engines.base import EngineError
from ribsr.base.command import Command, SizeType
from ribsr.base.progress import Progress
from ribsr.base.sizes import Size
from tools._common import ModelName, conclude, console, json_option, model_name, open_model, show_table

CHILD = Path(__file__).resolve().with_name("_runtime_child.py")

OLD_NUMPY = "numpy==1.26.4"


@dataclass(frozen=True)
class Runtime:
    """A release of a runtime. kind: of _runtime_child. packages: pinned. settings: of the kind.

    python: the command of the Python that it needs; None for the one that this runs in. sizes: how it can be given a
    model's. beside: whether it uses the packages of this Python, too (torch).
    """

    name: str
    kind: str
    packages: tuple[str, ...]
    settings: tuple[str, ...] = ()
    python: str | None = None
    sizes: tuple[str, ...] = ("dynamic", "fixed")
    beside: bool = False


def _onnx_runtime(version: str, numpy: str = "numpy") -> Runtime:
    return Runtime(f"ONNX Runtime {version}", "ONNX Runtime", (f"onnxruntime=={version}", numpy))


def _openvino(version: str) -> Runtime:
    return Runtime(f"OpenVINO {version}", "OpenVINO", (f"openvino=={version}", "numpy"), (_FLOAT32,))


def _vs_mlrt(plugin: str, name: str, *settings: str) -> Runtime:
    packages = ("vapoursynth==81", f"vapoursynth-mlrt-{plugin}==17.1", "numpy")
    return Runtime(f"vs-mlrt-{name}", "vs-mlrt", packages, (f"plugin={plugin}", *settings), "python3.12", ("fixed",))


_FLOAT32 = "INFERENCE_PRECISION_HINT=f32"

RUNTIMES = (
    _onnx_runtime("1.32.0"),
    _onnx_runtime("1.23.2"),
    _onnx_runtime("1.16.3", OLD_NUMPY),
    _onnx_runtime("1.15.1", OLD_NUMPY),
    _openvino("2026.4.1"),
    _openvino("2025.4.1"),
    _openvino("2024.6.0"),
    Runtime("OpenVINO 2026.4.1, its own precision", "OpenVINO", ("openvino==2026.4.1", "numpy")),
    _vs_mlrt("ort", "ort 17.1"),
    _vs_mlrt("ov", "ov 17.1, float32", _FLOAT32),
    _vs_mlrt("ov", "ov 17.1, its own precision"),
    Runtime("tract 0.23.9", "tract", ("tract==0.23.9", "numpy"), sizes=("fixed",)),
    Runtime("onnx2torch 1.5.15", "onnx2torch", ("onnx2torch==1.5.15",), sizes=("dynamic",), beside=True),
)
"""The newest and the oldest that were tried of each, and those between where something changed."""


class Given(NamedTuple):
    """A picture [1, 3, H, W] and what is expected of it [1, 3, sH, sW], float32."""

    picture: np.ndarray
    expected: np.ndarray


class Unavailable(Exception):
    """A release that could not be installed here; one line says why."""


@dataclass(frozen=True)
class Row:
    """What came of one run. error: largest difference from the reference, None where there is no picture.

    failure: what happened instead. milliseconds: median of the timed runs. ratio: of that to the first row's.
    """

    runtime: str
    model: str
    sizes: str
    error: float | None = None
    milliseconds: float | None = None
    failure: str | None = None
    ratio: float | None = None


def install(runtime: Runtime, folder: Path) -> Path:
    """The Python of an environment in `folder` that has the runtime, made unless it is there. Raises Unavailable."""
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    done = folder / "installed"
    if done.exists():
        return python
    commands = [
        [runtime.python or sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *runtime.packages],
    ]
    if runtime.beside:
        commands[1].insert(-len(runtime.packages), "--no-deps")
    for command in commands:
        try:
            ran = subprocess.run(command, capture_output=True, text=True, errors="replace")
        except FileNotFoundError:
            raise Unavailable(f"needs {command[0]}, which is not on PATH") from None
        if ran.returncode:
            raise Unavailable(f"not installed: {_gist(ran.stderr) or f'exit code {ran.returncode}'}")
    if runtime.beside:
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "beside.pth").write_text("\n".join(path for path in sys.path if "site-packages" in path) + "\n")
    done.touch()
    return python


def run(runtime: Runtime, python: Path, model: Path, given: Given, sizes: str, limit: int) -> Row:
    """The model in a process of that Python, ended after `limit` seconds, beside what was expected."""
    row = Row(runtime.name, model.name, sizes)
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name, "x.npy"), Path(name, "y.npy")
        np.save(source, given.picture)
        command = [python, CHILD, runtime.kind, model.absolute(), source, target, sizes, *runtime.settings]
        try:
            ran = subprocess.run(
                list(map(str, command)), capture_output=True, text=True, errors="replace", timeout=limit, cwd=name
            )
        except subprocess.TimeoutExpired:
            return replace(row, failure=f"no answer in {limit} s")
        if ran.returncode < 0:
            return replace(row, failure=f"crashed ({signal.Signals(-ran.returncode).name})")
        if ran.returncode:
            return replace(row, failure=f"refused: {_gist(ran.stderr)}")
        found = np.load(target).astype(np.float32)
    if found.shape != given.expected.shape:
        return replace(row, failure=f"gives {found.shape}, not {given.expected.shape}")
    seconds = json.loads(ran.stdout.splitlines()[-1])
    return replace(row, error=float(np.abs(found - given.expected).max()), milliseconds=1000 * median(seconds))


def _gist(text: str) -> str:
    """What a traceback ends in, from the line that names the exception, on one line; without one, the last line.

    Of a long one, its start and its end: libraries put their reason behind where it was found, or a stack behind it.
    """
    _, traceback, message = text.rpartition("Traceback (most recent call last):\n")
    lines = message.splitlines()
    start = next((i for i, line in enumerate(lines) if re.match(r"[\w.]+(: |$)", line)), 0) if traceback else -1
    gist = " ".join(" ".join(lines[start:]).split())
    return gist if len(gist) <= 200 else f"{gist[:100]} … {gist[-100:]}"


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """The rows, times divided by the first one's that has a time."""
    first = next((row.milliseconds for row in rows if row.milliseconds), None)
    ratios = [row.milliseconds / first if row.milliseconds and first else None for row in rows]
    return [replace(row, ratio=ratio) for row, ratio in zip(rows, ratios, strict=True)]


def cells(row: Row) -> tuple[str, ...]:
    """The row as the table shows it."""
    error = row.failure or f"{row.error:.1e}"
    return (row.runtime, row.model, row.sizes, error, "" if row.ratio is None else f"{row.ratio:.2f}")


def measure(runtimes: Sequence[Runtime], models: Sequence[Path], envs: Path, given: Given, limit: int) -> Iterator[Row]:
    """All rows, in the runtimes' order, as they come. envs: the folder to install in. limit: seconds for one row."""
    for runtime in runtimes:
        with Progress(f"{runtime.name}: installing"):
            try:
                # Releases that differ in settings alone share an environment.
                python = install(runtime, envs / "_".join(runtime.packages).replace("==", "-"))
            except Unavailable as error:
                yield Row(runtime.name, "", "", failure=str(error))
                continue
        for model in models:
            for sizes in runtime.sizes:
                with Progress(f"{runtime.name}: {model.name}, {sizes}"):
                    row = run(runtime, python, model, given, sizes, limit)
                yield row


@click.command(cls=Command)
@click.argument("reference", type=model_name)
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--only", help="Runtimes whose names begin so.", default="")
@click.option("--size", type=SizeType(), default="100x72", show_default=True, help="Of the picture.")
@click.option("--limit", type=click.IntRange(1), default=300, show_default=True, help="Seconds for one row.")
@click.option("--envs", type=click.Path(path_type=Path), help="Folder to install in and keep.")
@json_option
def main(
    reference: ModelName,
    models: tuple[Path, ...],
    only: str,
    size: Size,
    limit: int,
    envs: Path | None,
    json_target: str | None,
) -> None:
    """Run MODELS, ONNX files, in pinned releases of other programs' runtimes, beside REFERENCE in this toolkit's."""
    chosen = [runtime for runtime in RUNTIMES if runtime.name.startswith(only)]
    if not chosen:
        raise EngineError(f"no runtime's name begins with {only!r}; there are {', '.join(r.name for r in RUNTIMES)}")
    x = samples.sample("coffee", size)
    with open_model(reference, {"device": "cpu"}) as engine:
        expected = engine.run(x)
    with ExitStack() as stack:
        folder = envs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ribsr-runtimes-")))
        rows = []
        for row in measure(chosen, models, folder.absolute(), Given(x, expected), limit):
            click.echo("  ".join(cells(row)), err=True)  # in a long run, none is lost
            rows.append(row)
    rows = with_ratios(rows)
    out = console(stderr=json_target == "-")
    show_table(out, ("runtime", "model", "sizes", "largest error", "time, ratio"), map(cells, rows))
    conclude(out, "runtimes", {"size": str(size), "rows": [asdict(row) for row in rows]}, json_target)


if __name__ == "__main__":
    main()
