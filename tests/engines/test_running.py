"""Runs that Ctrl-C breaks: in a thread for the main one, in place for others, with the exceptions of the work."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref

import pytest

from engines import running
from engines.running import Runner
from ribsr.base import interrupt


class Options:
    terminate = False


def work_until(options: Options, broken: list[bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not options.terminate and time.monotonic() < end:
        time.sleep(0.01)
    broken.append(options.terminate)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_sets_terminate_and_the_runner_goes_on() -> None:
    runner, options, broken = Runner(in_background=True), Options(), []
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        runner.run(options, lambda: work_until(options, broken))
    assert broken == [True]
    assert not options.terminate
    assert runner.run(options, lambda: 7) == 7
    runner.close()


@pytest.mark.usefixtures("interruptible")
def test_a_run_that_does_not_end_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "PATIENCE", 0.1)
    runner, options, released = Runner(in_background=True), Options(), threading.Event()
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        runner.run(options, lambda: released.wait(20))
    assert options.terminate
    assert runner.run(Options(), lambda: 7) == 7
    released.set()
    runner.close()


def test_exceptions_and_threads_are_those_of_the_caller() -> None:
    runner = Runner(in_background=True)
    error = MemoryError("none")

    def fails() -> None:
        raise error

    with pytest.raises(MemoryError) as caught:
        runner.run(Options(), fails)
    assert caught.value is error
    first, second = (runner.run(Options(), threading.get_ident) for _ in range(2))
    assert first == second != threading.get_ident()
    assert Runner(in_background=False).run(Options(), threading.get_ident) == threading.get_ident()
    seen: list[bool] = []
    other = threading.Thread(
        target=lambda: seen.append(runner.run(Options(), threading.get_ident) == threading.get_ident())
    )
    other.start()
    other.join()
    assert seen == [True]
    runner.close()
    runner.close()


def test_nothing_of_a_run_is_kept() -> None:
    class Picture:
        pass

    runner = Runner(in_background=True)
    made = runner.run(Options(), Picture)
    there = weakref.ref(made)
    del made
    time.sleep(0.1)
    gc.collect()
    assert there() is None
    runner.close()


def test_in_another_thread_the_watch_sets_terminate() -> None:
    options, broken = Options(), []
    thread = threading.Thread(target=lambda: Runner(True).run(options, lambda: work_until(options, broken)))
    thread.start()
    while not interrupt._at_once:
        time.sleep(0.01)
    for call in list(interrupt._at_once):
        call()
    thread.join()
    assert broken == [True]
    assert not interrupt._at_once
