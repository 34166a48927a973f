"""ribsr_layer_norm and ribsr_depthwise against float64 on a GPU; without one the operators' CPU paths and checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")

import torch  # noqa: E402

from plugins import library  # noqa: E402
from plugins.operators import CHANNEL_LAYER_NORM, DEPTHWISE_CONV3X3  # noqa: E402
from plugins.pytorch import Call  # noqa: E402
from plugins.testing import TOLERANCE, exact, poisoned, random_weights, relative_error  # noqa: E402


def on_gpu(test: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a test that runs the kernels."""
    test = pytest.mark.skipif(not library.path().exists(), reason="needs the library: python -m plugins.build")(test)
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")(test))


DTYPES = list(TOLERANCE)
SIZES = [(1, 1), (1, 7), (5, 3), (37, 53), (200, 131)]
CHANNELS = [1, 8, 20, 48, 60, 64, 96, 180, 192, 256, 384, 1032]


def check(out: torch.Tensor, expected: torch.Tensor, zeros: bool) -> None:
    """The norm of the error over the result's, and zeros between the pixels of a padded map."""
    error = relative_error(out, expected)
    assert error <= TOLERANCE[out.dtype], f"relative error {error:.2e}"  # NaN fails too
    b, c, h, w = out.shape
    if zeros and out.stride(1) == 1 and out.stride(3) == c + -c % 8 and c % 8:
        padding = out.as_strided((b, h, w, -c % 8), out.permute(0, 2, 3, 1).stride(), out.storage_offset() + c)
        assert not padding.any()  # NaN fails too


def normalise(x: torch.Tensor, out: torch.Tensor, epsilon: float = 1e-5) -> None:
    """The layer norm kernel on x with random weight and bias, compared."""
    inputs = [x, *random_weights(CHANNEL_LAYER_NORM, x.dtype, channels=x.shape[1])]
    Call(CHANNEL_LAYER_NORM, inputs, [out], epsilon=epsilon)()
    check(out, exact(CHANNEL_LAYER_NORM, *inputs, epsilon=epsilon), x.stride(1) == 1)


def convolve(x: torch.Tensor, out: torch.Tensor, add_gelu: bool, input_gelu: bool = False) -> None:
    """The depthwise kernel on x with random weight and bias, compared."""
    inputs = [x, *random_weights(DEPTHWISE_CONV3X3, x.dtype, channels=x.shape[1])]
    Call(DEPTHWISE_CONV3X3, inputs, [out], add_gelu=add_gelu, input_gelu=input_gelu)()
    check(out, exact(DEPTHWISE_CONV3X3, *inputs, add_gelu=add_gelu, input_gelu=input_gelu), x.stride(1) == 1)


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["padded", "packed", "nchw"])
@pytest.mark.parametrize("channels", CHANNELS)
def test_layer_norm(channels: int, layout: str, dtype: torch.dtype) -> None:
    for h, w in SIZES:
        x, out = (poisoned(2, channels, h, w, dtype, layout) for _ in range(2))
        x.copy_(torch.randn(x.shape, device="cuda"))
        normalise(x, out)


@on_gpu
@pytest.mark.parametrize("layouts", [("padded", "nchw"), ("nchw", "padded")])
def test_layer_norm_between_layouts(layouts: tuple[str, str]) -> None:
    x, out = (poisoned(2, 180, 20, 31, torch.float16, layout) for layout in layouts)
    x.copy_(torch.randn(x.shape, device="cuda"))
    normalise(x, out)


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["padded", "nchw"])
@pytest.mark.parametrize("channels", [48, 180, 192, 384])
def test_small_variance_around_a_large_mean(channels: int, layout: str, dtype: torch.dtype) -> None:
    """E[x²] - E[x]² would lose every digit here."""
    x, out = (poisoned(1, channels, 37, 53, dtype, layout) for _ in range(2))
    x.copy_(6e4 + 100 * torch.randn(x.shape, device="cuda").clamp(-4, 4))
    normalise(x, out)


@on_gpu
def test_constant_pixels_give_the_bias() -> None:
    x, out = (poisoned(1, 180, 9, 11, torch.float16, "padded") for _ in range(2))
    x.fill_(60000.0)
    normalise(x, out)


@on_gpu
@pytest.mark.parametrize(("rows", "columns"), [(slice(3, 33), slice(2, 50)), (slice(0, 37), slice(5, 40))])
def test_layer_norm_of_a_part(rows: slice, columns: slice) -> None:
    """Rows that do not follow one another in memory; what lies around the part is not written."""
    x, whole = (poisoned(2, 64, 37, 53, torch.float16, "padded") for _ in range(2))
    x.copy_(torch.randn(x.shape, device="cuda"))
    normalise(x[:, :, rows, columns], whole[:, :, rows, columns])
    outside = torch.ones(37, 53, dtype=torch.bool, device="cuda")
    outside[rows, columns] = False
    assert whole[:, :, outside].isnan().all()


@on_gpu
def test_layer_norm_keeps_neighbouring_channels() -> None:
    """20 of 48 channels: what follows them is no padding."""
    x, whole = (poisoned(1, 48, 9, 11, torch.float16, "padded") for _ in range(2))
    x.copy_(torch.randn(x.shape, device="cuda"))
    normalise(x[:, :20], whole[:, :20])
    assert whole[:, 20:].isnan().all()


@on_gpu
@pytest.mark.parametrize("channels", [96, 20])
def test_layer_norm_operator(channels: int) -> None:
    x = torch.randn(2, channels, 9, 11, device="cuda").half().to(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, channels, device="cuda").half()
    out = torch.ops.ribsr.channel_layer_norm(x, weight, bias, 1e-6)
    assert out.is_contiguous(memory_format=torch.channels_last)
    check(out, exact(CHANNEL_LAYER_NORM, x, weight, bias, epsilon=1e-6), True)
    with pytest.raises(TypeError, match="float32"):
        torch.ops.ribsr.channel_layer_norm(x, weight.float(), bias, 1e-6)
    with pytest.raises(library.LibraryError, match="epsilon is -1"):
        torch.ops.ribsr.channel_layer_norm(x, weight, bias, -1.0)


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["padded", "packed", "nchw"])
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(("add_gelu", "input_gelu"), [(False, False), (True, False), (False, True), (True, True)])
def test_depthwise(add_gelu: bool, input_gelu: bool, channels: int, layout: str, dtype: torch.dtype) -> None:
    for h, w in SIZES:
        x, out = (poisoned(2, channels, h, w, dtype, layout) for _ in range(2))
        x.copy_(torch.randn(x.shape, device="cuda"))
        convolve(x, out, add_gelu, input_gelu)


@on_gpu
@pytest.mark.parametrize("layouts", [("padded", "nchw"), ("nchw", "padded")])
def test_depthwise_between_layouts(layouts: tuple[str, str]) -> None:
    x, out = (poisoned(2, 180, 20, 31, torch.float16, layout) for layout in layouts)
    x.copy_(torch.randn(x.shape, device="cuda"))
    convolve(x, out, True)


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("input_gelu", [False, True])
@pytest.mark.parametrize("layout", ["padded", "nchw"])
def test_gelu_of_large_values(layout: str, input_gelu: bool, dtype: torch.dtype) -> None:
    x, out = (poisoned(1, 72, 37, 53, dtype, layout) for _ in range(2))
    x.copy_(torch.linspace(-300, 300, x.numel(), device="cuda").view(x.shape))
    convolve(x, out, True, input_gelu)


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gelu_of_sums_that_float16_does_not_hold(dtype: torch.dtype) -> None:
    """Far below zero it is zero, not NaN."""
    x, out = (poisoned(1, 72, 20, 31, dtype, "padded") for _ in range(2))
    x.copy_(1000 + torch.rand(x.shape, device="cuda"))
    weight = torch.full((72, 1, 3, 3), -100.0, device="cuda", dtype=dtype)
    bias = torch.zeros(72, device="cuda", dtype=dtype)
    Call(DEPTHWISE_CONV3X3, [x, weight, bias], [out], add_gelu=True)()
    assert torch.equal(out, x)


@on_gpu
def test_gelu_of_every_float16() -> None:
    """Out = x + gelu(x) by a kernel of the middle tap alone: rounded twice, plus what `gelu.cuh` says of gelu."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16).cuda()
    x = x[x.isfinite() & (x.abs() < 32000)]
    x = x[: x.numel() // 128 * 128].view(1, -1, 16, 8).permute(0, 3, 1, 2)
    weight = torch.zeros(8, 1, 3, 3, device="cuda", dtype=torch.float16)
    weight[:, :, 1, 1] = 1
    out = torch.ops.ribsr.depthwise_conv3x3(x, weight, torch.zeros(8, device="cuda", dtype=torch.float16), True)
    exact = x.double() + torch.nn.functional.gelu(x.double())
    unit = torch.maximum(exact.abs(), x.double().abs()) * 2**-11 + 2**-25
    own = torch.clamp(4e-4 * x.double().abs(), max=3e-4)
    assert ((out.double() - exact).abs() <= 2.0 * unit + own).all()


@on_gpu
@pytest.mark.parametrize("layout", ["padded", "nchw"])
def test_not_a_number_spreads_to_its_neighbours_alone(layout: str) -> None:
    x, out = (poisoned(1, 24, 9, 11, torch.float16, layout) for _ in range(2))
    x.fill_(1.0)
    x[0, 5, 4, 6] = torch.nan
    weight, bias = torch.ones(24, 1, 3, 3, device="cuda").half(), torch.ones(24, device="cuda").half()
    Call(DEPTHWISE_CONV3X3, [x, weight, bias], [out], add_gelu=True)()
    expected = torch.zeros(out.shape, dtype=torch.bool, device="cuda")
    expected[0, 5, 3:6, 5:8] = True
    assert torch.equal(out.isnan(), expected)


@on_gpu
def test_depthwise_of_a_part() -> None:
    """Rows that do not follow one another in memory: what lies around the part is neither read nor written."""
    rows, columns = slice(3, 33), slice(2, 49)
    x, whole = (poisoned(2, 64, 37, 53, torch.float16, "padded") for _ in range(2))
    x[:, :, rows, columns] = torch.randn(2, 64, 30, 47, device="cuda").half()
    convolve(x[:, :, rows, columns], whole[:, :, rows, columns], True)
    outside = torch.ones(37, 53, dtype=torch.bool, device="cuda")
    outside[rows, columns] = False
    assert whole[:, :, outside].isnan().all()


@on_gpu
def test_depthwise_keeps_neighbouring_channels() -> None:
    x, whole = (poisoned(1, 48, 9, 11, torch.float16, "padded") for _ in range(2))
    x.copy_(torch.randn(x.shape, device="cuda"))
    convolve(x[:, :20], whole[:, :20], False)
    assert whole[:, 20:].isnan().all()


@on_gpu
def test_depthwise_operator() -> None:
    x = torch.randn(2, 96, 9, 11, device="cuda").half().to(memory_format=torch.channels_last)
    weight, bias = torch.randn(96, 1, 3, 3, device="cuda").half(), torch.randn(96, device="cuda").half()
    out = torch.ops.ribsr.depthwise_conv3x3(x, weight, bias, True)
    assert out.is_contiguous(memory_format=torch.channels_last)
    check(out, exact(DEPTHWISE_CONV3X3, x, weight, bias, add_gelu=True), True)
    with pytest.raises(TypeError, match="float32"):
        torch.ops.ribsr.depthwise_conv3x3(x.float(), weight, bias, True)
    with pytest.raises(library.LibraryError, match="must not overlap"):
        Call(DEPTHWISE_CONV3X3, [x, weight, bias], [x], add_gelu=True)()


@on_gpu
def test_in_a_graph() -> None:
    """Both kernels captured and replayed on a new input."""
    x = torch.randn(1, 96, 40, 50, device="cuda").half().to(memory_format=torch.channels_last)
    weight, bias = torch.randn(96, 1, 3, 3, device="cuda").half(), torch.randn(96, device="cuda").half()

    def both() -> torch.Tensor:
        y = torch.ops.ribsr.channel_layer_norm(x, weight[:, 0, 0, 0], bias, 1e-5)
        return torch.ops.ribsr.depthwise_conv3x3(y, weight, bias, True)

    both()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = both()
    x.copy_(torch.randn(x.shape, device="cuda"))
    out.fill_(torch.nan)
    graph.replay()
    norm = exact(CHANNEL_LAYER_NORM, x, weight[:, 0, 0, 0], bias, epsilon=1e-5)
    check(out, exact(DEPTHWISE_CONV3X3, norm, weight, bias, add_gelu=True), True)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_layer_norm_on_cpu(layout: torch.memory_format) -> None:
    """The statistics over channels, written out; the fake agrees with the operator."""
    x = torch.randn(2, 12, 5, 7).to(memory_format=layout)
    weight, bias = torch.randn(2, 12)
    out = torch.ops.ribsr.channel_layer_norm(x, weight, bias, 0.1)
    assert out.is_contiguous(memory_format=layout)
    deviation = x - x.mean(1, keepdim=True)
    expected = deviation / (deviation.square().mean(1, keepdim=True) + 0.1).sqrt()
    torch.testing.assert_close(out, expected * weight[:, None, None] + bias[:, None, None])
    torch.library.opcheck(
        torch.ops.ribsr.channel_layer_norm, (x, weight, bias, 0.1), test_utils=("test_schema", "test_faketensor")
    )


def test_layer_norm_refuses_shapes_that_do_not_fit() -> None:
    x = torch.zeros(1, 12, 5, 7)
    with pytest.raises(ValueError, match=r"weight is \[11\], expected \[channels\] with channels = 12"):
        torch.ops.ribsr.channel_layer_norm(x, torch.zeros(11), torch.zeros(12), 1e-5)
    with pytest.raises(ValueError, match=r"x is \[12, 5, 7\], expected \[batch, channels, height, width\]$"):
        torch.ops.ribsr.channel_layer_norm(x[0], torch.zeros(12), torch.zeros(12), 1e-5)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("add_gelu", "input_gelu"), [(False, False), (True, False), (True, True)])
def test_depthwise_on_cpu(add_gelu: bool, input_gelu: bool, layout: torch.memory_format) -> None:
    """The nine taps, written out; the fake agrees with the operator."""
    x = torch.randn(2, 12, 5, 7).to(memory_format=layout)
    weight, bias = torch.randn(12, 1, 3, 3), torch.randn(12)
    out = torch.ops.ribsr.depthwise_conv3x3(x, weight, bias, add_gelu, input_gelu)
    assert out.is_contiguous(memory_format=layout)

    def gelu(y: torch.Tensor) -> torch.Tensor:
        return y * 0.5 * (1 + torch.erf(y / 2**0.5))

    arguments = (x, weight, bias, add_gelu, input_gelu)
    if input_gelu:
        x = gelu(x)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    taps = [weight[:, :, i, j, None] * padded[:, :, i : i + 5, j : j + 7] for i in range(3) for j in range(3)]
    expected = torch.stack(taps).sum(0) + bias[:, None, None]
    if add_gelu:
        expected = x + gelu(expected)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    torch.library.opcheck(torch.ops.ribsr.depthwise_conv3x3, arguments, test_utils=("test_schema", "test_faketensor"))


def test_depthwise_refuses_shapes_that_do_not_fit() -> None:
    x = torch.zeros(1, 12, 5, 7)
    with pytest.raises(ValueError, match=r"weight is \[12, 1, 5, 5\], expected \[channels, 1, 3, 3\] with"):
        torch.ops.ribsr.depthwise_conv3x3(x, torch.zeros(12, 1, 5, 5), torch.zeros(12), True)
    with pytest.raises(ValueError, match=r"bias is \[11\], expected \[channels\]"):
        torch.ops.ribsr.depthwise_conv3x3(x, torch.zeros(12, 1, 3, 3), torch.zeros(11), True)
