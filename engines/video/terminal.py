"""Progress of a video, for a person who waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_terminal() -> Iterator[Callable[[int, int | None], None]]:
    """Yields a `progress` for `enlarge_video`, which shows frames, frames/s and the time left; on terminals alone."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as display:
        task, start = display.add_task("", total=None), time.perf_counter()

        def show(done: int, count: int | None) -> None:
            rate = done / max(time.perf_counter() - start, 1e-3)
            of_all = "" if count is None else f" of {count}"
            display.update(task, completed=done, total=count, description=f"{done}{of_all} frames, {rate:.1f}/s")

        yield show
