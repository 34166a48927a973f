"""tools/beside_authors.py, with small networks in the places of the authors' and of a peer's."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from engines import EngineError
from tests.engines import fakes
from tools._common import ModelName
from tools.beside_authors import main

pytest.importorskip("torch")

from tools._authors import Network, OthersEngine, authors_network, import_authors, open_beside, peer_network  # noqa: E402

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

PEER = """
import torch
from basicsr.archs.arch_util import to_2tuple, trunc_normal_
from basicsr.utils.registry import ARCH_REGISTRY
from .neighbour import enlarged

@ARCH_REGISTRY.register()
class Peer(torch.nn.Module):
    def __init__(self, upscale, window_size=8, fault=None):
        super().__init__()
        self.scale = to_2tuple(upscale)[1]
        self.mix = torch.nn.Linear(3, 3)
        trunc_normal_(self.mix.weight, std=0.02)
        self.fault = fault
        if fault == "made":
            missing_kernel()

    def forward(self, x):
        if self.fault == "run":
            missing_kernel()
        self.seen = self.mix(x.movedim(1, 3)).movedim(3, 1)
        return enlarged(self.seen, self.scale)
"""

NEIGHBOUR = """
def enlarged(x, scale):
    return x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
"""

OPTIONS = """
name: a peer
scale: 2
network_g:
  type: Peer
  upscale: 2
  window_size: 16
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
        if name.startswith(("archs ", "basicsr")):
            del sys.modules[name]


@pytest.fixture
def options(repository: Path) -> Path:
    """A peer's options file, in a checkout of its own."""
    archs = Path("peer/basicsr/archs")
    archs.mkdir(parents=True)
    (archs / "peer_arch.py").write_text(PEER, encoding="utf-8")
    (archs / "neighbour.py").write_text(NEIGHBOUR, encoding="utf-8")
    (archs / "other_arch.py").write_text("import what_nobody_has\nclass PeerOfAnother: pass\n", encoding="utf-8")
    path = Path("peer/options/test/peer.yml")
    path.parent.mkdir(parents=True)
    path.write_text(OPTIONS, encoding="utf-8")
    return path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def authors_engine(repository: Path, precision: str | None = None) -> OthersEngine:
    return OthersEngine(ModelName("authors", precision), authors_network(repository, "sst-light", 2), "cpu")


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
    engine = authors_engine(repository, "fp16")
    types = {name: parameter.dtype for name, parameter in engine._model.named_parameters()}
    assert types == {"to_q": torch.float32, "weight": torch.float16}
    y = engine.run(x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, x.repeat(2, axis=2).repeat(2, axis=3), atol=1e-3)


def test_their_model_keeps_to_what_an_engine_is(repository: Path) -> None:
    engine = authors_engine(repository)
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


def test_a_peer_is_timed_in_the_same_run(options: Path) -> None:
    result = run("SST", "sst-light", f"{options}", f"{options}@bf16", "--size", "9x8", "--rounds", "2", "--json", "-")
    assert result.exit_code == 0, result.stderr
    theirs, peer, half = json.loads(result.stdout)["results"]
    assert (theirs["file"], peer["file"], half["file"]) == ("authors", f"{options}", f"{options}@bf16")
    assert theirs["ratio"] == 1
    assert peer["ratio"] > 0
    told = [(row["description"]["model"], row["description"]["precision"]) for row in (peer, half)]
    assert told == [("Peer", "fp32"), ("Peer", "bf16")]


def test_which_of_the_authors_rows_run_can_be_said(options: Path) -> None:
    result = run("SST", "sst-light", f"{options}", "authors@fp16", "--size", "9x8", "--rounds", "1", "--json", "-")
    assert [row["file"] for row in json.loads(result.stdout)["results"]] == [f"{options}", "authors@fp16"]


@pytest.fixture
def products() -> Iterator[tuple[Any, Any]]:
    """PyTorch's settings of products and of convolutions, as they were afterwards."""
    import torch

    settings: tuple[Any, Any] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [setting.allow_tf32 for setting in settings]
    yield settings
    for setting, value in zip(settings, before, strict=True):
        setting.allow_tf32 = value


def test_products_are_as_the_row_says_whatever_ran_before(products: tuple[Any, Any]) -> None:
    import torch

    matmul, cudnn = products
    seen = list[tuple[bool, bool]]()

    class Probe(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((matmul.allow_tf32, cudnn.allow_tf32))
            return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    engine = OthersEngine(ModelName("authors"), Network(Probe(), "probe", 2, "peer", autocast=True), "cpu")
    for own in (True, False):
        matmul.allow_tf32, cudnn.allow_tf32 = not own, False
        engine._tf32 = own
        engine.run(fakes.picture(4, 5))
    assert seen == [(True, True), (False, True)]


def test_half_precision_of_a_peer_is_autocast(options: Path) -> None:
    import torch

    x = fakes.picture(4, 5)
    network = peer_network(options)
    engine = OthersEngine(ModelName(f"{options}", "bf16"), network, "cpu")
    assert engine.run(x).shape == (1, 3, 8, 10)
    assert network.module.mix.weight.dtype == torch.float32
    assert network.module.seen.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (OPTIONS.replace("window_size", "windows"), "Peer cannot be made (TypeError: "),
        (OPTIONS + "  fault: made\n", "Peer cannot be made (NameError: name 'missing_kernel' is not defined)"),
        (
            OPTIONS + "  fault: run\n",
            "PyTorch failed on [1, 3, 4, 5] (NameError: name 'missing_kernel' is not defined)",
        ),
        (
            OPTIONS.replace("type: Peer", "type: Elsewhere"),
            "no */archs/*_arch.py of the folders above has a class Elsew",
        ),
        (
            OPTIONS.replace("type: Peer", "type: PeerOfAnother"),
            "their code needs what_nobody_has, which is not installed",
        ),
        ("scale: 2\n", "names no network (network_g with its type)"),
        (OPTIONS.replace("scale: 2", "scale: two"), "scale must be a whole number, got 'two'"),
        (OPTIONS.replace("scale: 2", "scale: 4"), "enlarges by 4, the authors' model by 2: add --scale 4"),
        ("{", "not YAML"),
    ],
)
def test_what_a_peer_lacks_is_one_line(options: Path, text: str, line: str) -> None:
    options.write_text(text, encoding="utf-8")
    opening = {"device": "cpu", "threads": None}
    with pytest.raises(EngineError) as raised:
        open_beside(Path("SST"), "sst-light", 2, ModelName(f"{options}"), opening).run(fakes.picture(4, 5))
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_peer_that_cannot_run_fails_alone(options: Path) -> None:
    options.write_text(OPTIONS + "  fault: run\n", encoding="utf-8")
    result = run("SST", "sst-light", f"{options}", "--size", "9x8", "--rounds", "1", "--json", "-")
    assert result.exit_code == 1
    theirs, peer = json.loads(result.stdout)["results"]
    assert theirs["failure"] is None
    assert peer["failure"] == "PyTorch failed on [1, 3, 8, 9] (NameError: name 'missing_kernel' is not defined)"
