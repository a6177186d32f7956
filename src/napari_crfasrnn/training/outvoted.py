"""Strokes that the others outvote.

A panel learns a few strokes by heart, also one that says the opposite of all others, so what it makes of them
afterwards tells little. Therefore forests learn all strokes but some, and say of these what they look like. A
stroke that looks like another class to them may be the first of its kind, too; what tells a contradiction is
that a stroke of that other class lies close by, most likely on the same thing, or that there is no doubt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from scipy.spatial import KDTree
from skimage.measure import label as connected_components
from sklearn.ensemble import ExtraTreesClassifier

from napari_crfasrnn.edits import MIN_STROKE_PIXELS, Contradiction
from napari_crfasrnn.progress import Cancel, raise_if_cancelled
from napari_crfasrnn.training.doubts import MAX_STROKE_PIXELS
from napari_crfasrnn.training.planes import LabelledPlane
from napari_crfasrnn.training.report import PlaceOfContradiction

_STREAM = 8  # of random numbers, beside those of a round
_FOLDS, _TREES = 4, 24
_TREES_AT_ONCE = 4  # between questions whether to go on
_STROKE_PIXELS = 30  # of each stroke, to learn and to judge it by
_MAX_PIXELS = 6_000  # of all strokes; there are some of each in any case
_LEAST_PIXELS = 4
_CERTAIN = 0.95  # mean probability of the other class that is enough anywhere
_NEAR, _LIKELY = 20.0, 0.7  # pixels to a stroke of that class; probability that is enough there


@dataclass(frozen=True, eq=False)
class ReadPixels:
    """Some labelled pixels of a plane.

    Attributes
    ----------
    plane
        Where they are.
    y, x
        [N] rows and columns.
    rows
        [N, d] their features.
    """

    plane: LabelledPlane
    y: NDArray[np.int64]
    x: NDArray[np.int64]
    rows: NDArray[np.float32]


@dataclass(frozen=True)
class Votes:
    """What forests that learnt the other strokes make of each.

    Attributes
    ----------
    known, asked
        How many strokes look like what they were painted as, and of how many that was asked.
    places
        Strokes that look so much like another class that they may contradict the others; largest first.
    """

    known: int = 0
    asked: int = 0
    places: tuple[PlaceOfContradiction, ...] = ()


@dataclass(frozen=True, eq=False)
class _Stroke:
    """A connected region of one class, with some of its pixels' features."""

    plane: LabelledPlane
    label: int
    places: NDArray[np.int64]  # [n, 2] all of it; none where it is not judged
    rows: NDArray[np.float32]  # [m, d] of some


def outvoted(read: Sequence[ReadPixels], seed: int, cancel: Cancel | None) -> Votes:
    """Ask forests that learnt the other strokes what each looks like.

    Parameters
    ----------
    read
        What to learn. A class of one stroke alone is learnt but not judged, and so are planes of masks.
    seed
        Of what is drawn.
    cancel
        Asked every few trees.

    Raises
    ------
    Cancelled
        When asked to stop.
    """
    random = np.random.default_rng([seed, _STREAM])
    strokes = [stroke for each in read for stroke in _strokes(each, cancel)]
    labels = np.array([stroke.label for stroke in strokes])
    if len(np.unique(labels)) < 2:
        return Votes()
    limit = int(np.clip(_MAX_PIXELS // len(strokes), _LEAST_PIXELS, _STROKE_PIXELS))
    rows = [stroke.rows[random.permutation(len(stroke.rows))[:limit]] for stroke in strokes]
    known, asked, found = 0, 0, []
    fold_of = _folds(labels, random)
    for fold in range(_FOLDS):
        raise_if_cancelled(cancel)
        judged = [number for number in np.flatnonzero(fold_of == fold) if len(strokes[number].places)]
        taught = np.flatnonzero(fold_of != fold)
        if not judged or len(np.unique(labels[taught])) < 2:
            continue
        features = np.concatenate([rows[number] for number in taught])
        target = np.repeat(labels[taught], [len(rows[number]) for number in taught])
        forest = _grown(features, target, seed, cancel)
        for number in judged:
            stroke = strokes[number]
            if stroke.label not in forest.classes_:
                continue
            probability = forest.predict_proba(rows[number]).mean(0)
            best = int(probability.argmax())
            seen, sure = int(forest.classes_[best]), float(probability[best])
            asked += 1
            known += seen == stroke.label
            if seen != stroke.label and _is_outvoted(stroke, seen, sure, strokes):
                found.append(_place(stroke, seen, sure))
    return Votes(known, asked, tuple(sorted(found, key=lambda place: -place.region.n_pixels)))


def _grown(
    features: NDArray[np.float32], target: NDArray[np.int64], seed: int, cancel: Cancel | None
) -> ExtraTreesClassifier:
    """Return a forest that learnt some pixels, all classes alike."""
    weight = 1 / np.bincount(target)[target]
    forest = ExtraTreesClassifier(
        max_depth=20, min_samples_leaf=2, warm_start=True, random_state=seed % 2**32
    )
    for n_trees in range(_TREES_AT_ONCE, _TREES + 1, _TREES_AT_ONCE):
        raise_if_cancelled(cancel)
        forest.set_params(n_estimators=n_trees)
        forest.fit(features, target, sample_weight=weight)
    return forest


def _strokes(read: ReadPixels, cancel: Cancel | None) -> Iterator[_Stroke]:
    """Yield the strokes of a plane; a part of one may be held back, but it is one still."""
    plane = read.plane
    is_judged = plane.n_training <= MAX_STROKE_PIXELS
    for value in np.unique(plane.training[read.y, read.x]):
        raise_if_cancelled(cancel)
        is_own = (plane.training == value) | (plane.locked == value)
        regions = np.asarray(connected_components(is_own | plane.aside, connectivity=2))
        sizes = np.bincount(regions[is_own], minlength=int(regions.max()) + 1)
        boxes = find_objects(regions) if is_judged else []
        own = np.flatnonzero(plane.training[read.y, read.x] == value)
        number = regions[read.y[own], read.x[own]]
        for region in np.unique(number):
            if sizes[region] < MIN_STROKE_PIXELS:
                continue
            places = np.empty((0, 2), np.int64)
            if is_judged:
                box = boxes[region - 1]
                places = np.argwhere(is_own[box] & (regions[box] == region))
                places += [part.start for part in box]
            yield _Stroke(plane, int(value), places, read.rows[own[number == region]])


def _folds(labels: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """Return which strokes are judged together: those of a class are spread evenly."""
    fold_of, n = np.empty(len(labels), np.int64), 0
    for value in np.unique(labels):
        places = random.permutation(np.flatnonzero(labels == value))
        fold_of[places] = (n + np.arange(len(places))) % _FOLDS
        n += len(places)
    return fold_of


def _is_outvoted(stroke: _Stroke, seen: int, probability: float, strokes: Sequence[_Stroke]) -> bool:
    if probability >= _CERTAIN:
        return True
    if probability < _LIKELY:
        return False
    others = [each.places for each in strokes if each.label == seen and each.plane is stroke.plane]
    return bool(others) and KDTree(np.concatenate(others)).query(stroke.places)[0].min() <= _NEAR


def _place(stroke: _Stroke, seen: int, probability: float) -> PlaceOfContradiction:
    (y0, x0), (y1, x1) = stroke.places.min(0).tolist(), (stroke.places.max(0) + 1).tolist()
    region = Contradiction(
        label=stroke.label,
        predicted=seen,
        n_pixels=len(stroke.places),
        share=probability,
        box=(y0, x0, y1, x1),
        is_learnt=True,
    )
    return PlaceOfContradiction(stroke.plane.item_id, stroke.plane.index, region)
