"""SST and ESC-RIB among spandrel's architectures: it reads our files and computes what we compute, and no other
architecture's file becomes ours."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import ribsr
from ribsr.layers import RIBModel


def torchvision_alone() -> bool:
    """Whether torchvision cannot be imported beside this torch, though it is installed."""
    if find_spec("torchvision") is None:
        return False
    return subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True).returncode != 0


if torchvision_alone():
    # spandrel imports torchvision, whose published wheels are made for CUDA: beside a CPU torch its operators do not
    # load, and its import fails at those that it describes. None of them is used here.
    _operators = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

if TYPE_CHECKING:
    import spandrel
else:
    spandrel = pytest.importorskip("spandrel")
import ribsr.spandrel  # noqa: E402

SMALL = replace(ribsr.config("sst-light", 3), name="small", blocks=1, windows=(8, 16), heads=(3, 3), ranks=(16, 24))
MODELS = {
    "SST": SMALL,
    "ESC-RIB": replace(ribsr.config("esc-rib"), name="small-esc", blocks=1, conv_blocks=1, windows=(16,)),
}


def made(config: ribsr.Config) -> RIBModel:
    """With weights that the picture depends on."""
    torch.manual_seed(3)
    model = ribsr.build(config).eval()
    for value in model.parameters():
        value.data += 0.02 * torch.randn_like(value)
    return model


@pytest.fixture
def registry() -> spandrel.ArchRegistry:
    """spandrel's own architectures and ours, apart from other tests."""
    registry = spandrel.MAIN_REGISTRY.copy()
    ribsr.spandrel.install(registry)
    return registry


def loaded(path: Path, registry: spandrel.ArchRegistry) -> spandrel.ImageModelDescriptor:
    model = spandrel.ModelLoader(registry=registry).load_from_file(path)
    assert isinstance(model, spandrel.ImageModelDescriptor)
    return model


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("name", MODELS)
def test_spandrel_reads_what_we_save_and_computes_the_same(
    tmp_path: Path, registry: spandrel.ArchRegistry, name: str, suffix: str
) -> None:
    model = made(MODELS[name])
    ribsr.save(model, tmp_path / f"own{suffix}")
    read = loaded(tmp_path / f"own{suffix}", registry)
    assert (read.architecture.id, read.scale, read.purpose) == (name, model.config.scale, "SR")
    weights = read.model.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    for size in ((1, 1), (7, 19), (33, 16)):
        x = torch.rand(1, 3, *size)
        with torch.inference_mode():
            expected = model(x).clamp(0, 1)
        # Where the weights lie in memory, as files are read, moves the last bit.
        torch.testing.assert_close(read(x), expected, rtol=0, atol=1e-6)


def test_half_precision_rounds_and_leaves_the_rib_alone(tmp_path: Path, registry: spandrel.ArchRegistry) -> None:
    ribsr.save(made(SMALL), tmp_path / "x3.pt")
    read = loaded(tmp_path / "x3.pt", registry)
    x = torch.rand(1, 3, 9, 21)
    expected = read(x)
    for dtype, most in ((torch.bfloat16, 0.05), (torch.float16, 0.01)):
        half = loaded(tmp_path / "x3.pt", registry).to(dtype)
        y = half(x.to(dtype))
        assert half.dtype == y.dtype == dtype
        assert (y.float() - expected).abs().max() < most
        kept = {value.dtype for key, value in half.model.state_dict().items() if key.endswith((".to_q", ".hidden_b"))}
        assert kept == {torch.float32}


def test_tiles_are_discouraged_where_a_model_looks_at_the_whole_picture() -> None:
    shifted = replace(SMALL, windows=(8, 8))
    tiling = {config: ribsr.spandrel.descriptor(made(config)).tiling for config in (*MODELS.values(), shifted)}
    assert tiling == {
        SMALL: spandrel.ModelTiling.SUPPORTED,
        MODELS["ESC-RIB"]: spandrel.ModelTiling.DISCOURAGED,
        shifted: spandrel.ModelTiling.DISCOURAGED,
    }


def test_the_authors_files_are_refused_with_the_names_to_choose_from(
    tmp_path: Path, registry: spandrel.ArchRegistry
) -> None:
    torch.save({"params_ema": ribsr.build(ribsr.config("sst-light", 4)).state_dict()}, tmp_path / "SSTlight_X4.pth")
    with pytest.raises(spandrel.UnsupportedModelError, match=r"--model sst-light or --model sst-light\+ .*ribsr\.save"):
        loaded(tmp_path / "SSTlight_X4.pth", registry)


def test_weights_that_do_not_fit_their_configuration_are_refused(
    tmp_path: Path, registry: spandrel.ArchRegistry
) -> None:
    ribsr.save(made(SMALL), tmp_path / "x3.pt")
    tensors = torch.load(tmp_path / "x3.pt", weights_only=True)["params"]
    del tensors["body.0.0.ffn.dwc.bias"]
    torch.save(tensors, tmp_path / "short.pth")
    with pytest.raises(spandrel.UnsupportedModelError, match=r"1 keys .* missing, the first is [\w.]+$"):
        loaded(tmp_path / "short.pth", registry)


@pytest.mark.parametrize("config", [ribsr.config(name) for name in ribsr.CONFIGS], ids=lambda config: config.name)
def test_each_model_is_one_architecture_s_and_nobody_else_s(
    registry: spandrel.ArchRegistry, config: ribsr.Config
) -> None:
    with torch.device("meta"):
        tensors = dict(ribsr.build(config).state_dict())
    claimed = [support.architecture.id for support in registry if support.detect(tensors)]
    assert claimed == ["ESC-RIB" if config.name == "esc-rib" else "SST"]


@pytest.mark.parametrize(
    ("family", "parameters"),
    [
        ("SwinIR", {"depths": [1], "num_heads": [2], "embed_dim": 12}),
        ("PLKSR", {"n_blocks": 1}),
        ("SPAN", {"num_in_ch": 3, "num_out_ch": 3}),
    ],
)
def test_another_architecture_s_file_is_not_ours(
    registry: spandrel.ArchRegistry, family: str, parameters: dict[str, object]
) -> None:
    tensors = getattr(import_module(f"spandrel.architectures.{family}"), family)(**parameters).state_dict()
    assert not any(registry[name].detect(tensors) for name in MODELS)
    assert registry.load(tensors).architecture.id == family


def test_installing_twice_is_the_caller_s_choice(registry: spandrel.ArchRegistry) -> None:
    before = list(registry)
    with pytest.raises(spandrel.DuplicateArchitectureError):
        ribsr.spandrel.install(registry)
    assert ribsr.spandrel.install(registry, ignore_duplicates=True) == []
    assert list(registry) == before


def test_the_main_registry_is_the_default_and_importing_alone_changes_nothing() -> None:
    assert not any(name in spandrel.MAIN_REGISTRY for name in MODELS)


def test_without_spandrel_one_line_says_what_brings_it() -> None:
    code = "import sys; sys.modules['spandrel'] = None\nimport ribsr.spandrel"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("ModuleNotFoundError: ribsr.spandrel needs spandrel: pip install ")
