"""The build and the C interface's checks; the compiler is needed, a GPU is not."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest

from plugins import build, library


@pytest.fixture(scope="module")
def built() -> Path:
    """The library, built if it was not up to date."""
    try:
        build.find_nvcc()
    except build.BuildError:
        pytest.skip("needs nvcc")
    build.build()
    return build.LIBRARY


@pytest.fixture
def loaded(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`plugins.library` uses the library just built."""
    monkeypatch.setenv(library.VARIABLE, str(built))
    library.load.cache_clear()


@pytest.fixture
def refusal(loaded: None) -> Callable[..., str]:
    """Call the library with changed parameters; what it says."""

    def call(**changes: object) -> str:
        block = ctypes.create_string_buffer(64)  # stands for device memory: checks come before any access
        pointer = ctypes.addressof(block)
        values: dict[str, object] = {
            "dtype": library.FLOAT16,
            "batch": 1,
            "height": 8,
            "width": 8,
            "heads": 1,
            "head_width": 16,
            "rank": 16,
            "window_height": 8,
            "window_width": 8,
            "scale": 0.25,
            "rib_q": pointer,
            "rib_k": pointer,
        }
        values |= {name: library.Map(pointer, 1, 1, 1, 1) for name in ("qkv", "gate", "out")}
        with pytest.raises(library.LibraryError) as error:
            library.chosen_path(library.AttentionParams(**(values | changes)))
        return str(error.value)

    return call


def refused(params: library.Params) -> str:
    """What the library says of parameters that it must refuse before it looks for a device."""
    with pytest.raises(library.LibraryError) as error:
        library.call(params, 0)
    return str(error.value)


def test_missing_compiler_is_named() -> None:
    with pytest.raises(build.BuildError, match="--nvcc names 'no-such-nvcc'"):
        build.find_nvcc("no-such-nvcc")


def test_no_compiler_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("NVCC", "CUDA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(build.os, "access", lambda *_: False)
    with pytest.raises(build.BuildError, match="install the CUDA toolkit"):
        build.find_nvcc()


def test_second_build_makes_nothing(built: Path) -> None:
    assert built.exists()
    assert build.build() is False


def test_library_needs_no_cuda_library(built: Path) -> None:
    """The CUDA runtime is linked in: the file loads on a machine without CUDA."""
    assert ctypes.CDLL(str(built)).ribsr_interface_version() == library.INTERFACE_VERSION


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": 3}, "dtype 3 is neither float16"),
        ({"width": 0}, "all must be positive"),
        ({"rank": 65}, "the others 1 to 64"),
        ({"window_width": 129}, "each side must be 2 to 128"),
        ({"scale": 0.0}, "scale is 0"),
        ({"rib_k": None}, "an array is null"),
        ({"path": 7}, "path 7 is unknown"),
    ],
)
def test_parameters_are_checked(refusal: Callable[..., str], changes: dict[str, object], message: str) -> None:
    assert message in refusal(**changes)


def test_callers_of_another_version_are_refused(built: Path) -> None:
    params = library.AttentionParams(struct_size=8)
    handle = ctypes.CDLL(str(built))
    handle.ribsr_error_message.restype = ctypes.c_char_p
    assert handle.ribsr_attention(ctypes.byref(params), None) == 1
    assert b"struct_size is 8" in handle.ribsr_error_message()


@pytest.mark.parametrize(
    ("params", "changes", "message"),
    [
        (library.LayerNormParams, {"dtype": 0}, "ChannelLayerNorm: dtype 0 is neither float16"),
        (library.LayerNormParams, {"channels": 0}, "channels is 0"),
        (library.LayerNormParams, {"batch": 0}, "all must be positive"),
        (library.LayerNormParams, {"height": 1 << 20, "width": 1 << 11}, "at most 2^30 pixels"),
        (library.LayerNormParams, {"epsilon": -1.0}, "epsilon is -1"),
        (library.LayerNormParams, {"epsilon": float("nan")}, "epsilon is nan"),
        (library.LayerNormParams, {"bias": None}, "an array is null"),
        (library.DepthwiseParams, {"dtype": 3}, "DepthwiseConv3x3: dtype 3 is neither float16"),
        (library.DepthwiseParams, {"channels": -8}, "channels is -8"),
        (library.DepthwiseParams, {"width": 0}, "all must be positive"),
        (library.DepthwiseParams, {"epilogue": 2}, "epilogue 2 is unknown"),
        (library.DepthwiseParams, {"input_gelu": 2}, "input_gelu is 2"),
        (library.DepthwiseParams, {"weight": None}, "an array is null"),
        (library.DepthwiseParams, {}, "must not overlap"),
    ],
)
def test_parameters_of_the_other_kernels_are_checked(
    loaded: None, params: Callable[..., library.Params], changes: dict[str, object], message: str
) -> None:
    pointer = ctypes.addressof(ctypes.create_string_buffer(64))  # checks come before any access
    maps = {name: library.Map(pointer, 1, 1, 1, 1) for name in ("input", "out")}
    values = {"dtype": library.FLOAT16, "batch": 1, "channels": 8, "height": 4, "width": 4, "epsilon": 1e-5}
    if params is library.DepthwiseParams:
        del values["epsilon"]
    assert message in refused(params(**(values | maps | {"weight": pointer, "bias": pointer} | changes)))


@pytest.mark.usefixtures("loaded")
def test_narrow_and_unsupported_widths_need_no_workspace() -> None:
    for widths in ((48, 72), (64, 96), (72, 72), (192, 96), (64, 384), (0, 0), (-192, -384)):
        assert library.feed_forward_workspace(*widths) == 0
    for channels in (48, 64, 72, 384, 0, -192):
        assert library.attention_inputs_workspace(channels) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": 0}, "FeedForward: dtype 0 is neither float16"),
        ({"hidden": 0}, "channels, hidden are 48, 0: both must be positive"),
        ({"height": 0}, "all must be positive"),
        ({"epsilon": -1.0}, "epsilon is -1"),
        ({"contract_bias": None}, "an array is null"),
        ({"out": None}, "must not overlap"),
        ({"channels": 44}, "multiples of 8 up to 64, 96 are supported"),
        ({"channels": 72}, "multiples of 8 up to 64, 96 are supported"),
        ({"hidden": 104}, "multiples of 8 up to 64, 96 are supported"),
        ({"hidden": 70}, "multiples of 8 up to 64, 96 are supported"),
        ({"row_stride": 4}, "must be channels-last"),
        ({"channel_stride": 64}, "must be channels-last"),
        ({"expand_weight": 8}, "aligned to 16 bytes"),
        ({"channels": 192, "hidden": 384, "column_stride": 192}, "workspace must be "),
        ({"channels": 192, "hidden": 384, "column_stride": 192, "workspace": 8}, "bytes, aligned to 16"),
        ({"channels": 192, "hidden": 384, "column_stride": 192, "contract_bias": 8}, "contract_bias must be aligned"),
    ],
)
def test_parameters_of_feed_forward_are_checked(loaded: None, changes: dict[str, object], message: str) -> None:
    memory = ctypes.create_string_buffer(64)  # checks come before any access
    pointer = (ctypes.addressof(memory) + 15) // 16 * 16
    strides = {"batch_stride": 1024, "channel_stride": 1, "row_stride": 256, "column_stride": 64}
    strides |= {name: value for name, value in changes.items() if name in strides}
    out = pointer + 16 if "out" not in changes else pointer
    maps = {"input": library.Map(pointer, **strides), "out": library.Map(out, **strides)}
    values = {"dtype": library.FLOAT16, "batch": 1, "channels": 48, "hidden": 72, "height": 4, "width": 4}
    changed = {name: value for name, value in changes.items() if name not in {*strides, "out"}}
    for name in {"expand_weight", "contract_bias", "workspace"} & changed.keys():
        changed[name] = changed[name] and pointer + 8
    weights = dict.fromkeys(library.FEED_FORWARD_WEIGHTS, pointer)
    params = library.FeedForwardParams(**(values | maps | weights | changed))
    assert message in refused(params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": 0}, "AttentionInputs: dtype 0 is neither float16"),
        ({"channels": 0}, "channels is 0: it must be positive"),
        ({"width": 0}, "all must be positive"),
        ({"epsilon": -1.0}, "epsilon is -1"),
        ({"mix_bias": None}, "an array is null"),
        ({"gate": 0}, "must not overlap"),
        ({"channels": 44}, "multiples of 8 up to 64 are supported"),
        ({"channels": 72}, "multiples of 8 up to 64 are supported"),
        ({"column_stride": 52}, "must be channels-last"),
        ({"channel_stride": 64}, "must be channels-last"),
        ({"mix_weight": 8}, "aligned to 16 bytes"),
        ({"channels": 192, "column_stride": 576}, "workspace must be "),
        ({"channels": 192, "column_stride": 576, "workspace": 8}, "bytes, aligned to 16"),
    ],
)
def test_parameters_of_attention_inputs_are_checked(loaded: None, changes: dict[str, object], message: str) -> None:
    memory = ctypes.create_string_buffer(128)  # checks come before any access
    pointer = (ctypes.addressof(memory) + 15) // 16 * 16
    strides = {"batch_stride": 4096, "channel_stride": 1, "row_stride": 1024, "column_stride": 144}
    strides |= {name: value for name, value in changes.items() if name in strides}
    places = {"input": 0, "qkv": 16, "gate": changes.get("gate", 32)}
    maps = {name: library.Map(pointer + place, **strides) for name, place in places.items()}
    values = {"dtype": library.FLOAT16, "batch": 1, "channels": 48, "height": 4, "width": 4}
    changed = {name: value for name, value in changes.items() if name not in {*strides, "gate"}}
    for name in {"mix_weight", "workspace"} & changed.keys():
        changed[name] = pointer + 8
    weights = dict.fromkeys(library.ATTENTION_INPUTS_WEIGHTS, pointer)
    params = library.AttentionInputsParams(**(values | maps | weights | changed))
    assert message in refused(params)
