"""Who watches a training run."""

from __future__ import annotations

from ribsr.base.errors import printable
from ribsr.base.progress import Progress


class Report:
    """Tells a person on stderr: a progress bar on a terminal, lines elsewhere.

    steps: of the whole run; None: it says nothing.
    """

    def __init__(self, steps: int | None = None):
        self._steps, self._begun = steps, False
        self._bar = Progress("training", steps, shown=steps is not None)

    def __enter__(self) -> Report:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.__exit__(*error)

    def say(self, line: str) -> None:
        """Something worth a line."""
        if self._steps is not None:
            self._bar.console.print(printable(line), soft_wrap=True)

    def progress(self, step: int, loss: float, rate: float) -> None:
        """`step` updates are done; mean loss and updates per second since the last call."""
        if self._steps is None:
            return
        line = f"step {step}/{self._steps}: loss {loss:.5f}, {rate:.2f} steps/s"
        if self._begun:
            self._bar.reach(step, name=line)
        else:  # from where an earlier run has come to, perhaps
            self._bar.phase(line, self._steps, step)
            self._begun = True
        if not self._bar.shown:
            minutes = round((self._steps - step) / rate / 60)
            self.say(f"{line}, {minutes // 60}:{minutes % 60:02} h left")
