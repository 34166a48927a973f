"""What the NVIDIA driver says of the first GPU, through its C interface: without a CUDA toolkit or a package."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from engines.base import EngineError

if TYPE_CHECKING:
    import numpy as np


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
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    with _current():
        _call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return free.value


def lock_memory(size: int) -> int:
    """The address of `size` bytes of the host that the GPU reads and writes itself. Raises NoGPU if there are none."""
    address = ctypes.c_void_p()
    with _current():
        _call("cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(size), _FOR_ALL_CONTEXTS)
    assert address.value is not None
    return address.value


def free_locked(address: int) -> None:
    """Frees what `lock_memory` gave, unless the GPU is gone."""
    with suppress(NoGPU), _current():
        _call("cuMemFreeHost", ctypes.c_void_p(address))


def copy_to_host(address: int, array: np.ndarray) -> None:
    """Fills a contiguous array from the GPU's memory at `address`; what writes there must be done. Raises NoGPU."""
    with _current():
        _call("cuMemcpyDtoH_v2", ctypes.c_void_p(array.ctypes.data), ctypes.c_uint64(address), array.nbytes)


_FOR_ALL_CONTEXTS = 1
"""CU_MEMHOSTALLOC_PORTABLE"""


@contextmanager
def _current() -> Iterator[None]:
    """The context that every runtime uses, for this thread. It is kept until the end of the process."""
    context = ctypes.c_void_p()
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
    _call("cuCtxPushCurrent_v2", context)
    try:
        yield
    finally:
        _call("cuCtxPopCurrent_v2", ctypes.byref(context))


def cuda_version() -> str:
    """The latest CUDA that the driver serves, "13.0". Raises NoGPU."""
    version = ctypes.c_int()
    _call("cuDriverGetVersion", ctypes.byref(version))
    return f"{version.value // 1000}.{version.value % 1000 // 10}"
