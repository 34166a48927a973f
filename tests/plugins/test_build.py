"""The build and the C interface's checks; the compiler is needed, a GPU is not."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import tomllib
from click.testing import CliRunner

from plugins import build, compiler, library, operators


@pytest.fixture(scope="module")
def built(nvcc: Path) -> Path:
    """The library, built if it was not up to date."""
    compiler.build()
    return compiler.LIBRARY


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
        values |= {name: operators.Map(pointer, 1, 1, 1, 1) for name in ("qkv", "gate", "out")}
        with pytest.raises(library.LibraryError) as error:
            library.chosen_path(operators.CYCLIC_WINDOW_ATTENTION.params(**(values | changes)))
        return str(error.value)

    return call


def refused(params: operators.Params) -> str:
    """What the library says of parameters that it must refuse before it looks for a device."""
    with pytest.raises(library.LibraryError) as error:
        library.call(params, 0)
    return str(error.value)


def test_missing_compiler_is_named() -> None:
    with pytest.raises(compiler.BuildError, match="--nvcc names 'no-such-nvcc'"):
        compiler.find_nvcc("no-such-nvcc")


def test_no_compiler_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("NVCC", "CUDA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(compiler.os, "access", lambda *_: False)
    with pytest.raises(compiler.BuildError, match="install the CUDA toolkit"):
        compiler.find_nvcc()


def test_second_build_makes_nothing(built: Path) -> None:
    assert built.exists()
    assert compiler.build() is False


@dataclass(frozen=True)
class Builds:
    """Builds by a program that takes the compiler's part and writes down how it is called."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, known: str = "sm_80 sm_86 sm_89 sm_90 sm_120") -> Builds:
        """known: what the compiler makes code for."""
        (folder / "nvcc").write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && exit 0\n[ "$1" = --list-gpu-code ] && echo {known} && exit 0\n'
            f'echo "$*" >> {folder}/calls\n'
            'while [ "$1" != -o ]; do shift; done\necho "$*" > "$2"\n'
        )
        (folder / "nvcc").chmod(0o755)
        return cls(folder)

    @property
    def nvcc(self) -> str:
        return str(self.folder / "nvcc")

    def run(self, *gpus: str) -> bool:
        return compiler.build(self.folder / "out" / "kernels.so", gpus=gpus or None, nvcc=self.nvcc, jobs=1)

    @property
    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    @property
    def compiled(self) -> dict[Path, str]:
        """How the compiler was called for each source."""
        found = [(re.search(r" -c (\S+) ", call), call) for call in self.calls]
        return {Path(match[1]): call for match, call in found if match}


@pytest.fixture
def builds(tmp_path: Path) -> Builds:
    return Builds.make(tmp_path)


def test_every_source_is_compiled_and_linked(builds: Builds) -> None:
    assert builds.run()
    sources = set(compiler.SOURCE.rglob("*.cu"))
    assert {"shared", *(operator.short for operator in operators.OPERATORS)} == {
        source.parent.name for source in sources
    }
    assert set(builds.compiled) == sources
    linked = re.findall(r"\S+\.o\b", builds.calls[-1])
    assert len(set(linked)) == len(linked) == len(sources)  # files of one name in two folders do not share an object
    assert all(Path(name).exists() for name in linked)


def test_hopper_sources_are_compiled_for_hopper_alone(builds: Builds) -> None:
    builds.run()
    for source, call in builds.compiled.items():
        assert "arch=compute_90a" in call
        assert ("arch=compute_80" in call) == ("hopper" not in source.name), source
        assert " -DRIBSR_HOPPER=1 " in call


def test_code_is_for_the_gpus_that_are_named(builds: Builds) -> None:
    """All at first; then for RTX 40 cards alone, on which no file needs Hopper's instructions."""
    everything = "-gencode=arch=compute_80,code=[sm_80,sm_86,sm_89,sm_120,compute_80] -gencode=arch=compute_90a"
    assert builds.run()
    assert everything in builds.compiled[compiler.SOURCE / "depthwise" / "portable.cu"]
    assert builds.run("8.9")  # other objects, though no source has changed
    for call in builds.compiled.values():
        assert "-gencode=arch=compute_80,code=[sm_89,compute_80] " in call
        assert "90a" not in call
        assert " -DRIBSR_HOPPER=0 " in call
    assert "-DRIBSR_GPU_CODE=sm_89+compute_80 " in builds.compiled[compiler.SOURCE / "shared" / "interface.cu"]
    assert not builds.run("8.9")
    assert builds.run()


def test_an_older_compiler_leaves_out_what_it_does_not_know(tmp_path: Path) -> None:
    builds = Builds.make(tmp_path, "sm_80 sm_86 sm_89 sm_90")  # CUDA 12.4
    assert compiler.choose_gpus(nvcc=builds.nvcc) == ("8.0", "8.6", "8.9", "9.0")
    assert compiler.choose_gpus(["9.0", "8.0"], builds.nvcc) == ("8.0", "9.0")
    with pytest.raises(
        compiler.BuildError, match=r"--gpu 12\.0: .* is too old for it, and knows 8\.0, 8\.6, 8\.9, 9\.0"
    ):
        compiler.choose_gpus(["12.0"], builds.nvcc)
    with pytest.raises(
        compiler.BuildError, match=r"--gpu 7\.5: there is machine code for 8\.0, 8\.6, .*, 12\.0; what is newer"
    ):
        compiler.choose_gpus(["7.5"], builds.nvcc)


def test_added_operator_is_compiled(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator's folder is compiled because it is there, and again when a header in it changes."""
    builds.run()
    before = len(builds.calls)
    source = builds.folder / "src"
    shutil.copytree(compiler.SOURCE, source)
    monkeypatch.setattr(compiler, "SOURCE", source)
    assert not builds.run()  # the same content, elsewhere

    added = source / "added"
    added.mkdir()
    for name in ("portable.cu", "hopper.cu"):
        (added / name).write_text("")
    assert builds.run()
    assert len(builds.calls) == before + 3  # two files and the link
    assert {"added.portable.cu.o", "added.hopper.cu.o"} <= {Path(name).name for name in builds.calls[-1].split()}
    assert not builds.run()
    (added / "added.h").write_text("")
    assert not builds.run()  # nothing includes it
    (added / "portable.cu").write_text('#include "added/added.h"\n')
    assert builds.run()
    (added / "added.h").write_text("// more\n")
    assert builds.run()


TWICE = """
#include "shared/interface.h"

__global__ void added(float *data) { data[threadIdx.x] *= 2.0f; }

extern "C" RIBSR_API int32_t ribsr_added(float *data, void *stream) {
  RIBSR_CHECK(data != nullptr, "data is null");
  added<<<1, 32, 0, static_cast<cudaStream_t>(stream)>>>(data);
  return ribsr::launched(cudaGetLastError());
}
"""


def test_added_operator_is_in_the_library(nvcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the real compiler: a folder with one file, beside what operators share."""
    source = tmp_path / "src"
    shutil.copytree(compiler.SOURCE / "shared", source / "shared")
    shutil.copy(compiler.SOURCE / "kernels.map", source)
    (source / "added").mkdir()
    (source / "added" / "portable.cu").write_text(TWICE)
    monkeypatch.setattr(compiler, "SOURCE", source)
    assert compiler.build(tmp_path / "kernels.so")
    made = ctypes.CDLL(str(tmp_path / "kernels.so"))
    made.ribsr_error_message.restype = ctypes.c_char_p
    assert made.ribsr_added(None, None) == 1
    assert made.ribsr_error_message() == b"data is null"


def test_package_has_all_sources() -> None:
    """What pip installs can be built."""
    root = compiler.ROOT
    data = tomllib.loads((root.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["plugins"]
    packed = {file for pattern in data for file in root.glob(pattern)}
    wanted = [*compiler.SOURCE.rglob("*"), *compiler.INCLUDE.rglob("*")]
    assert [file for file in wanted if file.is_file() and file not in packed] == []


def test_command_fails_in_one_line() -> None:
    result = CliRunner().invoke(build.main, ["--nvcc", "no-such-nvcc"])
    assert result.exit_code == 1
    assert result.output == "Error: --nvcc names 'no-such-nvcc', which is not an executable file\n"


def test_verbose_command_fails_with_a_traceback() -> None:
    command = [sys.executable, "-m", "plugins.build", "--nvcc", "no-such-nvcc", "-v"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=compiler.ROOT.parent)
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback")
    assert "BuildError: --nvcc names 'no-such-nvcc'" in result.stderr


def test_program_that_is_no_compiler(tmp_path: Path) -> None:
    result = CliRunner().invoke(build.main, ["--nvcc", "false", "-o", str(tmp_path / "kernels.so")])
    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    assert "false --version failed with exit code 1: is it a CUDA compiler?" in result.output


def test_library_needs_no_cuda_library(built: Path) -> None:
    """The CUDA runtime is linked in: the file loads on a machine without CUDA."""
    assert ctypes.CDLL(str(built)).ribsr_interface_version() == library.INTERFACE_VERSION
    assert library.gpu_code(built) == compiler.gpu_code(compiler.choose_gpus())


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
    params = operators.CYCLIC_WINDOW_ATTENTION.params(struct_size=8)
    handle = ctypes.CDLL(str(built))
    handle.ribsr_error_message.restype = ctypes.c_char_p
    assert handle.ribsr_attention(ctypes.byref(params), None) == 1
    assert b"struct_size is 8" in handle.ribsr_error_message()


@pytest.mark.parametrize(
    ("params", "changes", "message"),
    [
        (operators.CHANNEL_LAYER_NORM.params, {"dtype": 0}, "ChannelLayerNorm: dtype 0 is neither float16"),
        (operators.CHANNEL_LAYER_NORM.params, {"channels": 0}, "channels is 0"),
        (operators.CHANNEL_LAYER_NORM.params, {"batch": 0}, "all must be positive"),
        (operators.CHANNEL_LAYER_NORM.params, {"height": 1 << 20, "width": 1 << 11}, "at most 2^30 pixels"),
        (operators.CHANNEL_LAYER_NORM.params, {"epsilon": -1.0}, "epsilon is -1"),
        (operators.CHANNEL_LAYER_NORM.params, {"epsilon": float("nan")}, "epsilon is nan"),
        (operators.CHANNEL_LAYER_NORM.params, {"bias": None}, "an array is null"),
        (operators.DEPTHWISE_CONV3X3.params, {"dtype": 3}, "DepthwiseConv3x3: dtype 3 is neither float16"),
        (operators.DEPTHWISE_CONV3X3.params, {"channels": -8}, "channels is -8"),
        (operators.DEPTHWISE_CONV3X3.params, {"width": 0}, "all must be positive"),
        (operators.DEPTHWISE_CONV3X3.params, {"epilogue": 2}, "epilogue 2 is unknown"),
        (operators.DEPTHWISE_CONV3X3.params, {"input_gelu": 2}, "input_gelu is 2"),
        (operators.DEPTHWISE_CONV3X3.params, {"weight": None}, "an array is null"),
        (operators.DEPTHWISE_CONV3X3.params, {}, "must not overlap"),
    ],
)
def test_parameters_of_the_other_kernels_are_checked(
    loaded: None, params: Callable[..., operators.Params], changes: dict[str, object], message: str
) -> None:
    pointer = ctypes.addressof(ctypes.create_string_buffer(64))  # checks come before any access
    maps = {name: operators.Map(pointer, 1, 1, 1, 1) for name in ("x", "out")}
    values = {"dtype": library.FLOAT16, "batch": 1, "channels": 8, "height": 4, "width": 4, "epsilon": 1e-5}
    if params is operators.DEPTHWISE_CONV3X3.params:
        del values["epsilon"]
    assert message in refused(params(**(values | maps | {"weight": pointer, "bias": pointer} | changes)))


@pytest.mark.usefixtures("loaded")
def test_narrow_and_unsupported_widths_need_no_workspace() -> None:
    for widths in ((48, 72), (64, 96), (72, 72), (192, 96), (64, 384), (0, 0), (-192, -384)):
        assert library.workspace(operators.FEED_FORWARD, *widths) == 0
    for channels in (48, 64, 72, 384, 0, -192):
        assert library.workspace(operators.ATTENTION_INPUTS, channels) == 0


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
        ({"channels": 180, "hidden": 225, "column_stride": 182}, "strides of multiples of 4, and aligned to 8 bytes"),
        ({"channels": 180, "hidden": 225, "column_stride": 180}, "workspace must be "),
        ({"path": 3}, "path 3 is unknown"),
    ],
)
def test_parameters_of_feed_forward_are_checked(loaded: None, changes: dict[str, object], message: str) -> None:
    memory = ctypes.create_string_buffer(64)  # checks come before any access
    pointer = (ctypes.addressof(memory) + 15) // 16 * 16
    strides = {"batch_stride": 1024, "channel_stride": 1, "row_stride": 256, "column_stride": 64}
    strides |= {name: value for name, value in changes.items() if name in strides}
    out = pointer + 16 if "out" not in changes else pointer
    maps = {"x": operators.Map(pointer, **strides), "out": operators.Map(out, **strides)}
    values = {"dtype": library.FLOAT16, "batch": 1, "channels": 48, "hidden": 72, "height": 4, "width": 4}
    changed = {name: value for name, value in changes.items() if name not in {*strides, "out"}}
    for name in {"expand_weight", "contract_bias", "workspace"} & changed.keys():
        changed[name] = changed[name] and pointer + 8
    weights = dict.fromkeys(operators.FEED_FORWARD.weights, pointer)
    params = operators.FEED_FORWARD.params(**(values | maps | weights | changed))
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
        ({"path": -1}, "path -1 is unknown"),
        ({"channels": 192, "column_stride": 576}, "workspace must be "),
        ({"channels": 192, "column_stride": 576, "workspace": 8}, "bytes, aligned to 16"),
    ],
)
def test_parameters_of_attention_inputs_are_checked(loaded: None, changes: dict[str, object], message: str) -> None:
    memory = ctypes.create_string_buffer(128)  # checks come before any access
    pointer = (ctypes.addressof(memory) + 15) // 16 * 16
    strides = {"batch_stride": 4096, "channel_stride": 1, "row_stride": 1024, "column_stride": 144}
    strides |= {name: value for name, value in changes.items() if name in strides}
    places = {"x": 0, "qkv": 16, "gate": changes.get("gate", 32)}
    maps = {name: operators.Map(pointer + place, **strides) for name, place in places.items()}
    values = {"dtype": library.FLOAT16, "batch": 1, "channels": 48, "height": 4, "width": 4}
    changed = {name: value for name, value in changes.items() if name not in {*strides, "gate"}}
    for name in {"mix_weight", "workspace"} & changed.keys():
        changed[name] = pointer + 8
    weights = dict.fromkeys(operators.ATTENTION_INPUTS.weights, pointer)
    params = operators.ATTENTION_INPUTS.params(**(values | maps | weights | changed))
    assert message in refused(params)
