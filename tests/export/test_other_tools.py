"""Our files after tools that change ONNX files: they stay ours, or what is missing is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import helper, version_converter

from engines import EngineError, open_engine
from engines.metadata import read_stamp
from tests.engines import halves
from tests.export.conftest import traced

FORMS = [(17, "canonical"), (17, "mha"), (17, "matmul"), (23, "attention"), (17, "plugin")]
FLAT = [(17, "mha"), (17, "matmul"), (23, "attention")]


def write(folder: Path, name: str, opset: int, form: Any, dtype: str = "fp32") -> Path:
    bare = traced(name, opset)[1]
    bare = halves.to_half(bare) if dtype == "fp16" else bare
    scale = int(name[-1])
    windows = [
        helper.get_node_attr_value(node, "window") for node in bare.graph.node if node.op_type == halves.OPERATOR
    ]
    block = {"sst_cyclic_x2": 3, "sst_pixelshuffle_x4": 2}.get(name, 1)  # of different windows
    return halves.write(folder / "a.onnx", bare, form, dtype, scale, windows=str(windows[:block]))


def through_graphsurgeon(path: Path) -> None:
    onnx.save(gs.export_onnx(gs.import_onnx(onnx.load(path)).cleanup().toposort()), path)


def without(path: Path, *, values: bool = False, body: bool = False) -> None:
    """Drops metadata, and more if asked for, as tools do."""
    model = onnx.load(path)
    del model.metadata_props[:]
    if values:
        del model.graph.value_info[:]
    if body:
        del model.functions[:]
    onnx.save(model, path)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize(("opset", "form"), FORMS)
@pytest.mark.parametrize("name", ["sst_cyclic_x2", "escrib_x2", "sst_pixelshuffle_x4"])
def test_what_graphsurgeon_drops_is_read_from_the_graph(tmp_path, name, opset, form, dtype):
    if form == "plugin" and dtype == "fp32":
        pytest.skip("the plugins compute in half precision")
    path = write(tmp_path, name, opset, form, dtype)
    before = read_stamp(path)
    through_graphsurgeon(path)
    assert not onnx.load(path).metadata_props
    after = read_stamp(path)
    needed = ("scale", "windows", "precision", "form")
    assert [getattr(after, field) for field in needed] == [getattr(before, field) for field in needed]
    assert (after.model, after.version, after.checkpoint_sha256) == ("unknown", "unknown", "")


@pytest.mark.parametrize(("opset", "form"), FORMS[:-1])
def test_an_engine_runs_what_graphsurgeon_wrote(tmp_path, opset, form):
    golden = traced("sst_shifted_x2", opset)[0]
    path = write(tmp_path, "sst_shifted_x2", opset, form)
    through_graphsurgeon(path)
    with open_engine(path, device="cpu") as engine:
        assert np.abs(engine.run(golden.x) - golden.y).max() <= 1e-5


@pytest.mark.parametrize(("opset", "form"), FLAT)
def test_the_version_converter_leaves_flat_files_as_they_are(tmp_path, opset, form):
    golden = traced("sst_shifted_x2", opset)[0]
    path = write(tmp_path, "sst_shifted_x2", opset, form)
    before = read_stamp(path)
    onnx.save(version_converter.convert_version(onnx.load(path), 21 if opset == 17 else 24), path)
    assert read_stamp(path) == before
    without(path)
    assert read_stamp(path).windows == before.windows
    if opset == 17:
        with open_engine(path, device="cpu") as engine:
            assert np.abs(engine.run(golden.x) - golden.y).max() <= 1e-5


@pytest.mark.parametrize("stamped", [True, False])
def test_the_version_converter_takes_the_function_of_a_canonical_file_which_is_said(tmp_path, stamped):
    path = write(tmp_path, "sst_shifted_x2", 17, "canonical")
    onnx.save(version_converter.convert_version(onnx.load(path), 21), path)
    if not stamped:
        without(path)
    with pytest.raises(EngineError, match="nodes have lost the function .* export it again, with --opset"):
        open_engine(path, device="cpu")


@pytest.mark.parametrize(("opset", "form"), FLAT)
def test_windows_that_a_flat_graph_does_not_say_are_not_guessed(tmp_path, opset, form):
    path = write(tmp_path, "sst_cyclic_x2", opset, form)
    without(path, values=True)
    with pytest.raises(EngineError, match="its graph does not say the windows .*; export it again"):
        read_stamp(path)


def _quantized(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(4, np.int8), "quantized"))


def _of_another_producer(model: onnx.ModelProto) -> None:
    model.producer_name = "pytorch"


def _with_two_scales(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("DepthToSpace", ["output"], ["more"], blocksize=3))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_quantized, "has weights of another type than float32, float16 and bfloat16"),
        (_of_another_producer, "was made by another tool"),
        (_with_two_scales, "does not say the scale"),
    ],
)
def test_a_graph_that_says_something_else_is_refused(tmp_path, change, said):
    path = write(tmp_path, "sst_cyclic_x2", 17, "mha")
    without(path)
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    with pytest.raises(EngineError, match=said):
        read_stamp(path)
