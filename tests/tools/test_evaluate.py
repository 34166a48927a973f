"""tools/evaluate.py as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from engines import OutOfMemory
from ribsr import metrics
from ribsr.base.files import sha256
from tests.engines import fakes
from tools.evaluate import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def benchmark(folder: Path) -> Path:
    """Sets A (two photographs) and B (one) beside the models of `folder`."""
    for name, box in (("A/HR/1", (0, 0, 61, 50)), ("A/HR/2", (50, 60, 96, 100)), ("B/HR/3", (9, 9, 70, 60))):
        path = folder / "sets" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(ROOT / "engines" / "samples" / "coffee.png").crop(box).save(path)
    return folder


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["--data", "sets", *arguments])


def report(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json", "-")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_models_and_the_baseline_stand_in_one_table(benchmark: Path) -> None:
    seen = report("x2.pt", "x2.onnx", "x2.pt@bf16", "--bicubic")
    bicubic, torch_model, onnx_model, half = seen["results"]
    assert [result["file"] for result in seen["results"]] == ["bicubic", "x2.pt", "x2.onnx", "x2.pt@bf16"]
    assert list(bicubic["sets"]) == ["A", "B"]
    for name, of in torch_model["sets"].items():
        assert of["psnr"] == pytest.approx(onnx_model["sets"][name]["psnr"], abs=0.01)
        assert of["ssim"] == pytest.approx(onnx_model["sets"][name]["ssim"], abs=1e-4)
        assert of["psnr"] == pytest.approx(half["sets"][name]["psnr"], abs=0.5)
        assert of["psnr"] < bicubic["sets"][name]["psnr"]
        assert of["psnr"] == pytest.approx(np.mean([one["psnr"] for one in of["pictures"]]))
    assert [one["picture"] for one in bicubic["sets"]["A"]["pictures"]] == ["1.png", "2.png"]
    assert (seen["scale"], seen["border"], seen["gray"]) == (2, 2, "plane")
    assert half["description"]["precision"] == "bf16"


def test_it_runs_from_a_clone(benchmark: Path) -> None:
    program = [sys.executable, str(ROOT / "tools" / "evaluate.py")]
    result = subprocess.run([*program, "--bicubic", "--data", "sets"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (row,) = [line.split() for line in result.stdout.splitlines() if line.strip().startswith("bicubic")]
    assert row[0] == "bicubic"
    assert 20 < float(row[2]) < 50
    code = (
        "import runpy, sys\n"
        "sys.argv = ['evaluate', '--help']\n"
        "try:\n"
        f"    runpy.run_path({program[1]!r}, run_name='__main__')\n"
        "except SystemExit:\n"
        "    print({'numpy', 'PIL', 'onnxruntime', 'torch', 'rich'} & set(sys.modules) or 'light')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip().endswith("light"), result.stderr


def test_what_cannot_be_scored_is_an_error(benchmark: Path) -> None:
    for arguments, message in (
        (["x2.pt", "--scale", "3"], "Error: x2.pt: enlarges x2, not x3; evaluate it by itself, or with --scale 2"),
        (["gone.onnx"], "Error: gone.onnx: no such file"),
        (["x2.pt", "--data", "nowhere"], "Error: nowhere: there is no such folder"),
    ):
        result = run(*arguments)
        assert result.exit_code == 1
        assert result.stderr.splitlines()[-1].startswith(message)
    assert "nothing to evaluate" in run().stderr


def test_a_picture_that_cannot_be_scored_ends_nothing(benchmark: Path) -> None:
    folder = benchmark / "sets" / "A" / "HR"
    (mean,) = [result["sets"]["A"]["psnr"] for result in report("--bicubic")["results"]]
    Image.new("RGBA", (40, 40)).save(folder / "0.png")
    (folder / "9.png").write_bytes(b"\x89PNG broken")
    (folder / "._1.png").touch()
    result = run("x2.pt", "--bicubic", "--json", "-")
    assert result.exit_code == 1
    errors = [line.split("/HR/")[1] for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert [line.split(":")[0] for line in errors] == ["0.png", "9.png"] * 2
    seen = json.loads(result.stdout)
    assert seen["complete"] is False
    for one in seen["results"]:
        assert [of["picture"] for of in one["sets"]["A"]["pictures"]] == ["1.png", "2.png"]
        assert [of["picture"] for of in one["sets"]["A"]["failed"]] == ["0.png", "9.png"]
        assert one["sets"]["B"]["failed"] == []
    assert seen["results"][0]["sets"]["A"]["psnr"] == mean
    shown = run("--bicubic")
    assert f"{mean:.3f} / " in shown.stdout
    assert shown.stdout.count("(2 of 4)") == 1
    assert "Note: 1 sidecar files (._*) are skipped" in shown.stdout


def test_a_model_without_finite_values_does_not_end_the_others(benchmark: Path) -> None:
    params = fakes.weights()
    params["up.bias"] = params["up.bias"] * np.float32(np.nan)
    fakes.write_onnx(Path("nan.onnx"), params, sha256=sha256("x2.pt"))
    result = run("nan.onnx", "x2.onnx", "--json", "-")
    assert result.exit_code == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 3
    assert errors[0].startswith("Error: sets/A/HR/1.png: nan.onnx: no score, since the engine produced")
    bad, good = (one["sets"]["A"] for one in json.loads(result.stdout)["results"])
    assert (bad["psnr"], len(bad["failed"]), len(good["pictures"])) == (None, 2, 2)


def test_a_picture_that_tiles_do_not_fit_ends_nothing(benchmark: Path) -> None:
    (path,) = (benchmark / "sets" / "B" / "HR").iterdir()
    Image.open(ROOT / "engines" / "samples" / "coffee.png").resize((300, 200)).save(path)
    result = run("x2.onnx", "--tile", "64x64", "--json", "-")
    assert result.exit_code == 1, result.stderr
    assert "Error: sets/B/HR/3.png: x2.onnx: " in result.stderr
    sets = json.loads(result.stdout)["results"][0]["sets"]
    assert [len(sets[name]["pictures"]) for name in ("A", "B")] == [2, 0]


def test_a_set_without_a_score_has_no_mean(benchmark: Path) -> None:
    path = benchmark / "sets" / "B" / "HR" / "3.png"
    path.write_bytes(path.read_bytes()[:100])
    result = run("--bicubic", "--json", "-")
    assert result.exit_code == 1
    of = json.loads(result.stdout)["results"][0]["sets"]["B"]
    assert (of["psnr"], of["ssim"], of["pictures"], len(of["failed"])) == (None, None, [], 1)
    assert "- (0 of 1)" in run("--bicubic").stdout


def test_a_picture_too_large_for_the_memory_ends_nothing(benchmark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engines.ort import ORTEngine

    really = ORTEngine.run

    def limited(self: ORTEngine, x: np.ndarray) -> np.ndarray:
        if x.shape[-1] == 30:  # of A's first picture
            raise OutOfMemory("x2.onnx: out of memory")
        return really(self, x)

    monkeypatch.setattr(ORTEngine, "run", limited)
    result = run("x2.onnx", "--json", "-")
    assert result.exit_code == 1
    assert "Error: sets/A/HR/1.png: x2.onnx: out of memory" in result.stderr
    of = json.loads(result.stdout)["results"][0]["sets"]["A"]
    assert [one["picture"] for one in of["pictures"]] == ["2.png"]


def test_gray_pictures_follow_the_convention_asked_for(benchmark: Path) -> None:
    path = benchmark / "sets" / "B" / "HR" / "3.png"
    Image.open(path).convert("L").save(path)
    plane, rgb = report("--bicubic"), report("--bicubic", "--gray-as-rgb")
    difference = rgb["results"][0]["sets"]["B"]["psnr"] - plane["results"][0]["sets"]["B"]["psnr"]
    assert difference == pytest.approx(1.322, abs=1e-3)


def test_saved_pictures_are_those_that_were_scored(benchmark: Path) -> None:
    """Set A and B, a model and bicubic, and the JSON elsewhere than the working directory."""
    Image.open("sets/A/HR/2.png").convert("L").save("sets/A/HR/2.png")
    Path("runs").mkdir()
    result = run("x2.onnx", "--bicubic", "--save", "runs/pictures", "--json", "runs/scores.json")
    assert result.exit_code == 0, result.stderr
    seen = json.loads(Path("runs/scores.json").read_text())
    for of in seen["results"]:
        for title, scored in of["sets"].items():
            for one in scored["pictures"]:
                enlarged, original = (
                    np.asarray(Image.open(Path("runs") / file).convert("RGB"))
                    for file in (one["saved"], seen["originals"][title][one["picture"]])
                )
                to_plane = metrics.gray if one["picture"] == "2.png" else metrics.luma
                planes = [metrics.crop_border(to_plane(pixels), 2) for pixels in (enlarged, original)]
                assert metrics.psnr(*planes) == pytest.approx(one["psnr"])
    assert {one["saved"] for of in report("x2.onnx")["results"] for one in of["sets"]["A"]["pictures"]} == {None}


def test_pictures_are_not_mixed_with_those_of_another_run(benchmark: Path) -> None:
    (benchmark / "saved").mkdir()
    (benchmark / "saved" / "old.png").touch()
    refused = run("--bicubic", "--save", "saved")
    assert refused.exit_code == 2
    assert "--save saved: is not empty; give another folder, or remove it" in refused.stderr
    (benchmark / "below").mkdir()
    refused = run("--bicubic", "--save", "new", "--json", "below/scores.json")
    assert refused.exit_code == 2
    assert "--save new: must lie in the folder of --json, or below" in refused.stderr
    assert not (benchmark / "new").exists()


def test_the_scale_is_that_of_the_first_model(benchmark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.write_checkpoint(Path("x3.pt"), scale=3)
    seen = report("x3.pt", "--bicubic")
    assert (seen["scale"], seen["border"]) == (3, 3)
    assert [result["file"] for result in seen["results"]] == ["bicubic", "x3.pt"]
    scored: list[str] = []
    monkeypatch.setattr("tools.evaluate.evaluate", lambda *_: scored.append("x"))
    for last, message in (("x2.pt", "x2.pt: enlarges x2, not x3"), ("gone.onnx", "gone.onnx: no such file")):
        result = run("x3.pt", last)
        assert result.exit_code == 1
        assert f"Error: {message}" in result.stderr
    assert not scored  # known before the first is
