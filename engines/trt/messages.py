"""What TensorRT says: it returns None or False where something failed, and tells the reason to a logger only."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from engines.base import EngineError, OutOfMemory

_SCHEME = re.compile(r"Error Code:? (?P<code>\d+): (?P<kind>[\w ]+) \((?P<detail>.*)\)\.?$")
_NO_CUDA_MEMORY = re.compile(r"out of memory\.?|.*\b(cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY)\b.*")
_NOT_ALLOCATED = re.compile(r"Requested amount of GPU memory \(\d+ bytes\) could not be allocated\b")
_NUMBER = re.compile(r"\d*:?")

LONGEST = 300
"""Characters of a reason that a line can hold."""


@dataclass(frozen=True)
class Complaint:
    """One error or warning: `… Error Code 1: Cuda Runtime (out of memory)` has the kind `Cuda Runtime` and the detail
    `out of memory`. Those that do not keep to this scheme have only a text."""

    text: str
    kind: str = ""
    detail: str = ""

    @classmethod
    def parse(cls, message: str) -> Complaint:
        text = " ".join(message.split())
        found = _SCHEME.search(text)
        return cls(text, found["kind"], found["detail"]) if found else cls(text)

    @property
    def out_of_memory(self) -> bool:
        """Whether it says that GPU memory is exhausted. Other errors speak of memory, too: `Cuda Runtime (an illegal
        memory access was encountered)` is no reason to try again with less."""
        if self.kind in ("Cuda Runtime", "Cuda Driver"):
            return bool(_NO_CUDA_MEMORY.fullmatch(self.detail))
        return self.kind == "OutOfMemory" or bool(_NOT_ALLOCATED.match(self.text))

    def __str__(self) -> str:
        return self.text if len(self.text) <= LONGEST else self.text[:LONGEST] + "…"


@dataclass(eq=False)
class Call:
    """What TensorRT complained of during one call."""

    errors: list[Complaint] = field(default_factory=list)
    warnings: list[Complaint] = field(default_factory=list)

    @property
    def telling(self) -> list[Complaint]:
        """The errors that say anything: 8.6 was seen to log a bare `1:`."""
        return [error for error in self.errors if not _NUMBER.fullmatch(error.text)]

    @property
    def reason(self) -> str:
        """The error that memory is exhausted, else the first."""
        named = [error for error in self.telling if error.out_of_memory] or self.telling
        return str(named[0]) if named else "TensorRT does not say why"

    @property
    def out_of_memory(self) -> bool:
        """The allocator's error names no reason in later versions: a warning says how much could not be had."""
        return any(complaint.out_of_memory for complaint in (*self.errors, *self.warnings))

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
    are several, nobody can tell whose it is, and none gets it.
    """

    def __init__(self, trt: Any):
        log = self

        class Native(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                    log._hear(msg, "errors")
                elif severity == trt.ILogger.Severity.WARNING:
                    log._hear(msg, "warnings")

        self._calls: list[Call] = []
        self.native: Any = Native()

    def _hear(self, message: str, kind: str) -> None:
        calls = self._calls.copy()  # other threads come and go
        call = getattr(_here, "call", None) or (calls[0] if len(calls) == 1 else None)
        if call is not None:
            getattr(call, kind).append(Complaint.parse(message))

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
