"""Reading pictures: every kind, depth and orientation against arrays that the files were made of; what is refused."""

from __future__ import annotations

import io
import itertools
import re
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from ribsr.base.pictures import Colour, Picture, PictureError, read_header, read_picture, write_picture
from ribsr.base.sizes import Size
from tests.ribsr.base import made

RGB = made.pixels(3)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GRAY_PROFILE = SRGB[:16] + b"GRAY" + SRGB[20:]


def read(folder: Path, data: bytes, max_pixels: int | None = None) -> Picture:
    """By its content: the suffix says nothing. What the header tells is held against what is found."""
    (folder / "a.picture").write_bytes(data)
    picture = read_picture(folder / "a.picture", max_pixels)
    header = read_header(folder / "a.picture", max_pixels)
    assert sorted(header.size) == sorted(picture.size)
    assert header.channels >= picture.channels
    assert header.depth >= picture.depth
    return picture


def refused(folder: Path, data: bytes) -> str:
    """The reason, of one line after the file's name."""
    (folder / "a.picture").write_bytes(data)
    with pytest.raises(PictureError) as info:
        read_picture(folder / "a.picture")
    line = str(info.value)
    assert line.startswith(f"{folder / 'a.picture'}: ")
    assert "\n" not in line
    return line.removeprefix(f"{folder / 'a.picture'}: ")


def by_pillow(array: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(file, kind, **options)
    return file.getvalue()


def same(got: np.ndarray, expected: np.ndarray) -> None:
    assert (got.dtype, got.shape, got.flags.c_contiguous) == (expected.dtype, expected.shape, True)
    np.testing.assert_array_equal(got, expected)


ALL = list(itertools.product((1, 2, 3, 4), (8, 16)))


@pytest.mark.parametrize(("channels", "depth"), ALL)
def test_png_and_tiff_of_all_kinds_depths_and_orientations(tmp_path: Path, channels: int, depth: int) -> None:
    for orientation, size in itertools.product(range(1, 9), ((5, 7), (1, 1), (1, 4), (3, 1))):
        array = made.pixels(channels, depth, size)
        expected = made.turned(array, orientation)
        same(read(tmp_path, made.png(array, made.chunk(b"eXIf", made.exif(orientation)))).pixels, expected.copy("C"))
        for planar, order in itertools.product((False, True), "<>"):
            data = made.tiff(array, planar=planar, order=order, tags=[(274, 3, (orientation,))])
            same(read(tmp_path, data).pixels, expected.copy("C"))


@pytest.mark.parametrize("compression", ["lzw", "zlib", "packbits", "zstd", None])
@pytest.mark.parametrize(("channels", "depth"), ALL)
def test_tiff_as_others_write_it(tmp_path: Path, channels: int, depth: int, compression: str | None) -> None:
    array = made.pixels(channels, depth, (37, 41))
    layouts: list[tuple[tuple[int, int] | None, Literal["<", ">"], bool]] = [((16, 32), ">", False), (None, "<", True)]
    for tile, order, big in layouts:
        file = io.BytesIO()
        with tifffile.TiffWriter(file, byteorder=order, bigtiff=big) as writer:
            writer.write(
                array,
                photometric="rgb" if channels > 2 else "minisblack",
                planarconfig="contig" if channels > 1 else None,
                extrasamples=["unassalpha"] if channels in (2, 4) else None,
                compression=compression,
                predictor=compression in ("lzw", "zlib", "zstd"),
                tile=tile,
                rowsperstrip=None if tile else 5,
            )
        same(read(tmp_path, file.getvalue()).pixels, array)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_other_formats_are_turned_too(tmp_path: Path, kind: str, orientation: int) -> None:
    corners = np.zeros((48, 32, 3), np.uint8)
    corners[:16, :16], corners[-16:, :16] = 255, 128
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = read(tmp_path, by_pillow(corners, kind, exif=exif, quality=95)).pixels
    expected = made.turned(corners, orientation)
    assert got.shape == expected.shape
    assert np.abs(got.astype(int) - expected).max() < 12


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_gray_of_few_bits_fills_the_range(tmp_path: Path, bits: int) -> None:
    values = np.arange(2**bits, dtype=np.uint8).repeat(8 // bits if bits < 4 else 1)[:8]
    row = int("".join(f"{value:0{bits}b}" for value in values), 2).to_bytes(len(values) * bits // 8, "big")
    expected = (values * (255 // (2**bits - 1)))[None].astype(np.uint8)
    same(read(tmp_path, made.packed_png(len(values), [row], bits, 0)).pixels, expected)
    tags = [(256, 4, (len(values),)), (258, 3, (bits,))]
    for white, shown in ((1, expected), (0, 255 - expected)):
        data = made.tiff(np.frombuffer(row, np.uint8)[None], white, tags=tags)
        same(read(tmp_path, data).pixels, shown)


@pytest.mark.parametrize("depth", [8, 16])
def test_transparent_colours_become_alpha(tmp_path: Path, depth: int) -> None:
    full = 2**depth - 1
    gray, rgb = made.pixels(1, depth), made.pixels(3, depth)
    key = made.chunk(b"tRNS", struct.pack(">H", gray[2, 3]))
    alpha = np.where(gray == gray[2, 3], 0, full).astype(gray.dtype)
    same(read(tmp_path, made.png(gray, key)).pixels, np.dstack([gray, alpha]))
    key = made.chunk(b"tRNS", struct.pack(">3H", *rgb[2, 3]))
    alpha = np.where((rgb == rgb[2, 3]).all(axis=2), 0, full).astype(rgb.dtype)
    same(read(tmp_path, made.png(rgb, key)).pixels, np.dstack([rgb, alpha]))
    assert alpha[2, 3] == 0


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_become_their_colours(tmp_path: Path, bits: int) -> None:
    colours = np.array([[1, 2, 3], [40, 50, 60]], np.uint8)
    indices = np.array([0, 1] * 4)
    row = int("".join(f"{value:0{bits}b}" for value in indices), 2).to_bytes(bits, "big")
    palette = made.chunk(b"PLTE", colours.tobytes())
    same(read(tmp_path, made.packed_png(8, [row], bits, 3, palette)).pixels, colours[indices][None])
    alpha = np.where(indices == 0, 9, 255).astype(np.uint8)
    data = made.packed_png(8, [row], bits, 3, palette, made.chunk(b"tRNS", b"\x09"))
    same(read(tmp_path, data).pixels, np.column_stack([colours[indices], alpha])[None])


def test_palettes_of_other_formats(tmp_path: Path) -> None:
    image = Image.fromarray(RGB).quantize(16)
    for kind in ("BMP", "TIFF"):
        same(read(tmp_path, by_pillow(image, kind)).pixels, np.asarray(image.convert("RGB")))
    file = io.BytesIO()
    fine = np.arange(256, dtype=np.uint16)[None].repeat(3, axis=0) * 258 // 2
    tifffile.imwrite(file, np.array([[0, 255, 7]], np.uint8), photometric="palette", colormap=fine)
    same(read(tmp_path, file.getvalue()).pixels, fine.T[[[0, 255, 7]]])


def test_gray_bitmaps(tmp_path: Path) -> None:
    bitmap = Image.fromarray(made.pixels(1) > 100)
    for kind, options in (("PPM", {}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "group4"})):
        same(read(tmp_path, by_pillow(bitmap, kind, **options)).pixels, np.asarray(bitmap.convert("L")))


@pytest.mark.parametrize("depth", [8, 16])
def test_white_is_zero(tmp_path: Path, depth: int) -> None:
    for channels in (1, 2):
        array = made.pixels(channels, depth)
        stored = array.copy()
        colours = stored if channels == 1 else stored[..., 0]
        colours[...] = ~colours
        same(read(tmp_path, made.tiff(stored, photometric=0)).pixels, array)


@pytest.mark.parametrize("depth", [8, 16])
def test_premultiplied_colours_are_divided(tmp_path: Path, depth: int) -> None:
    full = 2**depth - 1
    stored = np.array([[[full // 4, 0, full // 2, full // 2], [full, 3, 0, full], [9, 9, 9, 0]]])
    stored = stored.astype(np.uint8 if depth == 8 else np.uint16)
    half = full // 2
    expected = [[round(full // 4 * full / half), 0, full, half], [full, 3, 0, full], [0, 0, 0, 0]]
    same(read(tmp_path, made.tiff(stored, extra=1)).pixels, np.array([expected], stored.dtype))
    same(read(tmp_path, made.tiff(stored, extra=2)).pixels, stored)
    same(read(tmp_path, made.tiff(stored, extra=None)).pixels, stored)  # as old programs write it


def test_jpeg_and_ycbcr_in_tiff(tmp_path: Path) -> None:
    smooth = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (48, 64, 3))
    for mode in ("RGB", "L", "YCbCr"):
        image = Image.fromarray(np.ascontiguousarray(smooth)).convert(mode)
        for compression in ("jpeg", "tiff_lzw"):
            got = read(tmp_path, by_pillow(image, "TIFF", compression=compression)).pixels
            assert got.ndim == (2 if mode == "L" else 3)
            assert np.abs(got.astype(int) - (smooth[..., 0] if mode == "L" else smooth)).max() <= 6


def interlaced(array: np.ndarray) -> bytes:
    rows = []
    for x, y, across, down in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        part = array[y::down, x::across]
        rows += [b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in part if row.size]
    plain = made.png(array)
    header = plain[16:28] + b"\1"
    return (
        plain[:8]
        + made.chunk(b"IHDR", header)
        + made.chunk(b"IDAT", zlib.compress(b"".join(rows)))
        + made.chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("channels", "depth"), ALL)
def test_interlaced_png_and_nothing_reaches_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], channels: int, depth: int
) -> None:
    for size in ((1, 1), (3, 2), (11, 13)):
        array = made.pixels(channels, depth, size)
        same(read(tmp_path, interlaced(array)).pixels, array)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("most", [1, 31, 255, 256, 1023, 65535])
def test_netpbm_fills_the_range(tmp_path: Path, most: int) -> None:
    values = np.array([0, 1, most // 2, most])
    stored = values.astype(np.uint8 if most < 256 else ">u2").tobytes()
    full = 255 if most < 256 else 65535
    expected = np.round(values * full / most).astype(np.uint8 if most < 256 else np.uint16)
    same(read(tmp_path, b"P5\n# by hand\n2 2\n%d\n" % most + stored).pixels, expected.reshape(2, 2))
    same(read(tmp_path, b"P6 2 2 %d\n" % most + 3 * stored).pixels, np.tile(expected, 3).reshape(2, 2, 3))
    if most < 256:
        same(read(tmp_path, b"P2 2 2 %d " % most + " ".join(map(str, values)).encode()).pixels, expected.reshape(2, 2))


def test_a_long_comment_hides_no_depth(tmp_path: Path) -> None:
    data = b"P6\n#" + b"x" * 5000 + b"\n2 1\n65535\n" + bytes(range(12))
    same(read(tmp_path, data).pixels, np.frombuffer(bytes(range(12)), ">u2").astype(np.uint16).reshape(1, 2, 3))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"P5 2 1 255\n\x01", "the file ends before the picture does"),
        (b"P5 2 1 31\n\x01\x21", "numbers above 31"),
        (b"P5 0 1 31\n", "its header is none"),
        (b"P5 1 -1 31\n", "its header is none"),
        (b"P5 1 1 70000\n123", "its largest number would be 70000"),
        (b"P5", "its header is none"),
        (b"P6\n#" + b"x" * 9000, "its header is none"),
        (b"P5 1 1 255\n1P5 1 1 255\n1", "holds several pictures"),
        (b"P2 1 1 300\n1", "of text and more than 8 bits"),
        (b"P3 1 1 255\n1 2", "damaged or unreadable"),
    ],
)
def test_netpbm_that_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    assert reason in refused(tmp_path, data)


@pytest.mark.parametrize("bits", [10, 12])
def test_deep_avif_is_not_cut_to_8_bits(tmp_path: Path, bits: int) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    array = (np.add.outer(np.arange(64), np.arange(64))[..., None] * np.array([8, 4, 2])).astype(np.uint16)
    data = imagecodecs.avif_encode(array, level=100, bitspersample=bits)
    got = read(tmp_path, data)
    assert got.depth == 16
    assert np.abs(got.pixels / 65535 * (2**bits - 1) - array).max() < 0.51


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_gray_avif_stays_gray(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(made.pixels(1, size=(40, 30))).convert(mode)
    if mode.endswith("A"):
        image.putalpha(99)
    got = read(tmp_path, by_pillow(image, "AVIF", quality=100, subsampling="4:0:0" if "L" in mode else "4:4:4"))
    assert got.channels == len(mode)
    assert np.abs(got.pixels.astype(int) - np.asarray(image)).max() <= 1


def cmyk_profile() -> bytes:
    """A profile of ideal inks, by a table of two steps a channel: 0 to 255 of each, to CIELAB of 8 bits."""
    lab = []
    for corner in itertools.product((0, 1), repeat=4):
        light = 1 - corner[3]
        rgb = Image.new("RGB", (1, 1), tuple(255 * light * (1 - ink) for ink in corner[:3]))
        to_lab = ImageCms.profileToProfile(
            rgb, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
        assert to_lab is not None
        lab.append(to_lab.tobytes())
    table = b"".join(bytes([entry[0], entry[1] ^ 0x80, entry[2] ^ 0x80]) for entry in lab)
    ramp = bytes(range(256))
    unit = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    a2b0 = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + unit + ramp * 4 + table + ramp * 3
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    text = b"text\0\0\0\0ideal\0"
    desc = b"desc\0\0\0\0" + struct.pack(">I", 6) + b"ideal\0" + bytes(78)
    tags, data = [(b"desc", desc), (b"cprt", text), (b"wtpt", white), (b"A2B0", a2b0)], b""
    table_size = 128 + 4 + 12 * len(tags)
    entries = b""
    for name, body in tags:
        entries += name + struct.pack(">II", table_size + len(data), len(body))
        data += body + bytes(-len(body) % 4)
    size = table_size + len(data)
    head = struct.pack(">I4sI", size, b"lcms", 0x02100000) + b"prtrCMYKLab " + bytes(12) + b"acsp" + bytes(24)
    head += bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + entries + data


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_srgb_by_its_profile(tmp_path: Path, kind: str) -> None:
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[8:, :, 3] = 255
    image = Image.fromarray(inks, "CMYK")
    picture = read(tmp_path, by_pillow(image, kind, icc_profile=cmyk_profile()))
    assert picture.colour.icc_profile is None
    assert picture.pixels.shape == (16, 16, 3)
    assert picture.pixels[0].min() > 250
    assert picture.pixels[-1].max() < 5
    assert "is CMYK without a colour profile" in refused(tmp_path, by_pillow(image, kind))
    assert "its colour profile cannot be used" in refused(tmp_path, by_pillow(image, kind, icc_profile=SRGB))


CHUNKS = {
    b"gAMA": (struct.pack(">I", 100000), Colour(gamma=1.0)),
    b"cHRM": (
        struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000),
        Colour(chromaticities=(0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)),
    ),
    b"cICP": (bytes([9, 16, 0, 1]), Colour(cicp=(9, 16, 0, 1))),
    b"sRGB": (b"\2", Colour(srgb_intent=2)),
    b"iCCP": (b"any name\0\0" + zlib.compress(SRGB), Colour(icc_profile=SRGB)),
    b"pHYs": (struct.pack(">IIB", 10000, 5000, 1), Colour(dpi=(254, 127))),
}


@pytest.mark.parametrize("kind", CHUNKS)
def test_what_png_says_of_colours(tmp_path: Path, kind: bytes) -> None:
    data, expected = CHUNKS[kind]
    picture = read(tmp_path, made.png(RGB, made.chunk(kind, data)))
    assert (picture.colour, picture.dropped) == (expected, ())
    same(picture.pixels, RGB)
    broken = made.chunk(kind, data)
    broken = broken[:-1] + bytes([broken[-1] ^ 1])
    assert f"the checksum of its {kind.decode()} chunk is wrong" in refused(tmp_path, made.png(RGB, broken))
    assert read(tmp_path, made.png(RGB, made.chunk(kind, b""))).colour == Colour()


def test_resolution_turns_with_the_picture(tmp_path: Path) -> None:
    resolution = made.chunk(b"pHYs", struct.pack(">IIB", 10000, 5000, 1))
    for orientation in range(1, 9):
        data = made.png(RGB, resolution, made.chunk(b"eXIf", made.exif(orientation)))
        assert read(tmp_path, data).colour.dpi == ((127, 254) if orientation > 4 else (254, 127))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "BMP", "PNG"])
def test_resolutions_and_none_that_is_made_up(tmp_path: Path, kind: str) -> None:
    dpi = read(tmp_path, by_pillow(RGB, kind, dpi=(300, 150))).colour.dpi
    assert dpi == pytest.approx((300, 150), abs=0.1)
    if kind != "BMP":  # for which Pillow makes one up
        assert read(tmp_path, by_pillow(RGB, kind)).colour.dpi is None
    if kind == "JPEG":
        exif = Image.Exif()
        exif[0x0112] = 1
        assert read(tmp_path, by_pillow(RGB, kind, exif=exif)).colour.dpi is None
        exif[0x011A], exif[0x011B] = 240.0, 120.0
        assert read(tmp_path, by_pillow(RGB, kind, exif=exif)).colour.dpi == (240, 120)
        exif[0x0128] = 3
        assert read(tmp_path, by_pillow(RGB, kind, exif=exif)).colour.dpi == pytest.approx((609.6, 304.8))
        exif[0x0128] = 1  # a ratio
        assert read(tmp_path, by_pillow(RGB, kind, exif=exif)).colour.dpi is None


def test_profiles_of_bmp(tmp_path: Path) -> None:
    plain = by_pillow(RGB, "BMP")
    start, pixels = 14 + 124, plain[54:]
    head = struct.pack("<2sIII", b"BM", start + len(pixels) + len(SRGB), 0, start)
    info = struct.pack("<I", 124) + plain[18:54] + bytes(16) + b"DEBM" + bytes(48)
    info += struct.pack("<IIII", 4, 124 + len(pixels), len(SRGB), 0)
    picture = read(tmp_path, head + info + pixels + SRGB)
    same(picture.pixels, RGB)
    assert picture.colour.icc_profile == SRGB


def test_a_fourth_byte_in_bmp_is_told(tmp_path: Path) -> None:
    opaque = np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])
    for array, told in ((opaque, False), (made.pixels(4), True)):
        picture = read(tmp_path, by_pillow(array, "BMP"))
        same(picture.pixels, array[..., :3].copy("C"))
        assert bool(picture.dropped) == told


def test_profiles_of_other_channels_are_dropped_and_told(tmp_path: Path) -> None:
    gray = made.pixels(1)
    for array, profile, fits in (
        (RGB, SRGB, True),
        (RGB, GRAY_PROFILE, False),
        (gray, GRAY_PROFILE, True),
        (gray, SRGB, False),
    ):
        picture = read(tmp_path, made.png(array, made.chunk(b"iCCP", b"a\0\0" + zlib.compress(profile))))
        assert picture.colour.icc_profile == (profile if fits else None)
        assert picture.dropped == (() if fits else ("a colour profile for other channels",))
    picture = read(tmp_path, made.png(RGB, made.chunk(b"iCCP", b"a\0\0no deflate")))
    assert (picture.colour, picture.dropped) == (Colour(), ("a damaged colour profile",))


def test_what_is_dropped_is_told(tmp_path: Path) -> None:
    exif, xmp = Image.Exif(), b"<x:xmpmeta/>"
    exif[0x010F] = "a maker"
    for kind in ("JPEG", "WEBP", "AVIF"):
        assert read(tmp_path, by_pillow(RGB, kind, exif=exif, xmp=xmp)).dropped == ("EXIF", "XMP")
    text = (made.chunk(b"tEXt", b"a\0b"), made.chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp))
    data = made.png(RGB, *text, made.chunk(b"eXIf", made.exif(1)), behind=made.chunk(b"tEXt", b"c\0d"))
    assert read(tmp_path, data).dropped == ("text", "XMP", "EXIF")
    data = made.tiff(RGB, tags=[(305, 2, b"a program\0"), (700, 7, xmp)])
    assert set(read(tmp_path, data).dropped) == {"text", "XMP"}
    image = Image.fromarray(RGB)
    assert read(tmp_path, by_pillow(image, "MPO", save_all=True, append_images=[image])).dropped == ("1 more picture",)


def test_an_orientation_in_text(tmp_path: Path) -> None:
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    data = made.png(RGB, made.chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp))
    same(read(tmp_path, data).pixels, made.turned(RGB, 6).copy("C"))
    written = b"\nexif\n      32\n" + (b"Exif\0\0" + made.exif(6)).hex().encode()
    for chunk in (
        made.chunk(b"tEXt", b"Raw profile type exif\0" + written),
        made.chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(written)),
    ):
        same(read(tmp_path, made.png(RGB, chunk)).pixels, made.turned(RGB, 6).copy("C"))


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"prVt"])
def test_no_text_is_a_reason_to_refuse(tmp_path: Path, kind: bytes) -> None:
    for body in (
        b"parameters\0\0" + zlib.compress(b"a" * 2_000_000),
        b"Raw profile type exif\0\0nonsense",
        b"XML:com.adobe.xmp\0\xff",
        b"",
        b"x" * 9_000_000,
    ):
        for data in (made.png(RGB, made.chunk(kind, body)), made.png(RGB, behind=made.chunk(kind, body))):
            same(read(tmp_path, data).pixels, RGB)


def animation(kind: str) -> Callable[[], bytes]:
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    return lambda: by_pillow(frames[0], kind, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(animation("PNG"), "is an animation of 2 pictures", id="apng"),
        pytest.param(animation("WEBP"), "is an animation", id="webp"),
        pytest.param(animation("AVIF"), "holds 2 pictures", id="avif"),
        pytest.param(animation("TIFF"), "holds 2 pictures", id="tiff"),
        pytest.param(animation("GIF"), "is GIF, which is not supported; convert it to PNG", id="gif"),
        pytest.param(lambda: by_pillow(RGB, "JPEG2000"), "is JPEG 2000, which is not supported", id="jpeg2000"),
        pytest.param(lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is HEIC, which is not supported", id="heic"),
        pytest.param(lambda: made.tiff(made.pixels(4), extra=0), "that is no alpha channel", id="extra"),
        pytest.param(lambda: made.tiff(made.pixels(3), 8), "is CIELAB", id="lab"),
        pytest.param(lambda: made.tiff(RGB, tags=[(339, 3, (3, 3, 3))]), "floating-point or signed", id="float"),
        pytest.param(lambda: made.tiff(RGB, tags=[(339, 3, (2, 2, 2))]), "floating-point or signed", id="signed"),
        pytest.param(lambda: made.tiff(made.pixels(1, 16), 3), "neither gray nor RGB", id="palette of 16 bits"),
        pytest.param(lambda: made.tiff(np.zeros((2, 2), np.uint32)), "has 32 bits per channel", id="32 bits"),
        pytest.param(lambda: made.tiff(np.zeros((2, 2, 5), np.uint8), 2), "has 5 channels", id="5 channels"),
        pytest.param(lambda: made.tiff(RGB, tags=[(254, 4, (1,))]), "its first page is a preview", id="preview"),
        pytest.param(lambda: made.tiff(RGB, tags=[(279, 4, (0,))]), "parts of the picture are missing", id="sparse"),
        pytest.param(lambda: b"no picture", "not a picture", id="text"),
    ],
)
def test_what_is_refused_by_name(tmp_path: Path, make: Callable[[], bytes], reason: str) -> None:
    assert reason in refused(tmp_path, make())


def test_a_separate_first_picture_of_an_animation_is_one_of_two(tmp_path: Path) -> None:
    control, frame = made.chunk(b"acTL", struct.pack(">II", 1, 0)), made.chunk(b"fcTL", bytes(26))
    assert "is an animation" in refused(tmp_path, made.png(RGB, control, behind=frame))
    same(read(tmp_path, made.png(RGB, control, frame)).pixels, RGB)


def test_previews_behind_a_page_are_told(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(RGB, photometric="rgb", metadata=None, software=False)
        writer.write(RGB[::2, ::2], photometric="rgb", subfiletype=1, metadata=None, software=False)
    picture = read(tmp_path, file.getvalue())
    same(picture.pixels, RGB)
    assert picture.dropped == ("previews",)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"missing\.png: no such file"):
        read_picture(tmp_path / "missing.png")
    with pytest.raises(PictureError, match="is a folder, not a picture"):
        read_picture(tmp_path)


@pytest.mark.parametrize("error", [MemoryError(), TypeError("x"), KeyError("x")])
def test_whatever_a_decoder_raises_names_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def decode(data: bytes) -> None:
        raise error

    monkeypatch.setattr("imagecodecs.png_decode", decode)
    reason = refused(tmp_path, made.png(RGB))
    assert ("too large for this machine's memory" if isinstance(error, MemoryError) else "damaged") in reason


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
    data = by_pillow(RGB, "JPEG", exif=exif(entry, data=struct.pack("<ii", -1, 0)))
    assert read(tmp_path, data).size == Size(7, 5)


def test_exif_that_is_none_turns_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, by_pillow(RGB, "JPEG", exif=b"Exif\0\0no EXIF at all")).size == Size(5, 7)


# Sizes


def claimed(width: int, height: int) -> bytes:
    """A PNG of 4 KB that claims to be so large."""
    whole = made.png(np.zeros((4, 4), np.uint8), behind=made.chunk(b"prVt", bytes(4000)))
    header = struct.pack(">II", width, height) + whole[24:29]
    return whole[:8] + made.chunk(b"IHDR", header) + whole[33:]


def test_bombs_are_refused_by_what_they_claim(tmp_path: Path) -> None:
    assert "may be a decompression bomb: 6000x6000" in refused(tmp_path, claimed(6000, 6000))
    assert "--max-pixels 36000000" in refused(tmp_path, claimed(6000, 6000))
    assert "more than 1073741824" in refused(tmp_path, claimed(40000, 40000))
    assert "damaged" in refused(tmp_path, claimed(5000, 5000))  # small enough to try
    with pytest.raises(PictureError, match="damaged"):
        read(tmp_path, claimed(6000, 6000), max_pixels=36_000_000)
    with pytest.raises(PictureError, match="has 36000000 pixels .* and 35999999 are allowed"):
        read(tmp_path, claimed(6000, 6000), max_pixels=35_999_999)


@pytest.mark.parametrize("kind", ["TIFF", "PPM"])
def test_other_formats_are_asked_before_they_decode(tmp_path: Path, kind: str) -> None:
    if kind == "PPM":
        data = b"P6 20000 20000 255\n" + bytes(99)
    else:
        data = made.tiff(RGB, tags=[(256, 4, (20000,)), (257, 4, (20000,))])
    assert "may be a decompression bomb" in refused(tmp_path, data)


def test_pillows_own_limit_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for suffix in (".png", ".jpg", ".webp", ".tiff", ".bmp", ".ppm", ".avif"):
        write_picture(tmp_path / f"a{suffix}", Picture(RGB))
        assert read_picture(tmp_path / f"a{suffix}").size == Size(5, 7)


def test_own_results_of_one_colour_are_no_bombs(tmp_path: Path) -> None:
    for suffix in (".png", ".tiff"):
        write_picture(tmp_path / f"a{suffix}", Picture(np.zeros((5800, 5800), np.uint8)))
        assert read_header(tmp_path / f"a{suffix}").size == Size(5800, 5800)


# Damage


WRITTEN = [".png", ".jpg", ".webp", ".tiff", ".bmp", ".ppm", ".avif"]


@pytest.mark.parametrize("suffix", WRITTEN)
def test_pictures_that_end_too_early_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_picture(path, Picture(made.pixels(3, size=(40, 40))))
    whole = path.read_bytes()
    for length in (*range(0, 64, 7), len(whole) // 2, len(whole) * 9 // 10):
        assert refused(tmp_path, whole[:length])


@pytest.mark.parametrize(
    ("suffix", "channels", "depth"),
    [
        (suffix, channels, depth)
        for suffix in WRITTEN
        for channels, depth in ALL
        if (channels in (1, 3) or suffix in (".png", ".webp", ".tiff", ".avif"))
        and (depth == 8 or suffix in (".png", ".tiff", ".ppm"))
    ],
)
def test_damaged_pictures_are_read_or_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], suffix: str, channels: int, depth: int
) -> None:
    """Another exception than PictureError, or a line on the terminal, fails. Only PNG has checksums over everything."""
    path = tmp_path / f"a{suffix}"
    array = made.pixels(channels, depth, (24, 20))
    write_picture(path, Picture(array))
    whole, rng = path.read_bytes(), np.random.default_rng(depth)
    for _ in range(40):
        data = bytearray(whole)
        at = int(rng.integers(0, len(data)))
        data[at] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(data)
        try:
            picture = read_picture(path, max_pixels=10_000)
        except PictureError:
            continue
        if suffix == ".png":
            same(picture.pixels, array)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("segment", "told"),
    [
        (b"\xff\xebJP\0\1c2pa", "content credentials"),
        (b"\xff\xe1http://ns.adobe.com/xmp/extension/\0x", "XMP"),
        (b"\xff\xe1FLIR\0", "private data"),
        (b"\xff\xe3_JPSJPS_", "private data"),
    ],
)
def test_segments_of_jpeg_are_told(tmp_path: Path, segment: bytes, told: str) -> None:
    plain = by_pillow(RGB, "JPEG")
    segment = segment[:2] + struct.pack(">H", len(segment)) + segment[2:]
    assert read(tmp_path, plain[:2] + segment + plain[2:]).dropped == (told,)


@pytest.mark.parametrize("make", [lambda: by_pillow(RGB, "JPEG", progressive=True), lambda: made.png(RGB)])
def test_data_behind_a_picture_is_told(tmp_path: Path, make: Callable[[], bytes]) -> None:
    assert read(tmp_path, make() + b"\0\0ftypmp4").dropped == ("data behind the picture",)
    assert read(tmp_path, make() + bytes(9)).dropped == ()


def test_data_behind_a_cameras_last_picture_is_told(tmp_path: Path) -> None:
    """Where motion photos have a video."""
    data = by_pillow(RGB, "MPO", save_all=True, append_images=[Image.fromarray(RGB[::-1].copy())] * 2)
    assert read(tmp_path, data).dropped == ("2 more pictures",)
    assert read(tmp_path, data + b"\0\0ftypmp4").dropped == ("2 more pictures", "data behind the picture")


def test_private_parts_of_png_and_tiff_are_told(tmp_path: Path) -> None:
    for kind, told in ((b"tIME", "date"), (b"prVt", "private data"), (b"oFFs", "position")):
        assert read(tmp_path, made.png(RGB, made.chunk(kind, bytes(9)))).dropped == (told,)
    for tag, told in ((33550, "geographic data"), (37724, "Photoshop's data"), (65000, "private data")):
        assert read(tmp_path, made.tiff(RGB, tags=[(tag, 7, bytes(24))])).dropped == (told,)


def test_a_resolution_that_cannot_be_is_told(tmp_path: Path) -> None:
    data = made.tiff(RGB, tags=[(282, 5, (4 * 10**9, 1)), (283, 5, (4 * 10**9, 1))])
    picture = read(tmp_path, data)
    assert (picture.colour.dpi, picture.dropped) == (None, ("the resolution in DPI",))


@pytest.mark.parametrize("first", [b"P1 1 1\n1\n", b"P2 1 1 255\n1\n", b"P4 1 1\n\x80", b"P5 1 1 255\n1\n"])
def test_a_second_picture_in_netpbm_is_refused(tmp_path: Path, first: bytes) -> None:
    read(tmp_path, first)
    assert "holds several pictures" in refused(tmp_path, first + b"P5 1 1 255\n1")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty; copy or download it again"),
        (bytes(4096), "begins with zeros only"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 10\n", "is a Git LFS pointer"),
        (b"\n<!DOCTYPE html><title>404</title>", "is a web page, not a picture"),
        (b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"/>', "is SVG, which is not"),
    ],
)
def test_what_got_a_pictures_name_by_accident_is_told(tmp_path: Path, data: bytes, reason: str) -> None:
    assert reason in refused(tmp_path, data)


def tiff_pages(count: int, back: int | None = None) -> bytes:
    """So many empty pages; back: which one the last leads to, as if it came next."""
    entries = [(256, 3, 2), (257, 3, 1), (258, 3, 8), (262, 3, 1), (273, 4, 8), (279, 4, 2)]
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *said[:2], 1, said[2]) for said in entries)
    places = [8 + (len(table) + 4) * number for number in range(count)]
    following = [*places[1:], 0 if back is None else places[back]]
    return b"II*\0" + struct.pack("<I", 8) + b"".join(table + struct.pack("<I", place) for place in following)


@pytest.mark.parametrize(("count", "back"), [(1, 0), (3, 0), (5, 2), (130, 60)])
def test_pages_of_a_tiff_in_a_circle_come_to_an_end(tmp_path: Path, count: int, back: int) -> None:
    assert "its pages lead back to an earlier one" in refused(tmp_path, tiff_pages(count, back))


def test_no_more_pages_are_counted_than_need_be(tmp_path: Path) -> None:
    assert "holds 999 pictures" in refused(tmp_path, tiff_pages(999))
    assert "holds 1000 pages or more" in refused(tmp_path, tiff_pages(10**5))


def test_a_link_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    for target in ("nowhere.png", "a.png"):  # or in a circle
        (tmp_path / "a.png").unlink(missing_ok=True)
        (tmp_path / "a.png").symlink_to(target)
        with pytest.raises(PictureError, match=r"a.png: is a link that leads nowhere"):
            read_picture(tmp_path / "a.png")


def test_the_longest_sides_and_pipes_are_named(tmp_path: Path) -> None:
    assert "(2147483647x2147483647)" in refused(tmp_path, claimed(2**31 - 1, 2**31 - 1))
    with pytest.raises(PictureError, match="is a pipe or device, not a file"):
        read_picture("/dev/null")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_package_that_is_missing_is_no_damage_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path, picture = tmp_path / f"a{suffix}", Picture(np.full((4, 5, 3), 7, np.uint8))
    write_picture(path, picture)
    for package in ("imagecodecs", "tifffile"):
        monkeypatch.setitem(sys.modules, package, None)
    told = r"needs a package that is missing here or does not load \(.*\); pip install imagecodecs tifffile$"
    with pytest.raises(PictureError, match=f"^{re.escape(str(path))}: {told}"):
        read_picture(path)
    with pytest.raises(PictureError, match=told):
        write_picture(tmp_path / f"b{suffix}", picture)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
