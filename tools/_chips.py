"""What a GPU can do at most, and what it does now: a table of limits with their sources, and clocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engines import driver
from engines.base import HALVES, Description


@dataclass(frozen=True)
class Chip:
    """What a GPU reaches, a second. A range where measurements differ.

    name: as the driver gives it. half, tf32, float32: operations of matrix products in these precisions. bytes: to
    and from its memory, both ways together. scores: of attentions, bound by its exponentials. source: of the figures.
    """

    name: str
    bytes: float
    half: tuple[float, float]
    tf32: tuple[float, float] | None = None
    float32: tuple[float, float] | None = None
    scores: float | None = None
    source: str = "NVIDIA's data sheet, dense"

    def operations(self, precision: str) -> tuple[float, float] | None:
        """Of a network in this precision."""
        return self.half if precision in HALVES else {"tf32": self.tf32, "fp32": self.float32}[precision]


def _tera(*values: float) -> tuple[float, float]:
    return min(values) * 1e12, max(values) * 1e12


CHIPS = (
    Chip(
        *("NVIDIA H200", 4.3e12, _tera(770, 800)),
        scores=4.17e12,
        source="measured on one H200: copies, and products of random bfloat16; scores: ex2 instructions on an H100",
    ),
    Chip(
        *("NVIDIA H100 80GB HBM3", 3.0e12, _tera(800)),
        scores=4.17e12,
        source="measured on one H100: copies, tensor cores and ex2 instructions",
    ),
    Chip("NVIDIA A100-SXM4-80GB", 2.04e12, _tera(312), _tera(156), _tera(19.5)),
    Chip("NVIDIA L40S", 0.864e12, _tera(362), _tera(183), _tera(91.6)),
    Chip("NVIDIA GeForce RTX 4090", 1.008e12, _tera(165.2), _tera(82.6), _tera(82.6)),
)
"""A chip whose limits nobody wrote down here is not compared with any."""


def limits(name: str, precision: str) -> dict[str, Any] | None:
    """What --json says of a GPU's limits in a precision; None where it is not in the table."""
    chip = next((chip for chip in CHIPS if chip.name == name), None)
    if chip is None:
        return None
    operations = chip.operations(precision)
    return {
        "chip": chip.name,
        "operations": operations and list(operations),
        "bytes": chip.bytes,
        "scores": chip.scores if precision in HALVES else None,
        "source": chip.source,
    }


CLOCKS_ADVICE = "pip install nvidia-ml-py shows the GPU's clocks"


def clocks(told: Description) -> dict[str, int | float | None] | None:
    """Clocks in MHz, °C and W of the first GPU now, by NVIDIA's NVML; None on a CPU, and without nvidia-ml-py.

    What the GPU does not tell is None.
    """
    if not told.on_gpu:
        return None
    try:
        import pynvml as nvml
    except ModuleNotFoundError:
        return None
    try:
        nvml.nvmlInit()
        gpu = nvml.nvmlDeviceGetHandleByPciBusId(driver.pci_bus_id().encode())
    except (nvml.NVMLError, driver.NoGPU):  # there may be a driver without this library, as in some containers
        return None

    def read(name: str, *arguments: int) -> int | None:
        try:
            return getattr(nvml, name)(gpu, *arguments)
        except nvml.NVMLError:
            return None

    power = read("nvmlDeviceGetPowerUsage")
    return {
        "sm_mhz": read("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
        "memory_mhz": read("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
        "temperature_c": read("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        "power_w": None if power is None else power / 1e3,
    }
