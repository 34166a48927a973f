"""The GPU's clocks, of a driver and an NVML that are played here."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from engines import driver
from engines.base import Description
from tools import _chips


class NVMLError(Exception):
    pass


def played(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    def power(gpu: str) -> int:
        raise NVMLError("Not Supported")

    functions = {
        "NVMLError": NVMLError,
        "NVML_CLOCK_SM": 1,
        "NVML_CLOCK_MEM": 2,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByPciBusId": lambda bus: {b"0000:1B:00.0": "gpu"}[bus],
        "nvmlDeviceGetClockInfo": lambda gpu, kind: {1: 1980, 2: 3201}[kind],
        "nvmlDeviceGetTemperature": lambda gpu, sensor: 41,
        "nvmlDeviceGetPowerUsage": power,
    }
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**{**functions, **changes}))
    monkeypatch.setattr(driver, "pci_bus_id", lambda: "0000:1B:00.0")


def described(device: str) -> Description:
    return Description("tiny", 2, ((4, 4),), "fp16", "kernel", "0.1.0", "", "a.plan", "tensorrt", "10", device)


def test_clocks_are_those_of_the_gpu_that_cuda_names(monkeypatch: pytest.MonkeyPatch) -> None:
    played(monkeypatch)
    told = {"sm_mhz": 1980, "memory_mhz": 3201, "temperature_c": 41, "power_w": None}
    assert _chips.clocks(described("cuda:0 NVIDIA H200")) == told
    assert _chips.clocks(described("CUDAExecutionProvider")) == told
    assert _chips.clocks(described("CPUExecutionProvider (avx2)")) is None
    played(monkeypatch, nvmlDeviceGetPowerUsage=lambda gpu: 119600)
    assert (_chips.clocks(described("cuda:0")) or {})["power_w"] == 119.6


def test_without_nvml_clocks_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise NVMLError("Shared Library Not Found")

    played(monkeypatch, nvmlInit=fails)
    assert _chips.clocks(described("cuda:0")) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert _chips.clocks(described("cuda:0")) is None


@pytest.mark.parametrize("chip", _chips.CHIPS, ids=lambda chip: chip.name)
def test_limits_are_in_plausible_units(chip: _chips.Chip) -> None:
    """A second: 0.5 to 10 TB, 10 to 2,000 TFLOP; float32 is not faster than what rounds."""
    assert 0.5e12 <= chip.bytes <= 10e12
    for precision in ("fp16", "tf32", "fp32"):
        low, high = chip.operations(precision) or (10e12, 10e12)
        assert 10e12 <= low <= high <= 2e15
        assert high <= chip.half[1]
    assert chip.source
