"""tools/beside_authors.py, with a small network in the place of the authors'."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from engines import EngineError
from tests.engines import fakes
from tools.beside_authors import main

pytest.importorskip("torch")

from tools._authors import AuthorsEngine, import_authors  # noqa: E402

SST = """
import torch
from basicsr.utils.registry import ARCH_REGISTRY

@ARCH_REGISTRY.register()
class SST(torch.nn.Module):
    def __init__(self, upscaling_factor, dim, window_sizes, **options):
        super().__init__()
        self.scale = upscaling_factor
        self.to_q = torch.nn.Parameter(torch.zeros(len(window_sizes)))
        self.weight = torch.nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3) * self.weight[0]
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkout like theirs, in the working directory, and a model of ours beside it."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "SST" / "sst" / "archs"
    path.mkdir(parents=True)
    (path / "sst_arch.py").write_text(SST, encoding="utf-8")
    fakes.write_onnx(Path("x2.onnx"))
    before = set(sys.modules)
    yield tmp_path / "SST"
    for name in set(sys.modules) - before:
        if name.startswith(("authors_archs", "basicsr")):
            del sys.modules[name]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_ratios_are_to_the_authors_model(repository: Path) -> None:
    result = run("SST", "sst-light", "x2.onnx", "--size", "9x8", "--rounds", "2", "--json", "-")
    assert result.exit_code == 0, result.stderr
    theirs, ours = json.loads(result.stdout)["results"]
    assert (theirs["file"], theirs["ratio"]) == ("authors", 1)
    assert ours["ratio"] == pytest.approx(ours["end_to_end"]["median"] / theirs["end_to_end"]["median"])
    assert theirs["description"]["model"] == "sst-light"
    assert theirs["description"]["precision"] == "fp32"


def test_a_model_that_does_not_run_fails_the_command_but_not_the_others(repository: Path) -> None:
    result = run("SST", "sst-light", "missing.onnx", "--size", "9x8", "--rounds", "1", "--json", "-")
    assert result.exit_code == 1
    theirs, ours = json.loads(result.stdout)["results"]
    assert theirs["failure"] is None
    assert ours["failure"] == "no such file"


def test_half_precision_leaves_what_theirs_leaves_in_float32(repository: Path) -> None:
    import torch

    x = fakes.picture(4, 5)
    engine = AuthorsEngine(repository, "sst-light", 2, None, "cpu", half=True)
    types = {name: parameter.dtype for name, parameter in engine._model.named_parameters()}
    assert types == {"to_q": torch.float32, "weight": torch.float16}
    y = engine.run(x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, x.repeat(2, axis=2).repeat(2, axis=3), atol=1e-3)


def test_their_model_keeps_to_what_an_engine_is(repository: Path) -> None:
    engine = AuthorsEngine(repository, "sst-light", 2, None, "cpu", half=False)
    names = [layer.name for layer in engine.profile(fakes.picture(4, 5), runs=2)]
    assert names.index("aten::repeat_interleave") < names.index("aten::mul")
    with pytest.raises(EngineError, match="authors: the input must be float32"):
        engine.run(np.zeros((1, 3, 4, 5)))
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="authors: the engine is closed"):
        engine.run(fakes.picture())


def test_what_is_no_checkout_or_no_sst_is_named(repository: Path) -> None:
    result = run("elsewhere", "sst-light")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: elsewhere: not a checkout of github dslisleedh/SST")
    assert "esc-rib is not an SST" in run("SST", "esc-rib", "--rounds", "1").stdout


def test_their_code_is_imported_from_the_checkout(repository: Path) -> None:
    assert Path(sys.modules[import_authors(repository).__module__].__file__ or "").is_relative_to(repository)
