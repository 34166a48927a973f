"""Folding: what depends on weights alone becomes constants; widths become what kernels like. All of it exact.

RIB MLPs turn into their factors rib_q, rib_k, refactorised to the smallest sufficient rank; heads are padded to
multiples of 16; ESC-RIB's filter bank is averaged once.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ribsr import rib
from ribsr.attention import WindowAttention
from ribsr.escrib import ESCRIB
from ribsr.layers import RIBModel

RANK_STEP = 8
"""Kernels take the rank R in steps of 8 (16 bytes in half precision)."""

HEAD_STEP = 16
"""Kernels take the head width D in steps of 16 (one matrix instruction)."""

EXACT = 2.0**-23
"""A change of the bias below this share of its largest value is lost in float32's rounding."""


@dataclass(frozen=True)
class FoldedLayer:
    """What folding did to one attention layer.

    name: module path. rank, folded_rank: R before and after. change: bound on the change of any logit, up to a
    constant per query, which softmax ignores (0.0 when the factorisation is exact).
    """

    name: str
    rank: int
    folded_rank: int
    change: float


class FoldedAttention(nn.Module):
    """`ribsr.attention.WindowAttention` with constant rib_q, rib_k [heads, N, R]: [B, C, H, W] → [B, C, H, W]."""

    def __init__(self, layer: WindowAttention, rib_q: Tensor, rib_k: Tensor):
        super().__init__()
        self.core = layer.core
        self.to_qkv, self.to_out, self.gate = _pad_heads(layer)
        self.register_buffer("rib_q", rib_q)
        self.register_buffer("rib_k", rib_k)
        self.rib_q: Tensor
        self.rib_k: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out(self.core(self.to_qkv(x), self.rib_q, self.rib_k, self.gate(x)))


def fold(
    model: RIBModel, rib_tolerance: float = 0.0, reach: Callable[[float], object] = lambda share: None
) -> tuple[RIBModel, list[FoldedLayer]]:
    """A folded float32 copy of `model` in eval mode, and what was done to each attention layer.

    rib_tolerance: largest change of any logit that a lower rank may cost; 0 keeps the factorisation exact.
    reach: called after each layer with the share, 0 to 1, of the work that is done.
    Raises ValueError for a negative tolerance.
    """
    if rib_tolerance < 0:
        raise ValueError(f"the RIB tolerance must not be negative, got {rib_tolerance}")
    model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, WindowAttention)}
    queries = {name: math.prod(module.core.geometry.window) for name, module in layers.items()}
    report, done = [], 0
    for name, module in layers.items():
        folded, layer = _fold_attention(name, module, rib_tolerance)
        model.set_submodule(name, folded)
        report.append(layer)
        done += queries[name]
        reach(done / sum(queries.values()))
    if isinstance(model, ESCRIB):
        model.plk_filter.copy_(model.symmetrise(model.plk_filter))
        model.symmetrise = nn.Identity()
    return model, report


def folded_numbers(model: RIBModel) -> int:
    """Numbers that the weights of `fold(model)` are where no rank gets lower, without folding anything."""
    layers = [module for module in model.modules() if isinstance(module, WindowAttention)]
    shapes = ((layer.core.geometry.window, layer.to_q.shape[0], _rounded(layer.to_q.shape[2])) for layer in layers)
    factors = sum(2 * heads * rows * columns * rank for (rows, columns), heads, rank in shapes)
    others = {id(weight): weight.numel() for weight in model.parameters()}
    for layer in layers:
        for name in WindowAttention.RIB_PARAMETERS:
            del others[id(getattr(layer, name))]
    return factors + sum(others.values())


def _rounded(rank: int) -> int:
    return -(-rank // RANK_STEP) * RANK_STEP


def _fold_attention(name: str, layer: WindowAttention, tolerance: float) -> tuple[FoldedAttention, FoldedLayer]:
    parameters = (getattr(layer, parameter).double() for parameter in WindowAttention.RIB_PARAMETERS)
    rib_q, rib_k = rib.factors(layer.rib_features.double(), *parameters, scale=layer.core.geometry.scale)
    folded_q, folded_k, change = refactorise(rib_q, rib_k, layer.core.geometry.scale, tolerance)
    folded = FoldedAttention(layer, folded_q.float(), folded_k.float())
    return folded, FoldedLayer(name, rib_q.shape[-1], folded_q.shape[-1], change)


def refactorise(rib_q: Tensor, rib_k: Tensor, scale: float, tolerance: float) -> tuple[Tensor, Tensor, float]:
    """Factors of the same bias at the smallest sufficient rank that is a multiple of 8.

    rib_q, rib_k [heads, N, R] float64; the bias is scale · rib_q·rib_kᵀ. Softmax ignores a constant per query, so the
    mean over keys is taken out of rib_k first. A thin QR of both factors and an SVD of the small product give the
    best factors of any rank. At full rank they compete with the given ones, and those that lose less when rounded to
    float16 are kept.

    Returns rib_q, rib_k and a bound on the change of any logit.
    """
    rib_k = rib_k - rib_k.mean(dim=1, keepdim=True)
    (basis_q, small_q), (basis_k, small_k) = torch.linalg.qr(rib_q), torch.linalg.qr(rib_k)
    u, s, vh = torch.linalg.svd(small_q @ small_k.mT, full_matrices=False)
    root = s.sqrt().unsqueeze(1)
    best_q, best_k = basis_q @ u * root, basis_k @ vh.mT * root
    exact = EXACT * _logit_bound(best_q, best_k, scale)
    rank, change = _rounded(best_q.shape[-1]), 0.0
    for smaller in range(RANK_STEP, rank, RANK_STEP):
        dropped = best_q[..., smaller:], best_k[..., smaller:]
        if _logit_bound(*dropped, scale) <= exact:
            rank = smaller
            break
        if tolerance > 0 and (largest := _largest_logit(*dropped, scale)) <= tolerance:
            rank, change = smaller, largest
            break
    candidates = [(_to_rank(best_q, rank), _to_rank(best_k, rank))]
    if rank >= rib_q.shape[-1]:
        given_q, given_k = _balance(rib_q, rib_k)
        candidates.append((_to_rank(given_q, rank), _to_rank(given_k, rank)))
    return *min(candidates, key=lambda factors: half_error(*factors, scale)), change


def _to_rank(factor: Tensor, rank: int) -> Tensor:
    factor = factor[..., :rank]
    return nn.functional.pad(factor, (0, rank - factor.shape[-1]))


def _balance(rib_q: Tensor, rib_k: Tensor) -> tuple[Tensor, Tensor]:
    """Both factors of each column brought to like size by a power of two, which costs no rounding."""
    sizes = [t.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny) for t in (rib_q, rib_k)]
    power = torch.exp2(torch.round(torch.log2(sizes[1] / sizes[0]) / 2)).clamp(2.0**-30, 2.0**30)
    return rib_q * power, rib_k / power


def _logit_bound(rib_q: Tensor, rib_k: Tensor, scale: float) -> float:
    """An upper bound of max |scale · rib_q·rib_kᵀ| from the rows' lengths (Cauchy–Schwarz)."""
    lengths = [t.norm(dim=-1).amax(dim=1) for t in (rib_q, rib_k)]
    return float((lengths[0] * lengths[1]).max()) * scale


def _largest_logit(rib_q: Tensor, rib_k: Tensor, scale: float) -> float:
    """max |scale · rib_q·rib_kᵀ|, a thousand queries at a time (N² values would not fit at window 96)."""
    rib_q, rib_k = rib_q.float(), rib_k.float()
    products = (rib_q[:, i : i + 1024] @ rib_k.mT for i in range(0, rib_q.shape[1], 1024))
    return max(float(product.abs().max()) for product in products) * scale


def half_error(rib_q: Tensor, rib_k: Tensor, scale: float) -> float:
    """Root mean square error of the logits when both factors are rounded to float16.

    The error is (q − q̂)·kᵀ + q̂·(k − k̂)ᵀ, a product of two thin factors, and ‖A·Bᵀ‖² = tr(AᵀA·BᵀB).
    """
    half_q, half_k = (t.half().double() for t in (rib_q, rib_k))
    a, b = torch.cat([rib_q - half_q, half_q], dim=-1), torch.cat([rib_k, rib_k - half_k], dim=-1)
    total = ((a.mT @ a) * (b.mT @ b)).sum()
    return float((total / (a.shape[0] * a.shape[1] * b.shape[1])).clamp_min(0).sqrt()) * scale


def _pad_heads(layer: WindowAttention) -> tuple[nn.Conv2d, nn.Conv2d, nn.Sequential]:
    """to_qkv, to_out and gate with heads of a multiple of 16 channels: zero rows in, zero columns out."""
    heads, channels = layer.core.geometry.heads, layer.to_out.out_channels
    width = channels // heads
    padded = -(-width // HEAD_STEP) * HEAD_STEP
    if padded == width:
        return layer.to_qkv, layer.to_out, layer.gate

    def pad_rows(conv: nn.Conv2d, groups: int) -> nn.Conv2d:
        wide = nn.Conv2d(conv.in_channels, groups * padded, 1)
        wide.weight = _pad_parameter(conv.weight, (groups, width, conv.in_channels, 1, 1), padded, axis=1)
        assert conv.bias is not None
        wide.bias = _pad_parameter(conv.bias, (groups, width), padded, axis=1)
        return wide

    to_out = nn.Conv2d(heads * padded, channels, 1)
    to_out.weight = _pad_parameter(layer.to_out.weight, (channels, heads, width, 1, 1), padded, axis=2)
    to_out.bias = layer.to_out.bias
    project = layer.gate[1]
    assert isinstance(project, nn.Conv2d)
    gate = nn.Sequential(layer.gate[0], pad_rows(project, heads), layer.gate[2])
    return pad_rows(layer.to_qkv, 3 * heads), to_out, gate


def _pad_parameter(value: Tensor, split: tuple[int, ...], padded: int, axis: int) -> nn.Parameter:
    """Splits the channels of `value` into heads, pads `axis` with zeros, and joins them again."""
    behind = (0, 0) * (len(split) - axis - 1) + (0, padded - split[axis])
    return nn.Parameter(nn.functional.pad(value.view(split), behind).flatten(axis - 1, axis), requires_grad=False)
