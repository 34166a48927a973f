"""Which file a plan is made of, and where it goes."""

from __future__ import annotations

from pathlib import Path

import onnx

from tests.export.trt.played import failed, invoke


def test_several_files_to_choose_from_are_listed(gpu, here, files):
    (here / "x3.onnx").write_bytes((files / "x2.mha.onnx").read_bytes())
    result = invoke("--fp16")
    assert result.exit_code == 1
    assert "2 ONNX files to choose from: x2.onnx, x3.onnx; name one with --onnx" in result.output
    assert invoke("--fp16", "--onnx", "x2.onnx").exit_code == 0


def test_files_of_other_tools_are_none_of_ours(gpu, here):
    stranger = onnx.load("x2.onnx")
    del stranger.metadata_props[:]
    stranger.producer_name = "pytorch"
    onnx.save_model(stranger, "theirs.onnx")
    assert invoke("--fp16").exit_code == 0
    Path("x2.onnx").unlink()
    result = invoke("--fp16")
    assert result.exit_code == 1
    assert "there is no ONNX file of this toolkit here (not theirs.onnx: of another tool, or damaged)" in result.output
    assert "was made by another tool" in invoke("--onnx", "theirs.onnx").output


def test_damaged_file(gpu, here):
    content = Path("x2.onnx").read_bytes()
    Path("x2.onnx").write_bytes(content[: len(content) // 2])
    assert "not an ONNX file, or cut short" in failed(invoke("--fp16", "--onnx", "x2.onnx"), here)


def test_a_folder_is_no_name_for_a_plan(gpu, here):
    Path("x2.plan").mkdir()
    result = invoke("--fp16", "-o", "x2.plan")
    assert (result.exit_code, result.output) == (1, "Error: x2.plan: is a folder; name a file\n")
