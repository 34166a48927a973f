#!/usr/bin/env bash
# tract: MultiHeadAttention whose values are narrower than its queries is refused by a rule of shapes of tract's own.
#
# Seen 2026-11-30 with tract 0.23.9, onnxruntime 1.32.0, onnx 1.23.2, Python 3.11, Linux x86-64: of com.microsoft::
# MultiHeadAttention the output is as wide as V, which may be narrower than Q and K; ONNX Runtime computes it. tract has
# the operator, and computes it where the three are equally wide; else it promises an output as wide as Q at first, finds
# what V says later, and refuses its own result ("Output mismatch after rewiring expansion"). Values that are padded to
# the width of Q with zeros, and cut behind the node, pass.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet tract==0.23.9 onnxruntime==1.32.0 onnx==1.23.2
cat > "$folder/narrow.py" << 'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime
import tract
from onnx import TensorProto, helper

HEADS, TOKENS, WIDE = 2, 6, 16


def made(path, narrow):
    shapes = {"q": WIDE, "k": WIDE, "v": narrow, "y": narrow}
    infos = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, TOKENS, shapes[name]]) for name in shapes}
    node = helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["y"], domain="com.microsoft", num_heads=HEADS)
    graph = helper.make_graph([node], "graph", [infos[name] for name in "qkv"], [infos["y"]])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal((1, TOKENS, shapes[name])).astype(np.float32) for name in "qkv"}


seen = {}
for narrow in (WIDE, WIDE // 2):
    given = made(path := f"{sys.argv[1]}/{narrow}.onnx", narrow)
    right = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, given)[0]
    assert right.shape == (1, TOKENS, narrow)
    try:
        (found,) = tract.onnx().load(path).into_model().into_runnable().run(list(given.values()))
        seen[narrow] = "right" if np.allclose(found.to_numpy(), right, atol=1e-5) else "wrong"
    except tract.TractError as error:
        seen[narrow] = "refused"
        print(next(line.strip() for line in str(error).splitlines() if "mismatch" in line))
    print(f"Q and K {WIDE} wide, V {narrow}: ONNX Runtime gives {right.shape}, tract: {seen[narrow]}")
assert seen == {WIDE: "right", WIDE // 2: "refused"}, "changed"
PYTHON
"$folder/venv/bin/python" "$folder/narrow.py" "$folder"
echo "as seen"
