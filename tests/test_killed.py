"""SIGKILL at any moment leaves whole files under their names, and nothing that a later run trusts wrongly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.metadata import read_stamp
from ribsr.base.pictures import read_picture
from tests import hostile
from tests.engines import fakes

ROOT = Path(__file__).resolve().parents[1]

MOMENTS = int(os.environ.get("KILLED_MOMENTS", "2"))
"""Of each job; 50 have been tried by hand."""

RECIPE = {
    "model": "tiny.json", "output": "run", "train": ["in"], "validation": ["in"], "steps": 12, "batch": 2, "crop": 8,
    "warmup": 0, "precision": "fp32", "compile": False, "log_every": 1, "validate_every": 4, "save_every": 2,
}  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX processes")
def test_sigkill_leaves_nothing_half_trusted(tmp_path: Path) -> None:
    load_file = pytest.importorskip("safetensors.numpy").load_file
    pytest.importorskip("torch")
    fakes.write_checkpoint(tmp_path / "tiny.pt")
    fakes.write_onnx(tmp_path / "tiny.onnx")
    (tmp_path / "tiny.json").write_text(json.dumps(hostile.config()))
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE))
    (tmp_path / "in").mkdir()
    for number in range(6):
        values = np.random.default_rng(number).integers(0, 256, (120, 160, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "in" / f"{number}.png")
    command = [sys.executable, "-m", "tests.killed", str(tmp_path), str(MOMENTS), "0"]
    program = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert program.returncode == 0, program.stderr + "".join(path.read_text() for path in tmp_path.glob("*/log"))
    whole = {job: tmp_path / f"{job}-whole" for job in ("export", "upscale", "train")}
    weights = "run/tiny-x2.safetensors"
    for moment in range(MOMENTS):
        left = {job: tmp_path / f"{job}-{moment}-killed" for job in whole}
        for path in (*left["export"].iterdir(), *left["upscale"].rglob("*"), *left["train"].rglob("*")):
            temporary = path.name.startswith(".") and path.suffix == ".tmp"
            known = {"in", "out", "run", "log", ".lock", "tiny.pt", "tiny.onnx", "tiny.json", "recipe.yaml", "state.pt"}
            assert temporary or path.name in known or path.suffix in (".png", ".csv", ".safetensors"), path
        if (made := left["export"] / "tiny.onnx").exists():
            assert read_stamp(made) == read_stamp(whole["export"] / "tiny.onnx")
            assert made.read_bytes() == (whole["export"] / "tiny.onnx").read_bytes()
        for path in (left["upscale"] / "out").glob("[!.]*"):
            np.testing.assert_array_equal(
                read_picture(path).pixels, read_picture(whole["upscale"] / "out" / path.name).pixels
            )
        done = {job: tmp_path / f"{job}-{moment}" for job in whole}
        assert len(list((done["upscale"] / "out").glob("[!.]*"))) == 6
        made, wanted = (load_file(folder / weights) for folder in (done["train"], whole["train"]))
        assert made.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_array_equal(made[name], value)
        scores = [(folder / "run" / "validation.csv").read_text() for folder in (done["train"], whole["train"])]
        assert scores[0] == scores[1]
        assert len((done["train"] / "run" / "log.csv").read_text().splitlines()) == 1 + 12
