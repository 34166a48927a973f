"""What the folders of tests share: golden vectors made by the paper authors' own code, small models, signals."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins import compiler, library

GOLDEN = Path(__file__).parent / "golden"

os.environ[library.CPU_VARIABLE] = str(GOLDEN / "none.so")
"""ONNX Runtime's own operators run on CPUs, whatever has been built, but in tests that ask for `cpu_library`."""

NAMES = ("escrib_x2", "sst_cyclic_x2", "sst_pixelshuffle_x3", "sst_pixelshuffle_x4", "sst_shifted_x2")


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests keep for later runs is not kept among the user's files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@dataclass(frozen=True)
class Golden:
    """A small model as the authors' code ran it: their options, parameters, input and float32 output."""

    name: str
    options: dict[str, Any]
    params: dict[str, np.ndarray]
    x: np.ndarray
    y: np.ndarray

    def model(self) -> Any:
        """Our model with their weights."""
        import torch

        import ribsr
        from ribsr import configs

        model = ribsr.build(configs.from_authors(self.options, self.name))
        model.load_state_dict({key: torch.from_numpy(value) for key, value in self.params.items()})
        return model.eval()


def load_golden(name: str) -> Golden:
    with np.load(GOLDEN / f"{name}.npz") as file:
        options = json.loads(str(file["config"]))
        options["type"] = options.pop("class")
        params = {key.removeprefix("param:"): file[key] for key in file.files if key.startswith("param:")}
        return Golden(name, options, params, file["x"], file["y"])


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session", params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


@pytest.fixture(scope="session")
def published() -> dict[str, Any]:
    """The published checkpoints' options, key names and shapes."""
    return json.loads((GOLDEN / "state_dicts.json").read_text())


@pytest.fixture(scope="session")
def built_for_cpu() -> Path:
    """The library of kernels for CPUs, built if it was not up to date; without a C++ compiler a test is skipped."""
    try:
        compiler.find_cxx()
    except compiler.NoCompiler:
        pytest.skip("needs a C++ compiler")
    compiler.build_cpu()
    return compiler.CPU_LIBRARY


@pytest.fixture
def cpu_library(built_for_cpu: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same, and `plugins.library`, and so the engines, use it."""
    monkeypatch.setenv(library.CPU_VARIABLE, str(built_for_cpu))
    library.load_cpu.cache_clear()
    yield built_for_cpu
    library.load_cpu.cache_clear()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where the test run itself was started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
