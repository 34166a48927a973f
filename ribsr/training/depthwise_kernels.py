"""Triton kernels of `ribsr.training.depthwise`, on maps [B, H, W, C].

A program walks down ROWS rows of a strip of PIXELS columns and CHANNELS channels, and holds three rows of its
neighbourhood; each row is read three times, shifted by a column, of which two come from the caches.
"""

# pyright: reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportOptionalOperand=false, reportMissingImports=false
# (Triton's functions are another language.)

import triton
import triton.language as tl


@triton.jit
def load_row(map, row, columns, channels, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr):
    """Row `row` at `columns`, and one to the left and to the right; zeros outside."""
    offsets = (row * W + columns)[:, None] * C + channels[None, :]
    inside = (row >= 0) & (row < H) & (channels < C)[None, :]
    left = tl.load(map + offsets - C, mask=inside & ((columns >= 1) & (columns <= W))[:, None], other=0.0)
    middle = tl.load(map + offsets, mask=inside & (columns < W)[:, None], other=0.0)
    right = tl.load(map + offsets + C, mask=inside & (columns < W - 1)[:, None], other=0.0)
    return left, middle, right


@triton.jit
def load_tap(weight, tap, channels, C: tl.constexpr):
    return tl.load(weight + channels * 9 + tap, mask=channels < C, other=0.0)[None, :]


@triton.jit
def load_taps(weight, channels, C: tl.constexpr):
    w0, w1, w2 = load_tap(weight, 0, channels, C), load_tap(weight, 1, channels, C), load_tap(weight, 2, channels, C)
    w3, w4, w5 = load_tap(weight, 3, channels, C), load_tap(weight, 4, channels, C), load_tap(weight, 5, channels, C)
    w6, w7, w8 = load_tap(weight, 6, channels, C), load_tap(weight, 7, channels, C), load_tap(weight, 8, channels, C)
    return w0, w1, w2, w3, w4, w5, w6, w7, w8


@triton.jit
def place(H: tl.constexpr, ROWS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """Picture, first row, columns and channels of this program."""
    strips: tl.constexpr = (H + ROWS - 1) // ROWS
    picture = (tl.program_id(0) // strips).to(tl.int64)
    first = tl.program_id(0) % strips * ROWS
    columns = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    channels = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    return picture, first, columns, channels


@triton.jit
def forward(
    x, weight, bias, out,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr,
    ROWS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    picture, first, columns, channels = place(H, ROWS, PIXELS, CHANNELS)
    x += picture * (H * W * C)
    out += picture * (H * W * C)
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = load_taps(weight, channels, C)
    b = tl.load(bias + channels, mask=channels < C, other=0.0)[None, :]
    inside = (columns < W)[:, None] & (channels < C)[None, :]
    a0, a1, a2 = load_row(x, first - 1, columns, channels, H, W, C)
    b0, b1, b2 = load_row(x, first, columns, channels, H, W, C)
    for i in range(ROWS):
        row = first + i
        c0, c1, c2 = load_row(x, row + 1, columns, channels, H, W, C)
        y = b + a0.to(tl.float32) * w0 + a1.to(tl.float32) * w1 + a2.to(tl.float32) * w2
        y += b0.to(tl.float32) * w3 + b1.to(tl.float32) * w4 + b2.to(tl.float32) * w5
        y += c0.to(tl.float32) * w6 + c1.to(tl.float32) * w7 + c2.to(tl.float32) * w8
        offsets = (row * W + columns)[:, None] * C + channels[None, :]
        tl.store(out + offsets, y.to(out.dtype.element_ty), mask=inside & (row < H))
        a0, a1, a2 = b0, b1, b2
        b0, b1, b2 = c0, c1, c2


@triton.jit
def backward(
    gradient, x, weight, dx, sums,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr,
    ROWS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    picture, first, columns, channels = place(H, ROWS, PIXELS, CHANNELS)
    gradient += picture * (H * W * C)
    x += picture * (H * W * C)
    dx += picture * (H * W * C)
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = load_taps(weight, channels, C)
    s0 = tl.zeros((PIXELS, CHANNELS), tl.float32)
    s1, s2, s3, s4, s5, s6, s7, s8, s9 = s0, s0, s0, s0, s0, s0, s0, s0, s0
    a0, a1, a2 = load_row(gradient, first - 1, columns, channels, H, W, C)
    b0, b1, b2 = load_row(gradient, first, columns, channels, H, W, C)
    inside = (columns < W)[:, None] & (channels < C)[None, :]
    for i in range(ROWS):
        row = first + i
        c0, c1, c2 = load_row(gradient, row + 1, columns, channels, H, W, C)
        offsets = (row * W + columns)[:, None] * C + channels[None, :]
        here = tl.load(x + offsets, mask=inside & (row < H), other=0.0).to(tl.float32)
        # Tap (i, j) reached this pixel from the output one up for i = 2, one down for i = 0; likewise j.
        g0, g1, g2 = c2.to(tl.float32), c1.to(tl.float32), c0.to(tl.float32)
        g3, g4, g5 = b2.to(tl.float32), b1.to(tl.float32), b0.to(tl.float32)
        g6, g7, g8 = a2.to(tl.float32), a1.to(tl.float32), a0.to(tl.float32)
        d = g0 * w0 + g1 * w1 + g2 * w2 + g3 * w3 + g4 * w4 + g5 * w5 + g6 * w6 + g7 * w7 + g8 * w8
        tl.store(dx + offsets, d.to(dx.dtype.element_ty), mask=inside & (row < H))
        s0, s1, s2 = s0 + here * g0, s1 + here * g1, s2 + here * g2
        s3, s4, s5 = s3 + here * g3, s4 + here * g4, s5 + here * g5
        s6, s7, s8 = s6 + here * g6, s7 + here * g7, s8 + here * g8
        s9 += g4
        a0, a1, a2 = b0, b1, b2
        b0, b1, b2 = c0, c1, c2
    to = sums + (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * 10 * C + channels
    tl.store(to, tl.sum(s0, 0), mask=channels < C)
    tl.store(to + C, tl.sum(s1, 0), mask=channels < C)
    tl.store(to + 2 * C, tl.sum(s2, 0), mask=channels < C)
    tl.store(to + 3 * C, tl.sum(s3, 0), mask=channels < C)
    tl.store(to + 4 * C, tl.sum(s4, 0), mask=channels < C)
    tl.store(to + 5 * C, tl.sum(s5, 0), mask=channels < C)
    tl.store(to + 6 * C, tl.sum(s6, 0), mask=channels < C)
    tl.store(to + 7 * C, tl.sum(s7, 0), mask=channels < C)
    tl.store(to + 8 * C, tl.sum(s8, 0), mask=channels < C)
    tl.store(to + 9 * C, tl.sum(s9, 0), mask=channels < C)
