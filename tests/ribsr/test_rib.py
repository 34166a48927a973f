from __future__ import annotations

import math

import numpy as np
import torch

import ribsr
from ribsr import rib
from ribsr.attention import WindowAttention
from ribsr.configs import SSTConfig


def test_coordinates_are_pixel_centres_row_major_x_first():
    xy = rib.coordinates((2, 4))
    assert xy.tolist() == [[x, y] for y in (-0.5, 0.5) for x in (-0.75, -0.25, 0.25, 0.75)]


def test_features_follow_the_formula():
    window, n_freqs = (3, 5), 10
    features = rib.features(window, n_freqs)
    assert features.shape == (15, 42)
    for n in range(15):
        row, column = divmod(n, 5)
        x, y = 2 * (column + 0.5) / 5 - 1, 2 * (row + 0.5) / 3 - 1
        waves = [f(2**i * t) for i in range(n_freqs) for f in (math.sin, math.cos) for t in (x, y)]
        np.testing.assert_allclose(features[n], [x, y, *waves], atol=1e-4)  # 2^9 · float32 rounding of x


def test_factors_give_the_bias_of_the_paper():
    generator = torch.Generator().manual_seed(0)
    layer = WindowAttention(SSTConfig("one", 24, (3,), (6,), (5,), 1, 1.5, "direct"))
    with torch.no_grad():
        for name in WindowAttention.RIB_PARAMETERS:
            getattr(layer, name).normal_(generator=generator)
    to_hidden, hidden_b = (weight.detach().numpy() for weight in (layer.to_hidden, layer.hidden_b))
    hidden = np.maximum(layer.rib_features.numpy() @ to_hidden + hidden_b, 0)
    rib_q, rib_k = (factor.detach().double() for factor in layer.rib())
    bias = rib_q @ rib_k.mT * layer.core.geometry.scale
    for head in range(3):
        q, k = (hidden @ weight[head].detach().numpy() for weight in (layer.to_q, layer.to_k))
        expected = q @ k.T / math.sqrt(5)
        np.testing.assert_allclose(bias[head], expected, rtol=2e-4, atol=2e-3)


def test_half_precision_leaves_the_rib_in_float32():
    model = ribsr.build(ribsr.config("sst-light")).half()
    layers = [module for module in model.modules() if isinstance(module, WindowAttention)]
    assert layers
    for layer in layers:
        kept = [*(getattr(layer, name) for name in WindowAttention.RIB_PARAMETERS), layer.rib_features]
        assert {t.dtype for t in kept} == {torch.float32}
        assert layer.to_qkv.weight.dtype == torch.float16
    assert {t.dtype for t in model.double().parameters()} == {torch.float64}
