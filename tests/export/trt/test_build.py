"""The build: its timing cache, its signs of life, and how it ends early."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from export.trt import build as trt_build
from tests.export.trt.played import failed, invoke, timing_cache, written


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (["Could not find any implementation for node Conv_7"], "Could not find any implementation for node Conv_7"),
        (  # TensorRT 8.6.0 on an H200 with 600 MiB left
            ["1: ", "1: [caskUtils.cpp::createCaskHardwareInfo::858] Error Code 1: Cask (no further information)"],
            "1: [caskUtils.cpp::createCaskHardwareInfo::858] Error Code 1: Cask (no further information)",
        ),
    ],
)
def test_build_that_fails_says_why_and_how_much_memory_there_is(gpu, here, said, reason):
    def fails(self: Any, network: Any, config: Any) -> None:
        (log,) = (made for made in gpu.trt.made if isinstance(made, gpu.trt.ILogger))
        for message in said:
            log.log(gpu.trt.ILogger.Severity.ERROR, message)

    gpu.trt.behaviour["Builder.build_serialized_network"] = fails
    assert f"cannot build the engine ({reason}); 590 MiB of GPU memory are free" in failed(invoke(), here)


def test_timing_cache_is_kept_for_this_tensorrt_and_gpu(gpu, here):
    def caches() -> list[bytes]:
        return [args[0] for name, args in gpu.trt.calls if name == "IBuilderConfig.create_timing_cache"]

    assert invoke("--fp16").exit_code == 0
    assert invoke("--fp16").exit_code == 0
    assert caches() == [b"", b"", b"timings"]
    (file,) = (here / "cache" / "ribsr").iterdir()
    assert file.name == f"tensorrt-{gpu.trt.__version__}-NVIDIA-H100-80GB.timing"
    assert invoke("--fp16", "--timing-cache", "cache/own").exit_code == 0
    assert Path("cache/own").read_bytes() == b"timings"


@pytest.mark.parametrize("made", [None, b""])
def test_damaged_timing_cache(gpu, here, made):
    """10 and 11 refuse it; 8.6 makes an empty one of it. The toolkit's own is replaced, a file of the user's is not."""
    assert invoke("--fp16").exit_code == 0
    (own,) = (here / "cache" / "ribsr").iterdir()
    own.write_bytes(b"nonsense")
    Path("mine").write_bytes(b"nonsense")
    gpu.trt.behaviour["IBuilderConfig.create_timing_cache"] = lambda self, data: (
        None if data and made is None else timing_cache(b"")
    )
    result = invoke("--fp16")
    assert result.exit_code == 0, result.output
    assert f"{own}: is no timing cache of this TensorRT and GPU; it is not used, and replaced" in result.output
    assert own.read_bytes() == b"timings"
    result = invoke("--fp16", "--timing-cache", "mine")
    assert result.exit_code == 1
    assert "Error: mine: is no timing cache of this TensorRT and GPU; name another file, or remove it" in result.output
    assert Path("mine").read_bytes() == b"nonsense"


def test_full_disk_leaves_nothing(gpu, here, monkeypatch):
    def full(self: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "No space left on device" in failed(invoke("--fp16"), here)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_stops_the_build_and_leaves_nothing(gpu, here, monkeypatch):
    """TensorRT 10 and later are told by their progress monitor; 8.6 cannot be, and is not waited for."""
    released, stopped = threading.Event(), []

    def build(self: Any, network: Any, config: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        monitor = getattr(config, "progress_monitor", None)
        if monitor is None:
            released.wait(20)
            return
        monitor.phase_start("Building Engine", None, 10**6)
        for _ in range(2000):
            if not monitor.step_complete("Building Engine", 1):
                stopped.append(True)
                return
            time.sleep(0.01)

    gpu.trt.behaviour["Builder.build_serialized_network"] = build
    monkeypatch.setattr(trt_build, "CANCEL_SECONDS", 10.0)
    result = invoke("--fp16")
    released.set()
    assert result.exit_code == 130
    assert written(here) == []
    assert bool(stopped) == (not gpu.trt.__version__.startswith("8."))


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_is_not_lost_in_tensorrt(gpu, here, monkeypatch):
    """While 8.6 reads the graph it calls its logger in Python, and swallows what that raises."""
    read = gpu.trt.behaviour["OnnxParser.parse"]

    def swallows(self: Any, model: bytes) -> bool:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.0)
        except KeyboardInterrupt:
            pass
        return read(self, model)

    gpu.trt.behaviour["OnnxParser.parse"] = swallows
    assert invoke("--fp16").exit_code == 130
    assert written(here) == []
