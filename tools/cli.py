"""The command `ribsr`: all that a user calls, each the same command as its module or script.

A command is imported when it is called; the help of `ribsr` itself imports none.
"""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Mapping
from typing import Any

import click

import ribsr
from ribsr.base.command import Group, message

Rows = Mapping[str, tuple[str, str]]
"""Commands by their names: `module:attribute`, and what the list of commands says of it."""

EXPORTS: Rows = {
    "onnx": ("export.onnx:main", "Export a checkpoint to ONNX."),
    "trt": ("export.trt.__main__:main", "Build a TensorRT engine (.plan) from an ONNX file."),
}

COMMANDS: Rows = {
    "export": ("tools.cli:export", "Make ONNX files (onnx) and TensorRT plans (trt)."),
    "upscale": ("engines.upscale:main", "Enlarge pictures, folders of them, and videos."),
    "parity": ("tools.parity:main", "Compare models with their checkpoint."),
    "latency": ("tools.latency:main", "Time models side by side."),
    "evaluate": ("tools.evaluate:main", "PSNR and SSIM of models on benchmark sets."),
    "report": ("tools.report:main", "One page of HTML from what parity, latency and evaluate found."),
    "recipe": ("ribsr.__main__:recipe", "Print the paper's recipe for a model, to train by."),
    "train": ("ribsr.__main__:train", "Train as a recipe says."),
    "build-kernels": ("plugins.build:main", "Build our kernels, for CPUs (g++ or clang++) and GPUs (nvcc)."),
    "doctor": ("tools.doctor:main", "What runs here, and what is missing."),
}


class Lazy(Group):
    """Commands of a table, each imported when it is asked for."""

    def __init__(self, *args: Any, rows: Rows, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._rows = rows

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._rows)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._rows:
            return None
        return _imported(self._rows[cmd_name][0])

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self._rows.items()])


def _imported(target: str) -> click.Command:
    """The command at `module:attribute`. Raises ClickException where its module cannot be imported."""
    path = list(sys.path)
    try:
        return pkgutil.resolve_name(target)
    except ImportError as error:
        raise click.ClickException(message(error)) from error
    finally:
        sys.path[:] = path  # scripts put their clone there, which may be Python's site-packages


@click.group(cls=Lazy, rows=COMMANDS)
@click.version_option(ribsr.__version__, prog_name="ribsr", message="%(prog)s %(version)s")
def main() -> None:
    """RIB super-resolution transformers, from a PyTorch checkpoint to ONNX Runtime and TensorRT."""


@click.group(cls=Lazy, rows=EXPORTS)
def export() -> None:
    """Files for a runtime, made from a checkpoint."""


PROGRAMS: Mapping[str, str] = {
    "ribsr": "tools.cli:main",
    "ribsr-upscale": COMMANDS["upscale"][0],
    "ribsr-export": EXPORTS["onnx"][0],
    "ribsr-export-trt": EXPORTS["trt"][0],
    "ribsr-parity": COMMANDS["parity"][0],
    "ribsr-latency": COMMANDS["latency"][0],
    "ribsr-evaluate": COMMANDS["evaluate"][0],
    "ribsr-train": COMMANDS["train"][0],
}
"""The programs of pyproject.toml, and which command each is."""


def start(program: str) -> None:
    """Runs one of PROGRAMS, and ends the process."""
    try:
        command = _imported(PROGRAMS[program])
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    command(prog_name=program)
