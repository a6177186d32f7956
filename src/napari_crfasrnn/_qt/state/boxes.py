"""Boxes that a person drew around objects, as the core takes them: detections of planes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_crfasrnn.classes import ClassSpec

if TYPE_CHECKING:
    from napari_crfasrnn.higher_order import Detection

_NAMED_AT_MOST = 3


@dataclass(frozen=True, eq=False)
class Outline:
    """An outline with what a person says of it, unchecked.

    Attributes
    ----------
    label, score
        As the features table of the layer has them: a name or a value of a class, and 0..1.
    corners
        ``[n, 2]``, rows and columns in pixels of the plane; None for a shape without an inside.
    index
        The plane of the stack, None along axes that the outline does not have: there it is on every plane.
    """

    label: Any
    score: Any
    corners: NDArray[np.float64] | None
    index: tuple[int | None, ...] = ()

    def is_on(self, plane: tuple[int, ...]) -> bool:
        """Return whether it is on a plane of the stack."""
        return all(mine in (None, its) for mine, its in zip(self.index, plane, strict=True))


@dataclass(frozen=True, eq=False)
class Heeded:
    """What there is to heed: detections by plane, how many boxes they are, and why others are left out."""

    by_plane: dict[tuple[int, ...], list[Detection]]
    n_boxes: int
    left_out: str


def heed(
    boxes: Sequence[Outline],
    planes: Sequence[tuple[int, ...]],
    shape: tuple[int, int],
    classes: Sequence[ClassSpec],
) -> Heeded:
    """Return the detections that boxes stand for on some planes.

    Boxes on other planes and outside the image are none; those without a class of the table, with a score
    that is none, or without an inside are left out, and told.
    """
    from napari_crfasrnn.higher_order import Detection

    by_plane: dict[tuple[int, ...], list[Detection]] = {}
    unknown: dict[str, None] = {}
    n_boxes = n_unscored = n_open = 0
    for box in boxes:
        here = [at for at in planes if box.is_on(at)]
        if not here:
            continue
        value, score = class_value(box.label, classes), score_of(box.score)
        if box.corners is None:
            n_open += 1
        elif value is None:
            unknown.setdefault(str(box.label))
        elif score is None:
            n_unscored += 1
        else:
            detection = Detection.polygon(value, score, box.corners, shape)
            if not detection.mask.any():
                continue  # outside, or thinner than a pixel
            n_boxes += 1
            for at in here:
                by_plane.setdefault(at, []).append(detection)
    return Heeded(by_plane, n_boxes, _left_out(tuple(unknown), n_unscored, n_open))


def class_value(label: Any, classes: Sequence[ClassSpec]) -> int | None:
    """Return the value of a class that is given by its name or value; None if there is none such."""
    text = str(label).strip()
    for value, spec in enumerate(classes):
        if spec.name == text:
            return value
    for value, spec in enumerate(classes):
        if spec.name.casefold() == text.casefold():
            return value
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() and 0 <= number < len(classes) else None


def score_of(score: Any) -> float | None:
    """Return a score as a number of 0..1; None if it is none."""
    try:
        number = float(score)
    except (TypeError, ValueError):
        return None
    return number if 0 <= number <= 1 else None


def _left_out(unknown: Sequence[str], n_unscored: int, n_open: int) -> str:
    reasons = []
    if unknown:
        names = ", ".join(f"“{name}”" for name in unknown[:_NAMED_AT_MOST])
        names += " …" if len(unknown) > _NAMED_AT_MOST else ""
        is_are = "is no class" if len(unknown) == 1 else "are no classes"
        reasons.append(f"{names} {is_are} of the table")
    if n_unscored:
        reasons.append(f"{n_unscored} without a score from 0 to 1")
    if n_open:
        reasons.append(f"{n_open} without an inside")
    return f"Boxes left out: {'; '.join(reasons)}." if reasons else ""
