"""All operators of the library for CPUs but the attention: against float64, for every instruction set of this CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

pytest.importorskip("torch")

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from plugins import library, operators  # noqa: E402
from plugins.operators import (  # noqa: E402
    ATTENTION_INPUTS,
    CHANNEL_LAYER_NORM,
    CONVOLUTION,
    DEPTHWISE_CONV3X3,
    FEED_FORWARD,
    Operator,
)
from plugins.pytorch import Call  # noqa: E402
from plugins.testing import exact, on_cpu, random_weights, relative_error  # noqa: E402


@dataclass(frozen=True)
class Case:
    """An operator on random inputs. between: channels of a map's pixels in memory that are not the operator's."""

    operator: Operator
    widths: dict[str, int]
    attributes: dict[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    size: tuple[int, int] = (7, 5)
    batch: int = 1
    between: int = 0

    def __str__(self) -> str:
        return "-".join([self.operator.short, *(str(value) for value in (self.widths | self.attributes).values())])

    def memory(self, shape: str) -> Tensor:
        """A map full of NaN that is a part of a larger one."""
        b, c, h, w = operators.sizes(shape, self.values)
        return torch.full((b, h + 3, w + 4, c + self.between), math.nan)[:, 1:-2, 2:-2, :c].permute(0, 3, 1, 2)

    @property
    def values(self) -> dict[str, int]:
        return {"batch": self.batch, "height": self.size[0], "width": self.size[1], **self.widths}

    def inputs(self) -> list[Tensor | None]:
        torch.manual_seed(0)
        weights = iter(random_weights(self.operator, torch.float32, "cpu", **self.values))
        inputs = []
        for name, shape in self.operator.tensors.items():
            if not operators.is_map(shape):
                inputs.append(next(weights))
            elif name in self.left_out:
                inputs.append(None)
            else:
                x = self.memory(shape)
                inputs.append(x.copy_(torch.randn(x.shape)))
        return inputs

    def run(self, inputs: list[Tensor | None], **how: Any) -> tuple[Tensor, ...]:
        """What the library makes of them, on maps as `memory` has them."""
        outputs = [self.memory(shape) for shape in self.operator.outputs.values()]
        Call(self.operator, inputs, outputs, executor=library.Executor.of(**how), **self.attributes)()
        for out in outputs:
            whole = _whole(out)
            assert (whole.numel() - whole.isnan().sum()) == (out.numel() - out.isnan().sum()), (
                "written around the result"
            )
        return tuple(outputs)

    def expected(self, inputs: list[Tensor | None], dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
        cast = [None if x is None else x.to(dtype) for x in inputs]
        out = self.operator.reference(*cast, **self.attributes)
        return out if isinstance(out, tuple) else (out,)


def _whole(x: Tensor) -> Tensor:
    """All the memory of which a map is a part."""
    return x.as_strided((x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)


def cases(*channels: int) -> list[Case]:
    norm = {"epsilon": 1e-6}
    found = []
    for c in channels:
        own = {"channels": c}
        found += [
            Case(CHANNEL_LAYER_NORM, own, norm),
            Case(DEPTHWISE_CONV3X3, own, {"add_gelu": False, "input_gelu": False}),
            Case(DEPTHWISE_CONV3X3, own, {"add_gelu": True, "input_gelu": True}),
            Case(FEED_FORWARD, own | {"hidden": 2 * c + c % 2}, norm),
            Case(ATTENTION_INPUTS, own, norm),
            Case(CONVOLUTION, own | {"outputs": 5 * c // 4, "kernel": 3}, {"negative_slope": 0.1}),
            Case(CONVOLUTION, own | {"outputs": 12, "kernel": 3}, {"negative_slope": 1.0}, left_out=("residual",)),
            Case(CONVOLUTION, own | {"outputs": 48, "kernel": 1}, {"negative_slope": 0.2}, left_out=("residual",)),
        ]
    return found


def products(*channels: int) -> list[Case]:
    return [case for case in cases(*channels) if case.operator in (FEED_FORWARD, ATTENTION_INPUTS, CONVOLUTION)]


def check(case: Case, isa: str) -> None:
    """Not more than a few times as far from float64 as PyTorch in float32."""
    inputs = case.inputs()
    expected, torchs = case.expected(inputs), case.expected(inputs, torch.float32)
    for out, wanted, peer in zip(case.run(inputs, isa=isa), expected, torchs, strict=True):
        assert relative_error(out, wanted) <= 4 * max(relative_error(peer, wanted), 1e-7)  # NaN fails too


@pytest.mark.parametrize("case", cases(3, 20, 48, 180, 192), ids=str)
def test_any_width(case: Case, isa: str) -> None:
    check(case, isa)


@pytest.mark.parametrize("size", [(1, 1), (1, 37), (23, 1), (2, 2), (35, 67)], ids=str)
@pytest.mark.parametrize("case", cases(20), ids=str)
def test_any_size(case: Case, size: tuple[int, int], isa: str) -> None:
    check(replace(case, size=size, batch=2, between=5), isa)


@pytest.mark.parametrize("case", cases(48), ids=str)
def test_a_map_wider_than_a_tile(case: Case, isa: str) -> None:
    check(replace(case, size=(3, 700)), isa)


@pytest.mark.parametrize("case", products(3, 48, 180), ids=str)
def test_products_of_bfloat16(case: Case, isa: str) -> None:
    inputs = case.inputs()
    for out, wanted in zip(case.run(inputs, isa=isa, bfloat16_products=True), case.expected(inputs), strict=True):
        assert 1e-4 < relative_error(out, wanted) < 8e-3


@pytest.mark.parametrize("case", [case for case in products(3, 20, 180) if case.operator is CONVOLUTION], ids=str)
def test_bfloat16_rounds_the_factors_alone(case: Case, isa: str) -> None:
    inputs = case.inputs()
    x, residual, weight, bias = inputs
    assert x is not None
    assert weight is not None
    rounded = [x.bfloat16().float(), residual, weight.bfloat16().float(), bias]
    (out,) = case.run(inputs, isa=isa, bfloat16_products=True)
    assert relative_error(out, case.expected(rounded)[0]) < 1e-6


ODD = [
    Case(FEED_FORWARD, {"channels": 20, "hidden": 25}, {"epsilon": 1e-6}),
    Case(FEED_FORWARD, {"channels": 180, "hidden": 225}, {"epsilon": 1e-6}),  # sst's
    Case(ATTENTION_INPUTS, {"channels": 15}, {"epsilon": 1e-6}),
    *(
        Case(CONVOLUTION, {"channels": 15, "outputs": 5, "kernel": kernel}, {"negative_slope": 0.1}, between=between)
        for kernel in (1, 3)
        for between in (0, 1)
    ),
]
"""Widths that are filled up in a thread's memory."""


@pytest.mark.parametrize("bfloat16_products", [False, True])
@pytest.mark.parametrize("case", ODD, ids=str)
def test_what_an_earlier_call_has_left_in_memory_does_not_count(case: Case, bfloat16_products: bool, isa: str) -> None:
    how: dict[str, Any] = {"isa": isa, "bfloat16_products": bfloat16_products}
    inputs = case.inputs()
    x = inputs[0]
    assert x is not None
    case.run([torch.full_like(x, math.nan), *inputs[1:]], **how)
    for out, wanted in zip(case.run(inputs, **how), case.expected(inputs), strict=True):
        assert relative_error(out, wanted) < (8e-3 if bfloat16_products else 1e-5)  # NaN fails too


@pytest.mark.parametrize("case", cases(20), ids=str)
def test_threads_change_nothing(case: Case, isa: str) -> None:
    inputs = replace(case, size=(43, 70), batch=2).inputs()
    alone, *others = (
        on_cpu(case.operator, *inputs, isa=isa, threads=threads, **case.attributes) for threads in (1, 2, 7, 64)
    )
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(alone, other, strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("case", cases(20), ids=str)
def test_nan_and_infinity_go_where_they_belong(case: Case, value: float, isa: str) -> None:
    case = replace(case, size=(9, 11), batch=2)
    inputs = case.inputs()
    x = inputs[0]
    assert x is not None
    x[1, 7, 4, 6] = value
    for out, wanted in zip(case.run(inputs, isa=isa), case.expected(inputs, torch.float32), strict=True):
        assert torch.equal(out.isnan(), wanted.isnan())
        assert torch.equal(out.isposinf(), wanted.isposinf())
        assert torch.equal(out.isneginf(), wanted.isneginf())


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_in_its_residuals_memory(kernel: int, isa: str) -> None:
    case = Case(CONVOLUTION, {"channels": 20, "outputs": 21, "kernel": kernel}, {"negative_slope": 0.1}, size=(21, 33))
    inputs = case.inputs()
    (expected,) = case.expected(inputs)
    out = inputs[1]
    assert out is not None
    Call(CONVOLUTION, inputs, [out], executor=library.Executor.of(isa, threads=3), **case.attributes)()
    assert relative_error(out, expected) < 1e-6


@pytest.mark.parametrize("operator", [CHANNEL_LAYER_NORM, DEPTHWISE_CONV3X3], ids=lambda operator: operator.short)
def test_lanes_up_to_the_next_multiple_of_8_are_zero(operator: Operator, isa: str) -> None:
    case = next(case for case in cases(20) if case.operator is operator)
    inputs = case.inputs()
    memory = torch.full((1, *case.size, 24), math.nan)
    out = memory[..., :20].permute(0, 3, 1, 2)
    Call(operator, inputs, [out], executor=library.Executor.of(isa), **case.attributes)()
    assert relative_error(out, case.expected(inputs)[0]) < 1e-6
    assert (memory[..., 20:] == 0).all()


def test_layer_norm_of_values_far_from_zero(isa: str) -> None:
    case = Case(CHANNEL_LAYER_NORM, {"channels": 45}, {"epsilon": 1e-6}, size=(9, 9))
    x, *weights = case.inputs()
    assert x is not None
    inputs = [x + 1000, *weights]
    (out,), (wanted,) = on_cpu(case.operator, *inputs, isa=isa, **case.attributes), case.expected(inputs)
    assert relative_error(out, wanted) < 4 * relative_error(case.expected(inputs, torch.float32)[0], wanted)


def test_gelu(isa: str) -> None:
    """Alone, as the input of a depthwise convolution that changes nothing: within two units in the last place."""
    x = torch.cat([torch.linspace(-9, 9, 20002), torch.tensor([-1e6, -40.0, 40.0, 1e6, 1e30, 1e-30])])
    x = x.reshape(1, 4, 1, -1)
    centre = torch.zeros(4, 1, 3, 3)
    centre[..., 1, 1] = 1
    inputs = (x, centre, torch.zeros(4))
    (out,) = on_cpu(DEPTHWISE_CONV3X3, *inputs, isa=isa, add_gelu=False, input_gelu=True)
    wanted = exact(DEPTHWISE_CONV3X3, *inputs, add_gelu=False, input_gelu=True)
    assert ((out - wanted).abs() <= 2 * 2**-23 * x.abs().clamp(min=1)).all()
