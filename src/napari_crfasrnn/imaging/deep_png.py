"""PNG files with 16 bits per channel and more than one channel, of which Pillow gives the upper 8 bits.

A 10-bit picture in such a file would come out black. Pillow's decoder undoes compression, filters
and interlacing, and takes the byte of each value that it is asked for: the two bytes are read in turn.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB, _GREY_ALPHA, _RGBA = 2, 4, 6  # colour types, PNG specification 11.2.1


def is_deep_png(path: Path) -> bool:
    """Tell whether a file is a PNG of 16 bits with several channels; one channel Pillow reads in full."""
    with path.open("rb") as file:
        start = file.read(26)
    is_png = len(start) == 26 and start.startswith(_SIGNATURE)
    return is_png and start[24] == 16 and start[25] in (_RGB, _GREY_ALPHA, _RGBA)


def read_deep_png(path: Path) -> NDArray[np.uint16]:
    """Read such a file, which Pillow has found to be whole, as ``[H, W, 3 or 4]``, or grey as ``[H, W]``."""
    content = path.read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    color, interlaced = content[25], content[28]
    packed = _image_data(content)

    def decoded(mode: str, raw_mode: str) -> NDArray[np.uint16]:
        image = Image.frombytes(mode, (width, height), packed, "zip", raw_mode, interlaced)
        return np.asarray(image).astype(np.uint16)

    if color == _GREY_ALPHA:  # four bytes a pixel, as RGBA of 8 bits has: grey and alpha, upper byte first
        pairs = decoded("RGBA", "RGBA")
        return pairs[..., 0] << np.uint16(8) | pairs[..., 1]
    mode = "RGB" if color == _RGB else "RGBA"
    # Of values stored with the lower byte first ("L") the second byte is the upper one: here, the lower one.
    return decoded(mode, f"{mode};16B") << np.uint16(8) | decoded(mode, f"{mode};16L")


def _image_data(content: bytes) -> bytes:
    parts = []
    place = len(_SIGNATURE)
    while place + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        if kind == b"IDAT":
            parts.append(content[place + 8 : place + 8 + length])
        place += length + 12  # with the length, the kind and a checksum
    return b"".join(parts)
