"""What plans are made of, and the machine that makes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ribsr
from export.convert import Options, export_onnx
from ribsr.base.sizes import Size
from tests.engines.trt.tensorrt_fake import VERSIONS
from tests.export.trt.played import FakeGPU, make_gpu


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """A folder with files of a small model in several forms."""
    folder = tmp_path_factory.mktemp("onnx")
    torch.manual_seed(0)
    small = replace(
        ribsr.config("sst-light"), name="small", dim=24, heads=(2, 2), windows=(8, 12), ranks=(8, 18), blocks=1
    )
    ribsr.save(ribsr.build(small), folder / "x2.pt")
    wide = replace(ribsr.config("sst-l"), name="wide", heads=(6,), windows=(8,), ranks=(16,), blocks=1)
    ribsr.save(ribsr.build(wide), folder / "wide.pt")
    for name, options in {
        "x2": Options(),
        "x2.fp16": Options(half=True),
        "x2.23": Options(opset=23),
        "x2.mha": Options(form="mha"),
        "x2.matmul.fp16": Options(form="matmul", half=True),
        "x2.plugin.fp16": Options(form="plugin", half=True),
        "x2.attention": Options(form="attention"),
        "x2.static": Options(static=Size(24, 40)),
        "wide.fp16": Options(half=True),
        "wide.plugin.fp16": Options(form="plugin", half=True),
    }.items():
        export_onnx(folder / f"{name.partition('.')[0]}.pt", folder / f"{name}.onnx", replace(options, verify=False))
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch, files) -> Path:
    """The working directory, with x2.onnx in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "x2.onnx").write_bytes((files / "x2.onnx").read_bytes())
    return tmp_path


@pytest.fixture(params=VERSIONS)
def gpu(request, here, monkeypatch) -> FakeGPU:
    return make_gpu(request.param, here, monkeypatch)
