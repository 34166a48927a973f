"""Reading and writing pictures, for engines, training and evaluation alike; nothing is lost in silence."""

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
