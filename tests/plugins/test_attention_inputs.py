"""ribsr_attention_inputs against float64 on a GPU; without one the operator's CPU path and checks."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch  # noqa: E402

from plugins import library  # noqa: E402
from plugins.operators import ATTENTION_INPUTS  # noqa: E402
from plugins.pytorch import Call  # noqa: E402
from plugins.testing import exact, poisoned  # noqa: E402
from plugins.testing import random_weights as random_weights_of  # noqa: E402
from tests.plugins.test_feed_forward import check  # noqa: E402
from tests.plugins.test_layer_norm_depthwise import on_gpu  # noqa: E402

DTYPES = [torch.float16, torch.bfloat16]
SIZES = [(1, 1), (1, 40), (40, 1), (7, 5), (16, 16), (17, 18), (33, 50), (200, 131)]
WIDTHS = [48, 64, 40, 56, 8, 16]
EPSILON = 1e-6
WIDE = [channels for (channels,) in ATTENTION_INPUTS.widths.wide]
"""Of these compute capability 9.0 has a kernel of its own for 192."""


def random_weights(channels: int, dtype: torch.dtype, device: str = "cuda") -> list[torch.Tensor]:
    return random_weights_of(ATTENTION_INPUTS, dtype, device, channels=channels)


def outputs(batch: int, channels: int, h: int, w: int, dtype: torch.dtype) -> list[torch.Tensor]:
    return [poisoned(batch, count, h, w, dtype, "padded") for count in (3 * channels, channels)]


def run(x: torch.Tensor, out: list[torch.Tensor], weights: list[torch.Tensor], path: str = "auto") -> None:
    Call(ATTENTION_INPUTS, [x, *weights], out, epsilon=EPSILON, path=library.PATHS[path])()


def reference(x: torch.Tensor, weights: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return exact(ATTENTION_INPUTS, x, *weights, epsilon=EPSILON)


def run_and_check(x: torch.Tensor, out: list[torch.Tensor], weights: list[torch.Tensor], scale: float = 1) -> None:
    """In an emulation of the kernel on a CPU the errors were at most 6e-4 in float16 and 2.8e-3 in bfloat16."""
    run(x, out, weights)
    for mine, wanted in zip(out, reference(x, weights), strict=True):
        check(mine, wanted, scale)


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("channels", [*WIDTHS, *WIDE])
def test_attention_inputs(channels: int, batch: int, dtype: torch.dtype) -> None:
    for h, w in SIZES:
        x = poisoned(batch, channels, h, w, dtype, "padded")
        x.copy_(torch.randn(x.shape, device="cuda"))
        run_and_check(x, outputs(batch, channels, h, w, dtype), random_weights(channels, dtype))


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [*WIDTHS[:2], *WIDE])
@pytest.mark.parametrize("size", [(3, 360, 640), (300, 20, 21)])
def test_more_tiles_than_blocks(size: tuple[int, int, int], channels: int, dtype: torch.dtype) -> None:
    """Every block takes several tiles, of several images, also where it skips whole images."""
    batch, h, w = size
    x = poisoned(batch, channels, h, w, dtype, "padded")
    x.copy_(torch.randn(x.shape, device="cuda"))
    run_and_check(x, outputs(batch, channels, h, w, dtype), random_weights(channels, dtype))


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("mean", "deviation"), [(2e3, 50), (0, 3e4), (0, 0.02)])
@pytest.mark.parametrize("channels", [48, *WIDE])
def test_means_and_sizes(channels: int, mean: float, deviation: float, dtype: torch.dtype) -> None:
    """A small variance around a large mean, and values near float16's limits."""
    x = poisoned(1, channels, 33, 50, dtype, "padded")
    x.copy_(mean + deviation * torch.randn(x.shape, device="cuda").clamp(-2, 2))
    run_and_check(x, outputs(1, channels, 33, 50, dtype), random_weights(channels, dtype), 2)


@on_gpu
@pytest.mark.parametrize("channels", [*WIDTHS[:2], *WIDE])
def test_norm_is_zero_outside_the_map(channels: int) -> None:
    """With nothing but its bias before the depthwise convolution: outside the map it would show at the border."""
    x = poisoned(1, channels, 33, 50, torch.float16, "padded")
    x.zero_()
    weights = random_weights(channels, torch.float16)
    weights[1].fill_(2)
    weights[4].fill_(0.25)
    out = outputs(1, channels, 33, 50, torch.float16)
    run_and_check(x, out, weights)
    gate = reference(x, weights)[1]
    assert (gate[..., 0, :] - gate[..., 1, :]).norm() > 0.1 * gate[..., 1, :].norm()


@on_gpu
@pytest.mark.parametrize("position", [(0, 0), (8, 15), (16, 16), (32, 49)])
@pytest.mark.parametrize("channels", [48, *WIDE])
def test_not_a_number_spreads_to_the_neighbours_gates_alone(channels: int, position: tuple[int, int]) -> None:
    x = poisoned(1, channels, 33, 50, torch.float16, "padded")
    x.copy_(torch.randn(x.shape, device="cuda"))
    y, column = position
    x[0, 5, y, column] = torch.nan
    out = outputs(1, channels, 33, 50, torch.float16)
    run(x, out, random_weights(channels, torch.float16))
    for result, reach in zip(out, (0, 1), strict=True):
        expected = torch.zeros(result.shape, dtype=torch.bool, device="cuda")
        expected[..., max(y - reach, 0) : y + reach + 1, max(column - reach, 0) : column + reach + 1] = True
        assert torch.equal(result.isnan(), expected)


@on_gpu
@pytest.mark.parametrize("channels", [48, 64, 40, *WIDE])
def test_attention_inputs_of_a_part(channels: int) -> None:
    """Some channels, rows and columns of maps: what lies around them is neither read nor written."""
    rows, columns = slice(3, 33), slice(2, 49)
    x, *whole = (
        poisoned(2, count + 16, 37, 53, torch.float16, "padded") for count in (channels, 3 * channels, channels)
    )
    part, *parts = ((slice(None), slice(8, 8 + count), rows, columns) for count in (channels, 3 * channels, channels))
    x[part] = torch.randn(2, channels, 30, 47, device="cuda").half()
    out = [one[place] for one, place in zip(whole, parts, strict=True)]
    run_and_check(x[part], out, random_weights(channels, torch.float16))
    for one, place in zip(whole, parts, strict=True):
        outside = torch.ones(one.shape, dtype=torch.bool, device="cuda")
        outside[place] = False
        assert one[outside].isnan().all()


@on_gpu
def test_attention_inputs_operator() -> None:
    x = torch.randn(2, 48, 9, 11, device="cuda").half().to(memory_format=torch.channels_last)
    weights = random_weights(48, torch.float16)
    out = torch.ops.ribsr.attention_inputs(x, weights, epsilon=EPSILON)
    for mine, wanted in zip(out, reference(x, weights), strict=True):
        assert mine.is_contiguous(memory_format=torch.channels_last)
        check(mine, wanted)
    with pytest.raises(TypeError, match="float32"):
        torch.ops.ribsr.attention_inputs(x.float(), weights, epsilon=EPSILON)
    with pytest.raises(library.LibraryError, match="channels-last"):
        torch.ops.ribsr.attention_inputs(x.contiguous(), weights, epsilon=EPSILON)


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", WIDE)
def test_portable_path_of_wide_layers(channels: int, dtype: torch.dtype) -> None:
    """Whatever the GPU."""
    weights = random_weights(channels, dtype)
    for batch, h, w in ((1, 1, 1), (2, 33, 50), (3, 360, 640)):
        x = poisoned(batch, channels, h, w, dtype, "padded")
        x.copy_(torch.randn(x.shape, device="cuda"))
        out = outputs(batch, channels, h, w, dtype)
        run(x, out, weights, "portable")
        for mine, wanted in zip(out, reference(x, weights), strict=True):
            check(mine, wanted)


@on_gpu
@pytest.mark.parametrize("channels", [48, *WIDE])
def test_which_layers_have_a_path_of_hoppers_own(channels: int) -> None:
    x = poisoned(1, channels, 9, 11, torch.float16, "padded")
    x.copy_(torch.randn(x.shape, device="cuda"))
    out, weights = outputs(1, channels, 9, 11, torch.float16), random_weights(channels, torch.float16)
    if channels == 192 and torch.cuda.get_device_capability() == (9, 0):
        run(x, out, weights, "hopper")
        for mine, wanted in zip(out, reference(x, weights), strict=True):
            check(mine, wanted)
        return
    with pytest.raises(library.LibraryError, match="the Hopper path was asked for, but needs compute capability 9.0"):
        run(x, out, weights, "hopper")


@on_gpu
@pytest.mark.parametrize("channels", [48, *WIDE])
def test_in_a_graph(channels: int) -> None:
    """Captured, and replayed on a new input."""
    x = torch.randn(1, channels, 40, 50, device="cuda").half().to(memory_format=torch.channels_last)
    weights = random_weights(channels, torch.float16)
    torch.ops.ribsr.attention_inputs(x, weights, epsilon=EPSILON)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = torch.ops.ribsr.attention_inputs(x, weights, epsilon=EPSILON)
    x.copy_(torch.randn(x.shape, device="cuda"))
    for one in out:
        one.fill_(torch.nan)
    graph.replay()
    for mine, wanted in zip(out, reference(x, weights), strict=True):
        check(mine, wanted)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_attention_inputs_on_cpu(layout: torch.memory_format) -> None:
    """The layer's own modules compute the same, but for the gate's sigmoid; the fake agrees with the operator."""
    from ribsr.attention import WindowAttention
    from ribsr.configs import SSTConfig
    from ribsr.layers import LayerNorm

    config = SSTConfig("one", 12, (3,), (4,), (4,), 1, 1.5, "direct", rib_hidden_dim=8, rib_freqs=2)
    norm, attention = LayerNorm(12).double(), WindowAttention(config).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 12, 5, 7, dtype=torch.float64).to(memory_format=layout)
    modules = (norm, attention.to_qkv, attention.gate[0], attention.gate[1])
    weights = [weight.detach() for module in modules for weight in module.parameters()]
    arguments = (x, weights, EPSILON)
    qkv, gate = torch.ops.ribsr.attention_inputs(*arguments)
    assert qkv.is_contiguous(memory_format=layout)
    assert gate.is_contiguous(memory_format=layout)
    n = norm(x)
    torch.testing.assert_close(qkv, attention.to_qkv(n).detach())
    torch.testing.assert_close(gate.sigmoid(), attention.gate(n).detach())
    torch.library.opcheck(torch.ops.ribsr.attention_inputs, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("index", "shape", "message"),
    [
        (0, (13,), r"norm_weight is \[13\], expected \[channels\] with channels = 12"),
        (2, (24, 12, 1, 1), r"project_weight is .*, expected \[3\*channels, channels, 1, 1\] with channels = 12"),
        (4, (12, 1, 5, 5), r"depthwise_weight is .*, expected \[channels, 1, 3, 3\] with channels = 12"),
        (6, (12, 12), r"mix_weight is \[12, 12\], expected \[channels, channels, 1, 1\] with channels = 12"),
    ],
)
def test_attention_inputs_refuse_shapes_that_do_not_fit(index: int, shape: tuple[int, ...], message: str) -> None:
    weights = random_weights(12, torch.float32, "cpu")
    weights[index] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        torch.ops.ribsr.attention_inputs(torch.zeros(1, 12, 5, 7), weights, epsilon=EPSILON)


@pytest.mark.parametrize(
    ("channels", "fits"),
    [
        (48, True),
        (64, True),
        (8, True),
        (72, False),
        (44, False),
        (0, False),
        (384, False),
        (180, False),
        (192, True),
        (224, True),
    ],
)
def test_which_widths_fit(channels: int, fits: bool) -> None:
    assert ATTENTION_INPUTS.fits(channels) == fits
