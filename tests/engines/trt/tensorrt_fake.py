"""A `tensorrt` module without TensorRT, made of a recorded surface: what a version lacks cannot be used on it.

Every class has the fake that it belongs to as `module`. Unknown attributes, wrong arguments, writing what is read-only,
and subclasses that forget to call their base's __init__ fail as they do with the real bindings. What calls return is up
to the test: `behaviour` maps `Class.method` or `Class.property` to a function of (self, arguments) or a value; without
one, a call returns an object of the class that it is declared to return, True, 0, or None.
"""

from __future__ import annotations

import enum
import json
from pathlib import Path
from types import ModuleType
from typing import Any

SURFACES = Path(__file__).with_name("tensorrt_surfaces")
VERSIONS = tuple(sorted((path.stem for path in SURFACES.glob("[0-9]*.json")), key=lambda name: int(name.split(".")[0])))
(RTX,) = (path.stem for path in SURFACES.glob("rtx-*.json"))
"""TensorRT RTX, whose module has names of its own."""
LEAN = tuple(f"lean-{version}" for version in VERSIONS)
"""The lean runtimes, which have no builder."""


def recorded(version: str) -> dict[str, Any]:
    return json.loads((SURFACES / f"{version}.json").read_text())


class Memory(bytes):
    """What IHostMemory is to Python: a buffer."""


def fake_tensorrt(version: str, behaviour: dict[str, Any] | None = None) -> Any:
    """The module. `calls` lists (Class.method, arguments) as they come, `made` every object by class."""
    surface = recorded(version)
    name = "tensorrt_rtx_bindings" if version == RTX else "tensorrt_lean" if version in LEAN else "tensorrt"
    module: Any = ModuleType(name)
    module.__version__ = surface["version"]
    module.behaviour, module.calls, module.made = dict(behaviour or {}), [], []
    for name, members in surface["enums"].items():
        if "." not in name:
            setattr(module, name, enum.IntEnum(name, members))
    for name, attributes in surface["classes"].items():
        setattr(module, name, _cls(module, name, attributes))
    module.ILogger.Severity = enum.IntEnum("Severity", surface["enums"]["ILogger.Severity"])
    for name, signatures in surface["functions"].items():
        setattr(module, name, _function(module, name, signatures))
    return module


def instance(module: Any, name: str, /, **values: Any) -> Any:
    """An object of a class that has no constructor, with the values of some properties."""
    cls = getattr(module, name)
    made = cls.__new__(cls)
    object.__setattr__(made, "_values", dict(values))
    module.made.append(made)
    return made


def _cls(module: Any, name: str, attributes: dict[str, str]) -> type:
    body: dict[str, Any] = {"_surface": attributes, "__setattr__": _set, "module": module}
    for attribute, kind in attributes.items():
        if kind in ("property", "read-only"):
            body[attribute] = _property(module, name, attribute, kind)
        elif attribute != "__init__":
            body[attribute] = _method(module, f"{name}.{attribute}", kind)
    body["__init__"] = _initialiser(module, name, attributes.get("__init__"))
    return type(name, (), body)


def _set(self: Any, name: str, value: Any) -> None:
    """Objects of the bindings' own classes take nothing new; those of subclasses in Python do."""
    if isinstance(getattr(type(self), name, None), property) or "_surface" not in vars(type(self)):
        object.__setattr__(self, name, value)
    else:
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def _initialiser(module: Any, name: str, signatures: str | None) -> Any:
    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        if signatures is None:
            raise TypeError(f"{name}: No constructor defined!")
        _check_call(f"{name}.__init__", signatures, args, kwargs)
        object.__setattr__(self, "_values", {})
        module.made.append(self)
        module.calls.append((f"{name}.__init__", (*args, *kwargs.values())))
        if f"{name}.__init__" in module.behaviour:
            module.behaviour[f"{name}.__init__"](self, *args, **kwargs)

    return initialise


def _property(module: Any, cls: str, name: str, kind: str) -> property:
    def get(self: Any) -> Any:
        if name in self._values:
            return self._values[name]
        value = module.behaviour.get(f"{cls}.{name}")
        return value(self) if callable(value) else value

    def put(self: Any, value: Any) -> None:
        self._values[name] = value

    return property(get, put if kind == "property" else None)


def _method(module: Any, name: str, signatures: str) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        _check_call(name, signatures, args, kwargs)
        module.calls.append((name, (*args, *kwargs.values())))
        for argument in args:
            _check_initialised(argument)
        if name in module.behaviour:
            value = module.behaviour[name]
            return value(self, *args, **kwargs) if callable(value) else value
        return _default(module, signatures)

    return call


def _function(module: Any, name: str, signatures: str) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        _check_call(name, signatures, args, kwargs)
        if name in module.behaviour:
            return module.behaviour[name](*args, **kwargs)
        return instance(module, "IPluginRegistry") if name == "get_plugin_registry" else True

    return call


def _check_call(name: str, signatures: str, args: tuple, kwargs: dict[str, Any]) -> None:
    for signature in signatures.split(" | "):
        declared = [argument for argument in signature.rpartition(" -> ")[0].split(", ") if argument]
        names = [argument.rstrip("=") for argument in declared]
        required = [argument for argument in declared[len(args) :] if not argument.endswith("=")]
        if len(args) <= len(names) and set(kwargs) <= set(names[len(args) :]) and set(required) <= set(kwargs):
            return
    raise TypeError(f"{name}(): incompatible function arguments; supported: {signatures}; invoked with {args} {kwargs}")


def _check_initialised(argument: Any) -> None:
    if hasattr(type(argument), "_surface") and not hasattr(argument, "_values"):
        raise TypeError(f"{type(argument).__name__}.__init__() must be called when overriding __init__")


def _default(module: Any, signatures: str) -> Any:
    returned = signatures.split(" | ")[0].rpartition(" -> ")[2]
    if returned == "IHostMemory":
        return Memory(b"memory")
    if hasattr(module, returned) and isinstance(getattr(module, returned), type):
        return instance(module, returned)
    return {"bool": True, "int": 0, "str": ""}.get(returned)
