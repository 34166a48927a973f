"""The form and precision of what TensorRT gets, and the plugin library that it needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from export.trt import convert
from plugins import compiler, fuse, library
from tests.export.trt.played import ELEVEN, OLDEST, TEN, failed, invoke, make_gpu


@pytest.mark.parametrize(
    ("version", "arguments", "file", "form", "precision", "said"),
    [
        (OLDEST, ["--size", "48x32"], "x2", "matmul", "fp32", "the plugin computes in half precision (--fp16)"),
        (TEN, ["--size", "48x32"], "x2", "matmul", "fp32", "the plugin computes in half precision (--fp16)"),
        (TEN, [], "x2.23", "attention", "fp32", "form 'attention' instead of the plugin"),
        (TEN, ["--bf16"], "x2", "plugin", "bf16", "wrote"),
        (ELEVEN, ["--bf16"], "x2.23", "plugin", "bf16", "wrote"),
        (ELEVEN, ["--fp16", "--no-plugin"], "x2.23", "attention", "fp16", "--no-plugin was given"),
        (OLDEST, ["--fp16", "--no-plugin", "--size", "48x32"], "x2", "matmul", "fp16", "largest score tensor"),
        (OLDEST, [], "x2.fp16", "plugin", "fp16", "wrote x2.fp16.plan"),
        (OLDEST, ["--fp16"], "x2.plugin.fp16", "plugin", "fp16", "not run: only TensorRT runs a file in form"),
        (OLDEST, [], "x2.matmul.fp16", "matmul", "fp16", "wrote x2.matmul.fp16.plan"),
        (ELEVEN, [], "x2.attention", "attention", "fp32", "wrote x2.attention.fp32.plan"),
        (TEN, ["--fp16"], "x2.static", "plugin", "fp16", "pictures 40x24"),
    ],
)
def test_form_and_precision(here, monkeypatch, files, version, arguments, file, form, precision, said):
    gpu = make_gpu(version, here, monkeypatch)
    gpu.error = 1e-4
    (here / "x2.onnx").write_bytes((files / f"{file}.onnx").read_bytes())
    (here / "x2.onnx").rename(here / f"{file}.onnx")
    monkeypatch.setattr(convert, "verify", lambda *args, verify=convert.verify: rerouted(verify, here, files, args))
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert said in result.output
    (plan,) = here.glob("*.plan")
    manifest = json.loads(Path(f"{plan}.json").read_text())
    assert (manifest["form"], manifest["precision"]) == (form, precision)
    assert bool(manifest["plugin"]) == (form == "plugin") == bool(gpu.loaded)
    flags = [args[0].name for name, args in gpu.trt.calls if name == "IBuilderConfig.set_flag"]
    assert ("FP16" in flags) == (version == OLDEST and precision == "fp16")
    ops = {node.op_type for node in gpu.parsed.graph.node}
    assert ("Softmax" in ops, "Attention" in ops) == (form == "matmul", form == "attention")
    dims = [dim.dim_value or dim.dim_param for dim in gpu.parsed.graph.input[0].type.tensor_type.shape.dim]
    static = file == "x2.static" or "--size" in arguments
    assert dims == [1, 3, *(manifest["profile"]["max"][2:] if static else ["height", "width"])]


@pytest.mark.parametrize("file", ["wide.fp16", "wide.plugin.fp16"])
def test_wide_layers_become_one_node(here, monkeypatch, files, file):
    gpu = make_gpu(TEN, here, monkeypatch)
    result = invoke("--onnx", str(files / f"{file}.onnx"), "--no-verify")
    assert result.exit_code == 0, result.output
    count = fuse.count(gpu.parsed)
    assert (count["FeedForward"], count["AttentionInputs"]) == (1, 1)
    assert count["DepthwiseConv3x3"] == 0
    (plan,) = here.glob("*.plan.json")
    assert json.loads(plan.read_text())["layers"]["plugins fp16"] == sum(count.values())


def rerouted(verify: Any, here: Path, files: Path, args: tuple) -> str:
    """The played engine reads x2.onnx whatever the plan's file is."""
    (here / "x2.onnx").write_bytes((files / ("x2.static.onnx" if args[1].static else "x2.onnx")).read_bytes())
    try:
        return verify(*args)
    finally:
        (here / "x2.onnx").unlink()


@pytest.mark.parametrize(
    ("version", "arguments", "file", "message"),
    [
        (OLDEST, ["--bf16"], "x2", "--bf16 needs TensorRT 10 or later, this is 8.6.0; use --fp16"),
        (TEN, ["--bf16"], "x2.fp16", "is in fp16 and form 'canonical', which leaves no choice"),
        (OLDEST, ["--fp16"], "x2.23", "has opset 23, TensorRT 8.6.0 reads 17; export without --opset"),
        (OLDEST, [], "x2.attention", "opset 23"),
        (TEN, ["--fp16"], "x2.mha", "is in form 'mha', which only ONNX Runtime runs"),
        (TEN, ["--fp16"], "x2.attention", "which leaves no choice of precision; for fp16 take the canonical"),
        (TEN, ["--no-plugin"], "x2.plugin.fp16", "for --no-plugin export it without --form"),
        (TEN, ["--fp16", "--size", "64x64"], "x2.static", "takes pictures of 40x24 only"),
        (
            TEN,
            ["--fp16", "--no-plugin", "--score-limit", "0.1"],
            "x2",
            "the limit is 0.1 GiB: use --fp16 with the plugin",
        ),
        (TEN, ["--fp16", "--shapes", "64x64", "32x32", "128x128"], "x2", "must not shrink from MIN over OPT to MAX"),
        (TEN, ["--fp16", "-o", "nowhere/x2.plan"], "x2", "there is no folder nowhere"),
        (TEN, ["--fp16", "-o", "x2.onnx"], "x2", "x2.onnx: a plan's name ends in .plan"),
        (TEN, ["--fp16", "--onnx", "missing.onnx"], "x2", "missing.onnx: no such file"),
        (TEN, ["--fp16", "--timing-cache", "nowhere/cache"], "x2", "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_had_is_one_line(here, monkeypatch, files, version, arguments, file, message):
    make_gpu(version, here, monkeypatch)
    (here / "x2.onnx").write_bytes((files / f"{file}.onnx").read_bytes())
    assert message in failed(invoke(*arguments), here)


def test_library_is_built_where_headers_are(gpu, here, monkeypatch):
    monkeypatch.delenv(library.TENSORRT_VARIABLE)
    path = here / "lib" / "built.so"
    monkeypatch.setattr(library, "tensorrt_path", lambda major: path)
    major = int(gpu.trt.__version__.split(".")[0])
    monkeypatch.setattr(compiler, "find_tensorrt", lambda: {major: Path("headers")})
    monkeypatch.setattr(compiler, "build_tensorrt", lambda include: path.write_bytes(b"new"))
    result = invoke("--fp16")
    assert result.exit_code == 0, result.output
    assert f"building {path} with the headers in headers" in result.output
    assert gpu.loaded == [path]


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        (False, "is not built and there are no headers of TensorRT"),
        (True, "cannot be built: nvcc not found"),
    ],
)
def test_without_a_library_another_form_is_taken_and_said(gpu, here, monkeypatch, headers, said):
    monkeypatch.delenv(library.TENSORRT_VARIABLE)
    monkeypatch.setattr(library, "tensorrt_path", lambda major: here / "lib" / "none.so")
    major = int(gpu.trt.__version__.split(".")[0])
    monkeypatch.setattr(compiler, "find_tensorrt", lambda: {major: Path("headers")} if headers else {})

    def fails(include: Path) -> None:
        raise compiler.BuildError("nvcc not found")

    monkeypatch.setattr(compiler, "build_tensorrt", fails)
    result = invoke("--fp16", "--size", "48x32")
    assert result.exit_code == 0, result.output
    assert "form 'matmul' instead of the plugin" in result.output
    assert said in result.output


def test_named_library_that_does_not_work_is_an_error(gpu, here, monkeypatch):
    def wrong(trt: Any, path: Path) -> None:
        raise library.LibraryError(f"{path} was built for another TensorRT")

    monkeypatch.setattr(library, "load_tensorrt", wrong)
    assert "was built for another TensorRT" in failed(invoke("--fp16"), here)
