"""A runtime that plays ONNX Runtime's part before the library of custom operators, through its C interface."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FLOAT16, BFLOAT16 = 10, 16
FAIL, INVALID_ARGUMENT = 1, 2
VERSION, PARALLEL_VERSION = 16, 17

_P, _I, _L, _C = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_char_p
_PP, _PL, _P64, _PF = (ctypes.POINTER(kind) for kind in (_P, _L, ctypes.c_int64, ctypes.c_float))

PLACES: dict[str, tuple[int, tuple[Any, ...]]] = {
    "CreateStatus": (0, (_P, _I, _C)),
    "CreateCustomOpDomain": (26, (_P, _C, _PP)),
    "CustomOpDomain_Add": (27, (_P, _P, _P)),
    "AddCustomOpDomain": (28, (_P, _P, _P)),
    "GetTensorMutableData": (51, (_P, _P, _PP)),
    "GetDimensionsCount": (61, (_P, _P, _PL)),
    "GetDimensions": (62, (_P, _P, _P64, _L)),
    "GetTensorTypeAndShape": (65, (_P, _P, _PP)),
    "KernelInfoGetAttribute_float": (85, (_P, _P, _C, _PF)),
    "KernelInfoGetAttribute_int64": (86, (_P, _P, _C, _P64)),
    "KernelContext_GetInput": (90, (_P, _P, _L, _PP)),
    "KernelContext_GetOutput": (91, (_P, _P, _L, _P64, _L, _PP)),
    "ReleaseStatus": (93, (None, _P)),
    "ReleaseTensorTypeAndShapeInfo": (99, (None, _P)),
    "KernelInfoGetAttributeArray_int64": (163, (_P, _P, _C, _P64, _PL)),
    "KernelContext_GetGPUComputeStream": (193, (_P, _P, _PP)),
    "KernelContext_ParallelFor": (274, (_P, _P, _P, _L, _L, _P)),
}
"""Where OrtApi has the functions that are used, their result and arguments; from version 16 on, the last from 17."""

NEVER_FAIL = ("CreateStatus", "ReleaseStatus", "ReleaseTensorTypeAndShapeInfo")
STREAM = 0


class CustomOp(ctypes.Structure):
    """OrtCustomOp as version 16 has it."""

    _fields_ = (
        ("version", ctypes.c_uint32),
        ("CreateKernel", _P),
        ("GetName", ctypes.CFUNCTYPE(_C, _P)),
        ("GetExecutionProviderType", ctypes.CFUNCTYPE(_C, _P)),
        ("GetInputType", ctypes.CFUNCTYPE(_I, _P, _L)),
        ("GetInputTypeCount", ctypes.CFUNCTYPE(_L, _P)),
        ("GetOutputType", ctypes.CFUNCTYPE(_I, _P, _L)),
        ("GetOutputTypeCount", ctypes.CFUNCTYPE(_L, _P)),
        ("KernelCompute", _P),
        ("KernelDestroy", ctypes.CFUNCTYPE(None, _P)),
        ("GetInputCharacteristic", ctypes.CFUNCTYPE(_I, _P, _L)),
        ("GetOutputCharacteristic", ctypes.CFUNCTYPE(_I, _P, _L)),
        ("GetInputMemoryType", ctypes.CFUNCTYPE(_I, _P, _L)),
        ("GetVariadicInputMinArity", _P),
        ("GetVariadicInputHomogeneity", _P),
        ("GetVariadicOutputMinArity", _P),
        ("GetVariadicOutputHomogeneity", _P),
        ("CreateKernelV2", ctypes.CFUNCTYPE(_P, _P, _P, _P, _PP)),
        ("KernelComputeV2", ctypes.CFUNCTYPE(_P, _P, _P)),
    )


class ApiBase(ctypes.Structure):
    _fields_ = (("GetApi", ctypes.CFUNCTYPE(_P, ctypes.c_uint32)), ("GetVersionString", ctypes.CFUNCTYPE(_P)))


@dataclass
class Status:
    code: int
    message: str


class Played:
    """The runtime: what a node's attributes and inputs are, and what was asked for.

    attributes: a float, an int or a list of ints each. inputs: dimensions, None for one that is missing. no_output:
    outputs that the model leaves out. fail: the number of the call that fails, of those in `calls`.

    Data are at addresses that nothing may read: a value's number in terabytes.
    """

    def __init__(self, version: str = "1.31.1", least: int = 1, most: int = 99):
        self.attributes: Mapping[str, Any] = {}
        self.inputs: Sequence[Sequence[int] | None] = []
        self.no_output: set[int] = set()
        self.fail: int | None = None
        self.calls: list[str] = []
        self.outputs: dict[int, list[int]] = {}
        self.wrong: list[str] = []  # what must not have happened
        self.statuses: dict[int, Status] = {}
        self.infos: dict[int, Sequence[int]] = {}
        self.domains: dict[int, list[int]] = {}
        self.added: list[tuple[int, int]] = []
        self._handles = iter(range(1000, 10**6))
        self._values: dict[int, Sequence[int]] = {}
        self._kept: list[Any] = []
        places = (ctypes.c_void_p * 280)(*(self._function(f"place {i}", (_P,)) for i in range(280)))
        for name, (place, signature) in PLACES.items():
            places[place] = self._function(name, signature)
        self._kept.append(places)
        self.api = ctypes.addressof(places)
        get_api = ApiBase._fields_[0][1](lambda wanted: self.api if least <= wanted <= most else None)
        said = ctypes.create_string_buffer(version.encode())
        get_version = ApiBase._fields_[1][1](lambda: ctypes.addressof(said))
        self.base = ApiBase(get_api, get_version)

    def _function(self, name: str, signature: tuple[Any, ...]) -> int | None:
        """The address of a function that does what the method of that name does, or fails if it is its turn."""
        method = getattr(self, name, None)

        def call(*given: Any) -> int | None:
            if method is None:
                self.wrong.append(f"{name} was called")
                return None
            if name not in NEVER_FAIL:
                self.calls.append(name)
                if self.fail == len(self.calls) - 1:
                    return self.CreateStatus(6, f"{name} fails".encode())
            try:
                return method(*given)
            except Exception as error:  # noqa: BLE001 (C has no exceptions)
                self.wrong.append(f"{name}: {error!r}")
                return None

        made = ctypes.CFUNCTYPE(*signature)(call)
        self._kept.append(made)
        return ctypes.cast(made, _P).value

    def start(self, fail: int | None = None) -> None:
        """Forgets what was asked for; fail: as above, from now on."""
        self.calls.clear()
        self.outputs.clear()
        self.fail = fail

    def take(self, status: int | None) -> Status | None:
        """What a function returned, which is then released. The only status and, when it returns, the only thing."""
        taken = None if status is None else self.statuses.pop(status)
        assert self.wrong == []
        assert self.statuses == {}, "more than one status was made"
        assert self.infos == {}, "shapes were not released"
        return taken

    # OrtApi

    def CreateStatus(self, code: int, message: bytes) -> int:
        handle = next(self._handles)
        self.statuses[handle] = Status(code, message.decode())
        return handle

    def ReleaseStatus(self, status: int) -> None:
        del self.statuses[status]

    def CreateCustomOpDomain(self, name: bytes, made: Any) -> None:
        assert name == b"ribsr"
        made[0] = handle = next(self._handles)
        self.domains[handle] = []

    def CustomOpDomain_Add(self, domain: int, op: int) -> None:
        self.domains[domain].append(op)

    def AddCustomOpDomain(self, options: int, domain: int) -> None:
        self.added.append((options, domain))

    def KernelInfoGetAttribute_float(self, info: int, name: bytes, value: Any) -> int | None:
        found = self.attributes.get(name.decode())
        if not isinstance(found, float):
            return self.CreateStatus(FAIL, f"no float {name.decode()}".encode())
        value[0] = found
        return None

    def KernelInfoGetAttribute_int64(self, info: int, name: bytes, value: Any) -> int | None:
        found = self.attributes.get(name.decode())
        if not isinstance(found, int):
            return self.CreateStatus(FAIL, f"no int {name.decode()}".encode())
        value[0] = found
        return None

    def KernelInfoGetAttributeArray_int64(self, info: int, name: bytes, values: Any, count: Any) -> int | None:
        found = self.attributes.get(name.decode())
        if not isinstance(found, (list, tuple)):
            return self.CreateStatus(FAIL, f"no ints {name.decode()}".encode())
        room, count[0] = count[0], len(found)
        if room < len(found):
            return self.CreateStatus(INVALID_ARGUMENT, b"Result buffer is not large enough")
        for i, one in enumerate(found):
            values[i] = one
        return None

    def KernelContext_GetInput(self, context: int, index: int, value: Any) -> None:
        shape = self.inputs[index]
        if shape is None:
            value[0] = None
        else:
            value[0] = 1 + index
            self._values[1 + index] = shape

    def KernelContext_GetOutput(self, context: int, index: int, dims: Any, count: int, value: Any) -> None:
        self.outputs[index] = shape = [dims[i] for i in range(count)]
        value[0] = None if index in self.no_output else 101 + index
        self._values[101 + index] = shape

    def GetTensorTypeAndShape(self, value: int, info: Any) -> None:
        info[0] = handle = next(self._handles)
        self.infos[handle] = self._values[value]

    def ReleaseTensorTypeAndShapeInfo(self, info: int) -> None:
        if self.infos.pop(info, None) is None:
            self.wrong.append("a shape was released that is none")

    def GetDimensionsCount(self, info: int, count: Any) -> None:
        count[0] = len(self.infos[info])

    def GetDimensions(self, info: int, dims: Any, count: int) -> None:
        assert count == len(self.infos[info])
        for i, size in enumerate(self.infos[info]):
            dims[i] = size

    def GetTensorMutableData(self, value: int, data: Any) -> None:
        assert value in self._values
        data[0] = value << 40

    def KernelContext_GetGPUComputeStream(self, context: int, stream: Any) -> None:
        stream[0] = STREAM


class Library:
    """The library of custom operators under a name of its own, so that it is loaded apart from that of other tests."""

    def __init__(self, file: Path):
        self._register = ctypes.CDLL(str(file)).RegisterCustomOps
        self._register.restype, self._register.argtypes = _P, (_P, ctypes.POINTER(ApiBase))

    def register(self, played: Played, options: int) -> Status | None:
        return played.take(self._register(options, played.base))


@dataclass
class Face:
    """An operator in one type, as the library has added it to a domain."""

    address: int

    @property
    def op(self) -> CustomOp:
        return CustomOp.from_address(self.address)

    def create(self, played: Played, attributes: Mapping[str, Any]) -> tuple[int | None, Status | None]:
        """A kernel, or the status of its failure."""
        played.attributes = attributes
        kernel = ctypes.c_void_p()
        status = self.op.CreateKernelV2(self.address, played.api, 7, ctypes.byref(kernel))
        return kernel.value, played.take(status)

    def compute(self, played: Played, kernel: int, inputs: Sequence[Sequence[int] | None]) -> Status | None:
        played.inputs = inputs
        return played.take(self.op.KernelComputeV2(kernel, 8))

    def destroy(self, kernel: int) -> None:
        self.op.KernelDestroy(kernel)
