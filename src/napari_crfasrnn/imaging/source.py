"""Any numeric array as a series of planes ``[C, H, W]`` with values 0..255.

Which input values become 0 and 255:

- **bool and uint8**: as they are (True is 255).
- **floating point within 0..1**: 0 and 1, for RGB, so that a photograph converted to floating
  point gives what it gave as bytes; for one channel only when the image makes use of that range (its
  99.9th percentile is at least 0.5), since a microscope's counts divided by 65535 do not.
- **anything else** (signed and wide integers, other floating point): the 0.1th and the 99.9th
  percentile, or the extremes where these two are equal. Values beyond them are clipped.

The range belongs to the whole source: the planes of a stack stay comparable. The three channels of an
RGB image share one range, which keeps their hue; two, four or more channels are fluorescence-like
and have one each. It is read off at most 16 planes, evenly spaced, and about a million pixels of
them, so that opening an array that does not fit in memory stays cheap.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from napari_crfasrnn.imaging.axes import guess_axes, parse_axes

LOW_PERCENTILE = 0.1
HIGH_PERCENTILE = 99.9
SAMPLE_PLANES = 16
SAMPLE_PIXELS = 2**20
FULL_RANGE_PERCENTILE_VALUE = 0.5  # a grey image that reaches it makes use of the range 0..1


class ArrayLike(Protocol):
    """What `open_image` asks of an array: NumPy, dask, zarr, h5py and xarray have it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""

    def __getitem__(self, key: Any, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class _Range:
    """Which values become 0 and 255, for each channel, and what stands in for NaN and infinity."""

    low: NDArray[np.float64]  # [C]
    high: NDArray[np.float64]  # [C]
    fill: NDArray[np.float64]  # [C] the least finite value


@dataclass(frozen=True, eq=False)
class ImageSource:
    """An image, plane by plane; made by `open_image`.

    Attributes
    ----------
    axes
        What the axes of the array are, in its own order (`parse_axes`).
    stack_shape
        Sizes of the T and Z axes, in the array's order; ``()`` for a single plane.
    plane_shape
        Height and width in pixels.
    n_channels
        Channels of a plane; an alpha channel does not count.
    spacing
        Size of a voxel along the Z (if any), Y and X axis, in the array's order, or None.
    n_nonfinite
        Values that were NaN or infinite in the planes looked at (all of them, up to 16; see `is_counted`).
    """

    axes: str
    stack_shape: tuple[int, ...]
    plane_shape: tuple[int, int]
    n_channels: int
    spacing: tuple[float, ...] | None
    n_nonfinite: int
    _array: ArrayLike
    _range: _Range | None

    @property
    def is_counted(self) -> bool:
        """Whether ``n_nonfinite`` is of all planes; else there may be more in those not looked at."""
        return math.prod(self.stack_shape) <= SAMPLE_PLANES

    def indices(self) -> Iterator[tuple[int, ...]]:
        """Yield the index of every plane, the last axis of the stack running fastest."""
        return product(*(range(size) for size in self.stack_shape))

    def check_index(self, index: int | Sequence[int]) -> tuple[int, ...]:
        """Return the index of a plane as a tuple of integers.

        Raises
        ------
        TypeError
            If it does not consist of integers.
        ValueError
            If it has another length than ``stack_shape`` or lies outside.
        """
        try:
            parts = tuple(index) if isinstance(index, Iterable) else (index,)
            checked = tuple(operator.index(part) for part in parts)
        except TypeError:
            raise TypeError(f"index must be a tuple of integers, got {index!r}") from None
        if len(checked) != len(self.stack_shape) or not all(
            0 <= part < size for part, size in zip(checked, self.stack_shape, strict=True)
        ):
            raise ValueError(f"index must lie within a stack of shape {self.stack_shape}, got {checked}")
        return checked

    def plane(self, index: int | Sequence[int] = ()) -> NDArray[np.float32]:
        """Return one plane as a new array ``[C, H, W]`` of values 0..255.

        NaN and infinity become the least finite value of the source.
        """
        raw = _read_plane(self._array, self.axes, self.check_index(index))
        if self._range is None:
            plane = raw.astype(np.float32, order="C")
            return plane * np.float32(255) if raw.dtype == bool else plane
        return _rescale(raw, self._range)


def open_image(
    array: Any, axes: str | None = None, spacing: float | Sequence[float] | None = None
) -> ImageSource:
    """Open an array as an image; nothing is copied, and the array is never written to.

    Parameters
    ----------
    array
        Any numeric array: NumPy of any layout and byte order, or anything with ``shape``, ``dtype``
        and indexing (dask, zarr, h5py), of which one plane at a time is loaded.
    axes
        What its axes are, such as ``"YX"``, ``"YXC"``, ``"ZYX"``; None guesses (`guess_axes`).
        Four channels in the last axis are RGBA, whose alpha is dropped; elsewhere they are four
        channels like any others.
    spacing
        Size of a voxel, one number for all or one for each of Z, Y and X in the array's order.

    Raises
    ------
    TypeError
        If the array's values are not numbers (complex numbers count as none).
    ValueError
        If the array is empty, holds no finite value, or does not fit ``axes`` or ``spacing``.
    """
    source = _as_array(array)
    shape = tuple(int(size) for size in source.shape)
    letters = guess_axes(shape, source.dtype) if axes is None else parse_axes(axes, shape)
    if 0 in shape:
        raise ValueError(f"image must hold at least one pixel, got shape {shape}")
    size = dict(zip(letters, shape, strict=True))
    stack_shape = tuple(size[letter] for letter in letters if letter in "TZ")
    n_channels = 3 if _has_alpha(letters, shape) else size.get("C", 1)
    value_range, n_nonfinite = None, 0
    if source.dtype not in (np.dtype(bool), np.dtype(np.uint8)):
        value_range, n_nonfinite = _find_range(source, letters, stack_shape)
    return ImageSource(
        axes=letters,
        stack_shape=stack_shape,
        plane_shape=(size["Y"], size["X"]),
        n_channels=n_channels,
        spacing=check_spacing(spacing, letters),
        n_nonfinite=n_nonfinite,
        _array=source,
        _range=value_range,
    )


def _as_array(array: Any) -> ArrayLike:
    # Only what has a NumPy dtype is left as it is: a torch tensor has a shape too.
    if not (hasattr(array, "shape") and isinstance(getattr(array, "dtype", None), np.dtype)):
        try:
            array = np.asarray(array)
        except ValueError as error:  # rows of different lengths
            raise ValueError(f"image must be an array of numbers: {error}") from None
    if array.dtype.kind not in "biuf":
        raise TypeError(f"image must hold numbers (bool, integer or floating point), got {array.dtype}")
    source: ArrayLike = array
    return source


def check_spacing(spacing: float | Sequence[float] | None, axes: str) -> tuple[float, ...] | None:
    """Return the size of a voxel along each axis in space; a ValueError says if they do not fit."""
    if spacing is None:
        return None
    n_space = sum(letter in "ZYX" for letter in axes)
    values = tuple(spacing) if isinstance(spacing, Iterable) else (spacing,) * n_space
    checked = tuple(float(value) for value in values)
    if len(checked) != n_space or not all(math.isfinite(v) and v > 0 for v in checked):
        raise ValueError(
            f"spacing must hold {n_space} positive numbers, one for each axis in space of {axes!r}, "
            f"got {spacing}"
        )
    return checked


def _has_alpha(axes: str, shape: tuple[int, ...]) -> bool:
    return axes[-1] == "C" and shape[-1] == 4


def _read_plane(array: ArrayLike, axes: str, index: tuple[int, ...]) -> NDArray[Any]:
    """Load one plane as ``[C, H, W]``, without alpha."""
    at = iter(index)
    key = tuple(next(at) if letter in "TZ" else slice(None) for letter in axes)
    plane = np.asarray(array[key])
    if plane.dtype.kind == "f" and plane.dtype.itemsize > 8:
        with np.errstate(over="ignore"):  # what float64 cannot hold is infinite from here on
            plane = plane.astype(np.float64)
    if _has_alpha(axes, tuple(array.shape)):
        plane = plane[..., :3]
    left = [letter for letter in axes if letter not in "TZ"]
    if "C" not in left:
        plane, left = plane[np.newaxis], ["C", *left]
    return plane.transpose([left.index(letter) for letter in "CYX"])


def _rescale(raw: NDArray[Any], value_range: _Range) -> NDArray[np.float32]:
    # Half of everything, because the distance of two float64 values need not be one.
    low, high, fill = (
        0.5 * part[:, None, None] for part in (value_range.low, value_range.high, value_range.fill)
    )
    plane = raw.astype(np.float64, order="C")
    plane *= 0.5
    if raw.dtype.kind == "f":
        plane = np.where(np.isfinite(plane), plane, fill)
    span = high - low
    np.clip(plane, low, high, out=plane)
    plane -= low
    plane /= np.where(span > 0, span, 1.0)
    plane *= 255.0
    return plane.astype(np.float32)


def _find_range(array: ArrayLike, axes: str, stack_shape: tuple[int, ...]) -> tuple[_Range, int]:
    """Return the range of values of the whole source, and how many values of it were not finite."""
    sample, low, high, n_nonfinite = _sample(array, axes, stack_shape)
    n_channels = len(sample)
    if n_channels == 3:  # one range for all keeps the hue
        sample = [np.concatenate(sample)]
        low, high = low.min(keepdims=True), high.max(keepdims=True)
    if not np.isfinite(low).any():
        raise ValueError("image must hold at least one finite value, got only NaN or infinity")
    # A channel without a finite value is constant, whatever its range.
    low, high = (np.where(np.isfinite(part), part, 0.0) for part in (low, high))

    fill = low.copy()
    # Of the halves, because the distance of two float64 values need not be one.
    percentiles = [
        2.0 * np.percentile(0.5 * values, [LOW_PERCENTILE, HIGH_PERCENTILE]) if values.size else np.zeros(2)
        for values in sample
    ]
    for channel, (lower, upper) in enumerate(percentiles):
        unit = array.dtype.kind == "f" and low[channel] >= 0 and high[channel] <= 1
        if unit and (n_channels == 3 or (n_channels == 1 and upper >= FULL_RANGE_PERCENTILE_VALUE)):
            low[channel], high[channel] = 0.0, 1.0
        elif lower < upper:
            low[channel], high[channel] = lower, upper
    return _Range(*(np.broadcast_to(part, (n_channels,)) for part in (low, high, fill))), n_nonfinite


def _sample(
    array: ArrayLike, axes: str, stack_shape: tuple[int, ...]
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64], NDArray[np.float64], int]:
    """Look at some planes: finite values of each channel, extremes, number of other values."""
    n_planes = math.prod(stack_shape)
    chosen = np.unique(np.linspace(0, n_planes - 1, min(n_planes, SAMPLE_PLANES)).round().astype(int))
    others = np.setdiff1d(np.arange(n_planes), chosen)
    values: list[list[NDArray[np.float64]]] = []
    extremes = []
    n_nonfinite, seen_finite = 0, False
    for place, number in enumerate([*chosen, *others]):
        if place >= len(chosen) and seen_finite:
            break
        index = tuple(int(i) for i in np.unravel_index(number, stack_shape)) if stack_shape else ()
        plane = _read_plane(array, axes, index)
        finite = np.isfinite(plane) if plane.dtype.kind == "f" else np.ones(plane.shape, bool)
        n_nonfinite += int(finite.size - np.count_nonzero(finite))
        seen_finite = seen_finite or bool(finite.any())
        step = math.isqrt(max(len(chosen) * plane[0].size // SAMPLE_PIXELS, 1))
        extremes.append([_extremes(plane[c], finite[c]) for c in range(len(plane))])
        values.append(
            [
                plane[c, ::step, ::step][finite[c, ::step, ::step]].astype(np.float64)
                for c in range(len(plane))
            ]
        )
    lowest, highest = np.array(extremes).transpose(2, 0, 1)  # each [planes, C]
    per_channel = [np.concatenate(parts) for parts in zip(*values, strict=True)]
    return per_channel, lowest.min(axis=0), highest.max(axis=0), n_nonfinite


def _extremes(plane: NDArray[Any], finite: NDArray[np.bool_]) -> tuple[float, float]:
    values = plane if finite.all() else plane[finite]
    if values.size == 0:
        return math.inf, -math.inf
    return float(values.min()), float(values.max())
