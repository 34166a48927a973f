"""From a checkpoint to files for a runtime: `python -m export.onnx`, `python -m export.trt`."""

from __future__ import annotations

from typing import Literal, get_args

from ribsr.base.errors import RibsrError
from ribsr.base.installation import check_folders

check_folders("engines", "plugins")

Form = Literal["canonical", "mha", "attention", "matmul", "plugin"]
"""Of the attention in an ONNX file; `export.lower` says what each is."""

FORMS: tuple[Form, ...] = get_args(Form)


OPSETS = range(17, 24)
"""ONNX opsets that can be written: 17 is what TensorRT 8.6 reads, 20 has Gelu as one node, 23 has Attention."""


class ExportError(RibsrError, ValueError):
    """An export that cannot be made as asked, or whose file does not compute what it should."""
