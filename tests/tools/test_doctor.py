"""tools/doctor.py tells what is missing, and never fails for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import ribsr
from plugins import library
from ribsr.base.installation import pip_install
from tools import doctor


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without runtimes and libraries of ours; the folder where they would be."""
    for name in ("torch", "onnxruntime", "tensorrt"):
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
    for name, extra in (("PyTorch opens", "export"), ("ONNX Runtime opens", "ort"), ("TensorRT opens", "trt")):
        assert not told[name]["ok"]
        assert pip_install(extra) in told[name]["state"]
        assert told[name]["command"] == pip_install(extra)
    assert told["kernels for PyTorch"]["state"].endswith("libribsr_kernels.so is not built")
    assert "cannot be loaded" in told["kernels for ONNX Runtime"]["state"]
    assert told["plugin for TensorRT"]["command"] == "python -m plugins.build --tensorrt-include DIR"
    lines = result.stdout.splitlines()
    assert len(lines) == len(told)
    assert all(line.startswith(("ok  ", "--  ")) for line in lines)


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
