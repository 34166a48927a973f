"""Results in memory that a GPU writes to at full speed (page-locked, "pinned"), used again once nobody holds them.

To lock memory takes longer than what it saves in one run, and so does ordinary memory that is new each time: the system
hands it out page by page while the result is copied.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from engines import driver

KEPT = 2**28
"""Bytes that a pool keeps while nobody uses them: two results of 4K. Larger results are in ordinary memory."""

LENT = 2**30
"""Bytes that it lends at a time: locked memory is lost to the rest of the system, and a caller may keep all results."""


class Pool:
    """Arrays for results, from any thread. What it lends outlives it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._returned: SimpleQueue[_Block] = SimpleQueue()  # whose `put` may interrupt any code of the same thread
        self._idle: list[_Block] = []  # the one used last is the last
        self._lent = 0

    def array(self, shape: Sequence[int]) -> np.ndarray:
        """A float32 array of any content. In ordinary memory if it is too large, or the system locks no more."""
        block = self._take(4 * math.prod(shape))
        return np.empty(shape, np.float32) if block is None else np.asarray(_Loan(block, shape, self._returned))

    def clear(self) -> None:
        """Frees what nobody holds."""
        with self._lock:
            self._collect()
            self._idle.clear()

    def _take(self, size: int) -> _Block | None:
        with self._lock:
            self._collect()
            fitting = [block for block in self._idle if size <= block.size <= 2 * size]
            if fitting:
                block = min(fitting, key=lambda block: block.size)
                self._idle.remove(block)
            elif size > KEPT or self._lent + size > LENT:
                return None
            else:
                try:
                    block = _Block(size)
                except driver.NoGPU:
                    return None
            self._lent += block.size
            return block

    def _collect(self) -> None:
        while True:
            try:
                block = self._returned.get_nowait()
            except Empty:
                break
            self._lent -= block.size
            self._idle.append(block)
        while sum(block.size for block in self._idle) > KEPT:
            del self._idle[0]


class _Block:
    """Locked memory, freed with the object."""

    def __init__(self, size: int):
        self.size = size
        self.address = driver.lock_memory(size)

    def __del__(self) -> None:
        if hasattr(self, "address"):
            driver.free_locked(self.address)


class _Loan:
    """What an array and its views keep alive: with the last of them the block goes back."""

    def __init__(self, block: _Block, shape: Sequence[int], returned: SimpleQueue[_Block]):
        self._block, self._returned = block, returned
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "shape": tuple(shape),
            "typestr": np.dtype(np.float32).str,
            "data": (block.address, False),
        }

    def __del__(self) -> None:
        self._returned.put(self._block)
