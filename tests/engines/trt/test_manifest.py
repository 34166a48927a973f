"""The manifest beside a plan."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engines import EngineError
from engines.base import Stamp
from engines.trt.manifest import FORMAT, Manifest, manifest_path, read_manifest, write_manifest
from ribsr.base.files import sha256

STAMP = Stamp("tiny", 2, ((4, 4), (8, 8)), "fp16", "canonical", "0.1.0", "0" * 64)


def manifest(plan: Path) -> Manifest:
    return Manifest(
        plan_sha256=sha256(plan),
        onnx="x2.onnx",
        onnx_sha256="1" * 64,
        tensorrt="8.6.0",
        cuda="13.0",
        gpu="NVIDIA H100",
        compute_capability="9.0",
        precision="fp16",
        form="plugin",
        profile={"min": [1, 3, 64, 64], "opt": [1, 3, 360, 640], "max": [1, 3, 720, 1280]},
        plugin={"file": "libribsr_tensorrt8.so", "sha256": "2" * 64},
        stamp=STAMP,
        build_seconds=39.5,
        layers={"layers": 3, "plugins fp16": 2},
    )


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "x2.fp16.plan"
    path.write_bytes(b"engine")
    write_manifest(path, manifest(path))
    return path


def test_what_is_written_is_read(plan: Path) -> None:
    assert read_manifest(plan) == manifest(plan)
    assert manifest_path(plan).name == "x2.fp16.plan.json"


def test_the_command_that_builds_it_again(plan: Path) -> None:
    made = manifest(plan)
    assert made.rebuild("x2.fp16.plan") == (
        "python -m export.trt --onnx x2.onnx --fp16 --shapes 64x64 640x360 1280x720 -o x2.fp16.plan"
    )
    static = replace(made, precision="fp32", profile=dict.fromkeys(("min", "opt", "max"), [1, 3, 360, 640]))
    assert static.rebuild("a b.plan") == "python -m export.trt --onnx x2.onnx --size 640x360 -o 'a b.plan'"
    assert " --fp16 --version-compatible --shapes " in replace(made, version_compatible=True).rebuild(plan)
    assert " --fp16 --no-plugin --shapes " in replace(made, plugin=None, form="matmul").rebuild(plan)


def refusal(plan: Path) -> str:
    with pytest.raises(EngineError) as error:
        read_manifest(plan)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_its_manifest(plan: Path) -> None:
    manifest_path(plan).unlink()
    assert "x2.fp16.plan.json is missing" in refusal(plan)
    assert "python -m export.trt" in refusal(plan)


@pytest.mark.parametrize("content", [b"engin", b"", b"another engine"], ids=["cut short", "empty", "another"])
def test_a_plan_that_the_manifest_was_not_written_for(plan: Path, content: bytes) -> None:
    plan.write_bytes(content)
    message = refusal(plan)
    assert message.startswith(f"{plan}: is not the plan that x2.fp16.plan.json was written for")
    assert manifest(plan).rebuild(plan) in message


@pytest.mark.parametrize("text", ["{", "[]", "null", "{}", '"x"', b"\xff".decode("latin1")])
def test_damaged_manifests(plan: Path, text: str) -> None:
    manifest_path(plan).write_text(text, encoding="latin1")
    assert refusal(plan).startswith(f"{manifest_path(plan)}: is damaged")


@pytest.mark.parametrize("field", ["plan_sha256", "profile", "stamp", "plugin"])
def test_a_manifest_that_lacks_a_field(plan: Path, field: str) -> None:
    values = json.loads(manifest_path(plan).read_text())
    del values[field]
    manifest_path(plan).write_text(json.dumps(values))
    assert f"is damaged ('{field}')" in refusal(plan)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["plugin"], "libribsr_tensorrt8.so"),
        (["plugin"], {"file": "libribsr_tensorrt8.so"}),
        (["plugin", "file"], "../libribsr_tensorrt8.so"),
        (["profile", "max"], [1, 3, "720", 1280]),
        (["profile", "min"], [1, 3, 0, 64]),
        (["stamp", "scale"], "2"),
        (["stamp", "windows"], []),
        (["stamp", "windows"], [[0, 8]]),
    ],
)
def test_a_manifest_whose_values_make_no_sense(plan: Path, keys: list[str], value: object) -> None:
    values = json.loads(manifest_path(plan).read_text())
    place = values
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    manifest_path(plan).write_text(json.dumps(values))
    assert "is damaged" in refusal(plan)


@pytest.mark.parametrize("version", [FORMAT + 1, 0, None, "2"])
def test_a_manifest_of_another_toolkit(plan: Path, version: object) -> None:
    values = json.loads(manifest_path(plan).read_text())
    manifest_path(plan).write_text(json.dumps({**values, "format": version}))
    assert f"has format {version!r}, this toolkit reads 1 and {FORMAT}; build the plan again" in refusal(plan)


def test_a_manifest_of_format_1_is_read(plan: Path) -> None:
    """Release 0.1 called the form `lowering`, and `attention` in the stamp."""
    values = json.loads(manifest_path(plan).read_text())
    assert (values["format"], values["form"], values["stamp"]["form"]) == (2, "plugin", "canonical")
    values["lowering"], values["stamp"]["attention"] = values.pop("form"), values["stamp"].pop("form")
    manifest_path(plan).write_text(json.dumps({**values, "format": 1}))
    assert read_manifest(plan) == manifest(plan)
    manifest_path(plan).write_text(json.dumps({**values, "format": 2}))
    assert "is damaged" in refusal(plan)
