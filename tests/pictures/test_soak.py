"""A folder of many mixed pictures in one run: memory stays flat, and each result is what it would be alone.

200 pictures; RIBSR_SOAK=2000 is what takes minutes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.pictures import by_hand
from tests.pictures.corpus import noise, saved, smooth, tiff
from tests.pictures.repeating import write_repeating
from tests.pictures.worker import Worker

COUNT = int(os.environ.get("RIBSR_SOAK", "200"))
BLOCK = COUNT // 10
"""Results whose memory is averaged; the first block of them is not counted."""

FLAT = 0.05 if COUNT >= 2000 else 0.2
"""Share by which memory may move. In a short run the largest pictures come late; one result kept of each picture would
be several times as much as this."""

Sample = tuple[int, int]
"""Results that were there, and resident bytes."""


def mixed(number: int) -> tuple[str, bytes]:
    """A picture's suffix and file, of any size up to 256 pixels, the same for the same number."""
    rng = np.random.default_rng(number)
    height, width = (int(side) for side in rng.integers(8, 257, 2))
    channels, depth = 1 + int(rng.integers(4)), (8, 16)[rng.integers(2)]
    pixels = noise(height, width, channels, depth, number)
    plain = smooth(height, width, (1, 3)[rng.integers(2)], number)
    match number % 6:
        case 0:
            return ".png", by_hand.png(pixels, (0, 4, 2, 6)[channels - 1], depth)
        case 1:
            return ".tif", tiff(pixels, compression="zlib")
        case 2:
            return ".jpg", saved(plain, "JPEG", quality=90)
        case 3:
            return ".webp", saved(smooth(height, width, 3 + number % 2, number), "WEBP", quality=80)
        case 4:
            return ".bmp", saved(plain, "BMP")
        case _:
            return ".ppm", by_hand.pnm(plain, 255)


def enlarge(model: Path, source: Path, target: Path) -> None:
    from engines.upscale import main

    result = CliRunner().invoke(main, [str(model), str(source), str(target), "--device", "cpu"])
    assert result.exit_code == 0, result.output


def soak(model: Path, source: Path, target: Path) -> list[Sample]:
    """The folder enlarged, and memory meanwhile."""
    samples: list[Sample] = []
    over = threading.Event()
    watching = threading.Thread(target=lambda: samples.extend(watch(target, over)))
    watching.start()
    try:
        enlarge(model, source, target)
    finally:
        over.set()
        watching.join()
    return samples


def watch(target: Path, over: threading.Event) -> Iterator[Sample]:
    while not over.wait(0.02):
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        yield len(os.listdir(target)) if target.is_dir() else 0, resident


def by_block(samples: list[Sample]) -> list[float]:
    """Mean resident MiB while the results of each block were made."""
    blocks: dict[int, list[int]] = {}
    for count, resident in samples:
        blocks.setdefault(min(count, COUNT - 1) // BLOCK, []).append(resident)
    return [float(np.mean(blocks[number])) / 2**20 for number in sorted(blocks)]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measured as Linux does")
def test_memory_is_flat_and_results_are_those_of_single_runs(tmp_path: Path) -> None:
    source, target, alone = tmp_path / "in", tmp_path / "out", tmp_path / "alone"
    source.mkdir()
    alone.mkdir()
    for number in range(COUNT):
        suffix, data = mixed(number)
        (source / f"{number:05}{suffix}").write_bytes(data)
    model = write_repeating(tmp_path / "model.onnx")
    with Worker(timeout=3600) as worker:
        samples = worker(soak, model, source, target)
        printed = worker.printed()
    paths = sorted(source.iterdir())
    assert sorted(path.name for path in target.iterdir()) == [path.name for path in paths]
    assert printed == ""
    memory = by_block(samples)
    print(f"{COUNT} pictures, {len(samples)} samples, MiB by {BLOCK} pictures: {[round(mean) for mean in memory]}")
    later = memory[1:]
    assert len(later) >= 5
    assert max(abs(mean / later[0] - 1) for mean in later) <= FLAT, memory
    for path in paths[:: COUNT // 20 + 1]:
        enlarge(model, path, alone / path.name)
        assert (alone / path.name).read_bytes() == (target / path.name).read_bytes(), path.name
