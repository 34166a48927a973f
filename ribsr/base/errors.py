"""What all exceptions of this toolkit have in common: one line that says what is wrong, where, and what to do.

Messages quote files, and files may hold anything: `shown` and `printable` make it fit for a terminal.
"""

from __future__ import annotations

import re
import reprlib
from typing import Any


class RibsrError(Exception):
    """Something that the user can mend. Its message is one line that speaks for itself."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type's name where it has none; 300 characters at most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return clipped(lines[0] if lines else type(error).__name__, 300)


def reason_of(error: BaseException) -> str:
    """What went wrong, in one line, for a message that names the file itself: the words of system errors alone."""
    return getattr(error, "strerror", None) or first_line(error)


def clipped(text: str, most: int = 80) -> str:
    """`text`, its end left out where it is longer than that."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


_ACTING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What acts on a terminal instead of being shown: control characters, and marks that turn the direction of text."""


def printable(text: str) -> str:
    """`text` with escapes, such as \\x1b, instead of what would act on a terminal."""
    return _ACTING.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class _Repr(reprlib.Repr):
    """repr() of what a file holds: short, whatever its size is, and running no code of it."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring = 2, 60

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < 4096 else f"a number of {x.bit_length()} bits"

    def repr_instance(self, x: Any, level: int) -> str:
        if isinstance(x, bytes):
            return clipped(repr(x[:60]))
        return repr(x) if isinstance(x, (bool, float, type(None))) else f"<{type(x).__name__}>"


shown = _Repr().repr
"""What a message quotes of a value in a file."""
