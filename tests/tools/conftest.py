"""A folder with a checkpoint and files exported from it, and its neighbours' fakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ribsr.base.files import sha256
from tests.engines import fakes


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: x2.pt, x2.onnx (float32) and x2.fp16.onnx of the same weights."""
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    digest = sha256(fakes.write_checkpoint(Path("x2.pt")))
    fakes.write_onnx(Path("x2.onnx"), sha256=digest)
    fakes.write_onnx(Path("x2.fp16.onnx"), precision="fp16", sha256=digest)
    return tmp_path
