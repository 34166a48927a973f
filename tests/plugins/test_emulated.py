"""The kernels of compute capability 8.0, run by the emulator: what they compute, and that no barrier is missing.

On a GPU the tests beside this one say more; this is what a machine without one can know.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch  # noqa: E402

from plugins import compiler, library  # noqa: E402
from plugins.operators import (  # noqa: E402
    ATTENTION_INPUTS,
    CONVOLUTION,
    CYCLIC_WINDOW_ATTENTION,
    FEED_FORWARD,
    Operator,
    is_map,
    sizes,
)
from plugins.testing import exact, random_weights, relative_error  # noqa: E402
from tests.plugins import emulator  # noqa: E402

OPERATORS = (CYCLIC_WINDOW_ATTENTION, FEED_FORWARD, ATTENTION_INPUTS, CONVOLUTION)
"""Those whose shared memory the emulator watches."""
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Of the relative error; the kernels' own tests have it for the same data."""
RUNS = ({"EMULATOR_ORDER": "0"}, {"EMULATOR_ORDER": "1", "EMULATOR_EARLY": "1"}, {"EMULATOR_ORDER": "7"})

TILES = {"height": 9, "width": 17}
"""Four tiles of an image for two multiprocessors, three of them of a single row or column."""

half = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


@pytest.fixture(scope="module")
def emulated(nvcc: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    output = tmp_path_factory.mktemp("emulated") / "kernels.so"
    emulator.build(compiler.SOURCE, [one.short for one in OPERATORS], headers(nvcc), output)
    return emulator.load(output)


def headers(nvcc: Path) -> Path:
    """The CUDA toolkit's, beside the compiler, or where it is installed by default."""
    places = (nvcc.resolve().parents[1] / "include", Path("/usr/local/cuda/include"))
    return next((place for place in places if (place / "cuda.h").is_file()), places[-1])


def empty(shape: list[int], dtype: torch.dtype, pixel: int) -> torch.Tensor:
    """A channels-last map full of NaN, pixels a multiple of `pixel` channels apart."""
    b, c, h, w = shape
    step = -(-c // pixel) * pixel
    return torch.full((b, h, w, step), torch.nan, dtype=dtype)[..., :c].permute(0, 3, 1, 2)


def check(
    emulated: Any,
    monkeypatch: pytest.MonkeyPatch,
    operator: Operator,
    dtype: torch.dtype,
    size: dict[str, int],
    *,
    pixel: int = 8,
    **attributes: Any,
) -> None:
    """Runs an operator in different orders of warps and copies: bit for bit the same, and what float64 comes to.

    size: the integers in its shapes.
    """
    torch.manual_seed(0)
    weights = iter(random_weights(operator, dtype, "cpu", **size))
    inputs = [
        empty(sizes(shape, size), dtype, pixel).copy_(torch.randn(sizes(shape, size)))
        if is_map(shape)
        else next(weights)
        for shape in operator.tensors.values()
    ]
    path = {"path": library.PATHS["portable"]} if "path" in operator.options else {}
    results: list[list[torch.Tensor]] = []
    before = emulated.emulator_conflicts()
    for run in RUNS:
        for name, value in run.items():
            monkeypatch.setenv(name, value)
        results.append([empty(sizes(shape, size), dtype, pixel) for shape in operator.outputs.values()])
        emulator.call(emulated, operator, inputs, results[-1], **path, **attributes)
        monkeypatch.delenv("EMULATOR_EARLY", raising=False)
    expected = exact(operator, *inputs, **attributes)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for index, (result, wanted) in enumerate(zip(results[0], expected, strict=True)):
        assert relative_error(result, wanted) <= TOLERANCE[dtype]  # NaN fails too
        for other in results[1:]:
            assert torch.equal(other[index], result), "it depends on the order of warps, or of copies"
    assert emulated.emulator_conflicts() == before, "rows of operands lie in the same banks"


@half
@pytest.mark.parametrize(
    ("window", "heads", "head_width", "rank", "shift"),
    [
        ((8, 8), 2, 16, 16, (0, 0)),
        ((16, 16), 2, 32, 32, (0, 8)),
        ((16, 16), 1, 16, 24, (3, 0)),
        ((7, 9), 1, 24, 40, (0, 0)),
    ],
)
def test_attention(
    emulated: Any,
    monkeypatch: pytest.MonkeyPatch,
    window: tuple[int, int],
    heads: int,
    head_width: int,
    rank: int,
    shift: tuple[int, int],
    dtype: torch.dtype,
) -> None:
    size = {"batch": 2, "heads": heads, "head_width": head_width, "rank": rank, "height": 13, "width": 19}
    size |= {"window_height": window[0], "window_width": window[1]}
    geometry = {"window": window, "heads": heads, "shift": shift, "scale": head_width**-0.5}
    check(emulated, monkeypatch, CYCLIC_WINDOW_ATTENTION, dtype, size, **geometry)


@half
@pytest.mark.parametrize(("channels", "hidden"), [(48, 72), (64, 96), *FEED_FORWARD.widths.wide])
def test_feed_forward(
    emulated: Any,
    monkeypatch: pytest.MonkeyPatch,
    channels: int,
    hidden: int,
    dtype: torch.dtype,
) -> None:
    widths = {"batch": 2, "channels": channels, "hidden": hidden, **TILES}
    check(emulated, monkeypatch, FEED_FORWARD, dtype, widths, epsilon=1e-6)


def test_feed_forward_of_pixels_that_are_no_whole_vectors(emulated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ONNX Runtime and PyTorch have those of sst: 180 channels, and the next pixel's at once."""
    widths = {"batch": 1, "channels": 180, "hidden": 225, "height": 9, "width": 17}
    check(emulated, monkeypatch, FEED_FORWARD, torch.float16, widths, pixel=4, epsilon=1e-6)


@half
@pytest.mark.parametrize("channels", [48, 64, *(channels for (channels,) in ATTENTION_INPUTS.widths.wide)])
def test_attention_inputs(emulated: Any, monkeypatch: pytest.MonkeyPatch, channels: int, dtype: torch.dtype) -> None:
    widths = {"batch": 2, "channels": channels, **TILES}
    check(emulated, monkeypatch, ATTENTION_INPUTS, dtype, widths, epsilon=1e-6)


@half
@pytest.mark.parametrize("kernel", [1, 3])
def test_convolution(emulated: Any, monkeypatch: pytest.MonkeyPatch, kernel: int, dtype: torch.dtype) -> None:
    widths = {"batch": 1, "channels": 48, "outputs": 12, "kernel": kernel, "height": 9, "width": 17}
    check(emulated, monkeypatch, CONVOLUTION, dtype, widths, negative_slope=0.1)


# What the emulator finds

KERNEL = """
#include "shared/common.cuh"
using namespace ribsr;

__global__ void reversed(int *data, int fault) {
  extern __shared__ __align__(16) uint8_t memory[];
  const uint32_t shared = shared_address(memory);
  const int thread = threadIdx.x;
  copy_async(shared + 16 * thread, data + 4 * thread);
  copy_commit();
  if (fault != 1) copy_wait<0>();
  if (fault == 2 && thread < 16) __syncwarp();
  if (fault != 3) __syncthreads();
  const int other = 63 - thread + (fault == 4 ? 1 : 0);
  const uint32_t from = shared + 16 * other + (fault == 5 ? 2 : 0);
  data[4 * thread] = load_shared_int(from);
}

extern "C" void run(int *data, int fault) { reversed<<<1, 64, 1024, nullptr>>>(data, fault); }
"""
SCRIPT = """
import ctypes, sys
data = (ctypes.c_int * 256)(*(i // 4 for i in range(256)))
ctypes.CDLL(sys.argv[1]).run(data, int(sys.argv[2]))
print(data[::4] == list(range(63, -1, -1)))
"""


@pytest.fixture(scope="module")
def small(nvcc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of KERNEL."""
    folder = tmp_path_factory.mktemp("small")
    for name, source in (("shared/common.cuh", None), ("shared/interface.cu", ""), ("reversed/portable.cu", KERNEL)):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text((compiler.SOURCE / name).read_text() if source is None else source)
    emulator.build(folder, ["reversed"], headers(nvcc), folder / "small.so")
    return folder / "small.so"


@pytest.mark.parametrize(
    ("fault", "order", "said"),
    [
        (0, "0", "True"),
        (0, "1", "True"),
        (1, "0", "False"),  # copies that nobody waits for have not come
        (2, "0", "threads wait for ever"),  # half a warp is elsewhere
        (3, "0", "False"),  # no barrier
        (4, "0", "outside shared memory: 1024"),
        (5, "0", "misaligned address in shared memory: 1010"),
    ],
)
def test_faults_show(small: Path, fault: int, order: str, said: str) -> None:
    command = [sys.executable, "-c", SCRIPT, small, str(fault)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={"EMULATOR_ORDER": order})
    assert said in result.stdout + result.stderr
