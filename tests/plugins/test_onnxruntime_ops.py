"""The library of custom operators for ONNX Runtime: its build, its schemas, and its face before a played runtime.

nvcc is needed, a GPU is not: what the kernels compute is for the GPU's tests.
"""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from plugins import build, compiler, library, operators
from plugins.operators import (
    ATTENTION_INPUTS,
    CHANNEL_LAYER_NORM,
    CONVOLUTION,
    CYCLIC_WINDOW_ATTENTION,
    DEPTHWISE_CONV3X3,
    FEED_FORWARD,
    OPERATORS,
    Operator,
)
from tests.plugins.played_onnxruntime import (
    BFLOAT16,
    FAIL,
    FLOAT16,
    INVALID_ARGUMENT,
    PARALLEL_VERSION,
    PLACES,
    VERSION,
    CustomOp,
    Face,
    Library,
    Played,
    Status,
)
from tests.plugins.test_tensorrt_plugin import has_gpu

NUMBERS = {
    **{"batch": 2, "height": 5, "width": 7, "channels": 48, "hidden": 96, "outputs": 20, "kernel": 3},
    **{"heads": 2, "head_width": 16, "rank": 24, "window_height": 8, "window_width": 4},
}
WIDE = {**NUMBERS, "channels": 192, "hidden": 384}
ATTRIBUTES: dict[str, Any] = {
    **{"window": [8, 4], "heads": 2, "shift": [-3, 2], "scale": 0.25, "gate_sigmoid": 1},
    **{"add_gelu": 1, "input_gelu": 0, "epsilon": 0.5, "negative_slope": 0.125},
}
EVERY = [(row, kind) for row in OPERATORS for kind in (FLOAT16, BFLOAT16)]

every = pytest.mark.parametrize(("row", "kind"), EVERY, ids=[f"{row.short}-{kind}" for row, kind in EVERY])
without_gpu = pytest.mark.skipif(has_gpu(), reason="gives kernels addresses that are none; needs a machine without GPU")


def attributes_of(row: Operator, **changes: Any) -> dict[str, Any]:
    """Attributes that are right, but for changes; None leaves one out."""
    given = {attribute.name: ATTRIBUTES[attribute.name] for attribute in row.attributes} | changes
    return {name: value for name, value in given.items() if value is not None}


def last(shape: list[int]) -> list[int]:
    """A map's dimensions as ONNX Runtime has them."""
    batch, channels, height, width = shape
    return [batch, height, width, channels]


def shaped(tensors: Mapping[str, str], numbers: Mapping[str, int] = NUMBERS) -> list[list[int]]:
    """The dimensions of tensors of the table, as ONNX Runtime has them."""
    found = [(shape, operators.sizes(shape, numbers)) for shape in tensors.values()]
    return [last(sizes) if operators.is_map(shape) else sizes for shape, sizes in found]


@pytest.fixture(scope="module")
def built(nvcc: Path) -> Path:
    """The library, built if it was not up to date."""
    return compiler.build_onnxruntime()[0]


@pytest.fixture(scope="module")
def faces(built: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Face]:
    """Each operator in each type, from a library that a played runtime has loaded."""
    played = Played()
    assert loaded(built, tmp_path_factory.mktemp("loaded")).register(played, 5) is None
    ((domain, added),) = played.domains.items()
    assert played.added == [(5, domain)]
    ops = [CustomOp.from_address(address) for address in added]
    found = [
        (op.GetName(address).decode(), op.GetInputType(address, 0)) for op, address in zip(ops, added, strict=True)
    ]
    assert sorted(found) == sorted((row.name, kind) for row, kind in EVERY)
    return {key: Face(address) for key, address in zip(found, added, strict=True)}


def loaded(built: Path, folder: Path) -> Library:
    """The library loaded once more, with nothing registered."""
    return Library(Path(shutil.copy(built, folder / "ops.so")))


class Kernels:
    """Kernels of one operator in one type before a played runtime."""

    def __init__(self, faces: Mapping[tuple[str, int], Face], row: Operator, kind: int = FLOAT16):
        self.row, self.kind = row, kind
        self.face = faces[row.name, kind]
        self.played = Played()

    def refused(self, **changes: Any) -> Status:
        """The status of attributes that are wrong."""
        kernel, status = self.face.create(self.played, attributes_of(self.row, **changes))
        assert kernel is None
        assert status is not None
        return status

    def run(self, inputs: Sequence[list[int] | None]) -> Status:
        """The status of inputs that cannot run here."""
        kernel, status = self.face.create(self.played, attributes_of(self.row))
        assert status is None
        assert kernel is not None
        try:
            self.played.start()
            status = self.face.compute(self.played, kernel, inputs)
        finally:
            self.face.destroy(kernel)
        assert status is not None
        return status


# The file


def test_exports_what_is_looked_for_and_nothing_else(built: Path) -> None:
    nm = shutil.which("nm") or pytest.skip("needs nm")
    said = subprocess.run([nm, "-D", "--defined-only", built], capture_output=True, text=True, check=True).stdout
    assert sorted(line.split()[-1] for line in said.splitlines()) == ["RegisterCustomOps", "ribsr_interface_version"]


def test_needs_libraries_of_the_system_alone(built: Path) -> None:
    """No CUDA, cuDNN, ONNX Runtime or PyTorch: it loads where none of them is."""
    readelf = shutil.which("readelf") or pytest.skip("needs readelf")
    said = subprocess.run([readelf, "-d", built], capture_output=True, text=True, check=True).stdout
    needed = [line.split("[")[1].rstrip("]") for line in said.splitlines() if "(NEEDED)" in line]
    own = ("libc.so", "libm.so", "libdl.so", "librt.so", "libpthread.so", "ld-linux")
    assert [name for name in needed if not name.startswith(own)] == []
    library.opened(built)


def test_a_second_build_makes_nothing(built: Path) -> None:
    assert compiler.build_onnxruntime() == (built, False)


# ONNX Runtime itself, the CPU's


def model_of(row: Operator, kind: int, output: int | None = None, drop: str = "") -> Any:
    """A node behind another: of a result of the operator, so that its type must have been found out.

    output: the type that the graph says its output has, if not kind. drop: an input that is missing.
    """
    from onnx import helper

    shapes = dict(zip(row.tensors, shaped(row.tensors), strict=True))
    attributes = attributes_of(row) | operators.TENSORRT
    names = ["" if name == drop else name for name in shapes]
    results = [*row.outputs, *(["workspace"] if row.has_workspace else [])]
    norm, channels = ["after_weight", "after_bias"], shaped(row.outputs)[0][3]
    nodes = [
        helper.make_node(row.name, names, results, domain=operators.DOMAIN, **attributes),
        helper.make_node(CHANNEL_LAYER_NORM.name, [results[0], *norm], ["y"], domain=operators.DOMAIN, epsilon=1e-5),
    ]
    inputs = {name: shape for name, shape in shapes.items() if name != drop} | dict.fromkeys(norm, [channels])
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("y", output or kind, [None] * 4)],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(operators.DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def opened(built: Path, model: Any) -> Exception:
    """With what the CPU's ONNX Runtime fails on a model."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(built))
    with pytest.raises(Exception) as info:  # noqa: PT011 (they have no base class of their own)
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return info.value


@every
def test_schemas_and_types_are_right(built: Path, row: Operator, kind: int) -> None:
    """All that is missing to a model is a kernel on the CPU."""
    error = opened(built, model_of(row, kind))
    assert type(error).__name__ == "NotImplemented", error
    assert f"Could not find an implementation for {row.name}(1)" in str(error)
    for optional in row.optional:
        assert type(opened(built, model_of(row, kind, drop=optional))).__name__ == "NotImplemented"


@pytest.mark.parametrize("row", OPERATORS, ids=lambda row: row.short)
def test_other_types_and_missing_inputs_are_no_graph(built: Path, row: Operator) -> None:
    for model in (model_of(row, 1), model_of(row, FLOAT16, output=1), model_of(row, FLOAT16, output=BFLOAT16)):
        error = opened(built, model)
        assert type(error).__name__ in ("InvalidGraph", "Fail"), error
        assert "Type" in str(error)
    for name in row.tensors.keys() - set(row.optional):
        error = opened(built, model_of(row, FLOAT16, drop=name))
        assert type(error).__name__ in ("InvalidGraph", "Fail"), (name, error)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, dtype) for name in ("sst-light", "sst-l+") for dtype in ("fp16", "bf16")), ("esc-rib", "fp16")],
)
def test_whole_networks_are_graphs(built: Path, name: str, dtype: str) -> None:
    """As the engine rewrites them: types go together from end to end.

    Not esc-rib's in bfloat16, of which convolutions of ONNX are left: those take it from opset 22 on.
    """
    pytest.importorskip("torch")
    from export import lower
    from plugins.channels_last import to_channels_last
    from tests.plugins.test_fuse import half_of, small

    model = to_channels_last(lower.lower(half_of(small(name, 17), dtype), "plugin"))
    error = opened(built, model)
    assert type(error).__name__ == "NotImplemented", error


def test_sessions_in_threads(built: Path) -> None:
    models = [model_of(row, kind) for row, kind in EVERY] * 2
    with ThreadPoolExecutor(2) as pool:
        errors = list(pool.map(lambda model: opened(built, model), models))
    assert {type(error).__name__ for error in errors} == {"NotImplemented"}


# Registration


def test_a_domain_is_made_once_and_added_to_every_session(built: Path, tmp_path: Path) -> None:
    ops, played = loaded(built, tmp_path), Played()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda options: ops.register(played, options), range(1, 9))) == [None] * 8
    (domain,) = played.domains
    assert sorted(played.added) == [(options, domain) for options in range(1, 9)]
    assert len(set(played.domains[domain])) == len(EVERY)


def test_what_fails_while_registering_is_passed_on(built: Path, tmp_path: Path) -> None:
    """And the next session registers all the same, with all operators once."""
    ops, played = loaded(built, tmp_path), Played()
    steps = ["CreateCustomOpDomain", *["CustomOpDomain_Add"] * len(EVERY), "AddCustomOpDomain"]
    for number, step in enumerate(steps):
        played.start(fail=number)
        assert ops.register(played, 5) == Status(6, f"{step} fails")
        assert played.calls == steps[: number + 1]
        assert played.added == []
    played.start()
    assert ops.register(played, 5) is None
    assert played.calls == ["AddCustomOpDomain"]  # the domain was complete before
    ((options, domain),) = played.added
    assert options == 5
    assert len(set(played.domains[domain])) == len(played.domains[domain]) == len(EVERY)


def test_a_runtime_that_is_too_old_is_told_so(built: Path, tmp_path: Path) -> None:
    ops, played = loaded(built, tmp_path), Played("1.15.1", most=VERSION - 1)
    status = ops.register(played, 5)
    assert status == Status(FAIL, "ribsr's operators need ONNX Runtime 1.16 or later, this is 1.15.1")
    assert played.calls == []
    assert ops.register(Played("1.16.0", most=VERSION), 5) is None


# What an operator says of itself


@every
def test_operators_describe_themselves_as_the_table_does(
    faces: dict[tuple[str, int], Face], row: Operator, kind: int
) -> None:
    face = faces[row.name, kind]
    op, own = face.op, face.address
    assert op.version == VERSION
    assert op.GetExecutionProviderType(own) == b"CUDAExecutionProvider"
    inputs, outputs = op.GetInputTypeCount(own), op.GetOutputTypeCount(own)
    assert (inputs, outputs) == (len(row.tensors), len(row.outputs) + row.has_workspace)
    assert {op.GetInputType(own, i) for i in range(inputs)} == {kind}
    assert {op.GetOutputType(own, i) for i in range(outputs)} == {kind}
    assert [op.GetInputCharacteristic(own, i) for i in range(inputs)] == [name in row.optional for name in row.tensors]
    assert {op.GetOutputCharacteristic(own, i) for i in range(outputs)} == {0}
    assert {op.GetInputMemoryType(own, i) for i in range(inputs)} == {0}
    assert op.CreateKernel is None
    assert op.KernelCompute is None


# Attributes


def memory_of(row: Operator) -> type[ctypes.Structure]:
    """What a kernel is in memory: the runtime, the attributes and the type."""
    kinds = {"int": ctypes.c_int32, "bool": ctypes.c_int32, "ints": ctypes.c_int32 * 2, "float": ctypes.c_float}
    own = [(attribute.name, kinds[attribute.kind]) for attribute in row.attributes]
    fields = [("api", ctypes.c_void_p), *own, ("dtype", ctypes.c_int32)]
    return type(f"{row.name}Kernel", (ctypes.Structure,), {"_fields_": fields})


@every
def test_kernels_have_their_attributes(faces: dict[tuple[str, int], Face], row: Operator, kind: int) -> None:
    """Each its own, also after another was made; attributes of TensorRT's are nobody's business."""
    face, played = faces[row.name, kind], Played()
    wanted = attributes_of(row)
    kernel, status = face.create(played, wanted | operators.TENSORRT)
    other = {"int": 1, "bool": 0, "ints": [7, 9], "float": 2.5}
    second, other_status = face.create(played, {one.name: other[one.kind] for one in row.attributes})
    assert (status, other_status) == (None, None)
    assert kernel is not None
    assert second not in (None, kernel)
    found = memory_of(row).from_address(kernel)
    assert found.api == played.api
    assert found.dtype == {FLOAT16: library.FLOAT16, BFLOAT16: library.BFLOAT16}[kind]
    for name, value in wanted.items():
        given = getattr(found, name)
        assert (list(given) if isinstance(value, list) else given) == value, name
    face.destroy(kernel)
    face.destroy(second)


@every
def test_what_fails_while_reading_attributes_is_passed_on(
    faces: dict[tuple[str, int], Face], row: Operator, kind: int
) -> None:
    face, played = faces[row.name, kind], Played()
    kernel, _ = face.create(played, attributes_of(row))
    assert kernel is not None
    face.destroy(kernel)
    steps = list(played.calls)
    assert len(steps) == len(row.attributes)
    for number, step in enumerate(steps):
        played.start(fail=number)
        assert face.create(played, attributes_of(row)) == (None, Status(6, f"{step} fails"))
        assert len(played.calls) == number + 1
    for attribute in row.attributes:
        played.start()
        kernel, status = face.create(played, attributes_of(row, **{attribute.name: None}))
        assert kernel is None
        assert status is not None
        assert attribute.name in status.message


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        (CYCLIC_WINDOW_ATTENTION, {"heads": 1 << 32}, "attribute heads is 4294967296, more than 32 bits"),
        (CYCLIC_WINDOW_ATTENTION, {"shift": [0, -(1 << 31) - 1]}, "attribute shift is -2147483649, more than 32 bits"),
        (CYCLIC_WINDOW_ATTENTION, {"window": [1 << 33, 8]}, "attribute window is 8589934592, more than 32 bits"),
        (CYCLIC_WINDOW_ATTENTION, {"window": [8]}, "attribute window must be 2 values"),
        (CYCLIC_WINDOW_ATTENTION, {"shift": []}, "attribute shift must be 2 values"),
        (CYCLIC_WINDOW_ATTENTION, {"window": [8, 1]}, "attribute window is 8, 1: each side must be 2 to 128"),
        (CYCLIC_WINDOW_ATTENTION, {"window": [129, 8]}, "attribute window is 129, 8: each side must be 2 to 128"),
        (CYCLIC_WINDOW_ATTENTION, {"heads": 0}, "attribute heads is 0: it must be positive"),
        (CYCLIC_WINDOW_ATTENTION, {"scale": 0.0}, "attribute scale is 0: it must be positive"),
        (CYCLIC_WINDOW_ATTENTION, {"scale": math.nan}, "attribute scale is nan: it must be positive"),
        (CYCLIC_WINDOW_ATTENTION, {"gate_sigmoid": 2}, "attribute gate_sigmoid is 2: it must be 0 or 1"),
        (CHANNEL_LAYER_NORM, {"epsilon": -1e-5}, "attribute epsilon is -1e-05: it must not be negative"),
        (FEED_FORWARD, {"epsilon": math.inf}, "attribute epsilon is inf: it must not be negative"),
        (ATTENTION_INPUTS, {"epsilon": -1.0}, "attribute epsilon is -1: it must not be negative"),
        (DEPTHWISE_CONV3X3, {"add_gelu": 2}, "attribute add_gelu is 2: it must be 0 or 1"),
        (DEPTHWISE_CONV3X3, {"input_gelu": -1}, "attribute input_gelu is -1: it must be 0 or 1"),
        (CONVOLUTION, {"negative_slope": math.inf}, "attribute negative_slope is inf"),
    ],
)
def test_wrong_attributes_are_named_in_one_line(
    faces: dict[tuple[str, int], Face], row: Operator, changes: dict[str, Any], message: str
) -> None:
    assert Kernels(faces, row).refused(**changes) == Status(INVALID_ARGUMENT, f"{row.name}: {message}")


def test_too_many_values_are_the_runtimes_complaint(faces: dict[tuple[str, int], Face]) -> None:
    status = Kernels(faces, CYCLIC_WINDOW_ATTENTION).refused(window=[8, 8, 8])
    assert status == Status(INVALID_ARGUMENT, "Result buffer is not large enough")


def test_threads_complain_of_their_own(faces: dict[tuple[str, int], Face]) -> None:
    def complaints(heads: int) -> set[str]:
        kernels = Kernels(faces, CYCLIC_WINDOW_ATTENTION)
        return {kernels.refused(heads=-heads).message for _ in range(200)}

    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(complaints, range(4)))
    assert said == [{f"CyclicWindowAttention: attribute heads is {-heads}: it must be positive"} for heads in range(4)]


# Runs


def test_shapes_that_do_not_go_together(faces: dict[tuple[str, int], Face]) -> None:
    """One value more in any input, a dimension more or less, and a scalar: before there is any output."""
    for row, kind in EVERY:
        kernels, right = Kernels(faces, row, kind), shaped(row.tensors)
        for i, name in enumerate(row.tensors):
            shape = right[i]
            more, scalar = [*shape[:-1], shape[-1] + 1], []
            for wrong in (more, [*shape, 1], shape[:-1] if len(shape) > 1 else [*shape, 2], [1, *shape], scalar):
                if wrong == scalar and name in row.optional:
                    continue
                status = kernels.run([*right[:i], wrong, *right[i + 1 :]])
                assert status.code == INVALID_ARGUMENT, (name, wrong)
                assert status.message.startswith(f"{row.name}: ")
                assert "\n" not in status.message
                assert kernels.played.outputs == {}


@pytest.mark.parametrize("axis", range(3))
def test_maps_of_other_sizes(faces: dict[tuple[str, int], Face], axis: int) -> None:
    for row, name in ((CYCLIC_WINDOW_ATTENTION, "gate"), (CONVOLUTION, "residual")):
        shapes: list[list[int] | None] = [*shaped(row.tensors)]
        shape = shapes[list(row.tensors).index(name)]
        assert shape is not None
        shape[axis] += 1
        status = Kernels(faces, row).run(shapes)
        assert status.code == INVALID_ARGUMENT
        assert name in status.message


def test_a_residual_that_would_be_repeated_is_refused(faces: dict[tuple[str, int], Face]) -> None:
    shapes = shaped(CONVOLUTION.tensors)
    status = Kernels(faces, CONVOLUTION).run([shapes[0], [1, 1, 1, shapes[1][3]], *shapes[2:]])
    assert status.code == INVALID_ARGUMENT


@every
def test_too_many_dimensions(faces: dict[tuple[str, int], Face], row: Operator, kind: int) -> None:
    right = shaped(row.tensors)
    for i in range(len(right)):
        status = Kernels(faces, row, kind).run([*right[:i], [1] * 9, *right[i + 1 :]])
        assert status == Status(INVALID_ARGUMENT, "a tensor has 9 dimensions")


@every
def test_missing_inputs(faces: dict[tuple[str, int], Face], row: Operator, kind: int) -> None:
    right = shaped(row.tensors)
    for i, name in enumerate(row.tensors):
        if name not in row.optional:
            status = Kernels(faces, row, kind).run([*right[:i], None, *right[i + 1 :]])
            assert status.code == INVALID_ARGUMENT
            assert status.message.startswith(f"{row.name}: ")


@without_gpu
@every
def test_right_calls_come_to_the_gpu_that_is_missing(
    faces: dict[tuple[str, int], Face], row: Operator, kind: int
) -> None:
    """With outputs of the right shapes, and a workspace of as many values of two bytes as the kernel needs."""
    kernels, right = Kernels(faces, row, kind), shaped(row.tensors)
    missing = [index for index, name in enumerate(row.tensors) if name in row.optional]
    for inputs in (right, [None if index in missing else shape for index, shape in enumerate(right)]):
        status = kernels.run(inputs)
        assert status.code == FAIL
        assert status.message.startswith(f"{row.name}: ")
        assert "CUDA" in status.message
        expected = shaped(row.outputs) + [[0]] * row.has_workspace
        assert kernels.played.outputs == dict(enumerate(expected))


@without_gpu
@pytest.mark.parametrize("row", [FEED_FORWARD, ATTENTION_INPUTS], ids=lambda row: row.short)
def test_wide_layers_have_a_workspace(
    faces: dict[tuple[str, int], Face], row: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler.build()
    monkeypatch.setenv(library.VARIABLE, str(compiler.LIBRARY))
    library.load.cache_clear()
    needed = library.workspace(row, *(WIDE[name] for name in row.widths.names))
    assert needed > 0
    kernels, inputs = Kernels(faces, row), shaped(row.tensors, WIDE)
    status = kernels.run(inputs)
    assert status.code == FAIL
    assert "CUDA" in status.message
    assert kernels.played.outputs[len(row.outputs)] == [(needed + 1) // 2]
    kernels.played.no_output = {len(row.outputs)}
    assert "workspace must be" in kernels.run(inputs).message


@without_gpu
@every
def test_outputs_that_a_model_leaves_out(faces: dict[tuple[str, int], Face], row: Operator, kind: int) -> None:
    for output in range(len(row.outputs)):
        kernels = Kernels(faces, row, kind)
        kernels.played.no_output = {output}
        status = kernels.run(shaped(row.tensors))
        assert status.code == FAIL
        assert "null" in status.message


@without_gpu
@every
def test_what_fails_during_a_run_is_passed_on(faces: dict[tuple[str, int], Face], row: Operator, kind: int) -> None:
    """Whatever of the runtime fails, its status arrives, alone, and all shapes are released."""
    face, played = faces[row.name, kind], Played()
    kernel, _ = face.create(played, attributes_of(row))
    assert kernel is not None
    played.start()
    face.compute(played, kernel, shaped(row.tensors))
    steps = list(played.calls)
    used = {name for name in PLACES if name.startswith(("Get", "KernelContext"))}
    assert set(steps) == used - {"KernelContext_ParallelFor"}  # which kernels for CPUs need
    for number, step in enumerate(steps):
        played.start(fail=number)
        assert face.compute(played, kernel, shaped(row.tensors)) == Status(6, f"{step} fails")
        assert len(played.calls) == number + 1
    face.destroy(kernel)


# The header


HEADER = """
#include <stddef.h>
#include <stdint.h>
#define ORT_API_VERSION {version}
enum OrtErrorCode {{ ORT_OK, ORT_FAIL, ORT_INVALID_ARGUMENT }};
enum OrtMemType {{ OrtMemTypeCPUInput = -2, OrtMemTypeDefault = 0 }};
enum ONNXTensorElementDataType {{
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 = {half},
  ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 = 16
}};
enum OrtCustomOpInputOutputCharacteristic {{ INPUT_OUTPUT_REQUIRED, INPUT_OUTPUT_OPTIONAL }};
struct OrtApi {{ {api} }};
struct OrtApiBase {{ void *GetApi, *GetVersionString; }};
struct OrtCustomOp {{ uint32_t version; {op} }};
"""


def header(moved: str = "", version: int = PARALLEL_VERSION, half: int = FLOAT16) -> str:
    """What header.cpp compares with, as it was for the played runtime. moved: the member that comes one place later."""
    names = {place: name for name, (place, _) in PLACES.items()}
    members = [names.get(place, f"place{place}") for place in range(280)]
    ops = [field[0] for field in CustomOp._fields_[1:]]
    for among in (members, ops):
        if moved in among:
            among.insert(among.index(moved), "inserted")
    api, op = (" ".join(f"void *{name};" for name in among) for among in (members, ops))
    return HEADER.format(version=version, half=half, api=api, op=op)


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """Where the library can be built again, the kernels being compiled, and with a folder for a header."""
    kernels = f"{compiler.LIBRARY.stem}.objects"
    shutil.copytree(built.parent / kernels, tmp_path / "build" / kernels, copy_function=os.symlink)
    (tmp_path / "include").mkdir()
    return tmp_path


def test_a_header_that_agrees_is_compiled_with_it(folder: Path) -> None:
    (folder / "include" / "onnxruntime_c_api.h").write_text(header())
    made, anew = compiler.build_onnxruntime(folder / "include", folder / "build")
    assert anew
    assert (folder / "build" / f"{made.stem}.objects" / "onnxruntime.header.cpp.o").exists()
    library.opened(made)
    assert compiler.build_onnxruntime(folder / "include", folder / "build") == (made, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moved": "ReleaseTensorTypeAndShapeInfo"}, "interface.h has ReleaseTensorTypeAndShapeInfo in another place"),
        ({"moved": "KernelContext_GetGPUComputeStream"}, "has KernelContext_GetGPUComputeStream in another place"),
        ({"moved": "KernelComputeV2"}, "interface.h has KernelComputeV2 in another place"),
        ({"moved": "KernelContext_ParallelFor"}, "has KernelContext_ParallelFor in another place"),
        ({"version": VERSION}, "this ONNX Runtime is older than the first that the operators run in"),
        ({"half": 11}, "interface.h has other numbers of types"),
    ],
)
def test_a_header_that_differs_stops_the_build(folder: Path, changes: dict[str, Any], message: str) -> None:
    (folder / "include" / "onnxruntime_c_api.h").write_text(header(**changes))
    with pytest.raises(compiler.BuildError) as info:
        compiler.build_onnxruntime(folder / "include", folder / "build")
    assert message in str(info.value)
    assert "\n" not in str(info.value)
    assert not (folder / "build" / "libribsr_onnxruntime.so").exists()


def test_the_header_is_found_where_sources_and_archives_have_it(tmp_path: Path) -> None:
    for below in (".", "onnxruntime", "onnxruntime/core/session"):
        given = tmp_path / f"{len(below)} letters"
        (given / below).mkdir(parents=True)
        (given / below / "onnxruntime_c_api.h").touch()
        assert compiler.onnxruntime_include(given) == given / below


def test_a_folder_without_header_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    command = ["--onnxruntime-include", str(tmp_path), "-o", str(tmp_path / "out" / "kernels.so")]
    result = CliRunner().invoke(build.main, command)
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {tmp_path} has no onnxruntime_c_api.h: name the include folder of ")
    assert result.output.count("\n") == 1
    assert not (tmp_path / "out").exists()
