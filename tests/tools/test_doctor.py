"""tools/doctor.py tells what is missing, and never fails for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import ribsr
from engines import EngineError, driver
from plugins import library
from ribsr.base.installation import pip_install
from tests.engines.trt.tensorrt_fake import RTX, fake_tensorrt
from tools import doctor
from tools.doctor import Finding


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without runtimes and libraries of ours; the folder where they would be."""
    for name in ("torch", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in [name for name in sys.modules if name in ("engines.pytorch",)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(library, "DEFAULT", tmp_path / "libribsr_kernels.so")
    for variable in (library.VARIABLE, library.ONNXRUNTIME_VARIABLE, library.TENSORRT_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def test_what_is_missing_comes_with_the_command_that_brings_it(bare: Path) -> None:
    (bare / "libribsr_onnxruntime.so").write_text("text")
    result = CliRunner().invoke(doctor.main, ["--json", str(bare / "d.json")])
    assert result.exit_code == 0, result.output
    told = {one["name"]: one for one in json.loads((bare / "d.json").read_text())["findings"]}
    assert told["ribsr"]["state"].startswith(ribsr.__version__)
    for name, extra in (
        ("PyTorch opens", "export"),
        ("ONNX Runtime opens", "ort"),
        ("OpenVINO opens", "openvino"),
        ("TensorRT opens", "trt"),
        ("TensorRT RTX loads", "rtx"),
    ):
        assert not told[name]["ok"]
        assert pip_install(extra) in told[name]["state"]
        assert told[name]["command"] == pip_install(extra)
    assert told["kernels for PyTorch"]["state"].endswith("libribsr_kernels.so is not built")
    assert "cannot be loaded" in told["kernels for ONNX Runtime"]["state"]
    assert told["plugin for TensorRT"]["command"] == "python -m plugins.build --tensorrt-include DIR"
    written = json.loads((bare / "d.json").read_text())
    uses = {one["name"]: one for one in written["uses"]}
    for name in ("upscale pictures", "run ONNX files on the CPU"):
        assert (uses[name]["ok"], uses[name]["command"]) == (False, pip_install("ort")), name
    assert uses["train"]["command"] == (pip_install("export" if told["torch"]["ok"] else "train"))
    first, last = result.stdout.split("\n\n")
    assert [line[:4] for line in first.splitlines()] == [f"{'ok' if one['ok'] else '--'}  " for one in told.values()]
    assert [line[:4] for line in last.splitlines()] == [f"{'yes' if one['ok'] else 'no':4}" for one in uses.values()]


def test_json_on_stdout_is_json_alone() -> None:
    result = CliRunner().invoke(doctor.main, ["--json", "-"])
    assert result.exit_code == 0
    told = {one["name"]: one["ok"] for one in json.loads(result.stdout)["findings"]}
    assert told["numpy"]
    assert told["Python"]
    assert "ok  Python: 3." in result.stderr


def test_any_trouble_of_a_runtime_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise KeyError("x")

    monkeypatch.setattr(doctor, "onnxruntime", broken)
    result = CliRunner().invoke(doctor.main, [])
    assert result.exit_code == 0
    assert "--  ONNX Runtime opens: KeyError: 'x'" in result.stdout


@pytest.mark.parametrize(
    ("capability", "end"),
    [
        (None, "no plan runs here: there is no NVIDIA driver here"),
        ("8.9", "its plans run on the GPU here, which has 8.9"),
        ("13.0", "its plans run on the GPU here, which has 13.0"),
        ("9.0", "no plan runs on the GPU here, which has 9.0"),
    ],
)
def test_tensorrt_rtx_builds_on_any_machine(monkeypatch: pytest.MonkeyPatch, capability: str | None, end: str) -> None:
    def found() -> str:
        if capability is None:
            raise driver.NoGPU("there is no NVIDIA driver here")
        return capability

    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_tensorrt(RTX))
    monkeypatch.setattr(driver, "capability", found)
    builds = "RTX 1.7.1.116 builds for compute capability 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"
    assert doctor.tensorrt_rtx() == f"{builds}; {end}"


def test_a_use_is_told_by_what_it_needs() -> None:
    use = doctor.Use("fly", "fly away", "trt", ("numpy", ("wings", "engine"), "sky"))
    found = {
        "numpy": Finding("numpy", True, "2"),
        "wings": Finding("wings", False, "none", "grow wings"),
        "engine": Finding("engine", True, "on"),
        "sky": Finding("sky", True, "blue"),
    }
    assert doctor.follow(use, found) == Finding("fly", True, "fly away")
    found["engine"] = Finding("engine", False, "off")
    assert doctor.follow(use, found) == Finding("fly", False, "wings: none", "grow wings")
    found["numpy"] = Finding("numpy", False, "not installed", "another extra")
    assert doctor.follow(use, found) == Finding("fly", False, "numpy: not installed", pip_install("trt"))


def test_every_use_needs_what_is_found() -> None:
    """Of a name that is misspelt nothing would ever be found."""
    found = {one.name for one in doctor.parts()}
    for use in doctor.USES:
        needed = {name for need in use.needs for name in ([need] if isinstance(need, str) else need)}
        assert needed <= found, use.name


def test_pictures_that_come_back_changed_are_no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.pictures() == "png, jpg, webp, tiff"
    from ribsr.base import pictures

    black = pictures.Picture(np.zeros((16, 16, 3), np.uint8))
    monkeypatch.setattr(pictures, "read_picture", lambda path: black)
    with pytest.raises(ValueError, match="a picture comes back changed from .png"):
        doctor.pictures()
    one = next(one for one in doctor.trials() if one.name == "8-bit pictures")
    assert (one.ok, one.command) == (False, None)


@pytest.mark.parametrize(
    ("error", "command"),
    [
        (ModuleNotFoundError("No module named 'x'"), "pip install x"),
        (EngineError("no provider; pip uninstall y && pip install x, or else"), "pip uninstall y && pip install x"),
        (EngineError("none: pip install x"), "pip install x"),
        (EngineError("it failed"), None),
    ],
)
def test_the_command_is_the_one_that_helps(error: Exception, command: str | None) -> None:
    assert doctor._command_for(error, "pip install x") == command
