from __future__ import annotations

from pathlib import Path

import pytest

from plugins import compiler


@pytest.fixture(scope="session")
def nvcc() -> Path:
    """The CUDA compiler; where there is none, who asks for it is skipped."""
    try:
        return compiler.find_nvcc()
    except compiler.BuildError:
        pytest.skip("needs nvcc")
