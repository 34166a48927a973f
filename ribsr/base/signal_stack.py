"""A thread's alternate signal stack (sigaltstack), kept from libraries that put their own in its place.

Python's signal handlers run on it. A library that frees its stack in another thread than the one in which it set it,
as OpenVINO does, leaves that one with memory that is gone: the next Ctrl-C ends the process by SIGSEGV.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class Stack(ctypes.Structure):
    """stack_t of Linux."""

    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept() -> Iterator[None]:
    """The calling thread has its signal stack back afterwards; does nothing elsewhere than on Linux."""
    if sys.platform != "linux":
        yield
        return
    before = current()
    try:
        yield
    finally:
        ctypes.CDLL(None).sigaltstack(ctypes.byref(before), None)


def current() -> Stack:
    """The calling thread's, on Linux; its `sp` is None if it has none."""
    found = Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found
