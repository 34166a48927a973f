"""Reading an ONNX file's metadata without an ONNX package: how a file is told to be this toolkit's."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from engines.base import EngineError, Stamp

PREFIX = "ribsr."
_METADATA_PROPS = 14  # ModelProto.metadata_props in onnx.proto; a StringStringEntryProto is key = 1, value = 2
_GRAPH = 7  # ModelProto.graph
_INITIALIZER = 5  # GraphProto.initializer
_DIMS = 1  # TensorProto.dims


def stamp_of(values: Mapping[str, Any]) -> Stamp:
    """Raises KeyError for a field that is missing, TypeError or ValueError for an impossible scale or windows."""
    windows = tuple((int(rows), int(columns)) for rows, columns in values["windows"])
    if not windows or not are_sizes([values["scale"], *chain(*windows)]):
        raise ValueError("scale and windows are whole numbers from 1 on")
    known = {**values, "windows": windows}
    if "attention" in values:
        known.setdefault("form", values["attention"])  # its name until 0.1
    return Stamp(**{field.name: known[field.name] for field in fields(Stamp)})


def are_sizes(values: Iterable[Any]) -> bool:
    """Whether all are whole numbers from 1 on."""
    return all(isinstance(value, int) and value >= 1 for value in values)


def read_stamp(path: str | Path) -> Stamp:
    """The stamp of an ONNX file.

    Raises EngineError: the file is missing, no ONNX file, cut short, made by another tool, or its stamp is damaged.
    """
    values = {key[len(PREFIX) :]: value for key, value in read_properties(path).items() if key.startswith(PREFIX)}
    if not values:
        raise EngineError(f"{path}: was made by another tool; make one with python -m export.onnx --ckpt MODEL.pt")
    try:
        return stamp_of({**values, "scale": int(values["scale"]), "windows": json.loads(values["windows"])})
    except KeyError as error:
        raise EngineError(f"{path}: its metadata lacks {PREFIX}{error.args[0]}; export it again") from None
    except (ValueError, TypeError):
        raise EngineError(f"{path}: its metadata is damaged (scale or windows); export it again") from None


def read_properties(path: str | Path) -> dict[str, str]:
    """All of an ONNX file's metadata_props. Skips over the graph, so it takes no time on a large file."""
    if not Path(path).is_file():
        raise EngineError(f"{path}: no such file")
    properties, graph = {}, False
    with open(path, "rb") as file:
        try:
            for number, data in _fields(file, os.fstat(file.fileno()).st_size, keep=(_METADATA_PROPS,)):
                graph = graph or number == _GRAPH
                if data is not None:
                    parts = dict(_fields(io.BytesIO(data), len(data), (1, 2)))
                    key, value = ((parts.get(part) or b"").decode() for part in (1, 2))
                    properties[key] = value
        except (ValueError, EOFError):
            raise EngineError(f"{path}: not an ONNX file, or cut short; export or copy it again") from None
    if not graph:
        raise EngineError(f"{path}: not an ONNX file (it holds no graph)")
    return properties


def read_shapes(path: str | Path) -> list[tuple[int, ...]]:
    """The shapes of an ONNX file's weights, without reading them. Raises EngineError for a file that cannot be read."""
    shapes = []
    try:
        with open(path, "rb") as file:
            for _, graph, after in _parts(file, 0, os.fstat(file.fileno()).st_size, _GRAPH):
                for _, tensor, end in _parts(file, graph, after, _INITIALIZER):
                    shapes.append(tuple(chain(*(_dims(file, *found) for found in _parts(file, tensor, end, _DIMS)))))
    except (ValueError, EOFError):
        raise EngineError(f"{path}: not an ONNX file, or cut short; export or copy it again") from None
    return shapes


def _parts(file: BinaryIO, start: int, end: int, wanted: int) -> Iterator[tuple[int, int, int]]:
    """The fields `wanted` of the protobuf message from `start` to `end`: wire type, and where its value is."""
    file.seek(start)
    while file.tell() < end:
        tag = _varint(file)
        number, wire = tag >> 3, tag & 7
        if wire not in (0, 1, 2, 5) or number == 0:
            raise ValueError("not a protobuf message")
        at = file.tell()
        value = _varint(file) if wire in (0, 2) else 0
        at = file.tell() if wire == 2 else at
        after = {0: file.tell(), 1: at + 8, 2: at + value, 5: at + 4}[wire]
        if after > end:
            raise EOFError
        if number == wanted:
            yield wire, at, after
        file.seek(after)


def _dims(file: BinaryIO, wire: int, start: int, end: int) -> Iterator[int]:
    """The numbers of a field of dimensions, one or packed."""
    file.seek(start)
    while file.tell() < end:
        yield _varint(file)


def _fields(file: BinaryIO, end: int, keep: tuple[int, ...]) -> Iterator[tuple[int, bytes | None]]:
    """Fields of the protobuf message up to `end`: number, and the bytes of those whose number is in `keep`."""
    while file.tell() < end:
        tag = _varint(file)
        number, wire = tag >> 3, tag & 7
        if wire not in (0, 1, 2, 5) or number == 0:
            raise ValueError("not a protobuf message")
        value = _varint(file) if wire in (0, 2) else 0
        size = {0: 0, 1: 8, 2: value, 5: 4}[wire]
        if file.tell() + size > end:
            raise EOFError
        if wire == 2 and number in keep:
            yield number, file.read(size)
        else:
            file.seek(size, os.SEEK_CUR)
            yield number, None


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
