"""tools/picture_benchmark.py: what it reports, not how fast anything is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.engines import fakes
from tools.picture_benchmark import Times, main, words


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return fakes.write_onnx(tmp_path / "tiny.onnx")


def test_it_times_the_command_the_engine_and_the_encoder(model: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ["--size", "40x32", "--count", "3", "--format", ".png", "--device", "cpu", "--json", str(report)]
    result = CliRunner().invoke(main, [str(model), *options])
    assert result.exit_code == 0, result.output
    assert "3 .png of 40x32" in result.stdout
    told = json.loads(report.read_text())
    assert (told["kind"], told["count"], told["size"], told["format"]) == ("picture_benchmark", 3, "40x32", ".png")
    assert min(told[name] for name in ("whole", "start", "engine", "encoding")) > 0
    assert 0 <= told["told"] < told["whole"]  # the command tells hundredths of a second: 0.00 for a model this small
    assert os.access(Path(__file__).parents[2] / "tools" / "picture_benchmark.py", os.X_OK)


def test_what_the_command_says_against_it_is_the_error(model: Path) -> None:
    result = CliRunner().invoke(main, [str(model), "--count", "1", "--size", "9000x8", "--format", ".webp"])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {model}: engines.upscale failed: ")
    assert result.stderr.count("\n") == 1


def test_overhead_is_without_the_start() -> None:
    assert Times(whole=14, start=3, told=9, engine=10, encoding=8).overhead(10) == pytest.approx(0.1)


def test_options_of_the_engine_go_to_the_command() -> None:
    given = {"device": "cpu", "threads": 2, "tf32": False, "cuda_graphs": True, "kernels": False, "precision": None}
    assert words(given) == ["--device", "cpu", "--threads", "2", "--cuda-graphs", "--no-kernels"]
    assert words({"kernels": True}) == ["--kernels"]
