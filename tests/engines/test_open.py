"""`open_engine`: the runtime by suffix, and what is wrong said in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines import Engine, EngineError, is_checkpoint, open_engine


def test_the_suffix_chooses_the_runtime(onnx_file: Path, checkpoint: Path) -> None:
    with open_engine(onnx_file) as engine:
        assert isinstance(engine, Engine)
        assert engine.describe().runtime == "onnxruntime"
    with open_engine(str(checkpoint)) as engine:
        assert engine.describe().runtime == "pytorch"


@pytest.mark.parametrize(
    ("name", "expected"), [("a.pt", True), ("a.pth", True), ("a.safetensors", True), ("a.onnx", False), ("pt", False)]
)
def test_checkpoints_are_told_by_their_suffix(name: str, expected: bool) -> None:
    assert is_checkpoint(name) is expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x2.tflite", r"x2\.tflite: unknown kind of model file; engines open \.pt, .*\.onnx"),
        ("missing.onnx", r"missing\.onnx: no such file"),
        ("folder.onnx", r"folder\.onnx: is a folder"),
        ("x2.plan", r"x2\.plan: its manifest x2\.plan\.json is missing"),
    ],
)
def test_files_that_cannot_be_opened(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "x2.plan").touch()
    with pytest.raises(EngineError, match=message):
        open_engine(tmp_path / name)


@pytest.mark.parametrize("option", [{"attention": "sdpa"}, {"model": "sst"}, {"config": "options.yml"}])
def test_options_of_checkpoints_are_refused_for_exported_files(onnx_file: Path, option: dict[str, str]) -> None:
    with pytest.raises(
        EngineError, match=rf"{next(iter(option))} can be chosen for \.pt, \.pth, \.safetensors files only"
    ):
        open_engine(onnx_file, **option)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("file", ["onnx_file", "checkpoint"])
def test_unknown_devices_and_threads_are_refused(file: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(file)
    with pytest.raises(EngineError, match="device 'tpu' is unknown; choose one of auto, cpu, cuda"):
        open_engine(path, device="tpu")
    with pytest.raises(EngineError, match="threads must be 1 to 1024, got 0"):
        open_engine(path, threads=0)


def test_options_are_for_the_runtimes_that_have_them(onnx_file: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "x2.plan").touch()
    with pytest.raises(EngineError, match=r"cuda_graphs can be chosen for \.onnx, \.plan, \.rtx files only"):
        open_engine(checkpoint, cuda_graphs=True)
    with pytest.raises(EngineError, match=r"kernels can be chosen for \.onnx files only"):
        open_engine(checkpoint, kernels=False)
    with pytest.raises(EngineError, match=r"hint can be chosen for \.onnx files only"):
        open_engine(checkpoint, hint="latency")
    with pytest.raises(EngineError, match=r"precision can be chosen for \.pt, \.pth, \.safetensors, \.onnx files only"):
        open_engine(tmp_path / "x2.plan", precision="fp16")
    with pytest.raises(EngineError, match="openvino does not run such files, pytorch does"):
        open_engine(checkpoint, runtime="openvino")
    with pytest.raises(EngineError, match=r"tiny\.onnx: CUDA graphs need a GPU"):
        open_engine(onnx_file, device="cpu", cuda_graphs=True)
    with pytest.raises(EngineError, match=r"threads can be chosen for \.pt, \.pth, \.safetensors, \.onnx files only"):
        open_engine(tmp_path / "x2.plan", threads=2)
