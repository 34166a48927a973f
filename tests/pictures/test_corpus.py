"""Every picture of the corpus, read and enlarged: it comes back as it went in, or is refused in one line."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner, Result
from PIL import Image

from engines.upscale import main
from ribsr.base.pictures import (
    WRITABLE,
    PictureError,
    left_out,
    read_input,
    read_picture,
    read_rgb,
    to_pixels,
    write_picture,
)
from tests.pictures.by_hand import read_png
from tests.pictures.corpus import Made, corpus, enlarged
from tests.pictures.repeating import write_repeating

CORPUS = corpus()
SUFFIXES = sorted({picture.suffix for picture in CORPUS})

SCALE = 2

SRGB = (("srgb_intent", 0), ("srgb_intent", 1), ("gamma", 0.45455))
"""Fields of colour that say what is taken for granted."""


@pytest.fixture(scope="module")
def repeating(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repeating(tmp_path_factory.mktemp("models") / "repeating.onnx", SCALE)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_corpus_is_large() -> None:
    assert len(CORPUS) >= 400


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_read_is_what_the_picture_shows(suffix: str, tmp_path: Path) -> None:
    wrong = []
    for made in (picture for picture in CORPUS if picture.suffix == suffix):
        (tmp_path / made.name).write_bytes(made.data)
        wrong += [f"{made.name}: {what}" for what in read_wrong(made, tmp_path / made.name)]
    assert not wrong, "\n".join(wrong)


def read_wrong(made: Made, path: Path) -> list[str]:
    """What is not as it has to be."""
    try:
        picture = read_picture(path)
    except PictureError as error:
        line = str(error)
        refused = bool(made.refused and re.search(made.refused, line.removeprefix(str(path)), re.IGNORECASE))
        right = made.pixels is None and refused and "\n" not in line and line.startswith(f"{path}: ")
        return [] if right else [f"refused: {line}"]
    if made.pixels is None:
        return [f"read as {picture.pixels.dtype} {picture.pixels.shape}, instead of refused: {made.refused}"]
    colour = {name: value for name, value in vars(picture.colour).items() if value is not None}
    untold = [words for words in made.told if not re.search(words, " ".join(picture.dropped), re.IGNORECASE)]
    return [
        *unlike(picture.pixels, made),
        *other_colour(colour, made.colour),
        *(f"nothing was told of {words}: {picture.dropped}" for words in untold),
    ]


def test_training_takes_8_bit_rgb_and_models_all_but_alpha(tmp_path: Path) -> None:
    """What they cannot take they refuse, and what they take has the same pixels."""
    wrong = []
    for made in CORPUS:
        path = tmp_path / made.name
        path.write_bytes(made.data)
        shown = np.empty((0, 0, 0)) if made.pixels is None else made.pixels
        for read, taken in (
            (rgb, shown.shape[2:] == (3,) and shown.dtype == np.uint8),
            (model_input, shown.shape[2:] in ((), (3,))),
        ):
            wrong += [f"{read.__name__} {made.name}: {what}" for what in taken_wrong(made, path, read, taken)]
        path.unlink()
    assert not wrong, "\n".join(wrong)


def taken_wrong(made: Made, path: Path, read: Callable[[Path], np.ndarray], taken: bool) -> list[str]:
    try:
        pixels = read(path)
    except PictureError as error:
        return [] if not taken and str(error).startswith(f"{path}: ") and "\n" not in str(error) else [str(error)]
    return unlike(pixels, made) if taken else [f"{pixels.shape} instead of an error"]


def rgb(path: Path) -> np.ndarray:
    return read_rgb(path).pixels


def model_input(path: Path) -> np.ndarray:
    """As pixels again, gray as one plane."""
    x, like = read_input(path), read_picture(path)
    assert x.dtype == np.float32
    pixels = to_pixels(x, like.depth)
    if not like.is_gray:
        return pixels
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def unlike(pixels: np.ndarray, made: Made) -> list[str]:
    """What is wrong with pixels; colours under full transparency do not count."""
    right = made.pixels
    assert right is not None
    if (pixels.dtype, pixels.shape) != (right.dtype, right.shape):
        return [f"{pixels.dtype} {pixels.shape}, not {right.dtype} {right.shape}"]
    off = np.abs(pixels.astype(float) - right)
    if right.ndim == 3 and right.shape[2] in (2, 4):
        off[right[..., -1] == 0, :-1] = 0
    if made.psnr is None:
        return [f"pixels are off by up to {off.max():.0f}"] if off.any() else []
    psnr = 20 * np.log10(np.iinfo(right.dtype).max / max(np.sqrt(np.mean(off**2)), 1e-9))
    return [f"PSNR {psnr:.1f} dB"] if psnr < made.psnr else []


def other_colour(found: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    """What differs in the meaning of colours, or in dots per inch."""
    wrong = []
    for name in sorted({*found, *right}):
        one, other = found.get(name), right.get(name)
        if name == "icc_profile" or one is None or other is None:
            same = one == other
        else:
            same = np.allclose(one, other, rtol=0.004 if name == "dpi" else 1e-5)
        if not same:
            wrong.append(f"{name} is {str(one)[:80]}, not {str(other)[:80]}")
    return wrong


@pytest.mark.parametrize("suffix", WRITABLE)
def test_what_another_format_cannot_hold_is_refused_or_told(suffix: str, tmp_path: Path) -> None:
    """Of the pictures that say what their colours mean, or how large they are printed."""
    wrong, written = [], 0
    source, target = tmp_path / "in", tmp_path / f"out{suffix}"
    for made in (one for one in CORPUS if one.colour and one.pixels is not None):
        source.write_bytes(made.data)
        picture = read_picture(source)
        try:
            write_picture(target, picture)
        except PictureError as error:
            fine = suffix != ".png" and str(error).startswith(f"{target}: ") and not target.exists()
            wrong += [] if fine else [f"{made.name}: {error}"]
        else:
            written += 1
            wrong += [f"{made.name}: {what}" for what in change_untold(made, target, left_out(target, picture))]
            target.unlink()
    assert not wrong, "\n".join(wrong)
    assert written > 0


def change_untold(made: Made, path: Path, told: tuple[str, ...]) -> list[str]:
    """What a file of another format lost without a word. What means sRGB need not be said."""
    pixels, colour = look_at(path)
    said = dict(made.colour)
    if path.suffix != ".png":
        said = {name: value for name, value in said.items() if (name, value) not in {*SRGB}}
    if any("DPI" in words for words in told):
        del said["dpi"]
    assert made.pixels is not None
    if path.suffix in (".webp", ".avif") and pixels.ndim == 3:  # gray is RGB there
        pixels = {(): pixels[..., 0], (2,): pixels[..., [0, -1]]}.get(made.pixels.shape[2:], pixels)
    if path.suffix in (".jpg", ".jpeg", ".avif"):
        same = (pixels.shape, pixels.dtype) == (made.pixels.shape, made.pixels.dtype)
        return [*([] if same else [f"{pixels.dtype} {pixels.shape}"]), *other_colour(colour, said)]
    return [*unlike(pixels, made), *other_colour(colour, said)]


def test_a_folder_comes_back_enlarged_and_nothing_else_is_lost(repeating: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for made in CORPUS:
        (source / made.name).write_bytes(made.data)
    result = run(repeating, source, target)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit), result.exception
    lines = result.stderr.splitlines()
    wrong = []
    for made in CORPUS:
        told = [line for line in lines if f"{made.name}: " in line]
        wrong += [f"{made.name}: {what}" for what in result_wrong(made, target / result_name(made), told)]
    for words in ("EXIF", "XMP"):
        count = sum(words in made.told for made in CORPUS)
        assert re.search(rf"not carried over: .*\b{words} \({count}x\)", result.stderr), result.stderr
    assert not wrong, "\n".join(wrong)
    assert {path.name for path in target.iterdir()} <= set(map(result_name, CORPUS))


def result_name(made: Made) -> str:
    """An enlarged bitmap is gray."""
    return made.name.replace(".pbm", ".pgm")


def result_wrong(made: Made, path: Path, told: list[str]) -> list[str]:
    """What is wrong with a result; told: the lines of the command that name the picture."""
    refused = made.refused if made.pixels is None else made.unwritable
    if refused:
        said = [line for line in told if re.search(refused, line, re.IGNORECASE)]
        return [*(["written"] if path.exists() else []), *([] if said else [f"not said why: {told}"])]
    if not path.exists():
        return [f"not written: {told}"]
    pixels, colour = look_at(path)
    right = enlarged(made, SCALE)
    if path.suffix in (".jpg", ".jpeg", ".avif"):  # one more generation
        right = replace(right, psnr=(made.psnr or 30) - 4)
    return [*unlike(pixels, right), *other_colour(colour, made.colour)]


def look_at(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """A result's pixels and what it says of colours, read without the product."""
    data = path.read_bytes()
    if data.startswith(b"\x89PNG"):
        return look_at_png(data)
    if path.suffix in (".tif", ".tiff"):
        return look_at_tiff(data)
    if path.suffix in (".ppm", ".pgm", ".pnm"):
        return look_at_ppm(data), {}
    with Image.open(io.BytesIO(data)) as image:
        colour = {"icc_profile": image.info.get("icc_profile"), "dpi": image.info.get("dpi")}
        assert image.getexif().get(0x0112, 1) == 1
        pixels = np.asarray(image.convert("RGB") if image.mode == "P" else image)
    return pixels, {name: value for name, value in colour.items() if value is not None}


def look_at_ppm(data: bytes) -> np.ndarray:
    kind, width, height, maximum = data.split(maxsplit=4)[:4]
    dtype = np.dtype(np.uint8 if int(maximum) == 255 else ">u2")
    shape = (int(height), int(width), 3)[: 3 if kind == b"P6" else 2]
    values = np.frombuffer(data[-int(np.prod(shape)) * dtype.itemsize :], dtype)
    return values.reshape(shape).astype(dtype.newbyteorder("="))


def look_at_png(data: bytes) -> tuple[np.ndarray, dict[str, Any]]:
    png = read_png(data)
    colour: dict[str, Any] = {}
    if b"iCCP" in png.chunks:
        with Image.open(io.BytesIO(data)) as image:
            colour["icc_profile"] = image.info["icc_profile"]
    if b"gAMA" in png.chunks:
        colour["gamma"] = struct.unpack(">I", png.chunks[b"gAMA"])[0] / 100_000
    if b"cHRM" in png.chunks:
        colour["chromaticities"] = tuple(value / 100_000 for value in struct.unpack(">8I", png.chunks[b"cHRM"]))
    if b"cICP" in png.chunks:
        colour["cicp"] = tuple(png.chunks[b"cICP"])
    if b"sRGB" in png.chunks:
        colour["srgb_intent"] = png.chunks[b"sRGB"][0]
    if b"pHYs" in png.chunks:
        across, down, unit = struct.unpack(">2IB", png.chunks[b"pHYs"])
        colour["dpi"] = (across * 0.0254, down * 0.0254) if unit == 1 else ("of an unknown unit",)
    return png.samples, colour


def look_at_tiff(data: bytes) -> tuple[np.ndarray, dict[str, Any]]:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        (page,) = file.pages
        assert isinstance(page, tifffile.TiffPage)
        colour: dict[str, Any] = {}
        if page.iccprofile:
            colour["icc_profile"] = page.iccprofile
        if 282 in page.tags and page.tags[296].value != 1:  # 1: of no unit, which tifffile writes
            colour["dpi"] = page.get_resolution("inch")
        assert 274 not in page.tags or page.tags[274].value == 1
        return page.asarray(), colour
