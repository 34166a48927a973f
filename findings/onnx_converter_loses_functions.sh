#!/usr/bin/env bash
# onnx's version converter deletes a model's own functions, and its checker passes what is left, which nothing can run.
#
# Seen 2026-11-30 with onnx 1.23.2 and onnxruntime 1.32.0, Python 3.11, Linux x86-64: convert_version, from 17 to 18, gives
# a model whose node of the function's domain is still there, while `functions` is empty. check_model(full_check=True)
# has no objection: nodes of an unknown domain may be a runtime's own, and the domain is still imported. ONNX
# Runtime refuses the file. Inlining the functions first keeps what is computed.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet onnx==1.23.2 onnxruntime==1.32.0
cat > "$folder/converted.py" << 'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, inliner, version_converter

opsets = [helper.make_opsetid("", 17), helper.make_opsetid("example", 1)]
body = [helper.make_node("Add", ["x", "x"], ["y"])]
function = helper.make_function("example", "Double", ["x"], ["y"], body, opsets[:1])
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in "xy")
graph = helper.make_graph([helper.make_node("Double", ["x"], ["y"], domain="example")], "graph", [x], [y])
model = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8)


def result(model):
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:
        return f"{type(error).__name__}"
    return session.run(None, {"x": np.ones(3, np.float32)})[0].tolist()


seen = {}
inlined = inliner.inline_local_functions(model)
for name, made in {
    "as it is": model,
    "converted": version_converter.convert_version(model, 18),
    "inlined, then converted": version_converter.convert_version(inlined, 18),
}.items():
    onnx.checker.check_model(made, full_check=True)
    seen[name] = len(made.functions), [node.op_type for node in made.graph.node], result(made)
    print(f"{name:24} functions {seen[name][0]}, nodes {seen[name][1]}, checked, gives {seen[name][2]}")
assert seen["as it is"][2] == seen["inlined, then converted"][2] == [2, 2, 2], "changed"
assert seen["converted"][:2] == (0, ["Double"]) and isinstance(seen["converted"][2], str), "changed"
PYTHON
"$folder/venv/bin/python" "$folder/converted.py"
echo "as seen"
