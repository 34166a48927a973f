"""TensorRT's Python package, from 8.6 to 11, and TensorRT RTX: finding it, what it can, its runtimes and builders."""

from __future__ import annotations

import importlib
from contextlib import suppress
from typing import Any

from engines.base import EngineError, NotInstalled, release
from engines.trt.messages import Call, Log
from ribsr.base.errors import first_line
from ribsr.base.installation import pip_install

OLDEST = (8, 6)
"""The first release whose interface is the one used here."""

OLDEST_RTX = (1, 7)
"""The same of TensorRT RTX: its plugins have the interface of TensorRT 11."""

RTX = "RTX "
"""What the version of a TensorRT RTX begins with, here and in manifests."""

MODULES = ("tensorrt",)
RTX_MODULES = ("tensorrt_rtx", "tensorrt_rtx_bindings")
"""Under which names they are imported. The second is what the wheels of RTX have; the first comes from its package for
people, which is no wheel, and from NVIDIA's archives."""


class TensorRT:
    """TensorRT for Python: the module, and what it is capable of. Raises EngineError if it is too old.

    rtx: whether it is TensorRT RTX, which is for people's own cards and builds engines without one. version: as
    messages and manifests have it, `10.16.1.11` or `RTX 1.7.1.116`. major: of the release whose plugin interface it
    has, which plugin libraries are built for. has_bfloat16: whether graphs may be typed in it. has_progress_monitor:
    whether a build reports its progress and can be cancelled. reads_attention: whether it knows ONNX Attention
    (opset 23). newest_opset: the last one that our files may have for it.
    """

    def __init__(self, module: Any, rtx: bool = False):
        self.module, self.rtx = module, rtx
        self.version: str = RTX * rtx + module.__version__
        self.release = release(module.__version__)
        oldest = OLDEST_RTX if rtx else OLDEST
        if self.release < oldest:
            raise EngineError(f"TensorRT {self.version} is too old; install {'.'.join(map(str, oldest))} or later")
        self.major = 11 if rtx else self.release[0]
        self.has_bfloat16 = self.has_progress_monitor = self.major >= 10
        self.reads_attention = rtx or self.release >= (10, 14)
        self.newest_opset = 23 if self.major >= 10 else 17

    @classmethod
    def load(cls, rtx: bool | None = None) -> TensorRT:
        """rtx: which of the two; None: TensorRT, or TensorRT RTX where that is the only one.

        Raises NotInstalled where it is missing, EngineError where it cannot be loaded, or is too old.
        """
        if rtx is not None:
            return cls(_module(rtx), rtx)
        try:
            return cls(_module(False))
        except NotInstalled:
            pass
        try:
            return cls(_module(True), rtx=True)
        except NotInstalled as error:
            raise NotInstalled(
                f"TensorRT for Python is not installed: {pip_install('trt')}, or install NVIDIA's wheel for this "
                f"Python; for GeForce and RTX cards, TensorRT RTX will do: {pip_install('rtx')}"
            ) from error

    def start(self, name: str, log: Log) -> Any:
        """A `Runtime` or `Builder`. Raises EngineError.

        Unless it is TensorRT RTX, the caller must have found a usable GPU: 8.6 crashes here without a driver.
        """
        made = None
        with log.listening() as said, suppress(TypeError):  # which the bindings make of a null result
            made = getattr(self.module, name)(log.native)
        if made is None:
            reason = Call(said.errors or said.warnings).reason
            raise EngineError(f"TensorRT cannot start its {name.lower()} ({reason})")
        return made


def _module(rtx: bool) -> Any:
    names, title = (RTX_MODULES, "TensorRT RTX") if rtx else (MODULES, "TensorRT")
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
        except (ImportError, OSError) as error:
            raise EngineError(
                f"{title} is installed but cannot be loaded ({first_line(error)}); its libraries must be on "
                "LD_LIBRARY_PATH or beside it, and fit this Python"
            ) from None
    raise NotInstalled(f"{title} for Python is not installed: {pip_install('rtx' if rtx else 'trt')}")
