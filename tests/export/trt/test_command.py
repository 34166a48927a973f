"""`python -m export.trt` as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import ribsr
from engines.metadata import read_stamp
from engines.trt import gpu as cuda
from plugins import fuse
from ribsr.base.files import sha256
from ribsr.base.installation import pip_install
from tests.engines.trt.tensorrt_fake import RTX, fake_tensorrt
from tests.export.trt.played import OLDEST, TEN, failed, invoke, make_gpu, written

ROOT = Path(__file__).resolve().parents[3]


def test_the_command_as_the_readme_gives_it(gpu, here):
    result = invoke("--fp16")
    assert result.exit_code == 0, result.output
    assert written(here) == ["x2.fp16.plan", "x2.fp16.plan.json"]
    assert Path("x2.fp16.plan").read_bytes() == b"plan " * 1000
    manifest = json.loads(Path("x2.fp16.plan.json").read_text())
    counts = {key: manifest["layers"][key] for key in ("plugins fp16", "heavy fp16")}
    assert counts == {"plugins fp16": 2 + 5 + 4, "heavy fp16": 14}
    stamp = read_stamp("x2.onnx")
    expected = {
        "plan_sha256": sha256("x2.fp16.plan"),
        "onnx": "x2.onnx",
        "onnx_sha256": sha256("x2.onnx"),
        "tensorrt": gpu.trt.__version__,
        "cuda": "13.0",
        "gpu": "NVIDIA H100 80GB",
        "compute_capability": "9.0",
        "precision": "fp16",
        "form": "plugin",
        "profile": {"min": [1, 3, 64, 64], "opt": [1, 3, 360, 640], "max": [1, 3, 720, 1280]},
        "plugin": {"file": "plugins.so", "sha256": sha256("lib/plugins.so")},
    }
    assert {key: manifest[key] for key in expected} == expected
    assert manifest["stamp"] == {**vars(stamp), "windows": [list(window) for window in stamp.windows]}
    for words in (
        f"TensorRT {gpu.trt.__version__} on NVIDIA H100",
        "PSNR at least 60.0 dB",
        "wrote x2.fp16.plan: plugin",
    ):
        assert words in result.output
    assert fuse.count(gpu.parsed)["CyclicWindowAttention"] == 2
    assert not gpu.parsed.functions
    assert [entry.domain for entry in gpu.parsed.opset_import] == ["", "ribsr"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fp16", "--bf16"], "--fp16 and --bf16 exclude each other"),
        (["--onnx", "a.onnx", "--ckpt", "a.pt"], "--onnx and --ckpt exclude each other"),
        (["--size", "8x8", "--shapes", "8x8", "8x8", "8x8"], "--shapes and --size exclude each other"),
        (["--size", "640"], "is not WIDTHxHEIGHT"),
        (["--shapes", "8x8"], "requires 3 arguments"),
        (["--model", "sst-light"], "they need --ckpt"),
    ],
)
def test_usage(here, arguments, message):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_from_the_checkpoint(gpu, here, files):
    Path("x2.onnx").unlink()
    Path("x2.pt").write_bytes((files / "x2.pt").read_bytes())
    result = invoke("--ckpt", "x2.pt", "--fp16")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in here.glob("x2*")) == ["x2.fp16.plan", "x2.fp16.plan.json", "x2.onnx", "x2.pt"]


def test_a_checkpoint_is_exported_only_where_a_plan_can_be_built(gpu, here, files, monkeypatch):
    Path("x2.onnx").unlink()
    Path("x2.pt").write_bytes((files / "x2.pt").read_bytes())
    assert "ends in .plan" in invoke("--ckpt", "x2.pt", "--fp16", "-o", "x2.engine").output

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    result = invoke("--ckpt", "x2.pt", "--fp16")
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: TensorRT for Python is not installed: {pip_install('trt')}")
    assert result.output.count("\n") == 1
    assert [path.name for path in here.glob("x2*")] == ["x2.pt"]


def test_from_an_authors_checkpoint_that_does_not_say_which_model_it_is(gpu, here, monkeypatch):
    """What the message advises can be done with this command, too."""
    Path("x2.onnx").unlink()
    torch.save({"params": ribsr.build(ribsr.config("sst-light")).state_dict()}, "theirs.pth")
    advice = "give --model sst-light or --model sst-light+ (or --config"
    assert advice in invoke("--ckpt", "theirs.pth", "--fp16").output
    given = []
    monkeypatch.setattr("export.convert.export_onnx", lambda *arguments, **_: given.append(arguments[3:5]))
    invoke("--ckpt", "theirs.pth", "--fp16", "--model", "sst-light")
    invoke("--ckpt", "theirs.pth", "--fp16", "--config", "theirs.yml")
    assert given == [("sst-light", None), (None, "theirs.yml")]


def test_failure_leaves_the_old_plan_alone(gpu, here):
    assert invoke("--fp16").exit_code == 0
    before = {path: Path(path).read_bytes() for path in written(here)}
    gpu.error = np.nan
    assert invoke("--fp16").exit_code == 1
    assert {path: Path(path).read_bytes() for path in written(here)} == before


def test_names_may_be_as_long_as_the_file_system_takes(here, monkeypatch):
    """Of the plan and the manifest beside it, 255 bytes: the files that are in the making have short ones."""
    gpu = make_gpu(TEN, here, monkeypatch)
    name = f"{'ü' * 122}a.plan"
    result = invoke("--fp16", "--no-verify", "-o", name)
    assert result.exit_code == 0, result.output
    assert written(here) == [name, f"{name}.json"]
    assert len(f"{name}.json".encode()) == 255
    gpu.trt.calls.clear()
    assert f"b{name}: its manifest's name, 256 bytes, is too long" in invoke("--fp16", "-o", f"b{name}").output
    assert not gpu.trt.calls, "it is said before anything takes long"


def test_an_older_plan_keeps_its_permissions_and_a_link_stays_one(here, monkeypatch):
    make_gpu(TEN, here, monkeypatch)
    (here / "cache").mkdir()
    plan, elsewhere, manifest = (here / name for name in ("x2.fp16.plan", "cache/real.plan", "x2.fp16.plan.json"))
    plan.symlink_to(elsewhere)
    for path, mode in ((elsewhere, 0o640), (manifest, 0o604)):
        path.write_bytes(b"older")
        path.chmod(mode)
    result = invoke("--fp16", "--no-verify")
    assert result.exit_code == 0, result.output
    assert plan.is_symlink()
    assert elsewhere.read_bytes() == b"plan " * 1000
    assert [path.stat().st_mode & 0o777 for path in (elsewhere, manifest)] == [0o640, 0o604]
    assert written(here) == ["x2.fp16.plan", "x2.fp16.plan.json"]


def test_no_torch_is_needed(here):
    """From the file to the plan, on a machine that has none; and up to TensorRT where that is missing, too."""
    code = (
        "import os, pathlib, pytest, sys\n"
        "sys.modules['torch'] = None\n"
        "from tests.export.trt.played import OLDEST, invoke, make_gpu\n"
        "os.chdir(sys.argv[1])\n"
        "sys.modules['tensorrt'] = None\n"
        "print(invoke('--fp16').output)\n"
        "make_gpu(OLDEST, pathlib.Path(sys.argv[1]), pytest.MonkeyPatch())\n"
        "print(invoke('--fp16').output)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, here], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("Error: TensorRT for Python is not installed: pip install "), done.stderr
    assert "wrote x2.fp16.plan: plugin, fp16" in done.stdout


def test_no_gpu(here, monkeypatch):
    gpu = make_gpu(OLDEST, here, monkeypatch)

    def none() -> None:
        raise cuda.CUDAError("cudaErrorNoDevice", "the NVIDIA driver finds no GPU")

    monkeypatch.setattr(cuda, "current_gpu", none)
    assert "the NVIDIA driver finds no GPU" in failed(invoke("--fp16"), here)
    assert not [name for name, _ in gpu.trt.calls if name.endswith("__init__")]  # 8.6 would crash


@pytest.mark.parametrize("missing", ["tensorrt", "onnx", "onnx_graphsurgeon"])
def test_missing_packages_are_named(here, monkeypatch, missing):
    make_gpu(TEN, here, monkeypatch)
    monkeypatch.setitem(sys.modules, missing, None)
    line = failed(invoke("--fp16"), here)
    assert f"not installed: {pip_install('trt')}" in line


def test_help_needs_nothing_heavy():
    code = (
        "import sys; import export.trt.__main__; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'onnx', 'tensorrt', 'numpy', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_version_compatible_is_noted_and_asked_of_tensorrt(gpu, here):
    for options, compatible in (((), False), (("--version-compatible",), True)):
        gpu.trt.calls.clear()
        result = invoke("--fp16", *options)
        assert result.exit_code == 0, result.output
        assert json.loads(Path("x2.fp16.plan.json").read_text())["version_compatible"] == compatible
        flags = {args[0] for name, args in gpu.trt.calls if name == "IBuilderConfig.set_flag"}
        assert (gpu.trt.BuilderFlag.VERSION_COMPATIBLE in flags) == compatible


def test_the_lean_runtime_builds_nothing(here, monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "tensorrt_lean", SimpleNamespace(__version__="10.16.1.11"))
    said = failed(invoke("--fp16"), here)
    assert said == (
        "Error: here is the lean runtime of TensorRT 10.16.1.11 alone, which runs plans and builds none: "
        f"{pip_install('trt')}"
    )


def test_version_compatible_is_not_for_tensorrt_rtx(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_tensorrt(RTX))
    said = failed(invoke("--rtx", "--version-compatible"), here)
    assert "--version-compatible is for TensorRT itself" in said
