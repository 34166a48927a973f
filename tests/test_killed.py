"""SIGKILL at any moment leaves whole files under their names, and nothing that a later run trusts wrongly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ribsr.base.pictures import read_picture
from tests import hostile
from tests.engines import fakes

ROOT = Path(__file__).resolve().parents[1]

MOMENTS = int(os.environ.get("KILLED_MOMENTS", "2"))
"""Of each job. 50 have been tried: `KILLED_MOMENTS=50 pytest tests/test_killed.py -k export`, a quarter of an hour."""

RECIPE = {
    "model": "tiny.json", "output": "run", "train": ["in"], "validation": ["in"], "steps": 12, "batch": 2, "crop": 8,
    "warmup": 0, "precision": "fp32", "compile": False, "log_every": 1, "validate_every": 4, "save_every": 2,
}  # fmt: skip


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX processes")


@dataclass(frozen=True)
class Folders:
    """Where a job ran: undisturbed; as it was left when it was killed, at each moment; and after it ran again."""

    whole: Path
    left: list[Path]
    done: list[Path]


@pytest.fixture
def killed(tmp_path: Path) -> Callable[[str], Folders]:
    pytest.importorskip("torch")
    fakes.write_checkpoint(tmp_path / "tiny.pt")
    fakes.write_onnx(tmp_path / "tiny.onnx")
    (tmp_path / "tiny.json").write_text(json.dumps(hostile.config()))
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE))
    (tmp_path / "in").mkdir()
    for number in range(6):
        values = np.random.default_rng(number).integers(0, 256, (120, 160, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "in" / f"{number}.png")

    def run(job: str) -> Folders:
        command = [sys.executable, "-m", "tests.killed", str(tmp_path), str(MOMENTS), "0", job]
        program = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert program.returncode == 0, program.stderr + "".join(path.read_text() for path in tmp_path.glob("*/log"))
        done = [tmp_path / f"{job}-{moment}" for moment in range(MOMENTS)]
        return Folders(tmp_path / f"{job}-whole", [folder.with_name(f"{folder.name}-killed") for folder in done], done)

    return run


def check_names(paths: Iterable[Path], *known: str) -> None:
    """Only names that are known, and hidden ones that nobody takes for a result."""
    for path in paths:
        assert path.name in known or (path.name.startswith(".ribsr-") and path.suffix == ".tmp"), path


def test_an_export_leaves_the_whole_file_or_none(killed: Callable[[str], Folders]) -> None:
    folders = killed("export")
    wanted = (folders.whole / "tiny.onnx").read_bytes()
    for left, done in zip(folders.left, folders.done, strict=True):
        check_names(left.iterdir(), "tiny.pt", "tiny.onnx", "log")
        assert not (left / "tiny.onnx").exists() or (left / "tiny.onnx").read_bytes() == wanted
        assert (done / "tiny.onnx").read_bytes() == wanted


def test_enlarged_pictures_are_whole_and_what_lacks_is_made(killed: Callable[[str], Folders]) -> None:
    folders = killed("upscale")
    names = [f"{number}.png" for number in range(6)]
    for left, done in zip(folders.left, folders.done, strict=True):
        check_names(left.rglob("*"), "in", "out", "log", "tiny.onnx", *names)
        assert sorted(path.name for path in (done / "out").glob("[!.]*")) == names
        for path in (*(left / "out").glob("[!.]*"), *(done / "out").glob("[!.]*")):
            np.testing.assert_array_equal(
                read_picture(path).pixels, read_picture(folders.whole / "out" / path.name).pixels
            )


def test_training_goes_on_as_if_nothing_had_been(killed: Callable[[str], Folders]) -> None:
    load_file = pytest.importorskip("safetensors.numpy").load_file
    folders = killed("train")
    weights = "tiny-x2.safetensors"
    known = ("in", "run", "log", ".lock", "tiny.json", "recipe.yaml", "state.pt", *(f"{n}.png" for n in range(6)))
    wanted = load_file(folders.whole / "run" / weights)
    for left, done in zip(folders.left, folders.done, strict=True):
        check_names((path for path in left.rglob("*") if path.suffix not in (".csv", ".safetensors")), *known)
        made = load_file(done / "run" / weights)
        assert made.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_array_equal(made[name], value)
        scores = [(folder / "run" / "validation.csv").read_text() for folder in (done, folders.whole)]
        assert scores[0] == scores[1]
        assert len((done / "run" / "log.csv").read_text().splitlines()) == 1 + 12
