"""Commands that run on a terminal, which only reads what they show."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]


class Shown(NamedTuple):
    """What a command gave. terminal: what its stderr showed, escapes and all."""

    code: int
    stdout: str
    terminal: str


def on_terminal(*arguments: str) -> Shown:
    """`python ARGUMENTS`, whose stderr is a terminal of 80 columns, and its stdout a pipe."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80"}
    with ThreadPoolExecutor(1) as reader:  # a terminal that nobody reads stops who writes to it
        reading = reader.submit(_read_all, ours)
        command = [sys.executable, *arguments]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=theirs, text=True, check=False)
        os.close(theirs)
        shown = reading.result().decode()
    os.close(ours)
    return Shown(done.returncode, done.stdout, shown)


def redirected(*arguments: str, **variables: str) -> tuple[int, str, str]:
    """`python ARGUMENTS` with pipes: exit code, stdout and stderr. variables: of the environment."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", **variables}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def _read_all(terminal: int) -> bytes:
    found = b""
    with contextlib.suppress(OSError):  # what a terminal gives once nobody has it open any more
        while piece := os.read(terminal, 2**16):
            found += piece
    return found
