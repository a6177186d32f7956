"""Labels compared with the baseline: edits, verified pixels, training targets, and merging."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label as connected_components

from napari_crfasrnn.classes import ignore_value, label_dtype

Labels = NDArray[np.uint8] | NDArray[np.uint16]
Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]  # y0, x0, y1, x1; the ends are exclusive
Places = tuple[Any, ...]  # what indexes labels: an array of integers for each axis, or a box

_INDEX_BYTES = np.dtype(np.intp).itemsize


@dataclass(frozen=True)
class EditSummary:
    """How much of an image a person has changed or accepted.

    Parameters
    ----------
    n_pixels, n_edited, n_verified, n_labelled
        Pixels in all, differing from the baseline, verified, and known to be true (what learning uses).
    """

    n_pixels: int
    n_edited: int
    n_verified: int
    n_labelled: int

    @property
    def edited_share(self) -> float:
        """Edited pixels over all pixels, 0..1."""
        return self.n_edited / self.n_pixels if self.n_pixels else 0.0

    @property
    def verified_share(self) -> float:
        """Verified pixels over all pixels, 0..1."""
        return self.n_verified / self.n_pixels if self.n_pixels else 0.0


@dataclass(frozen=True, eq=False)
class LabelChanges:
    """Where two labellings of the same pixels differ, and what of.

    Attributes
    ----------
    where
        Pixels that differ.
    gained, lost
        For each class, the pixels that are of it only in the second, and only in the first.
    """

    where: Mask
    gained: tuple[int, ...]
    lost: tuple[int, ...]

    @property
    def n_changed(self) -> int:
        """How many pixels differ."""
        return int(np.count_nonzero(self.where))


def compare_labels(
    first: Labels,  # [*S]
    second: Labels,  # [*S]
    n_labels: int,
) -> LabelChanges:
    """Compare two labellings, of two rounds of learning, say.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    where = edited_mask(second, first)
    lost, gained = (
        tuple(int(n) for n in np.bincount(labels[where], minlength=n_labels)[:n_labels])
        for labels in (first, second)
    )
    return LabelChanges(where, gained, lost)


def places_in(box: tuple[int | slice, ...], where: Mask, itemsize: int) -> Places:
    """Return what indexes some pixels of a box of labels: the pixels, or all of the box.

    To keep what was there before and what came, whichever takes less memory: of many pixels their places
    take more than the labels around them.

    Parameters
    ----------
    box
        What indexes the box in the labels: an integer or a slice with both ends for each axis.
    where
        Which pixels, of the shape of the box.
    itemsize
        Of a label, in bytes.
    """
    n = int(np.count_nonzero(where))
    if n * (_INDEX_BYTES * len(box) + 2 * itemsize) > 2 * itemsize * where.size:
        return box
    starts = [part.start for part in box if isinstance(part, slice)]
    found = iter([places + start for places, start in zip(np.nonzero(where), starts, strict=True)])
    return tuple(next(found) if isinstance(part, slice) else np.full(n, part, np.intp) for part in box)


def as_labels(labels: NDArray[np.generic], n_labels: int, *, name: str = "labels") -> Labels:
    """Return labels in the smallest label type of a class table, the unlabelled pixels kept as such.

    Parameters
    ----------
    labels
        Any integer array. 255 and 65535 mean "unlabelled", except that 255 is a class where the table is
        long enough and the array is wider than 8 bits.
    n_labels
        Length of the class table.
    name
        What the error messages call the array.

    Returns
    -------
    labels
        uint8 (at most 255 classes; unlabelled = 255) or uint16 (unlabelled = 65535). The input itself
        when nothing has to change.

    Raises
    ------
    TypeError
        If the array does not hold integers.
    ValueError
        If a value is neither a class nor "unlabelled".
    """
    array = np.asarray(labels)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, got {array.dtype}: convert it to uint8 or uint16")
    dtype = np.dtype(label_dtype(n_labels))
    unlabelled = array == 65535
    if n_labels <= 255 or array.dtype.itemsize == 1:
        unlabelled |= array == 255
    wrong = ((array < 0) | (array >= n_labels)) & ~unlabelled
    if wrong.any():
        raise ValueError(
            f"{name} must hold values from 0 to {n_labels - 1}, or {ignore_value(dtype)} for unlabelled, "
            f"got {int(array[wrong].flat[0])}: add the class to the table or relabel these pixels"
        )
    if array.dtype == dtype:
        return array
    converted = array.astype(dtype)
    converted[unlabelled] = ignore_value(dtype)
    return converted


def edited_mask(
    labels: Labels,  # [*S]
    baseline: Labels | None,  # [*S]
) -> Mask:  # [*S]
    """Return where labels differ from the baseline; without a baseline, where anything is labelled.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if baseline is None:
        return np.asarray(labels != ignore_value(labels.dtype))
    _require_same_shape(baseline, labels, "baseline")
    if labels.dtype == baseline.dtype:
        return np.asarray(labels != baseline)
    return np.asarray(_widen(labels) != _widen(baseline))


def labelled_mask(
    labels: Labels,  # [*S]
    baseline: Labels | None,  # [*S]
    verified: Mask | None,  # [*S]
) -> Mask:  # [*S]
    """Return the pixels whose label is known to be true: labelled, and edited or verified."""
    known = edited_mask(labels, baseline)
    if verified is not None:
        _require_same_shape(verified, labels, "verified")
        known = known | np.asarray(verified, dtype=bool)
    return np.asarray(known & (labels != ignore_value(labels.dtype)))


def targets(
    labels: Labels,  # [*S]
    baseline: Labels | None = None,  # [*S]
    verified: Mask | None = None,  # [*S]
    *,
    certainty: NDArray[np.floating] | None = None,  # [*S]
    keep_weight: float = 0.0,
) -> tuple[Labels, NDArray[np.float32]]:
    """Return what to learn at each pixel, and how much each pixel counts.

    Parameters
    ----------
    labels, baseline, verified
        The corrected labels, the prediction they started from, and the accepted pixels.
    certainty
        How sure the model was of the baseline, 0..1.
    keep_weight
        Weight of the baseline on the pixels that nobody touched, times `certainty` (1 without it);
        0 leaves them out.

    Returns
    -------
    target
        Class of each pixel; the ignore value where there is nothing to learn.
    weight
        1 on edited and verified pixels, ``keep_weight * certainty`` on the rest, 0 where nothing is learnt.
    """
    ignore = ignore_value(labels.dtype)
    known = labelled_mask(labels, baseline, verified)
    target = np.where(known, labels, labels.dtype.type(ignore))
    weight = known.astype(np.float32)
    if baseline is None or keep_weight == 0:
        return target, weight
    rest = (~known) & ~edited_mask(labels, baseline) & (labels != ignore)
    target[rest] = labels[rest]
    weight[rest] = keep_weight if certainty is None else keep_weight * certainty[rest]
    return target, weight


def summarize(labels: Labels, baseline: Labels | None, verified: Mask | None) -> EditSummary:
    """Count the edited, verified and known pixels of an image."""
    return EditSummary(
        n_pixels=int(labels.size),
        n_edited=int(np.count_nonzero(edited_mask(labels, baseline))),
        n_verified=0 if verified is None else int(np.count_nonzero(verified)),
        n_labelled=int(np.count_nonzero(labelled_mask(labels, baseline, verified))),
    )


def changed_boxes(
    mask: Mask,  # [H, W]
    *,
    margin: int = 0,
) -> list[Box]:
    """Return the bounding box of every connected region of a mask, in reading order.

    Parameters
    ----------
    mask
        Changed pixels; diagonal neighbours are connected.
    margin
        Pixels to add on every side, cut at the border of the image.

    Raises
    ------
    ValueError
        If the mask is not a plane.
    """
    if mask.ndim != 2:
        raise ValueError(f"mask must be a plane [H, W], got shape {mask.shape}: pass one slice at a time")
    regions, n_regions = connected_components(mask, connectivity=2, return_num=True)
    y, x = np.nonzero(regions)
    region = regions[y, x] - 1
    low = np.full((2, n_regions), max(mask.shape, default=0), dtype=np.int64)
    high = np.zeros((2, n_regions), dtype=np.int64)
    for axis, place in enumerate((y, x)):
        np.minimum.at(low[axis], region, place)
        np.maximum.at(high[axis], region, place + 1)
    height, width = mask.shape
    return [
        (
            max(0, int(y0) - margin),
            max(0, int(x0) - margin),
            min(height, int(y1) + margin),
            min(width, int(x1) + margin),
        )
        for y0, x0, y1, x1 in zip(low[0], low[1], high[0], high[1], strict=True)
    ]


def merge_prediction(
    prediction: Labels,  # [*S]
    labels: Labels,  # [*S]
    baseline: Labels | None,  # [*S]
    verified: Mask | None,  # [*S]
    keep_edits: bool = True,
) -> Labels:
    """Return the labels to show after segmenting again: nothing that a person settled is lost.

    Verified pixels keep their label, and so do edited ones (also those erased to "unlabelled") unless
    ``keep_edits`` is false; everything else takes the new prediction. The new baseline is the prediction
    itself. Store `settled_mask` of the old labels as the new verified mask, or an edit that the new
    prediction agrees with would no longer count as known.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    _require_same_shape(prediction, labels, "prediction")
    keep = np.zeros(labels.shape, dtype=bool) if verified is None else np.asarray(verified, dtype=bool)
    if keep_edits:
        keep = keep | edited_mask(labels, baseline)
    merged = prediction.copy()
    merged[keep] = labels[keep]
    if labels.dtype != prediction.dtype:
        merged[keep & (labels == ignore_value(labels.dtype))] = ignore_value(prediction.dtype)
    return merged


def settled_mask(
    labels: Labels,  # [*S]
    baseline: Labels | None,  # [*S]
    verified: Mask | None,  # [*S]
    keep_edits: bool = True,
) -> Mask:  # [*S]
    """Return the verified mask that goes with `merge_prediction`: all that a person settled so far."""
    if keep_edits:
        return labelled_mask(labels, baseline, verified)
    if verified is None:
        return np.zeros(labels.shape, dtype=bool)
    return np.asarray(verified & (labels != ignore_value(labels.dtype)))


def remap_labels(labels: Labels, new_values: Sequence[int | None], n_labels: int) -> Labels:
    """Return labels after a change of the class table.

    Parameters
    ----------
    labels
        Labels of the old table.
    new_values
        For each old class its value in the new table, or None for "unlabelled".
    n_labels
        Length of the new table, which decides the label type.
    """
    dtype = np.dtype(label_dtype(n_labels))
    ignore = ignore_value(dtype)
    table = np.full(ignore_value(labels.dtype) + 1, ignore, dtype=dtype)
    table[: len(new_values)] = [ignore if value is None else value for value in new_values]
    return table[labels]


def _widen(labels: Labels) -> NDArray[np.uint16]:
    if labels.dtype.itemsize > 1:
        return labels.astype(np.uint16, copy=False)
    wide = labels.astype(np.uint16)
    wide[labels == 255] = 65535
    return wide


def _require_same_shape(array: NDArray[np.generic], labels: Labels, name: str) -> None:
    if array.shape != labels.shape:
        raise ValueError(f"{name} must have the shape of labels, {labels.shape}, got {array.shape}")
