"""Pictures of the report: their middle, one data URI each, and maps of where they differ from what they should be."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engines.base import EngineError
from ribsr.base.pictures import PictureError, read_rgb
from ribsr.base.sizes import Size
from tools._runs import ErrorMap, Evaluation

if TYPE_CHECKING:
    from PIL import Image

LARGEST = 640
"""Pixels a side of what is shown of a picture: its middle, unscaled. Four of four models each stay below 3 MB."""

QUALITY = 90
"""Of WebP: photographs of LARGEST take some 100 kB, and its errors are far below what models differ by."""

MAP_SIDE = 192
"""Pixels a side of an error map, at most; each is the mean of those that it stands for."""

LEVELS = 24
"""Steps of an error map's scale: PNG compresses few far better than many, and an eye tells no more apart."""

_STOPS = np.array([(0, 0, 4), (59, 15, 112), (140, 41, 129), (222, 73, 104), (254, 159, 109), (252, 253, 191)])
"""Magma, by S. van der Walt and N. Smith (CC0): dark to light evenly for every eye, in print, too."""


@dataclass(frozen=True)
class Layer:
    """A picture that the slider may show. names: of all whose 8-bit pixels are these. caption: below them."""

    names: list[str]
    uri: str

    @property
    def label(self) -> str:
        return " = ".join(self.names)


@dataclass(frozen=True)
class Map:
    """An error map. mean: error of all pixels in steps of 8 bits. psnr: dB of the whole picture, as it was scored."""

    name: str
    uri: str
    mean: float
    psnr: float | None


@dataclass(frozen=True)
class Comparison:
    """A picture with all that was made of it. size: of what is shown, which is the middle of `whole`.

    left, right: the layers that the slider begins with. full_scale: error, in steps of 8 bits, that the maps show
    lightest.
    """

    name: str
    size: Size
    whole: Size
    layers: list[Layer]
    left: int
    right: int
    maps: list[Map]
    full_scale: float


ORIGINAL = "original"


def comparisons(evaluation: Evaluation) -> list[Comparison]:
    """Every picture that was saved, with what all models made of it. Raises EngineError for a file that is none."""
    found = []
    for title, files in evaluation.originals.items():
        for name, file in files.items():
            scored = {
                of.model.file: of.pictures[title][name]
                for of in evaluation.models
                if name in of.pictures.get(title, {})
            }
            pictures = {model: read(one.saved) for model, one in scored.items() if one.saved is not None}
            if pictures:
                scores = {model: one.psnr for model, one in scored.items()}
                found.append(compare(f"{name}, x{evaluation.scale}", read(file), pictures, scores))
    return found


def read(path: Path) -> np.ndarray:
    """RGB, uint8 [H, W, 3]."""
    try:
        return read_rgb(path).pixels
    except (PictureError, OSError) as error:
        raise EngineError(f"{error}; write the run and its pictures again") from None


def compare(
    name: str,
    original: np.ndarray,
    pictures: dict[str, np.ndarray],
    psnr: dict[str, float | None],
) -> Comparison:
    """original, pictures: uint8 [H, W, 3] of one size. pictures, psnr: by the models' names."""
    for model, pixels in pictures.items():
        if pixels.shape != original.shape:
            raise EngineError(f"{name}: {model}'s picture is not of the original's size; write the run again")
    shown = {model: middle(pixels) for model, pixels in {**pictures, ORIGINAL: original}.items()}
    layers = distinct(shown)
    names = [layer.names for layer in layers]
    first = next((i for i, of in enumerate(names) if "bicubic" in of), 0)
    ours = next((i for i, of in enumerate(names) if i != first and ORIGINAL not in of), len(names) - 1)
    errors = {model: error_of(shown[model], shown[ORIGINAL]) for model in pictures}
    full_scale = max(1.0, *(float(np.percentile(error, 99.5)) for error in errors.values()))
    maps = []
    for layer in layers:
        if ORIGINAL not in layer.names:
            error = errors[layer.names[0]]
            maps.append(Map(layer.label, map_uri(error / full_scale), float(error.mean()), psnr.get(layer.names[0])))
    size, whole = Size(*shown[ORIGINAL].shape[:2]), Size(*original.shape[:2])
    return Comparison(name, size, whole, layers, first, ours, maps, full_scale)


def middle(pixels: np.ndarray) -> np.ndarray:
    """Of a picture [H, W, ..], at most LARGEST pixels a side."""
    top, left = (max(0, (side - LARGEST) // 2) for side in pixels.shape[:2])
    return pixels[top : top + LARGEST, left : left + LARGEST]


def distinct(pictures: dict[str, np.ndarray]) -> list[Layer]:
    """Equal pictures become one layer."""
    layers: dict[bytes, Layer] = {}
    for name, pixels in pictures.items():
        key = pixels.tobytes()
        if key in layers:
            layers[key].names.append(name)
        else:
            layers[key] = Layer([name], webp(pixels))
    return list(layers.values())


def error_of(pixels: np.ndarray, original: np.ndarray) -> np.ndarray:
    """Mean of the channels' absolute errors [H, W], in steps of 8 bits."""
    return np.abs(pixels.astype(np.float32) - original).mean(axis=-1)


def webp(pixels: np.ndarray) -> str:
    from PIL import Image

    return _uri(Image.fromarray(pixels), "webp", quality=QUALITY, method=6)


def map_uri(shares: np.ndarray) -> str:
    """A map of errors [H, W], 1 the lightest colour."""
    from PIL import Image

    step = -(-max(shares.shape) // MAP_SIDE)
    down, across = (min(step, side) for side in shares.shape)
    height, width = shares.shape[0] // down, shares.shape[1] // across
    means = shares[: height * down, : width * across].reshape(height, down, width, across).mean(axis=(1, 3))
    made = Image.fromarray((np.clip(means, 0, 1) * (LEVELS - 1)).round().astype(np.uint8), "P")
    made.putpalette(palette(LEVELS).tobytes())
    return _uri(made, "png", optimize=True)


def palette(count: int) -> np.ndarray:
    """Colours from dark to light, uint8 [count, 3]."""
    at = np.linspace(0, len(_STOPS) - 1, count)
    return (
        np.stack([np.interp(at, range(len(_STOPS)), channel) for channel in _STOPS.T], axis=-1).round().astype(np.uint8)
    )


def gradient() -> str:
    """The scale of the maps, as CSS."""
    return f"linear-gradient(to right, {', '.join('rgb({}, {}, {})'.format(*colour) for colour in _STOPS)})"


def error_map(found: ErrorMap) -> str:
    """parity's own error map, in 16 shades."""
    from PIL import Image

    shades = ((read(found.file).astype(np.uint16) + 8) // 17 * 17).astype(np.uint8)
    return _uri(Image.fromarray(shades), "png", optimize=True)


def _uri(made: Image.Image, kind: str, **options: int | bool) -> str:
    buffer = io.BytesIO()
    made.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
