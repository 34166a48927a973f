"""Reading TensorRT's inspector, and the rule by which an engine keeps the promise of its precision."""

from __future__ import annotations

from typing import Any

import pytest

from export.trt.inspection import Inspection, PrecisionError, check, inspect
from tests.export.trt.played import NEW, OLD, failed, invoke, layer


def engine_86(convolution: str = "fp16", plugin: str = "fp16") -> list[dict[str, Any]]:
    return [
        layer("Reformat", OLD["fp32"], OLD["fp16"], "Reformatting CopyNode for Input Tensor 0 to node_Conv_1"),
        layer("CaskConvolution", OLD[convolution], name="node_Conv_1", ParameterType="Convolution"),
        layer("PluginV2", OLD[plugin], name="node__symbolic", PluginType="CyclicWindowAttention"),
        layer("CaskConvolution", OLD["fp16"], OLD["fp32"], "last + Cast", ParameterType="Convolution"),
        layer("PointWiseV2", OLD["fp16"], name="PWN(node_sigmoid)"),
        layer("Shuffle", OLD["int"], name="shape arithmetic"),
        layer("NoOp", OLD["fp32"], name="output"),
    ]


def test_words_of_8_6():
    found = inspect(engine_86())
    assert found == Inspection(layers=7, plugins={"fp16": 1}, heavy={"fp16": 2})
    assert found.summary() == {"layers": 7, "plugins fp16": 1, "heavy fp16": 2}
    check(found, "fp16", plugins=1, float32=0)


HIDDEN = "N/A due to dynamic shapes"


def tactic(operands: str) -> str:
    """As 8.6.0 names them on an H100."""
    return f"sm80_xmma_gemm_{operands}_nn_n_tilesize256x64x32_stage3_warpsize4x1x1_tensor16x8x16"


def dynamic_engine_86(operands: str) -> list[dict[str, Any]]:
    """Layers of an engine with dynamic shapes, recorded from 8.6.0; `operands` as the convolution's tactic has them."""
    return [
        layer("Reformat", HIDDEN, name="Reformatting CopyNode for Input Tensor 0 to node_Conv_1"),
        layer("PluginV2", HIDDEN, name="node_layer_norm", PluginType="ChannelLayerNorm"),
        layer("CaskGemmConvolution", HIDDEN, "", "node_1", ParameterType="Convolution", TacticName=tactic(operands)),
        layer("Myelin", HIDDEN, name="{ForeignNode[val_63...output/cast]}"),
    ]


def test_dynamic_shapes_of_8_6_by_tactics():
    found = inspect(dynamic_engine_86("f16f16_f16f16_f16"))
    assert found == Inspection(layers=4, plugins={"half": 1}, heavy={"fp16": 1})
    check(found, "fp16", plugins=1, float32=0)


@pytest.mark.parametrize(("weights", "dtype"), [("Half", "fp16"), ("Float", "fp32"), ("Int8", "unknown")])
def test_dynamic_shapes_of_8_6_by_weights(weights, dtype):
    depthwise = {"ParameterType": "Convolution", "Weights": {"Type": weights, "Count": 432}}
    found = inspect([layer("CudaDepthwiseConvolution", HIDDEN, name="node_2", **depthwise)])
    assert found.heavy == {dtype: 1}


@pytest.mark.parametrize(
    ("operands", "dtype"),
    [("f32f32_tf32f32_f32", "fp32"), ("f32f32_f32f32_f32", "fp32"), ("i8i8_i8i32_f32", "unknown"), ("", "unknown")],
)
def test_float32_in_a_dynamic_engine_of_8_6_is_found(operands, dtype):
    found = inspect(dynamic_engine_86(operands))
    assert found.heavy == {dtype: 1}
    with pytest.raises(PrecisionError, match="1 of the engine's 1 convolutions.*the first is node_1"):
        check(found, "fp16", plugins=1, float32=0)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_words_of_10(dtype):
    layers = [
        layer("kgen", NEW["fp32"], NEW[dtype], "__myl_Cast"),
        layer("gemm", NEW[dtype], name="conv_myl1"),
        layer("kgen", NEW[dtype], name="_gemm_mha_v2_myl0_4"),
        layer("CaskConvolution", NEW[dtype]),
        layer("PluginV3", NEW[dtype]),
        layer("signal", ""),
        {
            "Name": "conv3",
            "LayerType": "conv",
            "Inputs": [{"Name": "x", "Format": "Row-major", "Datatype": NEW[dtype]}],
        },
    ]
    found = inspect(layers)
    assert found == Inspection(layers=7, plugins={dtype: 1}, heavy={dtype: 4})
    check(found, dtype, plugins=1, float32=0)
    with pytest.raises(PrecisionError, match="1 of the engine's 1 plugin layers"):
        check(found, "fp16" if dtype == "bf16" else "bf16", plugins=1, float32=0)


def test_float32_convolution_is_found_and_named_unless_the_graph_has_one():
    found = inspect(engine_86(convolution="fp32"))
    assert found.heavy == {"fp32": 1, "fp16": 1}
    with pytest.raises(PrecisionError, match="1 of the engine's 2 convolutions.*the first is node_Conv_1"):
        check(found, "fp16", plugins=1, float32=0)
    check(found, "fp16", plugins=1, float32=1)


def test_missing_and_float32_plugins_are_found():
    with pytest.raises(PrecisionError, match="has 1 plugin layers where the graph has 2"):
        check(inspect(engine_86()), "fp16", plugins=2, float32=0)
    with pytest.raises(PrecisionError, match="1 of the engine's 1 plugin layers do not compute in fp16"):
        check(inspect(engine_86(plugin="fp32")), "fp16", plugins=1, float32=0)


@pytest.mark.parametrize(
    "layers",
    [
        [],
        [{"Name": "0", "LayerType": "unreadable"}],
        [layer("PointWiseV2", OLD["fp16"])],
        [layer("CaskConvolution", "a format of a later version")],
    ],
)
def test_an_inspector_that_says_nothing_proves_nothing(layers):
    with pytest.raises(PrecisionError, match="no layer of the engine that computes in fp16"):
        check(inspect(layers), "fp16", plugins=0, float32=99)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"Conv": "fp32"}, "did not build what --fp16 promises: the inspector|14 of the engine's 14 convolutions"),
        ({"DepthwiseConv3x3": "fp32"}, "4 of the engine's 11 plugin layers do not compute in fp16"),
        ({"kind ChannelLayerNorm": "PointWiseV2"}, "the engine has 6 plugin layers where the graph has 11"),
    ],
)
def test_engine_that_lost_its_precision_is_not_written(gpu, here, broken, message):
    gpu.broken = broken
    line = failed(invoke("--fp16"), here)
    assert any(part in line for part in message.split("|"))
    assert "nothing was written" in line
