from __future__ import annotations

from pathlib import Path

import pytest

from plugins import compiler, library


@pytest.fixture(scope="session")
def nvcc() -> Path:
    """The CUDA compiler; where there is none, who asks for it is skipped."""
    try:
        return compiler.find_nvcc()
    except compiler.BuildError:
        pytest.skip("needs nvcc")


@pytest.fixture(params=library.ISAS[1:])
def isa(request: pytest.FixtureRequest, cpu_library: Path) -> str:
    """Every instruction set; those that this CPU lacks are skipped."""
    if request.param not in library.cpu_isas():
        pytest.skip(f"this CPU has no {request.param}")
    return request.param
