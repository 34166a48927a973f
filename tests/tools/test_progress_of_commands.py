"""On a terminal commands show how far they are, on its stderr; redirected they print the same, and no more."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.terminal import ROOT, on_terminal, redirected


@pytest.fixture
def filled(folder: Path) -> Path:
    """`folder` with photographs in pictures/."""
    (folder / "pictures").mkdir()
    for name in ("coffee", "chelsea"):
        shutil.copy(ROOT / "engines" / "samples" / f"{name}.png", folder / "pictures")
    return folder


def without_times(text: str) -> str:
    return re.sub(r"\d+\.\d+ s\b", "", text)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["{tools}/parity.py", "x2.pt", "x2.fp16.onnx"], "x2.fp16.onnx beside x2.pt"),
        (["{tools}/evaluate.py", "x2.onnx", "--data", "pictures"], "x2.onnx on pictures"),
        (["-m", "engines.upscale", "x2.onnx", "pictures", "large"], "enlarging"),
    ],
)
def test_how_far_a_command_is_shows_on_terminals_alone(filled: Path, arguments: list[str], shown: str) -> None:
    arguments = [argument.format(tools=ROOT / "tools") for argument in arguments]
    seen = on_terminal(*arguments)
    assert seen.code == 0, seen.terminal
    assert shown in seen.terminal
    assert re.search(r"\d:\d\d", seen.terminal), "since when it goes on"
    code, stdout, stderr = redirected(*arguments)
    assert (code, stderr) == (0, "")
    assert without_times(stdout) == without_times(seen.stdout)
    assert shown not in stdout


def test_latency_shows_its_rounds_and_the_time_left(filled: Path) -> None:
    arguments = [str(ROOT / "tools" / "latency.py"), "x2.onnx", "--size", "256x256", "--rounds", "12", "--warmup", "1"]
    seen = on_terminal(*arguments)
    assert seen.code == 0, seen.terminal
    assert "256x256: timing" in seen.terminal
    assert " left" in seen.terminal
    code, stdout, stderr = redirected(*arguments)
    assert (code, stderr) == (0, "")
    assert "timing" not in stdout


def test_lines_stand_above_what_goes_on(filled: Path) -> None:
    """Errors that end nothing, in the middle of a folder."""
    (filled / "pictures" / "broken.png").write_bytes(b"\x89PNG broken")
    seen = on_terminal("-m", "engines.upscale", "x2.onnx", "pictures", "large")
    assert seen.code == 1
    lines = seen.terminal.replace("\r", "\n").splitlines()
    assert any(re.match(r"(\x1b\[\S*?[A-Za-z])*Error: pictures/broken\.png: ", line) for line in lines), (
        "a line of its own"
    )
