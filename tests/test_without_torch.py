"""Machines that only run models have no PyTorch: engines, export.trt and the tools in environments that lack it.

The environments are real ones: made by venv, with links to what the running interpreter has installed, but for some.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.engines import fakes
from tests.test_house import ROOT, may_import_torch, module_name, product

TORCH = ("torch", "functorch", "pytorch", "triton", "onnxscript", "onnx_ir", "safetensors", "nvidia", "tensorrt")
"""How the names begin of what is not installed: PyTorch, what needs it or comes with it, and TensorRT."""

EXPORT = ("onnx", "onnx_graphsurgeon", "ml_dtypes", "yaml", "_yaml", "pyyaml")
"""What ONNX Runtime needs none of to run our files in its own operators."""


@dataclass(frozen=True)
class Environment:
    """A Python without some packages."""

    python: Path

    def run(self, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        command = [str(self.python), *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, timeout=120, check=False)


def make_environment(
    folder: Path, absent: tuple[str, ...], beginnings: tuple[str, ...], clone: bool = True
) -> Environment:
    """A venv of the running Python with this clone and all that is installed, but for what has one of these names."""
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    links = folder / "links"
    links.mkdir()
    for site in (Path(entry) for entry in sys.path if Path(entry).name == "site-packages"):
        for installed in site.iterdir():
            name = installed.name.split(".")[0].split("-")[0].lower()
            wanted = name not in absent and not name.startswith((*beginnings, "__editable__", "__pycache__"))
            link = links / installed.name
            if wanted and installed.suffix != ".pth" and not link.exists():
                link.symlink_to(installed)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "links.pth").write_text(f"{ROOT}\n{links}\n" if clone else f"{links}\n")
    return Environment(folder / "bin" / "python")


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Where plans are built: the extra `trt`, but for TensorRT itself."""
    return make_environment(tmp_path_factory.mktemp("without-torch"), (), TORCH)


@pytest.fixture(scope="module")
def with_ort(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Where ONNX files run: the extra `ort`."""
    return make_environment(tmp_path_factory.mktemp("with-ort"), EXPORT, TORCH)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """x2.onnx, again.onnx with the same weights, and in.png."""
    for name in ("x2.onnx", "again.onnx"):
        fakes.write_onnx(tmp_path / name)
    pixels = np.random.default_rng(0).integers(0, 256, (44, 48, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    return tmp_path


def test_the_environments_lack_what_they_should(
    without_torch: Environment, with_ort: Environment, tmp_path: Path
) -> None:
    for environment, missing in ((without_torch, "torch"), (with_ort, "torch"), (with_ort, "onnx")):
        result = environment.run("-c", f"import onnxruntime, {missing}", cwd=tmp_path)
        assert result.stderr.endswith(f"ModuleNotFoundError: No module named '{missing}'\n")


def test_all_that_may_not_import_torch_can_be_imported(without_torch: Environment, tmp_path: Path) -> None:
    names = [module_name(file) for file in product() if not may_import_torch(file, deferred=False)]
    assert {"engines.ort", "export.trt.__main__", "plugins.library", "ribsr.base.sizes"} <= set(names)
    result = without_torch.run(
        "-c",
        "import importlib, sys, traceback\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except Exception:\n"
        "        print(name, traceback.format_exc())\n"
        "print(sorted({'torch', 'triton'} & set(sys.modules)))\n",
        *names,
        cwd=tmp_path,
    )
    assert result.stdout == "[]\n", result.stdout + result.stderr


def test_a_picture_is_enlarged(with_ort: Environment, folder: Path) -> None:
    result = with_ort.run("-m", "engines.upscale", "x2.onnx", "in.png", "out.png", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert Image.open(folder / "out.png").size == (96, 88)


@pytest.mark.parametrize(
    "arguments",
    [
        ("parity.py", "x2.onnx", "again.onnx", "--size", "32x32"),
        ("latency.py", "x2.onnx", "--rounds", "1", "--warmup", "0", "--size", "32x32"),
        ("evaluate.py", "x2.onnx", "--bicubic", "--data", "."),
    ],
    ids=lambda arguments: arguments[0],
)
def test_tools_work(with_ort: Environment, folder: Path, arguments: tuple[str, ...]) -> None:
    program, *rest = arguments
    result = with_ort.run(ROOT / "tools" / program, *rest, "--device", "cpu", cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "x2.onnx" in result.stdout


def test_building_a_plan_says_that_tensorrt_is_missing(without_torch: Environment, tmp_path: Path) -> None:
    fakes.write_onnx(tmp_path / "x2.onnx", form="matmul")  # which every TensorRT runs
    result = without_torch.run("-m", "export.trt", "--fp16", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: TensorRT for Python is not installed: pip install ")
    assert f"'{ROOT}[trt]'" in result.stderr  # which works in this folder
    assert result.stderr.count("\n") == 1


def test_a_checkpoint_names_the_extra(with_ort: Environment, folder: Path) -> None:
    (folder / "x2.pt").touch()
    result = with_ort.run("-m", "engines.upscale", "x2.pt", "in.png", "out.png", cwd=folder)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: checkpoints need PyTorch, which is not installed: pip install ")
    assert result.stderr.endswith(f"'{ROOT}[export]'\n")
