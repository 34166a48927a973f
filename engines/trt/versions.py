"""TensorRT's Python package, from 8.6 to 11, its lean runtime, and TensorRT RTX: finding it, what it can, its runtimes
and builders."""

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

MODULES = {
    "trt": (("tensorrt",), "TensorRT"),
    "rtx": (("tensorrt_rtx", "tensorrt_rtx_bindings"), "TensorRT RTX"),
    "trt-lean": (("tensorrt_lean", "tensorrt_lean_bindings"), "TensorRT's lean runtime"),
}
"""By the extra that brings them: under which names they are imported, and what they are called.

Where there are two, the wheels have the second, and the first comes from a package for people, which is no wheel, and
from NVIDIA's archives. (The lean runtime of 8.6 is a wheel with the first.)
"""


class TensorRT:
    """TensorRT for Python: the module, and what it is capable of. Raises EngineError if it is too old.

    rtx: whether it is TensorRT RTX, which is for people's own cards and builds engines without one. lean: whether it is
    the lean runtime, which runs version-compatible plans and builds nothing. version: as messages and manifests have
    it, `10.16.1.11` or `RTX 1.7.1.116`. major: of the release whose plugin interface it has, which plugin libraries are
    built for. has_bfloat16: whether graphs may be typed in it. has_progress_monitor: whether a build reports its
    progress and can be cancelled. reads_attention: whether it knows ONNX Attention (opset 23). newest_opset: the last
    one that our files may have for it.
    """

    def __init__(self, module: Any, rtx: bool = False, lean: bool = False):
        self.module, self.rtx, self.lean = module, rtx, lean
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
            return cls(_module("rtx" if rtx else "trt"), rtx)
        try:
            return cls(_module("trt"))
        except NotInstalled:
            pass
        try:
            return cls(_module("rtx"), rtx=True)
        except NotInstalled as error:
            raise NotInstalled(
                f"TensorRT for Python is not installed: {pip_install('trt')}, or install NVIDIA's wheel for this "
                f"Python; for GeForce and RTX cards, TensorRT RTX will do: {pip_install('rtx')}"
            ) from error

    @classmethod
    def load_lean(cls) -> TensorRT:
        """The lean runtime. Raises as `load` does."""
        return cls(_module("trt-lean"), lean=True)

    def runs(self, builder: str, version_compatible: bool) -> bool:
        """Whether it reads plans of the TensorRT of that version, which is of its own kind.

        Version-compatible ones run in later releases of the same major version, too; the lean runtime takes no others.
        """
        if not version_compatible:
            return builder == self.version and not self.lean
        return release(builder)[0] == self.release[0] and release(builder) <= self.release

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


def _module(extra: str) -> Any:
    names, title = MODULES[extra]
    for name in names:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:
            if isinstance(error, ModuleNotFoundError) and error.name == name:
                continue
            raise EngineError(
                f"{title} is installed but cannot be loaded ({first_line(error)}); its libraries must be on "
                f"LD_LIBRARY_PATH or beside it, and fit this Python: {pip_install(extra)}"
            ) from None
    raise NotInstalled(f"{title} for Python is not installed: {pip_install(extra)}")
