"""TensorRT, a GPU and engines as `python -m export.trt` sees them, played by fakes made of recorded surfaces."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from click.testing import CliRunner, Result

from engines.ort import ORTEngine
from engines.trt import gpu as cuda
from export.trt.__main__ import main
from plugins import library
from tests.engines.trt.tensorrt_fake import VERSIONS, Memory, fake_tensorrt

OLDEST, TEN, ELEVEN = VERSIONS

OLD = {
    "fp16": "Channel major FP16 format where channel % 8 == 0",
    "fp32": "Row major linear FP32",
    "int": "Row major linear INT32 format",
}
"""The words of 8.6, as in NVIDIA's own samples of inspector output."""

NEW = {"fp16": "Half", "bf16": "BFloat16", "fp32": "Float", "int": "Int32"}
"""The words of 10 and 11."""


def layer(kind: str, inputs: str, outputs: str = "", name: str = "node", **more: Any) -> dict[str, Any]:
    def tensor(text: str) -> dict[str, Any]:
        return {"Name": "t", "Location": "Device", "Dimensions": [1, 48, -1, -1], "Format/Datatype": text}

    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [tensor(inputs)],
        "Outputs": [tensor(outputs or inputs)],
        "TacticValue": "0x0",
        **more,
    }


class FakeGPU(SimpleNamespace):
    """What the commands see of the machine: TensorRT, a GPU, the plugin library, and an engine that runs plans."""

    trt: Any
    parsed: onnx.ModelProto
    precision: str = "fp16"
    error: float = 1e-3
    broken: dict[str, str]


def words(gpu: FakeGPU, dtype: str) -> str:
    return OLD[dtype] if gpu.trt.__version__.startswith("8.") else NEW[dtype]


def timing_cache(data: bytes) -> SimpleNamespace:
    """One that serialises to the data it was made of."""
    return SimpleNamespace(serialize=lambda: Memory(data))


def layers_of(gpu: FakeGPU) -> list[dict[str, Any]]:
    """The inspector's description of an engine that does just what the graph says, but for what is `broken`."""
    single = {t.name for t in gpu.parsed.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    half = "bf16" if any(t.data_type == onnx.TensorProto.BFLOAT16 for t in gpu.parsed.graph.initializer) else "fp16"
    plugin = "PluginV2" if gpu.trt.__version__.startswith("8.") else "PluginV3"
    found = []
    for node in gpu.parsed.graph.node:
        kind = {"Conv": "CaskConvolution", "MatMul": "gemm"}.get(node.op_type, plugin if node.domain else "")
        kind = gpu.broken.get(f"kind {node.op_type}", kind)
        if kind:
            dtype = "fp32" if single & set(node.input) else half
            found.append(layer(kind, words(gpu, gpu.broken.get(node.op_type, dtype)), name=node.name))
    return found


def make_gpu(version: str, here: Path, monkeypatch) -> FakeGPU:
    gpu = FakeGPU(broken={}, error=1e-3)

    def parse(self: Any, model: bytes) -> bool:
        gpu.parsed = onnx.load_model_from_string(model)
        return True

    memory = "device_memory_size" if version == OLDEST else "device_memory_size_v2"
    gpu.trt = fake_tensorrt(
        version,
        {
            "OnnxParser.parse": parse,
            "INetworkDefinition.num_layers": 0,
            "INetworkDefinition.num_inputs": 0,
            "Builder.build_serialized_network": lambda self, network, config: Memory(b"plan " * 1000),
            "ITimingCache.serialize": lambda self: Memory(b"timings"),
            "IBuilderConfig.create_timing_cache": lambda self, data: timing_cache(data),
            "ICudaEngine.num_layers": lambda self: len(layers_of(gpu)),
            f"ICudaEngine.{memory}": 64 << 20,
            "EngineInspector.get_layer_information": lambda self, index, form: json.dumps(layers_of(gpu)[index]),
        },
    )
    monkeypatch.setitem(sys.modules, "tensorrt", gpu.trt)
    (here / "lib").mkdir()
    (here / "lib" / "plugins.so").write_bytes(b"machine code")
    monkeypatch.setenv(library.TENSORRT_VARIABLE, str(here / "lib" / "plugins.so"))
    gpu.loaded = []
    monkeypatch.setattr(library, "load_tensorrt", lambda trt, path: gpu.loaded.append(path))
    device = cuda.GPU(0, "NVIDIA H100 80GB", "9.0", "13.0")
    monkeypatch.setattr(cuda, "current_gpu", lambda: device)
    monkeypatch.setattr(cuda, "free_memory", lambda: 590 << 20)

    class PlayedEngine(ORTEngine):
        """Runs a plan as its ONNX file in ONNX Runtime, somewhat wrong."""

        def __init__(self, plan: Path, **options: Any):
            assert Path(plan).read_bytes().startswith(b"plan")
            super().__init__(here / "x2.onnx", device="cpu")

        def run(self, x: np.ndarray) -> np.ndarray:
            return super().run(x) + np.float32(gpu.error)

    monkeypatch.setattr("engines.trt.engine.TensorRTEngine", PlayedEngine)
    return gpu


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def written(folder: Path) -> list[str]:
    """What is there besides the fixtures' own files."""
    return sorted(path.name for path in folder.iterdir() if path.name not in ("x2.onnx", "lib", "cache"))


def failed(result: Result, here: Path) -> str:
    """The one line of a failure that has left nothing."""
    assert result.exit_code == 1, result.output
    (line,) = (line for line in result.output.splitlines() if line.startswith("Error: "))
    assert "Traceback" not in result.output
    assert written(here) == []
    return line
