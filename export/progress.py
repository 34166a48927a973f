"""Signs of life during what takes long: on a terminal a live display, elsewhere a line now and then.

Everything goes to stderr. TensorRT 10 and later report phases and steps; 8.6 says nothing while it builds, so there it
is the phase and the time that show that something goes on.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from typing_extensions import Self

INTERVAL = 30.0
"""Seconds between lines where there is no terminal."""


class Progress:
    """Shows which phase of the work is on and for how long. A context manager; `phase` names the next phase.

    `start`, `step` and `finish` are what a TensorRT progress monitor calls, from any thread.
    """

    def __init__(self) -> None:
        self.cancelled = False
        self._name = ""
        self._began = self._said = time.monotonic()
        self._lock = threading.Lock()
        self._steps: dict[str, Any] = {}
        self._display = _display() if sys.stderr.isatty() else None
        self._phase = None

    def __enter__(self) -> Self:
        if self._display is not None:
            self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.stop()

    def phase(self, name: str) -> None:
        """The work goes on to `name`."""
        self._name, self._began = name, time.monotonic()
        self._said = self._began
        if self._display is not None:
            if self._phase is not None:
                self._display.remove_task(self._phase)
            self._phase = self._display.add_task(name, total=None)

    def tick(self) -> None:
        """To be called every now and then; prints the line that is due where there is no terminal."""
        now = time.monotonic()
        if self._display is None and now - self._said >= INTERVAL:
            self._said = now
            click.echo(f"{self._name}: {now - self._began:.0f} s", err=True)

    def aside(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """`say`, for lines that are printed while the display is on: they stand above it."""

        def said(line: str) -> None:
            if self._display is None:
                return say(line)
            self._display.stop()
            say(line)
            self._display.start()
            return None

        return said

    def cancel(self) -> None:
        """Tells TensorRT at its next step to give up."""
        self.cancelled = True

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            if self._display is not None:
                self._steps[name] = self._display.add_task(f"  {name}", total=steps)

    def step(self, name: str, index: int) -> bool:
        with self._lock:
            if name in self._steps and self._display is not None:
                self._display.update(self._steps[name], completed=index + 1)
        return not self.cancelled

    def finish(self, name: str) -> None:
        with self._lock:
            if name in self._steps and self._display is not None:
                self._display.remove_task(self._steps.pop(name))


def _display() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Display

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Display(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False)
