"""Image files: photographs through Pillow, TIFF (stacks, microscopes) through tifffile."""

from __future__ import annotations

import math
import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from napari_crfasrnn.imaging.axes import AXES
from napari_crfasrnn.imaging.deep_png import is_deep_png, read_deep_png

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".jp2",
)  # fmt: skip
WHITE_IS_ZERO, _PALETTE, _CMYK, _YCBCR = 0, 3, 5, 6  # photometric interpretations, TIFF 6.0
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# What the two libraries raise on files that are cut short or damaged.
DAMAGED = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError,
    RuntimeError, struct.error, zlib.error, Image.DecompressionBombError, tifffile.TiffFileError,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class ReadImage:
    """What an image file holds; ``np.asarray`` of it is the array.

    Attributes
    ----------
    array
        The values, in the file's own type.
    axes
        What the axes are, as `open_image` takes them.
    spacing
        Size of a voxel along Z (if any), Y and X in micrometres, where the file says so.
    """

    array: NDArray[Any]
    axes: str
    spacing: tuple[float, ...] | None = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.array, dtype=dtype) if copy else np.asarray(self.array, dtype=dtype)


def read_image(path: str | Path) -> ReadImage:
    """Read an image file.

    Photographs are turned upright by their EXIF orientation, palettes and CMYK become RGB, and
    of a moving GIF the first frame is read. TIFF files may hold stacks; the axes and voxel sizes
    that OME and ImageJ write are used.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no image, is damaged, or is too large to be decoded safely (Pillow's limit,
        about 180 million pixels; TIFF has none).
    PermissionError
        If it must not be read.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"image must be a file, got the folder {path}")
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except FileNotFoundError:
        why = " (a link that leads nowhere)" if path.is_symlink() else ""
        raise FileNotFoundError(f"image file not found: {path}{why}") from None
    except PermissionError:
        raise PermissionError(f"image file must be readable, got no permission for {path}") from None
    if not start:
        raise ValueError(f"image must be a file with contents, got an empty one: {path}")
    try:
        return _read_tiff(path) if start in TIFF_STARTS else _read_photograph(path)
    except UnidentifiedImageError:
        raise ValueError(
            f"image must be a PNG, JPEG, TIFF, BMP, GIF or WebP file, got something else: {path}"
        ) from None
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"image file is damaged or of an unknown kind: {path} ({reason})") from error


def _read_photograph(path: Path) -> ReadImage:
    with warnings.catch_warnings():
        # Pillow warns from half its limit on; a large image is no fault of the user's.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            image.load()
            if is_deep_png(path):
                deep = read_deep_png(path)
                axes = "YXC" if deep.ndim == 3 else "YX"
                orientation = known_orientation(image.getexif().get(ExifTags.Base.Orientation))
                return ReadImage(np.ascontiguousarray(turn_upright(deep, axes, orientation)), axes)
            upright = ImageOps.exif_transpose(image)
            return _from_pillow(upright)


def _from_pillow(image: Image.Image) -> ReadImage:
    if image.mode in ("P", "PA"):  # by way of RGBA, since a palette may hold transparency
        image = image.convert("RGBA").convert("RGB")
    elif image.mode in ("LA", "La"):
        image = image.convert("LA").convert("L")
    elif image.mode not in ("1", "L", "RGB", "RGBA", "F") and not image.mode.startswith("I"):
        image = image.convert("RGB")
    array = np.array(image)
    return ReadImage(array, "YXC" if array.ndim == 3 else "YX")


def _read_tiff(path: Path) -> ReadImage:
    with tifffile.TiffFile(path) as tiff:
        if not tiff.series:
            raise ValueError("it holds no image")
        series = tiff.series[0]
        page = series.keyframe
        check_promise(series.nbytes, path)
        if page.photometric in (_CMYK, _YCBCR) or not can_decompress(page.compression):
            array, axes = _name_axes(*_tiff_pages(path, tuple(series.shape), series.axes))
            if page.dtype is not None and array.dtype.itemsize < page.dtype.itemsize:
                raise ValueError(
                    f"its colours of {page.bitspersample} bits would be cut to 8: save it as RGB without "
                    "compression, or pip install imagecodecs"
                )
        else:
            array, axes = _name_axes(series.asarray(), series.axes)
            if page.photometric == WHITE_IS_ZERO and array.dtype.kind in "bu":
                array = ~array if array.dtype == bool else np.iinfo(array.dtype).max - array
            elif page.photometric == _PALETTE and page.colormap is not None and "C" not in axes:
                colors = (page.colormap >> 8).astype(np.uint8)  # [3, entries]
                array, axes = np.moveaxis(colors[:, array], 0, -1), axes + "C"
            orientation = page.tags.get("Orientation")
            if orientation is not None:  # Pillow does this by itself
                array = turn_upright(array, axes, known_orientation(orientation.value))
        if array.size == 0:
            raise ValueError("it holds no pixels")
        return ReadImage(np.ascontiguousarray(array), axes, _spacing(tiff, axes))


def check_promise(n_bytes: int, path: Path) -> None:
    """Refuse a header that promises more than deflate, which packs 1:1032 at best, makes of the file."""
    if n_bytes > max(2**30, 1100 * path.stat().st_size):
        raise ValueError(f"its header promises {n_bytes / 2**30:.0f} GiB, which are not there")


def can_decompress(compression: int) -> bool:
    """Tell whether tifffile decodes it: more than deflate takes a package that we do not ask for."""
    return compression in (1, 8, 32946) or find_spec("imagecodecs") is not None


def _tiff_pages(path: Path, shape: tuple[int, ...], axes: str) -> tuple[NDArray[Any], str]:
    """Read the pages of a TIFF file through Pillow, which knows more compressions, fewer pixel types."""
    pages: list[ReadImage] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as image:
                for number in range(getattr(image, "n_frames", 1)):
                    image.seek(number)
                    page = _from_pillow(image)
                    if pages and page.array.shape != pages[0].array.shape:
                        break  # a thumbnail, or a smaller level of a pyramid
                    pages.append(page)
        except UnidentifiedImageError:
            raise ValueError(
                "its compression takes the package imagecodecs: pip install imagecodecs"
            ) from None
    stack = np.stack([page.array for page in pages])
    if stack.size == math.prod(shape) and stack.shape[1:] == shape[1 - stack.ndim :]:
        return stack.reshape(shape), axes
    return (stack[0], pages[0].axes) if len(pages) == 1 else (stack, "Z" + pages[0].axes)


def _name_axes(array: NDArray[Any], axes: str) -> tuple[NDArray[Any], str]:
    """Turn tifffile's axes into ours: S (samples) is C, and what has no name is a stack."""
    if "S" in axes:
        if "C" in axes and array.shape[axes.index("C")] > 1:  # channels of colour: all are channels
            array = np.moveaxis(array, [axes.index("C"), axes.index("S")], [-2, -1])
            rest = axes.replace("C", "").replace("S", "")
            return _name_axes(array.reshape(*array.shape[:-2], -1), rest + "C")
        if "C" in axes:
            array, axes = array.squeeze(axes.index("C")), axes.replace("C", "")
        array = np.moveaxis(array, axes.index("S"), -1)  # planes of colour last, as in a photograph
        axes = axes.replace("S", "") + "C"
    for place in reversed(range(len(axes))):
        if axes[place] not in AXES and array.shape[place] == 1:
            array, axes = array.squeeze(place), axes[:place] + axes[place + 1 :]
    for letter in [letter for letter in axes if letter not in AXES]:
        free = next((name for name in "ZT" if name not in axes), None)
        if free is None:
            raise ValueError(f"its axes {axes} are not known")
        axes = axes.replace(letter, free)
    return array, axes


def known_orientation(value: Any) -> int:
    """Return what a file says of its orientation, 1 to 8; 1 where it says nothing that TIFF or EXIF know."""
    return int(value) if value in range(1, 9) else 1


def turn_upright(array: NDArray[Any], axes: str, orientation: int) -> NDArray[Any]:
    """Undo an orientation of TIFF 6.0 (page 36): 1 is upright, 5 to 8 have rows and columns swapped."""
    y, x = axes.index("Y"), axes.index("X")
    if orientation >= 5:
        array = np.swapaxes(array, y, x)
    if orientation in (3, 4, 7, 8):
        array = np.flip(array, y)
    if orientation in (2, 3, 6, 7):
        array = np.flip(array, x)
    return array


_MICROMETRES = {
    "": 1.0, "pixel": None, "nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0,
    "mm": 1e3, "cm": 1e4, "m": 1e6, "inch": 25400.0, "\\u00b5m": 1.0, "\\u00B5m": 1.0,
}  # fmt: skip


def _spacing(tiff: tifffile.TiffFile, axes: str) -> tuple[float, ...] | None:
    """Return the voxel size in micrometres, if OME or ImageJ wrote it for every axis in space."""
    size: dict[str, float | None] = {}
    if tiff.ome_metadata:
        size = _ome_sizes(tiff.ome_metadata)
    elif tiff.imagej_metadata:
        unit = _MICROMETRES.get(str(tiff.imagej_metadata.get("unit", "pixel")))
        if unit is not None:
            size = {letter: _per_pixel(tiff, letter, unit) for letter in "YX"}
            z = tiff.imagej_metadata.get("spacing")
            size["Z"] = None if z is None else abs(float(z)) * unit
    found = [size.get(letter) for letter in axes if letter in "ZYX"]
    known = tuple(value for value in found if value is not None and 0 < value < float("inf"))
    return known if len(known) == len(found) else None


def _per_pixel(tiff: tifffile.TiffFile, letter: str, unit: float) -> float | None:
    tag = tiff.pages.first.tags.get(f"{letter}Resolution")
    if tag is None or not tag.value[0]:
        return None
    pixels, length = tag.value
    return float(length) / float(pixels) * unit


def _ome_sizes(xml: str) -> dict[str, float | None]:
    root = ElementTree.fromstring(re.sub(r"^<\?xml[^>]*\?>", "", xml.strip()))
    pixels = next((element for element in root.iter() if element.tag.endswith("}Pixels")), None)
    if pixels is None:
        return {}
    sizes: dict[str, float | None] = {}
    for letter in "ZYX":
        value = pixels.get(f"PhysicalSize{letter}")
        unit = _MICROMETRES.get(pixels.get(f"PhysicalSize{letter}Unit", "µm"))
        sizes[letter] = float(value) * unit if value and unit else None
    return sizes
