"""The operator CyclicWindowAttention: its definition, its PyTorch backends, and the layer around it.

Every backend is a function of the same arguments; `reference` is the one definition that all others, the ONNX
lowerings and the CUDA kernels are tested against.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ribsr import rib
from ribsr.configs import Config

MAX_SCORES = 2**25
"""Attention scores that `reference` holds at once: 128 MiB in float32."""


class Geometry(NamedTuple):
    """How an attention layer cuts its map, and what multiplies the logits.

    window: (rows, columns) of tokens. heads: they divide the channels. shift: (rows, columns) that the map is rolled by
    before it is cut. scale: of content and position alike, D^-1/2 of the unpadded head width.
    """

    window: tuple[int, int]
    heads: int
    shift: tuple[int, int]
    scale: float

    @property
    def tokens(self) -> int:
        """N, of a window."""
        return self.window[0] * self.window[1]


Attention = Callable[[Tensor, Tensor, Tensor, Tensor, Geometry], Tensor]
"""A backend of the operator: a function of qkv, rib_q, rib_k, gate and geometry.

qkv [B, 3C, H, W], channels ordered (q|k|v, head, D); rib_q, rib_k [heads, N, R]; gate [B, C, H, W].
Reflect-pads right and bottom to multiples of the window, rolls by −shift, splits into windows and returns
gate · softmax(scale·(q·kᵀ + rib_q·rib_kᵀ))·v, merged, rolled back and cropped: [B, C, H, W] in qkv's dtype.
"""


def source_indices(size: int, window: int, shift: int, device: torch.device | None = None) -> Tensor:
    """Which pixel each position of the padded and rolled axis holds: [⌈size/window⌉·window] int64.

    Reflects as often as needed, so that any size ≥ 1 works: source(i) = (n−1) − |(n−1) − i mod max(2(n−1), 1)|.
    """
    padded = -(-size // window) * window
    i = (torch.arange(padded, device=device) + shift) % padded
    last = size - 1
    return last - (last - i % max(2 * last, 1)).abs()


def _windows(x: Tensor, parts: int, geometry: Geometry) -> Tensor:
    """[B, parts·heads·D, H, W], padded and rolled, as a view [parts, B, rows, columns, wh, ww, heads, D] of windows."""
    ((wh, ww), heads, shift, _), (b, c, h, w) = geometry, x.shape
    if h % wh or w % ww or any(shift):
        rows = source_indices(h, wh, shift[0], x.device)
        columns = source_indices(w, ww, shift[1], x.device)
        x = x.index_select(2, rows).index_select(3, columns)
    nh, nw, d = x.shape[2] // wh, x.shape[3] // ww, c // (parts * heads)
    return x.view(b, parts, heads, d, nh, wh, nw, ww).permute(1, 0, 4, 6, 5, 7, 2, 3)


def split_windows(x: Tensor, parts: int, geometry: Geometry) -> tuple[Tensor, ...]:
    """[B, parts·heads·D, H, W] → `parts` tensors [B·windows, heads, N, D], padded and rolled."""
    x = _windows(x, parts, geometry).permute(0, 1, 2, 3, 6, 4, 5, 7)
    (_, b, nh, nw), d = x.shape[:4], x.shape[-1]
    return tuple(x.reshape(parts, b * nh * nw, geometry.heads, geometry.tokens, d).unbind(0))


def merge_windows(x: Tensor, size: Sequence[int], geometry: Geometry) -> Tensor:
    """[B·windows, heads, N, D] → [B, heads·D, H, W]: the inverse of `split_windows`, rolled back and cropped.

    size: (H, W).
    """
    (h, w), ((wh, ww), heads, shift, _), d = size, geometry, x.shape[-1]
    nh, nw = -(-h // wh), -(-w // ww)
    x = x.view(-1, nh, nw, heads, wh, ww, d).permute(0, 3, 6, 1, 4, 2, 5).reshape(-1, heads * d, nh * wh, nw * ww)
    return x.roll(shift, (2, 3))[:, :, :h, :w]


def reference(qkv: Tensor, rib_q: Tensor, rib_k: Tensor, gate: Tensor, geometry: Geometry) -> Tensor:
    """The definition of the operator, in float32 (float64 for float64 inputs), a few windows at a time."""
    dtype = torch.promote_types(qkv.dtype, torch.float32)
    q, k, v = split_windows(qkv.to(dtype), 3, geometry)
    heads, scale = geometry.heads, geometry.scale
    bias = (rib_q.to(dtype), rib_k.to(dtype).mT)
    n = q.shape[2]
    windows = max(1, MAX_SCORES // (heads * n * n))
    queries = max(1, min(n, MAX_SCORES // (heads * n)))
    merged = []
    for i in range(0, q.shape[0], windows):
        keys, values = k[i : i + windows].mT, v[i : i + windows]
        rows = []
        for j in range(0, n, queries):
            scores = q[i : i + windows, :, j : j + queries] @ keys + bias[0][:, j : j + queries] @ bias[1]
            rows.append(torch.softmax(scores * scale, dim=-1) @ values)
        merged.append(torch.cat(rows, dim=2))
    out = merge_windows(torch.cat(merged), qkv.shape[2:], geometry)
    return (out * gate.to(dtype)).to(qkv.dtype)


def _concatenated(qkv: Tensor, rib_q: Tensor, rib_k: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """Content and position side by side: q, k [B·windows, heads, N, D + R] and v [B·windows, heads, N, D]."""
    q, k, v = split_windows(qkv, 3, geometry)
    shape = (q.shape[0], -1, -1, -1)
    q = torch.cat([q, rib_q.to(q.dtype).expand(shape)], dim=-1)
    k = torch.cat([k, rib_k.to(k.dtype).expand(shape)], dim=-1)
    return q, k, v


def _pad_width(x: Tensor, step: int = 8) -> Tensor:
    """[.., D] with zeros behind, to a multiple of `step`."""
    missing = -x.shape[-1] % step
    return F.pad(x, (0, missing)) if missing else x


def sdpa(qkv: Tensor, rib_q: Tensor, rib_k: Tensor, gate: Tensor, geometry: Geometry) -> Tensor:
    """torch's scaled_dot_product_attention, in qkv's dtype, on content and position side by side.

    Its fused CPU kernel wants V as wide as Q and K and materialises the scores otherwise; the cuDNN and
    memory-efficient CUDA kernels take a narrower V, at widths that are multiples of 8.
    """
    q, k, v = _concatenated(qkv, rib_q, rib_k, geometry)
    d = v.shape[-1]
    if qkv.is_cuda:
        q, k, v = (_pad_width(x) for x in (q, k, v))
        from torch.nn.attention import SDPBackend, sdpa_kernel

        kernels = [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
        with sdpa_kernel(kernels, set_priority=True):
            out = F.scaled_dot_product_attention(q, k, v, scale=geometry.scale)
    else:
        out = F.scaled_dot_product_attention(q, k, _pad_width(v, q.shape[-1]), scale=geometry.scale)
    return merge_windows(out[..., :d], qkv.shape[2:], geometry) * gate


def _cudnn_kernel(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """cuDNN's kernel or its error: scaled_dot_product_attention would choose another kernel in silence."""
    return torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, False, False, scale=scale)[0]


def cudnn(qkv: Tensor, rib_q: Tensor, rib_k: Tensor, gate: Tensor, geometry: Geometry) -> Tensor:
    """cuDNN's attention by name, made for training: CUDA, float16 or bfloat16, channels-last maps.

    Tokens keep all their channels side by side, which is how a channels-last map has them, so that torch.compile makes
    one pass of the padding, splitting and concatenating, and one of merging and gating. V keeps its width (to a
    multiple of 8), forward and backward.
    """
    (b, _, h, w), (window, heads, shift, scale) = qkv.shape, geometry
    split = _windows(qkv, 3, geometry)
    q, k, v = split.reshape(3, -1, geometry.tokens, heads, split.shape[-1]).unbind(0)
    d = v.shape[-1]
    q, k = (
        torch.cat([x, rib.to(x.dtype).transpose(0, 1).expand(len(x), -1, -1, -1)], dim=-1)
        for x, rib in ((q, rib_q), (k, rib_k))
    )
    q, k, v = (_pad_width(x).transpose(1, 2) for x in (q, k, v))
    out = _cudnn_kernel(q, k, v, scale)
    out = out.transpose(1, 2)[..., :d].reshape(b, *split.shape[2:4], *window, heads * d).transpose(2, 3)
    out = out.reshape(b, split.shape[2] * window[0], split.shape[3] * window[1], heads * d).permute(0, 3, 1, 2)
    if any(shift):
        out = out.roll(shift, (2, 3))
    return out[:, :, :h, :w] * gate


def flash(qkv: Tensor, rib_q: Tensor, rib_k: Tensor, gate: Tensor, geometry: Geometry) -> Tensor:
    """The flash-attn package: CUDA, float16 or bfloat16; V is padded to the width of Q and K as it asks."""
    from flash_attn import flash_attn_func  # pyright: ignore[reportMissingImports]

    q, k, v = _concatenated(qkv, rib_q, rib_k, geometry)
    q, k = _pad_width(q), _pad_width(k)
    wide = _pad_width(v, q.shape[-1])
    out = flash_attn_func(*(x.transpose(1, 2) for x in (q, k, wide)), softmax_scale=geometry.scale)
    out = out[..., : v.shape[-1]].transpose(1, 2)
    return merge_windows(out, qkv.shape[2:], geometry) * gate


_BACKENDS: dict[str, Attention] = {"reference": reference, "sdpa": sdpa, "cudnn": cudnn, "flash": flash}


def register_attention(name: str, fn: Attention) -> None:
    """Adds a backend under `name` for `set_attention`; the name `auto` and those taken are refused."""
    if name == "auto" or _BACKENDS.get(name, fn) is not fn:
        raise ValueError(f"attention backend {name!r} is already registered")
    _BACKENDS[name] = fn


@cache
def _flash_installed() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


def choose_backend(device: torch.device, dtype: torch.dtype) -> str:
    """The fastest of PyTorch's own backends for tensors of `dtype` on `device`: what `auto` means.

    A registered one such as the fused kernel is taken by name only: it may suit few shapes, or have no gradient.
    """
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return "reference"
    if device.type == "cuda" and dtype != torch.float32:
        return "flash" if _flash_installed() else "sdpa"
    return "sdpa"


def set_attention(model: nn.Module, name: str) -> None:
    """Makes every attention layer of `model` use the backend `name` (`auto` chooses by device and dtype).

    Raises ValueError that lists the choices for an unknown name, or names the package that is missing.
    """
    if name != "auto" and name not in _BACKENDS:
        raise ValueError(f"no attention backend is called {name!r}; choose one of auto, {', '.join(_BACKENDS)}")
    if name == "flash" and not _flash_installed():
        raise ValueError("attention backend 'flash' needs the package flash-attn, which is not installed")
    for module in model.modules():
        if isinstance(module, CyclicWindowAttention):
            module.backend = name


class CyclicWindowAttention(nn.Module):
    """The operator with its geometry fixed: (qkv, rib_q, rib_k, gate) → [B, C, H, W]; see `Attention` for shapes."""

    def __init__(self, geometry: Geometry):
        super().__init__()
        self.geometry = geometry
        self.backend = "auto"

    def forward(self, qkv: Tensor, rib_q: Tensor, rib_k: Tensor, gate: Tensor) -> Tensor:
        name = choose_backend(qkv.device, qkv.dtype) if self.backend == "auto" else self.backend
        return _BACKENDS[name](qkv, rib_q, rib_k, gate, self.geometry)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.geometry._asdict().items())


class WindowAttention(nn.Module):
    """Gated window attention with a RIB, a layer of each block: [B, C, H, W] (already normed) → [B, C, H, W].

    gate = sigmoid(conv1x1(depthwise conv3x3(x))); out = to_out(CyclicWindowAttention(to_qkv(x), RIB, gate)).
    """

    RIB_PARAMETERS = ("to_hidden", "hidden_b", "to_q", "to_k")

    def __init__(self, config: Config, layer: int = 0):
        super().__init__()
        dim, hidden_dim, n_freqs = config.dim, config.rib_hidden_dim, config.rib_freqs
        window, heads, rank, shift = (of[layer] for of in (config.windows, config.heads, config.ranks, config.shifts))
        self.core = CyclicWindowAttention(Geometry((window, window), heads, (shift, shift), (dim // heads) ** -0.5))
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.to_out = nn.Conv2d(dim, dim, 1)
        self.gate = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            nn.Conv2d(dim, dim, 1),
            nn.Sigmoid(),
        )
        self.register_buffer("rib_features", rib.features((window, window), n_freqs), persistent=False)
        self.rib_features: Tensor
        self.to_hidden = nn.Parameter(torch.empty(2 + 4 * n_freqs, hidden_dim))
        self.hidden_b = nn.Parameter(torch.zeros(1, hidden_dim))
        self.to_q = nn.Parameter(torch.empty(heads, hidden_dim, rank))
        self.to_k = nn.Parameter(torch.empty(heads, hidden_dim, rank))
        for weight in (self.to_hidden, self.to_q, self.to_k):
            nn.init.normal_(weight, std=0.05)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WindowAttention:
        """Moves and casts like any module, but keeps the RIB in float32 when the model goes to half precision."""
        kept = {id(getattr(self, name)) for name in (*self.RIB_PARAMETERS, "rib_features")}

        def move(t: Tensor) -> Tensor:
            moved = fn(t)
            half = id(t) in kept and moved.dtype in (torch.float16, torch.bfloat16)
            return t.to(moved.device) if half else moved

        return super()._apply(move, recurse)

    def rib(self) -> tuple[Tensor, Tensor]:
        """rib_q, rib_k [heads, N, R] from the RIB's MLP, never below float32 whatever autocast says."""
        with torch.autocast(self.to_q.device.type, enabled=False):
            parameters = (getattr(self, name) for name in self.RIB_PARAMETERS)
            return rib.factors(self.rib_features, *parameters, scale=self.core.geometry.scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out(self.core(self.to_qkv(x), *self.rib(), self.gate(x)))
