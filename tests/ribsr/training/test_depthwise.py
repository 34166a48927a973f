"""The depthwise convolution for training against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ribsr.training.depthwise import ROWS, depthwise

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
    ),
]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("b", "h", "w", "c"),
    [(2, ROWS + 1, 7, 5), (1, 2 * ROWS, 70, 48), (1, 9, 18, 130), (3, 16, 20, 72), (1, 1, 1, 384), (2, 40, 1, 200)],
)
def test_values_and_gradients(b: int, h: int, w: int, c: int, device: str, dtype: torch.dtype) -> None:
    """Strips that end within the map, columns and channels that do not fill a tile, maps of one pixel."""
    torch.manual_seed(0)
    x, gradient = (torch.randn(b, h, w, c).to(dtype) for _ in range(2))
    weight, bias = torch.randn(c, 1, 3, 3), torch.randn(c)
    reference = [t.double().requires_grad_() for t in (x, weight, bias)]
    picture, filters, offset = reference
    y = F.conv2d(picture.permute(0, 3, 1, 2), filters, offset, padding=1, groups=c).permute(0, 2, 3, 1)
    y.backward(gradient.double())
    ours = [t.to(device).requires_grad_() for t in (x, weight, bias)]
    out = depthwise(*ours)
    out.backward(gradient.to(device))
    assert out.dtype == dtype
    for got, wanted in ((out, y), *((a.grad, b.grad) for a, b in zip(ours, reference, strict=True))):
        assert got is not None
        assert wanted is not None
        error = (got.cpu().double() - wanted).norm() / wanted.norm()
        assert error < TOLERANCE[dtype]


def test_what_a_compiler_is_told_holds() -> None:
    """Shapes, types and strides of both operators, for a map that is not contiguous, too."""
    x = torch.randn(2, 6, 5, 4).transpose(1, 2).requires_grad_()
    weight, bias = torch.randn(4, 1, 3, 3, requires_grad=True), torch.randn(4, requires_grad=True)
    torch.library.opcheck(depthwise, (x, weight, bias))
