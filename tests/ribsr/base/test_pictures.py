"""Reading and writing pictures: what is kept, and that what would be lost is refused."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from ribsr.base import pictures
from ribsr.base.errors import RibsrError
from ribsr.base.pictures import (
    SUFFIXES,
    WRITABLE,
    Colour,
    Picture,
    PictureError,
    pictures_in,
    read_input,
    read_picture,
    read_rgb,
    to_bytes,
    to_input,
    to_pixels,
    write_picture,
)
from ribsr.base.sizes import Size

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def png(path: Path, bits: int, color: int, rows: bytes) -> None:
    """A 2x1 PNG, of depths that Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, bits, color, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def tiff_16(path: Path) -> None:
    """A 2x1 RGB TIFF of 16 bits per channel."""
    pixels, bits = 8, 20
    entries = [(256, 4, 1, 2), (257, 4, 1, 1), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, pixels)]
    entries += [(277, 3, 1, 3), (278, 4, 1, 1), (279, 4, 1, 12)]
    body = bytes(range(12)) + struct.pack("<3H", 16, 16, 16)
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(body)) + body + directory + b"\0\0\0\0")


@pytest.mark.parametrize("suffix", [suffix for suffix in WRITABLE if suffix not in (".jpg", ".jpeg")])
def test_lossless_formats_give_back_every_value(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_picture(path, Picture(RGB))
    back = read_picture(path)
    assert back.pixels.dtype == np.uint8
    assert back.size == Size(5, 7)
    np.testing.assert_array_equal(back.pixels, RGB)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_jpeg_is_close_and_upper_case_suffixes_are_known(tmp_path: Path) -> None:
    smooth = to_pixels(np.linspace(0, 1, 3 * 32 * 32, dtype=np.float32).reshape(1, 3, 32, 32))
    write_picture(tmp_path / "a.JPG", Picture(smooth))
    assert np.abs(read_picture(tmp_path / "a.JPG").pixels.astype(int) - smooth).max() < 0.05 * 255


@given(st.floats(-1, 2, width=32))
def test_values_are_clipped_and_rounded_to_nearest(value: float) -> None:
    got = to_bytes(np.array([value], np.float32))[0]
    assert got == min(255, max(0, round(float(np.float32(value) * np.float32(255)))))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff"])
def test_the_colour_profile_is_carried(tmp_path: Path, suffix: str) -> None:
    source = tmp_path / "in.png"
    Image.fromarray(RGB).save(source, icc_profile=PROFILE)
    picture = read_picture(source)
    write_picture(tmp_path / f"out{suffix}", picture)
    with Image.open(tmp_path / f"out{suffix}") as image:
        assert image.info["icc_profile"] == PROFILE


@pytest.mark.parametrize("suffix", [".bmp", ".ppm"])
def test_formats_without_colour_profiles_refuse_them(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(PictureError, match=r"cannot hold the picture's colour profile; write \.png"):
        write_picture(tmp_path / f"a{suffix}", Picture(RGB, Colour(PROFILE)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_come_upright(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(path, exif=exif)
    turned = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, -1),
        7: RGB[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(RGB),
    }
    np.testing.assert_array_equal(read_picture(path).pixels, turned[orientation])


def mode(name: str, suffix: str = "png") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / f"a.{suffix}"
        image = Image.fromarray(RGB).convert(name)
        if name.endswith("A"):
            image.putalpha(99)
        image.save(path)
        return path

    return make


def gray_16(folder: Path) -> Path:
    Image.fromarray(np.arange(6, dtype=np.uint16).reshape(2, 3) * 9999).save(folder / "a.png")
    return folder / "a.png"


def rgb_16(folder: Path) -> Path:
    png(folder / "a.png", 16, 2, bytes(range(12)))
    return folder / "a.png"


def rgba_16(folder: Path) -> Path:
    png(folder / "a.png", 16, 6, bytes(range(16)))
    return folder / "a.png"


def rgb_16_tiff(folder: Path) -> Path:
    tiff_16(folder / "a.tiff")
    return folder / "a.tiff"


def rgb_16_ppm(folder: Path) -> Path:
    (folder / "a.ppm").write_bytes(b"P6 # comment\n2 1\n65535\n" + bytes(range(12)))
    return folder / "a.ppm"


def transparent_palette(folder: Path) -> Path:
    Image.fromarray(RGB).convert("P").save(folder / "a.png", transparency=3)
    return folder / "a.png"


def transparent_colour(folder: Path) -> Path:
    Image.fromarray(RGB).save(folder / "a.png", transparency=(1, 2, 3))
    return folder / "a.png"


def animation(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
        frames[0].save(folder / f"a.{suffix}", save_all=True, append_images=frames[1:])
        return folder / f"a.{suffix}"

    return make


def float_tiff(folder: Path) -> Path:
    Image.fromarray(np.ones((2, 3), np.float32)).save(folder / "a.tiff")
    return folder / "a.tiff"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(mode("1"), "is black and white", id="1"),
        pytest.param(mode("L"), "is gray", id="L"),
        pytest.param(mode("LA"), "is gray with an alpha channel", id="LA"),
        pytest.param(mode("P"), "has a palette", id="P"),
        pytest.param(mode("RGBA"), "has an alpha channel", id="RGBA"),
        pytest.param(mode("RGBA", "webp"), "has an alpha channel", id="webp-RGBA"),
        pytest.param(mode("CMYK", "jpg"), "is CMYK", id="jpeg-CMYK"),
        pytest.param(mode("L", "jpg"), "is gray", id="jpeg-L"),
        pytest.param(mode("CMYK", "tiff"), "is CMYK", id="tiff-CMYK"),
        pytest.param(transparent_palette, "has a palette", id="P-transparent"),
        pytest.param(transparent_colour, "has a transparent colour", id="RGB-transparent"),
        pytest.param(gray_16, "has 16 bits per channel", id="I;16"),
        pytest.param(rgb_16, "has 16 bits per channel", id="png-RGB16"),
        pytest.param(rgba_16, "has 16 bits per channel", id="png-RGBA16"),
        pytest.param(rgb_16_tiff, "has 16 bits per channel", id="tiff-RGB16"),
        pytest.param(rgb_16_ppm, "has 16 bits per channel", id="ppm-RGB16"),
        pytest.param(float_tiff, "has 32 bits per channel", id="tiff-float"),
        pytest.param(animation("png"), "holds 2 pictures", id="apng"),
        pytest.param(animation("webp"), "holds 2 pictures", id="webp-animation"),
        pytest.param(animation("tiff"), "holds 2 pictures", id="tiff-pages"),
    ],
)
def test_what_cannot_be_kept_is_refused(tmp_path: Path, make: Callable[[Path], Path], reason: str) -> None:
    path = make(tmp_path)
    with pytest.raises(PictureError) as info:
        read_rgb(path)
    assert str(info.value) == (f"{path}: {reason}; only 8-bit RGB pictures are supported yet: convert it to that first")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "webp"])
def test_gray_pictures_are_for_those_who_ask_for_them(tmp_path: Path, suffix: str) -> None:
    path = mode("L", suffix)(tmp_path)
    gray = suffix != "webp"  # which has no gray
    assert read_picture(path).pixels.shape == ((5, 7) if gray else (5, 7, 3))
    assert read_picture(path).size == Size(5, 7)
    for read in (read_rgb, read_input) if gray else ():
        with pytest.raises(PictureError, match=r"is gray; only 8-bit RGB pictures are supported yet"):
            read(path)


def test_what_is_no_rgb_is_no_gray_either(tmp_path: Path) -> None:
    for make in (mode("LA"), mode("RGBA"), mode("P"), mode("1"), gray_16, rgb_16, transparent_colour, animation("png")):
        with pytest.raises(PictureError, match="are supported yet: convert it"):
            read_picture(make(tmp_path))
    Image.fromarray(RGB[..., 0]).save(tmp_path / "a.png", transparency=3)
    with pytest.raises(PictureError, match="has a transparent colour"):
        read_picture(tmp_path / "a.png")


def test_what_a_model_takes_and_gives(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", Picture(RGB))
    x = read_input(tmp_path / "a.png")
    assert (x.dtype, x.shape, x.flags.c_contiguous) == (np.float32, (1, 3, 5, 7), True)
    np.testing.assert_array_equal(x, (RGB.astype(np.float32) / np.float32(255)).transpose(2, 0, 1)[None])
    np.testing.assert_array_equal(to_input(RGB), x)
    np.testing.assert_array_equal(to_pixels(x), RGB)
    before = x.copy()
    to_bytes(x)
    np.testing.assert_array_equal(x, before)


def test_the_pictures_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.webp", "c.jpeg", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "d.png").mkdir()
    assert [path.name for path in pictures_in(tmp_path)] == ["a.webp", "b.PNG", "c.jpeg"]
    assert set(SUFFIXES) == {".png", ".webp", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".ppm"}
    with pytest.raises(PictureError, match="nowhere: there is no such folder"):
        pictures_in(tmp_path / "nowhere")


def test_picture_errors_are_ours_and_value_errors() -> None:
    assert issubclass(PictureError, RibsrError)
    assert issubclass(PictureError, ValueError)


def test_the_first_picture_of_what_phones_write(tmp_path: Path) -> None:
    photo, preview = Image.new("RGB", (16, 24), "white"), Image.new("RGB", (8, 12), "black")
    photo.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[preview])
    assert read_picture(tmp_path / "a.jpg").size == Size(24, 16)
    assert read_picture(tmp_path / "a.jpg").pixels.min() > 250


def exif(*entries: bytes, data: bytes = b"") -> bytes:
    """EXIF of an orientation (6) and other entries, which may be nonsense."""
    directory = sorted([struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0), *entries])
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(directory)) + b"".join(directory) + bytes(4) + data


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(struct.pack("<HHII", 0x010E, 5, 1, 38), id="a description that is a ratio"),
        pytest.param(struct.pack("<HHII", 0x011A, 10, 1, 38), id="a resolution of -1/0"),
    ],
)
def test_other_exif_may_be_nonsense(tmp_path: Path, entry: bytes) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=exif(entry, data=struct.pack("<ii", -1, 0)))
    assert read_picture(tmp_path / "a.jpg").size == Size(7, 5)


def test_exif_that_is_none_turns_nothing(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=b"Exif\0\0no EXIF at all")
    assert read_picture(tmp_path / "a.jpg").size == Size(5, 7)


@pytest.mark.parametrize("before", [True, False])
def test_long_text_is_no_reason_to_refuse(tmp_path: Path, before: bool) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    content, body = path.read_bytes(), b"zTXtparameters\0\0" + zlib.compress(b"a" * 2_000_000)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    at = 33 if before else len(content) - 12
    path.write_bytes(content[:at] + chunk + content[at:])
    np.testing.assert_array_equal(read_picture(path).pixels, RGB)


def test_a_long_comment_hides_no_depth(tmp_path: Path) -> None:
    (tmp_path / "a.ppm").write_bytes(b"P6\n#" + b"x" * 5000 + b"\n2 1\n65535\n" + bytes(range(12)))
    with pytest.raises(PictureError, match="has 16 bits per channel"):
        read_picture(tmp_path / "a.ppm")


@pytest.mark.parametrize("error", [MemoryError(), TypeError("x"), KeyError("x")])
def test_whatever_a_decoder_raises_names_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load(image: Image.Image) -> None:
        raise error

    write_picture(tmp_path / "a.png", Picture(RGB))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    reason = "too large for this machine's memory" if isinstance(error, MemoryError) else "damaged or unreadable"
    with pytest.raises(PictureError, match=rf"a\.png: {reason}"):
        read_picture(tmp_path / "a.png")


def test_formats_of_unknown_depth_are_refused(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.gif")
    with pytest.raises(PictureError, match="GIF is not supported yet; convert it to PNG"):
        read_picture(tmp_path / "a.gif")


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"missing\.png: no such file"):
        read_picture(tmp_path / "missing.png")
    with pytest.raises(PictureError, match="is a folder, not a picture"):
        read_picture(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(PictureError, match=r"text\.png: not a picture"):
        read_picture(tmp_path / "text.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff", ".bmp", ".ppm"])
def test_damaged_pictures_are_refused_not_filled_with_gray(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    write_picture(path, Picture(noise))
    whole = path.read_bytes()
    for length in (len(whole) // 2, len(whole) * 9 // 10):
        path.write_bytes(whole[:length])
        with pytest.raises(PictureError, match="damaged or unreadable|not a picture") as info:
            read_picture(path)
        assert "\n" not in str(info.value)


def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_picture(tmp_path / "a.png", Picture(RGB))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(PictureError, match="may be a decompression bomb"):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.gif", r"cannot write pictures of this kind; choose one of \.png, "),
        ("a", "cannot write pictures of this kind"),
        ("nowhere/a.png", "there is no folder"),
        ("folder.png", "is a folder; name a file$"),
    ],
)
def test_targets_that_cannot_be_written(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(PictureError, match=message):
        write_picture(tmp_path / name, Picture(RGB))


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.webp"
    path.write_bytes(b"old")
    with pytest.raises(PictureError, match=r"a\.webp: 16384x1 is too large for WEBP"):
        write_picture(path, Picture(np.zeros((1, 16384, 3), np.uint8)))
    monkeypatch.setitem(pictures.WRITABLE, ".webp", ("WEBP", {"quality": "odd"}))
    with pytest.raises(PictureError, match=r"a\.webp: cannot be written"):
        write_picture(path, Picture(RGB))
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.webp"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_the_umask_decides_who_may_read(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_picture(tmp_path / "a.png", Picture(RGB))
    finally:
        os.umask(old)
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o640
