"""What strokes do to a part of a plane: the labels there, and where they changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn.classes import ignore_value, label_dtype
from napari_crfasrnn.edits import Box
from napari_crfasrnn.segmenter.parts import inner
from napari_crfasrnn.segmenter.result import read_out

Strokes = NDArray[Any]  # [h, w]: the label where one was painted, the ignore value elsewhere


@dataclass(frozen=True, eq=False)
class Refined:
    """What a stroke does to a part of a plane."""

    box: Box
    """The part: ``(y0, x0, y1, x1)``, the end excluded."""
    labels: NDArray[Any]
    """``[h, w]`` with the stroke, in the label type of the class table; painted pixels as painted."""
    changed: NDArray[np.bool_]
    """``[h, w]``: where the labels would be others without the stroke."""
    logits: Tensor
    """``[L, h, w]`` refined, on the device of the model."""

    def entropy(self) -> NDArray[np.float32]:
        """Return the uncertainty of the marginals, ``[h, w]``: their entropy divided by log L, 0..1."""
        entropy = np.empty(self.labels.shape, np.float32)
        read_out(self.logits, np.empty_like(self.labels), entropy, None)
        return entropy


@dataclass(frozen=True, eq=False)
class StrokeState:
    """The logits that the CRF gives to a part of the plane with some strokes."""

    strokes: Strokes
    logits: Tensor  # [1, L, h, w]
    labels: NDArray[Any]  # [h, w]

    def cut(self, window: Box, part: Box) -> StrokeState:
        """Return that of a part of the window it is of."""
        return StrokeState(
            inner(self.strokes, part, window),
            inner(self.logits, part, window),
            inner(self.labels, part, window),
        )

    def as_answer(self, box: Box) -> Refined:
        """Return what there is in the box it is of, all of it changed."""
        return Refined(box, self.labels, np.ones(self.labels.shape, bool), self.logits[0])

    def since(self, was: StrokeState, box: Box) -> Refined:
        """Return what there is in the box it is of, changed where it is other than it was."""
        return Refined(box, self.labels, self.labels != was.labels, self.logits[0])


def checked_strokes(name: str, strokes: Strokes, shape: tuple[int, int], n_labels: int) -> Strokes:
    """Return a copy of strokes, which the caller cannot write to.

    Raises
    ------
    ValueError
        If shape, type or a label does not fit.
    """
    dtype = np.dtype(label_dtype(n_labels))
    if strokes.shape != shape or strokes.dtype != dtype:
        raise ValueError(
            f"{name} must be {dtype} of shape {shape}, that of the window of the box, "
            f"got {strokes.dtype} of shape {strokes.shape}"
        )
    painted = strokes[strokes != ignore_value(dtype)]
    if painted.size and int(painted.max()) >= n_labels:
        raise ValueError(
            f"{name} must be places in the class table, 0 to {n_labels - 1}, "
            f"or {ignore_value(dtype)} where nothing is painted, got {int(painted.max())}"
        )
    return strokes.copy()


def labels_of(
    logits: Tensor,  # [1, L, h, w]
    strokes: Strokes,
) -> NDArray[Any]:  # [h, w]
    """Return the labels that win, and those painted as painted."""
    return held_in(logits[0].max(0).indices, strokes)


def held_in(
    labels_won: Tensor,  # int64 [h, w]
    strokes: Strokes,
) -> NDArray[Any]:  # [h, w]
    """Return labels with those painted as painted."""
    labels = labels_won.cpu().numpy().astype(strokes.dtype)
    painted = strokes != ignore_value(strokes.dtype)
    labels[painted] = strokes[painted]
    return labels


def joined(box: Box, parts: list[Refined]) -> Refined:
    """Return what strokes do to a box of what they do to its parts."""
    if len(parts) == 1:
        return parts[0]
    shape = (box[2] - box[0], box[3] - box[1])
    labels = np.empty(shape, parts[0].labels.dtype)
    changed = np.empty(shape, bool)
    logits = parts[0].logits.new_empty((len(parts[0].logits), *shape))
    for part in parts:
        inner(labels, part.box, box)[:] = part.labels
        inner(changed, part.box, box)[:] = part.changed
        inner(logits, part.box, box)[:] = part.logits
    return Refined(box, labels, changed, logits)
