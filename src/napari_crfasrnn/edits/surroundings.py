"""What of a plane is labelled from a few strokes at once, while somebody paints."""

from __future__ import annotations

import math

from napari_crfasrnn.edits.comparison import Box

MOST_PIXELS = 1280 * 1280
MOST_SCORES = 1 << 26  # pixels times classes: four bytes each
SIDE = 1024  # pixels: of what is labelled of a larger plane, at most
_LEAST_MARGIN = 128  # pixels from a stroke to the border of that, at least


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


def is_about(place: Box, box: Box, plane_shape: tuple[int, int], n_labels: int) -> bool:
    """Return whether what is labelled about one stroke does for another one, too.

    Parameters
    ----------
    place
        What `box_about` named for the first one.
    box
        What the other one lies in.
    plane_shape, n_labels
        As in `box_about`.
    """
    starts = zip(box[:2], place[:2], strict=True)
    ends = zip(box[2:], place[2:], plane_shape, strict=True)
    has_room = all(border == 0 or at - border >= _LEAST_MARGIN for at, border in starts)
    has_room &= all(border == length or border - at >= _LEAST_MARGIN for at, border, length in ends)
    return has_room or box_about(box, plane_shape, n_labels) == place
