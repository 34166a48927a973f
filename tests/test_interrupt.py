"""Ctrl-C, SIGTERM and `| head` in real processes: they end soon, say so, and leave nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

SECONDS = 5.0
"""To end in, on a machine that does other things, too; on an idle one it is less than two."""

STUBBORN = """
import subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import click
from ribsr.base.command import Command
from ribsr.base.files import atomic, temporary_folder

@click.command(cls=Command)
def main():
    def work():
        with atomic("result") as temporary, temporary_folder(Path()) as folder:
            temporary.write_text("half")
            (folder / "more").write_text("half")
            child = subprocess.Popen(["sleep", "60"])
            Path("child").write_text(str(child.pid))
            time.sleep(60)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()

if __name__ == "__main__":
    main()
"""
"""What no exception ends: a thread is waited for."""


class Running:
    """A command in a folder, with another for what it leaves in the system's place for temporary files."""

    def __init__(self, folder: Path, arguments: list[str]):
        self.folder = folder
        (folder / "temporary").mkdir()
        environment = {**os.environ, "TMPDIR": str(folder / "temporary"), "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in background
        )

    def wait_for(self, ready: Callable[[Path], object], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not ready(self.folder):
            assert self._process.poll() is None, self._process.communicate()
            assert time.monotonic() < end, "it was not ready in time"
            time.sleep(0.1)

    def ended_by(self, number: signal.Signals) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        assert self._process.poll() is None, self._process.communicate()
        self._process.send_signal(number)
        try:
            out, errors = self._process.communicate(timeout=SECONDS)
        finally:
            self._process.kill()
        return self._process.returncode, out, errors


def left(folder: Path) -> list[str]:
    """What is neither given nor a result, but for the caches of PyTorch and ONNX Runtime, and a file to lock."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if (path.name.startswith(".") or path.parent.name == "temporary")
        and not path.name.startswith((".ses", "torchinductor", ".lock"))
    )


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_does_not_end_by_itself_is_ended(tmp_path: Path, number: signal.Signals, code: int) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    running = Running(tmp_path, ["stubborn.py"])
    running.wait_for(lambda folder: (folder / "child").is_file() and (folder / "child").read_text())
    found, out, errors = running.ended_by(number)
    assert (found, out, errors.split()) == (code, "", ["Aborted!"])
    assert left(tmp_path) == []
    assert not (tmp_path / "result").exists()
    if sys.platform == "linux":
        assert not is_running(int((tmp_path / "child").read_text()))


def picture(folder: Path, side: int = 640) -> str:
    from PIL import Image

    with Image.open(ROOT / "engines" / "samples" / "astronaut.png") as image:
        image.resize((side, side)).save(folder / "in.png")
    return "in.png"


def tool(name: str) -> str:
    return str(ROOT / "tools" / f"{name}.py")


COMMANDS = {
    "upscale": ["-m", "engines.upscale", "sst-light-x2", "in.png", "out.png", "--device", "cpu"],
    "export": ["-m", "export.onnx", "--ckpt", "sst-light-x2", "--verify", "--size", "256x256", "-o", "x2.onnx"],
    "parity": [tool("parity"), "sst-light-x2", "sst-light-x2", "--size", "640x640", "--device", "cpu"],
    "latency": [tool("latency"), "sst-light-x2", "--size", "640x640", "--device", "cpu"],
}


@pytest.mark.parametrize("delay", [1.0, 7.0])
@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_ends_a_command_within_seconds(tmp_path: Path, name: str, delay: float) -> None:
    pytest.importorskip("torch")
    picture(tmp_path)
    running = Running(tmp_path, COMMANDS[name])
    time.sleep(delay)
    code, _, errors = running.ended_by(signal.SIGINT)
    assert code == 130
    assert errors.split() == ["Aborted!"]
    assert left(tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {"in.png", "temporary"}


def test_a_run_in_onnx_runtime_is_broken_off(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    made = [sys.executable, "-m", "export.onnx", "--ckpt", "sst-light-x2", "--no-verify", "-o", tmp_path / "x2.onnx"]
    subprocess.run(made, cwd=ROOT, check=True, capture_output=True)
    picture(tmp_path)
    running = Running(tmp_path, ["-m", "engines.upscale", "x2.onnx", "in.png", "out.png", "--device", "cpu"])
    time.sleep(4.0)
    code, _, errors = running.ended_by(signal.SIGINT)
    assert (code, errors.split()) == (130, ["Aborted!"])
    assert left(tmp_path) == []


def test_training_keeps_the_last_step_when_the_next_one_takes_long(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "pictures").mkdir()
    picture(tmp_path / "pictures", 512)
    recipe = "model: sst-light\ntrain: pictures\nbatch: 8\ncrop: 64\nprecision: fp32\nsave_every: 1\n"
    (tmp_path / "a.yaml").write_text(recipe)
    running = Running(tmp_path, ["-m", "ribsr", "train", "a.yaml"])
    running.wait_for(lambda folder: (folder / "run" / "state.pt").is_file(), seconds=180)
    time.sleep(1.0)
    code, _, errors = running.ended_by(signal.SIGINT)
    assert code == 130
    assert "compiles" not in errors  # on a CPU it takes minutes
    assert "interrupted: step" in errors
    assert errors.split()[-1] == "Aborted!"
    assert left(tmp_path) == []


def test_compilers_are_ended_too(tmp_path: Path) -> None:
    compiler = tmp_path / "nvcc"
    asked = '[ "$1" = --version ] && exit 0\n[ "$1" = --list-gpu-code ] && echo sm_80 && exit 0'
    compiler.write_text(f"#!/bin/sh\n{asked}\necho $$ >> {tmp_path}/pids\nexec sleep 60\n")
    compiler.chmod(0o755)
    output = tmp_path / "build" / "libribsr_kernels.so"
    output.parent.mkdir()
    running = Running(
        tmp_path, ["-m", "plugins.build", "--only", "gpu", "--nvcc", str(compiler), "-o", str(output), "-j", "3"]
    )
    pids = tmp_path / "pids"
    running.wait_for(lambda folder: pids.is_file() and len(pids.read_text().split()) == 3)
    code, _, errors = running.ended_by(signal.SIGINT)
    assert code == 130
    assert errors.split() == ["Aborted!"]
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 3
    if sys.platform == "linux":
        assert not any(map(is_running, started))
    assert [path for path in output.parent.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("arguments", [["-m", "ribsr", "recipe", "sst-light"], [tool("parity"), "--help"]])
def test_nobody_reads_the_output(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode in (1, 141)


def test_output_that_is_flushed_at_the_end_only(tmp_path: Path) -> None:
    program = "import click, sys\nfrom ribsr.base.command import Command\n@click.command(cls=Command)\ndef main():\n"
    (tmp_path / "late.py").write_text(program + "    sys.stdout.write('late')\nmain()\n")
    done = subprocess.run(
        f"{sys.executable} late.py | true; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (141, "")
