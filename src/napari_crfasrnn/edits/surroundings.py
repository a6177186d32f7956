"""What of a plane is labelled from a few strokes at once, while somebody paints."""

from __future__ import annotations

import math

from napari_crfasrnn.edits.comparison import Box

MOST_PIXELS = 1280 * 1280
MOST_SCORES = 1 << 26  # pixels times classes: four bytes each
SIDE = 1024  # pixels: of what is labelled of a larger plane, at most


def fits_live(shape: tuple[int, int], n_labels: int) -> bool:
    """Return whether so many rows and columns are labelled at once, with so many classes."""
    return math.prod(shape) <= min(MOST_PIXELS, MOST_SCORES // n_labels)


def box_about(box: Box, plane_shape: tuple[int, int], n_labels: int) -> Box:
    """Return what is labelled when a stroke ends: the plane, or of a large one what is around the stroke.

    Parameters
    ----------
    box
        ``(y0, x0, y1, x1)``, the end excluded: what the stroke lies in.
    plane_shape
        Height and width.
    n_labels
        Number of classes; with many of them, less is labelled at once.

    Returns
    -------
    Such a box. A stroke that is too long for it reaches beyond.
    """
    if fits_live(plane_shape, n_labels):
        return (0, 0, *plane_shape)
    side, starts, ends = min(SIDE, math.isqrt(MOST_SCORES // n_labels)), [], []
    for axis, length in enumerate(plane_shape):
        start = min(max(0, (box[axis] + box[axis + 2] - side) // 2), max(0, length - side))
        starts.append(start)
        ends.append(min(length, start + side))
    return starts[0], starts[1], ends[0], ends[1]
