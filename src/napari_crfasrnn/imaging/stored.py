"""What an image file stores, before anything is coloured or stretched: values, and how its pixels lie."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from napari_crfasrnn.imaging.files import (
    DAMAGED,
    TIFF_STARTS,
    WHITE_IS_ZERO,
    can_decompress,
    check_promise,
    known_orientation,
    turn_upright,
)

_ORIENTATION = 0x0112  # the tag, in TIFF as in EXIF
_GREY_FACTORS = {"L;2": 85, "L;4": 17}  # by which Pillow stretches grey PNG of so many bits to 0..255


@dataclass(frozen=True)
class Header:
    """How the pixels of an image file lie.

    Attributes
    ----------
    stored_size
        Height and width as they are in the file.
    orientation
        1 to 8, of TIFF 6.0 and EXIF: how `read_image` turns them; 1 is upright, 5 to 8 swap rows and columns.
    """

    stored_size: tuple[int, int]
    orientation: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width as `read_image` returns them."""
        return self.stored_size[::-1] if self.orientation >= 5 else self.stored_size


@dataclass(frozen=True, eq=False)
class StoredPixels:
    """One plane of the values that a file stores, upright.

    Attributes
    ----------
    values
        ``[H, W]`` of any type, a palette's indices where there is one; or colours, ``uint8 [H, W, 3]``.
    orientation
        By what the file says of itself they were turned, as in `Header`.
    """

    values: NDArray[Any]
    orientation: int


def read_header(path: Path) -> Header:
    """Return how the pixels of an image file lie, without reading them.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no image, or damaged.
    """
    with _named(path):
        if _is_tiff(path):
            with tifffile.TiffFile(path) as tiff:
                page = tiff.series[0].keyframe
                return Header((page.imagelength, page.imagewidth), _orientation_of_page(page))
        with Image.open(path) as image:
            return Header((image.height, image.width), _orientation_of(image))


def read_stored(path: Path) -> StoredPixels:
    """Read the values of one plane as they are stored: what a palette or colour table shows does not count.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no image, damaged, of several planes, or stores neither one value for each pixel nor 8-bit
        RGB(A).
    """
    with _named(path):
        return _read_tiff(path) if _is_tiff(path) else _read_with_pillow(path)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say in one sentence which file cannot be read, and why."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except (FileNotFoundError, PermissionError):
        raise
    except UnidentifiedImageError:
        raise ValueError(f"{path} cannot be read: it is no image") from None
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read: {reason}") from error


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in TIFF_STARTS


def _read_tiff(path: Path) -> StoredPixels:
    with tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        page = series.keyframe
        check_promise(series.nbytes, path)
        sizes = [size for letter, size in zip(series.axes, series.shape, strict=True) if letter not in "YXS"]
        n_planes = int(np.prod(sizes)) if len(tiff.series) == 1 else len(tiff.pages)
        if n_planes > 1:
            raise ValueError(f"it holds {n_planes} planes; save one of them alone")
        if page.photometric == WHITE_IS_ZERO:
            raise ValueError("its values are stored inverted (WhiteIsZero); save it as BlackIsZero")
        if not can_decompress(page.compression):
            try:
                return _read_with_pillow(path)
            except UnidentifiedImageError:
                raise ValueError("its compression takes the package imagecodecs: pip install it") from None
        axes = "".join(letter for letter in series.axes if letter in "YXS")
        values = series.asarray().reshape([series.shape[series.axes.index(letter)] for letter in axes])
        if "S" in axes:
            values, axes = np.moveaxis(values, axes.index("S"), -1), "YXS"
            if values.dtype != np.uint8 or values.shape[-1] not in (3, 4):
                raise ValueError(f"its colours are {values.shape[-1]} of {values.dtype}; save 8-bit RGB")
            values = values[..., :3]
        orientation = _orientation_of_page(page)
        return StoredPixels(turn_upright(values, axes, orientation), orientation)


def _read_with_pillow(path: Path) -> StoredPixels:
    with Image.open(path) as image:
        orientation = _orientation_of(image)
        factor = _GREY_FACTORS.get(str(image.tile[0][3]), 1) if image.format == "PNG" else 1
        image.load()  # which turns a TIFF file
        n_frames = getattr(image, "n_frames", 1)
        if n_frames > 1:
            raise ValueError(f"it holds {n_frames} frames; save one of them alone")
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("RGB", "RGBA"):
            upright = upright.convert("RGB")
        elif upright.mode not in ("P", "L") and not upright.mode.startswith("I"):
            raise ValueError(f"its pixels are of the kind {upright.mode}; save 8-bit values, or RGB")
        return StoredPixels(np.array(upright) // factor, orientation)


def _orientation_of(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would read all of it, to see whether EXIF comes after the pixels
    return known_orientation(image.getexif().get(_ORIENTATION))


def _orientation_of_page(page: Any) -> int:
    tag = page.tags.get(_ORIENTATION)
    return 1 if tag is None else known_orientation(tag.value)
