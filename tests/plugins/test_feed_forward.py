"""ribsr_feed_forward against float64 on a GPU; without one the operator's CPU path and checks."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch  # noqa: E402

from plugins import library  # noqa: E402
from plugins.operators import FEED_FORWARD  # noqa: E402
from plugins.pytorch import Call  # noqa: E402
from plugins.testing import exact, poisoned, relative_error  # noqa: E402
from plugins.testing import random_weights as random_weights_of  # noqa: E402
from tests.plugins.test_layer_norm_depthwise import on_gpu  # noqa: E402

TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Relative; in an emulation of the kernel on a CPU the errors were 3.5e-4 and 3.2e-3."""
DTYPES = list(TOLERANCE)
SIZES = [(1, 1), (1, 40), (40, 1), (7, 5), (16, 16), (17, 18), (33, 50), (200, 131)]
WIDTHS = [(48, 72), (64, 80), (64, 96), (40, 64), (56, 72), (8, 8), (16, 96), (64, 8)]
EPSILON = 1e-6

WIDE = FEED_FORWARD.widths.wide
"""Of these compute capability 9.0 has a kernel of its own for 192 and 384."""


def random_weights(channels: int, hidden: int, dtype: torch.dtype, device: str = "cuda") -> list[torch.Tensor]:
    return random_weights_of(FEED_FORWARD, dtype, device, channels=channels, hidden=hidden)


def reference(x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    return exact(FEED_FORWARD, x, *weights, epsilon=EPSILON)


def run(x: torch.Tensor, out: torch.Tensor, weights: list[torch.Tensor], path: str = "auto") -> None:
    Call(FEED_FORWARD, [x, *weights], [out], epsilon=EPSILON, path=library.PATHS[path])()


def check(out: torch.Tensor, expected: torch.Tensor, scale: float = 1.0) -> None:
    """The norm of the error over the result's, of the map and of its border alone; scale: of the tolerance."""
    border = torch.ones(out.shape[2:], dtype=torch.bool, device=out.device)
    border[1:-1, 1:-1] = False
    for mine, wanted in ((out, expected), (out[..., border], expected[..., border])):
        error = relative_error(mine, wanted)
        assert error <= scale * TOLERANCE[out.dtype], f"relative error {error:.2e}"  # NaN fails too


def run_and_check(shape: tuple[int, int, int, int], hidden: int, dtype: torch.dtype, deviation: float = 1.0) -> None:
    """On normal x of this [B, C, H, W] shape and deviation."""
    x, out = (poisoned(*shape, dtype, "padded") for _ in range(2))
    x.copy_(torch.randn(x.shape, device="cuda") * deviation)
    weights = random_weights(shape[1], hidden, dtype)
    run(x, out, weights)
    check(out, reference(x, weights))


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("channels", "hidden"), [*WIDTHS, *WIDE])
def test_feed_forward(channels: int, hidden: int, batch: int, dtype: torch.dtype) -> None:
    for h, w in SIZES:
        run_and_check((batch, channels, h, w), hidden, dtype)


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("channels", "hidden"), [*WIDTHS[:3], *WIDE])
def test_more_tiles_than_blocks(channels: int, hidden: int, dtype: torch.dtype) -> None:
    """Every block takes several tiles, of several images."""
    run_and_check((3, channels, 360, 640), hidden, dtype)


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("channels", "hidden"), [*WIDTHS[:4], *WIDE])
def test_the_residual_does_not_hide_the_rest(channels: int, hidden: int, dtype: torch.dtype) -> None:
    """Small x, whose norm is not small: the branch alone makes the result."""
    run_and_check((2, channels, 33, 50), hidden, dtype, 1 / 64)


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("channels", "hidden"), [WIDTHS[0], *WIDE])
def test_small_variance_around_a_large_mean(channels: int, hidden: int, dtype: torch.dtype) -> None:
    """E[x²] - E[x]² would lose every digit here; what x adds to the result is taken off again before it is compared."""
    x, out = (poisoned(1, channels, 33, 50, dtype, "padded") for _ in range(2))
    x.copy_(2e3 + 50 * torch.randn(x.shape, device="cuda").clamp(-4, 4))
    weights = random_weights(channels, hidden, dtype)
    weights[6] *= 256
    run(x, out, weights)
    check(out, reference(x, weights))
    branch = reference(x, weights) - x.double()
    error = ((out.double() - x.double() - branch).norm() / branch.norm()).item()
    assert error <= 10 * TOLERANCE[dtype]


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [3e4, 0.1])
@pytest.mark.parametrize(("channels", "hidden"), [WIDTHS[0], *WIDE])
def test_large_inputs_and_hidden_values(channels: int, hidden: int, size: float, dtype: torch.dtype) -> None:
    """gelu far out on either side; x near float16's limit, or so small that nothing is hidden behind it."""
    x, out = (poisoned(1, channels, 20, 21, dtype, "padded") for _ in range(2))
    x.copy_(size * torch.randn(x.shape, device="cuda").clamp(-2, 2))
    weights = random_weights(channels, hidden, dtype)
    weights[2] *= 30
    weights[4] *= 30
    weights[6] /= 8
    run(x, out, weights)
    assert out.isfinite().all()
    check(out, reference(x, weights))


@on_gpu
@pytest.mark.parametrize(("channels", "hidden"), [*WIDTHS[:3], *WIDE])
def test_hidden_channels_are_zero_outside_the_map(channels: int, hidden: int) -> None:
    """With nothing but biases in front of the depthwise convolution: gelu(bias) outside would show at the border."""
    x, out = (poisoned(1, channels, 33, 50, torch.float16, "padded") for _ in range(2))
    x.zero_()
    weights = random_weights(channels, hidden, torch.float16)
    weights[0].zero_()
    weights[1].zero_()
    weights[3].fill_(2)
    weights[4].fill_(0.25)
    run(x, out, weights)
    expected = reference(x, weights)
    check(out, expected)
    assert (expected[..., 0, :] - expected[..., 1, :]).norm() > 0.1 * expected[..., 1, :].norm()


@on_gpu
@pytest.mark.parametrize("position", [(0, 0), (8, 15), (16, 16), (32, 49)])
@pytest.mark.parametrize(("channels", "hidden"), [WIDTHS[0], *WIDE])
def test_not_a_number_spreads_to_its_neighbours_alone(channels: int, hidden: int, position: tuple[int, int]) -> None:
    x, out = (poisoned(1, channels, 33, 50, torch.float16, "padded") for _ in range(2))
    x.copy_(torch.randn(x.shape, device="cuda"))
    y, column = position
    x[0, 5, y, column] = torch.nan
    run(x, out, random_weights(channels, hidden, torch.float16))
    expected = torch.zeros(out.shape, dtype=torch.bool, device="cuda")
    expected[..., max(y - 1, 0) : y + 2, max(column - 1, 0) : column + 2] = True
    assert torch.equal(out.isnan(), expected)


@on_gpu
@pytest.mark.parametrize(("channels", "hidden"), [(48, 72), (64, 72), (40, 72), *WIDE])
def test_feed_forward_of_a_part(channels: int, hidden: int) -> None:
    """Some channels, rows and columns of a map: what lies around them is neither read nor written."""
    rows, columns = slice(3, 33), slice(2, 49)
    x, whole = (poisoned(2, channels + 16, 37, 53, torch.float16, "padded") for _ in range(2))
    part = (slice(None), slice(8, 8 + channels), rows, columns)
    x[part] = torch.randn(2, channels, 30, 47, device="cuda").half()
    weights = random_weights(channels, hidden, torch.float16)
    run(x[part], whole[part], weights)
    check(whole[part], reference(x[part], weights))
    outside = torch.ones(whole.shape, dtype=torch.bool, device="cuda")
    outside[part] = False
    assert whole[outside].isnan().all()


@on_gpu
def test_feed_forward_operator() -> None:
    x = torch.randn(2, 48, 9, 11, device="cuda").half().to(memory_format=torch.channels_last)
    weights = random_weights(48, 72, torch.float16)
    out = torch.ops.ribsr.feed_forward(x, weights, epsilon=EPSILON)
    assert out.is_contiguous(memory_format=torch.channels_last)
    check(out, reference(x, weights))
    with pytest.raises(TypeError, match="float32"):
        torch.ops.ribsr.feed_forward(x.float(), weights, epsilon=EPSILON)
    with pytest.raises(library.LibraryError, match="channels-last"):
        torch.ops.ribsr.feed_forward(x.contiguous(), weights, epsilon=EPSILON)
    with pytest.raises(library.LibraryError, match="must not overlap"):
        run(x, x, weights)


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize(("channels", "hidden"), WIDE)
def test_portable_path_of_wide_layers(channels: int, hidden: int, layout: str, dtype: torch.dtype) -> None:
    """Whatever the GPU; pixels of 180 channels may be as far apart, and are whole vectors where they are not."""
    weights = random_weights(channels, hidden, dtype)
    for shape in ((1, 1, 1), (2, 33, 50), (3, 360, 640)):
        x, out = (poisoned(shape[0], channels, *shape[1:], dtype, layout) for _ in range(2))
        x.copy_(torch.randn(x.shape, device="cuda"))
        run(x, out, weights, "portable")
        check(out, reference(x, weights))
        pixel = out.stride(3)
        whole = out.as_strided((shape[0], *shape[1:], pixel), (*(out.stride(i) for i in (0, 2, 3)), 1))
        assert not whole[..., channels:].any()  # not NaN, which TensorRT's next layer would read


@on_gpu
@pytest.mark.parametrize(("channels", "hidden"), [(48, 72), *WIDE])
def test_which_layers_have_a_path_of_hoppers_own(channels: int, hidden: int) -> None:
    x, out = (poisoned(1, channels, 9, 11, torch.float16, "padded") for _ in range(2))
    x.copy_(torch.randn(x.shape, device="cuda"))
    weights = random_weights(channels, hidden, torch.float16)
    if (channels, hidden) == (192, 384) and torch.cuda.get_device_capability() == (9, 0):
        run(x, out, weights, "hopper")
        check(out, reference(x, weights))
        return
    with pytest.raises(library.LibraryError, match="the Hopper path was asked for, but needs compute capability 9.0"):
        run(x, out, weights, "hopper")


@on_gpu
def test_calls_one_after_the_other_may_share_a_workspace() -> None:
    """Each has its weights in it before it begins, and not before the one before has ended."""
    channels, hidden = 192, 384
    x, *outs = (poisoned(1, channels, 200, 131, torch.float16, "padded") for _ in range(5))
    x.copy_(torch.randn(x.shape, device="cuda"))
    weights = [random_weights(channels, hidden, torch.float16) for _ in outs]
    workspace = None
    for out, own in zip(outs, weights, strict=True):
        call = Call(FEED_FORWARD, [x, *own], [out], workspace=workspace, epsilon=EPSILON)
        call()
        workspace = call.workspace
    for out, own in zip(outs, weights, strict=True):
        check(out, reference(x, own))


@on_gpu
@pytest.mark.parametrize("rows", ["further apart", "nearer than columns"])
def test_other_strides(rows: str) -> None:
    """Rows that are no whole number of pixels apart; rows next to each other, columns not."""
    channels, hidden = 192, 384
    h, w = 37, 41
    if rows == "further apart":
        x, out = (
            torch.full((h, w * channels + 8), torch.nan, device="cuda", dtype=torch.float16)
            .as_strided((1, h, w, channels), (h * (w * channels + 8), w * channels + 8, channels, 1))
            .permute(0, 3, 1, 2)
            for _ in range(2)
        )
    else:
        x, out = (poisoned(1, channels, w, h, torch.float16, "padded").transpose(2, 3) for _ in range(2))
    x.copy_(torch.randn(x.shape, device="cuda"))
    weights = random_weights(channels, hidden, torch.float16)
    run(x, out, weights)
    check(out, reference(x, weights))


@on_gpu
@pytest.mark.parametrize(("channels", "hidden"), [WIDTHS[0], *WIDE])
def test_in_a_graph(channels: int, hidden: int) -> None:
    """Captured, and replayed on a new input."""
    x = torch.randn(1, channels, 40, 50, device="cuda").half().to(memory_format=torch.channels_last)
    weights = random_weights(channels, hidden, torch.float16)
    torch.ops.ribsr.feed_forward(x, weights, epsilon=EPSILON)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = torch.ops.ribsr.feed_forward(x, weights, epsilon=EPSILON)
    x.copy_(torch.randn(x.shape, device="cuda"))
    out.fill_(torch.nan)
    graph.replay()
    check(out, reference(x, weights))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_feed_forward_on_cpu(layout: torch.memory_format) -> None:
    """The layer's own modules compute the same; the fake agrees with the operator."""
    from ribsr.layers import ConvFFN, LayerNorm

    norm, block = LayerNorm(12).double(), ConvFFN(12, 1.5, last="agg").double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 12, 5, 7, dtype=torch.float64).to(memory_format=layout)
    weights = [weight.detach() for weight in (*norm.parameters(), *block.parameters())]
    arguments = (x, weights, EPSILON)
    out = torch.ops.ribsr.feed_forward(*arguments)
    assert out.is_contiguous(memory_format=layout)
    torch.testing.assert_close(out, (x + block(norm(x))).detach())
    torch.library.opcheck(torch.ops.ribsr.feed_forward, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("index", "shape", "message"),
    [
        (0, (13,), r"norm_weight is \[13\], expected \[channels\] with channels = 12"),
        (2, (18, 12), r"expand_weight is \[18, 12\], expected \[hidden, channels, 1, 1\] with channels = 12"),
        (4, (18, 1, 5, 5), r"depthwise_weight is .*, expected \[hidden, 1, 3, 3\] with hidden = 18"),
        (
            6,
            (18, 12, 1, 1),
            r"contract_weight is .*, expected \[channels, hidden, 1, 1\] with channels = 12, hidden = 18",
        ),
    ],
)
def test_feed_forward_refuses_shapes_that_do_not_fit(index: int, shape: tuple[int, ...], message: str) -> None:
    weights = random_weights(12, 18, torch.float32, "cpu")
    weights[index] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        torch.ops.ribsr.feed_forward(torch.zeros(1, 12, 5, 7), weights, epsilon=EPSILON)


@pytest.mark.parametrize(
    ("channels", "hidden", "fits"),
    [(48, 72, True), (64, 96, True), (8, 8, True), (72, 72, False), (48, 104, False), (44, 72, False), (48, 0, False),
     (192, 96, False), (64, 384, False), (384, 192, False), (180, 225, True), (192, 384, True), (224, 448, True)],
)  # fmt: skip
def test_which_widths_fit(channels: int, hidden: int, fits: bool) -> None:
    assert FEED_FORWARD.fits(channels, hidden) == fits
