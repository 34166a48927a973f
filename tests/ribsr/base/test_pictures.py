"""What pictures are in memory, and the rules of reading and writing that hold for all kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ribsr.base.errors import RibsrError
from ribsr.base.pictures import (
    SUFFIXES,
    WRITABLE,
    Colour,
    Header,
    Picture,
    PictureError,
    from_image,
    pictures_in,
    read_header,
    read_input,
    read_picture,
    read_rgb,
    to_bytes,
    to_image,
    to_input,
    to_pixels,
    write_picture,
)
from ribsr.base.sizes import Size
from tests.ribsr.base import made

RGB = made.pixels(3)


def test_what_a_picture_says_of_itself() -> None:
    for channels, alpha, gray in ((1, False, True), (2, True, True), (3, False, False), (4, True, False)):
        for depth in (8, 16):
            picture = Picture(made.pixels(channels, depth))
            assert (picture.channels, picture.depth, picture.size) == (channels, depth, Size(5, 7))
            assert (picture.has_alpha, picture.is_gray) == (alpha, gray)


@given(st.floats(-1, 2, width=32))
def test_values_are_clipped_and_rounded_to_nearest(value: float) -> None:
    for depth, full in ((8, 255), (16, 65535)):
        got = to_bytes(np.array([value], np.float32), depth)[0]
        assert got == min(full, max(0, round(float(np.float32(value) * np.float32(full)))))


@pytest.mark.parametrize("depth", [8, 16])
def test_what_a_model_takes_and_gives_is_the_picture_again(depth: int) -> None:
    pixels = made.pixels(3, depth)
    x = to_input(pixels)
    assert (x.dtype, x.shape, x.flags.c_contiguous) == (np.float32, (1, 3, 5, 7), True)
    assert (x.min(), x.max()) == (0, 1)
    np.testing.assert_array_equal(to_pixels(x, depth), pixels)
    before = x.copy()
    to_bytes(x, depth)
    np.testing.assert_array_equal(x, before)


def test_all_16_bit_values_survive_float32() -> None:
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(to_bytes(to_input(every)[0, 0], 16), every)


def test_gray_goes_in_as_three_equal_channels() -> None:
    gray = made.pixels(1, 16)
    np.testing.assert_array_equal(to_input(gray), to_input(gray[..., None].repeat(3, axis=2)))


def test_what_models_read(tmp_path: Path) -> None:
    for channels in (1, 3):
        for depth in (8, 16):
            pixels = made.pixels(channels, depth)
            (tmp_path / "a.png").write_bytes(made.png(pixels))
            np.testing.assert_array_equal(read_input(tmp_path / "a.png"), to_input(pixels))
    for channels in (2, 4):
        (tmp_path / "a.png").write_bytes(made.png(made.pixels(channels)))
        with pytest.raises(PictureError, match=r"a\.png: has an alpha channel"):
            read_input(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("channels", "depth", "reason"),
    [
        (1, 8, "is gray"),
        (2, 8, "is gray and has an alpha channel"),
        (3, 16, "has 16 bits per channel"),
        (4, 16, "has 16 bits per channel and has an alpha channel"),
    ],
)
def test_training_and_evaluation_take_8_bit_rgb_alone(tmp_path: Path, channels: int, depth: int, reason: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(made.png(made.pixels(channels, depth)))
    with pytest.raises(PictureError) as info:
        read_rgb(path)
    assert str(info.value) == f"{path}: {reason}; here only 8-bit RGB is taken: convert it to that first"
    path.write_bytes(made.png(RGB))
    np.testing.assert_array_equal(read_rgb(path).pixels, RGB)


def test_the_pictures_of_a_folder(tmp_path: Path) -> None:
    names = ("b.PNG", "a.webp", "c.jpeg", "notes.txt", "._c.jpeg", ".hidden/d.png", "below/e.avif", "below/f/g.pgm")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "d.png").mkdir()
    assert [path.name for path in pictures_in(tmp_path)] == ["a.webp", "b.PNG", "c.jpeg"]
    with pytest.raises(PictureError, match="nowhere: there is no such folder"):
        pictures_in(tmp_path / "nowhere")


def test_all_that_is_written_is_found_in_folders() -> None:
    assert set(WRITABLE) < set(SUFFIXES)


def test_picture_errors_are_ours_and_value_errors() -> None:
    assert issubclass(PictureError, RibsrError)
    assert issubclass(PictureError, ValueError)


def test_a_picture_saves_itself(tmp_path: Path) -> None:
    Picture(RGB).save(tmp_path / "a.png")
    Picture(RGB).save(str(tmp_path / "b.jpg"), quality=10)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png").pixels, RGB)
    assert read_picture(tmp_path / "b.jpg").size == Size(5, 7)


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".jpg", ".webp", ".bmp", ".ppm", ".avif"])
def test_a_header_says_what_a_picture_is_without_decoding(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_picture(path, Picture(RGB))
    assert read_header(path) == Header(Size(5, 7), 3, 8)
    with pytest.raises(PictureError, match="35 pixels"):
        read_header(path, max_pixels=34)
    assert read_header(path, max_pixels=35).size == Size(5, 7)


def test_pillow_pictures_become_what_they_show() -> None:
    rgb = Image.fromarray(RGB)
    for mode in ("L", "LA", "RGB", "RGBA"):
        np.testing.assert_array_equal(from_image(rgb.convert(mode)).pixels, np.asarray(rgb.convert(mode)))
    bitmap = Image.fromarray(np.array([[False, True]]))
    np.testing.assert_array_equal(from_image(bitmap).pixels, np.array([[0, 255]], np.uint8))
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(from_image(palette).pixels, np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    palette.info["transparency"] = 0
    np.testing.assert_array_equal(from_image(palette).pixels[0, :, 3], [0, 255])
    deep = made.pixels(1, 16)
    np.testing.assert_array_equal(from_image(Image.fromarray(deep)).pixels, deep)


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "I", "F", "HSV"])
def test_pillow_pictures_of_other_modes_are_refused(mode: str) -> None:
    with pytest.raises(PictureError, match=r"^the Pillow picture .*convert it to RGB$"):
        from_image(Image.new(mode, (3, 2)))


def test_pillow_pictures_are_turned_and_keep_their_colours(tmp_path: Path) -> None:
    exif = b"Exif\0\0" + made.exif(6)
    Image.fromarray(RGB).save(tmp_path / "a.webp", lossless=True, icc_profile=b"a profile", exif=exif)
    with Image.open(tmp_path / "a.webp") as image:
        image.info["dpi"] = (300, 150)
        picture = from_image(image)
    np.testing.assert_array_equal(picture.pixels, made.turned(RGB, 6))
    assert picture.colour == Colour(icc_profile=b"a profile", dpi=(150, 300))


def test_pictures_as_pillow_holds_them() -> None:
    for channels in (1, 2, 3, 4):
        picture = Picture(made.pixels(channels), Colour(icc_profile=b"a profile", dpi=(300, 150)))
        assert from_image(to_image(picture)).colour == picture.colour
        np.testing.assert_array_equal(from_image(to_image(picture)).pixels, picture.pixels)
        if channels > 1:
            with pytest.raises(PictureError, match="Pillow has no 16-bit"):
                to_image(Picture(made.pixels(channels, 16)))
    deep = Picture(made.pixels(1, 16))
    np.testing.assert_array_equal(from_image(to_image(deep)).pixels, deep.pixels)


def test_pixels_of_other_types_and_shapes_are_refused() -> None:
    np.testing.assert_array_equal(Picture(RGB[..., :1]).pixels, RGB[..., 0])
    with pytest.raises(PictureError, match="got float32; multiply floats by 255 or 65535"):
        Picture(np.zeros((2, 2, 3), np.float32))
    for shape in ((4,), (2, 2, 5), (1, 2, 2, 3), (0, 2)):
        with pytest.raises(PictureError, match="got "):
            Picture(np.zeros(shape, np.uint8))


def test_damaged_and_closed_pillow_pictures(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg", Picture(made.pixels(3, size=(40, 40))))
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
    closed = Image.open(tmp_path / "a.jpg")
    closed.close()
    with Image.open(tmp_path / "a.jpg") as damaged:
        for image in (damaged, closed):
            with pytest.raises(PictureError, match="^the Pillow picture is damaged or closed"):
                from_image(image)
