"""The pool of results, over ordinary memory in the place of what a driver locks."""

from __future__ import annotations

import ctypes
import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from engines import driver, pinned
from engines.pinned import Pool

SHAPE = (1, 3, 4, 6)
SIZE = 4 * 3 * 4 * 6


class Locked:
    """What a driver would lock: `held` by address, and how often memory was asked for."""

    def __init__(self) -> None:
        self.held: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.asked = 0
        self.refuses = False

    def lock(self, size: int) -> int:
        self.asked += 1
        if self.refuses:
            raise driver.NoGPU("no more")
        buffer = ctypes.create_string_buffer(size)
        address = ctypes.addressof(buffer)
        self.held[address] = buffer
        return address

    def free(self, address: int) -> None:
        del self.held[address]


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> Locked:
    locked = Locked()
    monkeypatch.setattr(driver, "lock_memory", locked.lock)
    monkeypatch.setattr(driver, "free_locked", locked.free)
    return locked


def address(array: np.ndarray) -> int:
    return array.ctypes.data


def test_memory_is_used_again_once_the_last_view_is_gone(locked: Locked) -> None:
    pool = Pool()
    array = pool.array(SHAPE)
    place, view = address(array), array[0, 1:, ::2].T
    array[...] = 7
    del array
    other = pool.array(SHAPE)
    assert address(other) != place
    other[...] = 1
    assert (view == 7).all()
    del view
    gc.collect()
    assert address(pool.array(SHAPE)) == place
    assert locked.asked == 2


def test_arrays_are_as_any_other(locked: Locked) -> None:
    array = Pool().array(SHAPE)
    assert array.shape == SHAPE
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    assert array.flags.writeable


def test_what_it_lent_outlives_the_pool(locked: Locked) -> None:
    pool = Pool()
    array = pool.array(SHAPE)
    array[...] = 3
    pool.clear()
    del pool
    gc.collect()
    assert len(locked.held) == 1
    assert (array == 3).all()
    del array
    gc.collect()
    assert not locked.held


def test_clear_frees_what_nobody_holds(locked: Locked) -> None:
    pool = Pool()
    kept, dropped = pool.array(SHAPE), pool.array(SHAPE)
    place = address(kept)
    del dropped
    pool.clear()
    assert list(locked.held) == [place]


def test_a_smaller_result_does_not_take_much_larger_memory(locked: Locked) -> None:
    pool = Pool()
    for side, asked in ((40, 1), (30, 1), (19, 2)):  # each result is dropped at once
        pool.array((1, 3, side, 40))
        assert locked.asked == asked


def test_no_more_is_kept_than_it_may(locked: Locked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned, "KEPT", 2 * SIZE)
    pool = Pool()
    arrays = [pool.array(SHAPE) for _ in range(4)]
    del arrays
    pool.array(SHAPE)
    assert len(locked.held) == 2


def test_a_result_too_large_to_keep_is_in_ordinary_memory(locked: Locked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned, "KEPT", SIZE - 1)
    assert Pool().array(SHAPE).shape == SHAPE
    assert not locked.asked


def test_who_keeps_all_results_gets_ordinary_memory_after_a_while(
    locked: Locked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinned, "LENT", 2 * SIZE)
    pool = Pool()
    arrays = [pool.array(SHAPE) for _ in range(5)]
    assert len({address(array) for array in arrays}) == 5
    assert locked.asked == 2
    arrays.clear()
    assert address(pool.array(SHAPE)) in locked.held


def test_where_the_system_locks_no_memory(locked: Locked) -> None:
    locked.refuses = True
    pool = Pool()
    assert pool.array(SHAPE).shape == SHAPE
    locked.refuses = False
    assert address(pool.array(SHAPE)) in locked.held


def test_threads_never_share_memory(locked: Locked) -> None:
    pool = Pool()

    def hold(mark: int) -> bool:
        array = pool.array(SHAPE)
        array[...] = mark
        other = pool.array(SHAPE)
        other[...] = -1
        del other
        return bool((array == mark).all())

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(hold, range(400)))
    assert locked.asked <= 16
