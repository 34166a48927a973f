#!/usr/bin/env bash
# ONNX Runtime 1.15.1: MultiHeadAttention without a bias mixes tokens and heads, without a message.
#
# Seen 2026-11-30 with onnxruntime 1.15.1 beside 1.16.3 (both with numpy 1.26.4, onnx 1.16.2), Python 3.11, Linux x86-64
# (CPU): com.microsoft::MultiHeadAttention takes Q, K and V as [batch, tokens, heads * width]. Given no bias, 1.15.1 reads
# that memory as [batch, heads, tokens, width]; with a bias of zeros, which says the same, it is right. Shapes fit both
# ways, so nothing is reported. 1.16.3 is right with and without. A file for ONNX Runtime that has such nodes has to
# ask for 1.16.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
cat > "$folder/attention.py" << 'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

TOKENS, HEADS, WIDTH = 5, 2, 4


def run(inputs, given):
    """The node with these inputs, the last of which may be a constant bias of zeros."""
    names = [name for name in inputs if name != "bias"]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, TOKENS, HEADS * WIDTH]) for n in [*names, "y"]]
    node = helper.make_node("MultiHeadAttention", inputs, ["y"], domain="com.microsoft", num_heads=HEADS)
    bias = helper.make_tensor("bias", TensorProto.FLOAT, [3 * HEADS * WIDTH], np.zeros(3 * HEADS * WIDTH, np.float32))
    graph = helper.make_graph([node], "graph", infos[:-1], infos[-1:], [bias] if "bias" in inputs else [])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip(names, given)))[0]


def expected(q, k, v):
    q, k, v = (x.reshape(TOKENS, HEADS, WIDTH).transpose(1, 0, 2) for x in (q, k, v))
    scores = np.exp(q @ k.transpose(0, 2, 1) / WIDTH**0.5)
    return (scores / scores.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(1, TOKENS, HEADS * WIDTH)


rng = np.random.default_rng(0)
given = [rng.standard_normal((1, TOKENS, HEADS * WIDTH)).astype(np.float32) for _ in range(3)]
right = {}
for inputs in (["q", "k", "v"], ["q", "k", "v", "bias"]):
    error = np.abs(run(inputs, given) - expected(*given)).max()
    right[len(inputs) == 4] = error < 1e-5
    print(f"onnxruntime {onnxruntime.__version__}, {'a bias of zeros' if len(inputs) == 4 else 'no bias':15}: off by {error:.1e}")
assert right == {False: sys.argv[1] == "right", True: True}, "changed"
PYTHON
for release in 1.15.1:wrong 1.16.3:right; do
  python3 -m venv "$folder/${release%:*}"
  "$folder/${release%:*}/bin/python" -m pip install --quiet "onnxruntime==${release%:*}" numpy==1.26.4 onnx==1.16.2
  "$folder/${release%:*}/bin/python" "$folder/attention.py" "${release#*:}"
done
echo "as seen"
