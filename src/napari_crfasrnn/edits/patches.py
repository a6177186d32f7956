"""Which square of a plane to correct next: the one the model is least certain of.

One densely corrected square teaches more than strokes on many images, so a person is led from square to
square. A square counts by the uncertainty of those of its pixels that nobody settled yet, over its whole
area: settled pixels make it less urgent, and one that is settled all over is never proposed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_crfasrnn.edits.comparison import Box, Mask

SMALLEST_SIDE, LARGEST_SIDE = 128, 256  # pixels; what fits a screen at a zoom at which one can paint
_SIDES_PER_PLANE = 4  # so that a square of a small image is not the image
_SIDE_STEP = 32  # pixels
_PLACES_PER_SIDE = 8  # squares lie this much of a side apart
_LEVELS = 2**16  # of uncertainty; sums of whole numbers are exact, so that equal squares compare equal


@dataclass(frozen=True)
class Patch:
    """A square of a plane.

    Attributes
    ----------
    box
        (y0, x0, y1, x1), the ends excluded; cut where the plane is smaller than the square.
    uncertainty
        Mean over the square, 0..1, settled pixels counting as certain.
    n_open
        Pixels of it that have an uncertainty and are not settled.
    """

    box: Box
    uncertainty: float
    n_open: int


def patch_side(shape: tuple[int, int]) -> int:
    """Return the side of the squares of a plane of this height and width, 128 to 256 pixels."""
    side = round(max(shape) / _SIDES_PER_PLANE / _SIDE_STEP) * _SIDE_STEP
    return min(max(side, SMALLEST_SIDE), LARGEST_SIDE)


def least_certain_patch(
    uncertainty: NDArray[np.floating],  # [H, W]
    settled: Mask | None = None,  # [H, W]
    *,
    side: int | None = None,
) -> Patch | None:
    """Return the square of a plane that a person should look at next.

    Squares are compared at places an eighth of their side apart, and at the far borders. Of squares
    that are alike, the one with more open pixels wins, then the upper, then the left one.

    Parameters
    ----------
    uncertainty
        Of each pixel, 0..1, such as `Segmentation.entropy` or 1 minus the margin of the two largest
        marginals; NaN where nothing was predicted.
    settled
        Pixels that need no look: verified ones, say.
    side
        Of the square, in pixels; `patch_side` of the plane if not given.

    Returns
    -------
    patch
        None where no pixel is both predicted and open.

    Raises
    ------
    ValueError
        If the uncertainty is no plane or out of range, the shapes differ, or the side is not positive.
    """
    uncertainty = np.asarray(uncertainty)
    if uncertainty.ndim != 2:
        raise ValueError(
            f"uncertainty must be a plane [H, W], got shape {uncertainty.shape}: pass one slice at a time"
        )
    height, width = uncertainty.shape
    if settled is not None and settled.shape != (height, width):
        raise ValueError(
            f"settled must have the shape of uncertainty, {(height, width)}, got {settled.shape}"
        )
    if side is None:
        side = patch_side((height, width))
    if side < 1:
        raise ValueError(f"side must be at least 1 pixel, got {side}")
    is_open = np.isfinite(uncertainty)
    if settled is not None:
        is_open &= ~np.asarray(settled, dtype=bool)
    if not is_open.any():
        return None
    levels = np.where(is_open, uncertainty, 0)
    if levels.min() < 0 or levels.max() > 1:
        raise ValueError(
            f"uncertainty must be from 0 to 1, got {levels.min():.3g} to {levels.max():.3g}: divide "
            "entropies by the logarithm of the number of classes"
        )
    levels = np.rint(levels * (_LEVELS - 1)).astype(np.int64)
    rows, columns = _places(height, side), _places(width, side)
    sums = _sums(levels, rows, columns)
    n_open = _sums(is_open.astype(np.int64), rows, columns)
    order = np.lexsort((np.arange(sums.size), -n_open.ravel(), -sums.ravel()))
    row, column = np.unravel_index(order[0], sums.shape)
    (y0, y1), (x0, x1) = rows[row], columns[column]
    area = int((y1 - y0) * (x1 - x0))
    return Patch(
        box=(int(y0), int(x0), int(y1), int(x1)),
        uncertainty=float(sums[row, column]) / (_LEVELS - 1) / area,
        n_open=int(n_open[row, column]),
    )


def _places(size: int, side: int) -> NDArray[np.int64]:  # [n, 2]
    """Return where the squares begin and end along an axis."""
    if size <= side:
        return np.array([[0, size]])
    starts = np.unique([*range(0, size - side, max(1, side // _PLACES_PER_SIDE)), size - side])
    return np.stack([starts, starts + side], axis=1)


def _sums(
    values: NDArray[np.int64],  # [H, W]
    rows: NDArray[np.int64],  # [n, 2]
    columns: NDArray[np.int64],  # [m, 2]
) -> NDArray[np.int64]:  # [n, m]
    """Return the sums over all squares, by way of strips between the lines where they begin and end."""
    for axis, places in enumerate((rows, columns)):
        lines = np.unique(places)
        strips = np.add.reduceat(values, lines[:-1], axis=axis)
        below = np.concatenate([np.zeros_like(strips.take([0], axis)), strips.cumsum(axis)], axis)
        first, last = np.searchsorted(lines, places.T)
        values = below.take(last, axis) - below.take(first, axis)
    return values
