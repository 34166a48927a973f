"""The bundled pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines import samples
from ribsr.base.pictures import read_rgb
from ribsr.base.sizes import Size

FOLDER = Path(samples.__file__).with_suffix("")


def test_the_sizes_are_hard_in_different_ways() -> None:
    sizes = [x.shape[2:] for _, x in samples.load()]
    assert any(h % 64 == 0 and w % 64 == 0 for h, w in sizes)
    assert any(h % 2 and w % 2 and max(h, w) > 64 for h, w in sizes)
    assert any(max(h, w) < 8 for h, w in sizes), "smaller than the smallest window"
    for name, x in samples.load():
        assert name.endswith(f"{x.shape[3]}x{x.shape[2]}")
        assert (x.dtype, x.shape[:2]) == (np.float32, (1, 3))
        assert 0 <= x.min() < x.max() <= 1


@pytest.mark.parametrize(("height", "width"), [(1, 1), (192, 192), (64, 200), (700, 33)])
def test_any_size_can_be_had(height: int, width: int) -> None:
    for _, x in samples.at(Size(height, width)):
        assert x.shape == (1, 3, height, width)
        assert x.flags.writeable
        assert len(np.unique(x)) > 1


def test_larger_ones_are_mirrored() -> None:
    (_, whole), *_ = samples.at(Size(192, 192))
    (_, large), *_ = samples.at(Size(192, 300))
    np.testing.assert_array_equal(large[..., :192], whole)
    np.testing.assert_array_equal(large[..., 192:], whole[..., 83:191][..., ::-1])


def test_smaller_ones_are_cut_from_the_middle() -> None:
    (_, small), *_ = samples.at(Size(10, 20))
    (_, whole), *_ = samples.at(Size(192, 192))
    np.testing.assert_array_equal(small, whole[:, :, 91:101, 86:106])


def test_every_file_has_its_licence_and_all_are_small() -> None:
    files = sorted(FOLDER.glob("*.png"))
    assert sorted(samples.NAMES) == [file.stem for file in files]
    licences = (FOLDER / "LICENSES.md").read_text(encoding="utf-8")
    assert all(f"`{file.name}`" in licences for file in files)
    assert sum(file.stat().st_size for file in files) < 300_000
    assert all(read_rgb(file).size == Size(192, 192) for file in files)
