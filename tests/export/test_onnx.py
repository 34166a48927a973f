"""`python -m export.onnx` as a user types it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result

import ribsr
from engines import EngineError, open_engine
from engines.base import NotInstalled
from engines.metadata import read_stamp
from export import convert, lower
from export import onnx as command
from export.canonical import trace
from export.convert import Options, default_name
from export.fold import fold, folded_numbers
from ribsr.base.sizes import Size
from tests.terminal import ROOT, on_terminal, redirected


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
        "ribsr.form": "canonical",
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
        (["--form", "mha"], "x2.mha.onnx", "mha", "fp32"),
        (["--form", "matmul"], "x2.matmul.onnx", "matmul", "fp32"),
        (["--form", "attention"], "x2.attention.onnx", "attention", "fp32"),
        (["--form", "plugin", "--fp16"], "x2.plugin.fp16.onnx", "plugin", "fp16"),
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
    assert metadata["ribsr.form"] == form
    assert metadata["ribsr.precision"] == precision
    said = "not run: only TensorRT" if form == "plugin" else "checked in ONNX Runtime"
    assert said in result.output


def test_static_size_is_the_only_one(checkpoint):
    assert invoke("--ckpt", "x2.pt", "--size", "14x9").exit_code == 0
    assert written() == ["x2.14x9.onnx", "x2.pt"]
    with open_engine("x2.14x9.onnx", device="cpu") as engine:
        assert engine.describe().batch == 1
        assert engine.describe().limits.fixed == Size(height=9, width=14)
        assert engine.run(np.zeros((1, 3, 9, 14), np.float32)).shape == (1, 3, 18, 28)


def test_the_old_form_of_the_size_is_height_first_and_says_how_it_was_read(checkpoint):
    result = invoke("--ckpt", "x2.pt", "--static", "9x14", "--no-verify")
    assert result.exit_code == 0, result.output
    assert result.stderr == "Note: --static, HEIGHTxWIDTH, was read as --size 14x9; write that from now on\n"
    assert written() == ["x2.14x9.onnx", "x2.pt"]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (Options(), "a.b.onnx"),
        (Options(opset=17), "a.b.onnx"),
        (Options("attention", opset=23), "a.b.attention.onnx"),
        (Options(opset=18), "a.b.opset18.onnx"),
        (Options(rib_tolerance=1e-6), "a.b.rib1e-06.onnx"),
        (
            Options("mha", half=True, opset=20, static=Size(360, 640), rib_tolerance=0.01),
            "a.b.mha.640x360.opset20.rib0.01.fp16.onnx",
        ),
    ],
)
def test_every_choice_has_a_name_of_its_own(options, name):
    assert default_name(Path("folder/a.b.pt"), options) == Path(name)


def test_rib_tolerance_is_reported_and_bounded(checkpoint):
    result = invoke("--ckpt", "x2.pt", "--rib-tolerance", "0.02")
    assert result.exit_code == 0, result.output
    changes = [float(c) for c in re.findall(r"rank 18 → (?:8|16), no logit changes by more than (\S+)", result.output)]
    assert changes
    assert all(0 < change <= 0.02 for change in changes)
    metadata = {entry.key: entry.value for entry in onnx.load("x2.rib0.02.onnx").metadata_props}
    assert json.loads(metadata["ribsr.rib_tolerance"]) == 0.02


def test_matmul_beyond_the_limit_is_refused_and_names_the_alternatives(checkpoint):
    result = invoke("--ckpt", "x2.pt", "--form", "matmul", "--score-limit", "0.01")
    assert result.exit_code == 1
    assert "largest score tensor" in result.output
    for alternative in ("--form mha", "plugin", "--score-limit"):
        assert alternative in result.output
    assert written() == ["x2.pt"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--ckpt", "missing.pt"], 1, "missing.pt: no such file"),
        (["--ckpt", "x2.pt", "--model", "sst"], 1, "was made as small"),
        (["--ckpt", "x2.pt", "--model", "edsr"], 1, "choose one of"),
        (["--ckpt", "x2.pt", "--opset", "16"], 1, "choose 17 to 23"),
        (["--ckpt", "x2.pt", "--opset", "17", "--form", "attention"], 1, "--form attention; choose 23"),
        (["--ckpt", "x2.pt", "--size", "10"], 2, "give WxH"),
        (["--ckpt", "x2.pt", "--size", "9x99999"], 2, "16384 pixels a side are possible"),
        (["--ckpt", "x2.pt", "--size", "9x9", "--static", "9x9"], 2, "--static is the old name of --size"),
        (["--ckpt", "x2.pt", "--static", "10"], 2, "give HxW"),
        (["--ckpt", "x2.pt", "--form", "plugin"], 1, "--form plugin needs --fp16"),
        (["--ckpt", "x2.pt", "-o", "nowhere/x2.onnx"], 1, "there is no folder nowhere"),
        (["--ckpt", "x2.pt", "-o", "x2.pt"], 1, "x2.pt: an ONNX file's name ends in .onnx"),
        (["--ckpt", "x2.pt", "--rib-tolerance", "nan"], 2, "'nan' is not a finite number"),
        (["--ckpt", "x2.pt", "--config", "missing.yml"], 1, "missing.yml: No such file"),
        (["--ckpt", "x2.pt", "--static", "9x0"], 2, "give HxW"),
        (["--ckpt", "x2.pt", "--form", "mha", "--attention", "matmul"], 2, "--attention is the old name of --form"),
        (["--ckpt", "x2.pt", "--form", "flat"], 2, "'flat' is not one of"),
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


def spoil(monkeypatch: pytest.MonkeyPatch, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """What is written from now on has other weights in the last convolution."""
    original = lower.lower

    def broken(bare, form):
        model = original(bare, form)
        for tensor in model.graph.initializer:
            if tensor.name.startswith("upsampler.up_conv.weight"):
                values = onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(change(values).astype(values.dtype), tensor.name))
        return model

    monkeypatch.setattr(lower, "lower", broken)


WRONG = {
    "a little larger": lambda values: values * 1.01,
    "of another model": lambda values: np.random.default_rng(9).standard_normal(values.shape) * values.std(),
    "swapped": lambda values: values[::-1],
    "in another layout": lambda values: values.swapaxes(2, 3),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(
    "arguments", [[], ["--fp16"], ["--form", "mha"], ["--fp16", "--form", "matmul"], ["--fp16", "--form", "mha"]]
)
def test_a_file_that_computes_something_else_is_not_written(checkpoint, monkeypatch, wrong, arguments):
    spoil(monkeypatch, WRONG[wrong])
    result = invoke("--ckpt", "x2.pt", *arguments)
    assert result.exit_code == 1
    rule = "rmse [0-9.e-]+ is above 2 × .*, PyTorch's in fp16" if "--fp16" in arguments else "largest error .* is above"
    assert re.search(f"the file differs from the checkpoint on a sample picture: {rule}", result.output), result.output
    assert result.output.count("Error: ") == 1
    assert written() == ["x2.pt"]
    if arguments == []:
        assert invoke("--ckpt", "x2.pt", "--no-verify").exit_code == 0
        assert written() == ["x2.onnx", "x2.pt"]


@pytest.mark.parametrize(("arguments", "dtype"), [([], np.float32), (["--fp16"], np.float16)])
def test_a_file_that_gives_nan_is_not_written(checkpoint, monkeypatch, arguments, dtype):
    spoil(monkeypatch, lambda values: np.full_like(values, np.nan) if values.dtype == dtype else values)
    result = invoke("--ckpt", "x2.pt", *arguments)
    assert result.exit_code == 1
    assert "NaN or infinite values of" in result.output
    assert written() == ["x2.pt"]


@pytest.mark.parametrize(("arguments", "off"), [([], 1e-6), (["--fp16"], 2e-4)])
def test_a_file_that_only_rounds_is_written(checkpoint, monkeypatch, arguments, off):
    spoil(monkeypatch, lambda values: values * (1 + off))
    result = invoke("--ckpt", "x2.pt", *arguments)
    assert result.exit_code == 0, result.output
    assert ("rmse ≤ 2 ×" if arguments else "max ≤ 0.0001") in result.output


@pytest.mark.parametrize(
    ("message", "passes"), [("ONNX Runtime, which is not installed", True), ("not installed", False)]
)
def test_what_keeps_a_file_from_being_run_is_told_by_its_type(checkpoint, monkeypatch, message, passes):
    def fails(path, device, kernels):
        raise (NotInstalled if passes else EngineError)(f"{path}: {message}")

    monkeypatch.setattr("engines.ort.ORTEngine", fails)
    result = invoke("--ckpt", "x2.pt")
    assert result.exit_code == (0 if passes else 1)
    assert ("checked as a graph; not run:" in result.output) is passes


@pytest.mark.parametrize("arguments", [["--attention", "mha"], ["--attention", "mha", "--form", "mha"]])
def test_the_old_name_of_the_form_still_works(checkpoint, arguments):
    assert invoke("--ckpt", "x2.pt", "--no-verify", *arguments).exit_code == 0
    assert written() == ["x2.mha.onnx", "x2.pt"]
    assert read_stamp("x2.mha.onnx").form == "mha"
    assert re.search(r"--attention .*\n? *Old name of --form", invoke("--help").output)


def test_large_windows_are_checked_only_when_asked(checkpoint, monkeypatch):
    monkeypatch.setattr(convert, "QUICK", 1000)
    result = invoke("--ckpt", "x2.pt")
    assert result.exit_code == 0
    assert "not run: its 0.0e9 attention scores take long; use --verify" in result.output
    assert "checked in ONNX Runtime" in invoke("--ckpt", "x2.pt", "--verify").output


def test_a_check_that_cannot_be_made_is_no_success(checkpoint):
    result = invoke("--ckpt", "x2.pt", "--fp16", "--form", "plugin", "--verify")
    assert result.exit_code == 1
    assert "--verify cannot be had with --form plugin" in result.output
    assert written() == ["x2.pt"]


def test_interrupted_while_writing_the_old_file_stays(checkpoint, monkeypatch):
    Path("x2.onnx").write_text("old")

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "_prove", interrupted)
    assert invoke("--ckpt", "x2.pt").exit_code == 130
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


def test_what_cannot_be_is_refused_before_anything_is_loaded(checkpoint):
    program = "import sys; from export.onnx import main; main(['--ckpt', 'x2.pt', '--opset', '16'])"
    loaded = "\nfinally: print([name for name in ('torch', 'onnxscript') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"try: {program}{loaded}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "[]\n"
    assert "choose 17 to 23" in done.stderr


def test_weights_that_are_not_numbers_are_told_as_such(checkpoint):
    model = ribsr.load("x2.pt")
    with torch.no_grad():
        next(model.parameters())[0] = torch.nan
    ribsr.save(model, "nan.pt")
    result = invoke("--ckpt", "nan.pt")
    assert result.exit_code == 1
    assert re.search(r"nan\.pt: \S+ holds NaN or infinite values; the training run", result.output)
    with pytest.raises(EngineError, match=r"nan\.pt: \S+ holds NaN"):
        open_engine("nan.pt", device="cpu")
    assert written() == ["nan.pt", "x2.pt"]


def test_a_terminal_shows_what_takes_long(checkpoint):
    done = on_terminal("-m", "export.onnx", "--ckpt", "x2.pt", "--no-verify")
    assert done.code == 0, done.terminal
    assert "tracing the graph" in done.terminal
    assert "tracing the graph" not in done.stdout
    assert "multiples of 8 for the kernels: " in done.stdout
    assert re.search(r"wrote x2\.onnx: .*, \d+\.\d KiB", done.stdout)
    assert redirected("-m", "export.onnx", "--ckpt", "x2.pt", "--no-verify") == (0, done.stdout, "")


@pytest.mark.parametrize(
    ("arguments", "readers", "note"),
    [
        ([], "for ONNX Runtime from 1.16 on", None),
        (["--form", "mha"], "for ONNX Runtime and OpenVINO", None),
        (["--form", "matmul"], "for nearly every reader", None),
        (
            ["--form", "attention"],
            "for ONNX Runtime from 1.23 on, OpenVINO",
            "1.6 times the time and many times the memory",
        ),
        (
            ["--form", "attention", "--fp16"],
            "for ONNX Runtime from 1.23 on",
            "4 times the time and many times the memory",
        ),
        (["--fp16"], "for ONNX Runtime from 1.16 on", "half precision is for GPUs"),
        (["--form", "plugin", "--fp16"], "for TensorRT with our plugins", None),
    ],
)
def test_what_is_written_is_told_for_whom_and_what_it_costs_on_a_cpu(checkpoint, arguments, readers, note):
    arguments = arguments if "plugin" in arguments else [*arguments, "--no-verify"]
    said = invoke("--ckpt", "x2.pt", *arguments).output
    _, _, after = said.partition("wrote x2.")
    assert f"\n{readers}" in after
    assert after.count("note: ") == (note is not None)
    assert note is None or note in after


def test_a_network_too_large_for_a_file_is_refused_before_the_work(checkpoint, monkeypatch):
    """Files end at 2 GiB, here at 160 KiB; folding takes minutes for such a network."""
    network = ribsr.load(checkpoint)
    foreseen = 4 * folded_numbers(network)
    size = 4 * sum(weight.numel() for weight in fold(network)[0].state_dict().values())
    assert foreseen <= size < 1.1 * foreseen  # heads are padded
    monkeypatch.setattr(convert, "FOR_NODES", 0)
    monkeypatch.setattr(convert, "LARGEST_FILE", foreseen - 4)
    with monkeypatch.context() as inside:
        inside.setattr("export.fold.fold", None)
        result = invoke("--ckpt", "x2.pt")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: small x2: its weights come to ")
    assert "--rib-tolerance" in result.stderr
    assert result.stderr.count("\n") == 1
    monkeypatch.setattr(convert, "LARGEST_FILE", size - 4)
    assert "its weights come to" in invoke("--ckpt", "x2.pt").stderr  # known after folding
    assert written() == ["x2.pt"]
    assert invoke("--ckpt", "x2.pt", "--rib-tolerance", "100", "--no-verify").exit_code == 0  # of lower ranks
