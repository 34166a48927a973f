"""The command `ribsr`: the commands that there are, imported when they are called."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import ribsr
from ribsr.base.command import Command
from tests.test_house import ROOT
from tools import cli

NAMES = [*((name,) for name in cli.COMMANDS), *(("export", name) for name in cli.EXPORTS)]


@pytest.mark.parametrize("names", NAMES, ids=" ".join)
def test_every_command_answers_help(names: tuple[str, ...]) -> None:
    before = list(sys.path)
    result = CliRunner().invoke(cli.main, [*names, "--help"], prog_name="ribsr")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"Usage: ribsr {' '.join(names)} ")
    assert sys.path == before


def test_they_are_the_commands_of_modules_and_scripts() -> None:
    for name, (target, _) in {**cli.COMMANDS, **cli.EXPORTS}.items():
        command = pkgutil.resolve_name(target)
        assert isinstance(command, Command) or name == "export", name


def test_help_imports_no_command() -> None:
    code = (
        "import sys; from ribsr.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n"
        "    heavy = {'numpy', 'onnx', 'onnxruntime', 'torch', 'rich', 'engines', 'export', 'plugins'}\n"
        "    print('END', end.code, heavy & set(sys.modules) or 'light')"
    )
    for arguments in (["--help"], ["export", "--help"], ["--version"]):
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout.endswith("END 0 light\n"), done.stdout + done.stderr


def test_the_version_is_that_of_the_package() -> None:
    result = CliRunner().invoke(cli.main, ["--version"])
    assert result.stdout == f"ribsr {ribsr.__version__}\n"
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r'^version = "(.*)"', text, re.MULTILINE) == [ribsr.__version__]


def test_errors_are_those_of_the_commands(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.main, ["upscale", "none.onnx", str(tmp_path / "a.png"), str(tmp_path / "b.png")])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("Error: ")
    assert CliRunner().invoke(cli.main, ["parity", "--size", "7"]).exit_code == 2
    assert CliRunner().invoke(cli.main, ["upscales"]).exit_code == 2


def test_a_command_that_cannot_be_imported_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "engines.upscale", None)
    result = CliRunner().invoke(cli.main, ["upscale", "--help"])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "engines.upscale" in result.stderr


def test_the_programs_that_pip_makes_are_commands_of_ours() -> None:
    """pyproject.toml names functions of `ribsr.cli`, each of which starts the program of that name."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    scripts = dict(re.findall(r'^(ribsr[\w-]*) = "ribsr\.cli:(\w+)"$', text, re.MULTILINE))
    assert scripts.keys() == cli.PROGRAMS.keys()
    for program, function in scripts.items():
        code = f"import sys; sys.argv = ['x', '--help']; from ribsr.cli import {function}; {function}()"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"Usage: {program} ")
