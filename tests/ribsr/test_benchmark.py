"""Benchmark sets: what is found, what is refused, and both conventions for gray pictures."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ribsr import benchmark
from ribsr.benchmark import DataError

SAMPLE = Path(__file__).parents[2] / "engines" / "samples" / "chelsea.png"
BENCHMARK = os.environ.get("RIBSR_BENCHMARK", "")


def photograph(path: Path, gray: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.open(SAMPLE).crop((60, 30, 131, 90))
    image.convert("L" if gray else "RGB").save(path)
    return path


def test_sets_are_found_by_their_folders(tmp_path: Path) -> None:
    one, two = photograph(tmp_path / "SetA" / "HR" / "1.png"), photograph(tmp_path / "SetB" / "2.png")
    (tmp_path / "SetB" / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    assert benchmark.find_sets(tmp_path) == {"SetA": [one], "SetB": [two]}
    assert benchmark.find_sets(tmp_path / "SetA") == {"SetA": [one]}
    with pytest.raises(DataError, match="empty: holds no pictures"):
        benchmark.find_sets(tmp_path / "empty")
    with pytest.raises(DataError, match="nowhere: there is no such folder"):
        benchmark.find_sets(tmp_path / "nowhere")


def test_no_set_is_left_out_in_silence(tmp_path: Path) -> None:
    one, stray = photograph(tmp_path / "B" / "A" / "HR" / "1.png"), photograph(tmp_path / "B" / "stray.png")
    for folder in (tmp_path, tmp_path / "B"):
        with pytest.raises(DataError, match=r"B: holds a picture, stray\.png, beside a folder of pictures, A; move"):
            benchmark.find_sets(folder)
    stray.unlink()
    photograph(tmp_path / "B" / ".t" / "2.png")
    assert benchmark.find_sets(tmp_path / "B") == {"A": [one]}
    photograph(tmp_path / "B" / "E" / "3.png")
    (tmp_path / "B" / "E" / "HR").mkdir()
    with pytest.raises(DataError, match=r"E/HR: holds no pictures; put those of the set there"):
        benchmark.find_sets(tmp_path / "B")
    photograph(tmp_path / "B" / "E" / "HR" / "3.png")
    with pytest.raises(DataError, match=r"E: holds a picture, 3\.png, beside a folder of pictures, HR"):
        benchmark.find_sets(tmp_path / "B")


def test_sets_of_one_name_go_by_their_paths(tmp_path: Path) -> None:
    one, two = photograph(tmp_path / "one" / "valid" / "1.png"), photograph(tmp_path / "two" / "valid" / "HR" / "2.png")
    other = photograph(tmp_path / "two" / "test" / "3.png")
    assert benchmark.find_sets(one.parent, one.parent) == {"valid": [one]}
    expected = {str(tmp_path / "one" / "valid"): [one], "test": [other], str(tmp_path / "two" / "valid"): [two]}
    assert benchmark.find_sets(one.parent, tmp_path / "two") == expected


def test_nothing_is_cut_for_a_score(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(tmp_path / "deep.png")
    Image.new("LA", (40, 40)).save(tmp_path / "alpha.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "key.png", transparency=(1, 2, 3))
    pages = [Image.new("RGB", (40, 40), (value, 0, 0)) for value in (1, 2, 3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    for name, kind in (
        ("deep.png", "has 16 bits"),
        ("alpha.png", "has|is gray with an alpha"),
        ("key.png", "has"),
        ("pages.tif", "holds 3"),
    ):
        assert re.search(rf"{name}: ({kind})", str(benchmark.why_not(tmp_path / name, 2)))
        with pytest.raises(DataError, match=rf"{name}: ({kind})"):
            list(benchmark.score(benchmark.bicubic(2), [tmp_path / name], 2))


def test_a_gray_picture_stays_a_plane(tmp_path: Path) -> None:
    assert benchmark.read_original(photograph(tmp_path / "gray.png", gray=True), 1).shape == (60, 71)
    assert benchmark.why_not(tmp_path / "gray.png", 2) is None


def test_sidecars_are_no_pictures_and_counted(tmp_path: Path) -> None:
    path = photograph(tmp_path / "1.png")
    for name in ("._1.png", "._2.PNG", "._notes.txt", "._DS"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    assert benchmark.find_sets(tmp_path) == {tmp_path.name: [path]}
    assert benchmark.sidecars([tmp_path]) == 2


def test_pictures_are_scored_upright(tmp_path: Path) -> None:
    path, exif = photograph(tmp_path / "1.png"), Image.Exif()
    original = np.asarray(Image.open(path))
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    np.testing.assert_array_equal(benchmark.read_original(path, 1), np.rot90(original, -1))


def test_a_perfect_model_has_no_error(tmp_path: Path) -> None:
    path = photograph(tmp_path / "1.png")
    original = np.asarray(Image.open(path))[:60, :70]
    (perfect,) = benchmark.score(lambda low: original, [path], 2)
    assert (perfect.picture, perfect.psnr, perfect.ssim) == ("1.png", math.inf, pytest.approx(1))
    (bicubic,) = benchmark.score(benchmark.bicubic(2), [path], 2)
    assert 20 < bicubic.psnr < 50
    assert 0.5 < bicubic.ssim < 1


def test_both_conventions_for_gray_pictures(tmp_path: Path) -> None:
    path = photograph(tmp_path / "gray.png", gray=True)
    (plane,) = benchmark.score(benchmark.bicubic(2), [path], 2)
    (rgb,) = benchmark.score(benchmark.bicubic(2), [path], 2, as_rgb=True)
    assert rgb.psnr - plane.psnr == pytest.approx(20 * math.log10(255 / 219))


def test_pictures_that_cannot_be_scored_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(SAMPLE.read_bytes()[:500])
    Image.new("RGBA", (40, 40)).save(tmp_path / "alpha.png")
    Image.new("RGB", (12, 12)).save(tmp_path / "small.png")
    for name, reason in (("broken", "damaged"), ("alpha", "has an alpha channel"), ("small", "SSIM needs 11x11")):
        with pytest.raises(DataError, match=rf"{name}\.png: .*{reason}"):
            list(benchmark.score(benchmark.bicubic(2), [tmp_path / f"{name}.png"], 2))


@pytest.mark.skipif(not BENCHMARK, reason="RIBSR_BENCHMARK does not name the benchmark folder")
@pytest.mark.parametrize(
    ("scale", "set5", "set14"), [(2, 33.66, 30.24), (3, 30.39, 27.55), (4, 28.42, 26.00)], ids=["x2", "x3", "x4"]
)
def test_the_baseline_is_the_published_one(scale: int, set5: float, set14: float) -> None:
    sets = benchmark.find_sets(Path(BENCHMARK))
    for name, expected in (("Set5", set5), ("Set14", set14)):
        scores = benchmark.score(benchmark.bicubic(scale), sets[name], scale)
        assert np.mean([score.psnr for score in scores]) == pytest.approx(expected, abs=0.02)
