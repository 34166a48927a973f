from __future__ import annotations

import pytest
import torch

import ribsr
from export.fold import FoldedAttention, fold, half_error, refactorise
from ribsr import rib
from ribsr.attention import WindowAttention
from ribsr.configs import SSTConfig
from tests.conftest import Golden


def random_factors(rank: int, tokens: int = 64, heads: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (heads, tokens, rank)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore


def centred(product: torch.Tensor) -> torch.Tensor:
    """What softmax sees of logits [heads, N, N]: a constant per query does not count."""
    return product - product.mean(dim=-1, keepdim=True)


def test_folded_models_equal_the_golden_outputs(golden: Golden):
    folded, _ = fold(golden.model())
    with torch.inference_mode():
        y = folded(torch.from_numpy(golden.x))
    assert float((y - torch.from_numpy(golden.y)).abs().max()) <= 1e-5


def test_folding_leaves_nothing_to_compute_and_the_original_alone(golden: Golden):
    model = golden.model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded, report = fold(model)
    assert not any(isinstance(module, WindowAttention) for module in folded.modules())
    layers = [module for module in folded.modules() if isinstance(module, FoldedAttention)]
    assert len(layers) == len(report) > 0
    for layer in layers:
        assert layer.rib_q.shape == layer.rib_k.shape
        assert layer.rib_q.shape[-1] % 8 == 0
        assert layer.to_out.in_channels // layer.core.geometry.heads % 16 == 0
        assert layer.to_qkv.out_channels == 3 * layer.to_out.in_channels
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_released_ranks_fold_to_the_smallest_multiple_of_eight():
    torch.manual_seed(0)
    layer = WindowAttention(SSTConfig("one", 180, (6,), (12,), (34,), 1, 1.5, "direct"))
    parameters = (getattr(layer, name).detach().double() for name in WindowAttention.RIB_PARAMETERS)
    rib_q, rib_k = rib.factors(layer.rib_features.double(), *parameters, scale=layer.core.geometry.scale)
    folded_q, folded_k, change = refactorise(rib_q, rib_k, layer.core.geometry.scale, 0.0)
    assert folded_q.shape == (6, 144, 32)
    assert change == 0.0
    given, folded = (q @ k.mT * layer.core.geometry.scale for q, k in ((rib_q, rib_k), (folded_q, folded_k)))
    torch.testing.assert_close(centred(folded), centred(given), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("rank", "expected"), [(4, 8), (8, 8), (18, 24), (34, 40)])
def test_exact_folding_at_any_rank(rank, expected):
    rib_q, rib_k = random_factors(rank)
    folded_q, folded_k, change = refactorise(rib_q, rib_k, 0.5, 0.0)
    assert folded_q.shape[-1] == folded_k.shape[-1] == expected
    assert change == 0.0
    torch.testing.assert_close(centred(folded_q @ folded_k.mT), centred(rib_q @ rib_k.mT), rtol=0, atol=1e-12)


def test_a_bias_of_low_rank_folds_to_it_although_its_factors_are_wide():
    rib_q, rib_k = random_factors(8)
    mix = torch.randn(8, 34, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    wide_q, wide_k = rib_q @ mix, rib_k @ torch.linalg.pinv(mix).mT
    folded_q, folded_k, _ = refactorise(wide_q, wide_k, 1.0, 0.0)
    assert folded_q.shape[-1] == 8
    torch.testing.assert_close(centred(folded_q @ folded_k.mT), centred(rib_q @ rib_k.mT), rtol=0, atol=1e-6)


@pytest.mark.parametrize("tolerance", [0.01, 0.1, 1.0])
def test_tolerance_bounds_the_change_of_every_logit(tolerance):
    rib_q, rib_k = random_factors(32)
    rib_q *= 0.6 ** torch.arange(32)  # a spectrum that falls, as trained ones do
    exact, *_ = refactorise(rib_q, rib_k, 0.5, 0.0)
    folded_q, folded_k, change = refactorise(rib_q, rib_k, 0.5, tolerance)
    difference = (centred(folded_q @ folded_k.mT) - centred(rib_q @ rib_k.mT)) * 0.5
    assert float(difference.abs().max()) <= change * (1 + 1e-5) + 1e-7
    assert change <= tolerance
    assert folded_q.shape[-1] < exact.shape[-1]


def test_factors_lose_no_more_in_half_precision_than_the_given_ones():
    for seed in range(8):
        rib_q, rib_k = random_factors(16, seed=seed)
        rib_q, rib_k = rib_q * 64, rib_k / 64  # unbalanced on purpose
        folded_q, folded_k, _ = refactorise(rib_q, rib_k, 0.5, 0.0)

        def error(q, k):
            rounded = q.half().double() @ k.half().double().mT
            return float((0.5 * (centred(rounded) - centred(rib_q @ rib_k.mT))).square().mean().sqrt())  # noqa: B023

        assert error(folded_q, folded_k) <= error(rib_q, rib_k) * 1.05
        assert error(folded_q, folded_k) <= half_error(folded_q, folded_k, 0.5) * 1.05


def test_head_padding_is_exact_and_keeps_the_scale():
    torch.manual_seed(0)
    layer = WindowAttention(SSTConfig("one", 60, (6,), (4,), (8,), 1, 1.5, "direct"))
    holder = ribsr.build(ribsr.config("sst-light"))
    holder.proj = torch.nn.Conv2d(3, 60, 1)
    holder.body = torch.nn.Sequential(layer)
    folded, _ = fold(holder)
    replaced = folded.get_submodule("body.0")
    assert isinstance(replaced, FoldedAttention)
    assert replaced.to_qkv.out_channels == 3 * 6 * 16
    assert replaced.core.geometry.scale == 10**-0.5
    x = torch.randn(2, 60, 9, 7)
    torch.testing.assert_close(replaced(x), layer(x), rtol=0, atol=2e-6)


def test_negative_tolerance_is_refused(golden: Golden):
    with pytest.raises(ValueError, match="must not be negative"):
        fold(golden.model(), -1.0)
