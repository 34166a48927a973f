"""Making an ONNX file of a checkpoint, as a library."""

from __future__ import annotations

from export.onnx import Options, check_pictures, describe_precision, export_onnx

__all__ = ["Options", "check_pictures", "describe_precision", "export_onnx"]
