"""`python -m export.onnx` as a user types it."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result

import ribsr
from engines import open_engine
from export import lower
from export import onnx as command
from export.canonical import trace
from export.fold import fold

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkpoint(tmp_path, monkeypatch) -> Path:
    """x2.pt of a small model in the working directory."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    small = replace(
        ribsr.config("sst-light"), name="small", dim=24, heads=(2, 2), windows=(8, 12), ranks=(8, 18), blocks=1
    )
    ribsr.save(ribsr.build(small), "x2.pt")
    return Path("x2.pt")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(command.main, arguments)


def written() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def test_the_command_as_the_readme_gives_it(checkpoint):
    done = subprocess.run(
        [sys.executable, "-m", "export.onnx", "--ckpt", "x2.pt"],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "wrote x2.onnx: canonical, opset 17" in done.stdout
    assert "checked in ONNX Runtime" in done.stdout
    assert written() == ["x2.onnx", "x2.pt"]
    onnx.checker.check_model("x2.onnx")
    model = onnx.load("x2.onnx")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata == {
        "ribsr.model": "small",
        "ribsr.scale": "2",
        "ribsr.windows": "[[8, 8], [12, 12]]",
        "ribsr.precision": "fp32",
        "ribsr.attention": "canonical",
        "ribsr.rib_tolerance": "0.0",
        "ribsr.version": ribsr.__version__,
        "ribsr.checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
    }
    x = np.random.default_rng(0).random((2, 3, 11, 30), dtype=np.float32)
    with torch.inference_mode():
        expected = ribsr.load("x2.pt")(torch.from_numpy(x)).numpy()
    with open_engine("x2.onnx", device="cpu") as engine:
        np.testing.assert_allclose(engine.run(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "name", "form", "precision"),
    [
        (["--attention", "mha"], "x2.mha.onnx", "mha", "fp32"),
        (["--attention", "matmul"], "x2.matmul.onnx", "matmul", "fp32"),
        (["--attention", "attention"], "x2.attention.onnx", "attention", "fp32"),
        (["--attention", "plugin", "--fp16"], "x2.plugin.fp16.onnx", "plugin", "fp16"),
        (["--fp16"], "x2.fp16.onnx", "canonical", "fp16"),
        (["--fp16", "--attention", "mha"], "x2.mha.fp16.onnx", "mha", "fp16"),
        (["--opset", "20", "-o", "named.onnx"], "named.onnx", "canonical", "fp32"),
    ],
)
def test_forms_are_written_under_their_own_names(checkpoint, arguments, name, form, precision):
    result = invoke("--ckpt", "x2.pt", *arguments)
    assert result.exit_code == 0, result.output
    assert written() == sorted([name, "x2.pt"])
    metadata = {entry.key: entry.value for entry in onnx.load(name).metadata_props}
    assert metadata["ribsr.attention"] == form
    assert metadata["ribsr.precision"] == precision
    said = "not run: only TensorRT" if form == "plugin" else "checked in ONNX Runtime"
    assert said in result.output


def test_static_size_is_the_only_one(checkpoint):
    assert invoke("--ckpt", "x2.pt", "--static", "9x14").exit_code == 0
    with open_engine("x2.onnx", device="cpu") as engine:
        assert engine.describe().shape == (1, 3, 9, 14)
        assert engine.run(np.zeros((1, 3, 9, 14), np.float32)).shape == (1, 3, 18, 28)


def test_rib_tolerance_is_reported_and_bounded(checkpoint):
    result = invoke("--ckpt", "x2.pt", "--rib-tolerance", "0.02")
    assert result.exit_code == 0, result.output
    changes = [float(c) for c in re.findall(r"rank 18 → (?:8|16), no logit changes by more than (\S+)", result.output)]
    assert changes
    assert all(0 < change <= 0.02 for change in changes)
    metadata = {entry.key: entry.value for entry in onnx.load("x2.onnx").metadata_props}
    assert json.loads(metadata["ribsr.rib_tolerance"]) == 0.02


def test_matmul_beyond_the_limit_is_refused_and_names_the_alternatives(checkpoint):
    result = invoke("--ckpt", "x2.pt", "--attention", "matmul", "--score-limit", "0.01")
    assert result.exit_code == 1
    assert "largest score tensor" in result.output
    for alternative in ("--attention mha", "plugin", "--score-limit"):
        assert alternative in result.output
    assert written() == ["x2.pt"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--ckpt", "missing.pt"], 1, "missing.pt: no such file"),
        (["--ckpt", "x2.pt", "--model", "sst"], 1, "was made as small"),
        (["--ckpt", "x2.pt", "--model", "edsr"], 1, "choose one of"),
        (["--ckpt", "x2.pt", "--opset", "16"], 1, "choose 17 to 23"),
        (["--ckpt", "x2.pt", "--opset", "17", "--attention", "attention"], 1, "--attention attention; choose 23"),
        (["--ckpt", "x2.pt", "--static", "10"], 2, "give HxW"),
        (["--ckpt", "x2.pt", "--attention", "plugin"], 1, "--attention plugin needs --fp16"),
        (["--ckpt", "x2.pt", "-o", "nowhere/x2.onnx"], 1, "there is no folder nowhere"),
        (["--ckpt", "x2.pt", "-o", "x2.pt"], 1, "x2.pt: an ONNX file's name ends in .onnx"),
        (["--ckpt", "x2.pt", "--rib-tolerance", "nan"], 2, "'nan' is not a finite number"),
        (["--ckpt", "x2.pt", "--config", "missing.yml"], 1, "missing.yml: No such file"),
        ([], 2, "Missing option '--ckpt'"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(checkpoint, arguments, code, message):
    result = invoke(*arguments)
    assert result.exit_code == code
    assert message in result.output
    if code == 1:
        assert len([line for line in result.output.splitlines() if line.startswith("Error: ")]) == 1
        assert "Traceback" not in result.output
    assert written() == ["x2.pt"]


def test_a_file_that_computes_something_else_is_not_written(checkpoint, monkeypatch):
    original = lower.lower

    def broken(bare, form):
        model = original(bare, form)
        weight = next(tensor for tensor in model.graph.initializer if tensor.name == "upsampler.up_conv.weight")
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.01, weight.name))
        return model

    monkeypatch.setattr(lower, "lower", broken)
    result = invoke("--ckpt", "x2.pt")
    assert result.exit_code == 1
    assert "differs from the checkpoint by" in result.output
    assert written() == ["x2.pt"]
    assert invoke("--ckpt", "x2.pt", "--no-verify").exit_code == 0
    assert written() == ["x2.onnx", "x2.pt"]


def test_large_windows_are_checked_only_when_asked(checkpoint, monkeypatch):
    monkeypatch.setattr(command, "QUICK", 1000)
    result = invoke("--ckpt", "x2.pt")
    assert result.exit_code == 0
    assert "not run (its 0.0e9 attention scores take long): use --verify" in result.output
    assert "checked in ONNX Runtime" in invoke("--ckpt", "x2.pt", "--verify").output


def test_interrupted_while_writing_the_old_file_stays(checkpoint, monkeypatch):
    Path("x2.onnx").write_text("old")

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_verify", interrupted)
    assert invoke("--ckpt", "x2.pt").exit_code == 1
    assert Path("x2.onnx").read_text() == "old"
    assert written() == ["x2.onnx", "x2.pt"]


@pytest.mark.parametrize(("opset", "budget"), [(17, 1400), (20, 1000)])
def test_the_large_model_meets_its_node_budget(opset, budget):
    """sst-l+ x2, whose naive export has ten times as many. Counted from one and two blocks: the others are alike."""
    config = ribsr.config("sst-l+")
    one, two = (len(trace(fold(ribsr.build(replace(config, blocks=blocks)))[0], opset).graph.node) for blocks in (1, 2))
    assert one + (config.blocks - 1) * (two - one) <= budget


def test_help_needs_no_torch():
    code = "import sys; import export.onnx; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
