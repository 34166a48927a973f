"""A process that does what may hang or die; it is started anew then.

What is printed meanwhile, by libraries in C, too, goes to a file, which is looked at: a message is one line.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

MEMORY = 6 * 2**30
"""Bytes of addresses that it may have, where the system can say so."""


class Worker:
    """A context manager."""

    def __init__(self, timeout: float = 60) -> None:
        self._timeout = timeout
        self._printed = tempfile.NamedTemporaryFile()  # noqa: SIM115 (closed with this object)
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._printed.name), daemon=True)
        self._process.start()
        theirs.close()

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(*arguments), which must be picklable.

        Raises WorkerError if the process dies, or takes longer than `timeout` seconds, and for any exception.
        """
        self._pipe.send((function, arguments))
        try:
            if not self._pipe.poll(self._timeout):
                raise WorkerError(f"hung for {self._timeout} s")
            failure, result = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode
            self._start()
            raise WorkerError(f"its process died with {code}") from None
        except WorkerError:
            self._process.kill()
            self._process.join()
            self._start()
            raise
        if failure:
            raise WorkerError(failure)
        return result

    def printed(self) -> str:
        """What was printed since the last call of this."""
        text = Path(self._printed.name).read_text(errors="replace")
        os.truncate(self._printed.name, 0)
        return text

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()
        self._printed.close()


class WorkerError(Exception):
    """What went wrong in the process, in a few lines."""


def _work(pipe: Connection, printed: str) -> None:
    with suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    file = os.open(printed, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    with suppress(EOFError):
        while True:
            function, arguments = pipe.recv()
            try:
                answer = "", function(*arguments)
            except BaseException:  # noqa: BLE001 (whatever it is, it is the answer)
                answer = traceback.format_exc(limit=-4), None
            pipe.send(answer)
