"""What it costs a simulated annotator to finish an image by hand: strokes of the brush, and clicks.

A stroke is what the hand does between pressing and letting go: a line of at most `LONGEST` pixels. Errors
are put right one connected region after another, the largest first, as the truth has it (a region: pixels
that are wrong and should be of one class). There are two ways to paint a region:

- a thin one (nowhere wider than `WIDEST_BRUSH` pixels) is painted along its middle with a brush as wide as
  it is: as many strokes as half its outline is long. Such a region may run through the whole image, so it
  is painted piece by piece, where a piece lies in one square of a grid of `PIECE` pixels;
- any other is outlined, and one click fills it: as many strokes as its outline is long. Where it touches the
  border of the image it is closed already.

The hand is perfect: it paints what is wrong and nothing else, whichever tool made the labels.

With a tool that follows the brush there is a third way, tried where the others take more than one stroke: a
single stroke along the middle of the region, its brush up to `WIDEST_BRUSH` pixels wide. If what follows it
puts right half as many pixels as the region has, it stays. Else it is undone, a click, and the region is
painted by hand; that stroke has been drawn all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from annotator import LONGEST, UNLABELLED, Labels, wide_stroke
from numpy.typing import NDArray
from scipy import ndimage

from napari_crfasrnn import metrics

WIDEST_BRUSH = 15  # pixels
PIECE = 64  # pixels
_DIAGONAL = math.pi / 4  # length of an outline, in sides of pixels that it passes
_WORTH = 0.5  # of a region's pixels, put right by a single stroke and what follows it

Follow = Callable[[Labels, Labels, Labels], Labels]
"""Answers strokes: labels [H, W] as they are, all that is painted, and what was before this stroke (both
`UNLABELLED` elsewhere) give the labels that follow."""


@dataclass(frozen=True, eq=False)
class Region:
    """A connected error of one class.

    Attributes
    ----------
    value
        What it should be.
    pixels
        Flat indices.
    strokes, clicks
        What painting it takes.
    """

    value: int
    pixels: NDArray[np.intp]
    strokes: int
    clicks: int


@dataclass
class Effort:
    """Strokes and clicks so far."""

    strokes: int = 0
    clicks: int = 0


def score(mask: Labels, labels: NDArray[np.integer], n_labels: int) -> float:
    """Return the mean IoU over the classes that are in either, as far as the truth is known."""
    return metrics.miou(metrics.confusion(labels, mask, n_labels))


@dataclass(frozen=True, eq=False)
class Guide:
    """A tool that follows the brush.

    Attributes
    ----------
    follow
        What it makes of a stroke.
    painted
        [H, W], all that was painted on the image so far; painting adds to it.
    random
        Draws where the strokes run.
    """

    follow: Follow
    painted: Labels
    random: np.random.Generator


def paint(
    mask: Labels,
    labels: Labels,
    n_labels: int,
    effort: Effort,
    *,
    until: float = 1.0,
    at_most: int | None = None,
    guide: Guide | None = None,
) -> Labels:
    """Return labels whose largest errors were painted over, and add what that took to the effort.

    Parameters
    ----------
    mask
        [H, W], the truth.
    labels
        [H, W], what there is.
    n_labels
        Number of classes.
    effort
        What was done so far.
    until
        Mean IoU at which the image is good enough.
    at_most
        Regions to paint.
    guide
        The tool, if it follows the brush.
    """
    labels = labels.copy()
    left = errors(mask, labels)
    n_painted = 0
    while left and n_painted != at_most and score(mask, labels, n_labels) < until:
        region = left.pop(0)
        n_painted += 1
        if guide is not None and region.strokes > 1:
            followed = _led(mask, labels, region, guide, effort)
            if followed is not None:
                labels = followed
                left = errors(mask, labels)
                continue
        labels.flat[region.pixels] = region.value
        if guide is not None:
            guide.painted.flat[region.pixels] = region.value
        effort.strokes += region.strokes
        effort.clicks += region.clicks
    return labels


def _led(mask: Labels, labels: Labels, region: Region, guide: Guide, effort: Effort) -> Labels | None:
    """Draw one stroke in a region and return the labels that follow; None if they are not worth keeping."""
    inside = np.zeros(mask.shape, bool)
    inside.flat[region.pixels] = True
    stroke = wide_stroke(inside, WIDEST_BRUSH, guide.random)
    before = guide.painted.copy()
    guide.painted[stroke] = region.value
    drawn = np.where(stroke, region.value, labels).astype(np.uint8)
    followed = guide.follow(drawn, guide.painted, before)
    effort.strokes += 1
    known = mask != UNLABELLED
    gained = np.count_nonzero((labels != mask) & known) - np.count_nonzero((followed != mask) & known)
    if gained >= _WORTH * len(region.pixels):
        return followed
    guide.painted[...] = before
    effort.clicks += 1  # Undo
    return None


def errors(mask: Labels, labels: NDArray[np.integer]) -> list[Region]:
    """Return the regions to paint, the largest first."""
    wrong = (labels != mask) & (mask != UNLABELLED)
    found = []
    for value in np.unique(mask[wrong]):
        regions, _ = ndimage.label(wrong & (mask == value))
        for number, box in enumerate(ndimage.find_objects(regions), start=1):
            inside = regions[box] == number
            corner = box[0].start, box[1].start
            if 2 * _depth(inside) <= WIDEST_BRUSH:
                found += [
                    _region(int(value), piece, corner, mask.shape, is_thin=True)
                    for piece in _pieces(inside, corner)
                ]
            else:
                found.append(_region(int(value), inside, corner, mask.shape, is_thin=False))
    found.sort(key=lambda region: (-len(region.pixels), region.pixels[0]))
    return found


def _depth(inside: NDArray[np.bool_]) -> float:
    """Return the largest distance to the border of a region."""
    return float(ndimage.distance_transform_edt(np.pad(inside, 1)).max())


def _pieces(inside: NDArray[np.bool_], corner: tuple[int, int]) -> list[NDArray[np.bool_]]:
    """Return the parts of a region in the squares of a grid; each as a mask of the same shape."""
    rows, columns = (np.arange(n) + start for n, start in zip(inside.shape, corner, strict=True))
    square = (rows // PIECE)[:, None] * (1 + columns[-1] // PIECE) + columns // PIECE
    return [inside & (square == number) for number in np.unique(square[inside])]


def _region(
    value: int, inside: NDArray[np.bool_], corner: tuple[int, int], shape: tuple[int, ...], *, is_thin: bool
) -> Region:
    y, x = np.nonzero(inside)
    pixels = np.ravel_multi_index((y + corner[0], x + corner[1]), shape)
    length = _outline(inside, corner, shape)
    if is_thin:
        return Region(value, pixels, max(1, math.ceil(length / 2 / LONGEST)), 0)
    return Region(value, pixels, max(1, math.ceil(length / LONGEST)), 1)


def _outline(inside: NDArray[np.bool_], corner: tuple[int, int], shape: tuple[int, ...]) -> float:
    """Return the length of a region's outline, in pixels, where it does not lie on the image's border."""
    sides = sum(np.count_nonzero(np.diff(np.pad(inside, 1).astype(np.int8), axis=axis)) for axis in (0, 1))
    (y0, x0), (height, width) = corner, inside.shape
    on_border = [
        inside[0].sum() if y0 == 0 else 0,
        inside[-1].sum() if y0 + height == shape[0] else 0,
        inside[:, 0].sum() if x0 == 0 else 0,
        inside[:, -1].sum() if x0 + width == shape[1] else 0,
    ]
    return float(sides - sum(on_border)) * _DIAGONAL
