"""The form for training computes what the plain model does, forward and backward."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import ribsr
from ribsr import attention
from ribsr.configs import Config, ESCRIBConfig, SSTConfig
from ribsr.training import fast
from ribsr.training.fast import Depthwise, Pointwise

SST = SSTConfig("tiny", 12, (2, 2), (4, 8), (4, 6), 2, 1.5, "direct")
SHIFTED = SSTConfig("shifted", 12, (2, 2), (8, 8), (4, 3), 1, 1.5, "pixelshuffle", 8, scale=3)
ESC = ESCRIBConfig("tiny-esc", 16, (2,), (8,), (4,), 1, 1.25, pdim=4, kernel_size=3, conv_blocks=2)


def assert_same(plain: torch.nn.Module, other: torch.nn.Module, x: torch.Tensor) -> None:
    """Outputs and all gradients."""
    wanted, got = plain(x), other(x)
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-5)
    for y in (wanted, got):
        (y * torch.linspace(-1, 1, y.shape[-1])).sum().backward()
    gradients = {name: p.grad for name, p in other.named_parameters()}
    assert list(gradients) == [name for name, _ in plain.named_parameters()]
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(
            gradients[name], parameter.grad, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def eager(module: torch.nn.Module, **options: Any) -> None:
    """In place of a compilation: traced as for one, but run by PyTorch; a part that cannot be traced is an error."""
    module._compiled_call_impl = torch.compile(module._call_impl, backend="aot_eager", fullgraph=True, **options)


@pytest.mark.parametrize("config", [SST, SHIFTED, ESC], ids=lambda config: config.name)
@pytest.mark.parametrize("compiled", [False, True])
def test_prepared_models_compute_the_same(config: Config, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    monkeypatch.setattr(torch.nn.Module, "compile", eager)
    plain = ribsr.build(config)
    prepared = fast.prepare(copy.deepcopy(plain), torch.device("cpu"), half=False, compiled=compiled)
    assert any(isinstance(module, Pointwise) for module in prepared.modules())
    assert any(isinstance(module, Depthwise) for module in prepared.modules())
    assert_same(plain, prepared, torch.rand(2, 3, 16, 8))


@pytest.mark.parametrize("shift", [(0, 0), (2, 3)])
@pytest.mark.parametrize("size", [(16, 8), (13, 5)])
def test_cudnn_lays_tokens_out_as_the_reference_does(
    shift: tuple[int, int], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the backend but its kernel, which sees padded widths: D = 10 and R = 4 here."""

    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        assert (q.shape[-1], k.shape[-1], v.shape[-1]) == (16, 16, 16)
        assert q.transpose(1, 2).is_contiguous()
        return F.scaled_dot_product_attention(q, k, v, scale=scale)

    monkeypatch.setattr(attention, "_cudnn_kernel", kernel)
    torch.manual_seed(0)
    shapes = [(2, 3 * 30, *size), (3, 32, 4), (3, 32, 4), (2, 30, *size)]
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    others = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    geometry = attention.Geometry((8, 4), 3, shift, 0.3)
    wanted = attention.reference(*tensors, geometry=geometry)
    got = attention.cudnn(*others, geometry=geometry)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    for y in (wanted, got):
        y.square().sum().backward()
    for a, b in zip(others, tensors, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize(("heads", "d", "rank"), [(3, 16, 16), (3, 16, 24), (6, 30, 34), (6, 32, 32)])
def test_cudnn_forward_and_backward_on_a_gpu(heads: int, d: int, rank: int) -> None:
    torch.manual_seed(0)
    shapes = [(2, 3 * heads * d, 32, 48), (heads, 256, rank), (heads, 256, rank), (2, heads * d, 32, 48)]
    tensors = [torch.randn(shape, device="cuda") for shape in shapes]
    geometry = attention.Geometry((16, 16), heads, (0, 0), d**-0.5)
    results = []
    for backend, dtype in ((attention.reference, torch.float32), (attention.cudnn, torch.bfloat16)):
        inputs = [t.to(torch.bfloat16).to(dtype).requires_grad_() for t in tensors]
        y = backend(*inputs, geometry=geometry)
        y.float().sin().sum().backward()
        results.append([y, *(t.grad for t in inputs)])
    for wanted, got in zip(*results, strict=True):
        error = (got.float() - wanted.float()).norm() / wanted.float().norm()
        assert error < 0.02


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_compiled_model_trains_on_a_gpu() -> None:
    torch.manual_seed(0)
    plain = ribsr.build(SSTConfig("small", 48, (3, 3), (8, 16), (16, 24), 1, 1.5, "direct")).cuda()
    prepared = fast.prepare(copy.deepcopy(plain), torch.device("cuda"), half=True, compiled=True)
    x, target = torch.rand(2, 3, 32, 32, device="cuda"), torch.rand(2, 3, 64, 64, device="cuda")
    F.mse_loss(plain(x), target).backward()
    with torch.autocast("cuda", torch.bfloat16):
        F.mse_loss(prepared(x), target).backward()
    for (name, a), b in zip(plain.named_parameters(), prepared.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert (a.grad - b.grad).norm() < 0.1 * a.grad.norm() + 1e-6, name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_replayed_steps_are_those_of_the_function() -> None:
    """Before, while and after it is recorded, on new inputs each time."""
    total = torch.zeros(4, device="cuda")

    def work(x: torch.Tensor, y: torch.Tensor) -> None:
        total.add_(x * y)

    step, wanted = fast.Replayed(work), torch.zeros(4)
    for i in range(8):
        x, y = torch.full((4,), float(i + 1)), torch.arange(4.0)
        wanted += x * y
        step(x.cuda(), y.cuda())
        assert torch.equal(total.cpu(), wanted), i
