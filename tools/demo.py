#!/usr/bin/env python3
"""The whole way on a CPU: the bundled checkpoint, its ONNX file, the proof of parity, and an enlarged photograph.

Works in the folder demo/ of the clone and runs the commands that a user would type; `make demo` calls it. The
photograph is made half as large first, so that bicubic interpolation and the model can be compared with what it was.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ribsr import metrics, resize
from ribsr.base.command import Command
from ribsr.base.pictures import Picture, read_rgb, write_picture

CHECKPOINT, SCALE = "sst-light-x2", 2


@click.command(cls=Command)
def main() -> None:
    """Export the bundled checkpoint, prove parity, and enlarge a photograph."""
    folder = ROOT / "demo"
    folder.mkdir(exist_ok=True)
    original = _read(ROOT / "engines" / "samples" / "astronaut.png")
    run(folder, "1. The ONNX file of the bundled checkpoint:", f"-m export.onnx --ckpt {CHECKPOINT}")
    run(folder, "2. Does it compute the same?", f"../tools/parity.py {CHECKPOINT} {CHECKPOINT}.onnx")
    small = resize.downscale(original, SCALE)
    write_picture(folder / "small.png", Picture(small))
    run(folder, "3. A photograph, enlarged:", f"-m engines.upscale {CHECKPOINT}.onnx small.png large.png")
    _compare(folder, original, resize.upscale(small, SCALE), _read(folder / "large.png"))


def _read(path: Path) -> np.ndarray:
    return resize.crop_to_multiple(read_rgb(path).pixels, SCALE)


def _compare(folder: Path, original: np.ndarray, bicubic: np.ndarray, ours: np.ndarray) -> None:
    """Tells both PSNR, and writes bicubic, ours and the original side by side, each pixel as four."""
    planes = [metrics.crop_border(metrics.luma(of), SCALE) for of in (original, bicubic, ours)]
    by_bicubic, by_model = (metrics.psnr(planes[0], of) for of in planes[1:])
    strip = np.concatenate((bicubic, ours, original), axis=1)
    write_picture(folder / "comparison.png", Picture(strip.repeat(2, axis=0).repeat(2, axis=1)))
    click.echo(f"\nPSNR against the photograph: bicubic {by_bicubic:.2f} dB, {CHECKPOINT} {by_model:.2f} dB")
    click.echo(f"{folder / 'comparison.png'} shows bicubic, {CHECKPOINT} and the photograph side by side")


def run(folder: Path, title: str, arguments: str) -> None:
    """Shows `python ARGUMENTS` and runs it in `folder`; ends the demo with its exit code when it fails."""
    click.echo(f"\n{title}\n$ python {arguments}")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, *arguments.split()]
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
