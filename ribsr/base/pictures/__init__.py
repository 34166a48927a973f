"""Reading and writing pictures, for engines, training and evaluation alike; nothing is lost in silence.

Kept: all values of 8 and 16 bits, gray, RGB and alpha; what they mean (`Colour`). Refused by name: what has more bits
or channels, several pictures in one file, colours that nothing says (CMYK without a profile). Applied: an orientation.
Dropped, and said in `Picture.dropped`: EXIF, XMP, text and the like.

Who decodes: imagecodecs (libpng, libwebp) and tifffile where Pillow keeps 8 of 16 bits, or has limits and messages of
its own, and for AVIF of more than 8 bits; Pillow for JPEG, BMP, other AVIF and PPM in text; it also writes WebP.
OpenCV, which gives half pictures for files that end too early and takes 150 MB, and pypng, which is Python throughout
and slow, were left out.
"""

from ribsr.base.pictures.by_pillow import from_image, to_image
from ribsr.base.pictures.picture import Colour, Picture, PictureError, to_bytes, to_input, to_pixels
from ribsr.base.pictures.reading import (
    Header,
    check_source,
    pictures_in,
    read_header,
    read_input,
    read_picture,
    read_rgb,
)
from ribsr.base.pictures.writing import (
    SUFFIXES,
    WITH_QUALITY,
    WRITABLE,
    bytes_to_write,
    check_output,
    left_out,
    write_picture,
)

__all__ = [
    "SUFFIXES",
    "WITH_QUALITY",
    "WRITABLE",
    "Colour",
    "Header",
    "Picture",
    "PictureError",
    "bytes_to_write",
    "check_output",
    "check_source",
    "from_image",
    "left_out",
    "pictures_in",
    "read_header",
    "read_input",
    "read_picture",
    "read_rgb",
    "to_bytes",
    "to_image",
    "to_input",
    "to_pixels",
    "write_picture",
]
