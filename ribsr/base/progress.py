"""What takes long shows on a terminal what it is at, since when, and how long it will still take.

All of it goes to stderr, and is gone when the work is done. Where stderr is no terminal nothing is shown, whatever
FORCE_COLOR says: files and pipes get what a command prints, and no more.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ribsr.base.errors import printable

if TYPE_CHECKING:
    from rich.progress import ProgressColumn
    from typing_extensions import Self


class Progress:
    """The phases of some work, one after the other. A context manager; two at a time would write over each other.

    name, total: of the first phase, as `phase` takes them. shown: False for what nobody is to see, on terminals either.
    All methods may be called from any thread. `start`, `step` and `finish` are what a TensorRT progress monitor calls:
    parts of a phase, each with a bar of its own.
    """

    def __init__(self, name: str = "", total: float | None = None, *, shown: bool = True):
        from rich.console import Console
        from rich.progress import Progress as Display

        self.cancelled = False
        self.shown = shown and sys.stderr.isatty()
        self.console = Console(stderr=True, highlight=False, markup=False)
        """What is printed on it while the display is on stands above it."""
        self._lock = threading.RLock()
        self._parts: dict[str, Any] = {}
        self._display = Display(
            *_columns(),
            console=self.console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not self.shown,
        )
        self._phase = self._begin(name, total)

    def __enter__(self) -> Self:
        self._display.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._display.stop()

    def phase(self, name: str, total: float | None = None, done: float = 0.0) -> None:
        """The work goes on to `name`. total: how much work that is, in whatever unit; None where nobody knows, and
        then it is told since when it goes on, but not how long it will. done: how much of it was done before."""
        with self._lock:
            self._display.remove_task(self._phase)
            self._phase = self._begin(name, total, done)

    def _begin(self, name: str, total: float | None, done: float = 0.0) -> Any:
        self._began, self._done = time.monotonic(), done
        return self._display.add_task(printable(name), total=total, completed=done, before=done, reached=0.0)  # pyright: ignore[reportArgumentType] (whole numbers are declared)

    def advance(self, amount: float = 1) -> None:
        """So much more of the phase is done."""
        with self._lock:
            self.reach(self._done + amount)

    def reach(self, done: float, total: float | None = None, name: str | None = None) -> None:
        """So much of the phase is done in all. total, name: where they have changed."""
        with self._lock:
            self._done = done
            what = None if name is None else printable(name)  # None leaves the rest as it is
            reached = time.monotonic() - self._began
            self._display.update(self._phase, completed=done, total=total, description=what, reached=reached)

    def aside(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """`say`, for lines that are printed while the display is on: they stand above it."""

        def said(line: str) -> None:
            shown = self._display.live.is_started
            self._display.stop()
            say(line)
            if shown:
                self._display.start()

        return said

    def cancel(self) -> None:
        """Tells TensorRT at its next step to give up."""
        self.cancelled = True

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._parts[name] = self._display.add_task(f"  {printable(name)}", total=steps, before=0.0, reached=0.0)

    def step(self, name: str, index: int) -> bool:
        with self._lock:
            if name in self._parts:
                self._display.update(self._parts[name], completed=index + 1)
        return not self.cancelled

    def finish(self, name: str) -> None:
        with self._lock:
            if name in self._parts:
                self._display.remove_task(self._parts.pop(name))


def time_left(elapsed: float, reached: float, share: float) -> float | None:
    """Seconds, if the rest goes as fast as the share (0 to 1) did that was done after `reached` seconds; it counts down
    between two steps, which may be minutes apart. None where nothing is done, or all."""
    return max(0.0, reached / share - elapsed) if 0 < share < 1 else None


def clock(seconds: float) -> str:
    """`0:07`, `12:30`, `1:02:03`."""
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{left:02}" if minutes >= 60 else f"{minutes}:{left:02}"


def _columns() -> list[ProgressColumn]:
    from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Times(ProgressColumn):
        """For how long, and for how much longer."""

        def render(self, task: Task) -> Text:
            elapsed, before = task.elapsed or 0.0, task.fields["before"]
            share = (task.completed - before) / (task.total - before) if task.total and task.total > before else 0.0
            left = time_left(elapsed, task.fields["reached"], share)
            return Text(clock(elapsed) + ("" if left is None else f", {clock(left)} left"), "progress.elapsed")

    name = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
    return [SpinnerColumn(), name, BarColumn(bar_width=20), Times()]
