"""From a checkpoint to files for a runtime: `python -m export.onnx`, `python -m export.trt`."""

from __future__ import annotations

from typing import Literal, get_args

from ribsr.base.errors import RibsrError
from ribsr.base.installation import check_folders

check_folders("engines", "plugins")

Form = Literal["canonical", "mha", "attention", "matmul", "plugin"]
"""Of the attention in an ONNX file; `export.lower` says what each is."""

FORMS: tuple[Form, ...] = get_args(Form)

READERS: dict[Form, str] = {
    "canonical": "ONNX Runtime from 1.16 on and this toolkit's commands; other readers expand no functions in a file",
    "mha": "ONNX Runtime and OpenVINO from 2026.3 on",
    "attention": "ONNX Runtime from 1.23 on, OpenVINO from 2026.3 on, and TensorRT from 10.14 on in float16",
    "matmul": "nearly every reader of ONNX, such as OpenVINO and onnx2torch, for small pictures",
    "plugin": "TensorRT with our plugins, and ONNX Runtime on a GPU with our kernels, by this toolkit's commands",
}
"""Who reads a file of each form."""

OPSETS = range(17, 24)
"""ONNX opsets that can be written: 17 is what TensorRT 8.6 reads, 20 has Gelu as one node, 23 has Attention."""


class ExportError(RibsrError, ValueError):
    """An export that cannot be made as asked, or whose file does not compute what it should."""
