"""How well labels agree with the truth: the confusion matrix and what follows from it.

Arrays of labels may have any shape; the last two axes are rows and columns where a function
looks at edges. A class that is absent has no IoU: NaN, which the means leave out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

_CHUNK = 2**22  # pixels counted at a time, to keep memory small


def confusion(
    pred: ArrayLike, target: ArrayLike, n_labels: int, ignore: int | None = 255
) -> NDArray[np.int64]:
    """Count the pixels of each class by the class they were given.

    Parameters
    ----------
    pred, target
        Labels, integers of one shape.
    n_labels
        Number of classes L.
    ignore
        Pixels with this value in ``target`` do not count; 65535 for 16-bit labels; None: all count.

    Returns
    -------
    ``[L, L]``, rows the true class, columns the given one. Matrices of several images add up.

    Raises
    ------
    TypeError
        If the labels are not integers.
    ValueError
        If the shapes differ, or a counted label is no class of the table.
    """
    given, truth = _labels(pred, target, n_labels, ignore)
    given, truth = given.reshape(-1), truth.reshape(-1)
    counts = np.zeros(n_labels * n_labels, np.int64)
    for start in range(0, truth.size, _CHUNK):
        rows, columns = (part[start : start + _CHUNK] for part in (truth, given))
        if ignore is not None:
            counted = rows != ignore
            rows, columns = rows[counted], columns[counted]
        for name, part in (("target", rows), ("pred", columns)):
            if part.size and not 0 <= int(part.min()) <= int(part.max()) < n_labels:
                worst = int(part.min()) if int(part.min()) < 0 else int(part.max())
                raise ValueError(f"{name} must hold labels from 0 to {n_labels - 1}, got {worst}")
        pairs = rows.astype(np.int64) * n_labels + columns.astype(np.int64)
        counts += np.bincount(pairs, minlength=n_labels * n_labels)
    return counts.reshape(n_labels, n_labels)


def iou(conf: ArrayLike) -> NDArray[np.float64]:
    """Return the intersection over union of each class, ``[L]``; NaN for absent classes.

    A class is absent when it is neither in the truth nor among the given labels.
    """
    counts = _square(conf)
    hit = np.diagonal(counts)
    return _divide(hit, counts.sum(axis=0) + counts.sum(axis=1) - hit)


def miou(conf: ArrayLike) -> float:
    """Return the mean IoU over the classes that are in the truth or among the given labels.

    NaN if there are none.
    """
    return _mean(iou(conf))


def accuracy(conf: ArrayLike) -> float:
    """Return the share of pixels with the right label; NaN without pixels."""
    counts = _square(conf)
    return float(_divide(np.trace(counts), counts.sum()))


def mean_accuracy(conf: ArrayLike) -> float:
    """Return the mean over the classes in the truth of the share of their pixels that was found."""
    counts = _square(conf)
    return _mean(_divide(np.diagonal(counts), counts.sum(axis=1)))


def frequency_weighted_iou(conf: ArrayLike) -> float:
    """Return the mean IoU, each class weighted by its share of the true pixels; NaN without pixels."""
    counts = _square(conf)
    share = _divide(counts.sum(axis=1), counts.sum())
    return float(np.nan_to_num(iou(counts)) @ share)


def band_confusion(
    pred: ArrayLike, target: ArrayLike, n_labels: int, width: int = 5, ignore: int | None = 255
) -> NDArray[np.int64]:
    """Return the `confusion` of the pixels in a band along the edges of the truth (a "trimap").

    An edge is where two neighbouring pixels have different true classes. The band holds the
    pixels on both sides of it up to ``width`` deep (Euclidean distance); width 1 is the pixels that
    touch the edge (Kohli, Ladicky and Torr, IJCV 2009, section 4.2).

    Parameters
    ----------
    pred, target, n_labels, ignore
        As in `confusion`; the labels have at least two axes, ``[..., H, W]``.
    width
        Pixels, at least 1.

    Returns
    -------
    ``[L, L]``; matrices of several images add up.
    """
    given, truth = _planes(pred, target, n_labels, ignore)
    width = _check_width(width)
    counts = np.zeros((n_labels, n_labels), np.int64)
    for given_plane, true_plane in zip(given, truth, strict=True):
        edge = _edges(true_plane, ignore)
        if not edge.any():
            continue
        # The two sides of an edge are at distance 0 of themselves.
        band = ndimage.distance_transform_edt(~edge) < width
        counts += confusion(given_plane[band], true_plane[band], n_labels, ignore)
    return counts


def band_iou(
    pred: ArrayLike, target: ArrayLike, n_labels: int, width: int = 5, ignore: int | None = 255
) -> NDArray[np.float64]:
    """Return the IoU of each class within a band along the edges of the truth; see `band_confusion`."""
    return iou(band_confusion(pred, target, n_labels, width, ignore))


def rim_counts(
    pred: ArrayLike,
    target: ArrayLike,
    n_labels: int,
    width: int | None = None,
    ignore: int | None = 255,
) -> NDArray[np.int64]:
    """Count the pixels that the rims of the two masks of each class share, and those in either.

    The rim of a mask is what lies in it and within ``width`` pixels of its contour (Cheng et al.,
    "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021, equation 2).
    As there, distance counts diagonal steps as one and the border of the image is a contour.

    Parameters
    ----------
    pred, target, n_labels, ignore
        As in `confusion`; the labels have at least two axes, ``[..., H, W]``. Ignored pixels make no
        contour.
    width
        Pixels, at least 1; None: 2 % of the image's diagonal, as the authors recommend.

    Returns
    -------
    ``[2, L]``: intersection and union, summed over all planes. Counts of several images add up.
    """
    given, truth = _planes(pred, target, n_labels, ignore)
    if width is None:
        width = max(1, round(0.02 * float(np.hypot(*truth.shape[-2:]))))
    width = _check_width(width)
    both, either = counts = np.zeros((2, n_labels), np.int64)
    for given_plane, true_plane in zip(given, truth, strict=True):
        ignored = np.zeros(true_plane.shape, bool) if ignore is None else true_plane == ignore
        confusion(given_plane, true_plane, n_labels, ignore)  # complains about unknown labels
        for label in np.union1d(np.unique(given_plane[~ignored]), np.unique(true_plane[~ignored])):
            given_rim = _rim(given_plane == label, ignored, width)
            true_rim = _rim(true_plane == label, ignored, width)
            both[label] += np.count_nonzero(given_rim & true_rim)
            either[label] += np.count_nonzero(given_rim | true_rim)
    return counts


def boundary_iou(
    pred: ArrayLike,
    target: ArrayLike,
    n_labels: int,
    width: int | None = None,
    ignore: int | None = 255,
) -> NDArray[np.float64]:
    """Return the Boundary IoU of each class, ``[L]``; NaN for absent classes. See `rim_counts`."""
    both, either = rim_counts(pred, target, n_labels, width, ignore)
    return _divide(both, either)


def _rim(mask: NDArray[np.bool_], ignored: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    solid = mask | ignored
    inside: NDArray[np.bool_] = ndimage.minimum_filter(solid, size=2 * width + 1, mode="constant", cval=0)
    return mask & ~inside & ~ignored


def _edges(target: NDArray[np.integer], ignore: int | None) -> NDArray[np.bool_]:
    """Mark the pixels of one plane that touch another class."""
    edge = np.zeros(target.shape, bool)
    for first, second in (
        (np.s_[:-1, :], np.s_[1:, :]),
        (np.s_[:, :-1], np.s_[:, 1:]),
    ):
        differ = target[first] != target[second]
        if ignore is not None:
            differ &= (target[first] != ignore) & (target[second] != ignore)
        edge[first] |= differ
        edge[second] |= differ
    return edge


def _labels(
    pred: ArrayLike, target: ArrayLike, n_labels: int, ignore: int | None
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    given, truth = np.asarray(pred), np.asarray(target)
    for name, array in (("pred", given), ("target", truth)):
        if array.dtype.kind not in "iu":
            raise TypeError(f"{name} must hold integer labels, got {array.dtype}")
    if given.shape != truth.shape:
        raise ValueError(f"pred must have the shape of target, got {given.shape} and {truth.shape}")
    if n_labels < 1:
        raise ValueError(f"n_labels must be at least 1, got {n_labels}")
    if ignore is not None and 0 <= ignore < n_labels:
        raise ValueError(
            f"ignore must not be the label of a class, got {ignore} with {n_labels} classes: "
            f"use 65535 with 16-bit labels, or None"
        )
    return given, truth


def _planes(
    pred: ArrayLike, target: ArrayLike, n_labels: int, ignore: int | None
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    given, truth = _labels(pred, target, n_labels, ignore)
    if truth.ndim < 2:
        raise ValueError(f"target must have at least two axes, rows and columns, got shape {truth.shape}")
    shape = (-1, *truth.shape[-2:]) if truth.size else (0, 1, 1)
    return given.reshape(shape), truth.reshape(shape)


def _check_width(width: int) -> int:
    if width < 1:
        raise ValueError(f"width must be at least 1 pixel, got {width}")
    return int(width)


def _square(conf: ArrayLike) -> NDArray[np.float64]:
    counts = np.asarray(conf, np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or counts.size == 0:
        raise ValueError(f"conf must be a square matrix [L, L] of counts, got shape {counts.shape}")
    return counts


def _divide(part: ArrayLike, whole: ArrayLike) -> NDArray[np.float64]:
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    ratio = np.full(np.broadcast(part, whole).shape, np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
