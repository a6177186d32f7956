"""Images as viewers and files hold them, turned into planes of channels with values 0..255.

`open_image` takes any numeric array, whatever its axes, and hands out one plane at a time;
`read_image` reads a file, `read_stored` the label values that one stores; `write_plane` and `label_picture`
are for those that are written.
"""

from __future__ import annotations

from napari_crfasrnn.imaging.axes import AXES, guess_axes, parse_axes
from napari_crfasrnn.imaging.files import IMAGE_SUFFIXES, ReadImage, read_image, turn_upright
from napari_crfasrnn.imaging.source import ImageSource, check_spacing, open_image
from napari_crfasrnn.imaging.stored import Header, StoredPixels, read_header, read_stored
from napari_crfasrnn.imaging.writing import IGNORE_COLOR, label_picture, write_plane

__all__ = [
    "AXES",
    "IGNORE_COLOR",
    "IMAGE_SUFFIXES",
    "Header",
    "ImageSource",
    "ReadImage",
    "StoredPixels",
    "check_spacing",
    "guess_axes",
    "label_picture",
    "open_image",
    "parse_axes",
    "read_header",
    "read_image",
    "read_stored",
    "turn_upright",
    "write_plane",
]
