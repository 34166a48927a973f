"""Ctrl-C and SIGTERM end a command within two seconds, whatever it is doing.

Python raises KeyboardInterrupt in the main thread, between two instructions. An operator of PyTorch, a compiler or a
pool of threads that is waited for may take minutes. So a thread of its own is told of the signal by the system
(`signal.set_wakeup_fd`), gives the main thread GRACE seconds to end by itself, and ends the process then: processes
that it started are killed, temporary files removed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ribsr.base import files

GRACE = 1.0
"""Seconds from the signal to the end."""

LONGEST = 30.0
"""Seconds that `at_last` may take: to write a state is worth more than a prompt end."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_at_once: list[Callable[[], Any]] = []
_at_last: list[Callable[[], Any]] = []
_arrived: list[int] = []
_said = threading.Event()


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


def exit_code(error: KeyboardInterrupt) -> int:
    """What shells say of a program that a signal has ended."""
    return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)


def arrived() -> int | None:
    """The first signal that has come since `watch`, if any."""
    return _arrived[0] if _arrived else None


@contextmanager
def at_once(call: Callable[[], Any]) -> Iterator[None]:
    """Within it `call()` is made in another thread as soon as a signal comes. Without `watch`, it is not."""
    _at_once.append(call)
    try:
        yield
    finally:
        _at_once.remove(call)


@contextmanager
def at_last(call: Callable[[], Any]) -> Iterator[None]:
    """Within it `call()` is made in another thread before a process ends whose main thread has not done so in time."""
    _at_last.append(call)
    try:
        yield
    finally:
        _at_last.remove(call)


def watch() -> None:
    """Begins to look out for signals: once, in the main thread, by programs alone. On Windows it does nothing."""
    if os.name != "posix" or threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _raise_terminated)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    threading.Thread(target=_wait, args=(reading,), name="interrupt", daemon=True).start()


def _raise_terminated(*_: object) -> None:
    raise Terminated


def _wait(reading: int) -> None:
    while (number := os.read(reading, 1)[0]) not in SIGNALS:
        pass
    _arrived.append(number)
    for call in list(_at_once):
        _in_time(call, GRACE)
    time.sleep(GRACE)
    for call in list(_at_last):
        _in_time(call, LONGEST)
    say_aborted()
    leave(128 + number)


def say_aborted() -> None:
    """The last line, on stderr, once."""
    if _said.is_set():
        return
    _said.set()
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # progress bars hide it
    _in_time(lambda: print(f"{show_cursor}\nAborted!", file=sys.stderr, flush=True), 0.2)


def leave(code: int) -> None:
    """Ends the process without waiting for anything: threads and processes that it started, or a reader of its output.

    Nothing else of it is left, unless its threads go on writing until the last moment.
    """
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:  # `timeout` sends SIGTERM twice
            signal.signal(number, signal.SIG_IGN)
    _in_time(_flush, 0.2)
    _end_children()
    for temporary in list(files.TEMPORARY):
        files.remove(temporary)
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()


def _in_time(call: Callable[[], Any], seconds: float) -> None:
    """call(), whatever becomes of it, for so many seconds at most."""

    def quietly() -> None:
        with suppress(Exception):
            call()

    thread = threading.Thread(target=quietly, daemon=True)
    thread.start()
    thread.join(seconds)


def _end_children() -> None:
    """Ends the processes that this one started, and theirs, wherever they are known (Linux)."""
    for number, pause in ((signal.SIGTERM, 0.1), (signal.SIGKILL, 0.0)):  # compilers remove their files at the first
        children = _descendants()
        for child in children:
            with suppress(OSError):
                os.kill(child, number)
        if children:
            time.sleep(pause)


def _descendants() -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):  # it has ended
            parent = int(stat.read_bytes().rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found, looked_at = [os.getpid()], 0
    while looked_at < len(found):
        found += children.get(found[looked_at], [])
        looked_at += 1
    return found[1:]
