#!/usr/bin/env python3
"""One page that shows runs: are files right, how fast, where does the time go, and what do pictures look like?

tools/evaluate.py x2.pt x2.onnx --bicubic --data photographs --save pictures --json scores.json
tools/report.py scores.json parity.json latency.json -o report.html
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from ribsr.base.command import Command, echo
from ribsr.base.files import amount, atomic, check_target


@click.command(cls=Command)
@click.argument("runs", nargs=-1, required=True, metavar="RUN.json...")
@click.option("-o", "--output", type=click.Path(path_type=Path), default="report.html", show_default=True)
def main(runs: tuple[str, ...], output: Path) -> None:
    """Makes one HTML page, which needs no network, of what --json of latency, parity and evaluate wrote.

    Pictures are those that evaluate saved (--save), and parity's error maps; they have to lie in the folder of their
    RUN.json or below. An existing OUTPUT is replaced.
    """
    from tools._page import page
    from tools._runs import read_runs

    if output.suffix.lower() not in (".html", ".htm") or output.resolve() in {Path(run).resolve() for run in runs}:
        raise click.UsageError(f"-o {output}: give the page a name of its own that ends in .html")
    check_target(output)
    text = page(read_runs(list(runs)))
    with atomic(output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    echo(f"wrote {output}, {amount(len(text.encode()))}")


if __name__ == "__main__":
    main(prog_name="tools/report.py")
