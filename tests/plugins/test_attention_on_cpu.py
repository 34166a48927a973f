"""The PyTorch operator where there is no GPU: the reference as CPU path, the fake, the backend, the checks."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch  # noqa: E402

from plugins.pytorch import kernel  # noqa: E402
from ribsr.attention import Geometry, reference  # noqa: E402

operator = torch.ops.ribsr.cyclic_window_attention


def inputs(layout: torch.memory_format) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    qkv = torch.randn(2, 48, 9, 11).to(memory_format=layout)
    gate = torch.rand(2, 16, 9, 11).to(memory_format=layout)
    return qkv, torch.randn(2, 16, 8), torch.randn(2, 16, 8), gate


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_backend_on_cpu_is_the_reference_in_the_inputs_layout(layout: torch.memory_format) -> None:
    geometry = Geometry((4, 4), heads=2, shift=(2, 1), scale=0.3)
    x = inputs(layout)
    out = kernel(*x, geometry)
    assert torch.equal(out, reference(*x, geometry))
    assert out.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_fake_agrees_with_the_operator(layout: torch.memory_format) -> None:
    arguments = (*inputs(layout), [4, 4], 2, [2, 1], 0.3)
    torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


def test_shapes_that_do_not_fit_are_refused() -> None:
    qkv, rib_q, rib_k, gate = inputs(torch.contiguous_format)
    with pytest.raises(ValueError, match=r"qkv is \[2, 48, 9, 11\], expected .* with heads = 5"):
        operator(qkv, rib_q, rib_k, gate, [4, 4], 5, [0, 0], 0.3)
    with pytest.raises(
        ValueError, match=r"gate is \[2, 16, 9, 10\], expected .*head_width = 8, height = 9, width = 11"
    ):
        operator(qkv, rib_q, rib_k, gate[..., :10], [4, 4], 2, [0, 0], 0.3)
    with pytest.raises(
        ValueError, match=r"rib_q is \[2, 16, 8\], expected .*heads = 2, window_height = 5, window_width = 3"
    ):
        operator(qkv, rib_q, rib_k, gate, [5, 3], 2, [0, 0], 0.3)
    with pytest.raises(ValueError, match=r"rib_k is \[2, 16, 7\], expected .*rank = 8"):
        operator(qkv, rib_q, rib_k[..., :7], gate, [4, 4], 2, [0, 0], 0.3)
