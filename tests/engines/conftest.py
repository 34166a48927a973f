"""Model files for the engines' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines import fakes


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.write_onnx(tmp_path_factory.mktemp("models") / "tiny.onnx")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    return fakes.write_checkpoint(tmp_path_factory.mktemp("models") / "tiny.pt")
