"""More than 400 small pictures as people have them, each with what has to come of it.

What is expected comes from the arrays that the files are made of, never from reading them.
"""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from tests.pictures import by_hand
from tests.pictures.by_hand import GRAY, GRAY_ALPHA, PALETTE, RGB, RGBA, Chunk, png, pnm

ORIENTATIONS = range(1, 9)
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/></x:xmpmeta>'
PRIMARIES = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
"""White, red, green and blue of Display P3, as cHRM holds them."""

MANY = "holds|frames|pages|animat"
"""What is said of files of several pictures."""

ICC = {1: by_hand.profile("GRAY"), 2: by_hand.profile("GRAY"), 3: by_hand.profile("RGB"), 4: by_hand.profile("RGB")}
"""A profile by channels."""


@dataclass(frozen=True)
class Made:
    """A picture file and what reading it gives.

    pixels: what it shows, upright, uint8 or uint16 as in `Picture.pixels`; None: it is refused. refused: what the
    message says then. unwritable: what is said of a result in the same format, which cannot hold it. colour: fields of
    `Colour`, the others are None. psnr: in dB, at least; None: pixels are exact. told: words that `dropped` holds.
    """

    name: str
    data: bytes
    pixels: np.ndarray | None
    refused: str = ""
    unwritable: str = ""
    colour: Mapping[str, Any] = field(default_factory=dict)
    psnr: float | None = None
    told: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        return self.name[self.name.rindex(".") :]


def corpus() -> list[Made]:
    """All of them, under names that differ."""
    parts = (
        _png_kinds, _png_colours, _png_turned, _png_others, _jpeg, _jpeg_cmyk, _webp, _avif, _tiff_kinds, _tiff_layouts,
        _tiff_others, _bmp, _pnm, _many,
    )  # fmt: skip
    made = [picture for part in parts for picture in part()]
    assert len({picture.name for picture in made}) == len(made)
    return made


def noise(height: int, width: int, channels: int, depth: int = 8, seed: int = 0) -> np.ndarray:
    """Of `depth` bits: uint8 up to 8, else uint16; [H, W] for one channel."""
    dtype = np.uint8 if depth <= 8 else np.uint16
    rng = np.random.default_rng([seed, height, width, channels, depth])
    values = rng.integers(0, 1 << depth, (height, width, channels), dtype=dtype)
    return values[..., 0] if channels == 1 else values


def smooth(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    """uint8 that survives lossy codecs, without symmetries; alpha, too."""
    y, x = np.mgrid[:height, :width] / max(height, width, 2)
    planes = [140 + 70 * x * (-1) ** c - 60 * y + 20 * np.sin(5 * x * y + c + seed) for c in range(channels)]
    values = np.clip(np.stack(planes, axis=-1), 0, 255).astype(np.uint8)
    return values[..., 0] if channels == 1 else values


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """As EXIF defines it."""
    turned = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.swapaxes(0, 1),
        6: lambda p: p[::-1].swapaxes(0, 1),
        7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
        8: lambda p: p[:, ::-1].swapaxes(0, 1),
    }
    return turned[orientation](pixels)


def exif(orientation: int | None = None) -> bytes:
    """TIFF's structure, without JPEG's "Exif" before it: a maker's name and, maybe, the orientation."""
    tags = Image.Exif()
    tags[0x010F] = "maker of cameras"
    if orientation is not None:
        tags[0x0112] = orientation
    return tags.tobytes().removeprefix(b"Exif\0\0")


def saved(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    """By Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


# PNG


def _png_kinds() -> Iterator[Made]:
    """Every colour type and depth, by size and interlacing; palettes and transparent colours as they show."""
    sizes = ((1, 1), (1, 7), (9, 1), (3, 3), (11, 14))
    for (height, width), laced in itertools.product(sizes, (False, True)):
        for kind, depth in itertools.product((GRAY, GRAY_ALPHA, RGB, RGBA), (8, 16)):
            pixels = noise(height, width, by_hand.CHANNELS[kind], depth)
            name = f"kind{kind}-{depth}-{width}x{height}{'-laced' * laced}.png"
            yield Made(name, png(pixels, kind, depth, interlaced=laced), pixels)
        for depth in (1, 2, 4):
            grays = noise(height, width, 1, depth)
            shown = (grays.astype(int) * 255 // ((1 << depth) - 1)).astype(np.uint8)
            name = f"gray{depth}-{width}x{height}{'-laced' * laced}.png"
            yield Made(name, png(grays, GRAY, depth, interlaced=laced), shown)
        for depth in (1, 2, 4, 8):
            yield from _palettes(height, width, depth, laced)
    yield from _keys()


def _palettes(height: int, width: int, depth: int, laced: bool) -> Iterator[Made]:
    numbers = noise(height, width, 1, depth)
    colours = noise(1, 1 << depth, 3)[0]
    alpha = {"hard": np.arange(1 << depth) % 2 * 255, "soft": np.linspace(0, 255, 1 << depth)}
    end = f"{depth}-{width}x{height}{'-laced' * laced}.png"
    before = [(b"PLTE", colours.tobytes())]
    yield Made(f"palette{end}", png(numbers, PALETTE, depth, before, interlaced=laced), colours[numbers])
    for name, values in alpha.items():
        values = values.astype(np.uint8)
        shown = np.dstack([colours[numbers], values[numbers]])
        data = png(numbers, PALETTE, depth, [*before, (b"tRNS", values.tobytes())], interlaced=laced)
        yield Made(f"palette-{name}{end}", data, shown)


def _keys() -> Iterator[Made]:
    """One colour is transparent. In 16 bits a colour that differs from it in the lower byte alone is not."""
    for depth, colours in itertools.product((1, 2, 4, 8, 16), (1, 3)):
        if depth < 8 and colours == 3:
            continue
        pixels = noise(9, 12, colours, depth)
        flat = pixels.reshape(9, 12, colours)
        key = flat[4, 5].copy()
        flat[0, 0], flat[8, 11] = key, key ^ 1
        shown = flat.astype(int) * 255 // ((1 << depth) - 1) if depth < 8 else flat
        top = 65535 if depth == 16 else 255
        alpha = np.where((flat == key).all(axis=-1), 0, top)
        transparent = (b"tRNS", key.astype(">u2").tobytes())
        data = png(flat, GRAY if colours == 1 else RGB, depth, [transparent])
        yield Made(f"key{colours}-{depth}.png", data, np.dstack([shown, alpha]).astype(pixels.dtype))


CHRM = (b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in PRIMARIES)))

COLOURS: tuple[tuple[str, list[Chunk], dict[str, Any]], ...] = (
    ("gamma", [(b"gAMA", struct.pack(">I", 45455))], {"gamma": 0.45455}),
    ("linear", [(b"gAMA", struct.pack(">I", 100000))], {"gamma": 1.0}),
    ("primaries", [CHRM], {"chromaticities": PRIMARIES}),
    ("both", [(b"gAMA", struct.pack(">I", 38000)), CHRM], {"gamma": 0.38, "chromaticities": PRIMARIES}),
    ("srgb", [(b"sRGB", b"\1")], {"srgb_intent": 1}),
    ("srgb0", [(b"sRGB", b"\0")], {"srgb_intent": 0}),
    ("pq", [(b"cICP", bytes([9, 16, 0, 1]))], {"cicp": (9, 16, 0, 1)}),
    ("hlg", [(b"cICP", bytes([9, 18, 0, 0]))], {"cicp": (9, 18, 0, 0)}),
    ("dpi", [(b"pHYs", struct.pack(">2IB", 11811, 5906, 1))], {"dpi": (11811 * 0.0254, 5906 * 0.0254)}),
    ("aspect", [(b"pHYs", struct.pack(">2IB", 3, 2, 0))], {}),
)  # fmt: skip


def _png_colours() -> Iterator[Made]:
    for kind, depth in itertools.product((GRAY, GRAY_ALPHA, RGB, RGBA), (8, 16)):
        channels = by_hand.CHANNELS[kind]
        pixels = noise(8, 10, channels, depth)
        for name, chunks, colour in COLOURS:
            yield Made(f"{name}-{kind}-{depth}.png", png(pixels, kind, depth, chunks), pixels, colour=colour)
        profile = (b"iCCP", b"name\0\0" + zlib.compress(ICC[channels]))
        data = png(pixels, kind, depth, [profile])
        yield Made(f"icc-{kind}-{depth}.png", data, pixels, colour={"icc_profile": ICC[channels]})
    numbers, colours = noise(8, 10, 1, 4), noise(1, 16, 3)[0]
    for name, chunks, colour in COLOURS:
        data = png(numbers, PALETTE, 4, [*chunks, (b"PLTE", colours.tobytes())])
        yield Made(f"{name}-palette.png", data, colours[numbers], colour=colour)


def _png_turned() -> Iterator[Made]:
    for orientation, (kind, depth) in itertools.product(ORIENTATIONS, ((RGB, 8), (RGB, 16), (GRAY_ALPHA, 8))):
        pixels = noise(5, 9, by_hand.CHANNELS[kind], depth)
        chunks = [(b"eXIf", exif(orientation)), (b"pHYs", struct.pack(">2IB", 4000, 2000, 1))]
        dpi = (101.6, 50.8) if orientation < 5 else (50.8, 101.6)
        turned, data = upright(pixels, orientation), png(pixels, kind, depth, chunks)
        yield Made(f"turned{orientation}-{kind}-{depth}.png", data, turned, colour={"dpi": dpi}, told=("EXIF",))


def _png_others() -> Iterator[Made]:
    """Text and the like, before the pixels and behind them."""
    international = b"XML:com.adobe.xmp\0\0\0\0\0" + XMP
    cases = {
        "text": ((b"tEXt", b"Comment\0short"), "text"),
        "packed": ((b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 5_000_000)), "text"),
        "long": ((b"iTXt", b"Comment\0\0\0\0\0" + b"long " * 300_000), "text"),
        "xmp": ((b"iTXt", international), "XMP"),
        "exif": ((b"eXIf", exif()), "EXIF"),
    }
    for depth, (name, (extra, told)) in itertools.product((8, 16), cases.items()):
        pixels = noise(7, 6, 3, depth)
        yield Made(f"{name}-before-{depth}.png", png(pixels, RGB, depth, [extra]), pixels, told=(told,))
        yield Made(f"{name}-after-{depth}.png", png(pixels, RGB, depth, after=[extra]), pixels, told=(told,))
    pixels = noise(7, 6, 3)
    harmless = [(b"tIME", b"\x07\xea\1\1\0\0\0"), (b"bKGD", bytes(6)), (b"prVt", b"of an unknown program")]
    yield Made("harmless.png", png(pixels, RGB, 8, harmless), pixels)
    yield Made("trailing.png", png(pixels, RGB, 8) + b"\0" * 100, pixels)
    yield Made("ünïcødé ☃ name.png", png(pixels, RGB, 8), pixels)
    yield Made("CAPITALS.PNG", png(pixels, RGB, 8), pixels)


# JPEG


def _jpeg() -> Iterator[Made]:
    for channels, subsampling, progressive in itertools.product((1, 3), ("4:4:4", "4:2:2", "4:2:0"), (False, True)):
        pixels = smooth(33, 23, channels)
        options = {"quality": 95, "progressive": progressive, **({"subsampling": subsampling} if channels == 3 else {})}
        name = f"jpeg{channels}-{subsampling.replace(':', '')}-{progressive}.jpg"
        yield Made(name, saved(pixels, "JPEG", **options), pixels, psnr=30)
    for channels, orientation in itertools.product((1, 3), ORIENTATIONS):
        pixels = smooth(16, 27, channels)
        data = saved(pixels, "JPEG", quality=95, subsampling="4:4:4", exif=b"Exif\0\0" + exif(orientation))
        name, turned = f"turned{orientation}-{channels}.jpg", upright(pixels, orientation)
        yield Made(name, data, turned, psnr=32, told=("EXIF",))
    for channels in (1, 3):
        pixels = smooth(20, 30, channels)
        cases: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
            "icc": ({"icc_profile": ICC[channels]}, {"icc_profile": ICC[channels]}, ()),
            "dpi": ({"dpi": (240, 120)}, {"dpi": (240, 120)}, ()),
            "xmp": ({"xmp": XMP}, {}, ("XMP",)),
            "comment": ({"comment": b"words"}, {}, ("text|comment",)),
        }
        for name, (options, colour, told) in cases.items():
            data = saved(pixels, "JPEG", quality=95, **options)
            yield Made(f"{name}-{channels}.jpeg", data, pixels, psnr=30, colour=colour, told=told)
    for height, width in ((1, 1), (1, 9), (9, 1), (3, 3)):
        pixels = np.broadcast_to(np.array([200, 90, 40], np.uint8), (height, width, 3))
        yield Made(f"tiny-{width}x{height}.jpg", saved(pixels, "JPEG", quality=95), pixels, psnr=35)
    pixels, buffer = smooth(24, 32, 3), io.BytesIO()
    behind = [Image.fromarray(smooth(12, 16, 3, seed=2))]
    Image.fromarray(pixels).save(buffer, "MPO", save_all=True, append_images=behind, quality=95)
    yield Made("phone.jpg", buffer.getvalue(), pixels, psnr=30, told=("picture",))
    yield Made("named-so.jpg", saved(noise(9, 9, 3), "PNG"), noise(9, 9, 3))


def _jpeg_cmyk() -> Iterator[Made]:
    """Through the profile, or not at all."""
    inks = np.repeat(np.repeat(by_hand.CORNERS.reshape(4, 4, 4) * 255, 8, axis=0), 8, axis=1)
    shown = np.repeat(np.repeat(by_hand.corner_rgb().reshape(4, 4, 3), 8, axis=0), 8, axis=1)
    shown = np.rint(shown).astype(np.uint8)
    image = Image.frombytes("CMYK", (32, 32), inks.tobytes())
    for name, profile in (("plain", None), ("icc", by_hand.profile("CMYK"))):
        for kind, options in (("JPEG", {"quality": 100, "subsampling": 0}), ("TIFF", {"compression": "tiff_lzw"})):
            buffer = io.BytesIO()
            image.save(buffer, kind, icc_profile=profile, **options)
            suffix = {"JPEG": ".jpg", "TIFF": ".tif"}[kind]
            pixels = None if profile is None else shown
            yield Made(f"cmyk-{name}{suffix}", buffer.getvalue(), pixels, refused="CMYK", psnr=30)


# WebP and AVIF


def _webp() -> Iterator[Made]:
    for channels, (height, width) in itertools.product((3, 4), ((1, 1), (1, 8), (5, 3), (17, 22))):
        pixels = noise(height, width, channels)
        data = saved(pixels, "WEBP", lossless=True, exact=True)
        yield Made(f"lossless{channels}-{width}x{height}.webp", data, pixels)
    for channels in (3, 4):
        pixels = smooth(24, 31, channels)
        yield Made(f"lossy{channels}.webp", saved(pixels, "WEBP", quality=95), pixels, psnr=28)
        options = {"lossless": True, "exact": True}
        data = saved(pixels, "WEBP", icc_profile=ICC[3], **options)
        yield Made(f"icc{channels}.webp", data, pixels, colour={"icc_profile": ICC[3]})
        yield Made(f"xmp{channels}.webp", saved(pixels, "WEBP", xmp=XMP, **options), pixels, told=("XMP",))
        for orientation in ORIENTATIONS:
            data = saved(pixels, "WEBP", exif=b"Exif\0\0" + exif(orientation), **options)
            name, turned = f"turned{orientation}-{channels}.webp", upright(pixels, orientation)
            yield Made(name, data, turned, told=("EXIF",))


def _avif() -> Iterator[Made]:
    Image.init()
    if "AVIF" not in Image.SAVE:  # a Pillow built without it
        return
    options = {"quality": 95, "subsampling": "4:4:4", "speed": 9}
    for channels, (height, width) in itertools.product((3, 4), ((8, 8), (17, 26))):
        pixels = smooth(height, width, channels)
        yield Made(f"plain{channels}-{width}x{height}.avif", saved(pixels, "AVIF", **options), pixels, psnr=30)
    for orientation in ORIENTATIONS:
        pixels = smooth(16, 26, 3)
        data = saved(pixels, "AVIF", exif=exif(orientation), **options)
        yield Made(f"turned{orientation}.avif", data, upright(pixels, orientation), psnr=30, told=("EXIF",))
    pixels = smooth(16, 26, 3)
    data = saved(pixels, "AVIF", icc_profile=ICC[3], **options)
    yield Made("icc.avif", data, pixels, psnr=30, colour={"icc_profile": ICC[3]})
    yield Made("xmp.avif", saved(pixels, "AVIF", xmp=XMP, **options), pixels, psnr=30, told=("XMP",))
    for bits in (10, 12):
        deep = pixels.astype(np.uint16) << (bits - 8)
        data = imagecodecs.avif_encode(deep, level=95, speed=9, pixelformat="444", bitspersample=bits)
        shown = np.rint(deep / ((1 << bits) - 1) * 65535).astype(np.uint16)
        yield Made(f"deep{bits}.avif", bytes(data), shown, psnr=30, unwritable="bits")
    data = imagecodecs.avif_encode(pixels, level=95, speed=9, pixelformat="444", primaries=9, transfer=16, matrix=9)
    yield Made("pq.avif", bytes(data), pixels, psnr=30, colour={"cicp": (9, 16, 0, 1)}, unwritable="colour|PQ|cICP")


# TIFF


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    """By tifffile."""
    buffer = io.BytesIO()
    gray = pixels.ndim == 2 or pixels.shape[-1] == 2
    if pixels.ndim == 3 and pixels.shape[-1] in (2, 4):
        options = {"extrasamples": ["unassalpha"], "planarconfig": "contig", **options}
    options = {"photometric": "minisblack" if gray else "rgb", "metadata": None, "software": False, **options}
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def _tiff_kinds() -> Iterator[Made]:
    for channels, depth, (height, width) in itertools.product(
        (1, 2, 3, 4), (8, 16), ((1, 1), (6, 1), (3, 3), (12, 19))
    ):
        pixels = noise(height, width, channels, depth)
        name = f"kind{channels}-{depth}-{width}x{height}.tif"
        yield Made(name, tiff(pixels), pixels)
    for channels, depth, orientation in itertools.product((1, 3), (8, 16), ORIENTATIONS):
        pixels = noise(5, 9, channels, depth)
        data = tiff(pixels, extratags=[(274, "H", 1, orientation, True)])
        yield Made(f"turned{orientation}-{channels}-{depth}.tif", data, upright(pixels, orientation))
    for channels, depth in itertools.product((1, 3, 4), (8, 16)):
        pixels = noise(7, 10, channels, depth)
        data = tiff(pixels, iccprofile=ICC[channels], resolution=(300, 150), resolutionunit=2)
        colour = {"icc_profile": ICC[channels], "dpi": (300, 150)}
        yield Made(f"icc{channels}-{depth}.tiff", data, pixels, colour=colour)
    pixels = noise(7, 10, 3, 16)
    data = tiff(pixels, resolution=(100, 50), resolutionunit=3)
    yield Made("centimetres.tif", data, pixels, colour={"dpi": (254, 127)})


def _tiff_layouts() -> Iterator[Made]:
    layouts: dict[str, dict[str, Any]] = {
        "big-endian": {"byteorder": ">"},
        "bigtiff": {"bigtiff": True},
        "lzw": {"compression": "lzw", "predictor": True},
        "deflate": {"compression": "zlib"},
        "deflate-predictor": {"compression": "zlib", "predictor": True},
        "packbits": {"compression": "packbits"},
        "tiles": {"tile": (16, 16)},
        "strips": {"rowsperstrip": 3},
    }
    for (name, layout), channels, depth in itertools.product(layouts.items(), (1, 3), (8, 16)):
        pixels = noise(20, 18, channels, depth)
        yield Made(f"{name}-{channels}-{depth}.tif", tiff(pixels, **layout), pixels)
    for depth in (8, 16):
        pixels = noise(11, 8, 3, depth)
        data = tiff(pixels.transpose(2, 0, 1), planarconfig="separate")
        yield Made(f"planes-{depth}.tif", data, pixels)
        top = (1 << depth) - 1
        gray = noise(11, 8, 1, depth)
        yield Made(f"white-is-zero-{depth}.tif", tiff(top - gray, photometric="miniswhite"), gray)
        shown = noise(11, 8, 4, depth)
        shown[..., 3] = np.where(shown[..., 3] % 2, top, 0)
        shown[..., :3] *= (shown[..., 3:] > 0).astype(shown.dtype)
        data = tiff(shown, extrasamples=["assocalpha"])  # premultiplied; the same where alpha is all or nothing
        yield Made(f"premultiplied-{depth}.tif", data, shown)


def _tiff_others() -> Iterator[Made]:
    colours, numbers = noise(1, 256, 3)[0], noise(9, 13, 1)
    data = tiff(numbers, photometric="palette", colormap=colours.T.astype(np.uint16) * 257)
    yield Made("palette.tif", data, colours[numbers])
    bits = noise(9, 13, 1, 1)
    yield Made("bits.tif", tiff(bits.astype(bool)), bits * np.uint8(255))
    for name, compression in (("group4", "group4"), ("packbits", "packbits")):
        buffer = io.BytesIO()
        Image.fromarray(bits.astype(bool)).save(buffer, "TIFF", compression=compression)
        yield Made(f"bits-{name}.tif", buffer.getvalue(), bits * np.uint8(255))
    for name, dtype, refused in (
        ("float", np.float32, "float"),
        ("double", np.float64, "float|64"),
        ("wide", np.uint32, "32"),
        ("signed", np.int16, "sign"),
        ("signed8", np.int8, "sign"),
    ):
        data = tiff(np.arange(63, dtype=dtype).reshape(7, 9), photometric="minisblack")
        yield Made(f"{name}.tif", data, None, refused=refused)
    pixels = noise(9, 8, 5)
    data = tiff(pixels, photometric="rgb", extrasamples=["unspecified"] * 2, planarconfig="contig")
    yield Made("five-channels.tif", data, None, refused="channel|sample")
    pixels = noise(9, 8, 3)
    data = tiff(pixels, extratags=[(700, "B", len(XMP), XMP, True), (271, "s", 0, "maker", True)])
    yield Made("xmp.tif", data, pixels, told=("XMP",))


# The others


def _bmp() -> Iterator[Made]:
    screen = {"dpi": (96, 96)}  # Pillow writes it where nothing else is said
    pixels = noise(9, 7, 3)
    yield Made("rgb.bmp", saved(pixels, "BMP"), pixels, colour=screen)
    yield Made("dpi.bmp", saved(pixels, "BMP", dpi=(300, 300)), pixels, colour={"dpi": (300, 300)})
    gray = noise(9, 7, 1)
    yield Made("gray.bmp", saved(gray, "BMP"), gray, colour=screen)
    bits = noise(9, 7, 1, 1)
    yield Made("bits.bmp", saved(bits.astype(bool), "BMP"), bits * np.uint8(255), colour=screen)
    colours, numbers = noise(1, 256, 3)[0], noise(9, 7, 1)
    image, buffer = Image.fromarray(numbers, "P"), io.BytesIO()
    image.putpalette(colours.tobytes())
    image.save(buffer, "BMP")
    yield Made("palette.bmp", buffer.getvalue(), colours[numbers], colour=screen)
    alpha = noise(9, 7, 4)
    alpha[..., 3] = np.where(alpha[..., 3] > 127, 255, 0)
    yield Made("padded.bmp", by_hand.bmp(alpha[..., [2, 1, 0, 3]], alpha=False), alpha[..., :3])
    data = by_hand.bmp(alpha[..., [2, 1, 0, 3]], alpha=True)
    yield Made("alpha.bmp", data, alpha, unwritable="alpha")
    for height, width in ((1, 1), (1, 5), (5, 1)):
        pixels = noise(height, width, 3)
        yield Made(f"rgb-{width}x{height}.bmp", saved(pixels, "BMP"), pixels, colour=screen)


def _pnm() -> Iterator[Made]:
    for (height, width), text in itertools.product(((1, 1), (1, 6), (9, 13)), (False, True)):
        end = f"{width}x{height}{'-text' * text}.ppm"
        bits = noise(height, width, 1, 1)
        yield Made(f"bits-{end}", pnm(bits, 1, text), (1 - bits) * np.uint8(255))
        for channels, depth in itertools.product((1, 3), (8, 16)):
            pixels = noise(height, width, channels, depth)
            data = pnm(pixels, (1 << depth) - 1, text, comment="# words\n")
            refused = "text" if text and depth == 16 else ""
            yield Made(f"kind{channels}-{depth}-{end}", data, None if refused else pixels, refused)
    bits, gray = noise(9, 13, 1, 1), noise(9, 13, 1, 16)
    yield Made("bits.pbm", pnm(bits, 1), (1 - bits) * np.uint8(255))
    yield Made("gray.pgm", pnm(gray, 65535), gray)
    for maximum, channels in itertools.product((7, 100, 1023, 4095), (1, 3)):
        top = 255 if maximum < 256 else 65535
        samples = noise(8, 9, channels, 16) % (maximum + 1)
        shown = np.floor(samples / maximum * top + 0.5).astype(np.uint8 if top == 255 else np.uint16)
        yield Made(f"maximum{maximum}-{channels}.ppm", pnm(samples, maximum), shown)


def _many() -> Iterator[Made]:
    """Animations, and documents of several pages."""
    frames = [smooth(12, 14, 3, seed) for seed in range(3)]
    rest = [Image.fromarray(frame) for frame in frames[1:]]
    for kind, suffix in (("PNG", ".png"), ("WEBP", ".webp"), ("TIFF", ".tif"), ("AVIF", ".avif")):
        if kind in Image.SAVE_ALL:
            data = saved(frames[0], kind, save_all=True, append_images=rest)
            yield Made(f"many{suffix}", data, None, refused=MANY)
    alpha = [noise(12, 14, 4, seed=seed) for seed in range(2)]
    for kind, suffix in (("PNG", ".png"), ("WEBP", ".webp")):
        data = saved(alpha[0], kind, save_all=True, append_images=[Image.fromarray(alpha[1])])
        yield Made(f"many-alpha{suffix}", data, None, refused=MANY)
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        for seed in range(2):
            file.write(noise(9, 9, 3, 16, seed), photometric="rgb", metadata=None)
    yield Made("pages-16.tif", buffer.getvalue(), None, refused=MANY)


def enlarged(picture: Made, scale: int) -> Made:
    """What a network that repeats pixels makes of it."""
    assert picture.pixels is not None
    return replace(picture, pixels=picture.pixels.repeat(scale, axis=0).repeat(scale, axis=1))
