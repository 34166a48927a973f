"""A network small enough for tests, as a checkpoint and as ONNX files that compute the same.

Its body ends in a convolution of zeros, so that it is linear: pixel_shuffle(up(proj(x)) + repeated x). That is a real
SST checkpoint for PyTorch and five ONNX nodes, and needs no exporter to be written down.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

DIM = 6
SHA = "0" * 64


def weights(seed: int = 0, scale: int = 2, size: float = 0.2) -> dict[str, np.ndarray]:
    """proj and up convolutions, float32."""
    rng = np.random.default_rng(seed)
    shapes = {"proj": (DIM, 3, 3, 3), "up": (3 * scale**2, DIM, 3, 3)}
    made = {}
    for name, shape in shapes.items():
        made[f"{name}.weight"] = (rng.standard_normal(shape) * size).astype(np.float32)
        made[f"{name}.bias"] = (rng.standard_normal(shape[0]) * size).astype(np.float32)
    return made


def write_onnx(
    path: Path,
    params: Mapping[str, np.ndarray] | None = None,
    *,
    scale: int = 2,
    precision: str = "fp32",
    form: str = "mha",
    sha256: str = SHA,
    shape: tuple[int | str, ...] = ("b", 3, "h", "w"),
    stamp: Mapping[str, str] | None = None,
    stamped: bool = True,
) -> Path:
    """The network as an ONNX file. stamp: overrides of the metadata, None values leave an entry out."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    params = params or weights(scale=scale)
    dtype = {"fp32": np.float32, "fp16": np.float16}[precision]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    repeat = np.zeros((3 * scale**2, 3, 1, 1))
    repeat[np.arange(3 * scale**2), np.arange(3).repeat(scale**2)] = 1
    tensors = {**params, "repeat.weight": repeat}
    nodes = [
        helper.make_node("Cast", ["input"], ["x"], to=kind),
        helper.make_node("Conv", ["x", "proj.weight", "proj.bias"], ["features"], pads=[1] * 4),
        helper.make_node("Conv", ["features", "up.weight", "up.bias"], ["up"], pads=[1] * 4),
        helper.make_node("Conv", ["x", "repeat.weight"], ["repeated"]),
        helper.make_node("Add", ["up", "repeated"], ["sum"]),
        helper.make_node("DepthToSpace", ["sum"], ["y"], blocksize=scale, mode="CRD"),
        helper.make_node("Cast", ["y"], ["output"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "fake",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [None, 3, None, None])],
        [numpy_helper.from_array(_cast(value, dtype), name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if stamped:
        helper.set_model_props(
            model,
            {
                "ribsr.model": "tiny",
                "ribsr.scale": str(scale),
                "ribsr.windows": json.dumps([[4, 4], [8, 8]]),
                "ribsr.precision": precision,
                "ribsr.form": form,
                "ribsr.version": "0.1.0",
                "ribsr.checkpoint_sha256": sha256,
                **(stamp or {}),
            },
        )
        kept = [entry for entry in model.metadata_props if entry.value != "(absent)"]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
    onnx.save(model, str(path))
    return path


def _cast(value: np.ndarray, dtype: type) -> np.ndarray:
    with np.errstate(over="ignore"):
        return value.astype(dtype)


def write_checkpoint(path: Path, params: Mapping[str, np.ndarray] | None = None, *, scale: int = 2) -> Path:
    """The network as an own checkpoint."""
    import torch

    import ribsr

    torch.manual_seed(0)
    model: Any = ribsr.build(
        ribsr.SSTConfig(
            name="tiny",
            dim=DIM,
            heads=(2, 2),
            windows=(4, 8),
            ranks=(4, 4),
            blocks=1,
            expansion=1.5,
            upsampler="direct",
            scale=scale,
        )
    )
    params = params or weights(scale=scale)
    with torch.no_grad():
        for name, module in (("proj", model.proj), ("up", model.upsampler.up_conv)):
            module.weight.copy_(torch.from_numpy(params[f"{name}.weight"]))
            module.bias.copy_(torch.from_numpy(params[f"{name}.bias"]))
        model.body[-1].weight.zero_()
    ribsr.save(model, path)
    return path


def poisoned(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights that overflow float16 to infinity, and so give NaN or infinite values there; fine in float32."""
    return {**params, "proj.bias": params["proj.bias"] + np.float32(1e5)}


def picture(height: int = 9, width: int = 11, seed: int = 0) -> np.ndarray:
    """RGB float32 [1, 3, height, width] in [0, 1]."""
    return np.random.default_rng(seed).random((1, 3, height, width), dtype=np.float32)
