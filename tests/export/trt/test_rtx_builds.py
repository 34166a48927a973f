"""TensorRT RTX itself builds our networks, on a machine without a GPU: `python -m export.trt --rtx` as a user types it.

It is where .ci/tensorrt_bindings has put it. Plans with plugins need the plugin library as well: the one that
`python -m plugins.build --tensorrt-include DIR` made for TensorRT 11, or one that $RIBSR_TENSORRT_LIBRARY names.
Nothing is run: no GPU here would take these plans.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

import ribsr
from export.convert import Options, export_onnx
from plugins import fuse, library
from tests.engines.trt.test_versions import BINDINGS

ROOT = Path(__file__).resolve().parents[3]
SITE = BINDINGS / "rtx" / "site"
SIZES = ["--shapes", "64x64", "640x360", "1280x720"]
ONE = ["--size", "640x360"]
LIGHT = [("light", precision, sizes) for precision in ("fp16", "bf16") for sizes in (SIZES, ONE)]

pytestmark = pytest.mark.skipif(not SITE.is_dir(), reason=f"no TensorRT RTX in {SITE}: make bindings")

Builds = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Canonical files of opset 23, of which plans in the forms plugin and attention can be made."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name in ("sst-l+", "esc-rib"):
        ribsr.save(ribsr.build(replace(ribsr.config(name), name=f"{name} block", blocks=1)), folder / f"{name}.pt")
    for name, checkpoint in (
        ("light", Path("sst-light-x2")),
        ("l+", folder / "sst-l+.pt"),
        ("esc", folder / "esc-rib.pt"),
    ):
        export_onnx(checkpoint, folder / f"{name}.onnx", Options(opset=23, verify=False))
    return folder


def command(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """export.trt, with TensorRT RTX and nothing else of TensorRT."""
    path = os.pathsep.join(map(str, (ROOT, SITE)))
    return subprocess.run(
        [sys.executable, "-m", "export.trt", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def builds(models: Path, tmp_path: Path) -> Builds:
    """A function that builds a plan and gives its manifest, and under `output` what the command said."""

    def build(model: str, *arguments: str, name: str = "x2.rtx") -> dict[str, Any]:
        done = command("--onnx", models / f"{model}.onnx", *arguments, "-o", tmp_path / name)
        assert done.returncode == 0, done.stdout + done.stderr
        return {**json.loads((tmp_path / f"{name}.json").read_text()), "output": done.stdout}

    return build


@pytest.fixture
def plugin() -> Path:
    path = library.tensorrt_path(11)
    if not path.exists():
        pytest.skip(f"needs {path.name}: python -m plugins.build --tensorrt-include DIR, of TensorRT 11")
    return path


def attentions(models: Path, model: str) -> int:
    nodes = Counter(node.op_type for node in onnx.load(models / f"{model}.onnx").graph.node)
    return nodes["CyclicWindowAttention"]


@pytest.mark.parametrize(
    ("model", "precision", "sizes"),
    [
        *LIGHT,
        ("l+", "bf16", SIZES),
        ("l+", "fp16", ONE),
        ("esc", "fp16", ONE),
    ],
)
def test_with_our_plugins(
    plugin: Path, models: Path, builds: Builds, model: str, precision: str, sizes: list[str]
) -> None:
    made = builds(model, f"--{precision}", *sizes)
    assert (made["form"], made["precision"], made["tensorrt"][:4]) == ("plugin", precision, "RTX ")
    assert made["plugin"]["file"] == plugin.name
    plugins = made["layers"][f"plugins {precision}"]
    assert plugins >= 2 * attentions(models, model)  # attention, and what is around it
    assert f"plugins: {plugins} {precision};" in made["output"]


@pytest.mark.parametrize(
    ("model", "precision", "sizes"),
    [*LIGHT, ("l+", "bf16", ONE), ("l+", "fp16", SIZES), ("esc", "fp16", SIZES)],
)
def test_with_attention_of_its_own(models: Path, builds: Builds, model: str, precision: str, sizes: list[str]) -> None:
    made = builds(model, f"--{precision}", "--no-plugin", *sizes, "--gpu", "8.9,12.0")
    assert (made["form"], made["plugin"], made["compute_capability"]) == ("attention", None, "8.9,12.0")
    layers = made["layers"]
    assert not [name for name in layers if name.startswith("plugins")]
    # An attention is two layers of a network, its inputs' and its outputs'; all else that is heavy is convolutions.
    assert layers[f"heavy {precision}"] > 2 * attentions(models, model)
    assert layers.get("heavy fp32", 0) == 0


def test_two_builds_are_the_same_and_say_which_cards_they_are_for(builds: Builds, tmp_path: Path) -> None:
    """The header's bits, found by building for one card at a time; 1.7.1 has no call that tells without a GPU."""
    settings = ["--bf16", "--no-plugin", "--size", "64x64"]
    bits = {}
    for name, cards in (("a", ["8.9,12.0"]), ("b", ["12.0,8.9"]), ("all", []), ("old", ["8.0"])):
        builds("l+", *settings, *(["--gpu", *cards] if cards else []), name=f"{name}.rtx")
        bits[name] = (tmp_path / f"{name}.rtx").read_bytes()[32]
    assert (tmp_path / "a.rtx").read_bytes() == (tmp_path / "b.rtx").read_bytes()
    assert bits == {"a": 0b0011000, "b": 0b0011000, "all": 0b1111110, "old": 0b0000010}


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("sizes", [SIZES, ONE])
def test_two_builds_with_our_plugins_agree(builds: Builds, tmp_path: Path, sizes: list[str]) -> None:
    """To the byte for one size. For a range, TensorRT RTX was seen to number sst-l+'s height and width either way."""
    made = [builds("light", "--fp16", *sizes, name=f"{name}.rtx")["layers"] for name in "ab"]
    plans = [(tmp_path / f"{name}.rtx").read_bytes() for name in "ab"]
    assert made[0] == made[1]
    assert len(plans[0]) == len(plans[1])
    assert sizes != ONE or plans[0] == plans[1]


def test_float32_attention_has_no_kernels(models: Path, tmp_path: Path) -> None:
    """What export.trt refuses beforehand, tried: the day that it builds, the refusal can go.

    (As `decomposable` it builds, into what nobody has run: it may need as much memory as the form matmul.)
    """
    from export.lower import lower

    model = lower(fuse.strip(onnx.load(models / "l+.onnx")), "attention")
    onnx.save(model, tmp_path / "model.onnx")
    task = {"library": None, "half": False, "workspace": None, "optimization_level": None, "capabilities": []}
    shape = (1, 3, 64, 64)
    (tmp_path / "task.json").write_text(json.dumps({**task, "shapes": [shape] * 3}))
    done = subprocess.run(
        [sys.executable, "-m", "export.trt.building", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, SITE)))},
        capture_output=True,
        text=True,
        check=False,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert "cannot build the engine" in told["error"]
    assert "not supported by a dedicated kernel" in told["error"]


@pytest.mark.parametrize("text", [b"", b"no model", b"\x08\x07"])
def test_a_file_that_is_no_model_is_told_before_tensorrt_sees_it(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "x2.onnx").write_bytes(text)
    done = command("--fp16", "--rtx", "--onnx", tmp_path / "x2.onnx", "-o", tmp_path / "x2.rtx")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
