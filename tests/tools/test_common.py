"""What the tools share."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import click
import pytest
from rich.console import Console
from rich.text import Text

from tools import _common
from tools._common import ModelName, environment, environment_line, gpu_query, model_name, show_table, write_json

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x2.pt", ModelName("x2.pt")),
        ("x2.pt@fp16", ModelName("x2.pt", "fp16")),
        ("a@b/x2.pt@bf16", ModelName("a@b/x2.pt", "bf16")),
        ("x2.pt@int8", ModelName("x2.pt@int8")),
        ("x2.onnx@openvino", ModelName("x2.onnx", None, "openvino")),
        ("x2.onnx@openvino@bf16", ModelName("x2.onnx", "bf16", "openvino")),
        ("x2.fp16.onnx@graphs", ModelName("x2.fp16.onnx", graphs="graphs")),
        ("x2.plan@no-graphs", ModelName("x2.plan", graphs="no-graphs")),
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


def test_a_runtime_goes_to_the_models_that_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, object]] = []
    monkeypatch.setattr(_common, "open_engine", lambda path, **options: seen.append(options))
    options = {"runtime": "openvino", "kernels": True, "hint": "latency"}
    for text in ("x2.pt", "x2.onnx", "x2.onnx@onnxruntime", "x2.pt@openvino"):
        _common.open_model(model_name(text), options)
    assert seen == [
        {"precision": None},
        {"precision": None, "runtime": "openvino", "hint": "latency"},
        {"precision": None, "runtime": "onnxruntime", "kernels": True},
        {"precision": None, "runtime": "openvino"},
    ]
    assert model_name("x2.onnx@bf16@openvino") == ModelName("x2.onnx", "bf16", "openvino")
    seen.clear()
    for text in ("x2.plan@graphs", "x2.plan@no-graphs", "x2.plan"):
        _common.open_model(model_name(text), {"cuda_graphs": True})
    assert [told["cuda_graphs"] for told in seen] == [True, False, True]
    with pytest.raises(click.UsageError, match="x2.pt@fp16@bf16: names two precisions"):
        model_name("x2.pt@fp16@bf16")


COLUMNS = ("model", "runs on", "precision", "PSNR dB", "max error", "rule", "")
ROWS = [
    ["a" * 70 + ".onnx", "onnxruntime 1.32.0, CPU", "fp16", "74.1", "1.23e-04", "rmse ≤ 2 × 1.2e-05", Text("FAIL")],
    ["x2 [b].onnx", "onnxruntime 1.32.0, CPU", "fp32", "123.4", "5.96e-08", "max ≤ 0.0001", Text("pass")],
    ["gone.onnx", "failed"],
]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("name", ["short.onnx", "a" * 70 + ".onnx", "b" * 190 + ".onnx"])
def test_tables_lose_nothing_at_any_width(width: int, name: str) -> None:
    rows = [[name, *ROWS[0][1:]], *ROWS[1:]]
    written = io.StringIO()
    show_table(Console(file=written, force_terminal=True, width=width, markup=False, color_system=None), COLUMNS, rows)
    lines = written.getvalue().splitlines()
    for row in rows:
        for cell in row:
            assert any(str(cell) in line for line in lines), cell
    is_table = any(all(column in line for column in COLUMNS) for line in lines)
    assert is_table == (len(name) + 85 <= width)
    if is_table:
        assert max(map(len, lines)) <= width
        assert next(line for line in lines if name in line).rstrip().endswith("FAIL")
    else:
        assert f"{name} FAIL" in lines
        assert "  PSNR dB: 123.4" in lines


SHOWN = """
import sys
from tools._common import console, show_table
show_table(console(), ("model", "runs on", "PSNR dB", ""), [["m" * 300 + ".onnx", "CPU", "74.1", "FAIL"]])
"""


def test_what_is_redirected_has_its_full_width() -> None:
    narrow = {**os.environ, "COLUMNS": "40", "LINES": "10", "FORCE_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-c", SHOWN], env=narrow, capture_output=True, text=True, check=True, cwd=ROOT
    )
    (line,) = (line for line in done.stdout.splitlines() if "m" * 300 in line)
    assert line.split()[1:] == ["CPU", "74.1", "FAIL"]


@pytest.mark.parametrize(("columns", "listed"), [(60, True), (200, False)])
def test_a_terminal_says_how_wide_it_is(columns: int, listed: bool) -> None:
    termios, fcntl, pty = (pytest.importorskip(name) for name in ("termios", "fcntl", "pty"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown = SHOWN.replace("300", "80")
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    subprocess.run(
        [sys.executable, "-c", shown], env={**environment, "TERM": "xterm"}, stdin=theirs, stdout=theirs, check=True,
        cwd=ROOT,
    )  # fmt: skip
    text = os.read(ours, 10**5).decode()
    os.close(ours)
    os.close(theirs)
    assert "m" * 80 + ".onnx" in text
    assert ("PSNR dB: 74.1" in text) == listed
    assert "FAIL" in text
