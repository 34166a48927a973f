"""SST: the transformer with cyclic window sizes (paper, section on the cyclic window strategy)."""

from __future__ import annotations

from torch import Tensor, nn

from ribsr.attention import WindowAttention
from ribsr.configs import Config
from ribsr.layers import ConvFFN, LayerNorm, RIBModel, conv3x3


class Layer(nn.Module):
    """x += attention(norm(x)); x += feed-forward(norm(x))."""

    def __init__(self, config: Config, index: int):
        super().__init__()
        self.norm_attn = LayerNorm(config.dim)
        self.attn = WindowAttention(config, index)
        self.norm_ffn = LayerNorm(config.dim)
        self.ffn = ConvFFN(config.dim, config.expansion, last="agg")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm_attn(x))
        return x + self.ffn(self.norm_ffn(x))


class Block(nn.Sequential):
    """One layer per window size, then conv3x3, around a skip connection."""

    def __init__(self, config: Config):
        layers = [Layer(config, i) for i in range(len(config.windows))]
        super().__init__(*layers, conv3x3(config.dim, config.dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class SST(RIBModel):
    """conv3x3 → blocks, LayerNorm, conv3x3, around a long skip → upsampler."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.proj = conv3x3(3, config.dim)
        blocks = [Block(config) for _ in range(config.blocks)]
        self.body = nn.Sequential(*blocks, LayerNorm(config.dim), conv3x3(config.dim, config.dim))
        self.apply(_init_convolution)

    def features(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        return x + self.body(x)


def _init_convolution(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        if module.kernel_size == (1, 1):
            nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
