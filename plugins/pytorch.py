"""PyTorch operators on the CUDA kernels; importing this registers them.

ribsr::cyclic_window_attention, ribsr::channel_layer_norm, ribsr::depthwise_conv3x3, ribsr::feed_forward and
ribsr::attention_inputs. It also registers attention="kernel" with ribsr. Import it as `plugins.torch`, with the
repository's root on the path.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

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


def _check_dtypes(*inputs: Tensor) -> None:
    if inputs[0].dtype not in DTYPES or any(x.dtype != inputs[0].dtype for x in inputs):
        dtypes = ", ".join(str(x.dtype) for x in inputs)
        raise TypeError(f"the CUDA kernel takes one of float16 and bfloat16 for all inputs, not {dtypes}")


def _empty_output(like: Tensor, shape: torch.Size) -> Tensor:
    channels_last = like.stride(1) == 1 and like.shape[1] > 1
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def _call(params: library.Params, device: torch.device) -> None:
    with torch.cuda.device(device):
        library.call(params, torch.cuda.current_stream().cuda_stream)


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
    gate_sigmoid: bool = False,
) -> library.AttentionParams:
    """The C interface's parameters for these CUDA tensors of one 16-bit dtype; they must outlive the call.

    gate_sigmoid: the gate is sigmoid(gate), as in the TensorRT plugin.
    """
    b, channels, h, w = qkv.shape
    return library.AttentionParams(
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
        gate_sigmoid=int(gate_sigmoid),
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
    _check_dtypes(qkv, rib_q, rib_k, gate)
    out = _empty_output(qkv, gate.shape)
    rib_q, rib_k = rib_q.contiguous(), rib_k.contiguous()
    _call(parameters(out, qkv, rib_q, rib_k, gate, window, heads, shift, scale), qkv.device)
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
    out = _empty_output(qkv, gate.shape)
    return out.copy_(
        attention.reference(
            qkv, rib_q, rib_k, gate, attention.Geometry((window[0], window[1]), heads, (shift[0], shift[1]), scale)
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
    return _empty_output(qkv, gate.shape)


def kernel(qkv: Tensor, rib_q: Tensor, rib_k: Tensor, gate: Tensor, geometry: attention.Geometry) -> Tensor:
    """The operator as a ribsr attention backend; RIB factors are brought to qkv's dtype."""
    window, heads, shift, scale = geometry
    rib_q, rib_k = rib_q.to(qkv.dtype), rib_k.to(qkv.dtype)
    return cyclic_window_attention(qkv, rib_q, rib_k, gate, list(window), heads, list(shift), scale)


attention.register_attention("kernel", kernel)


def layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Layer normalisation over the channels of every pixel: x [B, C, H, W], weight and bias [C]."""
    return functional.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, epsilon).permute(0, 3, 1, 2)


def layer_norm_parameters(
    out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float
) -> library.LayerNormParams:
    """The C interface's parameters for these CUDA tensors of one 16-bit dtype; they must outlive the call."""
    return library.LayerNormParams(
        **_described(x),
        epsilon=epsilon,
        input=_map(x),
        out=_map(out),
        weight=weight.data_ptr(),
        bias=bias.data_ptr(),
    )


def _check_channels(x: Tensor, weight: Tensor, bias: Tensor, weight_shape: list[int]) -> None:
    if x.ndim != 4 or list(weight.shape) != weight_shape or list(bias.shape) != list(x.shape[1:2]):
        raise ValueError(
            f"x, weight and bias are {list(x.shape)}, {list(weight.shape)}, {list(bias.shape)}: "
            f"expected [B, C, H, W], {['C', *weight_shape[1:]]} and [C]".replace("'", "")
        )


@torch.library.custom_op("ribsr::channel_layer_norm", mutates_args=(), device_types="cuda")
def channel_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """`layer_norm_reference` on the GPU, in float16 or bfloat16, statistics in float32, for maps of any strides.

    Channels-last maps whose pixels are a multiple of 8 channels apart are fast. Raises TypeError for other dtypes,
    ValueError for shapes that do not fit, LibraryError if the library is missing or refuses.
    """
    _check_channels(x, weight, bias, list(x.shape[1:2]))
    _check_dtypes(x, weight, bias)
    out = _empty_output(x, x.shape)
    weight, bias = weight.contiguous(), bias.contiguous()
    _call(layer_norm_parameters(out, x, weight, bias, epsilon), x.device)
    return out


@channel_layer_norm.register_kernel("cpu")
def _layer_norm_on_cpu(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    _check_channels(x, weight, bias, list(x.shape[1:2]))
    return _empty_output(x, x.shape).copy_(layer_norm_reference(x, weight, bias, epsilon))


@channel_layer_norm.register_fake
def _layer_norm_fake(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    _check_channels(x, weight, bias, list(x.shape[1:2]))
    return _empty_output(x, x.shape)


def depthwise_reference(x: Tensor, weight: Tensor, bias: Tensor, add_gelu: bool, input_gelu: bool = False) -> Tensor:
    """Depthwise convolution of x [B, C, H, W] by weight [C, 1, 3, 3], padded by one zero; x + gelu of it if add_gelu.

    input_gelu: all of that for gelu(x) in place of x.
    """
    x = functional.gelu(x) if input_gelu else x
    y = functional.conv2d(x, weight, bias, padding=1, groups=x.shape[1])
    return x + functional.gelu(y) if add_gelu else y


def depthwise_parameters(
    out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, add_gelu: bool, input_gelu: bool = False
) -> library.DepthwiseParams:
    """The C interface's parameters for these CUDA tensors of one 16-bit dtype; they must outlive the call."""
    return library.DepthwiseParams(
        **_described(x),
        input_gelu=int(input_gelu),
        epilogue=library.ADD_GELU if add_gelu else 0,
        input=_map(x),
        out=_map(out),
        weight=weight.data_ptr(),
        bias=bias.data_ptr(),
    )


@torch.library.custom_op("ribsr::depthwise_conv3x3", mutates_args=(), device_types="cuda")
def depthwise_conv3x3(x: Tensor, weight: Tensor, bias: Tensor, add_gelu: bool, input_gelu: bool = False) -> Tensor:
    """`depthwise_reference` on the GPU, in float16 or bfloat16, sums in float32, for maps of any strides.

    Fast and raising as `channel_layer_norm`.
    """
    _check_channels(x, weight, bias, [x.shape[1], 1, 3, 3])
    _check_dtypes(x, weight, bias)
    out = _empty_output(x, x.shape)
    weight, bias = weight.contiguous(), bias.contiguous()
    _call(depthwise_parameters(out, x, weight, bias, add_gelu, input_gelu), x.device)
    return out


@depthwise_conv3x3.register_kernel("cpu")
def _depthwise_on_cpu(x: Tensor, weight: Tensor, bias: Tensor, add_gelu: bool, input_gelu: bool = False) -> Tensor:
    _check_channels(x, weight, bias, [x.shape[1], 1, 3, 3])
    return _empty_output(x, x.shape).copy_(depthwise_reference(x, weight, bias, add_gelu, input_gelu))


@depthwise_conv3x3.register_fake
def _depthwise_fake(x: Tensor, weight: Tensor, bias: Tensor, add_gelu: bool, input_gelu: bool = False) -> Tensor:
    _check_channels(x, weight, bias, [x.shape[1], 1, 3, 3])
    return _empty_output(x, x.shape)


def feed_forward_reference(x: Tensor, weights: Sequence[Tensor], epsilon: float) -> Tensor:
    """x + contract(u + GELU(depthwise(u))) of u = GELU(expand(norm(x))), the second half of a layer.

    x [B, C, H, W]; weights as `library.FEED_FORWARD_WEIGHTS` names them: those of the convolutions are [E, C, 1, 1],
    [E, 1, 3, 3] and [C, E, 1, 1], all others vectors.
    """
    norm, norm_bias, expand, expand_bias, depthwise, depthwise_bias, contract, contract_bias = weights
    y = functional.conv2d(layer_norm_reference(x, norm, norm_bias, epsilon), expand, expand_bias)
    y = depthwise_reference(y, depthwise, depthwise_bias, add_gelu=True, input_gelu=True)
    return x + functional.conv2d(y, contract, contract_bias)


def feed_forward_parameters(
    out: Tensor, x: Tensor, weights: Sequence[Tensor], epsilon: float, workspace: Tensor | None = None
) -> library.FeedForwardParams:
    """The C interface's parameters for these CUDA tensors of one 16-bit dtype; they must outlive the call.

    workspace: what `feed_forward_workspace` gives, which must outlive it as well.
    """
    return library.FeedForwardParams(
        **_described(x),
        hidden=weights[2].shape[0],
        epsilon=epsilon,
        input=_map(x),
        out=_map(out),
        **_pointers(library.FEED_FORWARD_WEIGHTS, weights),
        workspace=None if workspace is None else workspace.data_ptr(),
    )


def feed_forward_workspace(x: Tensor, weights: Sequence[Tensor]) -> Tensor | None:
    """Scratch memory for one call at a time on maps like x with weights like these; None where none is needed."""
    return _workspace(library.feed_forward_workspace(x.shape[1], weights[2].shape[0]), x.device)


def _workspace(size: int, device: torch.device) -> Tensor | None:
    return torch.empty(size, dtype=torch.uint8, device=device) if size else None


def _described(x: Tensor) -> dict[str, int]:
    """What the parameters of all but the attention say of a map."""
    b, c, h, w = x.shape
    return {"dtype": DTYPES[x.dtype], "batch": b, "channels": c, "height": h, "width": w}


def _pointers(names: Sequence[str], weights: Sequence[Tensor]) -> dict[str, int]:
    return {name: weight.data_ptr() for name, weight in zip(names, weights, strict=True)}


def _check_feed_forward(x: Tensor, weights: Sequence[Tensor]) -> None:
    c = x.shape[1] if x.ndim == 4 else 0
    hidden = weights[2].shape[0] if len(weights) > 2 and weights[2].ndim else 0
    expected = [[c], [c], [hidden, c, 1, 1], [hidden], [hidden, 1, 3, 3], [hidden], [c, hidden, 1, 1], [c]]
    _check_weights(x, weights, expected, "[[C], [C], [E, C, 1, 1], [E], [E, 1, 3, 3], [E], [C, E, 1, 1], [C]]")


def _check_weights(x: Tensor, weights: Sequence[Tensor], expected: list[list[int]], rule: str) -> None:
    found = [list(weight.shape) for weight in weights]
    if x.ndim != 4 or found != expected:
        raise ValueError(f"x is {list(x.shape)} and the weights are {found}: expected [B, C, H, W] and {rule}")


@torch.library.custom_op("ribsr::feed_forward", mutates_args=(), device_types="cuda")
def feed_forward(x: Tensor, weights: list[Tensor], epsilon: float) -> Tensor:
    """`feed_forward_reference` on the GPU, in float16 or bfloat16, for channels-last maps.

    C and E are such that `library.fits_feed_forward`. Raises TypeError for other dtypes, ValueError for shapes that do
    not fit, LibraryError for other widths and layouts, or if the library is missing.
    """
    _check_feed_forward(x, weights)
    _check_dtypes(x, *weights)
    out = _empty_output(x, x.shape)
    weights = [weight.contiguous() for weight in weights]
    workspace = feed_forward_workspace(x, weights)
    _call(feed_forward_parameters(out, x, weights, epsilon, workspace), x.device)
    return out


@feed_forward.register_kernel("cpu")
def _feed_forward_on_cpu(x: Tensor, weights: list[Tensor], epsilon: float) -> Tensor:
    _check_feed_forward(x, weights)
    return _empty_output(x, x.shape).copy_(feed_forward_reference(x, weights, epsilon))


@feed_forward.register_fake
def _feed_forward_fake(x: Tensor, weights: list[Tensor], epsilon: float) -> Tensor:
    _check_feed_forward(x, weights)
    return _empty_output(x, x.shape)


def attention_inputs_reference(x: Tensor, weights: Sequence[Tensor], epsilon: float) -> tuple[Tensor, Tensor]:
    """project(n) and mix(depthwise(n)) of n = norm(x): qkv and, before its sigmoid, the gate of a layer's attention.

    x [B, C, H, W]; weights as `library.ATTENTION_INPUTS_WEIGHTS` names them: those of the convolutions are
    [3C, C, 1, 1], [C, 1, 3, 3] and [C, C, 1, 1], all others vectors.
    """
    norm, norm_bias, project, project_bias, depthwise, depthwise_bias, mix, mix_bias = weights
    n = layer_norm_reference(x, norm, norm_bias, epsilon)
    gate = depthwise_reference(n, depthwise, depthwise_bias, add_gelu=False)
    return functional.conv2d(n, project, project_bias), functional.conv2d(gate, mix, mix_bias)


def attention_inputs_parameters(
    qkv: Tensor, gate: Tensor, x: Tensor, weights: Sequence[Tensor], epsilon: float, workspace: Tensor | None = None
) -> library.AttentionInputsParams:
    """The C interface's parameters for these CUDA tensors of one 16-bit dtype; they must outlive the call.

    workspace: what `attention_inputs_workspace` gives, which must outlive it as well.
    """
    return library.AttentionInputsParams(
        **_described(x),
        epsilon=epsilon,
        input=_map(x),
        qkv=_map(qkv),
        gate=_map(gate),
        **_pointers(library.ATTENTION_INPUTS_WEIGHTS, weights),
        workspace=None if workspace is None else workspace.data_ptr(),
    )


def attention_inputs_workspace(x: Tensor) -> Tensor | None:
    """Scratch memory for one call at a time on maps like x; None where none is needed."""
    return _workspace(library.attention_inputs_workspace(x.shape[1]), x.device)


def _check_attention_inputs(x: Tensor, weights: Sequence[Tensor]) -> None:
    c = x.shape[1] if x.ndim == 4 else 0
    expected = [[c], [c], [3 * c, c, 1, 1], [3 * c], [c, 1, 3, 3], [c], [c, c, 1, 1], [c]]
    _check_weights(x, weights, expected, "[[C], [C], [3C, C, 1, 1], [3C], [C, 1, 3, 3], [C], [C, C, 1, 1], [C]]")


def _empty_attention_inputs(x: Tensor) -> tuple[Tensor, Tensor]:
    b, c, h, w = x.shape
    return _empty_output(x, torch.Size((b, 3 * c, h, w))), _empty_output(x, x.shape)


@torch.library.custom_op("ribsr::attention_inputs", mutates_args=(), device_types="cuda")
def attention_inputs(x: Tensor, weights: list[Tensor], epsilon: float) -> tuple[Tensor, Tensor]:
    """`attention_inputs_reference` on the GPU, in float16 or bfloat16, for channels-last maps.

    C is such that `library.fits_attention_inputs`. Raises as `feed_forward`.
    """
    _check_attention_inputs(x, weights)
    _check_dtypes(x, *weights)
    qkv, gate = _empty_attention_inputs(x)
    weights = [weight.contiguous() for weight in weights]
    workspace = attention_inputs_workspace(x)
    _call(attention_inputs_parameters(qkv, gate, x, weights, epsilon, workspace), x.device)
    return qkv, gate


@attention_inputs.register_kernel("cpu")
def _attention_inputs_on_cpu(x: Tensor, weights: list[Tensor], epsilon: float) -> tuple[Tensor, Tensor]:
    _check_attention_inputs(x, weights)
    qkv, gate = _empty_attention_inputs(x)
    results = attention_inputs_reference(x, weights, epsilon)
    return qkv.copy_(results[0]), gate.copy_(results[1])


@attention_inputs.register_fake
def _attention_inputs_fake(x: Tensor, weights: list[Tensor], epsilon: float) -> tuple[Tensor, Tensor]:
    _check_attention_inputs(x, weights)
    return _empty_attention_inputs(x)
