#!/usr/bin/env bash
# ONNX Runtime: ReduceMax and ReduceMin pass over a NaN, unless it is the first value; Max and Min do not.
#
# Seen 2026-12-01 with onnxruntime 1.32.0 (onnx 1.23.2, numpy 2.4.6), Python 3.11, Linux x86-64 (CPU): of [1, NaN, 1, ...]
# ReduceMax gives 1, of [NaN, 1, 1, ...] NaN, for 4 to 64 values; ReduceMin likewise. The element-wise Max and Min of the
# same numbers give NaN, as numpy's functions do. So who looks for what overflows in a network, by the largest value of
# each tensor, does not see the NaN that came of it.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
cat > "$folder/reduce.py" << 'PYTHON'
import math

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper


def run(node, inputs, shape):
    """The values of a model of this node alone, whose result has this shape."""
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, x.shape) for n, x in inputs.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    graph = helper.make_graph([node], "graph", infos, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0].reshape(-1)


print("onnxruntime", onnxruntime.__version__)
for name, numpy_name in (("Max", np.max), ("Min", np.min)):
    for count in (4, 64):
        for place in (0, 1, count - 1):
            x = np.ones((1, count), np.float32)
            x[0, place] = np.nan
            reduced = run(helper.make_node(f"Reduce{name}", ["x"], ["y"], keepdims=0), {"x": x}, [])[0]
            both = run(helper.make_node(name, ["x", "z"], ["y"]), {"x": x, "z": np.ones_like(x)}, x.shape)[place]
            print(f"of {count} values, NaN at {place}: Reduce{name} {reduced}, {name} {both}, numpy {numpy_name(x)}")
            assert math.isnan(numpy_name(x))
            assert math.isnan(both)
            assert math.isnan(reduced) == (place == 0)
PYTHON
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
"$folder/venv/bin/python" "$folder/reduce.py"
echo "as seen"
