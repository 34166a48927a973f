"""The PyTorch operator ribsr::cyclic_window_attention on the CUDA kernels; importing this registers it.

It also registers attention="kernel" with ribsr. Import it as `plugins.torch`, with the repository's root on the path.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from plugins import library
from ribsr import attention

DTYPES = {torch.float16: library.FLOAT16, torch.bfloat16: library.BFLOAT16}


def _map(x: Tensor) -> library.Map:
    return library.Map(x.data_ptr(), *x.stride())


def _check_shapes(qkv: Tensor, rib_q: Tensor, rib_k: Tensor, gate: Tensor, window: list[int], heads: int) -> None:
    if qkv.ndim != 4 or heads < 1 or qkv.shape[1] % (3 * heads):
        raise ValueError(f"qkv is {list(qkv.shape)}: expected [B, 3·heads·D, H, W] with {heads} heads")
    b, c, h, w = qkv.shape
    if list(gate.shape) != [b, c // 3, h, w]:
        raise ValueError(f"gate is {list(gate.shape)}: expected {[b, c // 3, h, w]}")
    tokens = window[0] * window[1]
    if rib_q.ndim != 3 or list(rib_q.shape[:2]) != [heads, tokens] or rib_k.shape != rib_q.shape:
        raise ValueError(
            f"RIB factors are {list(rib_q.shape)} and {list(rib_k.shape)}: expected [{heads}, {tokens}, R]"
        )


def _empty_output(qkv: Tensor, gate: Tensor) -> Tensor:
    channels_last = qkv.stride(1) == 1 and qkv.shape[1] > 1
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(gate.shape, dtype=qkv.dtype, device=qkv.device, memory_format=layout)


def parameters(
    out: Tensor,
    qkv: Tensor,
    rib_q: Tensor,
    rib_k: Tensor,
    gate: Tensor,
    window: list[int],
    heads: int,
    shift: list[int],
    scale: float,
    path: str = "auto",
) -> library.Params:
    """The C interface's parameters for these CUDA tensors of one 16-bit dtype; they must outlive the call."""
    b, channels, h, w = qkv.shape
    return library.Params(
        dtype=DTYPES[qkv.dtype],
        path=library.PATHS[path],
        batch=b,
        height=h,
        width=w,
        heads=heads,
        head_width=channels // (3 * heads),
        rank=rib_q.shape[2],
        window_height=window[0],
        window_width=window[1],
        shift_y=shift[0],
        shift_x=shift[1],
        scale=scale,
        qkv=_map(qkv),
        gate=_map(gate),
        out=_map(out),
        rib_q=ctypes.c_void_p(rib_q.data_ptr()),
        rib_k=ctypes.c_void_p(rib_k.data_ptr()),
    )


@torch.library.custom_op("ribsr::cyclic_window_attention", mutates_args=(), device_types="cuda")
def cyclic_window_attention(
    qkv: Tensor,
    rib_q: Tensor,
    rib_k: Tensor,
    gate: Tensor,
    window: list[int],
    heads: int,
    shift: list[int],
    scale: float,
) -> Tensor:
    """`ribsr.attention.reference` on the GPU, in float16 or bfloat16, for maps of any strides.

    Channels-last maps with D a multiple of 8 are fast, others only correct. Raises TypeError for other dtypes,
    ValueError for shapes that do not fit, LibraryError if the library is missing or refuses.
    """
    _check_shapes(qkv, rib_q, rib_k, gate, window, heads)
    if qkv.dtype not in DTYPES or any(x.dtype != qkv.dtype for x in (rib_q, rib_k, gate)):
        dtypes = ", ".join(str(x.dtype) for x in (qkv, rib_q, rib_k, gate))
        raise TypeError(f"the CUDA kernel takes one of float16 and bfloat16 for all inputs, not {dtypes}")
    out = _empty_output(qkv, gate)
    rib_q, rib_k = rib_q.contiguous(), rib_k.contiguous()
    with torch.cuda.device(qkv.device):
        params = parameters(out, qkv, rib_q, rib_k, gate, window, heads, shift, scale)
        library.call(params, torch.cuda.current_stream().cuda_stream)
    return out


@cyclic_window_attention.register_kernel("cpu")
def _on_cpu(
    qkv: Tensor,
    rib_q: Tensor,
    rib_k: Tensor,
    gate: Tensor,
    window: list[int],
    heads: int,
    shift: list[int],
    scale: float,
) -> Tensor:
    _check_shapes(qkv, rib_q, rib_k, gate, window, heads)
    out = _empty_output(qkv, gate)
    return out.copy_(
        attention.reference(
            qkv, rib_q, rib_k, gate, window=(window[0], window[1]), heads=heads, shift=(shift[0], shift[1]), scale=scale
        )
    )


@cyclic_window_attention.register_fake
def _fake(
    qkv: Tensor,
    rib_q: Tensor,
    rib_k: Tensor,
    gate: Tensor,
    window: list[int],
    heads: int,
    shift: list[int],
    scale: float,
) -> Tensor:
    _check_shapes(qkv, rib_q, rib_k, gate, window, heads)
    return _empty_output(qkv, gate)


def kernel(
    qkv: Tensor,
    rib_q: Tensor,
    rib_k: Tensor,
    gate: Tensor,
    *,
    window: tuple[int, int],
    heads: int,
    shift: tuple[int, int],
    scale: float,
) -> Tensor:
    """The operator as a ribsr attention backend; RIB factors are brought to qkv's dtype."""
    rib_q, rib_k = rib_q.to(qkv.dtype), rib_k.to(qkv.dtype)
    return cyclic_window_attention(qkv, rib_q, rib_k, gate, list(window), heads, list(shift), scale)


attention.register_attention("kernel", kernel)
