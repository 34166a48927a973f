"""Fused models against the models that they are made of: on a CPU by the operators' references, on a GPU by kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import ribsr  # noqa: E402
from plugins import modules  # noqa: E402
from plugins.modules import convolution, fuse  # noqa: E402
from ribsr.attention import WindowAttention  # noqa: E402
from ribsr.configs import Config  # noqa: E402
from ribsr.layers import RIBModel  # noqa: E402
from tests.conftest import Golden  # noqa: E402
from tests.plugins.test_layer_norm_depthwise import on_gpu  # noqa: E402

SST = ribsr.SSTConfig(
    name="small",
    dim=16,
    heads=(2, 1),
    windows=(4, 8),
    ranks=(4, 8),
    blocks=2,
    expansion=1.5,
    upsampler="direct",
)
ESC = ribsr.ESCRIBConfig(
    name="small-esc",
    dim=16,
    pdim=4,
    kernel_size=5,
    heads=(2,),
    windows=(4,),
    ranks=(4,),
    blocks=2,
    conv_blocks=2,
    expansion=1.25,
)
CONFIGS = {
    "sst": SST,
    "shifted": replace(SST, windows=(4, 4)),
    "odd widths": replace(SST, dim=12, heads=(2, 3), expansion=1.25, scale=3),
    "pixelshuffle x3": replace(SST, upsampler="pixelshuffle", intermediate_dim=8, scale=3),
    "pixelshuffle x4": replace(SST, upsampler="pixelshuffle", intermediate_dim=10, scale=4),
    "esc": ESC,
    "esc with a 1x1 bank": replace(ESC, kernel_size=1, blocks=1),
    "esc pixelshuffle": replace(ESC, upsampler="pixelshuffle", intermediate_dim=8, blocks=1),
}
SIZES = [(1, 9, 11), (2, 8, 8), (2, 1, 1), (1, 1, 7), (3, 10, 5)]


def build(config: Config, dtype: torch.dtype = torch.float64, device: str = "cpu") -> RIBModel:
    """A model none of whose weights are zero or one."""
    torch.manual_seed(1)
    model = ribsr.build(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    return model.to(device, dtype)


def rmse(y: torch.Tensor, expected: torch.Tensor) -> float:
    return (y.double() - expected.double()).square().mean().sqrt().item()


class Watch(TorchDispatchMode):
    """Counts our operators and dense convolutions, and notes those whose maps are not channels-last."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        namespace, name = str(func).split(".")[:2]
        if namespace == "ribsr" or name == "convolution":
            self.seen[name] += 1
            results = out if isinstance(out, tuple) else (out,)
            maps = [args[0], *results]
            if not all(x.is_contiguous(memory_format=torch.channels_last) or x.shape[1] == ESC.pdim for x in maps):
                self.wrong.append(f"{name}: {[(x.shape, x.stride()) for x in maps]}")
        return out


def traced(fused: RIBModel) -> Watch:
    """What it runs, without running it."""
    with FakeTensorMode(allow_non_fake_inputs=True), Watch() as watch:
        fused(torch.empty(1, 3, 9, 11))
    return watch


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_fused_model_is_the_model(config: Config) -> None:
    model = build(config)
    fused = fuse(model)
    assert isinstance(fused, RIBModel)
    assert fused.config == config
    for b, h, w in SIZES:
        x = torch.rand(b, 3, h, w, dtype=torch.float64)
        torch.testing.assert_close(fused(x), model(x), rtol=0, atol=1e-13)


def test_a_fused_model_is_the_authors_model(golden: Golden) -> None:
    fused = fuse(golden.model())
    torch.testing.assert_close(fused(torch.from_numpy(golden.x)), torch.from_numpy(golden.y), rtol=0, atol=1e-5)


def test_the_bundled_checkpoint() -> None:
    model = ribsr.load("sst-light-x2")
    x = torch.rand(1, 3, 21, 34)
    with torch.inference_mode():
        torch.testing.assert_close(fuse(model)(x), model(x), rtol=0, atol=2e-5)


@pytest.mark.parametrize("config", [SST, replace(SST, windows=(8, 8)), ESC], ids=["sst", "shifted", "esc"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_as_exact_as_without(config: Config, dtype: torch.dtype) -> None:
    model = build(config, dtype)
    exact = build(config)
    exact.load_state_dict(model.state_dict())
    x = torch.rand(1, 3, 21, 30).to(dtype)
    expected = exact(x.double())
    y = fuse(model)(x)
    assert y.dtype == dtype
    assert rmse(y, expected) < 1.1 * rmse(model(x), expected)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_pictures_may_be_of_any_dtype_and_layout(layout: torch.memory_format) -> None:
    fused = fuse(build(SST, torch.bfloat16))
    x = torch.rand(2, 3, 8, 9).to(memory_format=layout)
    assert torch.equal(fused(x), fused(x.bfloat16().contiguous()))
    part = torch.rand(2, 3, 20, 20)[..., 3:11, 2:11]
    assert torch.equal(fused(part), fused(part.contiguous()))


def test_the_model_is_left_as_it_is_and_not_needed_any_more() -> None:
    model = build(ESC)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(1, 3, 9, 8, dtype=torch.float64)
    expected = model(x)
    fused = fuse(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for parameter in model.parameters():
        parameter.zero_()
    torch.testing.assert_close(fused(x), expected)


def test_nothing_is_trained() -> None:
    fused = fuse(ribsr.build(SST))
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    assert not fused.training
    assert not fused(torch.rand(1, 3, 8, 8, requires_grad=True)).requires_grad


def test_the_rib_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(SST, torch.float16)
    factors = [layer.rib() for layer in model.modules() if isinstance(layer, WindowAttention)]
    assert all(factor.dtype == torch.float32 for pair in factors for factor in pair)
    fused = fuse(model)
    monkeypatch.setattr(WindowAttention, "rib", None)
    fused(torch.rand(1, 3, 8, 8))
    kept = [value for name, value in fused.named_parameters() if ".rib." in name]
    assert len(kept) == 2 * len(factors)
    for mine, (q, k) in zip(zip(kept[::2], kept[1::2], strict=True), factors, strict=True):
        assert all(torch.equal(one, other.half()) for one, other in zip(mine, (q, k), strict=True))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_all_maps_are_channels_last(config: Config) -> None:
    fused = fuse(build(config, torch.float32))
    with Watch() as watch:
        fused(torch.rand(2, 3, 9, 11))
    assert not watch.wrong, "\n".join(watch.wrong)


@pytest.mark.parametrize(
    ("name", "inputs", "feed_forward"),
    [("sst-light", True, True), ("sst-l+", True, True), ("sst-xl+", True, True), ("sst", False, True)],
)
def test_layers_are_whole_operators_where_they_fit(name: str, inputs: bool, feed_forward: bool) -> None:
    config = replace(ribsr.config(name), blocks=2)
    watch = traced(fuse(build(config, torch.float16)))
    layers = config.blocks * len(config.windows)
    convolutions = config.blocks + layers + (3 if config.upsampler == "direct" else 5)
    whole = {"attention_inputs": inputs, "feed_forward": feed_forward}
    apart = layers * list(whole.values()).count(False)
    expected = {operator: layers for operator, taken in whole.items() if taken}
    expected |= {"depthwise_conv3x3": apart} if apart else {}
    expected |= {"channel_layer_norm": apart + 1, "convolution": convolutions + 2 * apart}
    assert watch.seen == {**expected, "cyclic_window_attention": layers}
    assert not watch.wrong


def test_esc_ribs_layers() -> None:
    config = ribsr.config("esc-rib")
    assert isinstance(config, ribsr.ESCRIBConfig)
    watch = traced(fuse(build(config, torch.float16)))
    blocks, layers = config.blocks, config.blocks * config.conv_blocks
    assert watch.seen == {
        "attention_inputs": blocks,
        "cyclic_window_attention": blocks,
        "channel_layer_norm": 2 * blocks + 1,
        "depthwise_conv3x3": blocks + layers,
        "convolution": 3 + 4 * blocks + 6 * layers,
    }


def test_what_cannot_be_fused() -> None:
    with pytest.raises(TypeError, match="no fused layers for a model of the kind _SST"):
        fuse(fuse(build(SST)))
    with pytest.raises(ValueError, match="does not take heads of 72 channels and rank 4"):
        fuse(build(replace(SST, dim=72, heads=(1, 2))))


def plain(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor | None, slope: float
) -> torch.Tensor:
    y = F.conv2d(x, weight.permute(0, 3, 1, 2), bias, padding=weight.shape[1] // 2)
    y = torch.where(y < 0, slope * y, y)
    return y if residual is None else y + residual


@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("slope", [1.0, 0.1])
@pytest.mark.parametrize("with_residual", [False, True])
def test_convolution(side: int, slope: float, with_residual: bool) -> None:
    x, residual = (torch.randn(2, c, 7, 5).to(memory_format=torch.channels_last) for c in (8, 12))
    weight, bias = torch.randn(12, side, side, 8), torch.randn(12)
    others = [residual if with_residual else None, slope]
    before = residual.clone()
    torch.testing.assert_close(convolution(x, weight, bias, *others), plain(x, weight, bias, *others))
    assert torch.equal(residual, before)


def test_our_own_convolution_takes_its_place_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for it."""
    taken: list[tuple[int, int, int]] = []

    def own(
        x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor, slope: float
    ) -> torch.Tensor:
        outputs, side, _, channels = weight.shape
        assert channels == x.shape[1]
        assert weight.is_contiguous()
        assert residual is None or residual.stride(1) == 1
        taken.append((channels, outputs, side))
        return plain(x, weight, bias, residual, slope)

    names = ("cyclic_window_attention", "attention_inputs", "feed_forward", "channel_layer_norm")
    ops = {name: getattr(torch.ops.ribsr, name) for name in names}
    monkeypatch.setattr(modules, "ribsr_ops", SimpleNamespace(**ops, convolution=own))
    config = replace(SST, blocks=1, upsampler="pixelshuffle", intermediate_dim=48, scale=4)  # up_conv: 768 outputs
    model = build(config)
    x = torch.rand(1, 3, 8, 9, dtype=torch.float64)
    torch.testing.assert_close(fuse(model)(x), model(x))
    assert taken == [(8, 16, 3), (16, 16, 1), (16, 16, 1), (16, 16, 3), (16, 16, 3), (16, 48, 3), (48, 3, 3)]


GPU: dict[str, Callable[[], Config]] = {
    "sst-light": lambda: replace(ribsr.config("sst-light"), blocks=1),
    "sst-light+ x3": lambda: replace(ribsr.config("sst-light+", 3), blocks=1),
    "sst-l x2": lambda: replace(ribsr.config("sst-l"), blocks=1),
    "sst-l+ x4": lambda: replace(ribsr.config("sst-l+", 4), blocks=1),
    "sst": lambda: replace(ribsr.config("sst"), blocks=1),
    "shifted": lambda: replace(SST, windows=(8, 8)),
    "odd widths": lambda: CONFIGS["odd widths"],
    "esc-rib": lambda: replace(ribsr.config("esc-rib"), blocks=2),
}


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", GPU)
def test_on_a_gpu_it_is_as_exact_as_pytorch(name: str, dtype: torch.dtype) -> None:
    config = GPU[name]()
    model = build(config, dtype, "cuda")
    exact = build(config, torch.float64, "cuda")
    exact.load_state_dict(model.state_dict())
    ribsr.set_attention(exact, "reference")
    fused = fuse(model)
    for b, h, w in [(1, 65, 100), (2, 33, 18), (1, 1, 1), (1, 1, 40)]:
        x = torch.rand(b, 3, h, w, device="cuda").to(dtype)
        with torch.inference_mode():
            expected, own, y = exact(x.double()), model(x), fused(x)
        assert y.isfinite().all()
        allowed = 1.3 * rmse(own, expected) + torch.finfo(dtype).eps / 4
        assert rmse(y, expected) < allowed, (b, h, w)


@on_gpu
def test_float32_on_a_gpu_is_refused() -> None:
    with pytest.raises(TypeError, match="compute in float16 and bfloat16, the model is in torch.float32"):
        fuse(build(SST, torch.float32, "cuda"))
