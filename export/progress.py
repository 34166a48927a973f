"""Signs of life during what takes long: on a terminal a live display, elsewhere a line now and then.

Everything goes to stderr. TensorRT 10 and later report phases and steps; 8.6 says nothing while it builds, so there it
is the phase and the time that show that something goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
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
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Display

        self.cancelled = False
        self._name = ""
        self._began = self._said = time.monotonic()
        self._lock = threading.Lock()
        self._steps: dict[str, Any] = {}
        console = Console(stderr=True)
        text, bar, counts = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        self._display = Display(
            *(SpinnerColumn(), text, bar, counts, TimeElapsedColumn()),
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not console.is_terminal,
        )
        self._phase = self._display.add_task("", total=None)

    def __enter__(self) -> Self:
        self._display.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._display.stop()

    def phase(self, name: str) -> None:
        """The work goes on to `name`."""
        self._name = name
        self._began = self._said = time.monotonic()
        self._display.reset(self._phase, description=name)

    def tick(self) -> None:
        """To be called every now and then; prints the line that is due where there is no terminal."""
        now = time.monotonic()
        if self._display.disable and now - self._said >= INTERVAL:
            self._said = now
            click.echo(f"{self._name}: {now - self._began:.0f} s", err=True)

    def aside(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """`say`, for lines that are printed while the display is on: they stand above it."""

        def said(line: str) -> None:
            self._display.stop()
            say(line)
            self._display.start()

        return said

    def cancel(self) -> None:
        """Tells TensorRT at its next step to give up."""
        self.cancelled = True

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._steps[name] = self._display.add_task(f"  {name}", total=steps)

    def step(self, name: str, index: int) -> bool:
        with self._lock:
            if name in self._steps:
                self._display.update(self._steps[name], completed=index + 1)
        return not self.cancelled

    def finish(self, name: str) -> None:
        with self._lock:
            if name in self._steps:
                self._display.remove_task(self._steps.pop(name))
