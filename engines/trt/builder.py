"""TensorRT's builder: from an ONNX graph to a plan."""

from __future__ import annotations

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

    A GPU must be there. Raises EngineError with TensorRT's reason, as its methods do.
    """

    def __init__(self, trt: TensorRT):
        self._trt, self._log = trt, Log(trt.module)
        self._builder = trt.start("Builder", self._log)
        self._network = trt.network(self._builder)
        self._config: Any = None

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

    def configure(self, half: bool, workspace: int | None = None, optimization_level: int | None = None) -> None:
        """half: whether the graph is typed in float16. workspace: bytes of scratch memory that a layer may use at most;
        None leaves it to TensorRT (all there is), as does optimization_level (0 to 5; its default is 3)."""
        self._config = self._builder.create_builder_config()
        self._trt.configure(self._config, self._network, half)
        if workspace is not None:
            self._config.set_memory_pool_limit(self._trt.module.MemoryPoolType.WORKSPACE, workspace)
        if optimization_level is not None:
            self._config.builder_optimization_level = optimization_level

    def add_profile(self, smallest: Shape, preferred: Shape, largest: Shape) -> None:
        """The shapes of the input that the engine must take."""
        profile = self._builder.create_optimization_profile()
        profile.set_shape("input", smallest, preferred, largest)
        if self._config.add_optimization_profile(profile) < 0:
            raise EngineError(f"TensorRT refuses inputs of {smallest} over {preferred} to {largest}")

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
