"""What a process has in memory, as Linux tells it; for scripts that measure in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def memory(name: str) -> int:
    """Bytes, of /proc/self/status: `VmRSS`, `VmHWM` (the peak), `VmSize`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def start_peak() -> None:
    """Lets the peak begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def printed(script: str, *arguments: str) -> str:
    """What a Python script that calls these prints, in a process of its own. Skips where peaks cannot be read."""
    command = [sys.executable, "-c", script, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if "clear_refs" in result.stderr:
        pytest.skip("the peak cannot be read here")
    assert result.returncode == 0, result.stderr
    return result.stdout
