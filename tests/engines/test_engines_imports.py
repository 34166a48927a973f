"""A runtime that is missing is named, and commands answer --help at once. See also tests/test_without_torch.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_an_onnx_file_without_onnxruntime_names_the_extras(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engines import EngineError, open_engine

    for runtime in ("onnxruntime", "openvino"):  # the one opens such files where the other is missing
        monkeypatch.setitem(sys.modules, runtime, None)
    with pytest.raises(EngineError, match=r"pip install .*\[ort\].*pip install .*\[ort-gpu\]"):
        open_engine(onnx_file)


@pytest.mark.parametrize(
    "program", ["engines/upscale.py", "tools/parity.py", "tools/latency.py", "tools/evaluate.py", "tools/doctor.py"]
)
def test_help_imports_nothing_heavy(program: str) -> None:
    result = python(
        "import runpy, sys\n"
        "program, sys.argv = sys.argv[1], ['program', '--help']\n"
        "try:\n"
        "    runpy.run_path(program, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    print('END', end.code, {'numpy', 'PIL', 'onnxruntime', 'torch', 'rich'} & set(sys.modules) or 'light')\n",
        program,
    )
    assert "Usage:" in result.stdout
    assert result.stdout.strip().endswith("END 0 light"), result.stdout + result.stderr
