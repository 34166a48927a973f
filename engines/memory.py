"""How much memory there is, and how much a network takes: so that nothing is begun that the system would kill.

Linux promises memory that it does not have, and kills who touches it. So what a run takes has to be known before.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ribsr.base.sizes import Size

MARGIN = 0.2
"""Share of the free memory that is left alone: for what predictions miss, and for other programs."""

GIB = 2**30


# What there is


def available(root: Path = Path("/"), address_space: int | None = None) -> int | None:
    """Bytes that this process may still take: what the system has free, its cgroup leaves, and `ulimit -v` allows.

    root: where /proc and /sys are looked for. address_space: the limit of `ulimit -v`; None: that of this process.
    None where nothing is known.
    """
    if address_space is None:
        address_space = _address_space()
    known = [free_of_system(root), free_of_cgroups(root), free_addresses(root, address_space)]
    return max(0, min(known)) if (known := [free for free in known if free is not None]) else None


def free_of_system(root: Path = Path("/")) -> int | None:
    """Bytes that the machine has left, page cache included."""
    with suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        import psutil
    except ModuleNotFoundError:
        return None
    return int(psutil.virtual_memory().available) if root == Path("/") else None


def free_of_cgroups(root: Path = Path("/")) -> int | None:
    """Bytes that the process's memory cgroup, and those above it, leave; None without a limit.

    Page cache that is not in use counts as free, since the kernel drops it before it kills.
    """
    left = [free for folder in _cgroups(root) if (free := _left_of(folder)) is not None]
    return min(left) if left else None


def free_addresses(root: Path, limit: int | None) -> int | None:
    """Bytes that can be taken below `limit`, of what is mapped; None without one. Allocators map more than they use."""
    if limit is None:
        return None
    with suppress(OSError, ValueError, IndexError):
        pages = int((root / "proc/self/statm").read_text().split()[0])
        return int(_USED_OF_MAPPED * (limit - pages * os.sysconf("SC_PAGE_SIZE") - _THREADS))
    return None


_USED_OF_MAPPED = 0.6
"""ONNX Runtime's arena grows by powers of two."""

_THREADS = 2**28
"""Bytes of addresses that threads for reading and writing reserve (glibc's arenas, stacks), used or not."""


def resident() -> int:
    """Bytes that this process holds; 0 where that is not known."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    with suppress(ModuleNotFoundError):
        import psutil

        return int(psutil.Process().memory_info().rss)
    return 0


def _address_space() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def _cgroups(root: Path) -> Iterator[Path]:
    """The folders of the process's memory cgroup and all above it, of version 2 and 1.

    In a container /proc may name a path that is not mounted there: then only the folders above it are found.
    """
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            base = root / "sys/fs/cgroup"
            if controllers and "memory" not in controllers.split(","):
                continue
            bases = [base / "memory"] if controllers else [base, base / "unified"]
            for top in bases:
                inner = [part for part in path.split("/") if part not in ("", "..")]
                yield from (top.joinpath(*inner[:count]) for count in range(len(inner), -1, -1))


def _left_of(folder: Path) -> int | None:
    """Limit minus use of one cgroup."""
    for limits, usage, cache in (
        (("memory.max", "memory.high"), "memory.current", "inactive_file"),
        (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
    ):
        known = [limit for name in limits if (limit := _number(folder / name)) is not None]
        used = _number(folder / usage)
        if known and used is not None:
            return min(known) - max(0, used - _stat(folder / "memory.stat", cache))
    return None


def _number(path: Path) -> int | None:
    """None for `max`, and for a file that is not there."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _stat(path: Path, name: str) -> int:
    with suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0


def told(size: float | None) -> str:
    """A number of bytes as people read it."""
    if size is None:
        return "an unknown amount"
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"


def trim_heap() -> None:
    """Gives freed memory that the C library keeps back to the system, where that can be said."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


_MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD"""


def keep_heap_small() -> None:
    """Has the C library give allocations of a MiB and more back to the system as soon as they are freed.

    By itself glibc raises that bound up to 32 MiB with what is freed, and keeps what is below: a tenth more memory
    after some hundred pictures of many sizes. Such allocations take longer then, which a model on a CPU outweighs.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 2**20)


# What a network takes


@dataclass(frozen=True)
class Network:
    """What memory depends on: of all layers the widest of each kind.

    channels: of q, as of k and v, heads padded as they may be. positions: heads times the RIB's rank. heads, windows:
    of the attention. hidden: channels between the two halves of a feed-forward part. enlarged: channels that become
    pixels.
    """

    channels: int
    positions: int
    heads: int
    hidden: int
    enlarged: int
    windows: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, shapes: Iterable[Sequence[int]], windows: tuple[tuple[int, int], ...]) -> Network:
        """That of a file's weights. shapes: of convolutions [O, I, K, K], and of RIBs, in whatever order."""
        shapes = [tuple(shape) for shape in shapes]
        tokens = {rows * columns for rows, columns in windows}
        ribs = [_without(shape, tokens) for shape in shapes if len(shape) == 3 and tokens & {*shape}]
        ones = {shape[:2] for shape in shapes if len(shape) == 4 and shape[2:] == (1, 1)}
        threes = [shape for shape in shapes if len(shape) == 4 and shape[2:] == (3, 3)]
        inner = [out // 3 for out, into in ones if out % 3 == 0 and (into, out // 3) in ones]
        return cls(
            channels=max(inner, default=0),
            positions=max((heads * rank for heads, rank in ribs), default=0),
            heads=max((heads for heads, _ in ribs), default=0),
            hidden=max((shape[0] for shape in threes if shape[1] == 1), default=0),
            enlarged=max((shape[0] for shape in threes if shape[1] > 1), default=0),
            windows=tuple(sorted(set(windows))),
        )

    def padded(self, size: Size) -> list[tuple[int, int]]:
        """Tokens of each kind of window, and pixels of the map that is cut into them."""
        return [
            (rows * columns, -(-size.height // rows) * rows * (-(-size.width // columns) * columns))
            for rows, columns in self.windows
        ]


def _without(shape: tuple[int, ...], tokens: set[int]) -> tuple[int, int]:
    """[heads, N, R] or [N, heads, R] → heads, R."""
    found = next(index for index, length in enumerate(shape[:2] or shape) if length in tokens or index == 1)
    heads, rank = (length for index, length in enumerate(shape) if index != found)
    return heads, rank


def pytorch_on_cpu(network: Network, backend: str, precision: str, size: Size) -> int:
    """Bytes of a run by PyTorch 2.13 on a CPU. Measured as those of ONNX Runtime."""
    needed = _size_of(precision) * _pytorch_values(network, size, gaps=1.35)
    return round(needed + (_reference_scores(network, size) if backend == "reference" else 0))


def _pytorch_values(network: Network, size: Size, gaps: float) -> float:
    """Numbers that PyTorch's own operators hold at most. gaps: what the allocator takes for one that is in use."""
    pixels = size.height * size.width
    largest = _largest_map(network, size)
    # Maps of a layer's width, and q, k, v and what comes out as wide as content and position.
    attention = gaps * (5 * network.channels * pixels + (7 * network.channels + 4 * network.positions) * largest)
    body = max(attention, 5 * network.hidden * pixels)
    head = network.enlarged * pixels
    return max(body + 2 * head - min(head, body / 3), 3 * head) + 60 * pixels


def _reference_scores(network: Network, size: Size) -> float:
    """Bytes of `ribsr.attention.reference`'s scores."""
    scores = max((tokens * padded for tokens, padded in network.padded(size)), default=0)
    return 3 * 4 * min(network.heads * scores, 2**25)  # `ribsr.attention.MAX_SCORES`


def _largest_map(network: Network, size: Size) -> int:
    """Pixels of the largest map that is cut into windows."""
    return max((padded for _, padded in network.padded(size)), default=size.height * size.width)


def _size_of(precision: str) -> int:
    """Bytes of a number."""
    return 2 if precision in ("fp16", "bf16") else 4


def onnxruntime_on_cpu(network: Network, form: str, precision: str, size: Size, threads: int) -> int:
    """Bytes of a run by ONNX Runtime 1.32 on a CPU, its arena empty, memory patterns off.

    In our kernels (the form `kernel`): measured at 256x256, 2 kB a pixel for sst-light, 7.5 for sst-l+. Else
    measured with one-block variants of the published models and smaller ones at 72x72 to 512x512; half precision is
    computed in float32 there, but for the scores. The arena does not join what it got at different times: the scores
    of larger windows come on top of those of smaller ones.
    """
    if form == "kernel":
        return _in_kernels(network, size, bytes_each=4, copied=False) + threads * _OF_A_THREAD
    scores = 0.0
    if form in ("attention", "matmul"):
        bytes_each = 2 if form == "attention" and precision != "fp32" else 4
        scores = sum(bytes_each * network.heads * tokens * padded for tokens, padded in network.padded(size))
        if form == "matmul":
            scores *= 2
        elif precision != "fp32":
            scores += 4 * threads * max((tokens for tokens, _ in network.padded(size)), default=0) ** 2
    return round(4 * _onnxruntime_values(network, size) + scores)


def _onnxruntime_values(network: Network, size: Size) -> float:
    """Numbers that ONNX Runtime's own operators hold at most, but for scores."""
    pixels = size.height * size.width
    largest = _largest_map(network, size)
    attention = 4 * network.channels * pixels + (6.5 * network.channels + 5.1 * network.positions) * largest
    body = max(attention, 5.1 * network.hidden * pixels)
    head = network.enlarged * pixels
    return max(body + 2 * head - min(head, body / 3), 3 * head) + 24 * pixels


def openvino_on_cpu(network: Network, form: str, bfloat16: bool, size: Size) -> int:
    """Bytes of a run by OpenVINO 2026.4 on a CPU, but for its copy of the weights, which the first run makes.

    Measured with sst-light at 64x64 to 320x320, and with networks of two and four smaller blocks. They have ONNX
    Runtime's maps, and more at a time: each piece of memory is as large as the largest of all that come to lie there.
    With one block that is a quarter less. The forms mha and matmul take the same, since OpenVINO finds the attention in
    both; in `attention` values are as wide as keys.
    """
    each = 2.1 * 2 if bfloat16 else 1.85 * 4
    return round((1.15 if form == "attention" else 1) * each * _onnxruntime_values(network, size))


# What it takes on a GPU: measured on an H200 with four published models at x2, 256x256 to 1280x720. The table is in
# tests/engines/test_memory.py; ONNX Runtime 1.31 and PyTorch 2.11.

FIRST_RUN = {"onnxruntime": 70 * 2**20, "pytorch": 168 * 2**20}
"""Bytes that an engine's first run on a GPU takes besides, and that stay: libraries' code and handles."""


def pytorch_on_gpu(network: Network, backend: str, precision: str, size: Size) -> int:
    """Bytes of a run by PyTorch on a GPU, but for FIRST_RUN.

    cuDNN takes more for itself where there is more: once 4.6 GiB for a picture of 64x64, in float32.
    """
    if backend == "kernel":
        return _in_kernels(network, size) + _WORKSPACE
    needed = _size_of(precision) * _pytorch_values(network, size, gaps=1)
    if backend == "reference":  # a third is not there yet or no longer
        needed = max(needed, 2 / 3 * needed + _reference_scores(network, size))
    return round(needed) + _WORKSPACE


def onnxruntime_on_gpu(network: Network, form: str, precision: str, size: Size) -> int:
    """Bytes of a run by ONNX Runtime's CUDA provider, but for FIRST_RUN.

    Its own operators (all but the form `kernel`) were measured once, at 256x256 in float16: what they take is that of
    the CPU and a quarter, for an arena that grows by powers of two; in the forms that have scores, all of them.
    """
    if form == "kernel":
        return _in_kernels(network, size)
    values = _onnxruntime_values(network, size)
    if form in ("attention", "matmul"):
        copies = 2 if form == "matmul" else 1
        values += copies * sum(network.heads * tokens * padded for tokens, padded in network.padded(size))
    return round(1.25 * _size_of(precision) * values)


_WORKSPACE = 16 * 2**20
"""Bytes that cuBLAS and cuDNN have PyTorch's allocator hold."""


_OF_A_THREAD = 5 * 2**20
"""Bytes that our kernels keep for each thread of a CPU, for windows of 64."""


def _in_kernels(network: Network, size: Size, bytes_each: int = 2, copied: bool = True) -> int:
    """Bytes of a run in our kernels, by either runtime: channels-last maps, on a GPU in half precision.

    They are x, what is added at the ends of block and network, qkv, gate, and results; or a feed-forward part's.
    copied: where the convolutions are the library's, whose maps are the other way round, there are copies.
    """
    apart = copied and any(width % 8 for width in (network.channels, network.hidden))
    attention = (12 if apart else 10) * network.channels
    feed_forward = 3 * network.hidden + 2 * network.channels
    ends = 42  # picture and result at x2, in float32, too
    return bytes_each * size.height * size.width * (max(attention, feed_forward, 3 * network.enlarged) + ends)
