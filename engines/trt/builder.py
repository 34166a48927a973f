"""TensorRT's builder: from an ONNX graph to a plan.

Flags go by their names alone: their numbers differ between versions.

8.6, 9: weakly typed networks. The graph's types are only a wish there, so a float16 graph gets BuilderFlag.FP16 and
    the type of each layer that matters is pinned (`_pin_types`). Neither bfloat16 nor a progress monitor.
10: NetworkDefinitionCreationFlag.STRONGLY_TYPED: the graph's types are what is computed.
11 and RTX: every network is strongly typed; the flags are gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from engines.base import EngineError
from engines.trt.messages import Log
from engines.trt.plan import Shape
from engines.trt.versions import TensorRT


class Watcher(Protocol):
    """Is told how a build goes on, from TensorRT's own threads."""

    def start(self, name: str, parent: str | None, steps: int) -> None: ...

    def step(self, name: str, index: int) -> bool: ...  # whether to go on

    def finish(self, name: str) -> None: ...


class Builder:
    """One engine in the making: its network and configuration. The methods are to be called in their order.

    A GPU must be there, but for TensorRT RTX. Raises EngineError with TensorRT's reason, as its methods do.
    """

    def __init__(self, trt: TensorRT):
        self._trt, self._log = trt, Log(trt.module)
        self._builder = trt.start("Builder", self._log)
        flags = trt.module.NetworkDefinitionCreationFlag
        if trt.major < 10:
            self._network = self._builder.create_network(1 << int(flags.EXPLICIT_BATCH))
        else:
            self._network = self._builder.create_network(1 << int(flags.STRONGLY_TYPED) if trt.major == 10 else 0)
        self._config = self._builder.create_builder_config()

    def parse(self, model: bytes) -> None:
        """Fills the network from an ONNX model; the error names the parser's first complaint."""
        parser = self._trt.module.OnnxParser(self._network, self._log.native)
        with self._log.listening() as said:
            if parser.parse(model):
                return
        reason = said.reason
        if parser.num_errors:
            error = parser.get_error(0)
            reason = f"node {error.node()}: {' '.join(error.desc().split())}"
        raise EngineError(f"TensorRT {self._trt.version} cannot take the graph ({reason})")

    def configure(
        self,
        half: bool,
        workspace: int | None = None,
        optimization_level: int | None = None,
        version_compatible: bool = False,
    ) -> None:
        """No TF32, and a plan whose layers can be inspected.

        half: whether the graph is typed in float16. workspace: bytes of scratch memory that a layer may use at most;
        None leaves it to TensorRT (all there is), as does optimization_level (0 to 5; its default is 3).
        version_compatible: for later releases and their lean runtimes, too.
        """
        trt, config = self._trt.module, self._config
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.clear_flag(trt.BuilderFlag.TF32)  # float32 is float32: TF32 errs by 1e-3 where 1e-6 is possible
        if workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
        if optimization_level is not None:
            config.builder_optimization_level = optimization_level
        if version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
            # Otherwise the lean runtime itself would be in the plan: 33 MB of machine code (8.6.0) that whoever opens
            # the plan has to trust, from a file that the wheel of 8.6.0 does not have.
            config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
        if self._trt.major >= 10:
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
            _pin_types(trt, self._network)

    def add_profile(self, smallest: Shape, preferred: Shape, largest: Shape) -> None:
        """The shapes of the input that the engine must take."""
        profile = self._builder.create_optimization_profile()
        profile.set_shape("input", smallest, preferred, largest)
        if self._config.add_optimization_profile(profile) < 0:
            raise EngineError(f"TensorRT refuses inputs of {smallest} over {preferred} to {largest}")

    def target(self, capabilities: Sequence[str]) -> None:
        """The compute capabilities that an engine of TensorRT RTX is for, as `engines.trt.rtx.choose` gives them."""
        self._config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            member = self._trt.module.ComputeCapability.__members__[f"SM{capability.replace('.', '')}"]
            if not self._config.set_compute_capability(member, index):
                raise EngineError(f"TensorRT {self._trt.version} refuses to build for compute capability {capability}")

    def layers(self) -> list[dict[str, Any]]:
        """The network's layers in the inspector's words (`engines.trt.plan.Plan.layers`), before anything is built.

        In a strongly typed network they have the types that are computed in.
        """
        found = []
        for index in range(self._network.num_layers):
            layer = self._network.get_layer(index)
            read = [layer.get_input(i) for i in range(layer.num_inputs)]
            types = [{"Datatype": tensor.dtype.name} for tensor in read if tensor is not None]
            found.append({"Name": layer.name, "LayerType": layer.type.name, "Inputs": types})
        return found

    def report_to(self, watcher: Watcher) -> bool:
        """Whether this TensorRT tells how the build goes on, and can be stopped."""
        if not self._trt.has_progress_monitor:
            return False

        class Monitor(self._trt.module.IProgressMonitor):
            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                watcher.start(phase_name, parent_phase, num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                return watcher.step(phase_name, step)

            def phase_finish(self, phase_name: str) -> None:
                watcher.finish(phase_name)

        self._config.progress_monitor = Monitor()
        return True

    def use_timing_cache(self, data: bytes) -> bool:
        """Lets the build use and extend a timing cache; False if `data` is not one of this TensorRT and GPU.

        The build then starts with an empty one. 8.6 does not refuse what it cannot read, but makes an empty one of it.
        """
        empty = self._config.create_timing_cache(b"")
        if data:
            cache = self._config.create_timing_cache(data)
            is_read = cache is not None and bytes(cache.serialize()) != bytes(empty.serialize())
            if is_read and self._config.set_timing_cache(cache, ignore_mismatch=False):
                return True
        self._config.set_timing_cache(empty, ignore_mismatch=False)
        return not data

    @property
    def timing_cache(self) -> bytes:
        """The cache after a build."""
        return bytes(self._config.get_timing_cache().serialize())

    def build(self) -> bytes:
        """The plan. Releases the interpreter's lock, so other threads go on."""
        failure = f"TensorRT {self._trt.version} cannot build the engine"
        return bytes(self._log.checked(failure, self._builder.build_serialized_network, self._network, self._config))


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
