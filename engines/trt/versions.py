"""TensorRT's Python package, from 8.6 to 11: finding it, what it can, and its runtimes and builders."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from engines.base import EngineError, NotInstalled
from engines.trt.messages import Call, Log
from ribsr.base.errors import first_line
from ribsr.base.installation import pip_install

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
                f"TensorRT for Python is not installed: {pip_install('trt')}, or install NVIDIA's wheel for this Python"
            ) from None
        except (ImportError, OSError) as error:
            raise EngineError(
                f"TensorRT is installed but cannot be loaded ({first_line(error)}); its libraries must be on "
                "LD_LIBRARY_PATH or beside it, and fit this Python"
            ) from None
        return cls(tensorrt)

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
