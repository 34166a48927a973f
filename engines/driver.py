"""What the NVIDIA driver says of the first GPU, through its C interface: without a CUDA toolkit or a package."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from engines.base import EngineError


class NoGPU(EngineError):
    """No driver, or none that finds a usable GPU; the message is the end of a sentence."""


@cache
def _driver() -> Any:
    """The driver's library, initialised. Raises NoGPU."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise NoGPU("there is no NVIDIA driver here (libcuda.so.1)") from None
    if code := library.cuInit(0):
        raise NoGPU(f"the NVIDIA driver finds no usable GPU (cuInit gives {code})")
    return library


def _call(name: str, *arguments: Any) -> None:
    if code := getattr(_driver(), name)(*arguments):
        raise NoGPU(f"the NVIDIA driver refuses its first GPU ({name} gives {code})")


def capability() -> str:
    """The GPU's compute capability, "9.0". Raises NoGPU."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call("cuDeviceGetAttribute", ctypes.byref(major), 75, 0)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    _call("cuDeviceGetAttribute", ctypes.byref(minor), 76, 0)  # ..._MINOR
    return f"{major.value}.{minor.value}"


def pci_bus_id() -> str:
    """Where the GPU is on the host's bus, "0000:1B:00.0": its name for other libraries of the driver. Raises NoGPU."""
    text = ctypes.create_string_buffer(16)
    _call("cuDeviceGetPCIBusId", text, len(text), 0)
    return text.value.decode()


def free_memory() -> int:
    """Bytes of the GPU's memory that nobody holds. Raises NoGPU."""
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)  # the one that every runtime uses; kept until the end
    _call("cuCtxPushCurrent_v2", context)
    try:
        _call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    finally:
        _call("cuCtxPopCurrent_v2", ctypes.byref(context))
    return free.value


def cuda_version() -> str:
    """The latest CUDA that the driver serves, "13.0". Raises NoGPU."""
    version = ctypes.c_int()
    _call("cuDriverGetVersion", ctypes.byref(version))
    return f"{version.value // 1000}.{version.value % 1000 // 10}"
