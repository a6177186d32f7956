"""Image files that `read_image` reads back as they were, and labels in the colours of their classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from napari_crfasrnn.palette import Color

IGNORE_COLOR: Color = (224, 224, 192)  # of unlabelled pixels, as PASCAL VOC draws them
_NOT_IN_OME = ("int64", "uint64", "float16")  # OME has no names for them


def label_picture(
    labels: NDArray[Any],  # [H, W], values up to 255
    colors: Sequence[Color],
) -> Image.Image:
    """Return labels as an indexed picture, in the palette of the class table; 255 is unlabelled."""
    picture = Image.fromarray(labels.astype(np.uint8))
    palette = np.zeros((256, 3), np.uint8)
    palette[255] = IGNORE_COLOR
    palette[: len(colors)] = colors
    picture.putpalette(palette.tobytes())
    return picture


def write_plane(folder: Path, name: str, plane: NDArray[Any], axes: str) -> Path:
    """Write one plane of an image without loss, in the kind of file that most programs read, and return it.

    PNG for bytes, grey or in colour, and for a mask of booleans; TIFF for all other types and numbers of
    channels. Booleans in several channels become 0 and 255, as which they count anyway.

    Parameters
    ----------
    folder, name
        Where, and what it is called without suffix.
    plane
        Its values.
    axes
        What its axes are: Y, X and perhaps C, in any order. `open_image` sees the same plane in the file.
    """
    has_alpha = axes[-1] == "C" and plane.shape[-1] == 4  # elsewhere four channels are no colours
    if "C" in axes:
        plane = plane.transpose([axes.index(letter) for letter in "YXC"])
        if plane.shape[-1] == 1:
            plane = plane[..., 0]
    else:
        plane = plane.transpose([axes.index(letter) for letter in "YX"])
    if plane.dtype == bool and plane.ndim == 3:
        plane = np.where(plane, np.uint8(255), np.uint8(0))
    is_colour = plane.ndim == 3 and (plane.shape[-1] == 3 or has_alpha)
    if plane.dtype == bool or (plane.dtype == np.uint8 and (plane.ndim == 2 or is_colour)):
        path = folder / f"{name}.png"
        Image.fromarray(np.ascontiguousarray(plane)).save(path, format="png")
        return path
    path = folder / f"{name}.tif"
    kind = "YX" if plane.ndim == 2 else "YXS" if is_colour else "CYX"
    tifffile.imwrite(
        path,
        np.ascontiguousarray(plane.transpose(2, 0, 1) if kind == "CYX" else plane),
        ome=plane.dtype.name not in _NOT_IN_OME,
        metadata={"axes": kind},
        photometric="rgb" if is_colour else "minisblack",
        compression="zlib",
    )
    return path
