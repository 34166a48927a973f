"""The reference against the definition written out naively in float64, and every backend against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ribsr
from ribsr import attention
from ribsr.attention import CyclicWindowAttention, Geometry, choose_backend, reference, register_attention, sdpa


def naive(qkv, rib_q, rib_k, gate, geometry):
    """The definition, token by token: numpy's own reflect padding and roll, no chunks, no shared index formula."""
    b, c3, h, w = qkv.shape
    (wh, ww), heads, shift, scale = geometry
    d = c3 // 3 // heads
    pads = ((0, -h % wh), (0, -w % ww))
    x = np.pad(qkv.numpy(), ((0, 0), (0, 0), *pads), mode="reflect" if min(h, w) > 1 else "edge")
    x = np.roll(x, (-shift[0], -shift[1]), (2, 3))
    out = np.zeros((b, c3 // 3, *x.shape[2:]))
    for i in range(0, x.shape[2], wh):
        for j in range(0, x.shape[3], ww):
            tokens = x[:, :, i : i + wh, j : j + ww].reshape(b, 3, heads, d, wh * ww)
            q, k, v = tokens[:, 0], tokens[:, 1], tokens[:, 2]
            logits = scale * (q.swapaxes(-1, -2) @ k + (rib_q @ rib_k.mT).numpy())
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            out[:, :, i : i + wh, j : j + ww] = (v @ weights.swapaxes(-1, -2)).reshape(b, -1, wh, ww)
    out = np.roll(out, shift, (2, 3))[:, :, :h, :w]
    return torch.from_numpy(out) * gate


@st.composite
def cases(draw, smallest: int = 1):
    window = (draw(st.integers(2, 9)), draw(st.integers(2, 9)))
    shift = tuple(draw(st.integers(0, side - 1)) for side in window)
    heads, d, r = draw(st.integers(1, 3)), draw(st.sampled_from([4, 10, 16])), draw(st.sampled_from([1, 8, 18]))
    b, h, w = draw(st.integers(1, 2)), draw(st.integers(smallest, 20)), draw(st.integers(smallest, 20))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n, c = window[0] * window[1], heads * d
    shapes = [(b, 3 * c, h, w), (heads, n, r), (heads, n, r), (b, c, h, w)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return tensors, Geometry(window, heads, shift, draw(st.sampled_from([d**-0.5, 0.3])))


@given(cases(smallest=9))
@settings(max_examples=40, deadline=None)
def test_reference_is_the_definition(case):
    tensors, geometry = case
    torch.testing.assert_close(
        reference(*tensors, geometry=geometry), naive(*tensors, geometry=geometry), rtol=0, atol=1e-12
    )


@given(cases())
@settings(max_examples=40, deadline=None)
def test_sdpa_equals_the_reference_at_any_size(case):
    tensors, geometry = case
    expected = reference(*tensors, geometry=geometry)
    torch.testing.assert_close(
        sdpa(*(t.float() for t in tensors), geometry=geometry).double(), expected, rtol=0, atol=2e-5
    )


def test_reference_does_not_depend_on_its_chunks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    qkv, rib_q, rib_k, gate = (
        torch.randn(shape, generator=generator) for shape in [(2, 48, 20, 13), (2, 64, 8), (2, 64, 8), (2, 16, 20, 13)]
    )
    geometry = Geometry((8, 8), 2, (4, 4), 0.5)
    whole = reference(qkv, rib_q, rib_k, gate, geometry)
    monkeypatch.setattr(attention, "MAX_SCORES", 2 * 64 * 10)  # ten queries of one window at a time
    torch.testing.assert_close(reference(qkv, rib_q, rib_k, gate, geometry), whole, rtol=0, atol=1e-6)


def test_reflection_goes_back_and_forth_as_often_as_needed():
    for size in range(1, 7):
        period = list(range(size)) + list(range(size - 2, 0, -1)) or [0]
        expected = [period[i % len(period)] for i in range(24)]
        assert attention.source_indices(size, 24, 0).tolist() == expected


def test_large_logits_do_not_overflow_in_half_precision():
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(1, 48, 8, 8, generator=generator) * 100
    rib = torch.zeros(1, 64, 8)
    gate = torch.ones(1, 16, 8, 8)
    geometry = Geometry((8, 8), 1, (0, 0), 1.0)  # scores of ±1e5, beyond float16
    expected = reference(*(t.half().double() for t in (qkv, rib, rib, gate)), geometry=geometry)
    half = reference(*(t.half() for t in (qkv, rib, rib, gate)), geometry=geometry)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), expected, rtol=1e-3, atol=1e-2)


def test_unknown_and_missing_backends_say_what_to_choose(monkeypatch):
    model = ribsr.build(ribsr.config("sst-light"))
    with pytest.raises(ValueError, match="choose one of auto, reference, sdpa, cudnn, flash"):
        ribsr.set_attention(model, "cutlass")
    monkeypatch.setattr(attention, "_flash_installed", lambda: False)
    with pytest.raises(ValueError, match="flash-attn, which is not installed"):
        ribsr.set_attention(model, "flash")


def test_a_registered_backend_is_used_and_not_replaced(monkeypatch):
    monkeypatch.setattr(attention, "_BACKENDS", dict(attention._BACKENDS))
    seen = []

    def spy(qkv, rib_q, rib_k, gate, geometry):
        seen.append(geometry)
        return gate

    register_attention("spy", spy)
    model = ribsr.build(ribsr.config("sst-light")).eval()
    ribsr.set_attention(model, "spy")
    with torch.inference_mode():
        model(torch.rand(1, 3, 9, 9))
    assert [geometry.window[0] for geometry in seen] == [8, 16, 32, 16, 32, 64] * 5
    with pytest.raises(ValueError, match="already registered"):
        register_attention("spy", sdpa)


def test_automatic_choice(monkeypatch):
    monkeypatch.setattr(attention, "_BACKENDS", {"reference": reference, "sdpa": sdpa})
    monkeypatch.setattr(attention, "_flash_installed", lambda: False)
    cuda = torch.device("cuda")
    assert choose_backend(torch.device("cpu"), torch.float64) == "reference"
    assert choose_backend(torch.device("cpu"), torch.float32) == "sdpa"
    assert choose_backend(cuda, torch.float16) == "sdpa"
    monkeypatch.setattr(attention, "_flash_installed", lambda: True)
    assert choose_backend(cuda, torch.bfloat16) == "flash"
    assert choose_backend(cuda, torch.float32) == "sdpa"
    monkeypatch.setitem(attention._BACKENDS, "kernel", sdpa)
    assert choose_backend(cuda, torch.bfloat16) == "flash", "a registered backend is taken by name only"


def test_core_layer_passes_its_geometry_on():
    core = CyclicWindowAttention(Geometry((4, 6), 2, (1, 2), 0.7))
    core.backend = "reference"
    generator = torch.Generator().manual_seed(2)
    shapes = [(1, 24, 7, 7), (2, 24, 3), (2, 24, 3), (1, 8, 7, 7)]
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    expected = reference(*tensors, geometry=core.geometry)
    torch.testing.assert_close(core(*tensors), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1.5e-2)]
)
@pytest.mark.parametrize(("d", "rank"), [(16, 24), (30, 34), (32, 32), (10, 6)])
def test_sdpa_on_a_gpu_equals_the_reference(dtype, tolerance, d, rank):
    generator = torch.Generator().manual_seed(d)
    shapes = [(2, 9 * d, 37, 50), (3, 256, rank), (3, 256, rank), (2, 3 * d, 37, 50)]
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    geometry = Geometry((16, 16), 3, (8, 0), d**-0.5)
    expected = reference(*(t.double() for t in tensors), geometry=geometry)
    y = sdpa(*(t.cuda() for t in tensors), geometry=geometry).double().cpu()
    assert float((y - expected).norm() / expected.norm()) <= tolerance
