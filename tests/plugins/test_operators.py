"""The table of operators against the C header and the runtimes' faces, as texts: neither a compiler nor a GPU."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from plugins import library, operators
from plugins.operators import CYCLIC_WINDOW_ATTENTION as ATTENTION
from plugins.operators import OPERATORS, Operator

FOLDER = Path(library.__file__).parent
HEADER = (FOLDER / "include" / "ribsr_kernels.h").read_text(encoding="utf-8")
CPU_HEADER = (FOLDER / "include" / "ribsr_cpu.h").read_text(encoding="utf-8")
TYPES = {
    "uint32_t ": ctypes.c_uint32,
    "int32_t ": ctypes.c_int32,
    "int64_t ": ctypes.c_int64,
    "float ": ctypes.c_float,
    "RibsrMap ": operators.Map,
    "void *": ctypes.c_void_p,
    "const void *": ctypes.c_void_p,
}
FUNCTIONS_OF_NO_OPERATOR = {
    "ribsr_attention_path",
    "ribsr_error_message",
    "ribsr_gpu_code",
    "ribsr_interface_version",
}

every = pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)


def source(pattern: str) -> str:
    """The text of the files of plugins/src that have such a name."""
    files = sorted((FOLDER / "src").glob(pattern))
    assert files
    return "".join(file.read_text(encoding="utf-8") for file in files)


def structures(header: str) -> dict[str, list[tuple[str, type]]]:
    """Each structure's fields, names and types in order."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    found = {}
    for body, name in re.findall(r"typedef struct \{(.*?)\} (\w+);", text, re.DOTALL):
        fields = found[name] = []
        for declaration in filter(None, map(str.strip, body.split(";"))):
            kind = next(kind for kind in TYPES if declaration.startswith(kind))
            fields += [(field.strip(), TYPES[kind]) for field in declaration.removeprefix(kind).split(",")]
    return found


def in_c(fields: object) -> list[tuple[str, type]]:
    """A ctypes structure's fields as the header names them: Python has no variables called `in`."""
    assert isinstance(fields, (list, tuple))
    return [("in" if name == "x" else name, kind) for name, kind in fields]


def test_structures_are_those_of_the_header() -> None:
    expected = {operator.struct: in_c(operator.params._fields_) for operator in OPERATORS}
    assert structures(HEADER) == {"RibsrMap": in_c(operators.Map._fields_), **expected}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("int32_t batch, height, width;", "int32_t batch, width, height;"),
        ("int32_t dtype;        /* of all ten arrays */", ""),
        ("int32_t gate_sigmoid; ", "int64_t gate_sigmoid; "),
        ("const void *mix_bias; ", "const void *mixed_bias; "),
        ("const void *weight; /* [channels], contiguous */\n  const void *bias;", "const void *bias, *weight;"),
        ("RibsrMap in, qkv, gate; ", "RibsrMap in, gate, qkv; "),
        ("void *workspace; ", ""),
        ("float scale; ", "float scale, other; "),
        ("} RibsrDepthwiseParams;", "} RibsrOtherParams;"),
    ],
)
def test_other_structures_would_be_noticed(before: str, after: str) -> None:
    assert before in HEADER
    assert structures(HEADER.replace(before, after, 1)) != structures(HEADER)


def test_functions_are_those_of_the_header() -> None:
    text = re.sub(r"/\*.*?\*/", "", HEADER, flags=re.DOTALL)
    found = {name: (kind, given) for kind, name, given in re.findall(r"RIBSR_API (\w+) (ribsr_\w+)\((.*?)\);", text)}
    expected = {}
    for operator in OPERATORS:
        expected[operator.function] = ("int32_t", f"const {operator.struct} *params, void *stream")
        if operator.has_workspace:
            widths = ", ".join(f"int32_t {name}" for name in operator.widths.names)
            expected[f"{operator.function}_workspace"] = ("int64_t", widths)
    assert {name: found[name] for name in found.keys() - FUNCTIONS_OF_NO_OPERATOR} == expected


@every
def test_shapes_are_those_that_the_header_states(operator: Operator) -> None:
    """The header leaves out dimensions of 1, and says of an attention's maps how many channels they have."""
    body = re.findall(rf"typedef struct \{{((?:(?!typedef).)*?)\}} {operator.struct};", HEADER, re.DOTALL)[0]
    stated = dict(re.findall(r"\*(\w+); *\s*/\* \[(.*?)\]", body))
    for name, shape in stated.items():
        dimensions = [dimension for dimension in operator.tensors[name].split() if dimension != "1"]
        assert shape.replace(" * ", "*").split(", ") == dimensions
    channels = dict(re.findall(r"RibsrMap (\w+); */\* ([\w* ]+) channels", body))
    for name, product in channels.items():
        assert {**operator.tensors, **operator.outputs}[name].split()[1] == product.replace(" * ", "*")
    assert len(stated) >= len(operator.weights)
    assert len(channels) == 3 or operator is not ATTENTION


def test_numbers_are_those_of_the_header() -> None:
    numbers = {name: int(value) for name, value in re.findall(r"RIBSR_(\w+) = (\d+)", HEADER)}
    assert {name: numbers[name] for name in ("FLOAT16", "BFLOAT16")} == {
        "FLOAT16": library.FLOAT16,
        "BFLOAT16": library.BFLOAT16,
    }
    of_cpus = {name: int(value) for name, value in re.findall(r"RIBSR_(\w+) = (\d+)", CPU_HEADER)}
    assert of_cpus.pop("FLOAT32") == library.FLOAT32
    assert of_cpus == {f"ISA_{name.upper()}": number for number, name in enumerate(library.ISAS)}
    paths = {name: value for name, value in numbers.items() if name.startswith("PATH_")}
    assert {f"PATH_{name.upper()}": value for name, value in library.PATHS.items()} == paths
    assert (numbers["EPILOGUE_NONE"], numbers["EPILOGUE_ADD_GELU"]) == (int(False), int(True))  # of `add_gelu`


def test_version_is_that_of_the_header() -> None:
    (version,) = re.findall(r"RIBSR_INTERFACE_VERSION = (\d+)", HEADER)
    assert int(version) == library.INTERFACE_VERSION


FACE = "runtimes/operators.h"
"""The operators as TensorRT and ONNX Runtime see them."""


def bodies() -> dict[str, str]:
    """The structure of each operator there, from its name on."""
    found = {}
    for body in re.split(r"\nstruct ", source(FACE)):
        if name := re.search(r'static constexpr const char \*name = "(\w+)"', body):
            found[name[1]] = body
    return found


def test_runtimes_have_the_same_operators() -> None:
    """Names, which inputs are maps, which may be missing, how many outputs there are, and who needs a workspace."""
    faces = {}
    for name, body in bodies().items():
        maps, optional = re.search(r"std::array maps\{(.*?)\}", body), re.search(r"optional = (\d)", body)
        assert maps
        outputs, workspace = body.count("Dimension{"), "has_workspace = true" in body
        faces[name] = (maps[1].split(", "), optional and int(optional[1]), outputs, workspace)
    expected = {}
    for row in OPERATORS:
        maps = [str(operators.is_map(shape)).lower() for shape in row.tensors.values()]
        optional = next((index for index, name in enumerate(row.tensors) if name in row.optional), None)
        expected[row.name] = (maps, optional, len(row.outputs), row.has_workspace)
    assert faces == expected


def test_each_runtime_lists_its_operators() -> None:
    lists = dict(re.findall(r"using (\w+) = List<(.*?)>;", source(FACE), re.DOTALL))
    assert re.findall(r"\w+", lists["Every"]) == [row.name for row in OPERATORS]
    assert re.findall(r"\w+", lists["TensorRTs"]) == list(operators.PLUGINS)


@every
def test_runtimes_read_the_same_attributes(operator: Operator) -> None:
    bases = dict(re.findall(r"\nstruct (\w+) : (\w+) \{", source(FACE)))
    functions = re.findall(r"> (\w+)::attributes\(\) const noexcept \{(.*?)\n\}", source("runtimes/*.cpp"), re.DOTALL)
    attributes = {name: re.findall(r'\{"(\w+)", &?\w+, Kind::(\w+), (\d)\}', body) for name, body in functions}
    kinds = {"int": ("kInt32", "1"), "bool": ("kInt32", "1"), "ints": ("kInt32", "2"), "float": ("kFloat32", "1")}
    expected = [(attribute.name, *kinds[attribute.kind]) for attribute in operator.attributes]
    assert attributes[operator.name if operator.name in attributes else bases[operator.name]] == expected


@every
def test_every_field_has_its_value(operator: Operator) -> None:
    """From shapes and attributes come all integers and floats, and the shapes again."""
    numbers = dict(zip((*operator.integers, *operator.floats), count(5), strict=False))
    attributes: dict[str, Any] = {name: numbers[name] for name in operator.options}
    for attribute in operator.attributes:
        values = [numbers[name] for name in attribute.targets]
        attributes[attribute.name] = values if attribute.kind == "ints" else values[0]
    shapes = [operators.sizes(shape, numbers) for shape in operator.tensors.values()]
    assert operator.values(shapes, **attributes) == numbers
    for i in range(len(shapes)):
        changed = [*shapes[:i], [size + 1 for size in shapes[i]], *shapes[i + 1 :]]
        if i:  # the first says how large the others are
            with pytest.raises(ValueError, match=rf"{operator.name}: {list(operator.tensors)[i]} is"):
                operator.values(changed, **attributes)
    with pytest.raises(ValueError, match=f"got {len(shapes) - 1} tensors, expected "):
        operator.values(shapes[1:], **attributes)
    with pytest.raises(TypeError, match="has no attribute other"):
        operator.values(shapes, **attributes, other=1)
    for required in (attribute.name for attribute in operator.attributes if attribute.default is None):
        with pytest.raises(TypeError, match=f"{required} is missing"):
            operator.values(shapes, **{name: value for name, value in attributes.items() if name != required})


@every
def test_optional_inputs_alone_may_be_missing(operator: Operator) -> None:
    """Their dimensions are those of other tensors, so that every field has its value without them."""
    numbers = dict(zip((*operator.integers, *operator.floats), count(5), strict=False))
    attributes: dict[str, Any] = {name: numbers[name] for name in operator.options}
    for attribute in operator.attributes:
        values = [numbers[name] for name in attribute.targets]
        attributes[attribute.name] = values if attribute.kind == "ints" else values[0]
    for missing in operator.tensors:
        shapes = [
            None if name == missing else operators.sizes(shape, numbers) for name, shape in operator.tensors.items()
        ]
        if missing in operator.optional:
            assert operator.values(shapes, **attributes) == numbers
        else:
            with pytest.raises(ValueError, match=f"{operator.name}: {missing} is None, expected "):
                operator.values(shapes, **attributes)


@pytest.mark.parametrize(
    ("head_width", "rank", "fits", "tuned"),
    [(32, 24, True, True), (16, 32, True, True), (24, 16, True, False), (32, 1, True, False), (65, 16, False, False)],
)
def test_widths_of_the_attention(head_width: int, rank: int, fits: bool, tuned: bool) -> None:
    assert ATTENTION.fits(head_width, rank) == fits
    assert ATTENTION.is_tuned(head_width, rank) == tuned


@every
def test_cpus_take_every_width(operator: Operator) -> None:
    widths = [1000 + index for index, _ in enumerate(operator.widths.names)]
    assert operator.fits(*widths, on_cpu=True)
    assert not widths or not operator.fits(*widths[1:], 0, on_cpu=True)


def test_operators_without_limits_take_any_width() -> None:
    assert operators.CHANNEL_LAYER_NORM.fits()
    assert operators.CHANNEL_LAYER_NORM.is_tuned()


def test_table_needs_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; sys.modules.update(torch=None, numpy=None); from plugins import operators; operators.OPERATORS[0]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=FOLDER.parent)


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        (
            "cyclic_window_attention",
            "(Tensor qkv, Tensor rib_q, Tensor rib_k, Tensor gate, "
            "SymInt[] window, SymInt heads, SymInt[] shift, float scale, bool gate_sigmoid=False) -> Tensor",
        ),
        ("channel_layer_norm", "(Tensor x, Tensor weight, Tensor bias, float epsilon) -> Tensor"),
        (
            "depthwise_conv3x3",
            "(Tensor x, Tensor weight, Tensor bias, bool add_gelu, bool input_gelu=False) -> Tensor",
        ),
        ("feed_forward", "(Tensor x, Tensor[] weights, float epsilon) -> Tensor"),
        ("attention_inputs", "(Tensor x, Tensor[] weights, float epsilon) -> (Tensor, Tensor)"),
        (
            "convolution",
            "(Tensor x, Tensor? residual, Tensor weight, Tensor bias, float negative_slope) -> Tensor",
        ),
    ],
)
def test_schemas_in_pytorch_stay_what_they_are(name: str, schema: str) -> None:
    torch = pytest.importorskip("torch")
    import plugins.pytorch  # noqa: F401 (registers them)

    assert str(getattr(torch.ops.ribsr, name).default._schema) == f"ribsr::{name}{schema}"
