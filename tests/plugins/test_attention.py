"""The CUDA kernels against the float64 reference. Needs a GPU and a built library (python -m plugins.build)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("torch")

import torch  # noqa: E402

from plugins import library  # noqa: E402
from plugins.operators import CYCLIC_WINDOW_ATTENTION as ATTENTION  # noqa: E402
from plugins.pytorch import Call, kernel  # noqa: E402
from plugins.testing import TOLERANCE, AttentionCase, exact, relative_error  # noqa: E402
from ribsr.attention import Geometry  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.skipif(not library.path().exists(), reason="needs the library: python -m plugins.build"),
]

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
    return "{}.{}".format(*torch.cuda.get_device_capability()) == "9.0"


def check(**case: Any) -> None:
    """Run an `AttentionCase` of these fields, and compare with the float64 reference."""
    assert AttentionCase(**case).failure() == ""


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
@pytest.mark.parametrize("layout", ["padded", "nchw"])
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
@pytest.mark.parametrize("layout", ["padded", "nchw"])
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
    geometry = Geometry((32, 32), heads=2, shift=(0, 0), scale=1.0)
    shape = (1, 32, 32, 32)
    factors = torch.zeros(2, 1024, 16, dtype=dtype, device="cuda")
    gate = torch.ones(shape, dtype=dtype, device="cuda").to(memory_format=torch.channels_last)
    for key in range(700, 716):
        q, k, v = (torch.randn(shape, device="cuda") * size for size in (0.1, 1.0, 1.0))
        q[:, ::16] = 1.0
        k[:, ::16] = 0.0
        k[:, ::16, key // 32, key % 32] = nats
        qkv = torch.cat([q, k, v], 1).to(dtype).to(memory_format=torch.channels_last)
        inputs = (qkv, factors, factors, gate)
        error = relative_error(kernel(*inputs, geometry), exact(ATTENTION, *inputs, **geometry._asdict()))
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
        (32, 24, "padded", "hopper"),
        (32, 24, "nchw", "portable"),
        (32, 40, "padded", "portable"),
        (30, 16, "padded", "portable"),
    ],
)
def test_paths_chosen_by_layout(d: int, r: int, layout: str, path: str) -> None:
    if not on_hopper():
        pytest.skip("needs compute capability 9.0")
    case = AttentionCase(window=(16, 16), d=d, r=r, size=(20, 20), dtype=torch.float16, layout=layout)
    assert library.chosen_path(case.prepare().params) == path
    assert case.failure() == ""


def test_operator_in_a_graph() -> None:
    """The PyTorch operator: layout of its output, backend function, CUDA graph replay on new inputs."""
    generator = torch.Generator("cuda").manual_seed(1)

    def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        maps = [torch.randn(2, c, 21, 30, device="cuda", generator=generator) for c in (96, 32)]
        factors = [torch.randn(2, 256, 16, device="cuda", generator=generator) for _ in range(2)]
        qkv, gate = (x.half().to(memory_format=torch.channels_last) for x in maps)
        return qkv, factors[0].half(), factors[1].half(), gate

    geometry = Geometry((16, 16), heads=2, shift=(8, 8), scale=0.25)
    static = inputs()
    out = kernel(*static, geometry)
    assert out.is_contiguous(memory_format=torch.channels_last)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernel(*static, geometry)
    for _ in range(2):
        for x, new in zip(static, inputs(), strict=True):
            x.copy_(new)
        out.fill_(torch.nan)
        graph.replay()
        assert relative_error(out, exact(ATTENTION, *static, **geometry._asdict())) < TOLERANCE[torch.float16]


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
        torch.ops.ribsr.cyclic_window_attention(x.float(), *factors, gate, [8, 8], 2, [0, 0], 0.25)
    with pytest.raises(library.LibraryError, match="scale is -1"):
        torch.ops.ribsr.cyclic_window_attention(x, *factors, gate, [8, 8], 2, [0, 0], -1.0)
    inputs, path = (x, *factors, gate), library.PATHS["hopper"]
    call = Call(ATTENTION, inputs, [gate], path=path, window=[8, 8], heads=2, shift=[0, 0], scale=0.25)
    with pytest.raises(library.LibraryError, match="Hopper path"):
        call()
