"""The operator `ribsr::CyclicWindowAttention` in ONNX: its name, its attributes, and its body in standard operators.

The body is written once, in ONNX's text form; only the attention itself differs between forms. The canonical file
carries the `mha` body as a model-local function, the flat files have one inlined (`export.lower`).
"""

from __future__ import annotations

from typing import Literal

import onnx
import onnx.parser

from plugins import operators

DOMAIN = operators.DOMAIN
NAME = operators.CYCLIC_WINDOW_ATTENTION.name
VERSION = 1

Core = Literal["mha", "attention", "matmul"]

# Sizes come from qkv seen as [B, H, W, 3, C]. (The transposition has to be this 4-D one, and Shape has to come after
# the Reshape: ONNX Runtime then merges the transposition into the reordering that its convolutions need anyway.)
_CONSTANTS = """
  window = Constant <value_ints: ints = @window> ()
  shift = Constant <value_ints: ints = @shift> ()
  heads = Constant <value_int: int = @heads> ()
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  two = Constant <value_int = 2> ()
  three = Constant <value_int = 3> ()
  rest = Constant <value_ints = [-1]> ()
  keep = Constant <value_ints = [0]> ()
  unit = Constant <value_ints = [1]> ()
  four = Constant <value_int = 4> ()
  qkv_last = Transpose <perm = [0, 2, 3, 1]> (qkv)
  apart = Constant <value_ints = [0, 0, 0, 3, -1]> ()
  qkv_apart = Reshape (qkv_last, apart)
  size = Shape (qkv_apart)
  channels = Gather (size, four)
  width = Div (channels, heads)
  tokens_all = ReduceProd <keepdims = 0> (window)
  tokens = Reshape (tokens_all, rest)
  heads_1d = Reshape (heads, rest)
  width_1d = Reshape (width, rest)
  channels_1d = Reshape (channels, rest)
"""

# Per axis: which pixel each position holds once padded by reflection and rolled (`source`), and at which position each
# pixel ends up (`place`). source(i) = (n−1) − |(n−1) − i mod max(2(n−1), 1)| reflects as often as needed, so any size
# ≥ 1 works; the runtimes' reflect Pad fails where the pad is not smaller than the size.
_AXIS = """
  {axis}_size = Gather (size, {dimension})
  {axis}_window = Gather (window, {index})
  {axis}_shift = Gather (shift, {index})
  {axis}_last = Sub ({axis}_size, one)
  {axis}_up = Add ({axis}_last, {axis}_window)
  {axis}_windows = Div ({axis}_up, {axis}_window)
  {axis}_padded = Mul ({axis}_windows, {axis}_window)
  {axis}_range = Range (zero, {axis}_padded, one)
  {axis}_moved = Add ({axis}_range, {axis}_shift)
  {axis}_rolled = Mod ({axis}_moved, {axis}_padded)
  {axis}_twice = Add ({axis}_last, {axis}_last)
  {axis}_period = Max ({axis}_twice, one)
  {axis}_phase = Mod ({axis}_rolled, {axis}_period)
  {axis}_mirror = Sub ({axis}_last, {axis}_phase)
  {axis}_distance = Abs ({axis}_mirror)
  {axis}_source = Sub ({axis}_last, {axis}_distance)
  {axis}_pixels = Range (zero, {axis}_size, one)
  {axis}_ahead = Sub ({axis}_padded, {axis}_shift)
  {axis}_unrolled = Add ({axis}_pixels, {axis}_ahead)
  {axis}_place = Mod ({axis}_unrolled, {axis}_padded)
  {axis}_nth = Div ({axis}_place, {axis}_window)
  {axis}_inside = Mod ({axis}_place, {axis}_window)
  {axis}_windows_1d = Reshape ({axis}_windows, rest)
  {axis}_window_1d = Reshape ({axis}_window, rest)
"""

# Pixels move as whole channel vectors: padding, roll and window partition are one Gather each for q, k and v, which lie
# side by side in every pixel. `pixel` is where token t of window (i, j) comes from.
_SPLIT = """
  row_shape = Concat <axis = 0> (row_windows_1d, unit, row_window_1d, unit)
  column_shape = Concat <axis = 0> (column_windows_1d, unit, column_window_1d)
  row_start = Mul (row_source, column_size)
  row_grid = Reshape (row_start, row_shape)
  column_grid = Reshape (column_source, column_shape)
  pixel_grid = Add (row_grid, column_grid)
  pixel = Reshape (pixel_grid, rest)
  q_place = Mul (pixel, three)
  k_place = Add (q_place, one)
  v_place = Add (q_place, two)
  vectors_shape = Concat <axis = 0> (keep, rest, channels_1d)
  vectors = Reshape (qkv_apart, vectors_shape)
  q_vectors = Gather <axis = 1> (vectors, q_place)
  k_vectors = Gather <axis = 1> (vectors, k_place)
  v_vectors = Gather <axis = 1> (vectors, v_place)
  token_shape = Concat <axis = 0> (rest, tokens, heads_1d, width_1d)
  q = Reshape (q_vectors, token_shape)
  k = Reshape (k_vectors, token_shape)
  v = Reshape (v_vectors, token_shape)
"""

# The way back is the inverse Gather: `token` is where pixel (y, x) lies among the windows, and the crop is in it.
_MERGE = """
  row_of_windows = Mul (column_windows, tokens)
  row_nth_start = Mul (row_nth, row_of_windows)
  row_inside_start = Mul (row_inside, column_window)
  row_token = Add (row_nth_start, row_inside_start)
  column_nth_start = Mul (column_nth, tokens)
  column_token = Add (column_nth_start, column_inside)
  as_column = Concat <axis = 0> (rest, unit)
  row_token_2d = Reshape (row_token, as_column)
  token_grid = Add (row_token_2d, column_token)
  token = Reshape (token_grid, rest)
  batch = Gather (size, zero)
  batch_1d = Reshape (batch, rest)
  merged_shape = Concat <axis = 0> (batch_1d, rest, channels_1d)
  attended_flat = Reshape (attended, merged_shape)
  pixels = Gather <axis = 1> (attended_flat, token)
  row_size_1d = Reshape (row_size, rest)
  column_size_1d = Reshape (column_size, rest)
  picture_shape = Concat <axis = 0> (batch_1d, row_size_1d, column_size_1d, channels_1d)
  picture = Reshape (pixels, picture_shape)
  gate_last = Transpose <perm = [0, 2, 3, 1]> (gate)
  gated = Mul (picture, gate_last)
  output = Transpose <perm = [0, 3, 1, 2]> (gated)
"""

# Content and position side by side: [B·windows, N, heads, D + R].
# (A Shape with `start` and `end` would be shorter, but TensorRT 8.6 ignores both in silence.)
_CONCATENATE = """
  q_size = Shape (q)
  windows_all = Gather (q_size, keep)
  rib_shape = Concat <axis = 0> (windows_all, unit, unit, unit)
  rib_q_last = Transpose <perm = [1, 0, 2]> (rib_q)
  rib_k_last = Transpose <perm = [1, 0, 2]> (rib_k)
  rib_q_all = Expand (rib_q_last, rib_shape)
  rib_k_all = Expand (rib_k_last, rib_shape)
  q_both = Concat <axis = -1> (q, rib_q_all)
  k_both = Concat <axis = -1> (k, rib_k_all)
"""

_CORES: dict[Core, str] = {
    # V stays narrow: measured 3.5 times faster on CUDA than the standard operator's way with it.
    "mha": _CONCATENATE
    + """
  joined = Constant <value_ints = [0, 0, -1]> ()
  q_joined = Reshape (q_both, joined)
  k_joined = Reshape (k_both, joined)
  v_joined = Reshape (v, joined)
  attended = com.microsoft.MultiHeadAttention
    <num_heads: int = @heads, scale: float = @scale> (q_joined, k_joined, v_joined)
""",
    # One width for Q, K and V, which is what TensorRT's IAttention documents and what fused kernels take.
    "attention": _CONCATENATE
    + """
  v_shape = Shape (v)
  rank = Shape <start = 2, end = 3> (rib_q)
  zero_shape = Constant <value_ints = [0, 0, 0, 0]> ()
  zeros_before = Concat <axis = 0> (zero_shape, keep, keep, keep)
  v_pads = Concat <axis = 0> (zeros_before, rank)
  v_wide = Pad (v, v_pads)
  q_heads = Transpose <perm = [0, 2, 1, 3]> (q_both)
  k_heads = Transpose <perm = [0, 2, 1, 3]> (k_both)
  v_heads = Transpose <perm = [0, 2, 1, 3]> (v_wide)
  wide = Attention <scale: float = @scale, softmax_precision = 1> (q_heads, k_heads, v_heads)
  channel_axis = Constant <value_ints = [3]> ()
  narrow = Slice (wide, keep, width_1d, channel_axis)
  attended = Transpose <perm = [0, 2, 1, 3]> (narrow)
""",
    # Scores and softmax in float32 whatever the type, the scale on the scores: what the operator's definition says.
    # (The Cast of `scale` is for onnx-graphsurgeon, which reads a value_float as a double. The CastLike takes its type
    # from rib_q, a constant, so that `export.lower` can make a Cast of it: TensorRT 8.6 has no CastLike.)
    "matmul": _CONCATENATE
    + """
  scale_given = Constant <value_float: float = @scale> ()
  scale = Cast <to = 1> (scale_given)
  q_float = Cast <to = 1> (q_both)
  k_float = Cast <to = 1> (k_both)
  q_heads = Transpose <perm = [0, 2, 1, 3]> (q_float)
  k_heads = Transpose <perm = [0, 2, 3, 1]> (k_float)
  v_heads = Transpose <perm = [0, 2, 1, 3]> (v)
  products = MatMul (q_heads, k_heads)
  scores = Mul (products, scale)
  weights_float = Softmax <axis = -1> (scores)
  weights = CastLike (weights_float, rib_q)
  out_heads = MatMul (weights, v_heads)
  attended = Transpose <perm = [0, 2, 1, 3]> (out_heads)
""",
}


def function(core: Core, opset: int) -> onnx.FunctionProto:
    """The operator's body around the attention `core`, for an ONNX opset of at least 17 (23 for `attention`)."""
    rows = _AXIS.format(axis="row", dimension="one", index="zero")
    columns = _AXIS.format(axis="column", dimension="two", index="one")
    body = "".join([_CONSTANTS, rows, columns, _SPLIT, _CORES[core], _MERGE])
    return onnx.parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["" : {opset}, "com.microsoft" : 1]>\n'
        f"{NAME} <window, heads, shift, scale, plugin_version, plugin_namespace>"
        f" (qkv, rib_q, rib_k, gate) => (output)\n{{{body}}}"
    )
