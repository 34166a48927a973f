"""What the tools share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import _common
from tools._common import ModelName, environment, environment_line, gpu_query, model_name, write_json


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x2.pt", ModelName("x2.pt")),
        ("x2.pt@fp16", ModelName("x2.pt", "fp16")),
        ("a@b/x2.pt@bf16", ModelName("a@b/x2.pt", "bf16")),
        ("x2.pt@int8", ModelName("x2.pt@int8")),
        ("@fp16", ModelName("@fp16")),
    ],
)
def test_a_precision_may_stand_behind_a_checkpoint(text: str, expected: ModelName) -> None:
    assert model_name(text) == expected
    assert str(expected) == text


def test_a_file_that_has_such_a_name_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "x2.pt@fp16"
    path.touch()
    assert model_name(str(path)) == ModelName(str(path))


def test_the_environment_fits_on_a_line() -> None:
    line = environment_line(environment())
    assert "\n" not in line
    assert "python 3." in line
    assert "cores" in line


def fake_nvidia_smi(folder: Path, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_gpus_are_asked_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_query("name") == []
    fake_nvidia_smi(tmp_path, 'echo "$@"; echo "NVIDIA H100, 580"')
    assert gpu_query("name") == ["--query-gpu=name --format=csv,noheader,nounits", "NVIDIA H100, 580"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpu_query("name")[0].endswith("-i 1")
    fake_nvidia_smi(tmp_path, "exit 9")
    assert gpu_query("name") == []


def test_json_is_written_whole(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(str(tmp_path / "a.json"), {"x": float("nan")})
    assert not list(tmp_path.iterdir())
    write_json(str(tmp_path / "a.json"), {"x": 1})
    assert (tmp_path / "a.json").read_text() == '{\n  "x": 1\n}\n'


@pytest.mark.parametrize(
    ("file", "passed_on"),
    [
        ("x2.pt", {"device": "cpu", "threads": 2, "attention": "sdpa", "model": None, "config": None}),
        ("x2.onnx", {"device": "cpu", "threads": 2, "cuda_graphs": True}),
        ("x2.plan", {"device": "cpu", "cuda_graphs": True}),
    ],
)
def test_each_option_goes_to_the_models_that_take_it(
    file: str, passed_on: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, object]] = []
    monkeypatch.setattr(_common, "open_engine", lambda path, precision, **options: seen.append(options))
    options = {"device": "cpu", "threads": 2, "attention": "sdpa", "model": None, "config": None, "cuda_graphs": True}
    _common.open_model(ModelName(file), options)
    assert seen == [passed_on]
