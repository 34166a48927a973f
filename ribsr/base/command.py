"""What all commands share: one-line errors, `-v`, and types of options."""

from __future__ import annotations

import math
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ribsr.base.errors import RibsrError, clipped, printable
from ribsr.base.installation import pip_install
from ribsr.base.sizes import Size

F = TypeVar("F", bound=Callable[..., Any])
"""A function that is becoming a command, for decorators that add options to it."""

EXTRAS = {
    "cuda": ("trt",),
    "flash_attn": ("flash",),
    "onnx": ("export", "trt"),
    "onnx_graphsurgeon": ("export", "trt"),
    "onnxruntime": ("ort", "ort-gpu"),
    "onnxscript": ("export",),
    "safetensors": ("train", "export"),
    "tensorrt": ("trt",),
    "torch": ("train", "export"),
    "yaml": ("train", "export"),
}
"""Packages that only some commands need, by the names under which they are imported → what installs them."""


class Command(click.Command):
    """A click command with `-v/--verbose`; any exception becomes one line `Error: …` and exit code 1.

    With `-v` the exception goes through, so that Python prints its traceback (the exit code is 1 then, too).
    Usage errors keep click's form and exit code 2.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        option = click.Option(["-v", "--verbose"], is_flag=True, help="Show a traceback when something fails.")
        self.params.append(option)

    def invoke(self, ctx: click.Context) -> Any:
        verbose = ctx.meta["verbose"] = ctx.params.pop("verbose")
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except Exception as error:
            if verbose:
                raise
            raise click.ClickException(message(error)) from error


def message(error: BaseException) -> str:
    """One line for the user. Types that the toolkit raises on purpose speak for themselves; others are named."""
    text = _one_line(str(error))
    if isinstance(error, OSError) and error.strerror:
        files = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
        return _one_line(": ".join(filter(None, [" → ".join(files), error.strerror])))
    if isinstance(error, MemoryError):
        return "out of memory; free some, or give less (smaller pictures, --tile)"
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
        return f"{error.name} is not installed: " + " or ".join(map(pip_install, EXTRAS[error.name]))
    if group := getattr(error, "exceptions", ()):  # an ExceptionGroup says only how many it holds
        return "; ".join(map(message, group))
    if isinstance(error, (RibsrError, OSError, RuntimeError, ValueError)) and text:
        return text
    named = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{named} (run again with -v for a traceback)"


def _one_line(text: str) -> str:
    """Fit for a terminal; libraries quote whole files."""
    return clipped(printable(" ".join(line.strip() for line in text.splitlines() if line.strip())), 2000)


def echo(text: str, *, err: bool = False) -> None:
    """Prints a line. What would act on the terminal is escaped; what it cannot show (`→`, the bytes of a name from
    another system) becomes a `?`."""
    encoding = getattr(sys.stderr if err else sys.stdout, "encoding", None) or "utf-8"
    click.echo(printable(text).encode(encoding, "replace").decode(encoding), err=err)


def report(error: Exception, line: str) -> None:
    """Prints the line of an error that does not end the command; with `-v`, the traceback before it."""
    if click.get_current_context().meta.get("verbose"):
        traceback.print_exception(error)
    echo(f"Error: {line}", err=True)


class FiniteRange(click.FloatRange):
    """A number in a range; neither infinity nor NaN, which Python reads as numbers, too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class SizeType(click.ParamType):
    """A `Size`, written WIDTHxHEIGHT."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Size:
        if isinstance(value, Size):
            return value
        try:
            return Size.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
