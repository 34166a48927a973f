"""What all exceptions of this toolkit have in common: one line that says what is wrong, where, and what to do."""

from __future__ import annotations


class RibsrError(Exception):
    """Something that the user can mend. Its message is one line that speaks for itself."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type's name where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
