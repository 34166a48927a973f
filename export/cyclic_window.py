"""The operator `ribsr::CyclicWindowAttention` in ONNX: its name, its attributes, and its body in standard operators.

Only the attention itself differs between forms. The canonical file carries the `mha` body as a model-local function,
the flat files have one inlined (`export.lower`).
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


class _Body:
    """The nodes of a function in ONNX's text form; equal ones are one node."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def op(self, operator: str, *inputs: str) -> str:
        """The output of an operator, with its attributes if it has any, on other nodes' outputs."""
        return self.names.setdefault(f"{operator} ({', '.join(inputs)})", f"v{len(self.names)}")

    def number(self, value: int) -> str:
        return self.op(f"Constant <value_int = {value}>")

    def ints(self, *values: int) -> str:
        return self.op(f"Constant <value_ints = {list(values)}>")

    def flat(self, x: str) -> str:
        """[..] → [n]."""
        return self.op("Reshape", x, self.ints(-1))

    def concat(self, *parts: str) -> str:
        return self.op("Concat <axis = 0>", *parts)


def _axis(body: _Body, size: str, window: str, shift: str) -> tuple[str, str, str, str]:
    """Of one axis: how many windows; which pixel each position holds once padded by reflection and rolled; and of each
    pixel, in which window it ends up and where in it.

    source(i) = (n−1) − |(n−1) − i mod max(2(n−1), 1)| reflects as often as needed, so any size ≥ 1 works; the runtimes'
    reflect Pad fails where the pad is not smaller than the size.
    """
    op, zero, one = body.op, body.number(0), body.number(1)
    last = op("Sub", size, one)
    windows = op("Div", op("Add", last, window), window)
    padded = op("Mul", windows, window)
    rolled = op("Mod", op("Add", op("Range", zero, padded, one), shift), padded)
    phase = op("Mod", rolled, op("Max", op("Add", last, last), one))
    beyond = op("Sub", last, phase)
    source = op("Sub", last, op("Max", beyond, op("Neg", beyond)))
    unrolled = op("Add", op("Range", zero, size, one), op("Sub", padded, shift))
    place = op("Mod", unrolled, padded)
    return windows, source, op("Div", place, window), op("Mod", place, window)


def _attend(body: _Body, core: Core, q: str, k: str, v: str, width: str) -> str:
    """Attention of tokens [B·windows, N, heads, D] in the form `core`; width: D, as [1]."""
    op, keep, unit = body.op, body.ints(0), body.ints(1)
    # Content and position side by side: [B·windows, N, heads, D + R].
    # (A Shape with `start` and `end` would be shorter, but TensorRT 8.6 ignores both in silence.)
    windows = body.concat(op("Gather", op("Shape", q), keep), unit, unit, unit)
    rib_q, rib_k = (op("Expand", op("Transpose <perm = [1, 0, 2]>", rib), windows) for rib in ("rib_q", "rib_k"))
    q, k = op("Concat <axis = -1>", q, rib_q), op("Concat <axis = -1>", k, rib_k)
    heads_first = "Transpose <perm = [0, 2, 1, 3]>"
    if core == "mha":  # V stays narrow: measured 3.5 times faster on CUDA than the standard operator's way with it
        joined = (op("Reshape", x, body.ints(0, 0, -1)) for x in (q, k, v))
        return op("com.microsoft.MultiHeadAttention <num_heads: int = @heads, scale: float = @scale>", *joined)
    if core == "attention":
        # One width for Q, K and V, and no softmax_precision: TensorRT's parser takes nothing else. Its
        # kernels accumulate in float32 anyway; on CPUs it changes nothing (ONNX Runtime 1.32 and OpenVINO 2026.4).
        rank = op("Shape <start = 2, end = 3>", "rib_q")
        v = op("Pad", v, body.concat(body.concat(body.ints(0, 0, 0, 0), keep, keep, keep), rank))
        heads = (op(heads_first, x) for x in (q, k, v))
        wide = op("Attention <scale: float = @scale>", *heads)
        return op(heads_first, op("Slice", wide, keep, width, body.ints(3)))
    # Scores and softmax in float32 whatever the type, the scale on the scores: what the operator's definition says.
    # (The Cast of `scale` is for onnx-graphsurgeon, which reads a value_float as a double. The CastLike takes its type
    # from rib_q, a constant, so that `export.lower` can make a Cast of it: TensorRT 8.6 has no CastLike.)
    to_float = "Cast <to = 1>"
    keys = op("Transpose <perm = [0, 2, 3, 1]>", op(to_float, k))
    products = op("MatMul", op(heads_first, op(to_float, q)), keys)
    scores = op("Mul", products, op(to_float, op("Constant <value_float: float = @scale>")))
    weights = op("CastLike", op("Softmax <axis = -1>", scores), "rib_q")
    return op(heads_first, op("MatMul", weights, op(heads_first, v)))


def _whole(body: _Body, core: Core) -> str:
    """The operator's output, from qkv, rib_q, rib_k and gate."""
    op, rest = body.op, body.ints(-1)
    window, shift = (op(f"Constant <value_ints: ints = @{name}>") for name in ("window", "shift"))
    heads = op("Constant <value_int: int = @heads>")
    # Sizes come from qkv seen as [B, H, W, 3, C]. (The transposition has to be this 4-D one, and Shape has to come
    # after the Reshape: ONNX Runtime then merges the transposition into the reordering that its convolutions need.)
    qkv = op("Reshape", op("Transpose <perm = [0, 2, 3, 1]>", "qkv"), body.ints(0, 0, 0, 3, -1))
    batch, height, width, channels = (op("Gather", op("Shape", qkv), body.number(i)) for i in (0, 1, 2, 4))
    head_width, all_channels = body.flat(op("Div", channels, heads)), body.flat(channels)
    tokens = body.flat(op("ReduceProd <keepdims = 0>", window))
    window_height, window_width = (op("Gather", window, body.number(i)) for i in (0, 1))
    shift_y, shift_x = (op("Gather", shift, body.number(i)) for i in (0, 1))
    rows, row_source, row_window, row = _axis(body, height, window_height, shift_y)
    columns, column_source, column_window, column = _axis(body, width, window_width, shift_x)

    # Pixels move as whole channel vectors: padding, roll and window partition are one Gather each for q, k and v, which
    # lie side by side in every pixel. `pixel` is where token t of window (i, j) comes from.
    unit = body.ints(1)
    row_shape = body.concat(body.flat(rows), unit, body.flat(window_height), unit)
    column_shape = body.concat(body.flat(columns), unit, body.flat(window_width))
    row_grid = op("Reshape", op("Mul", row_source, width), row_shape)
    pixel = body.flat(op("Add", row_grid, op("Reshape", column_source, column_shape)))
    q_place = op("Mul", pixel, body.number(3))
    places = q_place, op("Add", q_place, body.number(1)), op("Add", q_place, body.number(2))
    vectors = op("Reshape", qkv, body.concat(body.ints(0), rest, all_channels))
    token_shape = body.concat(rest, tokens, body.flat(heads), head_width)
    q, k, v = (op("Reshape", op("Gather <axis = 1>", vectors, place), token_shape) for place in places)
    attended = _attend(body, core, q, k, v, head_width)

    # The way back is the inverse Gather: `token` is where pixel (y, x) lies among the windows, and the crop is in it.
    row_start = op("Mul", row_window, op("Mul", columns, tokens))
    row_token = op("Add", row_start, op("Mul", row, window_width))
    column_token = op("Add", op("Mul", column_window, tokens), column)
    token = body.flat(op("Add", op("Reshape", row_token, body.concat(rest, unit)), column_token))
    attended = op("Reshape", attended, body.concat(body.flat(batch), rest, all_channels))
    shape = body.concat(body.flat(batch), body.flat(height), body.flat(width), all_channels)
    picture = op("Reshape", op("Gather <axis = 1>", attended, token), shape)
    gated = op("Mul", picture, op("Transpose <perm = [0, 2, 3, 1]>", "gate"))
    return op("Transpose <perm = [0, 3, 1, 2]>", gated)


def function(core: Core, opset: int) -> onnx.FunctionProto:
    """The operator's body around the attention `core`, for an ONNX opset of at least 17 (23 for `attention`)."""
    body = _Body()
    output = _whole(body, core)
    nodes = "\n".join(f"{name} = {node}" for node, name in body.names.items())
    return onnx.parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["" : {opset}, "com.microsoft" : 1]>\n'
        f"{NAME} <window, heads, shift, scale, plugin_version, plugin_namespace>"
        f" (qkv, rib_q, rib_k, gate) => ({output})\n{{{nodes}}}"
    )
