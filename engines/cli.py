"""What all commands of the toolkit share: one-line errors, `-v`, and the options of engines."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


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
        verbose = ctx.params.pop("verbose")
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except Exception as error:
            if verbose:
                raise
            raise click.ClickException(message(error)) from error


def message(error: Exception) -> str:
    """One line for the user. Types that the toolkit raises on purpose speak for themselves; others are named."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    if isinstance(error, MemoryError):
        return "out of memory; give smaller pictures"
    if isinstance(error, (OSError, RuntimeError, ValueError)) and text:
        return text
    named = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{named} (run again with -v for a traceback)"


class FiniteRange(click.FloatRange):
    """A number in a range; neither infinity nor NaN, which Python reads as numbers, too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class Size(click.ParamType):
    """Two sides in pixels, both at least 1, as a pair in the order that `name` gives: `WxH` or `HxW`."""

    def __init__(self, name: str = "WxH"):
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([1-9]\d*)[xX×]([1-9]\d*)", value)
        if not match:
            words, example = ("WIDTHxHEIGHT", "640x360") if self.name == "WxH" else ("HEIGHTxWIDTH", "360x640")
            self.fail(f"{value!r} is not {words} in pixels; give {self.name}, e.g. {example}", param, ctx)
        return int(match[1]), int(match[2])


def engine_options(command: F) -> F:
    """Adds the options that `engines.open_engine` takes, under its names."""
    options = [
        click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda"]),
            default="auto",
            show_default=True,
            help="Where to run; cuda fails rather than fall back to the CPU.",
        ),
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads; the runtime decides if not given."),
        click.option("--attention", help="PyTorch attention backend of checkpoints: auto, reference, sdpa, flash, …"),
        click.option("--model", metavar="NAME", help="Which network an authors' checkpoint holds, e.g. sst-l+."),
        click.option(
            "--config",
            type=click.Path(exists=True, dir_okay=False),
            help="Instead of --model: own JSON, or the authors' option YAML.",
        ),
        click.option("--cuda-graphs", is_flag=True, help="TensorRT plans: launch repeated sizes as CUDA graphs."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def tile_option(command: F) -> F:
    """Adds `tile`, given as WxH and handed on as (H, W), as `engines.Tiled` takes it."""
    return click.option(
        "--tile",
        type=Size(),
        callback=lambda context, option, size: size and size[::-1],
        help="Cut larger pictures into tiles of at most this size, for less memory and for sizes a plan lacks.",
    )(command)
