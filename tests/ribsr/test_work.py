"""What a run takes: beside the paper's figures, a count by hand, and torch's own counter."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ribsr import work
from ribsr.base.sizes import Size
from ribsr.configs import CONFIGS, ESCRIBConfig, SSTConfig, config

TINY = SSTConfig(
    name="tiny", dim=6, heads=(2, 3), windows=(4, 8), ranks=(4, 5), blocks=2, expansion=1.5, upsampler="direct"
)


PAPER = {
    "sst-light": 2.06,
    "sst-light+": 4.91,
    "sst": 13.3,
    "sst+": 20.6,
    "sst-l": 18.8,
    "sst-l+": 28.6,
    "sst-xl+": 42.8,
}
"""1e12 multiply-adds for an output of 1280x720 at x2."""


@pytest.mark.parametrize(("name", "multiply_adds"), PAPER.items())
def test_published_models_take_what_their_authors_say(name: str, multiply_adds: float) -> None:
    """Their attention pads values by the rank of the bias."""
    network, size = config(name), Size(360, 640)
    layers = zip(network.heads, network.windows, network.ranks, strict=True)
    padding = sum(network.blocks * work.scores(size, (side, side), heads) * rank for heads, side, rank in layers)
    counted = work.count(network, size, 2).operations / 2 + padding
    assert counted / 1e12 == pytest.approx(multiply_adds, rel=0.01)


def test_a_count_by_hand() -> None:
    """One block of one layer on a picture of 5x6, of windows of 4, and so padded to 8x8."""
    network = replace(TINY, heads=(2,), windows=(4,), ranks=(4,), blocks=1)
    found = work.count(network, Size(5, 6), 4)
    assert found.scores == 2 * 64 * 16
    attention = 6 * 18 + 9 * 6 + 6 * 6 + 6 * 6  # qkv, gate, to_out
    feed_forward = 6 * 9 + 9 * 9 + 9 * 6
    convolutions = 27 * 6 + 54 * 6 + 54 * 6 + 54 * 12  # proj, of the block, of the body, up_conv
    scores = 2 * 64 * 16 * (3 + 4 + 3)
    assert found.operations == 2 * (30 * (attention + feed_forward + convolutions) + scores)
    inputs, attended, to_out, ffn = 6 + 18 + 6, 18 + 6 + 6, 6 + 6 + 6, 12
    ends = (3 + 6) + (6 + 12) + (6 + 12) + (6 + 12)
    weights = attention + 18 + 6 + 6 + 6 + 12 + feed_forward + 9 + 9 + 6 + 12 + convolutions + 6 + 6 + 6 + 12
    assert found.bytes == 4 * (30 * (inputs + attended + to_out + ffn + ends) + weights)
    twice = work.count(network, Size(5, 6), 2, batch=2)
    assert (twice.operations, twice.scores) == (2 * found.operations, 2 * found.scores)
    assert twice.bytes == 2 * (2 * 30 * (inputs + attended + to_out + ffn + ends) + weights)


@pytest.mark.parametrize("upsampler", ["direct", "pixelshuffle"])
@pytest.mark.parametrize("scale", [2, 3])
def test_torch_counts_the_same(upsampler: str, scale: int) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    import ribsr

    network = replace(TINY, upsampler=upsampler, scale=scale, intermediate_dim=7)
    size = Size(9, 13)
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # which its table of operators lacks
    formula = {on_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=formula) as counter:
        ribsr.build(network).eval()(torch.zeros(2, 3, *size))
    by_operator = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    convolutions = by_operator["aten.convolution"]
    attentions = sum(count for name, count in by_operator.items() if "attention" in name)
    layers = list(zip(network.heads, network.windows, network.ranks, strict=True))
    padding = sum(2 * 2 * network.blocks * work.scores(size, (side,) * 2, heads) * rank for heads, side, rank in layers)
    assert convolutions + attentions - padding == work.count(network, size, 4, batch=2).operations


def test_escrib_by_hand() -> None:
    """The large kernels and what is around them; that of each picture is nine multiply-adds a channel."""
    network = config("esc-rib")
    assert isinstance(network, ESCRIBConfig)
    one = replace(network, blocks=1, conv_blocks=1)
    two = replace(network, blocks=1, conv_blocks=2)
    per_pixel = 2 * (64 * 80 + 9 * 80 + 80 * 64 + 16 * 16 * 169 + 9 * 16 + 64 * 64)
    more = work.count(two, Size(64, 64), 2).operations - work.count(one, Size(64, 64), 2).operations
    assert more == 64 * 64 * per_pixel


def test_a_network_is_known_by_name_and_windows() -> None:
    for name, network in CONFIGS.items():
        squares = [(side, side) for side in network.windows]
        assert work.known_config(name, 3, squares) == config(name, 3)
        assert work.known_config(name, 3, [*squares, (8, 8)]) is None
    assert work.known_config("unknown", 2, [(8, 8)]) is None
