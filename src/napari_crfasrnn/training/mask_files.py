"""From the file of a mask to the label values of the pixels of its image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_crfasrnn.imaging import IGNORE_COLOR, read_header, read_stored, turn_upright

IGNORE = 255


def read_mask(
    path: Path, image_path: Path, colors: Sequence[tuple[int, int, int]]
) -> NDArray[np.uint8]:  # [H, W]
    """Read the label values of a mask file as they lie on its image.

    Parameters
    ----------
    path, image_path
        The mask, and its image, of which the header is read.
    colors
        Of the values, for masks that hold colours.

    Raises
    ------
    ValueError
        If the mask is damaged, holds anything else than values of 0 to 255 or these colours, or does not
        lie on the image.
    """
    stored = read_stored(path)
    if stored.values.ndim == 3:
        values = _values_of_colors(stored.values, colors, path)
    else:
        values = _checked(stored.values, path)
    image = read_header(image_path)
    if image.orientation != 1 and stored.orientation == 1:
        fits_stored, fits = values.shape == image.stored_size, values.shape == image.size
        if fits_stored and fits:
            raise ValueError(
                f"{image_path} is turned by its EXIF orientation, {image.orientation}, and the size of its "
                "mask does not tell whether that was drawn on the turned image: save the image upright, "
                "without that entry"
            )
        if fits_stored:
            values = np.ascontiguousarray(turn_upright(values, "YX", image.orientation))
    check_size(values.shape, image.size, path)
    return values


def check_size(shape: tuple[int, ...], image_shape: tuple[int, ...], path: Path) -> None:
    """Refuse a mask that has not the height and width of its image."""
    if shape != image_shape:
        raise ValueError(f"a mask must have the size of its image, {image_shape}, got {shape} in {path}")


def _checked(values: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    if values.dtype.kind not in "ui":
        raise ValueError(
            f"a mask must hold label values or the colours of its classes, got {values.dtype} in {path}: "
            "save 8-bit integers"
        )
    for value in (int(values.min(initial=0)), int(values.max(initial=0))):
        if not 0 <= value <= IGNORE:
            raise ValueError(
                f"a mask must hold values of 0 to {IGNORE}, got {value} in {path}: write {IGNORE} where "
                "nothing is labelled"
            )
    return values.astype(np.uint8)


def _some(colors: Sequence[tuple[int, int, int]]) -> str:
    shown = ", ".join(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in colors[:5])
    return shown if len(colors) <= 5 else f"{shown} and {len(colors) - 5} others"


def _values_of_colors(
    pixels: NDArray[np.uint8],  # [H, W, 3]
    colors: Sequence[tuple[int, int, int]],
    path: Path,
) -> NDArray[np.uint8]:
    """Find the class of each colour; VOC's pale border colour and white are unlabelled."""
    packed = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    known = {IGNORE_COLOR: IGNORE, (255, 255, 255): IGNORE}
    known |= {color: value for value, color in enumerate(colors)}
    value_of = {(r << 16) + (g << 8) + b: value for (r, g, b), value in known.items()}
    present, where = np.unique(packed, return_inverse=True)
    for color in present.tolist():
        if color not in value_of:
            raise ValueError(
                f"a mask in colours must hold those of its classes ({_some(colors)}), got #{color:06x} in "
                f"{path}: save label values instead"
            )
    table = np.array([value_of[color] for color in present.tolist()], np.uint8)
    return table[where].reshape(packed.shape)
