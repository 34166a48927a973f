"""Runs commands that it kills with SIGKILL, each in a folder of its own: `tests/test_killed.py` looks at what is left.

They are forks of one process that has imported everything, so that the moments lie within the work.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import click

JOBS = {
    "export": (["--ckpt", "tiny.pt"], ["tiny.pt"]),
    "upscale": (["tiny.onnx", "in", "out", "--skip-existing"], ["tiny.onnx", "in"]),
    "train": (["recipe.yaml"], ["recipe.yaml", "tiny.json", "in"]),
}
"""Arguments, and what the folder holds."""


def start(job: str, source: Path, folder: Path) -> int:
    """A fork that does the job in `folder`."""
    folder.mkdir(exist_ok=True)
    arguments, needed = JOBS[job]
    for name in needed:
        if not (folder / name).exists():
            (shutil.copytree if (source / name).is_dir() else shutil.copy)(source / name, folder / name)
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.chdir(folder)
        output = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        command(job).main(arguments, standalone_mode=False)
        (source / f"{job}.modules").write_text("\n".join(sys.modules))
        code = 0
    except BaseException:  # noqa: BLE001 (a fork must not go on as its parent)
        traceback.print_exc()
    finally:
        os._exit(code)


def command(job: str) -> click.Command:
    if job == "export":
        from export.onnx import main
    elif job == "upscale":
        from engines.upscale import main
    else:
        from ribsr.__main__ import train as main
    return main


def load_modules(job: str, source: Path) -> None:
    """Imports what the job imported, which would take most of its time."""
    for name in (source / f"{job}.modules").read_text().splitlines():
        with suppress(Exception):  # parts of packages that only their own code imports
            import_module(name)


def finish(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit(f"a job that was not killed failed: {status}")


def until_written(pid: int, folder: Path) -> None:
    """Waits until a file is being written below `folder`, or the fork has ended."""
    known = set(folder.rglob("*.tmp"))
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if set(folder.rglob("*.tmp")) - known:
            return
        time.sleep(0.001)


def main(source: Path, moments: int, seed: int, jobs: Iterable[str] = ()) -> None:
    chance = random.Random(seed)
    for job in jobs or JOBS:
        finish(start(job, source, source / f"{job}-first"))
        load_modules(job, source)
        begun = time.monotonic()
        finish(start(job, source, source / f"{job}-whole"))
        lasts = time.monotonic() - begun
        for moment in range(moments):
            folder = source / f"{job}-{moment}"
            for _ in range(2):  # what goes on is killed, too
                pid = start(job, source, folder)
                if chance.random() < 0.5:
                    time.sleep(chance.uniform(0, lasts))
                else:
                    until_written(pid, folder)
                    time.sleep(chance.uniform(0, 0.02))
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            shutil.copytree(folder, source / f"{job}-{moment}-killed", symlinks=True)
            finish(start(job, source, folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
