"""tools/latency.py: what it reports, not how fast anything is."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from engines import EngineError
from engines.base import Engine, LayerTime
from engines.ort import ORTEngine
from engines.trt.gpu import CUDAError
from ribsr.base.sizes import Size
from tests.engines import fakes
from tools import latency
from tools._common import ModelName, console
from tools._timing import Child, Setup, _grown, _rotated, show, statistics, with_ratios, worker
from tools.latency import main

ROOT = Path(__file__).resolve().parents[2]

QUICK = ("--rounds", "3", "--warmup", "1")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def report(*arguments: str) -> tuple[int, dict[str, Any]]:
    result = run(*arguments, "--json", "-")
    assert result.stdout, result.stderr
    return result.exit_code, json.loads(result.stdout)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with two ONNX files (processes without torch start quickly)."""
    monkeypatch.chdir(tmp_path)
    fakes.write_onnx(Path("a.onnx"))
    fakes.write_onnx(Path("b.onnx"), precision="fp16")
    return tmp_path


def test_it_runs_from_a_clone(models: Path) -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "tools" / "latency.py", "a.onnx", "b.onnx", *QUICK, "--size", "20x10"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if line.strip().startswith(("a.onnx", "b.onnx"))]
    assert [row[:2] for row in rows] == [["a.onnx", "20x10"], ["b.onnx", "20x10"]]
    assert rows[0][-1] == "1.000"
    assert "host clock" in result.stdout
    assert os.access(ROOT / "tools" / "latency.py", os.X_OK)


def test_every_model_is_timed_at_every_size(models: Path) -> None:
    code, seen = report("a.onnx", "b.onnx", *QUICK, "--size", "20x10", "--size", "9x9", "--threads", "1")
    assert code == 0
    results = seen["results"]
    assert [(r["file"], r["size"]) for r in results] == [
        ("a.onnx", "20x10"),
        ("b.onnx", "20x10"),
        ("a.onnx", "9x9"),
        ("b.onnx", "9x9"),
    ]
    for result in results:
        assert len(result["times"]) == 3
        assert 0 < result["fastest"] <= result["median"] <= result["p95"]
        assert result["spread"] >= 0
        assert result["peak_memory"] > 10 * 2**20
        assert result["clock"]
        assert result["description"]["runtime"] == "onnxruntime"
    assert [r["ratio"] for r in results if r["file"] == "a.onnx"] == [1, 1]
    assert seen["settings"] == [{"rounds": 3, "warmup": 1, "device": "auto", "threads": 1}]
    assert seen["environments"][0]["versions"]["numpy"] == np.__version__
    assert seen["environments"][0]["cores"] >= 1


def test_checkpoints_run_beside_exported_files(folder: Path) -> None:
    code, seen = report("x2.pt", "x2.pt@bf16", "x2.onnx", "--rounds", "1", "--warmup", "0", "--size", "8x8")
    assert code == 0
    assert [r["description"]["precision"] for r in seen["results"]] == ["fp32", "bf16", "fp32"]
    assert [r["description"]["runtime"] for r in seen["results"]] == ["pytorch", "pytorch", "onnxruntime"]


def test_memory_is_that_of_each_model(models: Path) -> None:
    code, seen = report("a.onnx", "--rounds", "1", "--warmup", "0", "--size", "1000x1000", "--size", "8x8")
    large, small = (result["peak_memory"] for result in seen["results"])
    assert code == 0
    assert large > small + 3 * 4 * 4 * 1000 * 1000, "the output alone is that large"


def test_a_model_that_fails_does_not_stop_the_others(models: Path) -> None:
    fakes.write_onnx(Path("static.onnx"), shape=("b", 3, 8, 8))
    code, seen = report("a.onnx", "missing.onnx", "static.onnx", *QUICK, "--size", "20x10")
    first, missing, static = seen["results"]
    assert code == 1
    assert first["failure"] is None
    assert missing["failure"] == "no such file"
    assert static["failure"].startswith("takes pictures of 8x8 only, got 20x10")
    assert missing["ratio"] is None
    result = run("missing.onnx", *QUICK)
    assert result.exit_code == 1
    assert "FAIL missing.onnx at 128x128: no such file" in result.stdout


def test_files_are_merged_into_one_table(models: Path) -> None:
    for name in ("a", "b"):
        assert run(f"{name}.onnx", *QUICK, "--size", "20x10", "--json", f"{name}.json").exit_code == 0
    other = json.loads(Path("b.json").read_text(encoding="utf-8"))
    other["environments"][0]["cpu"] = "another machine"
    Path("b.json").write_text(json.dumps(other), encoding="utf-8")
    code, merged = report("--merge", "a.json", "b.json")
    assert code == 0
    a, b = merged["results"]
    assert (a["source"], b["source"]) == ("a.json", "b.json")
    assert a["ratio"] == 1
    assert b["ratio"] == pytest.approx(b["median"] / a["median"])
    assert len(merged["environments"]) == 2
    assert "these figures come from different machines" in run("--merge", "a.json", "b.json").stdout
    assert "different machines" not in run("--merge", "a.json", "a.json").stdout
    Path("merged.json").write_text(json.dumps(merged), encoding="utf-8")
    assert run("--merge", "merged.json").exit_code == 0, "what was merged can be merged again"


def test_files_of_before_are_merged_too(models: Path) -> None:
    """They call the form attention."""
    assert run("a.onnx", *QUICK, "--size", "20x10", "--json", "now.json").exit_code == 0
    values = json.loads(Path("now.json").read_text(encoding="utf-8"))
    description = values["results"][0]["description"]
    description["attention"] = description.pop("form")
    failed = {"file": "missing.onnx", "size": "20x10", "description": None, "clock": "", "failure": "no such file"}
    values["results"].append(failed)
    Path("before.json").write_text(json.dumps(values), encoding="utf-8")
    code, merged = report("--merge", "now.json", "before.json")
    assert code == 1, "one of the models did not run"
    now, before, missing = (result["description"] for result in merged["results"])
    assert before == now
    assert before["form"] == "mha"
    assert missing is None


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), ("{", "not a JSON file"), ('{"tool": "parity"}', "was not written by tools/latency.py")],
)
def test_files_that_cannot_be_merged(models: Path, content: str | None, message: str) -> None:
    if content is not None:
        Path("a.json").write_text(content, encoding="utf-8")
    result = run("--merge", "a.json")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: a.json: ")
    assert message in result.stderr


@pytest.mark.parametrize("arguments", [[], ["a.onnx", "--rounds", "0"], ["a.onnx", "--size", "big"]])
def test_usage_errors_exit_with_2(models: Path, arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_a_result_file_that_cannot_be_written_is_refused_at_the_start() -> None:
    result = run("missing.onnx", "--json", "nowhere/a.json")
    assert result.exit_code == 2
    assert "there is no folder nowhere" in result.stderr


@pytest.mark.parametrize(
    ("device", "before", "after", "grown"),
    [
        ("cuda:0 NVIDIA H100", 200, 1000, 800),
        ("CUDAExecutionProvider", 200, 1000, 800),
        ("cpu", 200, 1000, None),
        ("CPUExecutionProvider", 200, 1000, None),
        ("cuda:0 NVIDIA H100", None, None, None),
    ],
)
def test_gpu_memory_is_what_the_process_added(
    monkeypatch: pytest.MonkeyPatch, device: str, before: int | None, after: int | None, grown: int | None
) -> None:
    monkeypatch.setattr("tools._timing._gpu_memory", lambda: after)
    assert _grown(before, device) == grown


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (CUDAError("cudaErrorNoDevice", "the NVIDIA driver finds no GPU"), "the NVIDIA driver finds no GPU"),
        (MemoryError("Unable to allocate 1 TiB"), "out of memory; free some, or give less (smaller pictures, --tile)"),
    ],
)
def test_what_fails_in_the_other_process_arrives_as_one_line(error: Exception, line: str) -> None:
    """CUDA's errors carry more than a line, which multiprocessing cannot rebuild."""

    def opener(name: ModelName, options: dict[str, Any]) -> Any:
        raise error

    ours, theirs = multiprocessing.Pipe()
    worker(theirs, ModelName("x2.plan"), Size(8, 8), Setup(1, 0, {}, opener))
    told = ours.recv()
    assert told["failure"] == line
    assert told["traceback"].startswith("Traceback")


def is_killed(pipe: Connection) -> None:
    pipe.send({"clock": "host clock"})
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_has_failed() -> None:
    with Child(is_killed) as child:
        child.listen()
        assert not child.failed
        child.ask(True)
        child.ask(True)
    assert child.told == {"failure": "its process ended with code -9 (killed: out of memory?)"}


def test_what_an_engine_holds_of_the_gpu_has_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    described = {"runtime": "tensorrt", "runtime_version": "8.6.0", "device": "cuda:0", "form": "plugin"}
    result = {"file": "x2.plan", "size": "8x8", "failure": None, "clock": "", "median": 2.0, "p95": 3.0, "spread": 0.5}
    memory = {"peak_memory": 900 << 20, "gpu_memory": 700 << 20, "gpu_allocated": 123 << 20, "ratio": 1.0}
    show(console(), [{**result, **memory, "description": {**described, "precision": "fp16"}}])
    heading, _, row = (line for line in capsys.readouterr().out.splitlines() if line.strip())
    assert heading.split("engine MiB")[1].split() == ["ratio"]
    assert row.split()[-4:] == ["900", "700", "123", "1.000"]


def test_the_slowest_layers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, ...]] = []

    class Played(Engine):
        def describe(self) -> Any:
            return SimpleNamespace(batch=2)

        def run(self, x: np.ndarray) -> np.ndarray:
            raise AssertionError("profile runs it")

        def profile(self, x: np.ndarray, runs: int = 5) -> list[LayerTime]:
            seen.append(x.shape)
            return [LayerTime("[norm]", 1.0), LayerTime("attention", 6.0), LayerTime("convolution", 3.0)]

        def close(self) -> None:
            pass

    monkeypatch.setattr(latency, "open_model", lambda name, options: Played())
    latency.show_layers(console(), ModelName("x2.plan"), Size(10, 20), {}, 2)
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines() if line.strip()]
    assert seen == [(2, 3, 10, 20)]
    assert "2 of 3 layers of x2.plan at 20x10" in printed
    assert rows[2:4] == [["attention", "6.000", "60.0%"], ["convolution", "3.000", "30.0%"]]
    assert "All layers: 10.00 ms" in printed
    latency.show_layers(console(), ModelName("x2.plan"), Size(10, 20), {}, 9)
    assert "3 of 3 layers" in (printed := capsys.readouterr().out)
    assert "[norm]" in printed


def test_layers_are_those_of_models_that_ran(models: Path) -> None:
    Path("x2.plan").write_bytes(b"engine")
    result = run("x2.plan", "a.onnx", *QUICK, "--size", "20x10", "--layers", "3", "--json", "out.json")
    assert result.exit_code == 1
    assert "FAIL x2.plan at 20x10: its manifest x2.plan.json is missing" in result.stdout
    assert "layers of x2.plan" not in result.stdout
    assert re.search(r"3 of \d+ layers of a\.onnx at 20x10", result.stdout)
    assert Path("out.json").is_file()


def test_layers_of_every_runtime(folder: Path) -> None:
    """Also of pictures that run in tiles."""
    tiled = ("--size", "300x8", "--tile", "200x200")
    result = run("x2.pt@bf16", "x2.onnx", *QUICK, *tiled, "--layers", "99", "--threads", "1")
    assert result.exit_code == 0, result.output
    _, checkpoint, onnx = re.split(r"\d+ of \d+ layers of ", result.stdout)
    assert checkpoint.startswith("x2.pt@bf16 at 300x8")
    assert "aten::pixel_shuffle" in checkpoint
    assert onnx.startswith("x2.onnx at 300x8")
    assert "DepthToSpace" in onnx


def test_a_model_without_layers_does_not_stop_the_others(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(engine: ORTEngine, x: np.ndarray, runs: int = 5) -> list[LayerTime]:
        if engine.describe().path == "a.onnx":
            raise EngineError("a.onnx: tells nothing")
        return [LayerTime("attention", 6.0)]

    monkeypatch.setattr(ORTEngine, "profile", refuses)
    result = run("a.onnx", "b.onnx", *QUICK, "--size", "20x10", "--layers", "3")
    assert result.exit_code == 1
    assert "FAIL a.onnx: tells nothing" in result.stdout
    assert "1 of 1 layers of b.onnx at 20x10" in result.stdout


def test_layers_need_models() -> None:
    result = run("--merge", "a.json", "x2.plan", "--layers", "3")
    assert result.exit_code == 2
    assert "--layers runs models, which --merge does not" in result.stderr


def test_statistics() -> None:
    seen = statistics([4.0, 1.0, 3.0, 2.0, 100.0])
    assert seen == {"median": 3.0, "p95": pytest.approx(80.8), "spread": 2.0, "fastest": 1.0}
    assert statistics([]) == {}


def test_ratios_are_to_the_first_model_that_ran_at_the_same_size() -> None:
    rated = with_ratios(
        [
            {"size": "8x8"},
            {"size": "8x8", "median": 2.0},
            {"size": "9x9", "median": 8.0},
            {"size": "8x8", "median": 5.0},
        ]
    )
    assert [result["ratio"] for result in rated] == [None, 1.0, 1.0, 2.5]


def test_every_round_starts_with_another_model() -> None:
    assert [_rotated([0, 2, 5], number) for number in range(3)] == [[0, 2, 5], [2, 5, 0], [5, 0, 2]]
    assert _rotated([], 1) == []
