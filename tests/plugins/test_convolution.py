"""ribsr_convolution against float64 on a GPU; without one the operator's CPU path and checks."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from plugins import compiler, library, operators  # noqa: E402
from plugins.operators import CONVOLUTION  # noqa: E402
from plugins.pytorch import Call  # noqa: E402
from plugins.testing import exact, poisoned, random_map, random_weights, relative_error  # noqa: E402
from tests.plugins.test_layer_norm_depthwise import on_gpu  # noqa: E402

TOLERANCE = {torch.float16: 6e-4, torch.bfloat16: 4.8e-3}
"""Relative: to round a result once costs up to 4.9e-4 and 3.9e-3 of it."""
DTYPES = list(TOLERANCE)
SIZES = [(1, 1), (1, 7), (7, 1), (16, 16), (17, 33), (33, 17), (50, 70)]
WIDTHS = [
    *((8, 3), (8, 48), (24, 12), (24, 27), (48, 3), (48, 12), (48, 27), (48, 48), (48, 192), (64, 3), (64, 48)),
    *((64, 96), (64, 256), (72, 64), (192, 3), (192, 48), (192, 64), (192, 96), (192, 192), (256, 27), (256, 256)),
    *((40, 5), (16, 512), (256, 1), (256, 192), (208, 180)),
]
SLOPE = 0.1


def weights_for(channels: int, outputs: int, kernel: int, dtype: torch.dtype, device: str = "cuda") -> list[Tensor]:
    return random_weights(CONVOLUTION, dtype, device, channels=channels, outputs=outputs, kernel=kernel)


def run_and_check(
    x: Tensor, residual: Tensor | None, out: Tensor, kernel: int, slope: float = SLOPE, scale: float = 1.0
) -> None:
    """With random weights; the norm of the error over the result's, of the map and of its border alone."""
    inputs = [x, residual, *weights_for(x.shape[1], out.shape[1], kernel, x.dtype)]
    expected = exact(CONVOLUTION, *inputs, negative_slope=slope)  # before out, which may be the residual, is written
    Call(CONVOLUTION, inputs, [out], negative_slope=slope)()
    border = torch.ones(out.shape[2:], dtype=torch.bool, device=out.device)
    border[1:-1, 1:-1] = False
    for mine, wanted in ((out, expected), (out[..., border], expected[..., border])):
        error = relative_error(mine, wanted)
        assert error <= scale * TOLERANCE[out.dtype], f"relative error {error:.2e}"  # NaN fails too


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("channels", "outputs"), WIDTHS)
def test_convolution(channels: int, outputs: int, kernel: int, dtype: torch.dtype) -> None:
    """With and without residual, into pixels that lie close and such that are a multiple of 8 channels apart."""
    for batch in (1, 3):
        for h, w in SIZES:
            for layout in ("packed", "padded"):
                x, out = random_map(batch, channels, h, w, dtype), poisoned(batch, outputs, h, w, dtype, layout)
                residual = random_map(batch, outputs, h, w, dtype, layout) if layout == "padded" else None
                run_and_check(x, residual, out, kernel)


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("channels", "outputs"), [(48, 48), (64, 48), (64, 256), (192, 192), (64, 3)])
def test_more_tiles_than_blocks(channels: int, outputs: int, kernel: int, dtype: torch.dtype) -> None:
    """Every block takes several tiles; of the batch of 3, of several images. Into the residual's own memory."""
    for batch in (1, 3):
        x, out = (random_map(batch, c, 360, 640, dtype) for c in (channels, outputs))
        run_and_check(x, out, out, kernel)


@on_gpu
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("slope", [1.0, 0.0, -0.5, 2.0])
def test_negative_slope(slope: float, kernel: int) -> None:
    x, residual = (random_map(2, c, 17, 33, torch.float16) for c in (48, 27))
    for added in (residual, None):
        run_and_check(x, added, poisoned(2, 27, 17, 33, torch.float16, "packed"), kernel, slope)


@on_gpu
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(
    ("outputs", "start", "pixel"), [(48, 8, 64), (48, 4, 56), (27, 1, 41), (12, 3, 16), (96, 2, 98)]
)
def test_parts_of_wider_maps(outputs: int, start: int, pixel: int, kernel: int) -> None:
    """Some channels, rows and columns: what lies around them is neither read nor written, however they are aligned."""
    rows, columns = slice(3, 36), slice(2, 49)
    h, w = 40, 53
    wide = poisoned(2, 64, h, w, torch.float16, "packed")
    wholes = [poisoned(2, pixel, h, w, torch.float16, "packed") for _ in range(2)]
    x = wide[:, 8:56, rows, columns]
    residual, out = (whole[:, start : start + outputs, rows, columns] for whole in wholes)
    x.copy_(torch.randn(x.shape, device="cuda"))
    residual.copy_(torch.randn(residual.shape, device="cuda"))
    for added, written in ((residual, out), (residual, residual), (None, out)):
        run_and_check(x, added, written, kernel)
    for whole in (wide, *wholes):
        outside = torch.ones(whole.shape, dtype=torch.bool, device="cuda")
        part = slice(8, 56) if whole is wide else slice(start, start + outputs)
        outside[:, part, rows, columns] = False
        assert whole[outside].isnan().all()


@on_gpu
@pytest.mark.parametrize("kernel", [1, 3])
def test_rows_next_to_each_other(kernel: int) -> None:
    """Columns are further apart than rows."""
    x, residual, out = (poisoned(1, c, 41, 37, torch.float16, "padded").transpose(2, 3) for c in (48, 96, 96))
    x.copy_(torch.randn(x.shape, device="cuda"))
    residual.copy_(torch.randn(residual.shape, device="cuda"))
    run_and_check(x, residual, out, kernel)


@on_gpu
@pytest.mark.parametrize("position", [(0, 0), (8, 15), (16, 16), (32, 49)])
@pytest.mark.parametrize(("channels", "outputs"), [(48, 48), (192, 192), (40, 12)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_not_a_number_spreads_to_its_neighbours_alone(
    kernel: int, channels: int, outputs: int, position: tuple[int, int]
) -> None:
    x, out = random_map(1, channels, 33, 50, torch.float16), poisoned(1, outputs, 33, 50, torch.float16, "padded")
    y, column = position
    x[0, 5, y, column] = torch.nan
    Call(CONVOLUTION, [x, None, *weights_for(channels, outputs, kernel, x.dtype)], [out], negative_slope=SLOPE)()
    expected = torch.zeros(out.shape, dtype=torch.bool, device="cuda")
    margin = kernel // 2
    expected[..., max(y - margin, 0) : y + margin + 1, max(column - margin, 0) : column + margin + 1] = True
    assert torch.equal(out.isnan(), expected)


@on_gpu
@pytest.mark.parametrize("kernel", [1, 3])
def test_every_weight_is_where_it_belongs(kernel: int) -> None:
    """Small integers, whose sums float16 and float32 hold exactly."""
    for channels, outputs in ((48, 48), (192, 64), (64, 192), (256, 27)):
        x = torch.zeros(1, channels, 18, 20, device="cuda", dtype=torch.float16).to(memory_format=torch.channels_last)
        x.copy_(torch.randint(0, 2, x.shape, device="cuda"))
        _, bias = weights_for(channels, outputs, kernel, x.dtype)
        weight = torch.randint(0, 2, (outputs, kernel, kernel, channels), device="cuda").half()
        out = torch.ops.ribsr.convolution(x, None, weight, bias.zero_(), 1.0)
        assert torch.equal(out.double(), exact(CONVOLUTION, x, None, weight, bias, negative_slope=1.0).round())


@on_gpu
def test_convolution_operator() -> None:
    x, residual = (
        torch.randn(2, c, 9, 11, device="cuda").half().to(memory_format=torch.channels_last) for c in (48, 27)
    )
    weight, bias = weights_for(48, 27, 3, torch.float16)
    for added in (residual, None):
        arguments = (x, added, weight, bias, SLOPE)
        out = torch.ops.ribsr.convolution(*arguments)
        assert out.is_contiguous(memory_format=torch.channels_last)
        expected = exact(CONVOLUTION, x, added, weight, bias, negative_slope=SLOPE)
        assert relative_error(out, expected) <= TOLERANCE[torch.float16]
        torch.library.opcheck(torch.ops.ribsr.convolution, arguments, test_utils=("test_schema", "test_faketensor"))
    with pytest.raises(TypeError, match="float32"):
        torch.ops.ribsr.convolution(x.float(), None, weight, bias, SLOPE)
    with pytest.raises(library.LibraryError, match="in must be channels-last"):
        torch.ops.ribsr.convolution(x.contiguous(), None, weight, bias, SLOPE)
    with pytest.raises(library.LibraryError, match="out and residual must be channels-last"):
        torch.ops.ribsr.convolution(x, residual.contiguous(), weight, bias, SLOPE)
    call = Call(CONVOLUTION, [x, None, *weights_for(48, 48, 3, torch.float16)], [x], negative_slope=SLOPE)
    with pytest.raises(library.LibraryError, match="must not overlap"):
        call()


@on_gpu
@pytest.mark.parametrize("kernel", [1, 3])
def test_in_a_graph(kernel: int) -> None:
    """Captured, and replayed on a new input."""
    x = torch.randn(1, 48, 40, 50, device="cuda").half().to(memory_format=torch.channels_last)
    weight, bias = weights_for(48, 48, kernel, torch.float16)
    torch.ops.ribsr.convolution(x, x, weight, bias, SLOPE)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = torch.ops.ribsr.convolution(x, x, weight, bias, SLOPE)
    x.copy_(torch.randn(x.shape, device="cuda"))
    out.fill_(torch.nan)
    graph.replay()
    expected = exact(CONVOLUTION, x, x, weight, bias, negative_slope=SLOPE)
    assert relative_error(out, expected) <= TOLERANCE[torch.float16]


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_convolution_on_cpu(layout: torch.memory_format, adds: bool, kernel: int) -> None:
    """The taps, written out; the fake agrees with the operator."""
    x, residual = (torch.randn(2, c, 5, 7, dtype=torch.float64).to(memory_format=layout) for c in (12, 6))
    weight, bias = (one.double() for one in weights_for(12, 6, kernel, torch.float64, "cpu"))
    arguments = (x, residual if adds else None, weight, bias, SLOPE)
    out = torch.ops.ribsr.convolution(*arguments)
    assert out.is_contiguous(memory_format=layout)
    padded = torch.nn.functional.pad(x, (kernel // 2,) * 4)
    taps = [
        torch.einsum("oc,bchw->bohw", weight[:, i, j], padded[:, :, i : i + 5, j : j + 7])
        for i in range(kernel)
        for j in range(kernel)
    ]
    y = torch.stack(taps).sum(0) + bias[:, None, None]
    y = torch.where(y < 0, SLOPE * y, y)
    torch.testing.assert_close(out, y + residual if adds else y)
    torch.library.opcheck(torch.ops.ribsr.convolution, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("index", "shape", "message"),
    [
        (1, (2, 6, 5, 8), r"residual is .*, expected \[batch, outputs, height, width\] with"),
        (
            2,
            (6, 3, 3, 13),
            r"weight is .*, expected \[outputs, kernel, kernel, channels\] with outputs = 6, channels = 1",
        ),
        (2, (6, 3, 1, 12), r"weight is .*, expected \[outputs, kernel, kernel, channels\] with"),
        (3, (7,), r"bias is \[7\], expected \[outputs\] with outputs = 6"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(index: int, shape: tuple[int, ...], message: str) -> None:
    shapes: list[tuple[int, ...]] = [(2, 12, 5, 7), (2, 6, 5, 7), (6, 3, 3, 12), (6,)]
    shapes[index] = shape
    with pytest.raises(ValueError, match=message):
        torch.ops.ribsr.convolution(*map(torch.zeros, shapes), SLOPE)


@pytest.mark.parametrize(
    ("channels", "outputs", "fits"),
    [(8, 3, True), (256, 512, True), (48, 27, True), (12, 48, False), (264, 8, False), (8, 513, False), (8, 0, False)],
)
def test_which_widths_fit(channels: int, outputs: int, fits: bool) -> None:
    assert CONVOLUTION.fits(channels, outputs) == fits


@pytest.fixture(scope="module")
def built(nvcc: Path) -> None:
    """The library, built if it was not up to date."""
    compiler.build()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": 0}, "Convolution: dtype 0 is neither float16"),
        ({"width": 0}, "all must be positive"),
        ({"channels": 0}, "channels, outputs are 0, 3: both must be positive"),
        ({"kernel": 5}, "kernel is 5: it must be 1 or 3"),
        ({"negative_slope": float("nan")}, "negative_slope is nan"),
        ({"bias": None}, "an array is null"),
        ({"out": 0}, "must not overlap"),
        ({"channels": 12}, "multiples of 8 up to 256, and any up to 512 are supported"),
        ({"channels": 264}, "multiples of 8 up to 256, and any up to 512 are supported"),
        ({"outputs": 513}, "multiples of 8 up to 256, and any up to 512 are supported"),
        ({"in_strides": (1024, 64, 8, 1)}, "in must be channels-last"),
        ({"in_strides": (1024, 1, 128, 12)}, "in must be channels-last"),
        ({"in": 8}, "aligned to 16 bytes"),
        ({"weight": 8}, "aligned to 16 bytes"),
        ({"out_strides": (1024, 64, 8, 1)}, "out and residual must be channels-last"),
        ({"residual": 32, "residual_strides": (1024, 64, 8, 1)}, "out and residual must be channels-last"),
    ],
)
@pytest.mark.usefixtures("built")
def test_parameters_are_checked(monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], message: str) -> None:
    monkeypatch.setenv(library.VARIABLE, str(compiler.LIBRARY))
    library.load.cache_clear()
    memory = ctypes.create_string_buffer(128)  # checks come before any access
    pointer = (ctypes.addressof(memory) + 15) // 16 * 16
    given: dict[str, object] = {"in": 0, "out": 16, "residual": None, "weight": 0, "bias": 0, **changes}

    def address(name: str) -> int | None:
        place = given[name]
        return pointer + place if isinstance(place, int) else None

    def a_map(name: str) -> operators.Map:
        strides = given.get(f"{name}_strides", (1024, 1, 128, 16))
        assert isinstance(strides, tuple)
        return operators.Map(address(name), *strides)

    values = {"dtype": library.FLOAT16, "batch": 1, "channels": 8, "outputs": 3, "kernel": 3, "height": 4, "width": 4}
    values |= {name: value for name, value in changes.items() if name in {*values, "negative_slope"}}
    params = CONVOLUTION.params(
        **values,
        **{"x": a_map("in"), "residual": a_map("residual"), "out": a_map("out")},
        **{"weight": address("weight"), "bias": address("bias")},
    )
    with pytest.raises(library.LibraryError, match=message):
        library.call(params, 0)
