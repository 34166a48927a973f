"""Reading an ONNX file's metadata without an ONNX package: how a file is told to be this toolkit's."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from engines.base import HALVES, PRECISIONS, EngineError, Stamp
from ribsr.base.errors import shown
from ribsr.base.files import foreign
from ribsr.base.settings import checked, parse_json

T = TypeVar("T")

PREFIX = "ribsr."
PRODUCER = "ribsr"
"""Of our files, in a field that tools keep which drop metadata."""

OPERATOR = b"CyclicWindowAttention"

UNKNOWN = "unknown"
"""What only metadata tells, where it was dropped: the model's name, our release."""

CORES = {b"MultiHeadAttention": ("mha", 1), b"Attention": ("attention", 2), b"Softmax": ("matmul", 2)}
"""The operator of a flat form's attentions: the form, and which dimension of its output is the tokens of a window."""

_PRODUCER, _GRAPH, _METADATA_PROPS, _FUNCTION = 2, 7, 14, 25  # of ModelProto in onnx.proto
_NODE, _INITIALIZER, _VALUE_INFO = 1, 5, 13  # of GraphProto
_DIMS, _DATA_TYPE, _DATA_LOCATION = 1, 2, 14  # of TensorProto; the last is 1 where the data is in another file
_FUNCTION_NAME = 1  # of FunctionProto

_TYPES = {1: "fp32", 10: "fp16", 16: "bf16"}  # of TensorProto.DataType
_EXACT = (6, 7, 9)  # int32, int64, bool: of indices and shapes

MOST_FIELDS = 100_000
"""Of a message. The graph of the largest published model has some 2,000 nodes and weights."""

LONGEST = 2**20
"""Bytes of an entry of metadata."""

LARGEST_NODE = 2**12
"""Bytes of a node that is read: those that say something of the model hold no weights."""

LARGEST_SCALE, LARGEST_WINDOW, MOST_WINDOWS = 64, 1024, 1000


def stamp_of(values: Mapping[str, Any]) -> Stamp:
    """Raises KeyError for a field that is missing, ValueError for one that is impossible; it says which."""
    if not isinstance(values, Mapping):
        raise ValueError(f"must be a section, got {shown(values)}")
    known = dict(values)
    if "attention" in values:
        known.setdefault("form", values["attention"])  # its name until 0.1
    stamp = Stamp(**checked(Stamp, {of.name: known[of.name] for of in fields(Stamp)}))
    if not 1 <= stamp.scale <= LARGEST_SCALE:
        raise ValueError(f"scale must be 1 to {LARGEST_SCALE}, got {shown(stamp.scale)}")
    sides = [side for window in stamp.windows for side in window]
    if not 1 <= len(stamp.windows) <= MOST_WINDOWS or not all(1 <= side <= LARGEST_WINDOW for side in sides):
        raise ValueError(f"windows must have sides of 1 to {LARGEST_WINDOW}, got {shown(values['windows'])}")
    if stamp.precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {shown(stamp.precision)}")
    return stamp


def read_stamp(path: str | Path) -> Stamp:
    """The stamp of an ONNX file, compared with what the graph's nodes say of scale and windows.

    Where a tool has dropped all metadata of a file of ours, the stamp is what the graph says; the checkpoint's hash is
    empty then, the model and the version are UNKNOWN.

    Raises EngineError: the file is missing, no ONNX file, cut short, made by another tool, its stamp is damaged or
    another graph's, or what a tool has dropped cannot be read from the graph.
    """
    properties, said = _read(path)
    values: dict[str, Any] = {key[len(PREFIX) :]: text for key, text in properties.items() if key.startswith(PREFIX)}
    if not values and said.producer != PRODUCER:
        raise EngineError(f"{path}: was made by another tool; make one with python -m export.onnx --ckpt MODEL.pt")
    try:
        known = {**values, **{name: _parsed(name, values[name]) for name in ("scale", "windows")}} if values else None
        stamp = stamp_of(known or _from_graph(said))
    except _Missing as error:
        raise EngineError(f"{path}: a tool has dropped its metadata, and its graph {error}; export it again") from None
    except KeyError as error:
        raise EngineError(f"{path}: its metadata lacks {PREFIX}{error.args[0]}; export it again") from None
    except ValueError as error:
        raise EngineError(f"{path}: its metadata is damaged ({PREFIX}{error}); export it again") from None
    if other := said.scales - {stamp.scale}:
        graph = ", ".join(f"x{scale}" for scale in sorted(other))
        raise EngineError(f"{path}: its metadata says x{stamp.scale}, its graph {graph}; export it again")
    if said.windows != list(stamp.windows) * (len(said.windows) // len(stamp.windows)):
        raise EngineError(f"{path}: its metadata names other windows than its graph has; export it again")
    if said.windows and not (said.has_body or said.is_plugin):
        raise EngineError(
            f"{path}: its {OPERATOR.decode()} nodes have lost the function that says what they compute, as in onnx's "
            "version converter; export it again, with --opset if another is needed"
        )
    return stamp


class _Missing(Exception):
    """What a graph does not say of a file whose metadata is gone."""


def _from_graph(said: _Said) -> dict[str, Any]:
    """The fields of a stamp, as the graph says them. Raises _Missing rather than guess."""
    if len(said.scales) != 1:
        raise _Missing("does not say the scale (one DepthToSpace does)")
    form, windows = _attentions(said)
    if said.types - set(_TYPES) - set(_EXACT):
        raise _Missing("has weights of another type than float32, float16 and bfloat16")
    halves = [name for type_, name in _TYPES.items() if type_ in said.types and name in HALVES]
    if len(halves) > 1:
        raise _Missing(f"does not say the precision (its weights are in {' and '.join(halves)})")
    return {
        "model": UNKNOWN,
        "scale": next(iter(said.scales)),
        "windows": [list(window) for window in _period(windows)],
        "precision": halves[0] if halves else "fp32",
        "form": form,
        "version": UNKNOWN,
        "checkpoint_sha256": "",
    }


def _attentions(said: _Said) -> tuple[str, list[tuple[int, ...]]]:
    """The form, and each attention's window. In a flat form the shape of an attention's output tells its tokens; the
    windows of all our networks are squares."""
    if said.windows:
        return "plugin" if said.is_plugin else "canonical", said.windows
    cores = [(CORES[kind], output) for kind, output in said.outputs if kind in CORES]
    forms = {form for (form, _), _ in cores}
    if len(forms) != 1:
        raise _Missing("does not say the form of its attention")
    windows = []
    for (_, axis), output in cores:
        tokens = (said.shapes.get(output, ()) + 4 * (0,))[axis]
        side = math.isqrt(tokens)
        if not tokens or side * side != tokens:
            raise _Missing("does not say the windows (the shapes of its attentions' outputs do)")
        windows.append((side, side))
    return forms.pop(), windows


def _period(windows: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The shortest list that gives `windows` by being repeated: those of a block."""
    whole = len(windows)
    return next(windows[:n] for n in range(1, whole + 1) if whole % n == 0 and windows[:n] * (whole // n) == windows)


def _parsed(name: str, text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{name} is {error}") from None


@dataclass
class _Said:
    """What a file says of itself beside its metadata.

    producer: of the file. scales: of its pixel shuffles. windows: of its attention nodes in their order. is_plugin:
    whether those have an attribute that the form `plugin` alone has. outputs: the operator and the output of all nodes
    in their order. shapes: of declared tensors, 0 where any size will do. types: of weights. has_body: whether it
    carries the function of the attention nodes.
    """

    producer: str = ""
    scales: set[int] = field(default_factory=set)
    windows: list[tuple[int, ...]] = field(default_factory=list)
    outputs: list[tuple[bytes, bytes]] = field(default_factory=list)
    shapes: dict[bytes, tuple[int, ...]] = field(default_factory=dict)
    types: set[int] = field(default_factory=set)
    has_body: bool = False
    is_plugin: bool = False


def read_properties(path: str | Path) -> dict[str, str]:
    """All of an ONNX file's metadata_props. Raises EngineError as `read_stamp` does for what is no ONNX file."""
    return _read(path)[0]


def _read(path: str | Path) -> tuple[dict[str, str], _Said]:
    """Metadata, and what the graph says. Skips over weights, so it takes no time on a large file."""
    if not Path(path).is_file():
        raise EngineError(f"{path}: no such file")
    if what := foreign(path):
        raise EngineError(f"{path}: {what}")
    properties, said, graphs = {}, _Said(), 0
    with open(path, "rb") as file:
        try:
            for number, wire, size in _fields(file, os.fstat(file.fileno()).st_size):
                if number == _GRAPH and wire == 2:
                    _read_graph(file, size, said)
                    graphs += 1
                elif number == _PRODUCER and size <= LONGEST:
                    said.producer = file.read(size).decode()
                elif number == _FUNCTION:
                    said.has_body |= any(
                        file.read(end - file.tell()) == OPERATOR
                        for _, end in _contents(file, file.tell() + size, _FUNCTION_NAME)
                    )
                elif number == _METADATA_PROPS and size <= LONGEST:
                    parts = _message(file.read(size))
                    key, value = (b"".join(of for of in parts.get(part, [])[-1:] if of) for part in (1, 2))
                    properties[key.decode()] = value.decode()
        except (ValueError, TypeError, EOFError):
            raise EngineError(f"{path}: not an ONNX file, or cut short; export or copy it again") from None
    if not graphs:
        raise EngineError(f"{path}: not an ONNX file (it holds no graph)")
    return properties, said


def read_shapes(path: str | Path) -> list[tuple[int, ...]]:
    """The shapes of an ONNX file's weights, without reading them. Raises EngineError for a file that cannot be read."""

    def shape(file: BinaryIO, end: int) -> tuple[int, ...]:
        return tuple(size for found in _contents(file, end, _DIMS) for size in _numbers(file, *found))

    return _of_weights(path, shape)


def has_external_data(path: str | Path) -> bool:
    """Whether weights of an ONNX file are in another file. Raises EngineError for a file that cannot be read."""
    return any(_of_weights(path, lambda file, end: (1, 0) in _contents(file, end, _DATA_LOCATION)))


def _of_weights(path: str | Path, read: Callable[[BinaryIO, int], T]) -> list[T]:
    """read(file, where it ends) of each weight's message, at whose beginning the file stands."""
    try:
        with open(path, "rb") as file:
            return [
                read(file, tensor)
                for _, graph in _contents(file, os.fstat(file.fileno()).st_size, _GRAPH)
                for _, tensor in _contents(file, graph, _INITIALIZER)
            ]
    except (ValueError, EOFError):
        raise EngineError(f"{path}: not an ONNX file, or cut short; export or copy it again") from None


def _contents(file: BinaryIO, end: int, wanted: int) -> Iterator[tuple[int | None, int]]:
    """The fields `wanted` of the protobuf message up to `end`: a whole number or None, and where its content ends."""
    for number, wire, value in _fields(file, end):
        if number == wanted:
            yield (value, 0) if wire == 0 else (None, file.tell() + value)


def _numbers(file: BinaryIO, value: int | None, end: int) -> Iterator[int]:
    """The numbers of a field, one or packed."""
    if value is not None:
        yield value
    while value is None and file.tell() < end:
        yield _varint(file)


def _read_graph(file: BinaryIO, size: int, said: _Said) -> None:
    """Adds to `said`."""
    for number, wire, length in _fields(file, file.tell() + size):
        if wire != 2:
            continue
        if number == _INITIALIZER:
            types = _contents(file, file.tell() + length, _DATA_TYPE)
            said.types.update(value for value, _ in types if value is not None)
        elif length <= LARGEST_NODE and number == _NODE:
            _read_node(file.read(length), said)
        elif length <= LARGEST_NODE and number == _VALUE_INFO:
            _read_shape(file.read(length), said)


def _read_node(content: bytes, said: _Said) -> None:
    """A NodeProto: output 2, op_type 4, attribute 5; an AttributeProto: name 1, i 3, ints 8."""
    node = _message(content)
    kind, output = node.get(4, [b""])[-1], node.get(2, [b""])[0]
    said.outputs.append((kind, output))
    if kind not in (b"DepthToSpace", OPERATOR):
        return
    attributes = {b"".join(attribute.get(1, [])): attribute for attribute in map(_message, node.get(5, []))}
    if kind == OPERATOR:
        said.windows.append(tuple(attributes.get(b"window", {}).get(8, [])))
        said.is_plugin |= b"gate_sigmoid" in attributes
    else:
        said.scales.update(of for of in attributes.get(b"blocksize", {}).get(3, []) if isinstance(of, int))


def _read_shape(content: bytes, said: _Said) -> None:
    """A ValueInfoProto: name 1, type 2; of a tensor 1, its shape 2, its dimensions 1, the size of each 1."""
    value = _message(content)
    found = value.get(2, [b""])[-1]
    for part in (1, 2):
        found = _message(found).get(part, [b""])[-1]
    dims = (_message(dim).get(1, [0])[-1] for dim in _message(found).get(1, []))
    said.shapes[value.get(1, [b""])[-1]] = tuple(dims)


def _message(content: bytes) -> dict[int, list[Any]]:
    """A small message: its fields by their numbers, each a whole number or bytes; floats are left out."""
    file, found = io.BytesIO(content), dict[int, list[Any]]()
    for number, wire, value in _fields(file, len(content)):
        if wire in (0, 2):
            found.setdefault(number, []).append(file.read(value) if wire == 2 else value)
    return found


def _fields(file: BinaryIO, end: int) -> Iterator[tuple[int, int, int]]:
    """Fields of the protobuf message up to `end`: number, wire type, and the value of a whole number or else the size
    of the content, at which the file stands then.

    Raises EOFError or ValueError for what is no such message, or has more fields than any ONNX file.
    """
    for _ in range(MOST_FIELDS):
        if file.tell() == end:
            return
        tag = _varint(file)
        number, wire = tag >> 3, tag & 7
        if wire not in (0, 1, 2, 5) or number == 0:
            raise ValueError("not a protobuf message")
        value = _varint(file) if wire in (0, 2) else {1: 8, 5: 4}[wire]
        following = file.tell() + (0 if wire == 0 else value)
        if following > end:
            raise EOFError
        yield number, wire, value
        file.seek(following)
    raise ValueError("too many fields")


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise EOFError
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("a varint of more than ten bytes")
