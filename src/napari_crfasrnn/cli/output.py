"""Label files: written beside their place and renamed, so that none is ever half there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from napari_crfasrnn.imaging import label_picture
from napari_crfasrnn.palette import Color

OVERLAY_OPACITY = 0.5


def save_labels_png(
    path: Path,
    labels: NDArray[Any],  # [H, W], values up to 255
    colors: Sequence[Color],
) -> None:
    """Write the labels of a plane as an indexed PNG, in the palette of the class table."""
    with replacing(path) as temporary:
        label_picture(labels, colors).save(temporary, format="png")


def save_tiff(
    path: Path,
    array: NDArray[Any],  # [*stack, H, W] or [*stack, H, W, 3]
    axes: str,
    spacing: Sequence[float] | None = None,
) -> None:
    """Write labels, values or pictures of a plane or stack as an OME-TIFF with axes and voxel size.

    The axes of pictures end in S. ``spacing`` belongs to those of ``axes`` that are in space, in micrometres.
    """
    metadata: dict[str, Any] = {"axes": axes}
    if spacing is not None:
        for letter, size in zip((a for a in axes if a in "ZYX"), spacing, strict=True):
            metadata |= {f"PhysicalSize{letter}": size, f"PhysicalSize{letter}Unit": "µm"}
    photometric = "rgb" if axes.endswith("S") else "minisblack"
    with replacing(path) as temporary:
        tifffile.imwrite(
            temporary, array, ome=True, metadata=metadata, compression="zlib", photometric=photometric
        )


def save_picture(
    path: Path,
    picture: NDArray[np.uint8],  # [H, W, 3]
) -> None:
    """Write an RGB picture as PNG."""
    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, format="png")


def overlay(
    plane: NDArray[np.float32],  # [C, H, W], 0..255
    labels: NDArray[Any],  # [H, W]
    colors: Sequence[Color],
    *,
    background: int | None = 0,
) -> NDArray[np.uint8]:  # [H, W, 3]
    """Return a picture of the plane with the classes' colours over it.

    The class ``background`` and unlabelled pixels stay clear. Of two channels green and magenta are
    made; of more than three, grey.
    """
    if len(plane) == 2:
        plane = plane[[1, 0, 1]]
    elif len(plane) != 3:
        plane = np.broadcast_to(plane.mean(axis=0), (3, *plane.shape[1:]))
    picture = np.moveaxis(plane, 0, -1).astype(np.float32)
    for value, color in enumerate(colors):
        where = labels == value
        if value != background and where.any():
            picture[where] += OVERLAY_OPACITY * (np.asarray(color, np.float32) - picture[where])
    return picture.round().astype(np.uint8)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file in the same folder, which takes the place of ``path`` at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    """Return what the user takes away from new files; temporary ones are private."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
