"""A simulated annotator: strokes as a person would draw them, from a mask that only the annotator knows.

First look at an image: each class that is visible gets a stroke in up to `REGIONS` of its connected
regions, the larger ones more likely. A stroke starts well inside the region (where the distance to its
border is at least 0.6 of the largest), wanders on with some inertia, keeps away from the border as far
as the region allows, and ends after about twice the root of the region's area, 100 pixels at most. When it
gets stuck, it goes on from its other end. The brush is 3 pixels wide and never leaves the region.

`wandering_strokes` is another annotator, who cares less: to see how much scores owe to the strokes.

Later looks: the largest connected errors of a prediction get a stroke each, of the class they should have.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

UNLABELLED = 255
REGIONS = 4  # of each class, in an image
SMALLEST = 6  # pixels; nobody sees regions below
SHORTEST, LONGEST = 8, 100  # steps of a stroke
INSIDE = 0.6  # of the largest distance to the border: where strokes start
BRUSH = 1  # pixels around the path
WALKS, STEPS, TURN = 3, 60, 0.3  # of each class; at most; radians (deviation) of each step

Labels = NDArray[np.uint8]  # [H, W]


def first_strokes(mask: Labels, random: np.random.Generator, n_regions: int = REGIONS) -> Labels:
    """Return the strokes of somebody who sees an image for the first time: so many in each class at most."""
    labels = np.full(mask.shape, UNLABELLED, np.uint8)
    for value in np.unique(mask[mask != UNLABELLED]):
        regions, _ = ndimage.label(mask == value)
        areas = np.bincount(regions.ravel())
        areas[0] = 0
        visible = np.flatnonzero(areas >= min(SMALLEST, areas.max()))
        chance = np.sqrt(areas[visible])
        n = min(n_regions, len(visible))
        for region in random.choice(visible, n, replace=False, p=chance / chance.sum()):
            draw_stroke(labels, regions == region, value, random)
    return labels


def wandering_strokes(mask: Labels, random: np.random.Generator) -> Labels:
    """Return strokes that begin anywhere in a class, wander, and end where they would leave it."""
    labels = np.full(mask.shape, UNLABELLED, np.uint8)
    height, width = mask.shape
    for value in np.unique(mask[mask != UNLABELLED]):
        places = np.argwhere(mask == value)
        for _ in range(WALKS):
            at = places[random.integers(len(places))].astype(float)
            angle = random.uniform(0, 2 * np.pi)
            for _ in range(STEPS):
                y, x = np.round(at).astype(int)
                if not (0 <= y < height and 0 <= x < width) or mask[y, x] != value:
                    break
                brush = np.s_[max(0, y - BRUSH) : y + BRUSH + 1, max(0, x - BRUSH) : x + BRUSH + 1]
                labels[brush][mask[brush] == value] = value
                angle += random.normal(0, TURN)
                at += np.array([np.sin(angle), np.cos(angle)])
    return labels


def corrections(mask: Labels, prediction: NDArray[np.integer], n: int, random: np.random.Generator) -> Labels:
    """Return strokes in the n largest connected errors of a prediction."""
    labels = np.full(mask.shape, UNLABELLED, np.uint8)
    wrong = (prediction != mask) & (mask != UNLABELLED)
    found = []
    for value in np.unique(mask[wrong]):
        regions, _ = ndimage.label(wrong & (mask == value))
        areas = np.bincount(regions.ravel())[1:]
        found += [(area, int(value), regions == i + 1) for i, area in enumerate(areas) if area >= SMALLEST]
    found.sort(key=lambda error: -error[0])
    for _, value, region in found[:n]:
        draw_stroke(labels, region, value, random)
    return labels


def wide_stroke(region: NDArray[np.bool_], widest: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """Return the pixels of one stroke along the middle of a region, the brush as wide as fits in there.

    Parameters
    ----------
    region
        [H, W].
    widest
        Diameter of the largest brush, in pixels.
    """
    depth, path = _path(region, widest // 2, random)
    y, x = np.round(path).astype(int).T
    radius = max(min(float(np.median(depth[y, x])), widest / 2), 1.0)
    off = np.ones(region.shape, bool)
    off[y, x] = False
    stroke: NDArray[np.bool_] = region & (ndimage.distance_transform_edt(off) < radius)
    return stroke


def draw_stroke(labels: Labels, region: NDArray[np.bool_], value: int, random: np.random.Generator) -> None:
    """Draw a stroke of a class into a region [H, W]."""
    for y, x in np.round(_path(region, BRUSH, random)[1]).astype(int):
        brush = np.s_[max(0, y - BRUSH) : y + BRUSH + 1, max(0, x - BRUSH) : x + BRUSH + 1]
        labels[brush][region[brush]] = value


def _path(
    region: NDArray[np.bool_], radius: float, random: np.random.Generator
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """Return how far each pixel is from the border of a region [H, W], and places of a stroke's middle."""
    depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    n_steps = int(np.clip(2 * np.sqrt(region.sum()), SHORTEST, LONGEST))
    starts = np.argwhere(depth >= INSIDE * depth.max())
    start = starts[random.integers(len(starts))].astype(float)
    angle = random.uniform(0, 2 * np.pi)
    path = [start, *_walk(depth, start, angle, n_steps, radius, random)]
    if len(path) < n_steps:
        path += _walk(depth, start, angle + np.pi, n_steps - len(path), radius, random)
    return depth, path


def _walk(
    depth: NDArray[np.float64],
    start: NDArray[np.float64],
    angle: float,
    n: int,
    radius: float,
    random: np.random.Generator,
) -> list[NDArray[np.float64]]:
    """Return up to n points, a pixel apart, that stay in the region, a radius off its border if they can."""
    path: list[NDArray[np.float64]] = []
    at, wanted = start, min(radius + 1.5, 0.5 * depth.max())
    for _ in range(n):
        turns = random.normal(0, 0.25, 6) * np.arange(1, 7)
        best, best_depth = None, 0.0
        for turn in turns:
            ahead = at + np.array([np.sin(angle + turn), np.cos(angle + turn)])
            y, x = np.round(ahead).astype(int)
            inside = 0 <= y < depth.shape[0] and 0 <= x < depth.shape[1]
            if inside and depth[y, x] > best_depth:
                best, best_depth = (ahead, angle + turn), depth[y, x]
                if best_depth >= wanted:
                    break
        if best is None:
            break
        at, angle = best
        path.append(at)
    return path
