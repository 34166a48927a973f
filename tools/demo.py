#!/usr/bin/env python3
"""The whole way on a CPU: a checkpoint, its ONNX file, the proof of parity, and an enlarged photograph.

Works in the folder demo/ of the clone and runs the commands that a user would type; `make demo` calls it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SEED = 0


@click.command()
@click.option("--model", default="sst-light", show_default=True, help="Which network to make.")
def main(model: str) -> None:
    """Make a seeded checkpoint, export it, prove parity, and enlarge a photograph."""
    folder = ROOT / "demo"
    folder.mkdir(exist_ok=True)
    click.echo(f"1. A checkpoint: demo/x2.pt, {model} x2 with random weights (seed {SEED}).")
    click.echo("   No trained weights are bundled yet, so its picture shows the way, not the quality.")
    _make_checkpoint(folder / "x2.pt", model)
    run(folder, "2. Its ONNX file:", sys.executable, "-m", "export.onnx", "--ckpt", "x2.pt")
    run(folder, "3. Does it compute the same?", sys.executable, str(ROOT / "tools" / "parity.py"), "x2.pt", "x2.onnx")
    photograph = ROOT / "engines" / "samples" / "astronaut.png"
    run(
        folder, "4. A photograph:", sys.executable, "-m", "engines.upscale", "x2.onnx", str(photograph), "astronaut.png"
    )
    click.echo(f"\nThe enlarged photograph is {folder / 'astronaut.png'}")


def _make_checkpoint(path: Path, model: str) -> None:
    import torch

    import ribsr

    torch.manual_seed(SEED)
    ribsr.save(ribsr.build(ribsr.config(model, 2)), path)


def run(folder: Path, title: str, *command: str) -> None:
    """Shows and runs a command in `folder`; ends the demo with its exit code when it fails."""
    shown = ["python", *command[1:]]
    click.echo(f"\n{title}\n$ {shlex.join(shown)}".replace(str(ROOT), ".."))
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
