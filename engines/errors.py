"""The exceptions that engines raise."""

from __future__ import annotations


class EngineError(RuntimeError):
    """A model or picture that cannot be opened, run or written; one line: what is wrong, where, what to do."""


class OutOfMemory(EngineError):
    """An input too large for the memory there is; a smaller one may do."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type's name where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
