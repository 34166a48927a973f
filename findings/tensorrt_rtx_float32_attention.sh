#!/usr/bin/env bash
# TensorRT RTX: ONNX Attention in float32 parses, and then has no kernel; in float16 and bfloat16 it builds.
#
# Seen 2026-11-30 with TensorRT RTX 1.7.1.116, onnx 1.23.2, Python 3.11, Linux x86-64, no GPU: the parser takes Attention
# (opset 23) of float32, and the build ends with "Attention operation was not supported by a dedicated kernel" and the
# advice to mark the layer as decomposable. With that it builds; the Python bindings offer it for a layer that the parser
# made once its class is set. The attribute softmax_precision is refused by the parser.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet onnx==1.23.2 tensorrt-rtx-cu13-bindings==1.7.1.116 \
    tensorrt-rtx-cu13-libs==1.7.1.116
cat > "$folder/float32.py" << 'PYTHON'
import onnx
import tensorrt_rtx_bindings as trt
from onnx import TensorProto, helper

SHAPE = [1, 2, 64, 32]


def model(dtype, **attributes):
    infos = [helper.make_tensor_value_info(name, dtype, SHAPE) for name in "qkvy"]
    node = helper.make_node("Attention", list("qkv"), ["y"], **attributes)
    graph = helper.make_graph([node], "graph", infos[:3], infos[3:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.checker.check_model(made)
    return made.SerializeToString()


class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.errors = []

    def log(self, severity, message):
        if severity == trt.ILogger.Severity.ERROR:
            self.errors.append(message)


def tried(content, decomposable=False):
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(content):
        return "refused by the parser", parser.get_error(0).desc()
    for layer in map(network.get_layer, range(network.num_layers)):
        if decomposable and layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    return ("no kernel", log.errors[0]) if plan is None else ("built", "")


seen = {}
for name, content in {
    "float16": model(TensorProto.FLOAT16),
    "bfloat16": model(TensorProto.BFLOAT16),
    "float32": model(TensorProto.FLOAT),
    "float16, softmax_precision": model(TensorProto.FLOAT16, softmax_precision=TensorProto.FLOAT),
}.items():
    seen[name], why = tried(content)
    print(f"{name}: {seen[name]} {why[:300]}")
seen["float32, decomposable"], _ = tried(model(TensorProto.FLOAT), decomposable=True)
print(f"float32, decomposable: {seen['float32, decomposable']}")
assert list(seen.values()) == ["built", "built", "no kernel", "refused by the parser", "built"], "changed"
PYTHON
"$folder/venv/bin/python" "$folder/float32.py"
echo "as seen"
