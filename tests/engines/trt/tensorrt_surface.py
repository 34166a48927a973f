"""What a TensorRT for Python offers, in as few words as a test of our use of it needs; reads the real bindings.

    python tests/engines/trt/tensorrt_surface.py MODULE > tests/engines/trt/tensorrt_surfaces/VERSION.json

MODULE is `tensorrt`, for bindings without TensorRT's libraries `tensorrt_bindings` (see .ci/tensorrt_bindings),
`tensorrt_rtx_bindings`, or for lean runtimes `tensorrt_lean` (8.6) and `tensorrt_lean_bindings`; the records of these
are called rtx-VERSION.json and lean-VERSION.json.
Needs the standard library only and Python 3.8, which the oldest bindings run in.
"""

import importlib
import json
import re
import sys

CLASSES = (
    "Builder",
    "EngineInspector",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILayer",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IPluginRegistry",
    "IProfiler",
    "IProgressMonitor",
    "IRuntimeCache",
    "IRuntimeConfig",
    "ITensor",
    "ITimingCache",
    "OnnxParser",
    "ParserError",
    "Runtime",
)
ENUMS = (
    "BuilderFlag",
    "ComputeCapability",
    "CudaGraphStrategy",
    "DataType",
    "DynamicShapesKernelSpecializationStrategy",
    "ILogger.Severity",
    "LayerInformationFormat",
    "LayerType",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "PreviewFeature",
    "ProfilingVerbosity",
    "TacticSource",
    "TensorIOMode",
)
FUNCTIONS = ("get_plugin_registry", "init_libnvinfer_plugins")


def surface(module):
    """Version, enum members with values, functions and classes of a TensorRT module; what it lacks is left out."""
    return {
        "version": module.__version__,
        "enums": {name: members(found) for name in ENUMS for found in [_find(module, name)] if found is not None},
        "functions": {name: signatures(getattr(module, name).__doc__) for name in FUNCTIONS if hasattr(module, name)},
        "classes": {name: attributes(getattr(module, name)) for name in CLASSES if hasattr(module, name)},
    }


def members(enum):
    return {name: int(value) for name, value in sorted(enum.__members__.items())}


def attributes(cls):
    """Name → `property`, `read-only`, or a method's signatures. (Networks are filled by the parser: no add_… here.)"""
    found = {}
    for name in sorted(dir(cls)):
        if (name.startswith("_") and name != "__init__") or name.startswith("add_") and cls.__name__.startswith("INet"):
            continue
        value = getattr(cls, name)
        if isinstance(value, property):
            found[name] = "read-only" if value.fset is None else "property"
        elif callable(value) and not isinstance(value, type):
            text = signatures(value.__doc__)
            if text is not None:
                found[name] = text
    return found


def signatures(doc):
    """`a, b=, c -> Type` of each overload, without self, joined by ` | `; None where pybind11 wrote no signature."""
    lines = [line for line in (doc or "").splitlines() if re.match(r"(\d+\. )?\w+\(.*\)( -> .*)?$", line)]
    lines = [line for line in lines if "(*args, **kwargs)" not in line]
    return " | ".join(_signature(line) for line in lines) if lines else None


def _signature(line):
    head, _, returned = line.rpartition(" -> ")
    inside = head[head.index("(") + 1 : head.rindex(")")]
    arguments = [argument.strip() for argument in _split(inside)]
    named = [re.split("[:=]", argument)[0].strip() + "=" * ("= " in argument) for argument in arguments]
    return ", ".join(named[1:] if named[:1] == ["self"] else named) + " -> " + _plain(returned)


def _split(text):
    """At the commas that are in no brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([<{") - (character in ")]>}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _plain(name):
    """A return type without namespaces: nvinfer1::IEngineInspector and tensorrt.EngineInspector are one."""
    plain = re.sub(r"[A-Za-z_0-9]+(::|\.)", "", name)
    return {"IEngineInspector": "EngineInspector", "IParserError": "ParserError"}.get(plain, plain)


def _find(module, name):
    for part in name.split("."):
        module = getattr(module, part, None)
    return module


if __name__ == "__main__":
    json.dump(surface(importlib.import_module(sys.argv[1])), sys.stdout, indent=1)
    print()
