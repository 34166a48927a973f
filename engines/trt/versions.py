"""TensorRT's Python interface from 8.6 to 11: the one place that knows what differs between its versions.

Flags go by their names alone: their numbers differ between versions.

8.6, 9: weakly typed networks. The graph's types are only a wish there, so a float16 graph gets BuilderFlag.FP16 and
    the type of each layer that matters is pinned (`_pin_types`). Neither bfloat16 nor a progress monitor.
10: NetworkDefinitionCreationFlag.STRONGLY_TYPED: the graph's types are what is computed.
11: every network is strongly typed; the flags are gone.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from engines.base import EngineError, NotInstalled
from engines.trt.messages import Call, Log
from ribsr.base.errors import first_line

OLDEST = (8, 6)
"""The first release whose interface is the one used here."""


class TensorRT:
    """TensorRT for Python: the module, and what it is capable of. Raises EngineError if it is older than OLDEST.

    major: of the release, which plugin libraries are built for. has_bfloat16: whether graphs may be typed in it.
    has_progress_monitor: whether a build reports its progress and can be cancelled. reads_attention: whether it knows
    ONNX Attention (opset 23). newest_opset: the last one that our files may have for it.
    """

    def __init__(self, module: Any):
        self.module = module
        self.version: str = module.__version__
        self.major, minor = map(int, re.findall(r"\d+", self.version)[:2])
        self.release = self.major, minor
        if self.release < OLDEST:
            raise EngineError(f"TensorRT {self.version} is too old; install 8.6 or later")
        self.has_bfloat16 = self.has_progress_monitor = self.major >= 10
        self.reads_attention = self.release >= (10, 14)
        self.newest_opset = 23 if self.major >= 10 else 17

    @classmethod
    def load(cls) -> TensorRT:
        """Raises EngineError where it is missing, cannot be loaded, or is too old."""
        try:
            import tensorrt
        except ModuleNotFoundError as error:
            if error.name != "tensorrt":
                raise
            raise NotInstalled(
                "TensorRT for Python is not installed: pip install 'ribsr[trt]', or install NVIDIA's wheel for this "
                "Python"
            ) from None
        except (ImportError, OSError) as error:
            raise EngineError(
                f"TensorRT is installed but cannot be loaded ({first_line(error)}); its libraries must be on "
                "LD_LIBRARY_PATH or beside it, and fit this Python"
            ) from None
        return cls(tensorrt)

    # Starting

    def start(self, name: str, log: Log) -> Any:
        """A `Runtime` or `Builder`. Raises EngineError.

        The caller must have found a usable GPU: 8.6 crashes here without a driver.
        """
        made = None
        with log.listening() as said, suppress(TypeError):  # which the bindings make of a null result
            made = getattr(self.module, name)(log.native)
        if made is None:
            reason = Call(said.errors or said.warnings).reason
            raise EngineError(f"TensorRT cannot start its {name.lower()} ({reason})")
        return made

    # Running

    def device_memory(self, engine: Any) -> int:
        """Bytes of GPU memory that each execution context of the engine needs for activations."""
        name = "device_memory_size_v2" if hasattr(engine, "device_memory_size_v2") else "device_memory_size"
        return int(getattr(engine, name))

    # Building

    def network(self, builder: Any) -> Any:
        """An empty network that computes in the types of the graph, as far as this TensorRT has that."""
        flags = self.module.NetworkDefinitionCreationFlag
        if self.major < 10:
            return builder.create_network(1 << int(flags.EXPLICIT_BATCH))
        return builder.create_network(1 << int(flags.STRONGLY_TYPED) if self.major == 10 else 0)

    def configure(self, config: Any, network: Any, half: bool) -> None:
        """No TF32, and a plan whose layers can be inspected. half: whether the graph is typed in float16."""
        trt = self.module
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.clear_flag(trt.BuilderFlag.TF32)  # float32 is float32: TF32 errs by 1e-3 where 1e-6 is possible
        if self.major >= 10:
            return
        # cuBLAS and cuDNN are not asked, although 8.6 would: they must not be needed at run time, whether they are
        # really there cannot be found out by loading them (stubs satisfy the loader), and a plan without them was
        # measured to lose nothing. Later versions do not use them by themselves.
        sources = trt.TacticSource
        config.set_tactic_sources(1 << int(sources.JIT_CONVOLUTIONS) | 1 << int(sources.EDGE_MASK_CONVOLUTIONS))
        # Several contexts use the one profile at the same time; from 9 on they may without being asked for.
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
        if half:
            config.set_flag(trt.BuilderFlag.FP16)
            # Not OBEY: plugins' neighbours then have no implementation at all. export.trt.inspection checks what came
            # out.
            config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
            _pin_types(trt, network)


def _pin_types(trt: Any, network: Any) -> None:
    """Makes a weakly typed network compute in the types that the graph's Casts announce.

    Without that, TensorRT 8.6 runs in float16 also what the graph keeps in float32 to be safe from overflow, and in
    float32 whatever seems faster so. Layers behind the input or a Cast to float32 are float32, up to the next Cast;
    all others are float16. Which Cast is which, the names say that `export.precision` gives (`x/float16`): 8.6 infers
    types only when it builds, so the network's own are of no help here.
    """
    single = {network.get_input(index).name for index in range(network.num_inputs)}
    kinds, floats = trt.LayerType, (trt.DataType.FLOAT, trt.DataType.HALF)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        if layer.type in (kinds.CAST, kinds.IDENTITY):
            single.update(tensor.name for tensor in outputs if not tensor.name.endswith("/float16"))
            continue
        untyped = layer.type in (kinds.CONSTANT, kinds.SHAPE, kinds.PLUGIN_V2)
        if untyped or any(tensor.dtype not in floats for tensor in outputs):
            continue
        inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
        wide = any(tensor is not None and tensor.name in single for tensor in inputs)
        dtype = trt.DataType.FLOAT if wide else trt.DataType.HALF
        layer.precision = dtype
        for i, tensor in enumerate(outputs):
            layer.set_output_type(i, dtype)
            if wide:
                single.add(tensor.name)
