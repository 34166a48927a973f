"""ESC-RIB: one large attention window a block, then convolutions with a filter bank shared by the whole network."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ribsr.attention import WindowAttention
from ribsr.configs import ESCRIBConfig
from ribsr.layers import ConvFFN, LayerNorm, RIBModel, conv3x3


def symmetrise(bank: Tensor) -> Tensor:
    """Mean of a filter bank [O, I, K, K] over its 8 flips and rotations."""
    turned = (bank, torch.rot90(bank, 1, (2, 3)))
    return sum((t + t.flip(2) + t.flip(3) + t.flip((2, 3)) for t in turned), torch.zeros_like(bank)) / 8


class LargeKernel(nn.Module):
    """On the first `pdim` channels: the shared bank's convolution plus a 3x3 one whose kernel the picture gives."""

    def __init__(self, pdim: int):
        super().__init__()
        self.pdim = pdim
        self.dwc_proj = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(pdim, pdim // 2, 1),
            nn.GELU(),
            nn.Conv2d(pdim // 2, pdim * 9, 1),
        )
        for parameter in self.dwc_proj[-1].parameters():
            nn.init.zeros_(parameter)
        taps = torch.eye(9, device="cpu").view(9, 1, 3, 3).repeat(pdim, 1, 1, 1)
        self.register_buffer("taps", taps, persistent=False)
        self.register_buffer("ones", torch.ones(pdim, 9, 1, 1, device="cpu"), persistent=False)
        self.taps: Tensor
        self.ones: Tensor

    def forward(self, x: Tensor, bank: Tensor) -> Tensor:
        """x [B, C, H, W], bank [pdim, pdim, K, K] → [B, C, H, W]."""
        head, rest = x.split([self.pdim, x.shape[1] - self.pdim], dim=1)
        out = F.conv2d(head, bank, padding=bank.shape[-1] // 2) + self._dynamic(head)
        return torch.cat([out, rest], dim=1)

    def _dynamic(self, x: Tensor) -> Tensor:
        """Depthwise 3x3 with a kernel per picture, [B, pdim, H, W] → the same.

        A convolution of B·pdim groups cannot be exported with a dynamic batch, so fixed one-hot kernels shift x to
        its nine neighbours, the picture's kernel [B, 9·pdim, 1, 1] weighs them, and a fixed convolution adds them up.
        """
        neighbours = F.conv2d(x, self.taps, padding=1, groups=self.pdim)
        return F.conv2d(neighbours * self.dwc_proj(x), self.ones, groups=self.pdim)


class LargeKernelLayer(nn.Module):
    """The large kernel and a 1x1 convolution after it."""

    def __init__(self, dim: int, pdim: int):
        super().__init__()
        self.plk = LargeKernel(pdim)
        self.aggr = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, bank: Tensor) -> Tensor:
        return self.aggr(self.plk(x, bank))


class Block(nn.Module):
    """Feed-forward (expansion 4, no skip), attention, `conv_blocks` large-kernel layers, conv3x3, around a skip."""

    def __init__(self, config: ESCRIBConfig):
        super().__init__()
        dim = config.dim
        self.ln_proj = LayerNorm(dim)
        self.proj = ConvFFN(dim, 4, last="aggr")
        self.ln_attn = LayerNorm(dim)
        self.attn = WindowAttention(config)
        self.pconvs = nn.ModuleList(LargeKernelLayer(dim, config.pdim) for _ in range(config.conv_blocks))
        self.convffns = nn.ModuleList(ConvFFN(dim, config.expansion, last="aggr") for _ in range(config.conv_blocks))
        self.ln_out = LayerNorm(dim)
        self.conv_out = conv3x3(dim, dim)

    def forward(self, x: Tensor, bank: Tensor) -> Tensor:
        skip = x
        x = self.proj(self.ln_proj(x))
        x = x + self.attn(self.ln_attn(x))
        for pconv, convffn in zip(self.pconvs, self.convffns, strict=True):
            x = x + pconv(convffn(x), bank)
        return self.conv_out(self.ln_out(x)) + skip


class ESCRIB(RIBModel):
    """conv3x3 → blocks, LayerNorm, conv3x3, around a long skip → upsampler."""

    def __init__(self, config: ESCRIBConfig):
        super().__init__(config)
        self.plk_filter = nn.Parameter(torch.empty(config.pdim, config.pdim, config.kernel_size, config.kernel_size))
        nn.init.orthogonal_(self.plk_filter)
        self.proj = conv3x3(3, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.last = nn.Sequential(LayerNorm(config.dim), conv3x3(config.dim, config.dim))
        self.symmetrise: Callable[[Tensor], Tensor] = symmetrise

    def features(self, x: Tensor) -> Tensor:
        x = skip = self.proj(x)
        bank = self.symmetrise(self.plk_filter)
        for block in self.blocks:
            x = block(x, bank)
        return self.last(x) + skip
