"""tools/parity.py as a user types it: right models pass, wrong ones fail, and nothing is left out in silence."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from engines import Description, Engine, open_engine
from engines.base import LayerTime
from engines.trt.manifest import write_manifest
from ribsr.base.files import sha256
from ribsr.base.sizes import Limits, Size
from tests.engines import fakes
from tests.engines.trt import test_manifest as test_plan
from tools import parity
from tools._common import ModelName, open_model
from tools._recordings import ModelReference
from tools.parity import main

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def report(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON."""
    result = run(*arguments, "--json", "-")
    assert result.stdout, result.stderr
    return result.exit_code, json.loads(result.stdout)


def wrong(path: str, off: float, **options: Any) -> None:
    """The network with one bias slightly off: a channel whose error is `off` nearly everywhere."""
    params = fakes.weights()
    params["up.bias"] = params["up.bias"].copy()
    params["up.bias"][0] += off
    fakes.write_onnx(Path(path), params, sha256=sha256("x2.pt"), **options)


def test_it_runs_from_a_clone_and_finds_all_models(folder: Path) -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "tools" / "parity.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Reference: x2.pt, tiny x2 fp32" in result.stdout
    lines = [line.split() for line in result.stdout.splitlines() if line.strip().startswith("x2.")]
    assert [line[0] for line in lines] == ["x2.fp16.onnx", "x2.onnx"]
    assert all(line[-1] == "pass" for line in lines)
    assert os.access(ROOT / "tools" / "parity.py", os.X_OK)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_the_table_goes_through_any_code_page(folder: Path, encoding: str) -> None:
    program = [sys.executable, ROOT / "tools" / "parity.py", "x2.pt", "x2.onnx"]
    environment = {**os.environ, "PYTHONPATH": "", "PYTHONIOENCODING": encoding}
    result = subprocess.run(program, capture_output=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    (row,) = [line for line in result.stdout.decode("ascii").splitlines() if line.startswith("|x2.onnx")]
    assert "max <= 0.0001" in row
    assert row.endswith("pass|")


def test_pictures_are_compared_as_their_reader_takes_them(folder: Path) -> None:
    for kind, name in (("L", "gray"), ("I;16", "deep"), ("RGBA", "alpha")):
        Image.new(kind, (24, 20)).save(f"{name}.png")
    code, seen = report("x2.pt", "x2.onnx", "--image", "gray.png", "--image", "deep.png")
    assert code == 0
    assert list(seen["comparisons"][0]["models"][0]["pictures"]) == ["gray.png", "deep.png"]
    result = run("gone.pt", "x2.onnx", "--image", "alpha.png")  # before models are opened
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: alpha.png: has an alpha channel")


def test_right_models_pass(folder: Path) -> None:
    code, seen = report("x2.pt", "x2.onnx", "x2.fp16.onnx", "x2.pt@bf16")
    assert code == 0
    assert seen["passed"] is True
    (comparison,) = seen["comparisons"]
    full, half, bf16 = comparison["models"]
    assert comparison["reference"]["path"] == "x2.pt"
    assert full["max_error"] < 1e-5
    assert 1e-5 < half["rmse"] < 1e-2
    assert half["psnr"] > 40
    assert 0 < half["share_off_8bit"] < 1
    assert half["rule"].startswith("rmse ≤ 2 × ")
    assert bf16["description"]["precision"] == "bf16"
    assert bf16["rmse"] > half["rmse"]
    assert full["description"]["device"].endswith("ExecutionProvider")
    assert [model["nan"] for model in comparison["models"]] == [0, 0, 0]
    sizes = [name.rsplit(" ", 1)[1] for name in full["pictures"]]
    assert sizes == ["128x128", "97x131", "7x5"]


@pytest.mark.parametrize(("off", "passes"), [(5e-5, True), (3e-4, False)])
def test_a_float32_model_may_be_off_by_1e_4(folder: Path, off: float, passes: bool) -> None:
    wrong("off.onnx", off)
    code, seen = report("x2.pt", "off.onnx")
    assert code == (0 if passes else 1)
    assert seen["passed"] is passes
    (model,) = seen["comparisons"][0]["models"]
    assert model["max_error"] == pytest.approx(off, rel=0.05)
    assert (model["failure"] is None) is passes


@pytest.mark.parametrize(("off", "passes"), [(0.0, True), (0.02, False)])
def test_a_half_precision_model_may_be_off_twice_as_much_as_pytorch(folder: Path, off: float, passes: bool) -> None:
    wrong("off.onnx", off, precision="fp16")
    code, seen = report("x2.pt", "off.onnx")
    (model,) = seen["comparisons"][0]["models"]
    assert code == (0 if passes else 1), model
    if not passes:
        assert "is above 2 ×" in model["failure"]
        assert model["failure"].endswith("PyTorch's in fp16")


def test_both_limits_can_be_overridden(folder: Path) -> None:
    wrong("off.onnx", 3e-4)
    assert run("x2.pt", "off.onnx", "--max-error", "1e-3").exit_code == 0
    assert run("x2.pt", "x2.onnx", "--max-error", "0").exit_code == 1
    assert run("x2.pt", "x2.fp16.onnx", "--half-factor", "0.01").exit_code == 1
    assert run("x2.pt", "x2.fp16.onnx", "--max-error", "0.5").exit_code == 0


def test_one_failure_fails_the_run_and_is_named(folder: Path) -> None:
    wrong("off.onnx", 0.1)
    result = run("x2.pt", "off.onnx", "x2.onnx")
    assert result.exit_code == 1
    assert "FAIL off.onnx: largest error 0.1 is above 0.0001" in result.stdout
    assert "FAIL x2.onnx" not in result.stdout


def test_nan_never_passes(folder: Path) -> None:
    params = fakes.poisoned(fakes.weights())
    digest = sha256(fakes.write_checkpoint(Path("big.pt"), params))
    fakes.write_onnx(Path("big.onnx"), params, precision="fp16", sha256=digest)
    code, seen = report("big.pt", "big.onnx", "--max-error", "1e9")
    (model,) = seen["comparisons"][0]["models"]
    assert code == 1
    assert model["nan"] > 0
    assert "NaN or infinite values" in model["failure"]
    assert report("x2.pt", "x2.fp16.onnx", "--max-error", "1e9")[0] == 0


def test_where_pytorch_overflows_in_fp16_its_bf16_is_the_yardstick(folder: Path) -> None:
    params = fakes.poisoned(fakes.weights())
    digest = sha256(fakes.write_checkpoint(Path("big.pt"), params))
    fakes.write_onnx(Path("big.onnx"), params, sha256=digest, stamp={"ribsr.precision": "fp16"})  # all in float32
    code, seen = report("big.pt", "big.onnx")
    (model,) = seen["comparisons"][0]["models"]
    assert code == 0, model
    assert any("PyTorch itself gives" in warning and "in fp16" in warning for warning in model["warnings"])
    params["up.bias"] = params["up.bias"] + np.float32(1e6)
    fakes.write_onnx(Path("big.onnx"), params, sha256=digest, stamp={"ribsr.precision": "fp16"})
    assert report("big.pt", "big.onnx")[0] == 1


def test_a_recording_stands_in_for_the_checkpoint(folder: Path) -> None:
    live = report("x2.pt", "x2.onnx", "x2.fp16.onnx")[1]["comparisons"][0]["models"]
    assert "Recorded 3 pictures in ref.npz" in run("x2.pt", "--record", "ref.npz").stdout
    Path("x2.pt").unlink()
    code, seen = report("ref.npz", "x2.onnx", "x2.fp16.onnx")
    assert code == 0
    assert seen["comparisons"][0]["reference"]["path"] == "x2.pt"
    for one, other in zip(live, seen["comparisons"][0]["models"], strict=True):
        assert one["rmse"] == pytest.approx(other["rmse"], rel=1e-6)
        assert one["rule"] == other["rule"]
    fakes.write_onnx(Path("off.onnx"), fakes.weights(seed=1))
    assert run("ref.npz", "off.onnx").exit_code == 1


def test_a_recording_is_replayed_where_torch_is_not_installed(folder: Path) -> None:
    assert run("x2.pt", "--record", "ref.npz").exit_code == 0
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.modules['torch'] = None\n"
        "from tools.parity import main; main(['ref.npz', 'x2.onnx', 'x2.fp16.onnx'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count(" pass") == 2


def test_a_recording_without_half_outputs_cannot_judge_half_precision(folder: Path) -> None:
    assert run("x2.pt", "--record", "ref.npz", "--no-half").exit_code == 0
    code, seen = report("ref.npz", "x2.onnx", "x2.fp16.onnx")
    full, half = seen["comparisons"][0]["models"]
    assert code == 1
    assert full["failure"] is None
    assert half["failure"].startswith("cannot be judged: the reference has no fp16 outputs of PyTorch")
    assert run("ref.npz", "x2.fp16.onnx", "--max-error", "0.1").exit_code == 0


def test_recordings_hold_what_was_compared(folder: Path) -> None:
    result = run("x2.pt", "x2.onnx", "--size", "20x10", "--record", "ref.npz")
    assert result.exit_code == 0, result.output
    with np.load("ref.npz", allow_pickle=False) as file:
        assert file["input/0"].shape == (1, 3, 10, 20)
        assert file["output/0"].shape == file["fp16/2"].shape == (1, 3, 20, 40)
        assert json.loads(str(file["meta"]))["description"]["model"] == "tiny"


def test_a_model_of_fixed_shape_gets_pictures_of_that_shape(folder: Path) -> None:
    fakes.write_onnx(Path("static.onnx"), sha256=sha256("x2.pt"), shape=(2, 3, 24, 40))
    code, seen = report("x2.pt", "static.onnx", "x2.onnx")
    static, dynamic = seen["comparisons"][0]["models"]
    assert code == 0
    assert list(static["pictures"]) == ["astronaut 40x24", "coffee 40x24", "chelsea 40x24"]
    assert "coffee 97x131" in dynamic["pictures"]
    assert run("x2.pt", "--record", "ref.npz").exit_code == 0
    result = run("ref.npz", "static.onnx")
    assert result.exit_code == 1
    assert "takes pictures of 40x24 only; ref.npz has none; record with --size 40x24" in result.stdout
    assert run("x2.pt", "--record", "ref.npz", "--size", "40x24").exit_code == 0
    assert run("ref.npz", "static.onnx").exit_code == 0


def test_models_in_tiles_beside_the_whole_picture(folder: Path) -> None:
    arguments = ("x2.pt", "x2.onnx", "--size", "200x150", "--tile")
    code, seen = report(*arguments, "96x88")
    assert code == 0
    assert "coffee 200x150" in seen["comparisons"][0]["models"][0]["pictures"]
    result = run(*arguments, "71x200")
    assert result.exit_code == 1
    assert "FAIL x2.onnx: 200x150 cannot be cut into tiles of 71x200" in result.stdout


def test_own_pictures(folder: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (12, 15, 3), dtype=np.uint8)
    Image.fromarray(values).save("a.png")
    Image.fromarray(values[:7]).save("b [x].png")
    code, seen = report("x2.pt", "x2.onnx", "--image", "a.png", "--image", "b [x].png")
    assert code == 0
    assert list(seen["comparisons"][0]["models"][0]["pictures"]) == ["a.png", "b [x].png"]
    assert "b [x].png" in run("x2.pt", "x2.onnx", "--image", "b [x].png").stdout
    result = run("x2.pt", "x2.onnx", "--image", "c.png")
    assert (result.exit_code, result.stderr) == (1, "Error: c.png: no such file\n")
    fakes.write_onnx(Path("static.onnx"), sha256=sha256("x2.pt"), shape=("b", 3, 24, 40))
    result = run("x2.pt", "static.onnx", "--image", "a.png")
    assert result.exit_code == 1
    assert "takes pictures of 40x24 only; give one of that size with --image" in result.stdout
    Image.fromarray(values.repeat(3, 0)[:24].repeat(3, 1)[:, :40]).save("fits.png")
    code, seen = report("x2.pt", "static.onnx", "--image", "a.png", "--image", "fits.png")
    (static,) = seen["comparisons"][0]["models"]
    assert (code, list(static["pictures"])) == (0, ["fits.png"])
    assert static["warnings"] == ["static.onnx: not compared on a.png: it takes pictures of 40x24 only"]
    result = run("static.onnx", "x2.pt", "--image", "a.png")
    assert "takes pictures of any size, the reference of 40x24 only; give one of that size" in result.stdout


def test_a_recording_has_no_pictures_for_a_range_of_sizes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("x2.pt", "--record", "ref.npz", "--size", "20x10").exit_code == 0
    monkeypatch.setattr(parity, "open_model", lambda *given: Limited(open_model(*given), (64, 64), (96, 128)))
    result = run("ref.npz", "x2.onnx")
    assert result.exit_code == 1
    assert "takes pictures of 64x64 to 128x96; ref.npz has none; record with --size 128x96" in result.stdout


def test_no_half_leaves_out_what_was_computed_anyway(folder: Path) -> None:
    assert run("x2.pt", "x2.fp16.onnx", "--record", "ref.npz", "--no-half").exit_code == 0
    with np.load("ref.npz") as file:
        assert {name.split("/")[0] for name in file.files} == {"meta", "input", "output"}
    assert run("x2.pt", "x2.fp16.onnx", "--record", "ref.npz").exit_code == 0
    with np.load("ref.npz") as file:
        assert {"fp16", "bf16"} <= {name.split("/")[0] for name in file.files}


def test_verbose_shows_where_a_model_failed(folder: Path) -> None:
    assert "Traceback" not in run("x2.pt", "gone.onnx").stderr
    assert "Traceback" in run("x2.pt", "gone.onnx", "-v").stderr


def test_other_weights_are_warned_of(folder: Path) -> None:
    fakes.write_onnx(Path("other.onnx"), sha256="ab" * 32)
    code, seen = report("x2.pt", "other.onnx")
    (model,) = seen["comparisons"][0]["models"]
    assert code == 0, "what it computes decides"
    assert any("other.onnx: compares different weights" in warning for warning in model["warnings"])


def test_models_that_cannot_be_compared_fail_with_the_reason(folder: Path) -> None:
    fakes.write_onnx(Path("x3.onnx"), scale=3)
    fakes.write_onnx(Path("foreign.onnx"), stamped=False)
    code, seen = report("x2.pt", "x3.onnx", "missing.onnx", "foreign.onnx", "x2.onnx")
    failures = [model["failure"] for model in seen["comparisons"][0]["models"]]
    assert code == 1
    assert failures[:2] == ["enlarges x3, the reference x2", "no such file"]
    assert failures[2].startswith("was made by another tool")
    assert failures[3] is None


def test_without_arguments_what_is_left_out_is_listed_with_the_reason(folder: Path) -> None:
    fakes.write_onnx(Path("foreign.onnx"), stamped=False)
    fakes.write_onnx(Path("plugin.onnx"), form="plugin", sha256=sha256("x2.pt"))
    fakes.write_onnx(Path("stale.onnx"), sha256="ab" * 32)
    fakes.write_onnx(Path("x4.onnx"), scale=4, sha256="cd" * 32)
    Path("x2.plan").write_bytes(b"plan")
    Path("noise.pth").write_bytes(b"noise")
    Path("notes.txt").touch()
    code, seen = report()
    assert code == 0
    assert [model["file"] for model in seen["comparisons"][0]["models"]] == ["x2.fp16.onnx", "x2.onnx"]
    reasons = {line.split(":")[0]: line for line in seen["skipped"]}
    assert sorted(reasons) == ["foreign.onnx", "noise.pth", "plugin.onnx", "stale.onnx", "x2.plan", "x4.onnx"]
    assert "made by another tool" in reasons["foreign.onnx"]
    assert "only TensorRT runs" in reasons["plugin.onnx"]
    assert "was made from another checkpoint than x2.pt" in reasons["stale.onnx"]
    assert "the checkpoint of tiny x4 that it was made from is not here" in reasons["x4.onnx"]
    assert "its manifest x2.plan.json is missing" in reasons["x2.plan"]


def test_without_arguments_a_plan_belongs_to_its_checkpoint(folder: Path) -> None:
    """Without a GPU it fails, rather than being left out."""
    plan = Path("x2.fp16.plan")
    plan.write_bytes(b"engine")
    stamp = replace(test_plan.STAMP, checkpoint_sha256=sha256("x2.pt"))
    write_manifest(plan, replace(test_plan.manifest(plan), stamp=stamp))
    ((reference, *models),) = parity.discover({"device": "auto"})[0]
    assert str(reference) == "x2.pt"
    assert [str(model) for model in models] == ["x2.fp16.onnx", "x2.fp16.plan", "x2.onnx"]


def test_without_arguments_each_checkpoint_has_its_own_group(folder: Path) -> None:
    params = fakes.weights(seed=5, scale=3)
    digest = sha256(fakes.write_checkpoint(Path("x3.pt"), params, scale=3))
    fakes.write_onnx(Path("x3.onnx"), params, scale=3, sha256=digest)
    code, seen = report()
    assert code == 0
    pairs = [(c["reference"]["path"], [m["file"] for m in c["models"]]) for c in seen["comparisons"]]
    assert pairs == [("x2.pt", ["x2.fp16.onnx", "x2.onnx"]), ("x3.pt", ["x3.onnx"])]


def test_without_a_checkpoint_the_float32_file_is_the_reference(folder: Path) -> None:
    shutil.copy("x2.onnx", "y2.onnx")
    for name in ("x2.pt", "x2.fp16.onnx"):
        Path(name).unlink()
    code, seen = report()
    assert code == 0
    assert seen["comparisons"][0]["reference"]["path"] == "x2.onnx"


def test_an_empty_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run()
    assert result.exit_code == 1
    assert "no two models of this toolkit here have a checkpoint in common" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x2.pt"], "nothing to compare with x2.pt"),
        (["--record", "ref.npz"], "--record needs the model to record"),
        (["x2.pt", "--record", "ref.json"], "--record writes .npz files"),
        (["x2.pt", "ref.npz"], "a recording can only stand first"),
        (["x2.pt", "x2.onnx", "--size", "20"], "is not WIDTHxHEIGHT"),
        (["x2.pt", "x2.onnx", "--size", "20x0"], "is not WIDTHxHEIGHT"),
        (["x2.pt", "x2.onnx", "--size", "20x9", "--image", "a.png"], "exclude each other"),
        (["ref.npz", "x2.onnx", "--size", "20x9"], "brings its own pictures"),
        (["x2.pt", "x2.onnx", "--device", "tpu"], "--device"),
        (["x2.pt", "x2.onnx", "--layers", "--tile", "64x64"], "--layers compares whole pictures"),
        (["x2.pt", "x2.onnx", "--error-map", "off.jpg"], "--error-map writes .png files"),
    ],
)
def test_usage_errors_exit_with_2(folder: Path, arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"noise", "not a recording, or damaged"), (b"npz", "not a recording; make one with")],
)
def test_bad_recordings(folder: Path, content: bytes | None, message: str) -> None:
    if content == b"npz":
        np.savez("bad.npz", x=np.zeros(3))
    elif content is not None:
        Path("bad.npz").write_bytes(content)
    result = run("bad.npz", "x2.onnx")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: bad.npz: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_recording_cut_short_is_refused(folder: Path) -> None:
    assert run("x2.pt", "--record", "ref.npz").exit_code == 0
    whole = Path("ref.npz").read_bytes()
    Path("ref.npz").write_bytes(whole[: len(whole) // 2])
    result = run("ref.npz", "x2.onnx")
    assert result.exit_code == 1
    assert "not a recording, or damaged" in result.stderr


def test_json_goes_to_a_file_beside_the_table(folder: Path) -> None:
    result = run("x2.pt", "x2.onnx", "--json", "out.json")
    assert "Reference: x2.pt" in result.stdout
    seen = json.loads(Path("out.json").read_text(encoding="utf-8"))
    assert (seen["kind"], seen["version"]) == ("parity", 1)
    assert seen["date"].endswith("+00:00")
    assert [model["layers"] for comparison in seen["comparisons"] for model in comparison["models"]] == [None]
    assert seen["environment"]["versions"]["numpy"] == np.__version__


@pytest.mark.parametrize(("asked", "half"), [(None, "sdpa"), ("reference", "reference")])
def test_the_yardstick_in_half_precision_does_not_run_our_own_kernel(
    folder: Path, monkeypatch: pytest.MonkeyPatch, asked: str | None, half: str
) -> None:
    """On a GPU `auto` takes it, and its errors would excuse themselves."""
    opened: dict[str | None, str | None] = {}

    def spy(path: str, precision: str | None, attention: str | None, **options: Any) -> Engine:
        opened[precision] = attention
        return open_engine(path, precision=precision, attention=attention, **options)

    monkeypatch.setattr("engines.compare.open_engine", spy)
    options = {"device": "cpu", "attention": asked}
    with ModelReference(ModelName("x2.pt"), options, [], [Size(8, 8)]) as reference:
        ((name, x), *_) = reference.pictures(Limits())
        assert reference.half_output("fp16", name, x) is not None
    assert opened == {None: asked, "fp16": half}


def test_a_recording_of_the_last_release_is_read(folder: Path) -> None:
    """Its description calls the form `attention`."""
    assert run("x2.pt", "--record", "ref.npz").exit_code == 0
    with np.load("ref.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    meta = json.loads(str(arrays["meta"]))
    assert meta["format"] == 1
    meta["description"]["attention"] = meta["description"].pop("form")
    np.savez("old.npz", **{**arrays, "meta": np.array(json.dumps(meta))})  # pyright: ignore[reportArgumentType]
    result = run("old.npz", "x2.onnx", "x2.fp16.onnx")
    assert result.exit_code == 0, result.output
    assert "Reference: x2.pt, tiny x2 fp32, pytorch" in result.stdout
    np.savez("new.npz", **{**arrays, "meta": np.array(json.dumps({**meta, "format": 2}))})  # pyright: ignore[reportArgumentType]
    assert "a recording of format 2; this version reads 1" in run("new.npz", "x2.onnx").stderr


class Limited(Engine):
    """The model of an ONNX file that says it takes pictures of certain (H, W) only, as plans do."""

    def __init__(self, engine: Engine, smallest: tuple[int, int], largest: tuple[int, int]):
        self._engine, self._limits = engine, Limits(Size(*smallest), Size(*largest))
        self.ran: list[tuple[int, ...]] = []

    def describe(self) -> Description:
        return replace(self._engine.describe(), limits=self._limits)

    def run(self, x: np.ndarray) -> np.ndarray:
        self.ran.append(x.shape[2:])
        return self._engine.run(x)

    def profile(self, x: np.ndarray, runs: int = 5) -> list[LayerTime]:
        return self._engine.profile(x, runs)

    def close(self) -> None:
        self._engine.close()


@pytest.mark.parametrize(
    ("smallest", "largest", "ran", "left_out"),
    [
        (
            (64, 64),
            (200, 200),
            [(128, 128), (131, 97)],
            "chelsea 7x5: it takes pictures of 64x64 to 200x200",
        ),
        (
            (1, 1),
            (128, 128),
            [(128, 128), (5, 7)],
            "coffee 97x131: it takes pictures of 1x1 to 128x128",
        ),
        ((5, 7), (131, 128), [(128, 128), (131, 97), (5, 7)], None),
    ],
)
def test_pictures_of_sizes_that_a_model_does_not_take_are_left_out_and_named(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    smallest: tuple[int, int],
    largest: tuple[int, int],
    ran: list[tuple[int, int]],
    left_out: str | None,
) -> None:
    limited = Limited(open_model(ModelName("x2.onnx"), {}), smallest, largest)
    with ModelReference(ModelName("x2.pt"), {}, [], []) as reference:
        monkeypatch.setattr(parity, "open_model", lambda name, options: limited)
        measured = parity.measure(ModelName("x2.plan"), reference, {}, parity.Asked())
    assert measured.failure is None
    assert limited.ran == ran
    assert len(measured.warnings) == (left_out is not None)
    assert all(warning.endswith(f"not compared on {left_out}") for warning in measured.warnings)


def test_a_model_that_takes_none_of_the_pictures_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limited = Limited(open_model(ModelName("x2.onnx"), {}), (256, 256), (512, 768))
    with ModelReference(ModelName("x2.pt"), {}, [], []) as reference:
        monkeypatch.setattr(parity, "open_model", lambda name, options: limited)
        measured = parity.measure(ModelName("x2.plan"), reference, {}, parity.Asked())
    assert measured.failure == "takes pictures of 256x256 to 768x512; compare on such a size (--size)"


def test_the_first_layer_that_is_off_is_named(folder: Path) -> None:
    """Of a file in which one weight of a convolution is wrong; right ones are told to be."""
    params = fakes.weights()
    params["proj.weight"] = params["proj.weight"].copy()
    params["proj.weight"][2, 1, 0, 0] += 0.5
    fakes.write_onnx(Path("off.onnx"), params, sha256=sha256("x2.pt"))
    result = run("x2.pt", "x2.onnx", "off.onnx", "--layers", "--json", "out.json")
    assert result.exit_code == 1
    assert re.search(r"^Layers of x2\.onnx on .*: all 2 are within the tolerance", result.stdout, re.M)
    assert re.search(r"^Layers of off\.onnx on .*: proj is the first of 2 out of tolerance", result.stdout, re.M)
    right, off = json.loads(Path("out.json").read_text(encoding="utf-8"))["comparisons"][0]["models"]
    assert right["layers"]["first"] is None
    assert [layer["name"] for layer in right["layers"]["layers"]] == ["proj", "output"]
    assert off["layers"]["first"]["name"] == "proj"
    assert off["layers"]["picture"] == max(off["pictures"], key=lambda name: off["pictures"][name]["max_error"])


def test_layers_that_cannot_be_compared_are_no_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("x2.pt", "--record", "ref.npz").exit_code == 0
    result = run("ref.npz", "x2.onnx", "--layers")
    assert result.exit_code == 0
    assert "No layers of x2.onnx: a recording has no layers; give the checkpoint as REF" in result.stdout
    monkeypatch.setattr(parity, "open_model", lambda *given: Limited(open_model(*given), (1, 1), (500, 500)))
    code, seen = report("x2.pt", "x2.onnx", "--layers")
    assert code == 0
    (model,) = seen["comparisons"][0]["models"]
    assert model["layers"]["failure"] == "x2.onnx: onnxruntime does not show here what its layers compute"


def test_errors_are_drawn(folder: Path) -> None:
    wrong("off.onnx", 0.1)
    result = run("x2.pt", "off.onnx", "--size", "20x10", "--error-map", "errors.png", "--json", "out.json")
    (model,) = json.loads(Path("out.json").read_text(encoding="utf-8"))["comparisons"][0]["models"]
    drawn = model["error_map"]
    assert drawn["full_scale"] == pytest.approx(model["max_error"])
    assert drawn["pictures"] == list(model["pictures"])
    assert drawn["nan"] == 0
    assert f"Errors of off.onnx drawn in errors.png: white is {drawn['full_scale']:.3g}" in result.stdout
    pixels = np.asarray(Image.open("errors.png"))
    first = pixels[8:28, 8:48]
    assert first.max() == 255, "the largest error is white, and nothing is clipped"
    assert (pixels[8:28, 48:56] == 96).all(), "a gap between panels"
    black = (first == 0).all(axis=2)
    assert 0.7 < black.mean() < 0.8, "one of four sub-pixels is off"


def test_several_models_have_error_maps_of_their_own(folder: Path) -> None:
    params = fakes.poisoned(fakes.weights())
    digest = sha256(fakes.write_checkpoint(Path("big.pt"), params))
    fakes.write_onnx(Path("big.onnx"), params, sha256=digest)
    fakes.write_onnx(Path("half.onnx"), params, precision="fp16", sha256=digest)
    run("big.pt", "big.onnx", "half.onnx", "gone.onnx", "--size", "20x10", "--error-map", "errors.png")
    assert sorted(path.name for path in Path().glob("errors*")) == ["errors.big.onnx.png", "errors.half.onnx.png"]
    pixels = np.asarray(Image.open("errors.half.onnx.png"))
    assert (pixels == (255, 0, 255)).all(axis=2).any(), "NaN is magenta"
