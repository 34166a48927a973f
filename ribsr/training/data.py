"""Training pictures: decoded once, kept as bytes in memory or on the GPU, and cut there into batches of random crops.

Batch number n is a function of the seed and n alone, so that a resumed run sees what an unbroken one would have seen,
and a run on several GPUs the same crops as on one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ribsr import resize
from ribsr.base.pictures import pictures_in, read_rgb
from ribsr.base.sizes import Size
from ribsr.benchmark import DataError, sidecars
from ribsr.training.recipe import Folder


@dataclass(frozen=True)
class Pair:
    """low: uint8 RGB [H, W, 3]; high: the same scene, uint8 [sH, sW, 3]."""

    low: np.ndarray
    high: np.ndarray


def read_pairs(folders: Sequence[Folder], scale: int, crop: int, say: Callable[[str], None]) -> list[Pair]:
    """All usable pictures of the folders: RGB of 8 bits, large enough. Others are named to `say`, with the reason, and
    left out.

    crop: side of the low-resolution crops, which must fit into a picture. Raises DataError when none is usable.
    """
    jobs = [(path, folder.low) for folder in folders for path in pictures_in(Path(folder.high))]
    if count := sidecars(Path(folder.high) for folder in folders):
        say(f"skipped {count} sidecar files (._*), which are no pictures")
    pairs = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reading = [pool.submit(_read_pair, path, low, scale, crop) for path, low in jobs]
    for pair in reading:
        try:
            pairs.append(pair.result())
        except DataError as error:  # one bad picture does not end the others
            say(f"skipped {error}")
    if not pairs:
        raise DataError(f"no usable training pictures in {', '.join(folder.high for folder in folders)}")
    return pairs


def _read_pair(path: Path, low_folder: str | None, scale: int, crop: int) -> Pair:
    high = resize.crop_to_multiple(read_rgb(path).pixels, scale)
    size = Size(*high.shape[:2])
    if min(size) < crop * scale:
        raise DataError(f"{path}: {size} is too small for crops of {crop * scale} pixels")
    if low_folder is None:
        return Pair(resize.downscale(high, scale), high)
    names = (f"{path.stem}{path.suffix}", f"{path.stem}x{scale}{path.suffix}")
    found = [Path(low_folder) / name for name in names if (Path(low_folder) / name).is_file()]
    if not found:
        raise DataError(f"{path}: has no partner {' or '.join(names)} in {low_folder}")
    low = read_rgb(found[0])
    if low.size.times(scale) != size:
        raise DataError(f"{found[0]}: is not {scale} times smaller than {path}")
    return Pair(low.pixels, high)


class Crops:
    """Pairs laid end to end as uint8 [pixels, 3] on `device`, from which crops are taken by one gather."""

    def __init__(self, pairs: Sequence[Pair], scale: int, crop: int, device: torch.device):
        self.scale, self.crop, self.device = scale, crop, device
        sizes = np.array([pair.low.shape[:2] for pair in pairs], dtype=np.int64)
        self._widths = sizes[:, 1]
        self._starts = np.concatenate([[0], np.cumsum(sizes.prod(axis=1))])
        self._columns = sizes[:, 1] - crop + 1
        self._positions = np.cumsum((sizes[:, 0] - crop + 1) * self._columns)
        self._low = _concatenated([pair.low for pair in pairs], device)
        self._high = _concatenated([pair.high for pair in pairs], device)

    def choose(self, seed: int, step: int, batch: int) -> Tensor:
        """Batch `step` of `seed`: [batch, 4] int64: first pixel of the low picture, its width, first pixel of the crop
        within it, and one of the 8 flips and rotations. Every possible crop of every picture is as likely as another.
        """
        rng = np.random.default_rng([seed, step])
        drawn = rng.integers(0, self._positions[-1], batch)
        picture = np.searchsorted(self._positions, drawn, side="right")
        inside = drawn - np.concatenate([[0], self._positions])[picture]
        top, left = np.divmod(inside, self._columns[picture])
        width = self._widths[picture]
        turns = rng.integers(0, 8, batch)
        return torch.from_numpy(np.stack([self._starts[picture], width, top * width + left, turns], axis=1))

    def take(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The crops `chosen`: uint8 low [B, 3, crop, crop] and high [B, 3, s·crop, s·crop], channels-last."""
        chosen = chosen.to(self.device, non_blocking=True)
        return self._gather(self._low, chosen, 1), self._gather(self._high, chosen, self.scale)

    def _gather(self, pixels: Tensor, chosen: Tensor, scale: int) -> Tensor:
        start, width, corner, turns = (column.view(-1, 1, 1) for column in chosen.unbind(1))
        side = self.crop * scale
        i = torch.arange(side, device=self.device)
        i, j = i.view(1, -1, 1), i.view(1, 1, -1)
        turned = turns & 4 != 0
        row, column = torch.where(turned, j, i), torch.where(turned, i, j)
        row = torch.where(turns & 1 != 0, side - 1 - row, row)
        column = torch.where(turns & 2 != 0, side - 1 - column, column)
        top, left = corner // width * scale, corner % width * scale
        index = start * scale**2 + (top + row) * (width * scale) + left + column
        return pixels[index].permute(0, 3, 1, 2)


def _concatenated(pictures: Sequence[np.ndarray], device: torch.device) -> Tensor:
    out = torch.empty((sum(len(p) * p.shape[1] for p in pictures), 3), dtype=torch.uint8, device=device)
    start = 0
    for picture in pictures:
        flat = torch.from_numpy(np.array(picture).reshape(-1, 3))  # a copy: Pillow's arrays are read-only
        out[start : start + len(flat)] = flat
        start += len(flat)
    return out


def storage_device(pairs: Sequence[Pair], device: torch.device) -> torch.device:
    """`device` if the pictures take less than a third of its free memory, else the CPU."""
    size = sum(pair.low.nbytes + pair.high.nbytes for pair in pairs)
    fits = device.type == "cuda" and size * 3 < torch.cuda.mem_get_info(device)[0]
    return device if fits else torch.device("cpu")


class Batches:
    """Batches by their number, float32 in [0, 1] on `device`; this process's share of `batch` crops.

    Where the pictures stay in host memory, a thread cuts the next batch while this one is in use.
    """

    def __init__(self, crops: Crops, seed: int, batch: int, device: torch.device, rank: int = 0, world: int = 1):
        self._crops, self._seed, self._batch, self._device = crops, seed, batch, device
        self._share = slice(rank * batch // world, (rank + 1) * batch // world)
        self._ahead = crops.device != device
        self._pool = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[tuple[Tensor, Tensor]]] | None = None

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """low [B, 3, crop, crop] and high [B, 3, s·crop, s·crop]."""
        if not self._ahead:
            low, high = self._cut(step)
        else:
            ready = self._next[1] if self._next and self._next[0] == step else self._pool.submit(self._cut, step)
            self._next = (step + 1, self._pool.submit(self._cut, step + 1))
            low, high = ready.result()
        return self._place(low), self._place(high)

    def _cut(self, step: int) -> tuple[Tensor, Tensor]:
        chosen = self._crops.choose(self._seed, step, self._batch)[self._share]
        low, high = self._crops.take(chosen)
        return (low.pin_memory(), high.pin_memory()) if self._ahead else (low, high)

    def _place(self, crops: Tensor) -> Tensor:
        return crops.to(self._device, non_blocking=True).float().div_(255)
