"""What a run of a network takes, counted from its configuration: operations, bytes and attention scores. No torch here.

Counted is what the definition of the network asks for, so that a runtime that pads or computes twice looks no better:

operations: two for a multiply-add of convolutions and attentions, as is the custom (and torch's FLOP counter's); what
    depends on weights alone (the RIB), norms, activations and sums are left out.
bytes: of every map that a chain of fused operators reads or writes, each once, and of weights. The chains are those of
    `plugins.operators`: an attention's inputs, the attention, a feed-forward half, a convolution with its sum.
    A runtime that fuses less moves more.
scores: of the attentions, in padded windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ribsr.base.sizes import Size
from ribsr.configs import CONFIGS, Config, ESCRIBConfig, config


@dataclass(frozen=True)
class Work:
    """operations, bytes and scores of a run; sums and multiples are those of several runs or pictures."""

    operations: float = 0
    bytes: float = 0
    scores: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.bytes + other.bytes, self.scores + other.scores)


@dataclass(frozen=True)
class Stage:
    """A chain of operators that reads and writes memory once. All numbers are of one pixel of its maps.

    maps: channels that are read and written. products: multiply-adds of convolutions. weights: numbers that are read
    once a run. zoom: sides of its maps over those of the picture.
    """

    maps: float
    products: float = 0
    weights: int = 0
    zoom: int = 1


def scores(size: Size, window: Sequence[int], heads: int) -> int:
    """Attention scores of a layer for one picture: heads · pixels, padded to whole windows · tokens of a window."""
    rows, columns = window
    return heads * -(-size.height // rows) * rows * -(-size.width // columns) * columns * rows * columns


def known_config(name: str, scale: int, windows: Sequence[Sequence[int]]) -> Config | None:
    """The published configuration that a file's stamp names, if its windows are those; None for any other network."""
    if name not in CONFIGS:
        return None
    found = config(name, scale)
    return found if [(side, side) for side in found.windows] == [tuple(window) for window in windows] else None


def count(network: Config, size: Size, number_bytes: int, batch: int = 1) -> Work:
    """What a run on `batch` pictures of this size takes. number_bytes: of a number in maps and weights: 4 or 2."""
    pixels, total = batch * size.height * size.width, Work()
    for stage in _stages(network):
        here = pixels * stage.zoom**2
        total += Work(2 * stage.products * here, number_bytes * (stage.maps * here + stage.weights))
    for heads, window, rank in zip(network.heads, network.windows, network.ranks, strict=True):
        each = batch * network.blocks * scores(size, (window, window), heads)
        width = network.dim // heads
        total += Work(2 * each * (width + rank + width), 0, each)  # q·k, rib_q·rib_k, and times v
    return total


def _convolution(channels: int, outputs: int, kernel: int, residual: bool = False, zoom: int = 1) -> Stage:
    """A dense convolution; residual: with the sum behind it."""
    products = channels * outputs * kernel**2
    return Stage(channels + outputs * (2 if residual else 1), products, products + outputs, zoom)


def _attention(dim: int) -> Iterator[Stage]:
    """norm → (qkv, gate) | the attention | to_out and the sum. Its products of scores are counted by `count`."""
    products = 3 * dim * dim + 9 * dim + dim * dim
    yield Stage(dim + 3 * dim + dim, products, products + 7 * dim)
    yield Stage(3 * dim + dim + dim)
    yield _convolution(dim, dim, 1, residual=True)


def _feed_forward(dim: int, expansion: float) -> Stage:
    """norm → expand → depthwise → contract, and a sum with x, which has been read already."""
    hidden = int(dim * expansion)
    products = dim * hidden + 9 * hidden + hidden * dim
    return Stage(2 * dim, products, products + 3 * dim + 2 * hidden)


def _stages(network: Config) -> Iterator[Stage]:
    dim = network.dim
    yield _convolution(3, dim, 3)
    for _ in range(network.blocks):
        yield from _escrib_block(network) if isinstance(network, ESCRIBConfig) else _sst_block(network)
    yield _convolution(dim, dim, 3, residual=True)  # with the norm before it
    yield from _upsampler(network)


def _sst_block(network: Config) -> Iterator[Stage]:
    for _ in network.windows:
        yield from _attention(network.dim)
        yield _feed_forward(network.dim, network.expansion)
    yield _convolution(network.dim, network.dim, 3, residual=True)


def _escrib_block(network: ESCRIBConfig) -> Iterator[Stage]:
    """The kernel that each picture gives (of pooled pixels) costs next to nothing, and is left out."""
    dim, pdim = network.dim, network.pdim
    yield _feed_forward(dim, 4)
    yield from _attention(dim)
    bank = (pdim * network.kernel_size) ** 2
    for _ in range(network.conv_blocks):
        yield _feed_forward(dim, network.expansion)
        yield Stage(2 * pdim, bank + 9 * pdim, bank)
        yield _convolution(dim, dim, 1, residual=True)
    yield _convolution(dim, dim, 3, residual=True)


def _upsampler(network: Config) -> Iterator[Stage]:
    s, dim, middle = network.scale, network.dim, network.intermediate_dim
    if network.upsampler == "direct":
        yield _convolution(dim, 3 * s**2, 3)
    else:
        yield _convolution(dim, middle, 3)
        yield _convolution(middle, middle * s**2, 3)
        yield _convolution(middle, 3, 3, zoom=s)
