#!/usr/bin/env bash
# ONNX Runtime: a registered custom operator hides a model's own function of the same name, whoever was to run it.
#
# An ONNX file may define an operator by a function in the file, so that any runtime can run it. Seen 2026-11-30 with
# onnxruntime 1.32.0 (CPU), onnx 1.19.1, onnxruntime-extensions 0.15.2, Python 3.11, Linux x86-64: as soon as a library
# of custom operators is registered that has one of that domain and name, its kernel is what runs, and the function in
# the file is not looked at: here a function "x + 1" called ai.onnx.contrib::Inverse gives the matrix's inverse instead,
# without a word. Where the registered operator has no kernel for the session's provider (seen with a library for CUDA on
# a CPU), the session does not fall back to the function either, but fails with NOT_IMPLEMENTED. So the same file cannot
# be given to both kinds of session as it is.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet onnxruntime==1.32.0 onnx==1.19.1 onnxruntime-extensions==0.15.2
cat > "$folder/both.py" << 'PYTHON'
import numpy as np
import onnx
import onnxruntime
import onnxruntime_extensions
from onnx import TensorProto, helper

DOMAIN = "ai.onnx.contrib"
opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
one = helper.make_node("Constant", [], ["one"], value=helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]))
body = [one, helper.make_node("Add", ["x", "one"], ["y"])]
function = helper.make_function(DOMAIN, "Inverse", ["x"], ["y"], body, opsets[:1])
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in "xy")
graph = helper.make_graph([helper.make_node("Inverse", ["x"], ["y"], domain=DOMAIN)], "graph", [x], [y])
model = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8)
onnx.checker.check_model(model)

given = np.array([[2, 0], [0, 4]], np.float32)
for registered, expected in ((False, given + 1), (True, np.linalg.inv(given))):
    options = onnxruntime.SessionOptions()
    if registered:
        options.register_custom_ops_library(onnxruntime_extensions.get_library_path())
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": given})
    print("custom operator registered" if registered else "function alone", found.tolist())
    assert np.allclose(found, expected), "changed"
PYTHON
"$folder/venv/bin/python" "$folder/both.py"
