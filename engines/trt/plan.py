"""A plan that TensorRT has read, and the contexts that run it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engines.base import EngineError
from engines.trt.messages import Log
from engines.trt.versions import TensorRT

Shape = tuple[int, ...]


class Plan:
    """An engine of one input, `input`, and one output, `output`. Threads may share it.

    name: of the plan, for messages. runtime_config: of TensorRT RTX, what contexts are made with. The plugins that the
    plan needs must be registered, and a GPU must be there. Raises EngineError if TensorRT cannot read it.
    """

    def __init__(self, trt: TensorRT, content: bytes, name: str | Path):
        self.trt, self.log = trt, Log(trt.module, f"{name}: ")
        self.runtime_config: Any = None
        runtime = trt.start("Runtime", self.log)
        with self.log.listening() as said:
            self.engine: Any = runtime.deserialize_cuda_engine(content)
        if self.engine is None and said.out_of_memory:  # no smaller picture would help
            raise EngineError(
                f"{name}: too little GPU memory for this plan ({said.reason}); nvidia-smi shows what else is on the GPU"
            )
        if self.engine is None:
            raise EngineError(
                f"{name}: TensorRT cannot read this plan ({said.reason}); build it again: python -m export.trt"
            )

    @property
    def device_memory(self) -> int:
        """Bytes of GPU memory that each context needs for activations."""
        name = "device_memory_size_v2" if hasattr(self.engine, "device_memory_size_v2") else "device_memory_size"
        return int(getattr(self.engine, name))

    @property
    def shapes(self) -> tuple[Shape, Shape, Shape]:
        """The smallest, the preferred and the largest shape of the input."""
        smallest, preferred, largest = (tuple(dims) for dims in self.engine.get_tensor_profile_shape("input", 0))
        return smallest, preferred, largest

    def layers(self) -> list[dict[str, Any]]:
        """What the engine inspector says of each layer of an engine built with detailed profiling verbosity.

        A layer whose description is no JSON (it happens where weights are not finite) has the LayerType `unreadable`.
        The lean runtime has no inspector, and says nothing.
        """
        if self.trt.lean:
            return []
        inspector = self.engine.create_engine_inspector()
        found = []
        for index in range(self.engine.num_layers):
            text = inspector.get_layer_information(index, self.trt.module.LayerInformationFormat.JSON)
            try:
                layer = json.loads(text, strict=False)
            except json.JSONDecodeError:
                layer = {"Name": str(index), "LayerType": "unreadable"}
            # Without detailed verbosity there is a bare name instead of an object.
            found.append(layer if isinstance(layer, dict) else {"Name": str(layer), "LayerType": "unreadable"})
        return found


class Context:
    """An execution context for work on one CUDA stream, for one thread at a time.

    Raises EngineError, which is OutOfMemory where that is the reason, as its methods do.
    """

    def __init__(self, plan: Plan, stream: Any):
        self._plan, self._stream, self._checked = plan, int(stream), plan.log.checked
        self._context: Any = self._checked(
            "TensorRT cannot make an execution context",
            plan.engine.create_execution_context,
            *([] if plan.runtime_config is None else [plan.runtime_config]),
        )
        # 8.6 gives the profile to an engine's first context only, and others have to ask for it; later versions to all.
        if -1 in tuple(plan.engine.get_tensor_shape("input")) and self._context.active_optimization_profile != 0:
            self._checked(
                "this plan runs in one thread at a time; build it again for more: python -m export.trt",
                self._context.set_optimization_profile_async,
                0,
                self._stream,
            )

    def bind(self, shape: Shape, address: Callable[[str, Shape], int]) -> None:
        """Prepares for inputs of `shape`, within the profile. address: where on the GPU `input` or `output` is to be,
        of its shape; that of the output is `output_shape` from then on."""
        self._checked(f"TensorRT refuses inputs of {list(shape)}", self._context.set_input_shape, "input", shape)
        self.output_shape: Shape = tuple(self._context.get_tensor_shape("output"))
        for name, dims in (("input", shape), ("output", self.output_shape)):
            self._context.set_tensor_address(name, address(name, dims))

    def enqueue(self) -> None:
        """Runs the network on the stream, without waiting for it."""
        self._checked("TensorRT failed", self._context.execute_async_v3, self._stream)

    @contextmanager
    def profiling(self) -> Iterator[dict[str, float]]:
        """Sums up the milliseconds of each layer of what is run meanwhile."""
        trt, layers = self._plan.trt.module, dict[str, float]()

        class Profiler(trt.IProfiler):
            def report_layer_time(self, layer_name: str, ms: float) -> None:
                layers[layer_name] = layers.get(layer_name, 0.0) + ms

        self._context.profiler = Profiler()
        try:
            yield layers
        finally:
            self._context.profiler = None
