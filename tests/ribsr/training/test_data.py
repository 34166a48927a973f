"""Training pictures: what is read and what is refused, and crops that fit each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ribsr import resize
from ribsr.training.data import Batches, Crops, Pair, read_pairs
from ribsr.training.recipe import Folder

CPU = torch.device("cpu")


def noise(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def pairs(scale: int, *sizes: tuple[int, int]) -> list[Pair]:
    high = [noise(h * scale, w * scale, i) for i, (h, w) in enumerate(sizes)]
    return [Pair(resize.downscale(picture, scale), picture) for picture in high]


def turned(crop: np.ndarray, turns: int) -> np.ndarray:
    """Transposed and flipped as `Crops.choose` numbers it."""
    crop = crop[::-1] if turns & 1 else crop
    crop = crop[:, ::-1] if turns & 2 else crop
    return crop.swapaxes(0, 1) if turns & 4 else crop


@pytest.mark.parametrize("scale", [2, 3])
def test_crops_are_cut_from_both_sides_alike(scale: int) -> None:
    pictures = pairs(scale, (9, 14), (8, 8), (20, 11))
    crops = Crops(pictures, scale, 8, CPU)
    chosen = crops.choose(seed=1, step=2, batch=64)
    low, high = crops.take(chosen)
    assert low.is_contiguous(memory_format=torch.channels_last)
    starts = dict(zip(np.cumsum([0, 9 * 14, 64]).tolist(), pictures, strict=True))
    seen = set()
    for (start, width, corner, turns), a, b in zip(chosen.tolist(), low.numpy(), high.numpy(), strict=True):
        top, left = divmod(corner, width)
        pair = starts[start]
        here = pair.low[top : top + 8, left : left + 8]
        there = pair.high[top * scale : (top + 8) * scale, left * scale : (left + 8) * scale]
        np.testing.assert_array_equal(a.transpose(1, 2, 0), turned(here, turns))
        np.testing.assert_array_equal(b.transpose(1, 2, 0), turned(there, turns))
        seen.add((start, turns))
    assert len(seen) >= 16


def test_every_position_is_as_likely_as_another() -> None:
    crops = Crops(pairs(2, (8, 9), (10, 8)), 2, 8, CPU)
    chosen = torch.cat([crops.choose(0, step, 500) for step in range(10)])
    places, counts = np.unique(chosen[:, [0, 2]].numpy(), axis=0, return_counts=True)
    assert places.tolist() == [[0, 0], [0, 1], [72, 0], [72, 8], [72, 16]]
    assert 900 < counts.min() <= counts.max() < 1100
    assert np.bincount(chosen[:, 3].numpy(), minlength=8).min() > 500


def test_a_batch_depends_on_seed_and_number_alone_and_is_shared_without_overlap() -> None:
    crops = Crops(pairs(2, (20, 30)), 2, 8, CPU)
    whole = Batches(crops, 7, 6, CPU)
    first, again = whole[3], Batches(crops, 7, 6, CPU)[3]
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], whole[4][0])
    assert not torch.equal(first[0], Batches(crops, 8, 6, CPU)[3][0])
    parts = [Batches(crops, 7, 6, CPU, rank, 3)[3] for rank in range(3)]
    for i in range(2):
        assert torch.equal(torch.cat([part[i] for part in parts]), first[i])
    assert first[0].dtype == torch.float32
    assert 0 <= first[0].min() < first[0].max() <= 1


def test_cutting_ahead_gives_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    crops = Crops(pairs(2, (20, 30)), 2, 8, CPU)
    batches, ahead = Batches(crops, 7, 4, CPU), Batches(crops, 7, 4, CPU)
    ahead._ahead = True
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)  # a GPU's affair
    for step in (0, 1, 2, 9, 10):
        assert torch.equal(batches[step][1], ahead[step][1])


def test_unusable_pictures_are_named_and_skipped(tmp_path: Path) -> None:
    Image.fromarray(noise(33, 40)).save(tmp_path / "good.png")
    Image.fromarray(noise(33, 15)).save(tmp_path / "small.png")
    Image.fromarray(noise(40, 40)[..., 0]).save(tmp_path / "gray.png")
    Image.fromarray(noise(40, 40)).convert("RGBA").save(tmp_path / "alpha.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    Image.fromarray(noise(40, 40)[..., 0].astype(np.uint16)).save(tmp_path / "deep.png")
    for name in ("notes.txt", "._good.png", "._small.png"):
        (tmp_path / name).touch()
    said: list[str] = []
    (pair,) = read_pairs([Folder(str(tmp_path))], 2, 8, said.append)
    assert (pair.low.shape, pair.high.shape) == ((16, 20, 3), (32, 40, 3))
    np.testing.assert_array_equal(pair.low, resize.downscale(pair.high, 2))
    assert said.pop(0) == "skipped 2 sidecar files (._*), which are no pictures"
    reasons = {line.split(".")[0].rsplit("/", 1)[1]: line for line in said}
    assert sorted(reasons) == ["alpha", "broken", "deep", "gray", "small"]
    assert "is gray" in reasons["gray"]
    assert "15x33" not in reasons["small"]
    assert "14x32 is too small for crops of 16 pixels" in reasons["small"]
    assert "has an alpha channel" in reasons["alpha"]
    assert "not a picture" in reasons["broken"]
    with pytest.raises(ValueError, match="no usable training pictures in"):
        read_pairs([Folder(str(tmp_path))], 2, 64, said.append)


def test_paired_folders(tmp_path: Path) -> None:
    for name in ("high", "low"):
        (tmp_path / name).mkdir()
    for name in ("0001", "0002", "0003", "0004"):
        Image.fromarray(noise(33, 40)).save(tmp_path / "high" / f"{name}.png")
    Image.fromarray(noise(16, 20, 1)).save(tmp_path / "low" / "0001x2.png")
    Image.fromarray(noise(16, 20, 2)).save(tmp_path / "low" / "0002.png")
    Image.fromarray(noise(16, 21, 3)).save(tmp_path / "low" / "0003.png")
    said: list[str] = []
    found = read_pairs([Folder(str(tmp_path / "high"), str(tmp_path / "low"))], 2, 8, said.append)
    assert [pair.low[0, 0, 0] for pair in found] == [noise(16, 20, seed)[0, 0, 0] for seed in (1, 2)]
    assert "0003.png: is not 2 times smaller than" in said[0]
    assert "0004.png: has no partner 0004.png or 0004x2.png in" in said[1]
