"""TensorRT's Python interface from 8.6 to 11: the one place that knows what differs between its versions.

`trt` is always the module that `import_tensorrt` returns, and `log` what `logger` returns: TensorRT reports failures as
None or False and says why in its log only, so every function here that can fail raises EngineError with the log's
first error. Flags go by their names alone: their numbers differ between versions.

8.6, 9: weakly typed networks. The graph's types are only a wish there, so a float16 graph gets BuilderFlag.FP16 and
    the type of each layer that matters is pinned (`_pin_types`). Neither bfloat16 nor a progress monitor.
10: NetworkDefinitionCreationFlag.STRONGLY_TYPED: the graph's types are what is computed.
11: every network is strongly typed; the flags are gone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from engines.base import EngineError
from ribsr.base.errors import first_line

OLDEST = (8, 6)
"""The first release whose interface is the one used here."""

ATTENTION = (10, 14)
"""The first release that reads ONNX Attention (opset 23)."""


def import_tensorrt() -> Any:
    """The module. Raises EngineError where it is missing, cannot be loaded, or is older than OLDEST."""
    try:
        import tensorrt as trt
    except ModuleNotFoundError as error:
        if error.name != "tensorrt":
            raise
        raise EngineError(
            "TensorRT for Python is not installed: pip install 'ribsr[trt]', or install NVIDIA's wheel for this Python"
        ) from None
    except (ImportError, OSError) as error:
        raise EngineError(
            f"TensorRT is installed but cannot be loaded ({first_line(error)}); its libraries must be on "
            "LD_LIBRARY_PATH or beside it, and fit this Python"
        ) from None
    if version(trt) < OLDEST:
        raise EngineError(f"TensorRT {trt.__version__} is too old; install 8.6 or later")
    return trt


def version(trt: Any) -> tuple[int, int]:
    """Major and minor release, e.g. (8, 6)."""
    major, minor = re.findall(r"\d+", trt.__version__)[:2]
    return int(major), int(minor)


def logger(trt: Any, echo: Callable[[str], None] | None = None) -> Any:
    """A TensorRT logger that prints nothing and keeps what TensorRT complained of.

    `errors` holds its errors, `warnings` its warnings, one line each; `clear()` forgets both. echo: is told of every
    message, for people who want all of it.
    """

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            text = " ".join(msg.split())
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(text)
            elif severity == trt.ILogger.Severity.WARNING:
                self.warnings.append(text)
            if echo is not None:
                echo(text)

        def clear(self) -> None:
            self.errors.clear()
            self.warnings.clear()

    return Log()


def why(log: Any) -> str:
    """TensorRT's first error since `log.clear()`, shortened to what a line can hold."""
    if not log.errors:
        return "TensorRT does not say why"
    text = log.errors[0]
    return text if len(text) <= 300 else text[:300] + "…"


# Running


def runtime(trt: Any, log: Any) -> Any:
    """A Runtime. Raises EngineError. The caller must have found a usable GPU: 8.6 crashes here without a driver."""
    log.clear()
    return _made(lambda: trt.Runtime(log), log, "TensorRT cannot start its runtime")


def deserialise(trt_runtime: Any, log: Any, plan: bytes, path: str) -> Any:
    """The engine of a plan. Its plugins must be registered. Raises EngineError; path: the plan's name, for it."""
    log.clear()
    engine = trt_runtime.deserialize_cuda_engine(plan)
    if engine is None:
        reason = why(log)
        if "memory" in reason.lower():
            raise EngineError(
                f"{path}: too little GPU memory for this plan ({reason}); nvidia-smi shows what else is on the GPU"
            )
        raise EngineError(f"{path}: TensorRT cannot read this plan ({reason}); build it again: python -m export.trt")
    return engine


def device_memory(engine: Any) -> int:
    """Bytes of GPU memory that each execution context of the engine needs for activations."""
    name = "device_memory_size_v2" if hasattr(engine, "device_memory_size_v2") else "device_memory_size"
    return int(getattr(engine, name))


def profile_shapes(engine: Any, tensor: str) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The smallest, the preferred and the largest shape of an input in profile 0."""
    smallest, preferred, largest = (tuple(dims) for dims in engine.get_tensor_profile_shape(tensor, 0))
    return smallest, preferred, largest


def layers(trt: Any, engine: Any) -> list[dict[str, Any]]:
    """What the engine inspector says of each layer of an engine built with detailed profiling verbosity.

    A layer whose description is no JSON (it happens where weights are not finite) has the LayerType `unreadable`.
    """
    inspector = engine.create_engine_inspector()
    found = []
    for index in range(engine.num_layers):
        text = inspector.get_layer_information(index, trt.LayerInformationFormat.JSON)
        try:
            layer = json.loads(text, strict=False)
        except json.JSONDecodeError:
            layer = {"Name": str(index), "LayerType": "unreadable"}
        # Without detailed verbosity there is a bare name instead of an object.
        found.append(layer if isinstance(layer, dict) else {"Name": str(layer), "LayerType": "unreadable"})
    return found


class OutOfMemory(Exception):
    """TensorRT found too little GPU memory."""


def context(engine: Any, log: Any, path: str, stream: Any) -> Any:
    """An execution context for work on a CUDA stream, for one thread at a time. Raises OutOfMemory, EngineError."""
    log.clear()
    made = engine.create_execution_context()
    if made is None:
        raise _failure(log, f"{path}: TensorRT cannot make an execution context")
    # 8.6 gives the profile to the first context only; the others have to ask for it. Later versions give it to all.
    if -1 in tuple(engine.get_tensor_shape("input")) and made.active_optimization_profile != 0:
        log.clear()
        if not made.set_optimization_profile_async(0, int(stream)):
            raise _failure(
                log, f"{path}: this plan runs in one thread at a time; build it again for more: python -m export.trt"
            )
    return made


def set_input_shape(trt_context: Any, log: Any, path: str, shape: tuple[int, ...]) -> None:
    """Tells a context the shape of the input, within the profile. Raises EngineError."""
    log.clear()
    if not trt_context.set_input_shape("input", shape):
        raise _failure(log, f"{path}: TensorRT refuses inputs of {list(shape)}")


def output_shape(trt_context: Any) -> tuple[int, ...]:
    """The shape of the output for the input shape that was set."""
    return tuple(trt_context.get_tensor_shape("output"))


def set_address(trt_context: Any, tensor: str, address: int) -> None:
    """Where on the GPU an input or output is."""
    trt_context.set_tensor_address(tensor, address)


def enqueue(trt_context: Any, log: Any, path: str, stream: Any) -> None:
    """Runs the network on a CUDA stream, without waiting for it. Raises OutOfMemory, EngineError."""
    log.clear()
    if not trt_context.execute_async_v3(int(stream)):
        raise _failure(log, f"{path}: TensorRT failed")


def profiler(trt: Any) -> Any:
    """A profiler for a context; `layers` maps each layer's name to the sum of its milliseconds."""

    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.layers: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.layers[layer_name] = self.layers.get(layer_name, 0.0) + ms

    return Profiler()


def _failure(log: Any, what: str) -> Exception:
    reason = why(log)
    return OutOfMemory(reason) if "memory" in reason.lower() else EngineError(f"{what} ({reason})")


# Building


def has_bfloat16(trt: Any) -> bool:
    """Whether graphs may be typed in bfloat16."""
    return version(trt) >= (10, 0)


def has_progress_monitor(trt: Any) -> bool:
    """Whether a build reports its progress and can be cancelled."""
    return version(trt) >= (10, 0)


def progress_monitor(trt: Any, start: Callable, step: Callable, finish: Callable) -> Any:
    """A monitor that calls start(phase, parent or None, steps), step(phase, i) → go on?, and finish(phase).

    TensorRT calls it from its own threads. Exists from 10 on: ask `has_progress_monitor`.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return step_of(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            finish(phase_name)

    step_of = step
    return Monitor()


def builder(trt: Any, log: Any) -> Any:
    """A Builder. Raises EngineError. The caller must have found a usable GPU: 8.6 crashes here without a driver."""
    log.clear()
    return _made(lambda: trt.Builder(log), log, "TensorRT cannot start its builder")


def network(trt: Any, trt_builder: Any) -> Any:
    """An empty network that computes in the types of the graph, as far as this TensorRT has that."""
    flags = trt.NetworkDefinitionCreationFlag
    major = version(trt)[0]
    if major < 10:
        return trt_builder.create_network(1 << int(flags.EXPLICIT_BATCH))
    return trt_builder.create_network(1 << int(flags.STRONGLY_TYPED) if major == 10 else 0)


def parse(trt: Any, trt_network: Any, log: Any, model: bytes) -> None:
    """Fills the network from an ONNX model. Raises EngineError with the parser's first complaint."""
    log.clear()
    parser = trt.OnnxParser(trt_network, log)
    if parser.parse(model):
        return
    reason = why(log)
    if parser.num_errors:
        error = parser.get_error(0)
        reason = f"node {error.node()}: {' '.join(error.desc().split())}"
    raise EngineError(f"TensorRT {trt.__version__} cannot take the graph ({reason})")


def config(
    trt: Any,
    trt_builder: Any,
    trt_network: Any,
    half: bool,
    workspace: int | None = None,
    optimization_level: int | None = None,
) -> Any:
    """A build configuration: no TF32, and a plan whose layers can be inspected.

    half: whether the graph is typed in float16. workspace: bytes of scratch memory that a layer may use at most; None
    leaves it to TensorRT (all there is), as does optimization_level (0 to 5; its default is 3).
    """
    made = trt_builder.create_builder_config()
    made.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    made.clear_flag(trt.BuilderFlag.TF32)  # float32 is float32: TF32 errs by 1e-3 where 1e-6 is possible
    if version(trt)[0] < 10:
        # cuBLAS and cuDNN are not asked, although 8.6 would: they must not be needed at run time, whether they are
        # really there cannot be found out by loading them (stubs satisfy the loader), and a plan without them was
        # measured to lose nothing. Later versions do not use them by themselves.
        sources = trt.TacticSource
        made.set_tactic_sources(1 << int(sources.JIT_CONVOLUTIONS) | 1 << int(sources.EDGE_MASK_CONVOLUTIONS))
        # Several contexts use the one profile at the same time; from 9 on they may without being asked for.
        made.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
        if half:
            made.set_flag(trt.BuilderFlag.FP16)
            # Not OBEY: plugins' neighbours then have no implementation at all. export.inspection checks what came out.
            made.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
            _pin_types(trt, trt_network)
    if workspace is not None:
        made.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    if optimization_level is not None:
        made.builder_optimization_level = optimization_level
    return made


def add_profile(
    trt_builder: Any,
    trt_config: Any,
    tensor: str,
    smallest: tuple[int, ...],
    preferred: tuple[int, ...],
    largest: tuple[int, ...],
) -> None:
    """The shapes of an input that the engine must take. Raises EngineError where TensorRT refuses them."""
    profile = trt_builder.create_optimization_profile()
    profile.set_shape(tensor, smallest, preferred, largest)
    if trt_config.add_optimization_profile(profile) < 0:
        raise EngineError(f"TensorRT refuses shapes from {smallest} over {preferred} to {largest} for {tensor}")


def use_timing_cache(trt_config: Any, data: bytes) -> bool:
    """Lets the build use and extend a timing cache; False if `data` is not one of this TensorRT and GPU.

    The build then starts with an empty cache. 8.6 does not refuse what it cannot read, but makes an empty one of it.
    """
    empty = trt_config.create_timing_cache(b"")
    if data:
        cache = trt_config.create_timing_cache(data)
        is_read = cache is not None and bytes(cache.serialize()) != bytes(empty.serialize())
        if is_read and trt_config.set_timing_cache(cache, ignore_mismatch=False):
            return True
    trt_config.set_timing_cache(empty, ignore_mismatch=False)
    return not data


def timing_cache(trt_config: Any) -> bytes:
    """The cache after a build."""
    return bytes(trt_config.get_timing_cache().serialize())


def build(trt: Any, trt_builder: Any, trt_network: Any, trt_config: Any, log: Any) -> bytes:
    """The plan. Releases the interpreter's lock, so other threads go on. Raises EngineError."""
    log.clear()
    plan = trt_builder.build_serialized_network(trt_network, trt_config)
    if plan is None:
        raise EngineError(f"TensorRT {trt.__version__} cannot build the engine ({why(log)})")
    return bytes(plan)


def _made(make: Callable[[], Any], log: Any, what: str) -> Any:
    """make(), whose null result TensorRT's bindings turn into a TypeError."""
    try:
        made = make()
    except TypeError:
        made = None
    if made is None:
        reason = why(log) if log.errors or not log.warnings else log.warnings[0]
        raise EngineError(f"{what} ({reason})")
    return made


def _pin_types(trt: Any, trt_network: Any) -> None:
    """Makes a weakly typed network compute in the types that the graph's Casts announce.

    Without that, TensorRT 8.6 runs in float16 also what the graph keeps in float32 to be safe from overflow, and in
    float32 whatever seems faster so. Layers behind the input or a Cast to float32 are float32, up to the next Cast;
    all others are float16. Which Cast is which, the names say that `export.precision` gives (`x/float16`): 8.6 infers
    types only when it builds, so the network's own are of no help here.
    """
    single = {trt_network.get_input(index).name for index in range(trt_network.num_inputs)}
    kinds, floats = trt.LayerType, (trt.DataType.FLOAT, trt.DataType.HALF)
    for index in range(trt_network.num_layers):
        layer = trt_network.get_layer(index)
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        if layer.type in (kinds.CAST, kinds.IDENTITY):
            single.update(tensor.name for tensor in outputs if not tensor.name.endswith("/float16"))
            continue
        if layer.type in (kinds.CONSTANT, kinds.SHAPE, kinds.PLUGIN_V2):
            continue
        if any(tensor.dtype not in floats for tensor in outputs):
            continue
        inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
        wide = any(tensor is not None and tensor.name in single for tensor in inputs)
        dtype = trt.DataType.FLOAT if wide else trt.DataType.HALF
        layer.precision = dtype
        for i, tensor in enumerate(outputs):
            layer.set_output_type(i, dtype)
            if wide:
                single.add(tensor.name)
