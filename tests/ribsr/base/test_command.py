"""What every command of the toolkit does with exceptions."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner, Result

from engines import EngineError
from ribsr.base.command import Command


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
        (MemoryError(), "out of memory; give smaller pictures"),
        (KeyError("x"), "KeyError: 'x' (run again with -v for a traceback)"),
        (RuntimeError(), "RuntimeError (run again with -v for a traceback)"),
    ],
)
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
    result = run(KeyboardInterrupt())
    assert result.exit_code == 1
    assert "Aborted!" in result.stderr
