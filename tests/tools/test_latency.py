"""tools/latency.py: what it reports, not how fast anything is."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from engines import EngineError
from engines.base import Description, Engine, LayerTime, Timer
from engines.ort import ORTEngine
from engines.trt.gpu import CUDAError
from ribsr.base.sizes import Size
from tests.engines import fakes
from tests.tools import runs
from tools import _chips, latency
from tools._common import ModelName, console
from tools._kinds import grouped, kind_of
from tools._latency_tables import show, show_layers, show_speeds
from tools._measured import LEAST_ROUNDS, MOST_ROUNDS, is_stable, ratio_interval, rounds_for, statistics
from tools._timing import Child, Setup, _grown, _rotated, _Runs, _warm_up, with_ratios, worker
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
    lines = [line.split() for line in result.stdout.splitlines() if line.strip().startswith(("a.onnx", "b.onnx"))]
    rows = [line for line in lines if line[1] != "at"]
    assert [row[:2] for row in rows] == [["a.onnx", "20x10"], ["b.onnx", "20x10"]]
    assert rows[0][-1] == "1.000"
    assert rows[1][-1] != "1.000"
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
        times = result["end_to_end"]
        assert len(times["times"]) == times["runs"] == 3
        assert 0 < times["min"] <= times["median"] <= times["p90"] <= times["p99"]
        assert times["spread"] >= 0
        assert result["device"] is None, "there is no GPU"
        assert result["pictures_per_second"] == pytest.approx(1e3 / times["median"])
        assert result["warmup"]["runs"] == 1
        assert result["peak_memory"] > 10 * 2**20
        assert result["clock"]
        assert result["description"]["runtime"] == "onnxruntime"
    assert [r["ratio"] for r in results if r["file"] == "a.onnx"] == [1, 1]
    assert (seen["kind"], seen["version"]) == ("latency", 1)
    (run,) = seen["runs"]
    assert run["settings"].items() >= {"rounds": 3, "warmup": 1, "device": "auto", "threads": 1}.items()
    assert run["environment"]["versions"]["numpy"] == np.__version__
    assert run["environment"]["cores"] >= 1
    assert datetime.fromisoformat(run["date"]).tzinfo is not None
    assert all(isinstance(word, str) for word in run["command"])


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
    assert missing["end_to_end"] is missing["work"] is missing["achieved"] is None
    result = run("missing.onnx", *QUICK)
    assert result.exit_code == 1
    assert "FAIL missing.onnx at 128x128: no such file" in result.stdout


def test_files_are_merged_into_one_table(models: Path) -> None:
    for name in ("a", "b"):
        assert run(f"{name}.onnx", *QUICK, "--size", "20x10", "--json", f"{name}.json").exit_code == 0
    other = json.loads(Path("b.json").read_text(encoding="utf-8"))
    other["runs"][0]["environment"]["cpu"] = "another machine"
    Path("b.json").write_text(json.dumps(other), encoding="utf-8")
    code, merged = report("--merge", "a.json", "b.json")
    assert code == 0
    a, b = merged["results"]
    assert [merged["runs"][result["run"]]["source"] for result in (a, b)] == ["a.json", "b.json"]
    assert a["ratio"] == 1
    assert b["ratio"] == pytest.approx(b["end_to_end"]["median"] / a["end_to_end"]["median"])
    assert b["paired"] is False
    assert len(merged["runs"]) == 2
    assert "these figures come from different machines" in run("--merge", "a.json", "b.json").stdout
    assert "different machines" not in run("--merge", "a.json", "a.json").stdout
    Path("merged.json").write_text(json.dumps(merged), encoding="utf-8")
    code, again = report("--merge", "merged.json")
    assert code == 0, "what was merged can be merged again"
    assert [run["source"] for run in again["runs"]] == ["a.json", "b.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("{", "not a JSON file; give one that tools/latency.py --json wrote"),
        ("[1]", "was not written by tools/latency.py --json"),
        ('{"results": []}', "was not written by tools/latency.py --json"),
        ('{"kind": "parity", "version": 1}', "was written by another tool ('parity'); give one of"),
        ('{"tool": "latency", "results": []}', "is of before there were versions, this release reads 1; measure again"),
        (
            '{"kind": "latency", "version": 1, "results": [{}], "runs": []}',
            "is not what tools/latency.py --json writes",
        ),
        ('{"kind": "latency", "version": 2}', "has version 2, this release reads 1; measure again"),
    ],
)
def test_files_that_cannot_be_merged(models: Path, content: str | None, message: str) -> None:
    if content is not None:
        Path("a.json").write_text(content, encoding="utf-8")
    result = run("--merge", "a.json")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: a.json: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("lost", ["limits", "layers", "clocks", "warmup", "description", "achieved", "end_to_end"])
def test_a_file_that_lacks_a_field_is_named(models: Path, lost: str) -> None:
    values = runs.latency()
    del values["results"][0][lost]
    runs.write(Path("a.json"), values)
    result = run("--merge", "a.json")
    assert result.exit_code == 1
    assert result.stderr == "Error: a.json: is not what tools/latency.py --json writes; measure again\n"


def test_a_file_cannot_write_to_the_terminal(models: Path) -> None:
    runs.write(Path("a.json"), runs.latency(runs.timing("\x1b]0;evil\x07\x1b[2J.onnx", 5.0)))
    result = run("--merge", "a.json")
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert "evil" in result.output


@pytest.mark.parametrize(
    "arguments", [[], ["a.onnx", "--rounds", "0"], ["a.onnx", "--size", "big"], ["a.onnx", "--batch", "1,0"]]
)
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
    worker(theirs, ModelName("x2.plan"), Size(8, 8), None, Setup(1, 0, {}, opener))
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


def on_gpu(**fields: Any) -> dict[str, Any]:
    """What is said of a plan on a GPU."""
    told = {
        "runtime": "tensorrt",
        "runtime_version": "8.6.0",
        "device": "cuda:0",
        "form": "plugin",
        "precision": "fp16",
    }
    memory = {"peak_memory": 900 << 20, "gpu_memory": 700 << 20, "gpu_allocated": 123 << 20}
    return {
        **{"file": "x2.plan", "size": "8x8", "batch": 1, "failure": None, "clock": "CUDA events", "clocks": None},
        **{"description": {**told, "cuda_graphs": True, "notes": []}, **memory, "pictures_per_second": 250.0},
        **{
            "device": statistics([2.0, 2.0, 3.0]),
            "end_to_end": statistics([4.0]),
            "warmup": {"runs": 9, "stable": True},
        },
        **{"ratio": 1.0, "ratio_interval": None, "achieved": None, "limits": None, "layers": None, **fields},
    }


def test_a_gpu_has_columns_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    show(console(), [on_gpu(), on_gpu(ratio=1.5, ratio_interval=[1.4, 1.6])])
    printed = capsys.readouterr().out
    heading, _, first, second = [line for line in printed.splitlines() if line.strip()][:4]
    assert heading.split("engine MiB")[1].split() == ["ratio"]
    assert "batch" not in heading
    assert first.split()[-6:] == ["4.00", "250", "900", "700", "123", "1.000"]
    assert second.rstrip().endswith("1.500 (1.400 to 1.600)")
    assert "x2.plan at 8x8: 3 runs after 9 to warm up, stable then" in printed
    assert "GPU clocks unknown: pip install nvidia-ml-py" in printed


def test_clocks_are_told_as_far_as_they_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    before = {"sm_mhz": 1980, "memory_mhz": 3201, "temperature_c": 40, "power_w": 119.6}
    after = dict.fromkeys(before)
    show(console(), [on_gpu(clocks={"before": before, "after": after})])
    printed = capsys.readouterr().out
    assert "before: SM 1980 MHz, memory 3201 MHz, 40 °C, 120 W; after: clocks unknown" in printed
    assert "pip install" not in printed


def test_what_is_achieved_stands_beside_the_limits(capsys: pytest.CaptureFixture[str]) -> None:
    limits = _chips.limits("NVIDIA H200", "fp16")
    assert limits is not None
    achieved = {"operations": 385e12, "bytes": 2.15e12, "scores": 2e12}
    work = {"operations": 1.5e12, "bytes": 1e10, "scores": 10}
    show_speeds(console(), [on_gpu(achieved=achieved, limits=limits, work=work), on_gpu()])
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.strip().startswith("x2.plan"))
    assert "385 of 770 to 800 (50%)" in row
    assert "2150 of 4300 (50%)" in row
    assert "2 of 4.17 (48%)" in row
    assert printed.count("x2.plan") == 1, "nothing is known of the other one"
    assert "Limits of NVIDIA H200: measured on one H200" in printed
    assert _chips.limits("NVIDIA H200", "fp32") == {**limits, "operations": None, "scores": None}
    assert _chips.limits("NVIDIA H200 NVL", "fp16") is None


class Played(Engine):
    """Says that it runs on a GPU; its times are those given, one after another."""

    def __init__(self, *times: float, device: str = "cuda:0 NVIDIA H200"):
        self._times, self._device, self.shapes = iter(times), device, list[tuple[int, ...]]()

    def describe(self) -> Any:
        told = ("tiny", 1, ((4, 4),), "fp32", "mha", "0.1.0", "", "a.plan", "played", "1", self._device)
        return Description(*told, batch=2)

    def run(self, x: np.ndarray) -> np.ndarray:
        self.shapes.append(x.shape)
        return x

    def timer(self, x: np.ndarray) -> Timer:
        return Timer("played", lambda: next(self._times))

    def profile(self, x: np.ndarray, runs: int = 5) -> list[LayerTime]:
        self.shapes.append(x.shape)
        return [LayerTime("[norm]", 1.0), LayerTime("a", 6.0, "CyclicWindowAttention"), LayerTime("convolution", 3.0)]

    def close(self) -> None:
        pass


def test_on_a_gpu_the_network_and_the_whole_way_are_timed_apart() -> None:
    engine = Played(1.0, 2.0, 3.0, 4.0)
    runs = _Runs(engine, np.zeros((2, 3, 4, 4), np.float32))
    told, seconds = _warm_up(runs, 1)
    assert told["runs"] == 1
    assert told["stable"] is None
    assert seconds is not None
    for _ in range(3):
        runs.once()
    found = runs.statistics()
    assert found["device"]["times"] == [2.0, 3.0, 4.0], "the warm-up does not count"
    assert len(found["end_to_end"]["times"]) == 3
    assert engine.shapes == 4 * [(2, 3, 4, 4)]
    on_cpu = _Runs(Played(5.0, device="cpu"), np.zeros((2, 3, 4, 4), np.float32))
    on_cpu.once()
    found = on_cpu.statistics()
    assert found["device"] is None
    assert found["end_to_end"]["times"] == [5.0]


def test_a_warm_up_goes_on_until_the_times_are_stable() -> None:
    slow = [900.0, *(100.0 - step for step in range(0, 50, 5)), *(50.0 for _ in range(30))]
    runs = _Runs(Played(*slow), np.zeros((2, 3, 4, 4), np.float32))
    told, _ = _warm_up(runs, None)
    assert told["stable"] is True
    assert 1 + 10 + 5 <= told["runs"] <= 1 + 10 + 10
    assert _warm_up(runs, 0)[1] is None, "nothing is known of a turn that was not made"


def test_a_warm_up_of_slow_runs_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools._timing.WARMUP_SECONDS", 0.0)
    told, _ = _warm_up(_Runs(Played(1.0, 2.0, 3.0), np.zeros((2, 3, 4, 4), np.float32)), None)
    assert told["runs"] == 2
    assert told["stable"] is False


def test_rounds_go_by_what_a_turn_takes() -> None:
    assert rounds_for(None) == rounds_for(2.0) == LEAST_ROUNDS
    assert rounds_for(1e-4) == MOST_ROUNDS
    assert LEAST_ROUNDS < rounds_for(0.15) < MOST_ROUNDS


def test_batches_are_timed_and_named(models: Path) -> None:
    code, seen = report("a.onnx", *QUICK, "--size", "20x10", "--batch", "1,3")
    assert code == 0
    one, three = seen["results"]
    assert (one["batch"], three["batch"]) == (1, 3)
    assert (one["ratio"], three["ratio"]) == (1, 1), "each is the first of its batch"
    assert three["pictures_per_second"] == pytest.approx(3e3 / three["end_to_end"]["median"])
    fakes.write_onnx(Path("fixed.onnx"), shape=(2, 3, 10, 20))
    _, seen = report("fixed.onnx", *QUICK, "--size", "20x10")
    assert seen["results"][0]["batch"] == 2, "a model's own"
    code, seen = report("fixed.onnx", *QUICK, "--size", "20x10", "--batch", "3")
    assert code == 1
    assert "takes 2 at a time, got 3" in seen["results"][0]["failure"]


def test_layers_are_shown_by_kind_and_by_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Played()
    monkeypatch.setattr(latency, "open_model", lambda name, options: engine)
    made = {"results": [on_gpu(size="20x10", batch=2), on_gpu(failure="did not run")]}
    latency.add_layers(made, {})
    assert engine.shapes == [(2, 3, 10, 20)]
    first, failed = made["results"]
    assert failed["layers"] is None
    assert first["layers"]["groups"].items() >= {"attention": 6.0, "convolutions": 3.0, "norms": 1.0}.items()
    show_layers(console(), first, 2)
    printed = capsys.readouterr().out
    assert "2 of 3 layers of x2.plan at 2 of 20x10" in printed
    assert re.search(r"^ *a +6\.000 +60\.0% +attention", printed, re.M)
    assert re.search(r"^ *convolution +3\.000 +30\.0% +convolutions", printed, re.M)
    assert "[norm]" not in printed
    assert "All layers: 10.00 ms" in printed
    show_layers(console(), first, 0)
    assert "layers of x2.plan at" in (printed := capsys.readouterr().out)
    assert " of 3 layers" not in printed


@pytest.mark.parametrize(
    ("name", "operator", "kind"),
    [
        ("node__symbolic_3", "CyclicWindowAttention", "attention"),
        ("node_layer_norm_4", "AttentionInputs", "convolutions"),
        ("node_add_102", "FeedForward", "feed-forward"),
        ("conv2d_1_nchwc", "Conv", "convolutions"),
        ("ReorderOutput", "ReorderOutput", "copies"),
        ("node_pixel_shuffle", "DepthToSpace", "copies"),
        ("node_layer_norm", "LayerNormalization", "norms"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "", "attention"),
        ("aten::mkldnn_convolution", "", "convolutions"),
        ("aten::gelu", "", "feed-forward"),
        ("aten::native_layer_norm", "", "norms"),
        ("aten::copy_", "", "copies"),
        ("aten::add", "", "other"),
        ("void ribsr::hopper::attention<__half>(Params)", "", "attention"),
        ("hopper_attention_inputs(Params)", "", "convolutions"),
        ("hopper_feed_forward(Params)", "", "feed-forward"),
        ("normalise_any(Params)", "", "norms"),
        ("void convolve<64>(Params)", "", "convolutions"),
        ("Memcpy DtoD (Device -> Device)", "", "copies"),
        ("Reformatting CopyNode for Input Tensor 0", "Reformat", "copies"),
        ("sm90_xmma_gemm_f16f16", "unreadable", "convolutions"),
    ],
)
def test_kinds_of_layers_of_every_runtime(name: str, operator: str, kind: str) -> None:
    assert kind_of(LayerTime(name, 1.0, operator)) == kind
    assert grouped([LayerTime(name, 1.0, operator)])["groups"][kind] == 1.0


def test_layers_are_those_of_models_that_ran(models: Path) -> None:
    Path("x2.plan").write_bytes(b"engine")
    result = run("x2.plan", "a.onnx", *QUICK, "--size", "20x10", "--layers", "3", "--json", "out.json")
    assert result.exit_code == 1
    assert "FAIL x2.plan at 20x10: its manifest x2.plan.json is missing" in result.stdout
    assert "layers of x2.plan" not in result.stdout
    assert re.search(r"3 of \d+ layers of a\.onnx at 20x10", result.stdout)
    plan, onnx = json.loads(Path("out.json").read_text(encoding="utf-8"))["results"]
    assert plan["layers"] is None
    assert onnx["layers"]["groups"]["convolutions"] > 0
    assert {layer["kind"] for layer in onnx["layers"]["layers"]} >= {"convolutions", "copies"}


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
    assert "--profile and --layers run models, which --merge does not" in result.stderr


def test_statistics() -> None:
    seen = statistics([4.0, 1.0, 3.0, 2.0, 100.0])
    assert seen == {
        **{"times": [4.0, 1.0, 3.0, 2.0, 100.0], "runs": 5, "median": 3.0, "mean": 22.0, "min": 1.0, "spread": 2.0},
        **{"p90": pytest.approx(61.6), "p99": pytest.approx(96.16)},
    }


def test_times_are_stable_where_two_windows_agree() -> None:
    assert not is_stable([1.0] * 9)
    assert is_stable([9.0, *[1.0] * 10])
    assert not is_stable([*[1.02] * 5, *[1.0] * 5])
    assert is_stable([*[1.0] * 5, 7.0, 1.0, 1.0, 1.0, 7.0]), "what comes now and then does not count"


def test_rounds_that_are_slow_for_both_do_not_widen_the_interval() -> None:
    noise = np.random.default_rng(1).uniform(0.5, 2, 40)
    first, second = (noise * 1.0).tolist(), (noise * 1.5 + 0.001 * np.arange(40)).tolist()
    low, high = ratio_interval(second, first, paired=True) or (0, 0)
    assert low <= 1.54
    assert high >= 1.5
    apart = ratio_interval(second, first, paired=False) or (0, 0)
    assert apart[1] - apart[0] > 5 * (high - low)
    assert ratio_interval([1.0] * 4, [1.0] * 4, paired=True) is None


def test_the_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    held, rng = 0, np.random.default_rng(2)
    for _ in range(100):
        first, second = rng.lognormal(0, 0.1, 30), 1.2 * rng.lognormal(0, 0.1, 30)
        low, high = ratio_interval(second.tolist(), first.tolist(), paired=True) or (9, 0)
        held += low <= 1.2 <= high
    assert 88 <= held <= 100


def test_ratios_are_to_the_first_model_that_ran_at_the_same_size() -> None:
    def result(size: str, *times: float, run: int = 0) -> dict[str, Any]:
        return {
            "size": size,
            "batch": 1,
            "device": None,
            "end_to_end": statistics(times) if times else None,
            "run": run,
        }

    given = [
        result("8x8"),
        result("8x8", *[2.0] * 5),
        result("9x9", 8.0),
        result("8x8", *[5.0] * 5),
        result("8x8", 4.0, run=1),
    ]
    rated = with_ratios(given)
    assert [result["ratio"] for result in rated] == [None, 1.0, 1.0, 2.5, 2.0]
    assert [result["ratio_interval"] for result in rated] == [None, None, None, [2.5, 2.5], None]
    assert [result["paired"] for result in rated] == [None, None, None, True, False]


def test_every_round_starts_with_another_model() -> None:
    assert [_rotated([0, 2, 5], number) for number in range(3)] == [[0, 2, 5], [2, 5, 0], [5, 0, 2]]
    assert _rotated([], 1) == []
