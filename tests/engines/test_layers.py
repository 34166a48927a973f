"""Layer by layer: one damaged weight of one layer of an exported file, and exactly that layer is found."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnx  # noqa: E402
from onnx import numpy_helper  # noqa: E402

import ribsr  # noqa: E402
from engines import EngineError, open_engine  # noqa: E402
from engines.base import Engine  # noqa: E402
from engines.compare_layers import LayerDifference, compare_layers, first_outside, shared_layers  # noqa: E402
from ribsr import ESCRIBConfig, SSTConfig  # noqa: E402
from tests.engines import fakes  # noqa: E402

NETWORK: dict[str, Any] = {"dim": 32, "blocks": 2, "expansion": 1.5, "upsampler": "direct"}
"""Heads are as wide as kernels like them, so that export does not pad them."""

NETWORKS = (
    SSTConfig(name="sst", heads=(2, 2), windows=(4, 8), ranks=(4, 4), **NETWORK),
    ESCRIBConfig(name="escrib", heads=(2,), windows=(8,), ranks=(4,), pdim=8, kernel_size=5, conv_blocks=1, **NETWORK),
)


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda network: network.name)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint, and files exported from it by their names."""
    from export.convert import Options, export_onnx

    folder = tmp_path_factory.mktemp(request.param.name)
    made = {name: folder / f"{name}.onnx" for name in ("canonical", "mha", "fp16")}
    torch.manual_seed(0)
    model = ribsr.build(request.param)
    for parameter in model.parameters():  # no two are equal, as in a trained one
        torch.nn.init.normal_(parameter, std=0.1)
    ribsr.save(model, folder / "x2.pt")
    for name, path in made.items():
        form: Any = "mha" if name == "mha" else "canonical"
        export_onnx(folder / "x2.pt", path, Options(form, half=name == "fp16", verify=False), say=lambda line: None)
    return {"checkpoint": folder / "x2.pt", **made}


def damaged(path: Path, weight: str) -> Path:
    """A copy of a file with one number of a weight changed."""
    model = onnx.load(path)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name.partition("/")[0] == weight]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[values.size // 2] += 1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, target := path.with_name(f"damaged.{path.name}"))
    return target


def compared(path: Path, files: dict[str, Path]) -> list[LayerDifference]:
    def in_pytorch(precision: str = "fp32") -> Engine:
        return open_engine(files["checkpoint"], precision=precision, device="cpu", threads=1)

    with in_pytorch() as reference, open_engine(path, runtime="onnxruntime", device="cpu", threads=1) as engine:
        return list(compare_layers(engine, reference, in_pytorch, fakes.picture(11, 19)))


@pytest.mark.parametrize("form", ["canonical", "mha", "fp16"])
def test_all_layers_of_a_right_file_are_within(files: dict[str, Path], form: str) -> None:
    found = compared(files[form], files)
    assert [layer.name for layer in found if not layer.within] == []
    names = {layer.name for layer in found}
    attention = next(name for name in names if name.endswith("attn.core"))
    assert {"proj", "upsampler.up_conv", "output", attention} <= names
    assert found[-1].name == "output"


ATTENTION = ("attn.to_qkv.weight", "attn.gate.1.weight", "attn.rib_q", "attn.to_out.weight")
SST = ("norm_ffn.weight", "ffn.proj.weight", "ffn.dwc.weight")
ESCRIB = ("ln_attn.weight", "convffns.0.dwc.weight", "pconvs.0.aggr.weight", "conv_out.weight")


def weights_of(files: dict[str, Path]) -> list[str]:
    """A weight of every kind of layer, of the second where there are several."""
    names = [tensor.name for tensor in onnx.load(files["canonical"]).graph.initializer]
    kinds = ATTENTION + (ESCRIB if any(".convffns." in name for name in names) else SST)
    chosen = [[name for name in names if name.endswith(kind)] for kind in kinds]
    return [each[min(1, len(each) - 1)] for each in chosen]


@pytest.mark.parametrize("form", ["canonical", "mha"])
def test_the_damaged_layer_is_the_first_that_is_found(files: dict[str, Path], form: str) -> None:
    for weight in weights_of(files) if form == "canonical" else weights_of(files)[:2]:
        layer = weight.rpartition(".")[0]
        expected = f"{layer}.core" if weight.endswith("rib_q") else layer
        first, before = first_outside(compared(damaged(files[form], weight), files))
        assert first is not None, weight
        assert first.name == expected, weight
        assert before is not None, weight


def test_a_damaged_layer_of_a_half_precision_file_is_found(files: dict[str, Path]) -> None:
    weight = weights_of(files)[0]
    first, _ = first_outside(compared(damaged(files["fp16"], weight), files))
    assert first is not None
    assert first.name == weight.rpartition(".")[0]
    assert first.measure == "rmse"


def test_in_our_kernels_the_fault_is_where_they_show_something(files: dict[str, Path], cpu_library: Path) -> None:
    whole = compared(files["canonical"], files)
    assert all(layer.within for layer in whole)
    assert whole[-1].name == "output"
    weight = weights_of(files)[0]
    first, _ = first_outside(compared(damaged(files["canonical"], weight), files))
    assert first is not None
    assert first.name == weight.rpartition(".")[0], "qkv is what a kernel writes"


def test_nan_is_outside_whatever_the_limit() -> None:
    layer = LayerDifference("proj", 0.0, 1.0, "max", 1.0, nan=1)
    assert not layer.within
    overflowing = LayerDifference("proj", 1.0, math.inf, "rmse", 1.0)
    assert overflowing.within
    assert overflowing.to_json()["limit"] is None, "JSON has no infinity"
    assert first_outside([LayerDifference("a", 0.5, 1.0, "max", 1.0), layer]) == (layer, "a")
    assert first_outside([]) == (None, None)


def test_files_whose_weights_have_other_names_are_refused(tmp_path: Path) -> None:
    checkpoint = fakes.write_checkpoint(tmp_path / "x2.pt")
    model = onnx.load(fakes.write_onnx(tmp_path / "x2.onnx"))
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = name.replace("proj.", "renamed_")
    for tensor in model.graph.initializer:
        tensor.name = tensor.name.replace("proj.", "renamed_")
    onnx.save(model, tmp_path / "x2.onnx")
    reference = open_engine(checkpoint, device="cpu")
    message = r"x2\.onnx: no layer in it has a name of .*x2\.pt's modules"
    engine = open_engine(tmp_path / "x2.onnx", runtime="onnxruntime")
    with reference, engine, pytest.raises(EngineError, match=message):
        shared_layers(engine, reference)


def test_pytorch_shows_what_its_modules_return_in_their_order(tmp_path: Path) -> None:
    with open_engine(fakes.write_checkpoint(tmp_path / "x2.pt"), device="cpu") as engine:
        names = engine.layers()
        assert names.index("proj") < names.index("body.0.0.attn.core") < names.index("body.0.0.attn")
        assert names[-1] == "output"
        x = fakes.picture()
        found = engine.layer_outputs(x, ["output", "proj"])
        assert [*found] == ["proj", "output"]
        np.testing.assert_array_equal(found["output"], engine.run(x))
        assert found["proj"].shape == (1, fakes.DIM, 9, 11)
