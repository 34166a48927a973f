"""What TensorRT says: it returns None or False where something failed, and tells the reason to a logger only."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from engines.base import EngineError, OutOfMemory

T = TypeVar("T")

_NO_MEMORY = re.compile(
    r"Requested amount of GPU memory \(\d+ bytes\) could not be allocated\b|"
    r".*Error Code:? \d+: (OutOfMemory \(|Cuda (Runtime|Driver) "
    r"\((out of memory\.?|.*\b(cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY)\b.*)\)\.?$)"
)
"""Messages that say that GPU memory is exhausted. Others speak of memory, too: `Cuda Runtime (an illegal memory access
was encountered)` is no reason to try again with less."""

_NUMBER = re.compile(r"\d*:?")

LONGEST = 300
"""Characters of a reason that a line can hold."""


@dataclass(eq=False)
class Call:
    """The errors and warnings that TensorRT logged during one call, each in one line."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def reason(self) -> str:
        """The error that memory is exhausted, else the first."""
        reason = [*filter(_NO_MEMORY.match, self.errors), *self.errors, "TensorRT does not say why"][0]
        return reason if len(reason) <= LONGEST else reason[:LONGEST] + "…"

    @property
    def out_of_memory(self) -> bool:
        """The allocator's error names no reason in later versions: a warning says how much could not be had."""
        return any(map(_NO_MEMORY.match, (*self.errors, *self.warnings)))

    def failure(self, what: str) -> EngineError:
        """The error to raise: OutOfMemory, or another EngineError."""
        return (OutOfMemory if self.out_of_memory else EngineError)(f"{what} ({self.reason})")


_here = threading.local()
"""`call`: the one that this thread is in."""


class Log:
    """What a runtime or a builder of TensorRT reports to, for any number of threads. Prints nothing.

    `native` is what TensorRT takes. It calls it in the thread that called TensorRT, so what is said there belongs to
    that thread's call, whichever log hears it: TensorRT tells some things to the first logger of the process only.
    What a thread of TensorRT's own says belongs to the call that this log listens to, if that is the only one; if there
    are several, nobody can tell whose it is, and none gets it. prefix: what the errors of `checked` begin with.
    """

    def __init__(self, trt: Any, prefix: str = ""):
        log = self

        class Native(trt.ILogger):
            def log(self, severity: Any, msg: str) -> None:
                if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                    log._hear(msg, "errors")
                elif severity == trt.ILogger.Severity.WARNING:
                    log._hear(msg, "warnings")

        self._prefix = prefix
        self._calls: list[Call] = []
        self.native: Any = Native()

    def _hear(self, message: str, kind: str) -> None:
        text = " ".join(message.split())
        calls = self._calls.copy()  # other threads come and go
        call = getattr(_here, "call", None) or (calls[0] if len(calls) == 1 else None)
        if call is not None and not _NUMBER.fullmatch(text):  # 8.6 was seen to log a bare `1:`
            getattr(call, kind).append(text)

    def checked(self, what: str, function: Callable[..., T], *arguments: Any) -> T:
        """What a function of TensorRT returns. Raises EngineError or OutOfMemory where that is None or False: `what`
        failed, and TensorRT's reason."""
        with self.listening() as said:
            result = function(*arguments)
        if result is None or result is False:
            raise said.failure(self._prefix + what)
        return result

    @contextmanager
    def listening(self) -> Iterator[Call]:
        """Collects what TensorRT says during one call of this thread."""
        outer = getattr(_here, "call", None)
        call = _here.call = Call()
        self._calls.append(call)
        try:
            yield call
        finally:
            _here.call = outer
            self._calls.remove(call)
