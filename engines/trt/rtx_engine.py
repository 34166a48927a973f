"""Plans of TensorRT RTX (.rtx) as an engine.

They are built anywhere (`export.trt --rtx`), and finished on the card that runs them, at the first run of a size: what
is compiled there is kept in a cache (`engines.cache`).

None has run here: the only GPUs at hand were Hopper's, which TensorRT RTX refuses. What is asked of it was held against
the bindings of 1.7.1.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from engines import base
from engines.base import EngineError
from engines.cache import open_cache
from engines.trt.engine import TensorRTEngine
from engines.trt.plan import Plan
from engines.trt.versions import TensorRT


class RTXEngine(TensorRTEngine):
    """A plan of TensorRT RTX and its manifest, run on the current GPU.

    cuda_graphs: TensorRT RTX records the work of a size and launches it as a whole. specialization: one of
    SPECIALIZATIONS, for plans of many sizes; None leaves it to TensorRT RTX. cache: a folder for what it compiles, by
    default one in the user's folder for caches; it is written when the engine is closed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "auto",
        cuda_graphs: bool = False,
        specialization: str | None = None,
        cache: str | Path | None = None,
    ):
        if specialization is not None:
            base.check_choice("specialization", specialization, base.SPECIALIZATIONS)
        self._chosen = specialization, cuda_graphs
        self._compiled: Any = None
        self._cuda_graphs = False  # none of our own
        self._cache, notes = open_cache(str(path), cache, "tensorrt-rtx")
        self._open(path, device)
        self._description = replace(
            self._description, notes=(*self._description.notes, *notes), cuda_graphs=cuda_graphs
        )

    def _read(self, trt: TensorRT) -> Plan:
        plan, (specialization, cuda_graphs) = super()._read(trt), self._chosen
        config = plan.log.checked("TensorRT RTX cannot be configured", plan.engine.create_runtime_config)
        if specialization is not None:
            strategies = trt.module.DynamicShapesKernelSpecializationStrategy.__members__
            config.dynamic_shapes_kernel_specialization_strategy = strategies[specialization.upper()]
        if cuda_graphs:
            config.cuda_graph_strategy = trt.module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._parts = {
            "plan": self._manifest.plan_sha256,
            "tensorrt": trt.version,
            "gpu": self._gpu.name,
            "compute capability": self._gpu.compute_capability,
            "cuda": self._gpu.cuda,
            "specialization": specialization,
        }
        if self._cache is not None:
            compiled = config.create_runtime_cache()
            if (kept := self._cache.read(self._parts)) is not None and not compiled.deserialize(kept):
                compiled.reset()  # it is made again
            if not config.set_runtime_cache(compiled):
                raise EngineError(f"{self._path}: TensorRT {trt.version} takes no cache; report it")
            self._compiled, self._kept = compiled, kept
        plan.runtime_config = config
        return plan

    def close(self) -> None:
        compiled, self._compiled = self._compiled, None
        try:
            if compiled is not None and self._cache is not None:
                made = bytes(compiled.serialize())
                if made != self._kept:
                    with suppress(OSError):  # the next opening takes its time; there is nobody to tell any more
                        self._cache.write(self._parts, made)
        finally:
            super().close()
