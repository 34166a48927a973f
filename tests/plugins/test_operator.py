"""The PyTorch operator where there is no GPU: the reference as CPU path, the fake, the backend, the checks."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch  # noqa: E402

from plugins import pytorch as operator  # noqa: E402
from ribsr import attention  # noqa: E402


def inputs(layout: torch.memory_format) -> list[torch.Tensor]:
    qkv = torch.randn(2, 48, 9, 11).to(memory_format=layout)
    gate = torch.rand(2, 16, 9, 11).to(memory_format=layout)
    return [qkv, torch.randn(2, 16, 8), torch.randn(2, 16, 8), gate]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_backend_on_cpu_is_the_reference_in_the_inputs_layout(layout: torch.memory_format) -> None:
    arguments = {"window": (4, 4), "heads": 2, "shift": (2, 1), "scale": 0.3}
    x = inputs(layout)
    out = operator.kernel(*x, **arguments)
    assert torch.equal(out, attention.reference(*x, **arguments))
    assert out.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_fake_agrees_with_the_operator(layout: torch.memory_format) -> None:
    arguments = (*inputs(layout), [4, 4], 2, [2, 1], 0.3)
    torch.library.opcheck(
        torch.ops.ribsr.cyclic_window_attention, arguments, test_utils=("test_schema", "test_faketensor")
    )


def test_shapes_that_do_not_fit_are_refused() -> None:
    qkv, rib_q, rib_k, gate = inputs(torch.contiguous_format)
    with pytest.raises(ValueError, match="with 5 heads"):
        operator.cyclic_window_attention(qkv, rib_q, rib_k, gate, [4, 4], 5, [0, 0], 0.3)
    with pytest.raises(ValueError, match=r"gate is \[2, 16, 9, 10\]"):
        operator.cyclic_window_attention(qkv, rib_q, rib_k, gate[..., :10], [4, 4], 2, [0, 0], 0.3)
    with pytest.raises(ValueError, match=r"expected \[2, 15, R\]"):
        operator.cyclic_window_attention(qkv, rib_q, rib_k, gate, [5, 3], 2, [0, 0], 0.3)
