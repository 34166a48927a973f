"""Layers that both architectures are made of; attribute names are the published checkpoints' key names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ribsr.configs import Config


class LayerNorm(nn.Module):
    """Layer normalisation over the channels of [B, C, H, W], eps 1e-6."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6)
        return x.permute(0, 3, 1, 2)


class ConvFFN(nn.Module):
    """u = GELU(proj(x)); u = u + GELU(dwc(u)); back to `dim` channels by the convolution named `last`."""

    def __init__(self, dim: int, expansion: float, last: str):
        super().__init__()
        hidden = int(dim * expansion)
        self.proj = nn.Conv2d(dim, hidden, 1)
        self.dwc = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.last = last
        self.add_module(last, nn.Conv2d(hidden, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        u = F.gelu(self.proj(x))
        u = u + F.gelu(self.dwc(u))
        return getattr(self, self.last)(u)


def conv3x3(dim_in: int, dim_out: int) -> nn.Conv2d:
    """The 3x3 convolution with padding 1 that both architectures use between blocks."""
    return nn.Conv2d(dim_in, dim_out, 3, padding=1)


class Upsampler(nn.Module):
    """Features [B, C, H, W] and picture [B, 3, H, W] → picture [B, 3, sH, sW].

    `direct`: one convolution to 3s² channels, plus the picture repeated, shuffled to pixels.
    `pixelshuffle`: through `intermediate_dim` channels and one shuffle, plus the picture enlarged by nearest neighbour
    (a pixel shuffle of repeated channels: bit for bit the same, and free of ONNX's Resize).
    """

    def __init__(self, config: Config):
        super().__init__()
        s2, middle = config.scale**2, config.intermediate_dim
        self.scale, self.direct = config.scale, config.upsampler == "direct"
        if self.direct:
            self.up_conv = conv3x3(config.dim, 3 * s2)
        else:
            self.feature_conv = conv3x3(config.dim, middle)
            self.up_conv = conv3x3(middle, middle * s2)
            self.final_conv = conv3x3(middle, 3)
        self.register_buffer("repeat", torch.arange(3, device="cpu").repeat_interleave(s2), persistent=False)
        self.repeat: Tensor

    def forward(self, features: Tensor, picture: Tensor) -> Tensor:
        repeated = picture.index_select(1, self.repeat)
        if self.direct:
            return F.pixel_shuffle(self.up_conv(features) + repeated, self.scale)
        features = F.leaky_relu(self.feature_conv(features), 0.1)
        features = self.final_conv(F.pixel_shuffle(self.up_conv(features), self.scale))
        return features + F.pixel_shuffle(repeated, self.scale)


class RIBModel(nn.Module):
    """What SST and ESC-RIB share: a configuration and RGB in [0, 1], [B, 3, H, W] → [B, 3, sH, sW] for any H, W ≥ 1."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.upsampler = Upsampler(config)

    def features(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] → features [B, C, H, W] for the upsampler."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.upsampler(self.features(x), x)
