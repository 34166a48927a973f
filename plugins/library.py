"""The C interface (include/ribsr_kernels.h) through ctypes. Needs neither torch nor numpy."""

from __future__ import annotations

import ctypes
import os
import threading
from functools import cache
from pathlib import Path
from typing import Any

DEFAULT = Path(__file__).resolve().parent / "build" / "libribsr_kernels.so"
VARIABLE = "RIBSR_KERNELS_LIBRARY"
"""Environment variable that names another library file."""
INTERFACE_VERSION = 6
FLOAT16, BFLOAT16 = 1, 2
PATHS = {"auto": 0, "portable": 1, "hopper": 2}
ADD_GELU = 1
"""Epilogue of the depthwise convolution: out = in + gelu(convolution)."""

FEED_FORWARD_WIDTHS = (64, 96)
"""The most channels and hidden channels that FeedForward takes everywhere; both must be multiples of 8."""

ATTENTION_INPUTS_WIDTH = 64
"""The most channels that AttentionInputs takes everywhere, a multiple of 8."""

HOPPER = "9.0"
"""The compute capability on which these two take also the widths below."""

HOPPER_FEED_FORWARD_WIDTHS = (192, 384)
"""The only wide channels and hidden channels that FeedForward takes there."""

HOPPER_ATTENTION_INPUTS_WIDTH = 192
"""The only wide channels that AttentionInputs takes there."""

TUNED_WIDTHS, TUNED_RANKS = (16, 32), (16, 24, 32)
"""Head widths and ranks that the attention kernel is tuned for; others up to 64 are correct."""


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


class AttentionParams(ctypes.Structure):
    """RibsrAttentionParams; `struct_size` is filled in by `call`, here and below."""

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
        ("gate_sigmoid", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("qkv", Map),
        ("gate", Map),
        ("out", Map),
        ("rib_q", ctypes.c_void_p),
        ("rib_k", ctypes.c_void_p),
    )


class LayerNormParams(ctypes.Structure):
    """RibsrLayerNormParams; `input` is its `in`."""

    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        ("dtype", ctypes.c_int32),
        ("batch", ctypes.c_int32),
        ("channels", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
        ("input", Map),
        ("out", Map),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


class DepthwiseParams(ctypes.Structure):
    """RibsrDepthwiseParams; `input` is its `in`, `epilogue` ADD_GELU or 0."""

    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        ("dtype", ctypes.c_int32),
        ("input_gelu", ctypes.c_int32),
        ("epilogue", ctypes.c_int32),
        ("batch", ctypes.c_int32),
        ("channels", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("input", Map),
        ("out", Map),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


FEED_FORWARD_WEIGHTS = (
    "norm_weight",
    "norm_bias",
    "expand_weight",
    "expand_bias",
    "depthwise_weight",
    "depthwise_bias",
    "contract_weight",
    "contract_bias",
)
ATTENTION_INPUTS_WEIGHTS = (
    "norm_weight",
    "norm_bias",
    "project_weight",
    "project_bias",
    "depthwise_weight",
    "depthwise_bias",
    "mix_weight",
    "mix_bias",
)
"""Pointers of the next two structures, in the order in which the operators take them."""


class FeedForwardParams(ctypes.Structure):
    """RibsrFeedForwardParams; `input` is its `in`."""

    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        ("dtype", ctypes.c_int32),
        ("batch", ctypes.c_int32),
        ("channels", ctypes.c_int32),
        ("hidden", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
        ("input", Map),
        ("out", Map),
        *((name, ctypes.c_void_p) for name in FEED_FORWARD_WEIGHTS),
        ("workspace", ctypes.c_void_p),
    )


class AttentionInputsParams(ctypes.Structure):
    """RibsrAttentionInputsParams; `input` is its `in`."""

    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        ("dtype", ctypes.c_int32),
        ("batch", ctypes.c_int32),
        ("channels", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
        ("input", Map),
        ("qkv", Map),
        ("gate", Map),
        *((name, ctypes.c_void_p) for name in ATTENTION_INPUTS_WEIGHTS),
        ("workspace", ctypes.c_void_p),
    )


Params = AttentionParams | LayerNormParams | DepthwiseParams | FeedForwardParams | AttentionInputsParams
_OPERATORS: dict[type[Params], tuple[str, str]] = {
    AttentionParams: ("ribsr_attention", "CyclicWindowAttention"),
    LayerNormParams: ("ribsr_layer_norm", "ChannelLayerNorm"),
    DepthwiseParams: ("ribsr_depthwise", "DepthwiseConv3x3"),
    FeedForwardParams: ("ribsr_feed_forward", "FeedForward"),
    AttentionInputsParams: ("ribsr_attention_inputs", "AttentionInputs"),
}
"""The function that takes each structure, and the operator's name for messages."""


def path() -> Path:
    """The library's file: $RIBSR_KERNELS_LIBRARY, else the one `python -m plugins.build` makes."""
    return Path(os.environ.get(VARIABLE) or DEFAULT)


def fits_feed_forward(channels: int, hidden: int, *, hopper: bool = False) -> bool:
    """Whether FeedForward takes these widths; hopper: on compute capability 9.0."""
    if hopper and (channels, hidden) == HOPPER_FEED_FORWARD_WIDTHS:
        return True
    widths = zip((channels, hidden), FEED_FORWARD_WIDTHS, strict=True)
    return all(width % 8 == 0 and 0 < width <= most for width, most in widths)


def fits_attention_inputs(channels: int, *, hopper: bool = False) -> bool:
    """Whether AttentionInputs takes this width; hopper: on compute capability 9.0."""
    if hopper and channels == HOPPER_ATTENTION_INPUTS_WIDTH:
        return True
    return channels % 8 == 0 and 0 < channels <= ATTENTION_INPUTS_WIDTH


def is_tuned(head_width: int, rank: int) -> bool:
    """Whether the attention kernel is made for layers of this head width and rank, rather than only correct."""
    return head_width in TUNED_WIDTHS and rank in TUNED_RANKS


def _check_version(file: Path, library: ctypes.CDLL, advice: str) -> None:
    # The TensorRT libraries of interface 5 and before do not export the function.
    version = library.ribsr_interface_version() if hasattr(library, "ribsr_interface_version") else "none"
    if version != INTERFACE_VERSION:
        raise LibraryError(f"{file} has interface version {version}, not {INTERFACE_VERSION}: {advice}")


@cache
def load() -> ctypes.CDLL:
    """The library, loaded once per process. Raises LibraryError if it is missing or of another version."""
    file = path()
    if not file.exists():
        raise LibraryError(f"{file} does not exist: build it with `python -m plugins.build`")
    library = ctypes.CDLL(str(file))
    _check_version(file, library, "run `python -m plugins.build`")
    for params, (function, _) in _OPERATORS.items():
        getattr(library, function).argtypes = (ctypes.POINTER(params), ctypes.c_void_p)
    library.ribsr_attention_path.argtypes = (ctypes.POINTER(AttentionParams), ctypes.POINTER(ctypes.c_int32))
    library.ribsr_error_message.restype = ctypes.c_char_p
    library.ribsr_feed_forward_workspace.argtypes = (ctypes.c_int32, ctypes.c_int32)
    library.ribsr_feed_forward_workspace.restype = ctypes.c_int64
    library.ribsr_attention_inputs_workspace.argtypes = (ctypes.c_int32,)
    library.ribsr_attention_inputs_workspace.restype = ctypes.c_int64
    return library


def _check(library: ctypes.CDLL, params: Params, code: int) -> None:
    if code != 0:
        raise LibraryError(f"{_OPERATORS[type(params)][1]}: {library.ribsr_error_message().decode()}")


def call(params: Params, stream: int) -> None:
    """Enqueue the operator of these parameters on a CUDA stream of the current device. Raises LibraryError."""
    library = load()
    params.struct_size = ctypes.sizeof(params)
    _check(library, params, getattr(library, _OPERATORS[type(params)][0])(ctypes.byref(params), stream))


def feed_forward_workspace(channels: int, hidden: int) -> int:
    """Bytes of device memory that a call of FeedForward needs besides its maps and weights. Raises LibraryError."""
    return load().ribsr_feed_forward_workspace(channels, hidden)


def attention_inputs_workspace(channels: int) -> int:
    """Bytes of device memory that a call of AttentionInputs needs, likewise. Raises LibraryError."""
    return load().ribsr_attention_inputs_workspace(channels)


def chosen_path(params: AttentionParams) -> str:
    """Which path `call` would take on the current device: portable or hopper. Raises LibraryError."""
    library = load()
    params.struct_size = ctypes.sizeof(params)
    chosen = ctypes.c_int32()
    _check(library, params, library.ribsr_attention_path(ctypes.byref(params), ctypes.byref(chosen)))
    return next(name for name, number in PATHS.items() if number == chosen.value)


TENSORRT_VARIABLE = "RIBSR_TENSORRT_LIBRARY"
"""Environment variable that names another TensorRT plugin library."""
TENSORRT_NAMESPACE = "ribsr"
TENSORRT_PLUGINS = ("CyclicWindowAttention", "ChannelLayerNorm", "DepthwiseConv3x3", "FeedForward", "AttentionInputs")
"""The plugins' names in TensorRT's registry; version 1."""

_tensorrt_lock = threading.Lock()


def tensorrt_path(major: int) -> Path:
    """The plugin library for this TensorRT: $RIBSR_TENSORRT_LIBRARY, else the one `python -m plugins.build` makes."""
    return Path(os.environ.get(TENSORRT_VARIABLE) or DEFAULT.with_name(f"libribsr_tensorrt{major}.so"))


def load_tensorrt(trt: Any, path: Path) -> None:
    """Register the plugins in `path` with TensorRT (`trt` is its module), unless this process has them already.

    TensorRT loads the file itself (IPluginRegistry::loadLibrary, 8.6 and later) and asks it for its plugin creators;
    loading it in any other way registers nothing. Raises LibraryError.
    """
    registry = trt.get_plugin_registry()
    with _tensorrt_lock:
        if not _missing_plugins(registry):
            return
        if not path.exists():
            raise LibraryError(
                f"{path} does not exist: build it with `python -m plugins.build --tensorrt-include DIR`, "
                f"DIR holding the headers of TensorRT {trt.__version__}"
            )
        try:
            found = ctypes.CDLL(str(path.resolve()))  # says why it cannot be loaded, which TensorRT does not
        except OSError as error:
            raise LibraryError(f"{path} cannot be loaded: {error}") from error
        _check_version(path, found, "build it again with `python -m plugins.build --tensorrt-include DIR`")
        registry.load_library(str(path.resolve()))
        missing = _missing_plugins(registry)
        if missing:
            raise LibraryError(
                f"{path} does not give TensorRT {trt.__version__} the plugins {', '.join(missing)}: it was built for "
                "another TensorRT; run `python -m plugins.build --tensorrt-include DIR` with the headers of this one"
            )


def _missing_plugins(registry: Any) -> list[str]:
    # To ask for one that is not there makes TensorRT log an error. From 10 on, the second list lacks IPluginV3.
    creators = registry.all_creators if hasattr(registry, "all_creators") else registry.plugin_creator_list
    known = {(creator.name, creator.plugin_version, creator.plugin_namespace) for creator in creators}
    return [name for name in TENSORRT_PLUGINS if (name, "1", TENSORRT_NAMESPACE) not in known]
