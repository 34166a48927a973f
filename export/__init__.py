"""From a checkpoint to files for a runtime: `python -m export.onnx` and `python -m export.trt`."""

from ribsr.base.errors import RibsrError


class ExportError(RibsrError, ValueError):
    """An export that cannot be made as asked, or whose file does not compute what the checkpoint does."""
