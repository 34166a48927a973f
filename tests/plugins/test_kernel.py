"""The CUDA kernels against the float64 reference. Needs a GPU and a built library (python -m plugins.build)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

pytest.importorskip("torch")

import torch  # noqa: E402

from plugins import library  # noqa: E402
from plugins import pytorch as operator  # noqa: E402
from ribsr import attention  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.skipif(not library.path().exists(), reason="needs the library: python -m plugins.build"),
]

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
DTYPES = list(TOLERANCE)

MEMORY = 8 * 2**30
"""Bytes of GPU memory that PyTorch may take here, whatever it keeps for later; a reference needs about one GiB."""


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    """Leaves room for tools that watch the kernels, and for others on the GPU."""
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, MEMORY / total))
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def on_hopper() -> bool:
    return torch.cuda.get_device_capability() == (9, 0)


def poisoned(b: int, c: int, h: int, w: int, dtype: torch.dtype, layout: str) -> torch.Tensor:
    """A [b, c, h, w] view of NaN-filled memory: nchw, or nhwc with the pixel stride padded to a multiple of 8."""
    if layout == "nchw":
        return torch.full((b, c, h, w), torch.nan, dtype=dtype, device="cuda")
    padded = -(-c // 8) * 8
    return torch.full((b, h, w, padded), torch.nan, dtype=dtype, device="cuda")[..., :c].permute(0, 3, 1, 2)


def quadratic_bias(window: tuple[int, int], depth: float, mirrored: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors [N, 4] of a bias that falls with the squared distance, by `depth` from corner to corner.

    Mirrored: the distance from the query's mirror image in the window's centre.
    """
    y, x = (torch.linspace(-1, 1, size) for size in window)
    place = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2)
    a, ones = depth / 8, torch.ones(len(place), 1)
    square = place.square().sum(1, keepdim=True)
    factors_q = torch.cat([-a * square, ones, 2 * a * (-place if mirrored else place)], 1)
    return factors_q, torch.cat([ones, -a * square, place], 1)


def check(
    *,
    window: tuple[int, int],
    d: int,
    r: int,
    size: tuple[int, int],
    dtype: torch.dtype,
    heads: int = 2,
    batch: int = 1,
    shift: tuple[int, int] = (0, 0),
    layout: str = "nhwc",
    path: str = "auto",
    factor: float = 1.0,
    expected_path: str | None = None,
    gate_sigmoid: bool = False,
    depth: float = 0.0,
    mirrored: bool = False,
) -> None:
    """Run on fresh random inputs, q and rib_q multiplied by `factor`, and compare with the float64 reference.

    With a depth, every other head's first four RIB factors are those of `quadratic_bias`.
    """
    h, w = size
    c = heads * d
    qkv = poisoned(batch, 3 * c, h, w, dtype, layout)
    gate = poisoned(batch, c, h, w, dtype, layout)
    out = poisoned(batch, c, h, w, dtype, layout)
    values = torch.randn(batch, 3 * c, h, w, device="cuda")
    values[:, :c] *= factor
    qkv.copy_(values)
    gate.copy_(torch.randn(batch, c, h, w, device="cuda") * 4 if gate_sigmoid else torch.rand(batch, c, h, w).cuda())
    tokens = window[0] * window[1]
    rib_q = torch.randn(heads, tokens, r, device="cuda") * factor
    rib_k = torch.randn(heads, tokens, r, device="cuda")
    scale = d**-0.5
    if depth:
        for factors, bias in zip((rib_q, rib_k), quadratic_bias(window, depth / scale, mirrored), strict=True):
            factors[::2, :, :4] = bias.cuda()
    rib_q, rib_k = rib_q.to(dtype), rib_k.to(dtype)

    params = operator.parameters(
        out, qkv, rib_q, rib_k, gate, list(window), heads, list(shift), scale, path, gate_sigmoid
    )
    if expected_path is not None:
        assert library.chosen_path(params) == expected_path
    library.call(params, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()

    expected = attention.reference(
        qkv.double(),
        rib_q.double(),
        rib_k.double(),
        gate.double().sigmoid() if gate_sigmoid else gate.double(),
        window=window,
        heads=heads,
        shift=shift,
        scale=scale,
    )
    error = ((out.double() - expected).norm() / expected.norm()).item()
    assert error <= TOLERANCE[dtype], f"relative error {error:.2e}"  # NaN fails too
    if layout == "nhwc" and c % 8:  # what lies between the pixels is not ours
        assert out.as_strided((batch, h, w, -c % 8), out.permute(0, 2, 3, 1).stride(), c).isnan().all()


SIZES = {8: (19, 45), 16: (33, 50), 32: (40, 70), 48: (50, 97), 64: (65, 30), 96: (100, 60)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("path", ["hopper", "portable"])
@pytest.mark.parametrize(("d", "r"), list(itertools.product((16, 32), (16, 24, 32))))
@pytest.mark.parametrize("window", SIZES)
def test_tuned_widths(window: int, d: int, r: int, path: str, dtype: torch.dtype) -> None:
    """Odd sizes (reflected once or more), and a shift of half a window on one axis."""
    if path == "hopper" and not on_hopper():
        pytest.skip("needs compute capability 9.0")
    shift = (0, window // 2)
    check(window=(window, window), d=d, r=r, size=SIZES[window], dtype=dtype, shift=shift, path=path)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize(
    ("window", "d", "r", "size"),
    [
        ((4, 4), 8, 8, (9, 5)),
        ((7, 5), 30, 34, (15, 21)),
        ((4, 128), 64, 64, (6, 130)),
        ((128, 8), 24, 40, (17, 9)),
        ((12, 20), 48, 18, (31, 64)),
        ((16, 16), 12, 1, (16, 16)),
        ((9, 9), 1, 5, (10, 8)),
        ((8, 24), 16, 16, (1, 100)),
        ((10, 13), 32, 32, (27, 1)),
    ],
)
def test_general_widths(
    window: tuple[int, int], d: int, r: int, size: tuple[int, int], layout: str, dtype: torch.dtype
) -> None:
    check(window=window, d=d, r=r, size=size, dtype=dtype, layout=layout, heads=3, batch=2, shift=(2, 3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [(8, 8), (4, 8), (5, 7), (16, 16), (10, 24), (17, 16), (24, 24)])
def test_windows_not_a_multiple_of_tiles(window: tuple[int, int], dtype: torch.dtype) -> None:
    """Masked keys, idle rows, and a number of (window, head) pairs that does not divide by four."""
    check(window=window, d=32, r=16, size=(26, 37), dtype=dtype, heads=3, batch=3, shift=(3, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("path", ["auto", "portable"])
@pytest.mark.parametrize("factor", [30.0, 3000.0])
@pytest.mark.parametrize("window", [8, 32])
def test_large_scores(window: int, factor: float, path: str, dtype: torch.dtype) -> None:
    """Scores beyond ±1e4: the scale must be applied to the float32 product, the maximum subtracted exactly."""
    check(window=(window, window), d=32, r=16, size=(50, 50), dtype=dtype, factor=factor, path=path)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("path", ["auto", "portable"])
@pytest.mark.parametrize(("window", "d"), [(8, 16), (16, 32), (48, 32), (12, 30)])
def test_gate_through_the_sigmoid(window: int, d: int, path: str, layout: str, dtype: torch.dtype) -> None:
    size = (50, 61)
    check(window=(window, window), d=d, r=16, size=size, dtype=dtype, layout=layout, path=path, gate_sigmoid=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("factor", [1.0, 6.0, 3000.0])
@pytest.mark.parametrize(("window", "size"), [(16, (160, 200)), (9, (90, 150)), (32, (224, 320))])
def test_several_items_per_block(window: int, size: tuple[int, int], factor: float, dtype: torch.dtype) -> None:
    """More items than multiprocessors, of which none, some or nearly all are done a second time."""
    for d, r in ((32, 32), (16, 24)):
        check(window=(window, window), d=d, r=r, size=size, dtype=dtype, heads=3, factor=factor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mirrored", [False, True], ids=["near", "far"])
@pytest.mark.parametrize("depth", [20.0, 50.0, 150.0, 2000.0])
@pytest.mark.parametrize(
    ("window", "size"),
    [((16, 16), (90, 120)), ((9, 11), (60, 90)), ((17, 16), (40, 70)), ((32, 32), (96, 128)), ((50, 45), (100, 90))],
)
def test_scores_that_depend_on_places(
    window: tuple[int, int], size: tuple[int, int], depth: float, mirrored: bool, dtype: torch.dtype
) -> None:
    """Maxima near the query or far away, so that no, some or all items of half of the heads are done a second time."""
    for d, r in itertools.product((16, 32), (16, 24, 32)):
        check(window=window, d=d, r=r, size=size, dtype=dtype, heads=3, shift=(3, 5), depth=depth, mirrored=mirrored)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nats", [20.0, 60.0, 250.0])
def test_one_key_far_above_the_others(nats: float, dtype: torch.dtype) -> None:
    """Whichever of 16 keys in a row it is: a thread does not treat its scores alike."""
    arguments = {"window": (32, 32), "heads": 2, "shift": (0, 0), "scale": 1.0}
    shape = (1, 32, 32, 32)
    factors = torch.zeros(2, 1024, 16, dtype=dtype, device="cuda")
    gate = torch.ones(shape, dtype=dtype, device="cuda").to(memory_format=torch.channels_last)
    for key in range(700, 716):
        q, k, v = (torch.randn(shape, device="cuda") * size for size in (0.1, 1.0, 1.0))
        q[:, ::16] = 1.0
        k[:, ::16] = 0.0
        k[:, ::16, key // 32, key % 32] = nats
        qkv = torch.cat([q, k, v], 1).to(dtype).to(memory_format=torch.channels_last)
        out = operator.kernel(qkv, factors, factors, gate, **arguments)
        expected = attention.reference(qkv.double(), factors.double(), factors.double(), gate.double(), **arguments)
        error = ((out.double() - expected).norm() / expected.norm()).item()
        assert error <= TOLERANCE[dtype], f"key {key}: relative error {error:.2e}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_far_maxima_in_many_items(dtype: torch.dtype) -> None:
    """Many items per block: what is done carefully after one that overflowed, and that this ends."""
    for window, size in ((16, (300, 400)), (32, (224, 320)), (96, (96, 192))):
        check(window=(window, window), d=16, r=24, size=size, dtype=dtype, heads=3, depth=2000.0, mirrored=True)


def test_many_items_per_block() -> None:
    """Far more work than the GPU has multiprocessors: blocks walk over many items, rings wrap many times."""
    for window in (8, 16, 32):
        check(window=(window, window), d=16, r=24, size=(250, 333), dtype=torch.float16, heads=3, batch=2, path="auto")


@pytest.mark.parametrize(
    ("d", "r", "layout", "path"),
    [
        (32, 24, "nhwc", "hopper"),
        (32, 24, "nchw", "portable"),
        (32, 40, "nhwc", "portable"),
        (30, 16, "nhwc", "portable"),
    ],
)
def test_paths_chosen_by_layout(d: int, r: int, layout: str, path: str) -> None:
    if not on_hopper():
        pytest.skip("needs compute capability 9.0")
    check(window=(16, 16), d=d, r=r, size=(20, 20), dtype=torch.float16, layout=layout, expected_path=path)


def test_operator_in_a_graph() -> None:
    """The PyTorch operator: layout of its output, backend function, CUDA graph replay on new inputs."""
    generator = torch.Generator("cuda").manual_seed(1)

    def inputs() -> list[torch.Tensor]:
        maps = [torch.randn(2, c, 21, 30, device="cuda", generator=generator) for c in (96, 32)]
        factors = [torch.randn(2, 256, 16, device="cuda", generator=generator) for _ in range(2)]
        qkv, gate = (x.half().to(memory_format=torch.channels_last) for x in maps)
        return [qkv, factors[0].half(), factors[1].half(), gate]

    arguments = {"window": (16, 16), "heads": 2, "shift": (8, 8), "scale": 0.25}
    static = inputs()
    out = operator.kernel(*static, **arguments)
    assert out.is_contiguous(memory_format=torch.channels_last)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = operator.kernel(*static, **arguments)
    for _ in range(2):
        for x, new in zip(static, inputs(), strict=True):
            x.copy_(new)
        out.fill_(torch.nan)
        graph.replay()
        expected = attention.reference(*(x.double() for x in static), **arguments)
        assert ((out.double() - expected).norm() / expected.norm()).item() < TOLERANCE[torch.float16]


def test_opcheck() -> None:
    qkv = torch.randn(1, 96, 9, 11, device="cuda").half().to(memory_format=torch.channels_last)
    gate = torch.randn(1, 32, 9, 11, device="cuda").half()
    factors = [torch.randn(2, 64, 16, device="cuda").half() for _ in range(2)]
    arguments = (qkv, *factors, gate, [8, 8], 2, [0, 0], 0.25)
    torch.library.opcheck(
        torch.ops.ribsr.cyclic_window_attention, arguments, test_utils=("test_schema", "test_faketensor")
    )


def test_refusals_say_why() -> None:
    x = torch.zeros(1, 96, 8, 8, device="cuda", dtype=torch.float16)
    gate = torch.zeros(1, 32, 8, 8, device="cuda", dtype=torch.float16)
    factors = [torch.zeros(2, 64, 16, device="cuda", dtype=torch.float16) for _ in range(2)]
    with pytest.raises(TypeError, match="float32"):
        operator.cyclic_window_attention(x.float(), *factors, gate, [8, 8], 2, [0, 0], 0.25)
    with pytest.raises(library.LibraryError, match="scale is -1"):
        operator.cyclic_window_attention(x, *factors, gate, [8, 8], 2, [0, 0], -1.0)
    params = operator.parameters(gate, x, factors[0], factors[1], gate, [8, 8], 2, [0, 0], 0.25, "hopper")
    with pytest.raises(library.LibraryError, match="Hopper path"):
        library.call(params, 0)
