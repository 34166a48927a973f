"""Writing pictures: what comes back, what files say of colours, what is refused before the work."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageCms

from ribsr.base.pictures import (
    WITH_QUALITY,
    WRITABLE,
    Colour,
    Picture,
    PictureError,
    avif_grid,
    bytes_to_write,
    check_output,
    left_out,
    read_picture,
    tiff,
    write_picture,
    writing,
)
from ribsr.base.sizes import Size
from tests.ribsr.base import made

ROOT = Path(__file__).parents[3]
RGB = made.pixels(3)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LINEAR = Colour(gamma=1.0)
WIDE = Colour(chromaticities=(0.3127, 0.329, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046))
PQ = Colour(cicp=(9, 16, 0, 1))

ALPHA = (".png", ".tif", ".tiff", ".webp", ".avif")
DEEP = (".png", ".tif", ".tiff", ".ppm", ".pgm", ".pnm")
LOSSLESS = (".png", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".bmp")


def holds(suffix: str, channels: int, depth: int) -> bool:
    return (
        (channels in (1, 3) or suffix in ALPHA)
        and (depth == 8 or suffix in DEEP)
        and (suffix != ".pgm" or channels == 1)
    )


@pytest.mark.parametrize("suffix", WRITABLE)
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_what_was_written_comes_back_or_is_refused(tmp_path: Path, suffix: str, channels: int, depth: int) -> None:
    for size in ((5, 7), (1, 1), (1, 5), (6, 1)):
        path, pixels = tmp_path / f"a{suffix}", made.pixels(channels, depth, size)
        if not holds(suffix, channels, depth):
            with pytest.raises(PictureError, match=rf"a\{suffix}: .* cannot hold .*; write \."):
                check_output(path, None, Picture(pixels))
            with pytest.raises(PictureError, match=rf"a\{suffix}: .* cannot hold .*; write \."):
                write_picture(path, Picture(pixels))
            assert not path.exists()
            continue
        write_picture(path, Picture(pixels))
        back = read_picture(path)
        if suffix == ".webp" and channels < 3:  # which has no gray
            pixels = np.concatenate([*[pixels.reshape(*size, -1)[..., :1]] * 3, pixels.reshape(*size, -1)[..., 1:]], 2)
        assert (back.pixels.dtype, back.pixels.shape) == (pixels.dtype, pixels.shape)
        if suffix in (*LOSSLESS, ".webp"):
            np.testing.assert_array_equal(back.pixels, pixels)
        assert (back.colour, back.dropped) == (Colour(), ())
    assert {entry.name for entry in tmp_path.iterdir()} <= {f"a{suffix}"}


@pytest.mark.parametrize("suffix", [".jpg", ".avif", ".webp"])
def test_lossy_formats_are_close_and_quality_tells(tmp_path: Path, suffix: str) -> None:
    smooth = np.linspace(0, 255, 3 * 64 * 64).reshape(64, 64, 3).astype(np.uint8)
    noisy = np.clip(smooth + np.random.default_rng(0).normal(0, 9, smooth.shape), 0, 255).astype(np.uint8)
    for quality, most in ((None, 0.05), (90, 0.1), (1, 1)):
        write_picture(tmp_path / f"a{suffix}", Picture(smooth), quality)
        assert np.abs(read_picture(tmp_path / f"a{suffix}").pixels.astype(int) - smooth).max() <= most * 255
    sizes = []
    for quality in (5, 60, 100):
        write_picture(tmp_path / f"a{suffix}", Picture(noisy), quality)
        sizes.append((tmp_path / f"a{suffix}").stat().st_size)
    assert sizes == sorted(set(sizes))
    assert suffix in WITH_QUALITY


def test_jpeg_keeps_colours_of_single_pixels(tmp_path: Path) -> None:
    """4:4:4: halved colours would mix the columns."""
    columns = np.zeros((16, 16, 3), np.uint8)
    columns[:, ::2, 0] = columns[:, 1::2, 2] = 255
    write_picture(tmp_path / "a.jpg", Picture(columns))
    assert np.abs(read_picture(tmp_path / "a.jpg").pixels.astype(int) - columns).max() < 40


def test_colours_where_nothing_is_seen_are_kept(tmp_path: Path) -> None:
    pixels = made.pixels(4)
    pixels[..., 3] = 0
    for suffix in (".png", ".tiff", ".webp"):
        write_picture(tmp_path / f"a{suffix}", Picture(pixels))
        np.testing.assert_array_equal(read_picture(tmp_path / f"a{suffix}").pixels, pixels)


def chunks(path: Path) -> list[tuple[bytes, bytes]]:
    data, at, found = path.read_bytes(), 8, []
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert int.from_bytes(data[at + 8 + length : at + 12 + length], "big") == zlib.crc32(kind + body)
        found.append((kind, body))
        at += 12 + length
    return found


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_says_all_that_is_known_of_colours(tmp_path: Path, channels: int) -> None:
    colour = Colour(SRGB if channels > 1 else None, 0.5, WIDE.chromaticities, (9, 16, 0, 1), 2, (300, 150))
    write_picture(tmp_path / "a.png", Picture(made.pixels(channels), colour))
    found = chunks(tmp_path / "a.png")
    said = dict(found)
    kinds = [kind for kind, _ in found]
    assert kinds[0] == b"IHDR"
    assert kinds[-1] == b"IEND"
    assert all(kinds.index(kind) < kinds.index(b"IDAT") for kind in (b"gAMA", b"cHRM", b"cICP", b"pHYs"))
    assert (b"iCCP" in said) != (b"sRGB" in said)  # PNG allows one of both
    if channels > 1:
        assert zlib.decompress(said[b"iCCP"].split(b"\0", 1)[1][1:]) == SRGB
    assert struct.unpack(">I", said[b"gAMA"]) == (50000,)
    assert struct.unpack(">8I", said[b"cHRM"])[:2] == (31270, 32900)
    assert said[b"cICP"] == bytes([9, 16, 0, 1])
    assert struct.unpack(">IIB", said[b"pHYs"]) == (11811, 5906, 1)
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert image.info["gamma"] == 0.5


@pytest.mark.parametrize(
    "colour", [Colour(SRGB), LINEAR, WIDE, PQ, Colour(srgb_intent=0), Colour(dpi=(254, 127)), Colour(b"a profile")]
)
def test_colours_come_back_from_png(tmp_path: Path, colour: Colour) -> None:
    write_picture(tmp_path / "a.png", Picture(RGB, colour))
    assert read_picture(tmp_path / "a.png").colour == colour


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff", ".avif"])
def test_the_colour_profile_is_carried(tmp_path: Path, suffix: str) -> None:
    write_picture(tmp_path / f"a{suffix}", Picture(RGB, Colour(SRGB)))
    assert read_picture(tmp_path / f"a{suffix}").colour.icc_profile == SRGB
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert image.info["icc_profile"] == SRGB


@pytest.mark.parametrize("depth", [8, 16])
def test_tiff_of_16_bits_has_profile_and_resolution(tmp_path: Path, depth: int) -> None:
    colour = Colour(SRGB, dpi=(300, 150))
    write_picture(tmp_path / "a.tiff", Picture(made.pixels(3, depth), colour))
    assert read_picture(tmp_path / "a.tiff").colour == colour


def test_the_resolution_is_carried_or_said_to_be_left_out(tmp_path: Path) -> None:
    picture = Picture(RGB, Colour(dpi=(300, 150)))
    for suffix in set(WRITABLE) - {".pgm"}:
        write_picture(tmp_path / f"a{suffix}", picture)
        dpi = read_picture(tmp_path / f"a{suffix}").colour.dpi
        if left_out(tmp_path / f"a{suffix}", picture):
            assert dpi is None
        else:
            assert dpi == pytest.approx((300, 150), abs=0.1)
        assert left_out(tmp_path / f"a{suffix}", Picture(RGB)) == ()


@pytest.mark.parametrize(
    ("suffix", "colour", "reason"),
    [
        (".bmp", Colour(SRGB), "colour profile; write .png, .webp or .tiff"),
        (".ppm", Colour(SRGB), "colour profile; write .png, .webp or .tiff"),
        (".jpg", PQ, "coding of colours (cICP); write .png"),
        (".tiff", Colour(SRGB, cicp=(9, 16, 0, 1)), "coding of colours (cICP); write .png"),
        (".jpg", LINEAR, "gamma or primaries; write .png"),
        (".ppm", LINEAR, "gamma or primaries; write .png"),
        (".webp", WIDE, "gamma or primaries; write .png"),
        (".png", PQ, None),
        (".jpg", Colour(SRGB, gamma=1.0), None),  # a profile goes before
        (".jpg", Colour(gamma=1.0, srgb_intent=0), None),
        (".bmp", Colour(gamma=0.45455), None),
        (".bmp", Colour(cicp=(1, 13, 0, 1)), None),
    ],
)
def test_formats_that_cannot_say_what_pixels_mean(
    tmp_path: Path, suffix: str, colour: Colour, reason: str | None
) -> None:
    path, picture = tmp_path / f"a{suffix}", Picture(RGB, colour)
    if reason is None:
        check_output(path, None, picture)
        return
    with pytest.raises(PictureError) as info:
        check_output(path, None, picture)
    assert str(info.value).endswith(reason)


def test_webp_has_no_gray_profiles(tmp_path: Path) -> None:
    picture = Picture(made.pixels(1), Colour(SRGB[:16] + b"GRAY" + SRGB[20:]))
    with pytest.raises(PictureError, match="a colour profile of gray"):
        check_output(tmp_path / "a.webp", None, picture)
    for suffix in (".png", ".jpg", ".tiff"):
        write_picture(tmp_path / f"a{suffix}", picture)
        assert read_picture(tmp_path / f"a{suffix}").colour == picture.colour


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.gif", r"cannot write pictures of this kind; choose one of \.png, "),
        ("a.pbm", "cannot write pictures of this kind"),
        ("a", "cannot write pictures of this kind"),
        ("nowhere/a.png", "there is no folder"),
        ("folder.png", "is a folder; name a file$"),
    ],
)
def test_targets_that_cannot_be_written(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(PictureError, match=message):
        write_picture(tmp_path / name, Picture(RGB))
    with pytest.raises(PictureError, match=message):
        check_output(tmp_path / name)


@pytest.mark.skipif(os.name != "posix", reason="the limits of POSIX file systems")
def test_names_that_are_too_long(tmp_path: Path) -> None:
    longest = os.pathconf(tmp_path, "PC_NAME_MAX")
    fits = tmp_path / ("ä" * ((longest - 4) // 2) + "a" * ((longest - 4) % 2) + ".png")
    check_output(fits)
    with pytest.raises(PictureError, match=rf"too long for the file system, which takes {longest} bytes"):
        check_output(fits.with_name("a" + fits.name))


def test_sides_that_a_format_does_not_take(tmp_path: Path) -> None:
    sides = ((".webp", "WebP", 16383), (".jpg", "JPEG", 65500), (".avif", "AVIF", 32768), (".png", "PNG", 10**6))
    for suffix, name, most in sides:
        check_output(tmp_path / f"a{suffix}", Size(most, 2))
        with pytest.raises(PictureError, match=rf"{most + 1}x2 is too large for {name}"):
            check_output(tmp_path / f"a{suffix}", Size(2, most + 1))
    check_output(tmp_path / "a.tiff", Size(10**7, 2))
    check_output(tmp_path / "a.avif", Size(16384, 16384))
    with pytest.raises(PictureError, match="16385x16384 is too large for AVIF: 268435456 pixels at most"):
        check_output(tmp_path / "a.avif", Size(16384, 16385))
    with pytest.raises(PictureError, match="40000x40000 is too large for BMP: 1400000000 pixels at most"):
        check_output(tmp_path / "a.bmp", Size(40000, 40000))  # its size would take more than 32 bits


def test_the_longest_sides_can_be_read_again(tmp_path: Path) -> None:
    for suffix in (".webp", ".jpg", ".avif", ".png"):
        size = Size(2, WRITABLE[suffix].longest)
        write_picture(tmp_path / f"a{suffix}", Picture(np.zeros(size, np.uint8)))
        assert read_picture(tmp_path / f"a{suffix}").size == size


def test_qualities(tmp_path: Path) -> None:
    for suffix in WRITABLE:
        path = tmp_path / f"a{suffix}"
        if suffix not in WITH_QUALITY:
            with pytest.raises(PictureError, match="takes no quality"):
                check_output(path, quality=90)
            continue
        check_output(path, quality=1)
        check_output(path, quality=100)
        for quality in (0, 101, -1):
            with pytest.raises(PictureError, match=f"quality {quality} is not from 1 to 100"):
                check_output(path, quality=quality)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (imagecodecs.PngError("odd\nin two lines"), "odd"),
        (OSError(28, "No space left on device", "temporary"), "No space left on device"),
    ],
)
def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def encode(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(imagecodecs, "png_encode", encode)
    with pytest.raises(PictureError, match=rf"a\.png: cannot be written \({told}\)$"):
        write_picture(path, Picture(RGB))
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_the_umask_decides_who_may_read(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        for suffix in WITH_QUALITY | {".png", ".tiff", ".bmp", ".ppm"}:
            write_picture(tmp_path / f"a{suffix}", Picture(RGB))
            assert (tmp_path / f"a{suffix}").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(old)


def test_png_is_about_as_small_as_pillows(tmp_path: Path) -> None:
    """Of photographs that were enlarged, and with noise: within a tenth, see png.LEVEL; small ones a little more."""
    photographs = sorted((ROOT / "engines/samples").glob("*.png"))
    assert photographs
    for path in photographs:
        small = Image.open(path).convert("RGB")
        smooth = np.asarray(small.resize((2 * small.width, 2 * small.height), Image.Resampling.BICUBIC))
        noisy = np.clip(smooth + np.random.default_rng(1).integers(-2, 3, smooth.shape), 0, 255).astype(np.uint8)
        for pixels in (smooth, noisy):
            write_picture(tmp_path / "a.png", Picture(pixels))
            Image.fromarray(pixels).save(tmp_path / "b.png")
            assert (tmp_path / "a.png").stat().st_size < 1.12 * (tmp_path / "b.png").stat().st_size


@pytest.mark.parametrize("largest", [RGB.nbytes - 1, RGB.nbytes])
def test_a_tiff_that_may_not_fit_into_4_gib_is_a_bigtiff(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    monkeypatch.setattr(tiff, "_LARGEST", largest)
    write_picture(tmp_path / "a.tif", Picture(RGB))
    assert (tmp_path / "a.tif").read_bytes()[:4] == (b"II*\0" if largest == RGB.nbytes else b"II+\0")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").pixels, RGB)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(333, 411), (128, 200), (131, 70)])
def test_a_large_avif_is_of_cells_and_shows_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int, size: tuple[int, int]
) -> None:
    """As it does encoded at once; sides that no cell divides, the second picture in one row, the third in a column."""
    rows, columns = np.indices(size)
    planes = [(7 * rows + shift * columns) // 9 % 256 for shift in (1, 3, 5, 8)][:channels]
    pixels = np.stack(planes, -1).astype(np.uint8)
    colour = Colour(SRGB) if channels > 2 else Colour()
    write_picture(tmp_path / "whole.avif", Picture(pixels, colour))
    monkeypatch.setattr(writing, "WHOLE", size[0] * size[1] - 1)
    monkeypatch.setattr(avif_grid, "LONGEST_CELL", 128)
    write_picture(tmp_path / "cells.avif", Picture(pixels, colour))
    assert b"grid" in (tmp_path / "cells.avif").read_bytes()[:4096]
    whole, cells = (read_picture(tmp_path / name) for name in ("whole.avif", "cells.avif"))
    assert cells.pixels.shape == whole.pixels.shape == Picture(pixels).pixels.shape
    assert (cells.colour, cells.dropped) == (whole.colour, whole.dropped)
    for picture in (whole, cells):
        errors = picture.pixels.astype(float) - Picture(pixels).pixels
        assert np.sqrt((errors**2).mean()) < 5
    decoded = imagecodecs.avif_decode((tmp_path / "cells.avif").read_bytes())  # by another libavif
    assert np.abs(decoded.reshape(pixels.shape).astype(int) - cells.pixels.reshape(pixels.shape)).max() <= 1


def test_opaque_alpha_is_left_out_of_cells_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "WHOLE", 1)
    pixels = np.full((80, 90, 4), 255, np.uint8)
    write_picture(tmp_path / "a.avif", Picture(pixels))
    assert read_picture(tmp_path / "a.avif").channels == 3


def test_memory_is_said_by_format_channels_and_depth() -> None:
    size = Size(30, 40)
    for suffix in WRITABLE:
        kinds = ((1, 8), (3, 8), (4, 8), (4, 16))
        own = [bytes_to_write(f"a{suffix}", size, channels, depth) for channels, depth in kinds]
        assert own == sorted(own)
        assert own[1] > 3 * 30 * 40
    assert bytes_to_write("a.webp", size) > bytes_to_write("a.png", size) == bytes_to_write("", size)
    whole, parts = Size(4096, 4096), Size(8192, 8192)
    assert bytes_to_write("a.webp", parts) == 4 * bytes_to_write("a.webp", whole)
    assert bytes_to_write("a.avif", parts) < bytes_to_write("a.avif", whole)


def test_jpeg_refuses_a_profile_that_it_would_leave_out(tmp_path: Path) -> None:
    path, longest = tmp_path / "a.jpg", SRGB.ljust(255 * 65519, b"\0")
    write_picture(path, Picture(RGB, Colour(longest)))
    assert read_picture(path).colour.icc_profile == longest
    with pytest.raises(PictureError, match=r"profile of more than 16707345 bytes; write \.png"):
        check_output(path, None, Picture(RGB, Colour(longest + b"\0")))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tiff"])
@pytest.mark.parametrize("dpi", [0.001, 0.3, 1, 65535, 65536, 100_000, 4e9])
def test_a_resolution_is_kept_or_told_and_never_another(tmp_path: Path, suffix: str, dpi: float) -> None:
    path, picture = tmp_path / f"a{suffix}", Picture(RGB, Colour(dpi=(dpi, dpi)))
    write_picture(path, picture)
    told = left_out(path, picture)
    got = read_picture(path).colour.dpi
    assert (got is None) == bool(told)
    assert got is None or got == pytest.approx((dpi, dpi), abs=0.02)
