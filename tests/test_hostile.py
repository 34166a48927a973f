"""Damaged and hostile files: a line each, quickly, in little memory, and nothing in them is executed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ribsr.base.errors import printable
from tests import hostile

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured as Linux does")
def test_damaged_and_hostile_files(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    given = hostile.cases(tmp_path)
    assert len(given) >= 200
    process = subprocess.run(
        [sys.executable, "-m", "tests.hostile"],
        cwd=ROOT,
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    results = [json.loads(line) for line in process.stdout.splitlines()]
    complaints = []
    for (command, arguments, name), got in zip(given, results, strict=False):
        lines = [line for line in got["output"].splitlines() if not line.startswith("Note: ")]
        wrong = {
            "exit code": got["code"] not in (1, 2),
            "lines": len(lines) != 1 or not lines[0].startswith("Error: ") or len(lines[0]) > 2100,
            "unnamed": name not in got["output"],
            "raw": printable(got["output"].replace("\n", "")) != got["output"].replace("\n", ""),
            "traceback": "-v for a traceback" in got["output"],
            "slow": got["seconds"] > 10,
            "memory": got["memory"] > hostile.GIB,
        }
        if any(wrong.values()):
            which = ", ".join(what for what, is_so in wrong.items() if is_so)
            complaints.append(f"{command} {Path(arguments[0]).parent.name}/{name}: {which}: {got}"[:600])
    assert not complaints, "\n".join([f"{len(complaints)} of {len(given)}", *complaints])
    assert len(results) == len(given), f"died of {given[len(results)]}: {process.returncode} {process.stderr[-2000:]}"
    assert not list(tmp_path.rglob("executed"))
    assert not (tmp_path / "out.png").exists()
