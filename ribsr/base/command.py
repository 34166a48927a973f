"""What all commands share: one-line errors, `-v`, and types of options."""

from __future__ import annotations

import codecs
import io
import math
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, TypeVar

import click

from ribsr.base import interrupt
from ribsr.base.errors import RibsrError, clipped, printable
from ribsr.base.installation import pip_install
from ribsr.base.sizes import Size

F = TypeVar("F", bound=Callable[..., Any])
"""A function that is becoming a command, for decorators that add options to it."""

EXTRAS = {
    "cuda": ("trt",),
    "flash_attn": ("flash",),
    "jinja2": ("report",),
    "onnx": ("export", "trt"),
    "onnx_graphsurgeon": ("export", "trt"),
    "onnxruntime": ("ort", "ort-gpu"),
    "onnxscript": ("export",),
    "safetensors": ("train", "export"),
    "tensorrt": ("trt",),
    "tensorrt_rtx_bindings": ("rtx",),
    "torch": ("train", "export"),
    "vl_convert": ("report",),
    "yaml": ("train", "export"),
}
"""Packages that only some commands need, by the names under which they are imported → what installs them."""


BROKEN_PIPE = 141
"""Exit code where nobody reads the output any more: what shells say of a program that SIGPIPE has ended."""


class Program(click.Command):
    """What runs as a program: Ctrl-C and SIGTERM end it soon (`ribsr.base.interrupt`), and `| head` in silence."""

    def main(self, *args: Any, **extra: Any) -> Any:
        _print_anything()
        if args or extra.get("args") is not None:  # called from Python, which has its own ways with signals
            return super().main(*args, **extra)
        interrupt.watch()
        code: Any = 0
        try:
            super().main(**extra)
        except SystemExit as end:
            code = end.code
        number = interrupt.arrived()
        if number and code == 1:  # it came before the command began
            code = 128 + number
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            code = _nobody_reads()
        if number:
            interrupt.leave(code or 0)  # what still runs in other threads is not waited for
        return sys.exit(code)


_PLAIN = {"→": "->", "≤": "<=", "≥": ">=", "×": "x", "…": "...", "–": "-", "—": "-", "·": "-", "²": "^2", "√": "sqrt "}
"""What our lines hold that is not in every code page, and what says the same in ASCII."""


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that an encoding lacks: ASCII that says the same, else an escape such as \\u4e2d, or
    \\xe9 for a byte of a file name that is no text. A handler for `codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(character: str) -> str:
    if character in _PLAIN:
        return _PLAIN[character]
    if "\u2800" <= character <= "\u28ff":  # what rich's spinners turn
        return "*"
    if "\udc80" <= character <= "\udcff":  # how Python holds bytes that it could not decode
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("ascii", "backslashreplace").decode("ascii")


codecs.register_error("ribsr.plainly", _plainly)


def _print_anything() -> None:
    """Lets no character end a command, as redirected output has the code page of the system or of PYTHONIOENCODING; and
    no stream that is closed (`>&-`), which Python has as None, and whose number the next file would get."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8", errors="ribsr.plainly"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="ribsr.plainly")


class Group(Program, click.Group):
    """A group of Commands."""


class _Failure(click.ClickException):
    """What ends a command, printed by `echo`: click would print it in UTF-8 where stderr is ASCII."""

    def show(self, file: IO[Any] | None = None) -> None:
        echo(f"Error: {self.format_message()}", err=True)


class Command(Program):
    """A click command with `-v/--verbose`; any exception becomes one line `Error: …` and exit code 1.

    With `-v` the exception goes through, so that Python prints its traceback (the exit code is 1 then, too).
    Usage errors keep click's form and exit code 2. Ctrl-C is 130, SIGTERM 143.
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
        except KeyboardInterrupt as error:
            interrupt.say_aborted()
            raise click.exceptions.Exit(interrupt.exit_code(error)) from None
        except BrokenPipeError:
            raise click.exceptions.Exit(_nobody_reads()) from None
        except SystemExit as error:
            if isinstance(error.__context__, BrokenPipeError):  # rich ends the program by itself
                raise click.exceptions.Exit(_nobody_reads()) from None
            raise
        except Exception as error:
            if verbose:
                raise
            raise _Failure(message(error)) from error


def _nobody_reads() -> int:
    """Lets what would still be printed vanish; returns the exit code."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError, io.UnsupportedOperation):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
    return BROKEN_PIPE


def is_verbose() -> bool:
    """Whether the command that runs was given `-v`; False where none runs."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get("verbose"))


def show_traceback(error: BaseException) -> None:
    """With `-v`, prints the traceback of an error that does not end the command."""
    if is_verbose():
        traceback.print_exception(error)


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
    """Prints a line, also where no command of ours has begun. What would act on the terminal is escaped, and what it
    cannot show is put in other characters."""
    stream = sys.stderr if err else sys.stdout
    if stream is None:  # closed; click would take stdout instead
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    # Named, since click prints in UTF-8 where a stream is ASCII.
    try:
        click.echo(printable(text).encode(encoding, "ribsr.plainly").decode(encoding), file=stream)
    except OSError as error:  # as on a full disk
        error.filename = "standard error" if err else "standard output"
        raise


def report(error: Exception, line: str) -> None:
    """Prints the line of an error that does not end the command; with `-v`, the traceback before it."""
    show_traceback(error)
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
