"""Files as `--json` of latency, parity and evaluate writes them, with pictures, for the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engines import samples
from ribsr.base.sizes import Size
from tools._kinds import KINDS

ENVIRONMENT: dict[str, Any] = {
    "cpu": "AMD EPYC",
    "cores": 2,
    "memory_bytes": 2**34,
    "gpus": [],
    "system": "Linux 6.1",
    "versions": {"python": "3.11.2", "onnxruntime": "1.32.0"},
}

RUN: dict[str, Any] = {
    "command": ["tool.py", "x2.onnx"],
    "date": "2026-11-30T20:30:00+00:00",
    "environment": ENVIRONMENT,
}


def description(**changed: Any) -> dict[str, Any]:
    told = {"path": "x2.onnx", "runtime": "onnxruntime", "runtime_version": "1.32.0", "device": "CPUExecutionProvider"}
    return {
        **told,
        "model": "sst-light",
        "scale": 2,
        "precision": "fp32",
        "form": "kernel",
        "notes": [],
        "cuda_graphs": None,
        **changed,
    }


def times(median: float) -> dict[str, Any]:
    every = [median * factor for factor in (0.97, 0.99, 1.0, 1.02, 1.08)]
    told = {
        "median": median,
        "p90": every[4],
        "p99": every[4],
        "mean": median,
        "min": every[0],
        "spread": 0.03 * median,
    }
    return {"times": every, "runs": 5, **told}


EMPTY = ("failure", "device", "gpu_memory", "gpu_allocated", "clocks", "work", "achieved", "limits", "paired", "layers")


def timing(file: str, median: float, **changed: Any) -> dict[str, Any]:
    """A row of latency."""
    return {
        **dict.fromkeys(EMPTY),
        **{"run": 0, "file": file, "size": "128x128", "batch": 1, "description": description(path=file)},
        **{"clock": "the host, whole runs", "warmup": {"runs": 3, "seconds": 2.0, "stable": True}},
        **{"end_to_end": times(median), "pictures_per_second": 1000 / median, "peak_memory": 2**28},
        **{"ratio": median / 3179, "ratio_interval": [median / 3300, median / 3100]},
        **changed,
    }


def layers(*milliseconds: float) -> dict[str, Any]:
    return {"groups": dict(zip(KINDS, milliseconds, strict=True)), "layers": []}


def latency(*results: dict[str, Any]) -> dict[str, Any]:
    rows = results or (
        timing("sst-light-x2", 3179, layers=layers(1900, 520, 610, 60, 50, 9)),
        timing("x2.onnx", 970.8, layers=layers(560, 140, 230, 12, 8, 0)),
        timing("x2.onnx@bf16", 640.2),
    )
    return {"kind": "latency", "version": 1, "runs": [{**RUN, "source": None, "settings": {}}], "results": list(rows)}


def compared(file: str, **changed: Any) -> dict[str, Any]:
    """A row of parity."""
    errors = {"psnr": 148.0, "max_error": 4.2e-7, "mean_error": 3e-8, "rmse": 4e-8, "share_off_8bit": 0.0, "nan": 0}
    row = {"file": file, "passed": True, "failure": None, "rule": "max ≤ 0.0001", "description": description(path=file)}
    return {**row, **errors, "pictures": {}, "warnings": [], "layers": None, "error_map": None, **changed}


def parity(*models: dict[str, Any]) -> dict[str, Any]:
    comparison = {"reference": description(path="sst-light-x2"), "models": list(models or (compared("x2.onnx"),))}
    return {"kind": "parity", "version": 1, **RUN, "passed": True, "comparisons": [comparison], "skipped": []}


def evaluation(folder: Path, names: tuple[str, ...] = samples.NAMES, side: int = 96) -> dict[str, Any]:
    """Saves pictures in `folder`: photographs (a sample's name, and what tells it from others of it), and what bicubic
    and two models are said to have made of them, of which one gives what the other does."""
    originals, results = {}, []
    for name in names:
        pixels = np.rint(samples.sample(name.split()[0], Size(side, side))[0].transpose(1, 2, 0) * 255).astype(np.uint8)
        originals[f"{name}.png"] = _save(folder / "original" / f"{name}.png", pixels, folder)
    for file, blur, psnr in (("bicubic", 4, 32.2), ("sst-light-x2", 2, 35.1), ("x2.onnx", 2, 35.1)):
        rows = []
        for name in names:
            picture = Image.open(folder / "original" / f"{name}.png")
            small = picture.resize((side // blur, side // blur), Image.Resampling.BICUBIC)
            enlarged = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))
            saved = _save(folder / file / f"{name}.png", enlarged, folder)
            rows.append({"picture": f"{name}.png", "psnr": psnr, "ssim": 0.93, "saved": saved})
        of_set = {"psnr": psnr, "ssim": 0.93, "pictures": rows, "failed": []}
        told = None if file == "bicubic" else description(path=file)
        results.append({"file": file, "description": told, "sets": {"samples": of_set}})
    protocol = {"scale": 2, "border": 2, "gray": "plane", "complete": True}
    return {
        "kind": "evaluate",
        "version": 1,
        **RUN,
        **protocol,
        "originals": {"samples": originals},
        "results": results,
    }


def _save(path: Path, pixels: np.ndarray, folder: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path.relative_to(folder).as_posix()


def write(path: Path, values: Any) -> str:
    path.write_text(json.dumps(values), encoding="utf-8")
    return str(path)
