"""Strokes that a model could not learn beside the others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from napari_crfasrnn.classes import ignore_value
from napari_crfasrnn.edits import contradictions
from napari_crfasrnn.experts.sampling import Grid, values_at
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.progress import Cancel, raise_if_cancelled
from napari_crfasrnn.training.encodings import Encodings
from napari_crfasrnn.training.planes import LabelledPlane
from napari_crfasrnn.training.positions import locate, score_map
from napari_crfasrnn.training.report import PlaceOfContradiction

_WRONG_PIXELS = 20  # labels of a known class that the network takes for others: worth a note
MAX_STROKE_PIXELS = 50_000  # of a plane; one with more holds masks, whose rims are always in doubt


def find_contradictions(
    model: SegmentationModel,
    planes: Sequence[LabelledPlane],
    encodings: Encodings,
    cancel: Cancel | None,
) -> tuple[PlaceOfContradiction, ...]:
    """Return the strokes of the planes that the model's network, having learnt them, sees as another class.

    Raises
    ------
    Cancelled
        When asked to stop.
    """
    found = []
    for plane in planes:
        raise_if_cancelled(cancel)
        if not 0 < plane.n_training <= MAX_STROKE_PIXELS:
            continue
        y, x = np.nonzero(plane.training != ignore_value(plane.training.dtype))
        with torch.no_grad():
            encoding = encodings.of(model, plane, cancel)
            grid = Grid(plane.size, encoding.input_size)
            scores = score_map(model.network, encoding.features, grid)
            logits = values_at(scores, locate(model.network, grid, y, x).to(model.device))
        prediction = plane.training.copy()
        prediction[y, x] = logits.argmax(1).cpu().numpy()
        found += [
            PlaceOfContradiction(plane.item_id, plane.index, region)
            for region in contradictions(plane.training, prediction)
        ]
    return tuple(found)


def mistaken_classes(
    model: SegmentationModel,
    planes: Sequence[LabelledPlane],
    known: Sequence[bool],
    encodings: Encodings,
    cancel: Cancel | None,
    least_share: float = 0.0,
) -> list[int]:
    """Return the known classes of which the network takes labels for another class that it knows.

    That is `_WRONG_PIXELS` of them or more, and at least a share of all labels of the class.

    Raises
    ------
    Cancelled
        When asked to stop.
    """
    n_wrong, n_all = np.zeros((2, len(known)), np.int64)
    unknown = [value for value, is_known in enumerate(known) if not is_known]
    for plane in planes:
        raise_if_cancelled(cancel)
        with torch.no_grad():
            y, x = np.nonzero(plane.training != ignore_value(plane.training.dtype))
            logits = (
                encodings.logits(model, plane, cancel).at(torch.from_numpy(y), torch.from_numpy(x)).clone()
            )
        logits[unknown] = -math.inf
        wanted = plane.training[y, x]
        n_all += np.bincount(wanted, minlength=len(known))
        n_wrong += np.bincount(wanted[logits.argmax(0).cpu().numpy() != wanted], minlength=len(known))
    is_mistaken = (n_wrong >= _WRONG_PIXELS) & (n_wrong >= least_share * n_all)
    return [value for value in np.flatnonzero(is_mistaken).tolist() if known[value]]
