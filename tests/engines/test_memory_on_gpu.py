"""What a run takes of a GPU's memory beside what is predicted. Needs PyTorch, onnxruntime-gpu and our kernels."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")

import ribsr  # noqa: E402
from engines import Tiled, open_engine  # noqa: E402
from export.convert import Options, export_onnx  # noqa: E402
from plugins import library  # noqa: E402
from ribsr.base.sizes import Size  # noqa: E402
from tests.engines import fakes  # noqa: E402
from tests.engines.on_gpu import NEEDS_ONNXRUNTIME  # noqa: E402

pytestmark = [
    *NEEDS_ONNXRUNTIME,
    pytest.mark.skipif(not library.path().exists(), reason="needs python -m plugins.build"),
]

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
SIZES = ("256x256", "640x360", "400x1000")

MEASURE = """
import json, sys
from engines import driver, open_engine
from ribsr.base.sizes import Size
from tests.engines import fakes

path, options, warm, *sizes = sys.argv[1:]
found = []
with open_engine(path, device="cuda", **json.loads(options)) as engine:
    told = engine.describe()
    allocator = told.runtime == "pytorch" and told.form != "kernel"
    if allocator:
        import torch
    if int(warm):
        engine.run(fakes.picture(64, 64))
        engine.release()
    for text in sizes:
        size = Size.parse(text)
        predicted, before = engine.needs(size), driver.free_memory()
        if allocator:  # it keeps more than it needs
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        engine.run(fakes.picture(*size))
        taken = torch.cuda.max_memory_allocated() - before if allocator else before - driver.free_memory()
        found.append({"form": told.form, "predicted": predicted, "taken": taken, "again": engine.needs(size)})
        engine.release()
print(json.dumps(found))
"""


def measured(path: Path, *sizes: str, warm: bool, **options: Any) -> list[dict[str, Any]]:
    """Peaks beside predictions, in a process of its own. warm: after a run on a small picture."""
    command = [sys.executable, "-c", MEASURE, str(path), json.dumps(options), str(int(warm)), *sizes]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def check(found: dict[str, Any], form: str) -> None:
    assert found["form"] == form
    assert found["taken"] == pytest.approx(found["predicted"], rel=0.25, abs=16 * MIB)
    assert found["again"] < 0.3 * found["predicted"] + 16 * MIB


@pytest.fixture(scope="module")
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published network of one block."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("memory") / f"{request.param}.pt"
    ribsr.save(ribsr.build(replace(ribsr.config(request.param, 2), blocks=1)), path)
    return path


def onnx_of(checkpoint: Path, half: bool) -> Path:
    path = checkpoint.with_name(f"{checkpoint.stem}.{half}.onnx")
    if not path.exists():
        export_onnx(checkpoint, path, Options(half=half, verify=False), say=lambda line: None)
    return path


published = pytest.mark.parametrize("checkpoint", ["sst-light", "sst", "sst-l+", "esc-rib"], indirect=True)


@published
def test_onnx_runtime_in_our_kernels(checkpoint: Path) -> None:
    for size in SIZES:
        (found,) = measured(onnx_of(checkpoint, half=True), size, warm=False)
        check(found, "kernel")


@pytest.mark.parametrize("checkpoint", ["sst-light"], indirect=True)
def test_recorded_sizes_add_up(checkpoint: Path) -> None:
    """They share some of what they take, how much depends on their order: so it may be less than is predicted."""
    for found in measured(onnx_of(checkpoint, half=True), *SIZES, warm=True, cuda_graphs=True):
        assert found["form"] == "kernel"
        assert 0.5 * found["predicted"] < found["taken"] + 16 * MIB
        assert found["taken"] < 1.25 * found["predicted"] + 16 * MIB
        assert found["again"] == 0


@pytest.mark.parametrize("checkpoint", ["sst-light", "esc-rib"], indirect=True)
@pytest.mark.parametrize("half", [True, False], ids=["fp16", "fp32"])
def test_onnx_runtimes_own_operators_take_no_more(checkpoint: Path, half: bool) -> None:
    """One measurement stands behind what is predicted: it may be too much."""
    (found,) = measured(onnx_of(checkpoint, half), "400x400", warm=False, kernels=False)
    assert found["taken"] < 1.25 * found["predicted"]


@published
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_pytorch(checkpoint: Path, precision: str) -> None:
    form = "kernel" if precision == "fp16" and checkpoint.stem != "sst" else "sdpa"
    for found in measured(checkpoint, *SIZES, warm=True, precision=precision):
        check(found, form)


@pytest.mark.parametrize("checkpoint", ["sst-light"], indirect=True)
@pytest.mark.parametrize("runtime", ["onnxruntime", "pytorch"])
def test_a_picture_too_large_for_the_memory_given_is_cut(checkpoint: Path, runtime: str) -> None:
    path = checkpoint if runtime == "pytorch" else onnx_of(checkpoint, half=True)
    options: dict[str, Any] = {"precision": "fp16"} if runtime == "pytorch" else {}
    x = fakes.picture(700, 900)
    with open_engine(path, device="cuda", **options) as engine:
        engine.run(fakes.picture(64, 64))
        whole = engine.needs(Size.of(x))
        assert whole is not None
        tiled = Tiled(engine, memory=whole // 2)
        tile = tiled.largest(Size.of(x))
        assert tile.height * tile.width < 700 * 900 / 2
        assert (engine.needs(tile) or 0) <= whole // 2
        cut = tiled.run(x)
        assert np.abs(cut - engine.run(x)).mean() < 1e-2
