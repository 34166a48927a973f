"""Rank-factorized implicit neural bias (RIB): positions → factors of the attention bias (paper, section on RIB)."""

from __future__ import annotations

import torch
from torch import Tensor


def coordinates(window: tuple[int, int]) -> Tensor:
    """Centres of a window's tokens in (-1, 1): [N, 2] float32, N = wh·ww row-major, columns (x, y).

    x = 2(column + 0.5)/ww − 1, y = 2(row + 0.5)/wh − 1.
    """
    rows, columns = (torch.arange(n, dtype=torch.float32, device="cpu") for n in window)
    y, x = (2.0 * (t + 0.5) / n - 1.0 for t, n in zip((rows, columns), window, strict=True))
    return torch.stack([x.repeat(window[0]), y.repeat_interleave(window[1])], dim=-1)


def features(window: tuple[int, int], n_freqs: int) -> Tensor:
    """Inputs of the RIB's MLP: [N, 2 + 4·n_freqs] float32: x, y, then sin(2^i x), sin(2^i y), cos(2^i x), cos(2^i y).

    Rounded as the authors' code rounds (float32 coordinates): at 2^9 a coordinate's last bit shows in the features.
    """
    xy = coordinates(window)
    waves = [wave(xy * 2**i) for i in range(n_freqs) for wave in (torch.sin, torch.cos)]
    return torch.cat([xy, *waves], dim=-1)


def factors(
    features: Tensor, to_hidden: Tensor, hidden_b: Tensor, to_q: Tensor, to_k: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Factors of the positional bias as the operator takes them: rib_q, rib_k, each [heads, N, R].

    h = ReLU(features · to_hidden + hidden_b); Q_p = h·to_q, K_p = h·to_k, and scale · rib_q·rib_kᵀ = Q_p·K_pᵀ/√R:
    rib_q carries 1/(√R·scale), because the operator multiplies content and position by `scale` alike.

    features [N, F]; to_hidden [F, hidden]; hidden_b [1, hidden]; to_q, to_k [heads, hidden, R].
    """
    hidden = torch.relu(features @ to_hidden + hidden_b)
    rank = to_q.shape[-1]
    return hidden @ to_q * (rank**-0.5 / scale), hidden @ to_k
