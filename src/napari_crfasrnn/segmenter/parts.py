"""Which part of a plane the CRF sees at a time."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, TypeVar

from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn.edits import Box
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.plane_logits import WHOLE_PIXELS

HALO_WIDTHS = 2.0  # how far around a region the CRF looks, in theta_alpha: 2 holds 86 % of the kernel
# In pixels, of kernels that are wider only because the image is large: around a region that somebody waits
# for, and around parts that are to meet without a seam.
_LARGEST_HALO, _LARGEST_OVERLAP = 96, 256
_LEAST_SIDE = 512  # pixels, of a part
HALO_GRID = 32  # pixels; the borders of such crops lie on it, so that neighbouring strokes share one

LIVE_PIXELS = 1 << 20  # while somebody paints on a larger plane, it is refined around the stroke only

Values = TypeVar("Values", Tensor, NDArray[Any])


def takes_whole(plane_shape: tuple[int, int]) -> bool:
    """Return whether a plane is small enough to be refined as a whole after each stroke."""
    return math.prod(plane_shape) <= LIVE_PIXELS


def kernel_reach(model: SegmentationModel, plane_shape: tuple[int, int]) -> float:
    """Return the width of the bilateral kernel on a plane, in pixels."""
    return model.crf.settings.theta_alpha * model.crf_scale(plane_shape)


def with_halo(box: Box, plane_shape: tuple[int, int], model: SegmentationModel) -> Box:
    """Return the part of the plane that matters for a region: the region and what its kernels reach."""
    return grown(box, _halo(model, plane_shape, _LARGEST_HALO), plane_shape)


def parts_of(
    box: Box, plane_shape: tuple[int, int], model: SegmentationModel | None
) -> list[tuple[Box, Box]]:
    """Cut a region into parts that the CRF can see at a time, each with what its kernels reach.

    Without a model, that is without a CRF, into parts alone. A region is not cut if it can be seen as it is.
    """
    window = box if model is None else with_halo(box, plane_shape, model)
    if area(window) <= WHOLE_PIXELS:
        return [(box, window)]
    margin = 0 if model is None else _halo(model, plane_shape, _LARGEST_OVERLAP)
    side = max(math.isqrt(WHOLE_PIXELS) - 2 * (margin + HALO_GRID - 1 if margin else 0), _LEAST_SIDE)
    rows, columns = (
        [start + (end - start) * i // count for i in range(count + 1)]
        for start, end in ((box[0], box[2]), (box[1], box[3]))
        for count in [-(-(end - start) // side)]
    )
    parts = [(y0, x0, y1, x1) for y0, y1 in pairwise(rows) for x0, x1 in pairwise(columns)]
    around = [intersection(grown(part, margin, plane_shape), window) if margin else part for part in parts]
    return list(zip(parts, around, strict=True))


def inner(values: Values, part: Box, window: Box) -> Values:
    """Return what values [..., h, w] of a window say of a part of it; a view."""
    (y0, x0, y1, x1), (top, left) = part, window[:2]
    cut: Values = values[..., y0 - top : y1 - top, x0 - left : x1 - left]
    return cut


def _halo(model: SegmentationModel, plane_shape: tuple[int, int], largest: int) -> int:
    reach = HALO_WIDTHS * model.crf.settings.theta_alpha
    return math.ceil(max(reach, min(HALO_WIDTHS * kernel_reach(model, plane_shape), largest)))


def intersection(one: Box, other: Box) -> Box:
    """Return what two boxes have in common, a box without a pixel if that is nothing."""
    y0, x0 = max(one[0], other[0]), max(one[1], other[1])
    return y0, x0, max(y0, min(one[2], other[2])), max(x0, min(one[3], other[3]))


def area(box: Box) -> int:
    """Return the number of pixels of a box."""
    return (box[2] - box[0]) * (box[3] - box[1])


def grown(box: Box, margin: int, plane_shape: tuple[int, int]) -> Box:
    """Return a box with a margin, its borders on the grid, within the plane."""
    y0, x0 = ((start - margin) // HALO_GRID * HALO_GRID for start in box[:2])
    y1, x1 = (-(-(end + margin) // HALO_GRID) * HALO_GRID for end in box[2:])
    return max(y0, 0), max(x0, 0), min(y1, plane_shape[0]), min(x1, plane_shape[1])
