"""What a plan is built with, and the GPUs that it is built for."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from engines.base import NotInstalled
from engines.trt import gpu as cuda
from engines.trt import rtx
from engines.trt.gpu import GPU
from engines.trt.manifest import PLAN, RTX_PLAN
from engines.trt.versions import TensorRT
from export import ExportError
from export.trt.source import Options
from ribsr.base.installation import pip_install


@dataclass(frozen=True)
class Machine:
    """TensorRT and the GPU here, which its plans are for; or TensorRT RTX, which needs none.

    gpu: None for TensorRT RTX. capabilities: those that it is to build for, `engines.trt.rtx.choose`'s.
    """

    trt: TensorRT
    gpu: GPU | None
    capabilities: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        """Of its plans' names."""
        return PLAN if self.gpu is not None else RTX_PLAN

    @property
    def noted(self) -> str:
        """The compute capabilities as a manifest has them."""
        return rtx.noted(self.trt, self.capabilities) if self.gpu is None else self.gpu.compute_capability

    def __str__(self) -> str:
        where = f"for compute capability {self.noted.replace(',', ', ')}" if self.gpu is None else f"on {self.gpu.name}"
        return f"TensorRT {self.trt.version} {where}"


def find_machine(options: Options) -> Machine:
    """Raises EngineError where TensorRT or the GPU is missing, or cannot be built for; ExportError for options that the
    TensorRT found has not."""
    try:
        trt = TensorRT.load(options.rtx)
    except NotInstalled:
        with suppress(NotInstalled):
            lean = TensorRT.load_lean()
            raise ExportError(
                f"here is the lean runtime of TensorRT {lean.version} alone, which runs plans and builds none: "
                f"{pip_install('rtx' if options.rtx else 'trt')}"
            ) from None
        raise
    if trt.rtx:
        if options.version_compatible:
            raise ExportError(
                f"--version-compatible is for TensorRT itself: TensorRT {trt.version} has no lean runtime; leave it out"
            )
        if options.timing_cache is not None:
            raise ExportError(f"TensorRT {trt.version} times nothing while it builds: leave --timing-cache out")
        return Machine(trt, None, rtx.choose(trt, options.gpu))
    if options.gpu:
        raise ExportError(
            f"--gpu is for TensorRT RTX, and TensorRT {trt.version} builds for the GPU here alone: leave it out, or "
            "give --rtx"
        )
    return Machine(trt, cuda.current_gpu())
