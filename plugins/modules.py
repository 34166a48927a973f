"""Models made of the PyTorch operators, for inference: `fuse` is all that callers need.

    model = plugins.modules.fuse(ribsr.load("x2.pt").half().cuda())
    y = model(x)  # [B, 3, H, W] → [B, 3, sH, sW]

Which pieces become which operator is as in the `plugin` form (plugins/fuse.py): what comes before an attention and a
feed-forward half are one operator each where their widths fit the GPU, else layer norm, 1x1 convolutions and depthwise
convolution apart. All maps are channels-last; sums are made by the convolution before them (`convolution`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plugins import library
from plugins.operators import ATTENTION_INPUTS, CONVOLUTION, CYCLIC_WINDOW_ATTENTION, FEED_FORWARD
from plugins.pytorch import DTYPES  # registers the operators, too
from ribsr import escrib, sst
from ribsr.attention import WindowAttention
from ribsr.layers import ConvFFN, LayerNorm, RIBModel, Upsampler

EPSILON = 1e-6
"""Of ribsr.layers.LayerNorm."""

ribsr_ops = torch.ops.ribsr


def fuse(model: RIBModel) -> RIBModel:
    """The network of a model, for inference, on the operators: half precision on a GPU, any precision on a CPU.

    A new model with weights of its own, of the device and the dtype that model's have; the RIB's factors are computed
    here, once, in float32. It takes [B, 3, H, W] of any floating dtype and layout, and gives its own dtype. Move model
    to its GPU before: which operators are taken depends on that. On a CPU they run their references, which are slow.

    Raises TypeError for another kind of model, and for float32 on a GPU; ValueError for heads or ranks that the
    attention does not take; LibraryError if the model is on a GPU and the kernels are missing or of another version.
    """
    kinds: dict[type, Any] = {sst.SST: _SST, escrib.ESCRIB: _ESCRIB}
    if type(model) not in kinds:
        raise TypeError(f"there are no fused layers for a model of the kind {type(model).__name__}")
    weight = next(model.parameters())
    if weight.is_cuda:
        if weight.dtype not in DTYPES:
            raise TypeError(f"the CUDA kernels compute in float16 and bfloat16, the model is in {weight.dtype}")
        library.load()
    with torch.no_grad():
        return kinds[type(model)](model).eval()


def convolution(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, slope: float = 1.0) -> Tensor:
    """leaky(convolution(x) + bias) + residual: dense, 1x1 or 3x3, padded to the same size, channels-last.

    weight: [outputs, k, k, channels]. slope: what multiplies negative sums, before residual is added.
    """
    outputs, side, _, channels = weight.shape
    if CONVOLUTION.fits(channels, outputs):
        return ribsr_ops.convolution(x, residual, weight, bias, slope)
    y = F.conv2d(x, weight.permute(0, 3, 1, 2), bias, padding=side // 2)
    if slope != 1:
        y = F.leaky_relu_(y, slope)
    return y if residual is None else y.add_(residual)


def _children(modules: Iterable[Any]) -> list[Any]:
    """What a container holds, whose types it does not know."""
    return list(modules)


def _frozen(*tensors: Tensor) -> nn.ParameterList:
    """Contiguous copies for inference, which go where the module goes."""
    copies = (x.detach().clone(memory_format=torch.contiguous_format) for x in tensors)
    return nn.ParameterList(nn.Parameter(x, requires_grad=False) for x in copies)


def _weights(*modules: Any) -> list[Tensor]:
    """Weight and bias of each."""
    return [parameter for module in modules for parameter in (module.weight, module.bias)]


class _Convolution(nn.Module):
    """`convolution` with its weights: (x, residual or None) → map.

    order: of the outputs, if not as they are. Channels are filled up with zeros to a multiple of `multiple`.
    """

    def __init__(self, conv: nn.Conv2d, slope: float = 1.0, order: Tensor | None = None, multiple: int = 1):
        super().__init__()
        weight, bias = _weights(conv) if order is None else (x[order] for x in _weights(conv))
        weight = F.pad(weight.permute(0, 2, 3, 1), (0, -weight.shape[1] % multiple))
        self.slope = slope
        self.weights = _frozen(weight, bias)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        weight, bias = self.weights
        return convolution(x, weight, bias, residual, self.slope)


class _Norm(nn.Module):
    """ChannelLayerNorm."""

    def __init__(self, norm: LayerNorm):
        super().__init__()
        self.weights = _frozen(*_weights(norm))

    def forward(self, x: Tensor) -> Tensor:
        return ribsr_ops.channel_layer_norm(x, *self.weights, EPSILON)


class _AttentionInputs(nn.Module):
    """AttentionInputs: x → qkv and, before its sigmoid, the gate."""

    def __init__(self, norm: LayerNorm, layer: WindowAttention):
        super().__init__()
        self.weights = _frozen(*_weights(norm, layer.to_qkv, layer.gate[0], layer.gate[1]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return ribsr_ops.attention_inputs(x, list(self.weights), EPSILON)


class _AttentionInputsApart(nn.Module):
    """The same of smaller operators, for widths that AttentionInputs does not take."""

    def __init__(self, norm: LayerNorm, layer: WindowAttention):
        super().__init__()
        self.norm = _Norm(norm)
        self.project = _Convolution(layer.to_qkv)
        self.depthwise = _frozen(*_weights(layer.gate[0]))
        self.mix = _Convolution(_children(layer.gate)[1])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        n = self.norm(x)
        return self.project(n), self.mix(ribsr_ops.depthwise_conv3x3(n, *self.depthwise, False, False))


class _Attention(nn.Module):
    """x + attention(norm(x)), the first half of a layer."""

    def __init__(self, norm: LayerNorm, layer: WindowAttention):
        super().__init__()
        weight = layer.to_qkv.weight
        self.geometry = layer.core.geometry
        head_width, rank = weight.shape[1] // self.geometry.heads, layer.to_q.shape[2]
        if not CYCLIC_WINDOW_ATTENTION.fits(head_width, rank):
            raise ValueError(f"the attention kernel does not take heads of {head_width} channels and rank {rank}")
        whole = ATTENTION_INPUTS.fits(weight.shape[1])
        self.inputs = (_AttentionInputs if whole else _AttentionInputsApart)(norm, layer)
        self.rib = _frozen(*(factor.to(weight.dtype) for factor in layer.rib()))
        self.to_out = _Convolution(layer.to_out)

    def forward(self, x: Tensor) -> Tensor:
        qkv, gate = self.inputs(x)
        return self.to_out(ribsr_ops.cyclic_window_attention(qkv, *self.rib, gate, *self.geometry, True), x)


class _ConvFFN(nn.Module):
    """ConvFFN of smaller operators: (x, residual or None) → map."""

    def __init__(self, ffn: ConvFFN):
        super().__init__()
        self.expand = _Convolution(ffn.proj)
        self.depthwise = _frozen(*_weights(ffn.dwc))
        self.contract = _Convolution(getattr(ffn, ffn.last))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        u = ribsr_ops.depthwise_conv3x3(self.expand(x), *self.depthwise, True, True)
        return self.contract(u, residual)


class _FeedForward(nn.Module):
    """FeedForward: x + ConvFFN(norm(x)), the second half of a layer."""

    def __init__(self, norm: LayerNorm, ffn: ConvFFN):
        super().__init__()
        self.weights = _frozen(*_weights(norm, ffn.proj, ffn.dwc, getattr(ffn, ffn.last)))

    def forward(self, x: Tensor) -> Tensor:
        return ribsr_ops.feed_forward(x, list(self.weights), EPSILON)


class _FeedForwardApart(nn.Module):
    """The same of smaller operators, for widths that FeedForward does not take."""

    def __init__(self, norm: LayerNorm, ffn: ConvFFN):
        super().__init__()
        self.norm, self.ffn = _Norm(norm), _ConvFFN(ffn)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.norm(x), x)


def _feed_forward(norm: LayerNorm, ffn: ConvFFN) -> nn.Module:
    hidden, channels = ffn.proj.weight.shape[:2]
    whole = FEED_FORWARD.fits(channels, hidden)
    return (_FeedForward if whole else _FeedForwardApart)(norm, ffn)


class _Upsampler(nn.Module):
    """`Upsampler`, whose last convolutions add the enlarged picture; (features, picture [B, 3, H, W]) → picture.

    Pixels are shuffled channels-last: the outputs of `up_conv` are in the order (row, column, channel).
    """

    def __init__(self, upsampler: Upsampler):
        super().__init__()
        self.scale, self.direct = upsampler.scale, upsampler.direct
        outputs = upsampler.up_conv.out_channels
        order = torch.arange(outputs).view(-1, self.scale**2).T.reshape(-1)
        self.up = _Convolution(upsampler.up_conv, order=order)
        if not self.direct:
            self.feature = _Convolution(upsampler.feature_conv, slope=0.1)
            self.final = _Convolution(upsampler.final_conv)

    def forward(self, features: Tensor, picture: Tensor) -> Tensor:
        b, c, h, w = picture.shape
        repeated = picture.permute(0, 2, 3, 1)[:, :, :, None].expand(b, h, w, self.scale**2, c)
        if self.direct:
            return _shuffle(self.up(features, repeated.reshape(b, h, w, -1).permute(0, 3, 1, 2)), self.scale)
        features = _shuffle(self.up(self.feature(features)), self.scale)
        return self.final(features, _shuffle(repeated.flatten(3).permute(0, 3, 1, 2), self.scale))


def _shuffle(x: Tensor, scale: int) -> Tensor:
    """[B, s²·C, H, W] with channels ordered (row, column, channel) → [B, C, sH, sW], both channels-last."""
    b, _, h, w = x.shape
    x = x.permute(0, 2, 3, 1).unflatten(3, (scale, scale, -1)).transpose(2, 3)
    return x.reshape(b, h * scale, w * scale, -1).permute(0, 3, 1, 2)


class _Fused(RIBModel):
    """What both architectures share; `features` gets the picture with zeros as its channels 3 to 7."""

    def __init__(self, model: sst.SST | escrib.ESCRIB):
        nn.Module.__init__(self)  # RIBModel's own makes an upsampler
        self.config = model.config
        self.head = _Convolution(model.proj, multiple=8)
        self.tail = _Upsampler(model.upsampler)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        weight = self.head.weights[0]
        b, _, h, w = x.shape
        shape = (b, weight.shape[3], h, w)
        picture = torch.empty(shape, dtype=weight.dtype, device=x.device, memory_format=torch.channels_last).zero_()
        picture[:, :3] = x
        return self.tail(self.features(picture), picture[:, :3])


class _SST(_Fused):
    def __init__(self, model: sst.SST):
        super().__init__(model)
        *blocks, norm, last = _children(model.body)
        self.blocks = nn.ModuleList(_SSTBlock(block) for block in blocks)
        self.norm, self.last = _Norm(norm), _Convolution(last)

    def features(self, x: Tensor) -> Tensor:
        x = skip = self.head(x)
        for block in self.blocks:
            x = block(x)
        return self.last(self.norm(x), skip)


class _SSTBlock(nn.Module):
    def __init__(self, block: sst.Block):
        super().__init__()
        *layers, last = _children(block)
        halves = ((_Attention(one.norm_attn, one.attn), _feed_forward(one.norm_ffn, one.ffn)) for one in layers)
        self.layers = nn.Sequential(*(half for layer in halves for half in layer))
        self.last = _Convolution(last)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layers(x), x)


class _ESCRIB(_Fused):
    def __init__(self, model: escrib.ESCRIB):
        super().__init__(model)
        weight = model.plk_filter
        bank = model.symmetrise(weight.to(torch.promote_types(weight.dtype, torch.float32))).to(weight.dtype)
        (self.bank,) = _frozen(F.pad(bank, (1, 1, 1, 1)) if bank.shape[-1] == 1 else bank)  # at least 3x3
        self.blocks = nn.ModuleList(_ESCRIBBlock(block) for block in _children(model.blocks))
        norm, last = _children(model.last)
        self.norm, self.last = _Norm(norm), _Convolution(last)

    def features(self, x: Tensor) -> Tensor:
        x = skip = self.head(x)
        for block in self.blocks:
            x = block(x, self.bank)
        return self.last(self.norm(x), skip)


class _ESCRIBBlock(nn.Module):
    def __init__(self, block: escrib.Block):
        super().__init__()
        self.norm_in, self.ffn = _Norm(block.ln_proj), _ConvFFN(block.proj)
        self.attention = _Attention(block.ln_attn, block.attn)
        self.ffns = nn.ModuleList(_ConvFFN(ffn) for ffn in _children(block.convffns))
        self.kernels = nn.ModuleList(_LargeKernel(layer) for layer in _children(block.pconvs))
        self.norm_out, self.last = _Norm(block.ln_out), _Convolution(block.conv_out)

    def forward(self, x: Tensor, bank: Tensor) -> Tensor:
        skip = x
        x = self.attention(self.ffn(self.norm_in(x)))
        for ffn, kernel in zip(self.ffns, self.kernels, strict=True):
            x = kernel(ffn(x), bank, x)
        return self.last(self.norm_out(x), skip)


class _LargeKernel(nn.Module):
    """residual + aggr(LargeKernel(x)); x is overwritten.

    The picture's own depthwise 3x3 kernel is added to the middle of the shared bank: one convolution instead of two.
    """

    def __init__(self, layer: escrib.LargeKernelLayer):
        super().__init__()
        self.pdim = layer.plk.pdim
        self.own = copy.deepcopy(layer.plk.dwc_proj).requires_grad_(False)
        self.aggr = _Convolution(layer.aggr)

    def forward(self, x: Tensor, bank: Tensor, residual: Tensor) -> Tensor:
        head, middle = x[:, : self.pdim], bank.shape[-1] // 2
        around = slice(middle - 1, middle + 2)
        own = self.own(head).view(-1, self.pdim, 3, 3)
        banks = bank.repeat(len(x), 1, 1, 1, 1)
        banks[..., around, around].diagonal(dim1=1, dim2=2).add_(own.permute(0, 2, 3, 1))
        made = [F.conv2d(head[i : i + 1], kernel, padding=middle) for i, kernel in enumerate(banks)]
        head.copy_(torch.cat(made) if len(made) > 1 else made[0])
        return self.aggr(x, residual)
