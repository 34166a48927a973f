"""Runs of a session that Ctrl-C can break: the main thread waits while another one works."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any, TypeVar

from ribsr.base import interrupt

T = TypeVar("T")

Job = tuple["Future[Any]", Callable[[], Any]]

PATIENCE = 0.7
"""Seconds that a run has to notice that it is to end: ONNX Runtime and OpenVINO look between two operators."""


class Runner:
    """Runs work that ends early once `options.terminate` is set, as ONNX Runtime's RunOptions have it.

    in_background: what the main thread asks for is done in a thread of the runner's own, the same one for all, so that
    KeyboardInterrupt reaches the caller. Otherwise, and for other threads, which no signal reaches, the caller's
    thread does it, and a command's watch ends it (`interrupt.at_once`). Exceptions are those of the work.
    """

    def __init__(self, in_background: bool):
        self._in_background = in_background
        self._jobs: SimpleQueue[Job | None] | None = None

    def run(self, options: Any, work: Callable[[], T]) -> T:
        if not self._in_background or threading.current_thread() is not threading.main_thread():
            with interrupt.at_once(lambda: setattr(options, "terminate", True)):
                return work()
        if self._jobs is None:
            self._jobs = SimpleQueue()
            threading.Thread(target=_serve, args=(self._jobs,), name="runner", daemon=True).start()
        future: Future[T] = Future()
        self._jobs.put((future, work))
        try:
            return future.result()
        except KeyboardInterrupt:
            options.terminate = True
            if not wait([future], PATIENCE).done:
                self.close()  # its thread is left alone with the run
            options.terminate = not future.done()
            raise

    def close(self) -> None:
        """Ends the thread, once it is done; the next run starts another one."""
        jobs, self._jobs = self._jobs, None
        if jobs is not None:
            jobs.put(None)


def _serve(jobs: SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        future, work = job
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 (raised again where it is waited for)
            future.set_exception(error)
        del job, future, work  # and with them the pictures
