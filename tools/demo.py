#!/usr/bin/env python3
"""The whole way on a CPU: the bundled checkpoints, their ONNX files, the proof of parity, enlarged photographs, and a
page that shows all of it.

Works in the folder demo/ of the clone and runs the commands that a user would type; `make demo` calls it. The
photograph is made half as large first, and then a quarter, so that bicubic interpolation and the models can be compared
with what it was.
"""

from __future__ import annotations

import os
import shutil
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

SCALES = (2, 4)


@click.command(cls=Command)
def main() -> None:
    """Export the bundled checkpoints, prove parity, enlarge a photograph, and show what came out as a page."""
    folder = ROOT / "demo"
    (folder / "photograph").mkdir(parents=True, exist_ok=True)
    photograph = read_rgb(ROOT / "engines" / "samples" / "astronaut.png").pixels
    write_picture(folder / "photograph" / "astronaut.png", Picture(photograph))
    told = [_enlarge(folder, photograph, scale) for scale in SCALES]
    timing = "--size 64x64 --rounds 3 --warmup 1 --profile --json latency.json"
    run(folder, "How fast, and where does the time go?", f"../tools/latency.py sst-light-x2 sst-light-x2.onnx {timing}")
    runs = [f"{kind}_x{scale}.json" for kind in ("scores", "parity") for scale in SCALES]
    run(folder, "All of it on one page:", f"../tools/report.py {' '.join(runs)} latency.json -o report.html")
    click.echo("\n" + "\n".join([*told, f"{folder / 'report.html'} shows all of it in a browser"]))


def _enlarge(folder: Path, photograph: np.ndarray, scale: int) -> str:
    """All steps with the bundled model of that scale; returns what they show."""
    checkpoint = f"sst-light-x{scale}"
    original = resize.crop_to_multiple(photograph, scale)
    small = resize.downscale(original, scale)
    write_picture(folder / f"small_x{scale}.png", Picture(small))
    run(folder, f"The ONNX file of the bundled {checkpoint}:", f"-m export.onnx --ckpt {checkpoint}")
    proof = f"--error-map errors_x{scale}.png --json parity_x{scale}.json"
    run(folder, "Does it compute the same?", f"../tools/parity.py {checkpoint} {checkpoint}.onnx {proof}")
    pictures = f"small_x{scale}.png large_x{scale}.png"
    run(folder, "A photograph, enlarged:", f"-m engines.upscale {checkpoint}.onnx {pictures}")
    models = f"{checkpoint} {checkpoint}.onnx" if scale == SCALES[0] else f"{checkpoint}.onnx"  # PyTorch takes its time
    shutil.rmtree(folder / f"pictures_x{scale}", ignore_errors=True)  # of the demo before
    saved = f"--save pictures_x{scale} --json scores_x{scale}.json"
    run(folder, "How good is it?", f"../tools/evaluate.py {models} --bicubic --data photograph {saved}")
    return _compare(folder, original, resize.upscale(small, scale), scale)


def _compare(folder: Path, original: np.ndarray, bicubic: np.ndarray, scale: int) -> str:
    """Tells both PSNR, and writes bicubic, ours and the original side by side, each pixel as four."""
    ours = read_rgb(folder / f"large_x{scale}.png").pixels
    planes = [metrics.crop_border(metrics.luma(of), scale) for of in (original, bicubic, ours)]
    by_bicubic, by_model = (metrics.psnr(planes[0], of) for of in planes[1:])
    strip = np.concatenate((bicubic, ours, original), axis=1)
    comparison = folder / f"comparison_x{scale}.png"
    write_picture(comparison, Picture(strip.repeat(2, axis=0).repeat(2, axis=1)))
    return (
        f"x{scale}: PSNR against the photograph: bicubic {by_bicubic:.2f} dB, sst-light-x{scale} {by_model:.2f} dB; "
        f"{comparison} shows bicubic, the model's and the photograph side by side"
    )


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
