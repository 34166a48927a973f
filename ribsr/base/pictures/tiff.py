"""TIFF, by tifffile and imagecodecs. Pillow keeps 8 of 16 bits, and its libtiff writes to the terminal what it finds
odd."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

from ribsr.base.pictures.by_pillow import from_cmyk
from ribsr.base.pictures.found import INCHES, PRIVATE, Allow, Found
from ribsr.base.pictures.picture import Colour, Picture, PictureError
from ribsr.base.sizes import Size

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}
"""Photometric interpretation → channels."""

_DEEP = (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB)
"""Those that are read with 16 bits."""

_NAMES = {4: "is a transparency mask", 8: "is CIELAB", 9: "is CIELAB", 10: "is CIELAB", 32803: "is a camera's raw data"}
_OLD_JPEG, _JPEG = 6, (7, 34892)
_COEFFICIENTS = (299, 1000, 587, 1000, 114, 1000)
_REFERENCE = (0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1)
"""What YCbCr means where a file does not say, and in JPEG."""

_ASSOCIATED, _STRAIGHT = 1, 2
_TOLD = {
    34665: "EXIF",
    34853: "EXIF",
    700: "XMP",
    33723: "IPTC",
    34377: "Photoshop's data",
    37724: "Photoshop's data",
    330: "more pictures",
    **dict.fromkeys((33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113), "geographic data"),
    301: "a transfer function",
    318: "primaries",
    319: "primaries",
    **dict.fromkeys((269, 270, 271, 272, 285, 305, 306, 315, 316, 33432), "text"),
}
"""Tags that are not carried over, and what the user calls them."""

_MOST_PAGES = 1000

_PRIVATE, _READ = 32768, (32995, 32996, 32997, 32998, 34675)
"""From here on tags are private ones; of those these are read, here or by tifffile."""


def read_tiff(file: BinaryIO, allow: Allow) -> Found:
    """Gray, RGB and alpha of 8 and 16 bits; gray of fewer, palettes, CMYK with a profile, YCbCr. Raises PictureError:
    several pages, kinds and depths that are not supported, damaged, too large."""
    import tifffile

    with tifffile.TiffFile(file) as tiff:
        page, previews = _only_page(tiff)
        bits, alpha = _check_kind(page)
        size, channels = Size(page.imagelength, page.imagewidth), page.samplesperpixel
        if page.photometric == _PALETTE:
            channels, bits = 3, 16
        allow(size, channels, max(bits, 8))
        if page.is_tiled:  # a tile is decoded as a whole
            allow(Size(page.tilelength, page.tilewidth), channels, max(bits, 8))
        if not all(page.databytecounts):
            raise PictureError("damaged or unreadable (parts of the picture are missing)")
        colour, dropped = _colour(page), (*previews, *_dropped(page))
        planes = page.asarray(squeeze=False, maxworkers=1)[:, 0]  # [planes, H, W, channels of each]
        stored = planes.transpose(1, 2, 0, 3).reshape(*planes.shape[1:3], -1)
        if page.photometric == _CMYK:
            image = Image.fromarray(np.ascontiguousarray(stored), "CMYK")
            pixels, colour = np.asarray(from_cmyk(image, colour.icc_profile)), replace(colour, icc_profile=None)
        else:
            pixels = _shown(page, stored, alpha)
        return Found(pixels, colour, _tag(page, 274, 1), dropped)


def _dropped(page: TiffPage) -> list[str]:
    """What is not carried over."""
    told = [name for code, name in _TOLD.items() if code in page.tags]
    others = [tag.code for tag in page.tags if tag.code >= _PRIVATE and tag.code not in (*_READ, *_TOLD)]
    return [*told, *([PRIVATE] if others else [])]


def _tag(page: TiffPage, code: int, default: Any) -> Any:
    tag = page.tags.get(code)
    return default if tag is None else tag.value


def _only_page(tiff: TiffFile) -> tuple[TiffPage, list[str]]:
    """The first page, and what is said of its previews. Raises PictureError where another page is no preview."""
    found: dict[int, TiffPage] = {}
    for page in tiff.pages:  # tifffile follows them in circles, for ever
        if page.offset in found:
            raise PictureError("damaged or unreadable (its pages lead back to an earlier one)")
        if len(found) == _MOST_PAGES:  # more take minutes
            raise PictureError(f"holds {_MOST_PAGES} pages or more; extract the one that you want")
        found[page.offset] = page.aspage()
    pages = list(found.values())
    if not pages or not min(pages[0].shape, default=0):
        raise PictureError("damaged or unreadable (it has no page)")
    whole = [page for page in pages if not _tag(page, 254, 0) & 5]  # smaller, or a mask
    more = (tiff.imagej_metadata or {}).get("images", 1) if tiff.is_imagej else 1
    if (count := max(len(whole), int(more), pages[0].imagedepth)) > 1:
        raise PictureError(f"holds {count} pictures; extract the one that you want")
    if whole != pages[:1]:
        raise PictureError("its first page is a preview or a mask; extract the picture that you want")
    return pages[0], ["previews"] if len(pages) > 1 else []


def _check_kind(page: TiffPage) -> tuple[int, int | None]:
    """Bits per channel, and which kind of alpha the last channel is, if any. Raises PictureError for other channels."""
    if page.photometric not in _COLOURS:
        name = _NAMES.get(int(page.photometric), f"is of a kind that is not supported (TIFF's {page.photometric})")
        raise PictureError(f"{name}; convert it to RGB")
    bits = _tag(page, 258, 1)
    depths = set(bits) if isinstance(bits, tuple) else {bits}
    formats = _tag(page, 339, 1)
    if not set(formats if isinstance(formats, tuple) else (formats,)) <= {1, 4}:
        raise PictureError("has floating-point or signed numbers; convert it to 16 bits")
    if len(depths) > 1 or not depths <= {1, 2, 4, 8, 16}:
        raise PictureError(f"has {', '.join(map(str, sorted(depths)))} bits per channel; convert it to 16 bits")
    extra = page.samplesperpixel - _COLOURS[page.photometric]
    if extra not in (0, 1):
        raise PictureError(f"has {page.samplesperpixel} channels; keep gray, RGB and one alpha channel at most")
    kinds = _tag(page, 338, (_STRAIGHT,))  # old files name none
    kind = int(kinds[0] if isinstance(kinds, tuple) else kinds)
    if extra and (kind not in (_ASSOCIATED, _STRAIGHT) or page.photometric not in _DEEP):
        raise PictureError("has a channel besides its colours that is no alpha channel; remove it")
    if depths == {16} and page.photometric not in _DEEP:
        raise PictureError("has 16 bits per channel, and is neither gray nor RGB; convert it to RGB")
    _check_coding(page)
    return max(depths), kind if extra else None


def _check_coding(page: TiffPage) -> None:
    """Raises PictureError for what is compressed, or says its colours, in a way that is not supported."""
    if page.compression == _OLD_JPEG:
        raise PictureError("is compressed as TIFF's old JPEG; convert it to another compression")
    if page.photometric == _CMYK and _tag(page, 332, 1) != 1:
        raise PictureError("has inks other than CMYK; convert it to RGB")
    if page.photometric == _YCBCR and page.compression not in _JPEG:
        said = (_tag(page, 530, (2, 2)), _tag(page, 529, _COEFFICIENTS), _tag(page, 532, _REFERENCE))
        if said != ((1, 1), _COEFFICIENTS, _REFERENCE):
            raise PictureError("is YCbCr of a kind that is not supported; convert it to RGB")


def _shown(page: TiffPage, stored: np.ndarray, alpha: int | None) -> np.ndarray:
    """Numbers in the file → pixels as in `Picture`."""
    bits = page.bitspersample
    if page.photometric == _PALETTE:
        return _palette(page)[stored[..., 0]]
    if page.photometric == _YCBCR and page.compression not in _JPEG:
        return np.asarray(Image.fromarray(np.ascontiguousarray(stored), "YCbCr").convert("RGB"))
    pixels = stored.astype(np.uint16 if bits == 16 else np.uint8, copy=False)
    if bits < 8:
        pixels = pixels * np.uint8(255 // (2**bits - 1))
    colours = pixels if alpha is None else pixels[..., :-1]
    if page.photometric == _WHITE_IS_ZERO:
        colours[...] = ~colours
    if alpha == _ASSOCIATED:
        _divide(colours, pixels[..., -1:])
    return pixels if pixels.shape[2] > 1 else pixels[..., 0]


def _palette(page: TiffPage) -> np.ndarray:
    """[numbers, 3], of 8 bits where these say all. TIFF has 16, most writers fill the upper 8, some the lower."""
    colours = np.ascontiguousarray(np.asarray(page.colormap, np.uint16).T)
    upper = colours >> 8
    if colours.max(initial=0) < 256:
        return colours.astype(np.uint8)
    exact = np.array_equal(colours, upper * 257) or np.array_equal(colours, upper * 256)
    return upper.astype(np.uint8) if exact else colours


def _divide(colours: np.ndarray, alpha: np.ndarray) -> None:
    """Takes alpha out of premultiplied colours, in place; black where nothing is seen."""
    full = np.iinfo(colours.dtype).max
    for row, by in zip(colours, alpha, strict=True):  # row by row: in whole numbers of 64 bits it takes much memory
        wide = row.astype(np.int64) * full * 2 + by
        row[...] = np.minimum(np.where(by > 0, wide // np.maximum(2 * by.astype(np.int64), 1), 0), full)


def _colour(page: TiffPage) -> Colour:
    ratios, unit = (_tag(page, 282, None), _tag(page, 283, None)), INCHES.get(_tag(page, 296, 2))
    dpi = None
    if unit and all(isinstance(ratio, tuple) and len(ratio) == 2 and min(ratio) > 0 for ratio in ratios):
        dpi = (unit * ratios[0][0] / ratios[0][1], unit * ratios[1][0] / ratios[1][1])
    return Colour(icc_profile=_tag(page, 34675, None), dpi=dpi)


_LARGEST = 2**32 - 2**25
"""Bytes of pixels that surely fit into a TIFF as all programs know it, whose places in the file have 32 bits."""


def write_tiff(file: BinaryIO, picture: Picture) -> None:
    """uint8 and uint16, all four kinds of channels, with profile and resolution; deflate with a predictor. What may not
    fit into 4 GiB becomes a BigTIFF."""
    import tifffile

    tifffile.imwrite(
        file,
        np.ascontiguousarray(picture.pixels),
        bigtiff=picture.pixels.nbytes > _LARGEST,
        photometric="minisblack" if picture.is_gray else "rgb",
        planarconfig="contig" if picture.channels > 1 else None,
        extrasamples=["unassalpha"] if picture.has_alpha else None,
        compression="zlib",
        compressionargs={"level": 6},
        predictor=True,
        rowsperstrip=max(1, 2**20 // (picture.pixels[0].nbytes)),
        iccprofile=picture.colour.icc_profile,
        resolution=picture.colour.dpi,
        resolutionunit="inch" if picture.colour.dpi else None,
        metadata=None,
        software=False,
        maxworkers=1,
    )
