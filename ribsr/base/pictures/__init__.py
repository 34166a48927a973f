"""Reading and writing pictures, for engines, training and evaluation alike; nothing is lost in silence."""

from ribsr.base.pictures.picture import Colour, Picture, PictureError, to_bytes, to_input, to_pixels
from ribsr.base.pictures.reading import check_source, pictures_in, read_input, read_picture, read_rgb
from ribsr.base.pictures.writing import SUFFIXES, WRITABLE, bytes_to_write, check_output, write_picture

__all__ = [
    "SUFFIXES",
    "WRITABLE",
    "Colour",
    "Picture",
    "PictureError",
    "bytes_to_write",
    "check_output",
    "check_source",
    "pictures_in",
    "read_input",
    "read_picture",
    "read_rgb",
    "to_bytes",
    "to_input",
    "to_pixels",
    "write_picture",
]
