"""The C interface (include/ribsr_attention.h) through ctypes. Needs neither torch nor numpy."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

DEFAULT = Path(__file__).resolve().parent / "build" / "libribsr_attention.so"
VARIABLE = "RIBSR_ATTENTION_LIBRARY"
"""Environment variable that names another library file."""
INTERFACE_VERSION = 1
FLOAT16, BFLOAT16 = 1, 2
PATHS = {"auto": 0, "portable": 1, "hopper": 2}


class LibraryError(RuntimeError):
    """The library is missing, of another version, or refused a call."""


class Map(ctypes.Structure):
    """A [batch, channel, height, width] map: device pointer, strides in elements."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batch_stride", ctypes.c_int64),
        ("channel_stride", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("column_stride", ctypes.c_int64),
    )


class Params(ctypes.Structure):
    """RibsrAttentionParams; `struct_size` is filled in by `call`."""

    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        ("dtype", ctypes.c_int32),
        ("path", ctypes.c_int32),
        ("batch", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("head_width", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("window_height", ctypes.c_int32),
        ("window_width", ctypes.c_int32),
        ("shift_y", ctypes.c_int32),
        ("shift_x", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("qkv", Map),
        ("gate", Map),
        ("out", Map),
        ("rib_q", ctypes.c_void_p),
        ("rib_k", ctypes.c_void_p),
    )


def path() -> Path:
    """The library's file: $RIBSR_ATTENTION_LIBRARY, else the one `python -m plugins.build` makes."""
    return Path(os.environ.get(VARIABLE) or DEFAULT)


@cache
def load() -> ctypes.CDLL:
    """The library, loaded once per process. Raises LibraryError if it is missing or of another version."""
    file = path()
    if not file.exists():
        raise LibraryError(f"{file} does not exist: build it with `python -m plugins.build`")
    library = ctypes.CDLL(str(file))
    library.ribsr_attention.argtypes = (ctypes.POINTER(Params), ctypes.c_void_p)
    library.ribsr_attention_path.argtypes = (ctypes.POINTER(Params), ctypes.POINTER(ctypes.c_int32))
    library.ribsr_error_message.restype = ctypes.c_char_p
    version = library.ribsr_interface_version()
    if version != INTERFACE_VERSION:
        raise LibraryError(
            f"{file} has interface version {version}, not {INTERFACE_VERSION}: run `python -m plugins.build`"
        )
    return library


def _check(library: ctypes.CDLL, code: int) -> None:
    if code != 0:
        raise LibraryError(f"CyclicWindowAttention: {library.ribsr_error_message().decode()}")


def call(params: Params, stream: int) -> None:
    """Enqueue the operator on a CUDA stream of the current device. Raises LibraryError."""
    library = load()
    params.struct_size = ctypes.sizeof(Params)
    _check(library, library.ribsr_attention(ctypes.byref(params), stream))


def chosen_path(params: Params) -> str:
    """Which path `call` would take on the current device: portable or hopper. Raises LibraryError."""
    library = load()
    params.struct_size = ctypes.sizeof(Params)
    chosen = ctypes.c_int32()
    _check(library, library.ribsr_attention_path(ctypes.byref(params), ctypes.byref(chosen)))
    return next(name for name, number in PATHS.items() if number == chosen.value)
