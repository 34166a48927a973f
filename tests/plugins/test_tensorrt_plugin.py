"""The TensorRT plugins: their build, their loading, and their run under a program that plays TensorRT's part.

Tests that compile need nvcc and TensorRT headers: in the folders of $RIBSR_TENSORRT_INCLUDE (separated like a PATH),
else in the places where `python -m plugins.build` looks.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from plugins import build, compiler, library, operators

DRIVER = Path(__file__).with_name("v3_driver.cpp")


def given_headers() -> dict[int, Path]:
    given = os.environ.get("RIBSR_TENSORRT_INCLUDE", "")
    return compiler.find_tensorrt([Path(folder) for folder in given.split(os.pathsep) if folder])


def has_gpu() -> bool:
    try:
        return ctypes.CDLL("libcuda.so.1").cuInit(0) == 0
    except OSError:
        return False


@pytest.fixture(scope="module")
def headers(nvcc: Path) -> dict[int, Path]:
    return given_headers() or pytest.skip("needs TensorRT headers: name their folder with RIBSR_TENSORRT_INCLUDE")


@pytest.fixture(scope="module")
def built(headers: dict[int, Path]) -> dict[int, Path]:
    """The plugin libraries by TensorRT major version, built if they were not up to date."""
    return {major: compiler.build_tensorrt(include)[0] for major, include in headers.items()}


@pytest.fixture(scope="module")
def driver(headers: dict[int, Path], built: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that drives the newest IPluginV3 library there is."""
    major = max(headers)
    if major < 10:
        pytest.skip("needs the headers of TensorRT 10 or 11: name their folder with RIBSR_TENSORRT_INCLUDE")
    program = tmp_path_factory.mktemp("driver") / "v3_driver"
    command = [compiler.find_nvcc(), "-std=c++17", "-O2", "-I", headers[major], DRIVER, "-o", program]
    subprocess.run(command, check=True)
    return [str(program), str(built[major])]


def drive(command: list[str]) -> str:
    """What the driver printed."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "all passed" in result.stdout
    return result.stdout


def test_driven_on_the_host(driver: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin asks for as much workspace as its kernel does."""
    output = drive([*driver, "--host-only"])
    compiler.build()
    monkeypatch.setenv(library.VARIABLE, str(compiler.LIBRARY))
    library.load.cache_clear()
    for label, size in {
        "layer norm, 96 channels": 0,
        "feed-forward, 48 and 72 channels": library.workspace(operators.FEED_FORWARD, 48, 72),
        "feed-forward, 192 and 384 channels": library.workspace(operators.FEED_FORWARD, 192, 384),
        "attention inputs, 64 channels": library.workspace(operators.ATTENTION_INPUTS, 64),
        "attention inputs, 192 channels": library.workspace(operators.ATTENTION_INPUTS, 192),
    }.items():
        assert f"{label}, fp16, kHWC8\n    workspace of {size} bytes\n" in output


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="needs a CUDA GPU")
def test_driven_on_the_gpu(driver: list[str]) -> None:
    drive(driver)


def test_second_build_makes_nothing(headers: dict[int, Path], built: dict[int, Path]) -> None:
    for major, include in headers.items():
        assert compiler.build_tensorrt(include) == (built[major], False)


def test_exported_and_needed_symbols(built: dict[int, Path]) -> None:
    """Nothing of libstdc++ is visible, and nothing but the C library is needed: not even TensorRT."""
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    for major, path in built.items():
        listed = subprocess.run(["nm", "-D", path], capture_output=True, text=True, check=True).stdout
        lines = [line.split()[-2:] for line in listed.splitlines()]
        entry = "getCreators" if major >= 10 else "getPluginCreators"
        exported = {name for kind, name in lines if kind not in "Uw"}
        assert exported == {entry, "setLoggerFinder", "ribsr_interface_version", "ribsr_gpu_code"}
        assert [name for kind, name in lines if kind == "U" and "@GLIBC" not in name] == []


def write_headers(folder: Path, version: str) -> Path:
    folder.mkdir()
    (folder / "NvInfer.h").write_text("")
    (folder / "NvInferVersion.h").write_text(version)
    return folder


@pytest.mark.parametrize(
    ("version", "major"),
    [
        ("#define NV_TENSORRT_MAJOR 8 //!< TensorRT major version.\n#define NV_TENSORRT_MINOR 6\n", 8),
        ("#define TRT_MAJOR_ENTERPRISE 11\n#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< major\n", 11),
    ],
)
def test_version_of_headers(tmp_path: Path, version: str, major: int) -> None:
    include = write_headers(tmp_path / "include", version)
    assert compiler.tensorrt_major(include) == major
    assert compiler.find_tensorrt([include]) == {major: include}


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("", "defines no NV_TENSORRT_MAJOR"),
        ("#define NV_TENSORRT_MAJOR 7\n", "has the headers of TensorRT 7; the plugins are made for 8 to 11"),
        ("#define NV_TENSORRT_MAJOR 12\n", "has the headers of TensorRT 12; the plugins are made for 8 to 11"),
    ],
)
def test_headers_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, message: str
) -> None:
    include = write_headers(tmp_path / "include", version)
    with pytest.raises(compiler.BuildError, match=message):
        compiler.find_tensorrt([include])
    monkeypatch.setattr(compiler, "TENSORRT_PLACES", ())
    monkeypatch.setenv(compiler.TENSORRT_VARIABLE, str(include))
    with pytest.raises(compiler.BuildError, match=message):
        compiler.find_tensorrt()


def test_headers_in_the_usual_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of each version counts, what cannot be used is passed over, and given folders replace them all."""
    names = [("old", 7), ("a", 10), ("b", 10), ("c", 8)]
    places = [write_headers(tmp_path / name, f"#define NV_TENSORRT_MAJOR {major}\n") for name, major in names]
    monkeypatch.delenv(compiler.TENSORRT_VARIABLE, raising=False)
    monkeypatch.setattr(compiler, "TENSORRT_PLACES", (tmp_path / "missing", *places))
    assert compiler.find_tensorrt() == {10: tmp_path / "a", 8: tmp_path / "c"}
    monkeypatch.setenv(compiler.TENSORRT_VARIABLE, str(tmp_path / "b"))
    assert compiler.find_tensorrt() == {10: tmp_path / "b", 8: tmp_path / "c"}
    assert compiler.find_tensorrt([tmp_path / "a"]) == {10: tmp_path / "a"}


def test_two_folders_of_one_version(tmp_path: Path) -> None:
    folders = [write_headers(tmp_path / name, "#define NV_TENSORRT_MAJOR 10\n") for name in ("a", "b")]
    with pytest.raises(compiler.BuildError, match="are both of TensorRT 10: name one of them"):
        compiler.find_tensorrt(folders)


def test_command_names_missing_headers(tmp_path: Path) -> None:
    result = CliRunner().invoke(build.main, ["--tensorrt-include", str(tmp_path)])
    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    assert f"{tmp_path} has no TensorRT headers" in result.output


def test_command_without_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compiler.TENSORRT_VARIABLE, raising=False)
    monkeypatch.setattr(compiler, "TENSORRT_PLACES", ())
    monkeypatch.setattr(compiler, "choose_gpus", lambda *_: ("8.9", "9.0"))
    monkeypatch.setattr(compiler, "build", lambda output, **_: output.write_bytes(bytes(3 << 20)) > 0)
    monkeypatch.setattr(compiler, "build_cpu", lambda *_, **__: True)
    monkeypatch.setattr(compiler, "build_onnxruntime", lambda _, folder, **__: (folder / "ops.so", False))
    result = CliRunner().invoke(build.main, ["-o", str(tmp_path / "kernels.so")])
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        f"{tmp_path / 'libribsr_cpu.so'}: built",
        f"{tmp_path / 'kernels.so'}: built",
        f"{tmp_path / 'ops.so'}: up to date",
        "for GPUs: sm_89, sm_90a, compute_80, in 3 MiB",
        "no headers of TensorRT 8 to 11 found, so no plugins for it: add them with --tensorrt-include DIR",
    ]


def test_failed_compiler_is_one_line(tmp_path: Path) -> None:
    """The first error is quoted; the rest is in a file that the message names."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\n[ "$1" = --list-gpu-code ] && echo sm_80 && exit 0\n'
        "echo 'note: much else'; echo 'x.cu(3): error: expected a ;' >&2; echo 'x.cu(9): error: another' >&2; exit 2\n"
    )
    nvcc.chmod(0o755)
    with pytest.raises(compiler.BuildError) as error:
        compiler.build(tmp_path / "out" / "kernels.so", nvcc=str(nvcc), jobs=1)
    message = str(error.value)
    assert "\n" not in message
    assert "nvcc failed: x.cu(3): error: expected a ;" in message
    log = Path(message.partition("(all of it: ")[2].rstrip(")"))
    assert "another" in log.read_text()


class Registry:
    """What load_tensorrt uses of IPluginRegistry: loading a library registers the plugins it is told."""

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self.gives = names
        self.loaded: list[str] = []
        self.plugin_creator_list: list[Any] = []

    def load_library(self, path: str) -> object:
        self.loaded.append(path)
        version = {"plugin_version": "1", "plugin_namespace": "ribsr"}
        self.plugin_creator_list += [SimpleNamespace(name=name, **version) for name in self.gives]
        return None


def tensorrt(registry: Any) -> Any:
    return SimpleNamespace(__version__="8.6.0", get_plugin_registry=lambda: registry)


@pytest.fixture
def loadable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A plugin library of this interface, as far as it is looked at before TensorRT loads it."""
    functions = SimpleNamespace(ribsr_interface_version=lambda: library.INTERFACE_VERSION)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: functions)
    path = tmp_path / "libribsr_tensorrt8.so"
    path.touch()
    return path


def test_plugins_are_loaded_once(loadable: Path) -> None:
    registry = Registry(operators.PLUGINS)
    library.load_tensorrt(tensorrt(registry), loadable)
    library.load_tensorrt(tensorrt(registry), Path("not-needed-any-more.so"))
    assert registry.loaded == [str(loadable)]


def test_plugins_of_the_new_interface_count(loadable: Path) -> None:
    """From TensorRT 10 on, plugin_creator_list lacks IPluginV3 creators; all_creators has them."""
    registry = Registry(operators.PLUGINS)
    registry.load_library("")
    newer = SimpleNamespace(all_creators=registry.plugin_creator_list, plugin_creator_list=[])
    library.load_tensorrt(tensorrt(newer), loadable)


def test_library_of_another_tensorrt(loadable: Path) -> None:
    registry = Registry(operators.PLUGINS[:1])
    with pytest.raises(
        library.LibraryError, match=f"the plugins {', '.join(operators.PLUGINS[1:])}: it was built for another"
    ):
        library.load_tensorrt(tensorrt(registry), loadable)


def test_missing_library_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(library.LibraryError, match="does not exist: build it with .*headers of TensorRT 8.6.0"):
        library.load_tensorrt(tensorrt(Registry()), tmp_path / "libribsr_tensorrt8.so")


def test_file_that_is_no_library(tmp_path: Path) -> None:
    path = tmp_path / "libribsr_tensorrt8.so"
    path.write_text("not a library")
    with pytest.raises(library.LibraryError, match="cannot be loaded: .*(ELF|file too short)"):
        library.load_tensorrt(tensorrt(Registry()), path)


@pytest.mark.parametrize(
    ("functions", "version"),
    [({}, "none"), ({"ribsr_interface_version": lambda: library.INTERFACE_VERSION - 1}, r"\d+")],
)
def test_library_of_another_version(
    loadable: Path, monkeypatch: pytest.MonkeyPatch, functions: dict[str, Any], version: str
) -> None:
    """It has the same plugins, which would refuse what this version gives them, in TensorRT's words."""
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(**functions))
    registry = Registry(operators.PLUGINS)
    with pytest.raises(library.LibraryError, match=rf"interface version {version}, not \d+: build it again"):
        library.load_tensorrt(tensorrt(registry), loadable)
    assert not registry.loaded


def test_path_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(library.TENSORRT_VARIABLE, raising=False)
    assert library.tensorrt_path(10) == compiler.LIBRARY.with_name("libribsr_tensorrt10.so")
    monkeypatch.setenv(library.TENSORRT_VARIABLE, "elsewhere.so")
    assert library.tensorrt_path(10) == Path("elsewhere.so")


def test_real_tensorrt_8_makes_the_plugins() -> None:
    """Registration, attributes and serialisation by TensorRT itself; creating a plugin needs no GPU."""
    trt = pytest.importorskip("tensorrt", exc_type=ImportError)
    major = int(trt.__version__.split(".")[0])
    path = library.tensorrt_path(major)
    if major > 9 or not path.exists():
        pytest.skip("needs TensorRT 8 or 9 and its plugin library: python -m plugins.build --tensorrt-include DIR")
    library.load_tensorrt(trt, path)
    library.load_tensorrt(trt, path)

    integers, floats = trt.PluginFieldType.INT32, trt.PluginFieldType.FLOAT32
    window = trt.PluginField("window", np.array([16, 32], np.int32), integers)
    heads = trt.PluginField("heads", np.array([2], np.int32), integers)
    shift = trt.PluginField("shift", np.array([3, 5], np.int32), integers)
    scale = trt.PluginField("scale", np.array([0.25], np.float32), floats)
    zero = trt.PluginField("scale", np.array([0], np.float32), floats)
    creator = trt.get_plugin_registry().get_plugin_creator("CyclicWindowAttention", "1", "ribsr")
    sigmoid = trt.PluginField("gate_sigmoid", np.array([1], np.int32), integers)
    assert [field.name for field in creator.field_names] == ["window", "heads", "shift", "scale", "gate_sigmoid"]
    plugin = creator.create_plugin("node", trt.PluginFieldCollection([window, heads, shift, scale, sigmoid]))
    kept = bytes(plugin.serialize())
    assert kept == np.array([16, 32, 2, 3, 5], np.int32).tobytes() + np.float32(0.25).tobytes() + np.int32(1).tobytes()
    assert bytes(creator.deserialize_plugin("node", kept).clone().serialize()) == kept
    assert creator.create_plugin("node", trt.PluginFieldCollection([window, heads, shift, sigmoid])) is None
    assert creator.create_plugin("node", trt.PluginFieldCollection([window, heads, shift, zero, sigmoid])) is None
    assert creator.deserialize_plugin("node", kept[:-4]) is None
