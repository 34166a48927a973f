"""What a terminal shows of work that takes long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from ribsr.base.progress import clock, time_left
from tests.terminal import ROOT, on_terminal, redirected

WORK = """
import time
from ribsr.base.progress import Progress
with Progress("opening [a] \\x1b[31m") as progress:
    time.sleep(0.3)
    progress.phase("folding", 4)
    for i in range(4):
        time.sleep(0.3)
        progress.advance()
        progress.aside(print)(f"line {i}")
    progress.phase("building")
    progress.start("tactics", None, 8)
    print(progress.step("tactics", 0))
    progress.cancel()
    print(progress.step("tactics", 1))
    time.sleep(0.3)
    progress.finish("tactics")
"""


def test_a_terminal_shows_phases_and_the_time_left_and_pipes_get_the_rest_alone() -> None:
    shown = on_terminal("-c", WORK)
    assert shown.stdout == "".join(f"line {i}\n" for i in range(4)) + "True\nFalse\n"
    assert "opening [a] \\x1b[31m" in shown.terminal, "a name is shown as it is, and acts on nothing"
    before, _, after = shown.terminal.partition("folding")
    assert " left" not in before, "nobody knows how long it takes"
    assert ", 0:01 left" in after
    assert "tactics" in after
    assert redirected("-c", WORK, FORCE_COLOR="1") == (0, shown.stdout, "")


@pytest.mark.parametrize(
    ("elapsed", "reached", "share", "left"),
    [
        (10.0, 10.0, 0.25, 30.0),
        (25.0, 10.0, 0.25, 15.0),  # nothing more has come since
        (50.0, 10.0, 0.25, 0.0),  # longer than it was to take
        (3.0, 0.0, 0.0, None),
        (3.0, 3.0, 1.0, None),
    ],
)
def test_time_left_counts_down_between_steps(elapsed: float, reached: float, share: float, left: float | None) -> None:
    assert time_left(elapsed, reached, share) == left


def test_times_are_told_as_clocks_do() -> None:
    assert [clock(seconds) for seconds in (0.4, 59.7, 750, 3723)] == ["0:00", "1:00", "12:30", "1:02:03"]


def test_ctrl_c_ends_a_command_whose_display_is_on() -> None:
    pty = pytest.importorskip("pty")
    work = """
import click, time
from ribsr.base.command import Command
from ribsr.base.progress import Progress
@click.command(cls=Command)
def main():
    with Progress("working", 9) as progress:
        progress.advance()
        print("on", flush=True)
        time.sleep(60)
main()
"""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    with subprocess.Popen(
        [sys.executable, "-c", work],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a job in the background has not
    ) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "on\n"
            time.sleep(0.2)
            running.send_signal(signal.SIGINT)
            assert running.wait(20) == 130
        finally:
            running.kill()
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 2**16):
            shown += piece
    except OSError:  # nobody has it open any more
        pass
    os.close(ours)
    assert b"Aborted!" in shown
    assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l"), "the cursor is back"
