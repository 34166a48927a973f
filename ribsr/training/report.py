"""Who watches a training run."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ribsr.base.errors import printable


class Report:
    """Tells a person on stderr: a progress bar on a terminal, lines elsewhere.

    steps: of the whole run; None: it says nothing.
    """

    def __init__(self, steps: int | None = None):
        self._steps = steps or 0
        self._console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True, quiet=steps is None)
        columns = (TextColumn("step {task.completed}/{task.total}"), BarColumn(), TimeRemainingColumn())
        disable = steps is None or not self._console.is_terminal
        self._bar = Progress(*columns, TextColumn("{task.description}"), console=self._console, disable=disable)
        self._task = self._bar.add_task("", total=steps)

    def __enter__(self) -> Report:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """Something worth a line."""
        self._console.print(printable(line))

    def progress(self, step: int, loss: float, rate: float) -> None:
        """`step` updates are done; mean loss and updates per second since the last call."""
        line = f"loss {loss:.5f}, {rate:.2f} steps/s"
        self._bar.update(self._task, completed=step, description=line)
        if not self._console.is_terminal:
            minutes = round((self._steps - step) / rate / 60)
            self._console.print(f"step {step}/{self._steps}: {line}, {minutes // 60}:{minutes % 60:02} h left")
