"""What a deployment machine relies on: engines need no torch, and commands answer --help at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.engines import fakes

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_every_module_but_pytorch_imports_neither_torch_nor_the_other_folders() -> None:
    result = python(
        "import importlib, pkgutil, sys, engines\n"
        "names = [m.name for m in pkgutil.walk_packages(engines.__path__, 'engines.')]\n"
        "assert {'engines.ort', 'engines.pictures', 'engines.samples', 'engines.upscale'} <= set(names), names\n"
        "for name in names:\n"
        "    if name != 'engines.pytorch':\n"
        "        importlib.import_module(name)\n"
        "print(sorted({'torch', 'ribsr', 'export', 'plugins', 'tools'} & set(sys.modules)))\n"
    )
    assert result.stdout.strip() == "[]", result.stderr


def test_a_picture_is_enlarged_where_torch_is_not_installed(tmp_path: Path) -> None:
    model = fakes.write_onnx(tmp_path / "tiny.onnx")
    source = tmp_path / "in.png"
    Image.fromarray(np.full((5, 7, 3), 99, np.uint8)).save(source)
    result = python(
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'ribsr', 'onnx', 'export']))  # None: importing them fails\n"
        "from engines.upscale import main\n"
        "main(sys.argv[1:])\n",
        str(model),
        str(source),
        str(tmp_path / "out.png"),
    )
    assert result.returncode == 0, result.stderr
    assert Image.open(tmp_path / "out.png").size == (14, 10)


def test_a_checkpoint_without_torch_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "x2.pt").touch()
    result = python(
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import engines\n"
        "try:\n"
        "    engines.open_engine(sys.argv[1])\n"
        "except engines.EngineError as error:\n"
        "    print(error)\n",
        str(tmp_path / "x2.pt"),
    )
    assert result.stdout.strip() == "checkpoints need PyTorch, which is not installed: pip install 'ribsr[export]'"


def test_an_onnx_file_without_onnxruntime_names_the_extras(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engines import EngineError, open_engine

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"ribsr\[ort\].*ribsr\[ort-gpu\]"):
        open_engine(onnx_file)


@pytest.mark.parametrize("program", ["engines/upscale.py", "tools/parity.py", "tools/latency.py"])
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
