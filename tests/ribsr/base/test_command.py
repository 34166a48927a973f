"""What every command of the toolkit does with exceptions."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from engines import EngineError, OutOfMemory
from ribsr.base.command import EXTRAS, Command, echo
from ribsr.base.errors import RibsrError
from ribsr.base.installation import pip_install
from ribsr.base.interrupt import Terminated
from ribsr.base.pictures import PictureError

ROOT = Path(__file__).resolve().parents[3]


class Group(Exception):
    """As Python's ExceptionGroup, which 3.10 has not."""

    def __init__(self, text: str, exceptions: list[Exception]):
        super().__init__(text)
        self.exceptions = tuple(exceptions)


def run(error: BaseException, *arguments: str) -> Result:
    @click.command(cls=Command)
    @click.option("--count", type=int)
    def command(count: int | None) -> None:
        raise error

    return CliRunner().invoke(command, arguments)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (EngineError("a.onnx: no such file"), "a.onnx: no such file"),
        (ValueError("two\n  lines"), "two lines"),
        (FileNotFoundError(2, "No such file or directory", "a.png"), "a.png: No such file or directory"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (FileNotFoundError("there is no folder b"), "there is no folder b"),
        (FileNotFoundError(2, "No such file", "a.pt", None, "b.pt"), "a.pt → b.pt: No such file"),
        (PermissionError(13, "Permission denied", b"a.png"), "a.png: Permission denied"),
        (OSError(9, "Bad file descriptor", 7), "Bad file descriptor"),
        (IsADirectoryError(21, "Is a directory", "two\nlines"), "two lines: Is a directory"),
        (OSError(), "OSError (run again with -v for a traceback)"),
        (EngineError(" \n "), "EngineError (run again with -v for a traceback)"),
        (PictureError("a.png: is gray"), "a.png: is gray"),
        (RibsrError("a  b.pt: two blanks"), "a  b.pt: two blanks"),
        (OutOfMemory("a.onnx: out of memory"), "a.onnx: out of memory"),
        (Group("2 failed", [EngineError("a"), Group("1", [KeyError("b")])]),
         "a; KeyError: 'b' (run again with -v for a traceback)"),
        (ModuleNotFoundError("No module named 'yaml'", name="yaml"),
         f"yaml is not installed: {pip_install('train')} or {pip_install('export')}"),
        (ModuleNotFoundError("No module named 'tensorrt'", name="tensorrt"),
         f"tensorrt is not installed: {pip_install('trt')}"),
        (ModuleNotFoundError("No module named 'x'", name="x"),
         "ModuleNotFoundError: No module named 'x' (run again with -v for a traceback)"),
        (ImportError("libcuda.so: not found"),
         "ImportError: libcuda.so: not found (run again with -v for a traceback)"),
        (MemoryError(), "out of memory; free some, or give less (smaller pictures, --tile)"),
        (KeyError("x"), "KeyError: 'x' (run again with -v for a traceback)"),
        (RuntimeError(), "RuntimeError (run again with -v for a traceback)"),
    ],
)  # fmt: skip
def test_any_exception_is_one_line(error: Exception, line: str) -> None:
    result = run(error)
    assert result.exit_code == 1
    assert result.stderr.split("\n") == [f"Error: {line}", ""]
    assert "Traceback" not in result.output


@pytest.mark.parametrize("flag", ["-v", "--verbose"])
def test_verbose_lets_the_exception_through(flag: str) -> None:
    error = EngineError("a.onnx: no such file")
    assert run(error, flag).exception is error


def test_usage_errors_keep_their_exit_code() -> None:
    assert run(EngineError("never reached"), "--count", "many").exit_code == 2


def test_an_interrupt_is_no_error_of_ours() -> None:
    assert run(KeyboardInterrupt()).exit_code == 130
    assert run(Terminated()).exit_code == 143


def test_extras_install_what_they_are_named_for() -> None:
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    text = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    named = {"yaml": "pyyaml", "cuda": "cuda-python", "tensorrt_rtx_bindings": "tensorrt-rtx-cu13-bindings"}
    for package, extras in EXTRAS.items():
        for extra in extras:
            (line,) = re.findall(rf"^{extra} = (.*)$", text, re.MULTILINE)
            assert f'"{named.get(package, package.replace("_", "-"))}' in line, (package, extra)


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("utf-8", r"caf\xe9 ≤ é 中"), ("latin-1", r"caf\xe9 <= é \u4e2d"), ("ascii", r"caf\xe9 <= \xe9 \u4e2d")],
)
def test_what_a_terminal_lacks_is_put_in_other_characters(
    monkeypatch: pytest.MonkeyPatch, encoding: str, shown: str
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding, errors="strict"))
    echo("caf\udce9 ≤ é 中")
    assert written.getvalue().decode(encoding) == f"{shown}\n"


PRINTS_ANYTHING = """
import click, warnings
from rich.console import Console
from ribsr.base.command import Command, echo

@click.command(cls=Command, help="Help with ≤.")
def main():
    name = "caf\\udce9 → ≤ é 中 😀"
    print(name)
    click.echo(name)
    click.echo(name, err=True)
    echo(name)
    for stderr in (False, True):
        console = Console(stderr=stderr, force_terminal=True)
        console.print(name, markup=False)
        with console.status(name):
            console.print("in between")
    warnings.warn(name)
    raise ValueError(name)

main()
"""


@pytest.mark.parametrize(
    "code_page",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "cp1252:strict"},
        {"PYTHONIOENCODING": "utf-8:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=str,
)
def test_no_character_ends_a_command(tmp_path: Path, code_page: dict[str, str]) -> None:
    """Wherever it is printed, and by whom: the last line is the command's own error, and nothing before it is lost."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "PYTHON"))}
    environment = {**clean, **code_page, "PYTHONPATH": str(ROOT)}
    (tmp_path / "program.py").write_text(PRINTS_ANYTHING, encoding="utf-8")
    program = [sys.executable, str(tmp_path / "program.py")]
    done = subprocess.run(program, env=environment, capture_output=True, check=False)
    assert done.returncode == 1
    assert b"Unicode" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(rb"Error: caf\xe9 ")
    assert done.stdout.count(b"caf") >= 4


PRINTS_AND_FAILS = """
import click, os, sys
from ribsr.base.command import Command, echo

@click.command(cls=Command)
@click.option("--fails", is_flag=True)
def main(fails):
    echo(f"to stdout, terminal: {sys.stdout.isatty()}")
    echo(f"to stderr, terminal: {sys.stderr.isatty()}", err=True)
    with open("result", "w") as result:
        os.write(1, b"by a library")
        os.write(2, b"by a library")
    if fails:
        raise ValueError("it fails")

main()
"""


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize(("flags", "code"), [([], 0), (["--fails"], 1)])
def test_closed_streams_are_no_fault_and_no_files(tmp_path: Path, closed: str, flags: list[str], code: int) -> None:
    (tmp_path / "program.py").write_text(PRINTS_AND_FAILS, encoding="utf-8")
    program = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "program.py", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert ("to stdout" in done.stdout) is (">&-" not in closed.split())
    assert ("to stderr" in done.stderr) is ("2>&-" not in closed)
    assert ("it fails" in done.stderr) is (code == 1 and "2>&-" not in closed)
    assert "it fails" not in done.stdout
    assert (tmp_path / "result").read_text() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_output_that_takes_no_more_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, err, called in (("stdout", False, "standard output"), ("stderr", True, "standard error")):
        with open("/dev/full", "w", buffering=1) as full:
            monkeypatch.setattr(sys, name, full)
            with pytest.raises(OSError, match="No space left on device") as caught:
                echo("a line", err=err)
            monkeypatch.undo()
            assert caught.value.filename == called
            with contextlib.suppress(OSError):
                full.close()  # what could not be written is tried again


def test_a_closed_stderr_is_not_replaced_by_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr", None)
    echo("Error: a.png", err=True)
    assert capsys.readouterr().out == ""
