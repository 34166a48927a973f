"""The attention of the library for CPUs: against the definition in float64, for every instruction set of this CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest

pytest.importorskip("torch")

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from plugins import library, testing  # noqa: E402
from plugins.operators import CYCLIC_WINDOW_ATTENTION  # noqa: E402
from plugins.pytorch import Call  # noqa: E402

pytestmark = pytest.mark.usefixtures("cpu_library")


@dataclass(frozen=True)
class Case:
    """An attention on random inputs. between: channels of a map's pixels that are not the operator's."""

    window: tuple[int, int]
    heads: int
    d: int
    rank: int
    size: tuple[int, int]
    shift: tuple[int, int] = (0, 0)
    batch: int = 1
    gate_sigmoid: bool = False
    between: int = 3

    def attributes(self) -> dict[str, Any]:
        geometry = {"window": self.window, "heads": self.heads, "shift": self.shift, "scale": self.d**-0.5}
        return {**geometry, "gate_sigmoid": self.gate_sigmoid}

    def memory(self, channels: int) -> Tensor:
        """Of a map, [batch, height, width, channels + between], full of NaN."""
        return torch.full((self.batch, *self.size, channels + self.between), math.nan)

    def map(self, channels: int) -> Tensor:
        return (
            self.memory(channels)[..., :channels]
            .permute(0, 3, 1, 2)
            .copy_(torch.randn(self.batch, channels, *self.size))
        )

    def inputs(self, factor: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """qkv, rib_q, rib_k, gate; q and rib_q times the factor."""
        torch.manual_seed(0)
        c, tokens = self.heads * self.d, math.prod(self.window)
        qkv, gate = self.map(3 * c), self.map(c)
        qkv[:, :c] *= factor
        rib_q, rib_k = torch.randn(2, self.heads, tokens, self.rank)
        return qkv, rib_q * factor, rib_k, gate

    def run(self, *inputs: Tensor, isa: str, bfloat16_products: bool = False) -> Tensor:
        """The kernel's output; what is between its pixels must stay as it was."""
        channels = self.heads * self.d
        memory = self.memory(channels)
        out = memory[..., :channels].permute(0, 3, 1, 2)
        executor = library.Executor.of(isa, bfloat16_products)
        Call(CYCLIC_WINDOW_ATTENTION, inputs, [out], executor=executor, **self.attributes())()
        assert memory[..., channels:].isnan().all()
        return out

    def expected(self, *inputs: Tensor) -> Tensor:
        return testing.exact(CYCLIC_WINDOW_ATTENTION, *inputs, **self.attributes())

    def float32_error(self, *inputs: Tensor) -> float:
        """Of the definition in float32."""
        out = CYCLIC_WINDOW_ATTENTION.reference(*inputs, **self.attributes())
        return testing.relative_error(out, self.expected(*inputs))


LIGHT = Case((8, 8), heads=3, d=16, rank=24, size=(16, 24))

CASES = [
    LIGHT,
    replace(LIGHT, gate_sigmoid=True, between=0),
    replace(LIGHT, size=(21, 19), shift=(4, 4), batch=2),  # padding on both sides, in every roll
    replace(LIGHT, size=(32, 72)),  # more windows than one group has
    Case((16, 16), 2, 32, 16, (33, 16)),  # a window of one row of pixels
    Case((16, 16), 1, 30, 34, (5, 3)),  # smaller than a window: reflected more than once
    Case((8, 8), 1, 16, 16, (1, 1), shift=(3, 5)),
    Case((5, 7), 2, 13, 3, (11, 9), shift=(2, 3), batch=2, gate_sigmoid=True),  # an odd number of tokens, odd widths
    Case((3, 3), 1, 2, 7, (4, 6)),
    Case((2, 2), 1, 1, 1, (5, 5)),
    Case((2, 128), 1, 64, 64, (4, 200), shift=(1, 64)),
    Case((10, 10), 1, 100, 70, (10, 30)),
    Case((24, 24), 1, 16, 24, (40, 24), shift=(-5, 30)),  # more tokens than a tile has, and no multiple of it
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_is_as_exact_as_pytorch(case: Case, isa: str) -> None:
    inputs = case.inputs()
    error = testing.relative_error(case.run(*inputs, isa=isa), case.expected(*inputs))
    assert error <= 4 * max(case.float32_error(*inputs), 2**-24)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_products_of_bfloat16(case: Case, isa: str) -> None:
    inputs = case.inputs()
    error = testing.relative_error(case.run(*inputs, isa=isa, bfloat16_products=True), case.expected(*inputs))
    assert error <= 0.015


@pytest.mark.parametrize("factor", [1e2, 3e3])
@pytest.mark.parametrize("bfloat16_products", [False, True])
def test_large_scores(factor: float, bfloat16_products: bool, isa: str) -> None:
    case = Case((24, 24), 1, 16, 24, (24, 24))
    inputs = case.inputs(factor)
    out = case.run(*inputs, isa=isa, bfloat16_products=bfloat16_products)
    assert out.isfinite().all()
    if not bfloat16_products:
        assert testing.relative_error(out, case.expected(*inputs)) <= 4 * case.float32_error(*inputs)


@pytest.mark.parametrize("part", ["q", "k", "v"])
@pytest.mark.parametrize("bfloat16_products", [False, True])
def test_nan_reaches_what_depends_on_it_and_nothing_else(part: str, bfloat16_products: bool, isa: str) -> None:
    case = Case((6, 6), 2, 16, 8, (16, 20), shift=(2, 3))
    qkv, *others = case.inputs()
    qkv[0, "qkv".index(part) * 32 + 20, 14, 18] = math.nan  # of the second head; reflected into the padding, too
    out = case.run(qkv, *others, isa=isa, bfloat16_products=bfloat16_products)
    expected = case.expected(qkv, *others).isnan()
    assert torch.equal(out.isnan(), expected)
    assert 0 < expected.sum() < expected.numel() / 4


@pytest.mark.parametrize("bfloat16_products", [False, True])
@pytest.mark.parametrize(
    "case",
    [
        Case((32, 32), 1, 16, 24, (32, 40), shift=(16, 16)),  # fewer windows than tasks: they are cut
        Case((8, 8), 3, 16, 16, (60, 44)),  # more: they are taken together
    ],
    ids=str,
)
def test_threads_change_no_bit(case: Case, bfloat16_products: bool, isa: str) -> None:
    def run(threads: int) -> Tensor:
        options = {"isa": isa, "bfloat16_products": bfloat16_products, "threads": threads}
        return testing.on_cpu(CYCLIC_WINDOW_ATTENTION, *case.inputs(), **options, **case.attributes())[0]

    alone = run(1)
    assert torch.equal(run(2), alone)
    assert torch.equal(run(7), alone)
