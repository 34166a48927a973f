"""What TensorRT says: whose call it belongs to, and whether it means a lack of memory."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from engines.base import EngineError, OutOfMemory
from engines.trt.messages import LONGEST, Call, Log
from tests.engines.trt.tensorrt_fake import VERSIONS, fake_tensorrt


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest) -> Any:
    return fake_tensorrt(request.param)


def tell(log: Log, message: str, severity: str = "ERROR") -> None:
    """Logs as TensorRT does, in this thread."""
    log.native.log(log.native.module.ILogger.Severity[severity], message)


LACKING = (
    "1: [defaultAllocator.cpp::allocate::19] Error Code 1: Cuda Runtime (out of memory)",
    "Error[1]: [a.cpp::b::31] Error Code: 1: Cuda Driver (out of memory).",
    "Error Code 1: Cuda Runtime (cudaErrorMemoryAllocation)",
    "2: [executionContext.cpp::ExecutionContext::438] Error Code 2: OutOfMemory (no further information)",
    "2: [executionContext.cpp::ExecutionContext::438] Error Code 2: OutOfMemory (Requested amount of GPU memory "
    "(9 bytes) could not be allocated. There may not be enough free memory for allocation to succeed.)",
    "[executionContext.cpp::initializeExecutionContext::644] Error Code 2: OutOfMemory (Requested size was 9 bytes.)",
    "Requested amount of GPU memory (9 bytes) could not be allocated. There may not be enough free memory for "
    "allocation to succeed.",
)

OTHERS = (
    "1: [runner.cpp::execute::386] Error Code 1: Cuda Runtime (an illegal memory access was encountered)",
    "1: [a.cpp::b::1] Error Code 1: Cuda Runtime (misaligned address)",
    "[a.cpp::b::1] Error Code 1: Cuda Runtime (In allocate at /_src/common/dispatch/defaultAllocator.cpp:59)",
    "Error Code 10: Internal Error (Could not find any implementation for node out of memory.)",
    "IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find any implementation for node "
    "{ForeignNode[a...b]}.)",
    "node OutOfMemory is wrong",
    "node a (Requested amount of GPU memory (9 bytes) could not be allocated)",
    "the memory format of tensor x is not supported",
)


@pytest.mark.parametrize("message", LACKING)
def test_what_means_that_memory_is_lacking(message):
    assert isinstance(Call([message]).failure("x"), OutOfMemory)


@pytest.mark.parametrize("message", OTHERS)
def test_what_only_speaks_of_memory(message):
    error = Call([message]).failure("x2.plan: failed")
    assert type(error) is EngineError
    assert str(error) == f"x2.plan: failed ({message})"


def test_the_allocator_of_later_versions_says_why_in_a_warning(trt):
    log = Log(trt)
    with log.listening() as said:
        tell(log, "Error Code 1: Cuda Runtime (In allocate at /_src/common/dispatch/defaultAllocator.cpp:59)")
        tell(log, "Requested amount of GPU memory (9 bytes) could not be allocated. …", "WARNING")
    assert said.out_of_memory


def test_errors_and_warnings_are_kept_apart_on_one_line_each(trt):
    log = Log(trt)
    with log.listening() as said:
        tell(log, "nothing", "INFO")
        tell(log, "careful", "WARNING")
        tell(log, "first\nline")
        tell(log, "second", "INTERNAL_ERROR")
    tell(log, "after the call")
    assert said.errors == ["first line", "second"]
    assert said.warnings == ["careful"]
    assert said.reason == "first line"
    with log.listening() as said:
        pass
    assert said.reason == "TensorRT does not say why"


def test_the_reason_is_the_lack_of_memory_or_else_the_first_error_that_says_anything(trt):
    log = Log(trt)
    with log.listening() as said:
        tell(log, "1: ")
        assert (said.reason, said.errors) == ("TensorRT does not say why", [])
        tell(log, "2: [graph.cpp::f::1] Error Code 2: Internal Error (Assertion failed.)")
        assert "Assertion failed" in said.reason
        tell(log, "2: [virtualMemoryBuffer.cpp::f::1] Error Code 2: OutOfMemory (no further information)")
        assert "OutOfMemory" in said.reason


def test_a_call_within_a_call_leaves_the_outer_one_listening(trt):
    log, other = Log(trt), Log(trt)
    with log.listening() as outer:
        with other.listening() as inner:
            tell(other, "inner")
        tell(other, "outer")
    assert inner.errors == ["inner"]
    assert outer.errors == ["outer"]


def test_long_messages_are_cut():
    assert Call(["x" * 999]).reason == "x" * LONGEST + "…"


def test_what_a_thread_is_told_belongs_to_its_own_call(trt):
    """Also where another thread is in a call, and where the message comes to the log of another engine."""
    log, other, meet = Log(trt), Log(trt), threading.Barrier(2)

    def call(name: str, teller: Log) -> list[str]:
        with log.listening() as said:
            meet.wait(10)
            tell(teller, f"{name} failed")
            meet.wait(10)
        return said.errors

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(call, "ab", (log, other))) == [["a failed"], ["b failed"]]
    with other.listening() as said:
        tell(log, "c failed")
    assert said.reason == "c failed"


def in_another_thread(log: Log, message: str) -> None:
    thread = threading.Thread(target=tell, args=(log, message))
    thread.start()
    thread.join()


def test_threads_of_tensorrt_speak_for_the_only_call(trt):
    """As those of a builder do; of two calls, neither is blamed."""
    log, running, ended = Log(trt), threading.Event(), threading.Event()

    def call() -> Any:
        with log.listening() as said:
            running.set()
            ended.wait(10)
        return said

    with log.listening() as said:
        in_another_thread(log, "Could not find any implementation for node Conv_7")
    assert said.reason == "Could not find any implementation for node Conv_7"
    with ThreadPoolExecutor(1) as pool, log.listening() as said:
        second = pool.submit(call)
        running.wait(10)
        in_another_thread(log, "whose?")
        ended.set()
        assert second.result().errors == said.errors == []
