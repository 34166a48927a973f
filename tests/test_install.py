"""What `pip install .` gives: a wheel, installed beside what is here already, and its command in an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import ribsr
from tests.engines import fakes
from tests.test_house import ROOT
from tests.test_without_torch import Environment, make_environment
from tools import cli

LEFT_OUT = (".*", "tests", "demo", "build", "__pycache__", "*.egg-info")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a copy of the clone, so that nothing is left behind in it."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("needs setuptools 77")
    folder = tmp_path_factory.mktemp("wheel")
    copy = shutil.copytree(ROOT, folder / "clone", ignore=shutil.ignore_patterns(*LEFT_OUT))
    build = "import setuptools.build_meta as b, sys; b.build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", build, str(folder)]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """With the wheel installed, and with what is installed here but the toolkit."""
    pytest.importorskip("pip")
    made = make_environment(tmp_path_factory.mktemp("installed"), ("ribsr",), (), clone=False)
    command = [sys.executable, "-m", "pip", "--python", str(made.python), "install", "--quiet", "--no-deps"]
    command += ["--no-index", "--disable-pip-version-check", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return made


def call(
    environment: Environment, *arguments: str, cwd: Path, program: str = "ribsr"
) -> subprocess.CompletedProcess[str]:
    """Runs `ribsr ARGUMENTS`, the program that pip made, or another of its programs."""
    return environment.run(environment.python.with_name(program), *arguments, cwd=cwd)


def test_the_wheel_has_all_that_the_clone_has(wheel: Path) -> None:
    """Every file in its folders, sources of kernels, samples and checkpoint among them, and no library of a build."""
    folders = ("ribsr", "export", "engines", "plugins", "tools")
    present = {name for name in zipfile.ZipFile(wheel).namelist() if name.split("/")[0] in folders}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and "build" not in path.relative_to(ROOT).parts
    }
    assert {"plugins/include/ribsr_kernels.h", "plugins/src/kernels.map", "engines/samples/coffee.png"} <= wanted
    assert present == wanted


def test_it_is_the_installed_one_that_runs(environment: Environment, tmp_path: Path) -> None:
    done = call(environment, "--version", cwd=tmp_path)
    assert done.stdout == f"ribsr {ribsr.__version__}\n", done.stderr
    done = environment.run("-c", "import ribsr, tools; print(ribsr.__file__, tools.__file__)", cwd=tmp_path)
    assert done.stdout.count(str(environment.python.parents[1])) == 2, done.stdout + done.stderr


@pytest.mark.parametrize(
    "command",
    ["", "export", "export onnx", "export trt", "upscale", "parity", "latency", "evaluate", "report", "train", "recipe"]
    + ["build-kernels", "doctor"],
)
def test_help(environment: Environment, tmp_path: Path, command: str) -> None:
    done = call(environment, *command.split(), "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: ribsr {command}".rstrip())


@pytest.mark.parametrize("program", cli.PROGRAMS)
def test_help_of_every_program(environment: Environment, tmp_path: Path, program: str) -> None:
    done = call(environment, "--help", cwd=tmp_path, program=program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: {program} ")


def test_pictures_parity_and_times(environment: Environment, tmp_path: Path) -> None:
    fakes.write_onnx(tmp_path / "x2.onnx")
    fakes.write_onnx(tmp_path / "again.onnx")
    Image.new("RGB", (48, 44)).save(tmp_path / "in.png")
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "__init__.py").write_text("raise SystemExit('foreign')")
    for arguments in (
        "upscale x2.onnx in.png out.png",
        "parity x2.onnx again.onnx --size 32x32",
        "parity x2.onnx again.onnx",  # on the samples in the wheel
        "latency x2.onnx --rounds 1 --warmup 0 --size 32x32",  # whose processes start anew
        "evaluate --bicubic x2.onnx --data .",
    ):
        done = call(environment, *arguments.split(), "--device", "cpu", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    assert Image.open(tmp_path / "out.png").size == (96, 88)


def test_a_report_from_what_is_in_the_wheel(environment: Environment, tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    fakes.write_onnx(tmp_path / "x2.onnx")
    Image.effect_noise((48, 44), 60).convert("RGB").save(tmp_path / "in.png")
    for arguments in (
        "evaluate --bicubic x2.onnx --data . --save pictures --json scores.json --device cpu",
        "report scores.json",
    ):
        done = call(environment, *arguments.split(), cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "in.png, x2" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_export_of_the_bundled_checkpoint(environment: Environment, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    done = call(environment, "export", "onnx", "--ckpt", "sst-light-x2", "--no-verify", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "sst-light-x2.onnx").exists()


def test_commands_of_modules_are_there_too(environment: Environment, tmp_path: Path) -> None:
    for module in ("export.onnx", "export.trt", "engines.upscale", "plugins.build", "ribsr"):
        done = environment.run("-m", module, "--help", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "Usage: python -m " in done.stdout


def test_hints_name_the_wheel(environment: Environment, wheel: Path, tmp_path: Path) -> None:
    hint = "from ribsr.base.installation import pip_install; print(pip_install('trt'))"
    assert environment.run("-c", hint, cwd=tmp_path).stdout == f"pip install '{wheel}[trt]'\n"
    moved = wheel.rename(wheel.with_suffix(".moved"))
    try:
        assert environment.run("-c", hint, cwd=tmp_path).stdout.startswith("pip install 'tensorrt>=8.6' 'cuda-python>=")
    finally:
        moved.rename(wheel)


def test_nothing_is_written_into_the_clone() -> None:
    assert not (ROOT / "build").exists()
    assert os.access(ROOT / "tools" / "doctor.py", os.X_OK)
