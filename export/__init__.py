"""From a checkpoint to files for a runtime: `python -m export.onnx`, `python -m export.trt`."""

from __future__ import annotations

from ribsr.base.errors import RibsrError


class ExportError(RibsrError, ValueError):
    """An export that cannot be made as asked, or whose file does not compute what it should."""
