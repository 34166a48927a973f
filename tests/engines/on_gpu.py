"""Marks of tests that need ONNX Runtime on a GPU; for modules that skip where torch or onnxruntime is missing."""

from __future__ import annotations

import onnxruntime
import pytest
import torch

from engines.ort import CUDA
from plugins import library

NEEDS_ONNXRUNTIME = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.skipif(CUDA not in onnxruntime.get_available_providers(), reason="needs onnxruntime-gpu"),
    pytest.mark.skipif(not library.onnxruntime_path().exists(), reason="needs python -m plugins.build"),
]
