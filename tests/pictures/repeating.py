"""A network that repeats every pixel, to the bit, so that the result of any picture is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.engines import fakes


def write_repeating(path: Path, scale: int = 2) -> Path:
    zeros = {name: np.zeros_like(values) for name, values in fakes.weights(scale=scale).items()}
    return fakes.write_onnx(path, zeros, scale=scale)
