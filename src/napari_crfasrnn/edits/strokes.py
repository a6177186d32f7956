"""Strokes: the connected regions of equal label, and those that contradict the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label as connected_components

from napari_crfasrnn.classes import ignore_value
from napari_crfasrnn.edits.comparison import Box, Labels

MIN_STROKE_PIXELS = 20  # smaller regions are slips of the brush or rims, not statements


@dataclass(frozen=True)
class Contradiction:
    """A labelled region that looks like another class to a model that learnt the others.

    Parameters
    ----------
    label, predicted
        The class that was painted, and the one that most of the region looks like.
    n_pixels
        Size of the region.
    share
        Share of the region that is predicted as another class than the painted one; where `is_learnt`, how
        sure of the other class is what learnt the others alone, 0..1.
    box
        y0, x0, y1, x1 of the region, in pixels, the ends exclusive.
    is_learnt
        Whether a model that was trained on the region, too, sees it as it was painted.
    """

    label: int
    predicted: int
    n_pixels: int
    share: float
    box: Box
    is_learnt: bool = False


def label_regions(
    target: Labels,  # [H, W]
) -> NDArray[np.int64]:  # [H, W]
    """Return the number of each pixel's connected region of equal label, from 1; 0 where unlabelled.

    Strokes of the same class that touch, also at a corner, are one region.
    """
    values = np.where(target == ignore_value(target.dtype), 0, target.astype(np.int64) + 1)
    return np.asarray(connected_components(values, background=0, connectivity=2))


def contradictions(
    target: Labels,  # [H, W]
    prediction: Labels,  # [H, W]
    *,
    min_share: float = 0.5,
) -> tuple[Contradiction, ...]:
    """Return the labelled regions that a prediction made after learning them does not reproduce.

    Two strokes that call the same thing by different names cannot both be learnt: the one with less
    support stays predicted as the other, and is found here with its place.

    Parameters
    ----------
    target
        Painted classes, the ignore value where unlabelled.
    prediction
        What a model that learnt ``target`` predicts for the same plane.
    min_share
        Regions with more than this share of other classes are reported.

    Returns
    -------
    regions
        Largest contradicting area first.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if target.shape != prediction.shape:
        raise ValueError(f"prediction must have the shape of target, {target.shape}, got {prediction.shape}")
    regions = label_regions(target)
    y, x = np.nonzero(regions)
    region = regions[y, x]
    size = np.bincount(region)
    wrong = np.bincount(region, weights=prediction[y, x] != target[y, x])
    suspects = np.flatnonzero((size >= MIN_STROKE_PIXELS) & (wrong > min_share * size))
    found = []
    for number in suspects:
        inside = region == number
        rows, columns = y[inside], x[inside]
        painted = int(target[rows[0], columns[0]])
        seen = np.bincount(prediction[rows, columns])
        seen[painted : painted + 1] = 0
        found.append(
            Contradiction(
                label=painted,
                predicted=int(seen.argmax()),
                n_pixels=int(size[number]),
                share=float(wrong[number] / size[number]),
                box=(int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1),
            )
        )
    return tuple(sorted(found, key=lambda c: -c.n_pixels * c.share))
