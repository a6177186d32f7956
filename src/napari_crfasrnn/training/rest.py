"""What is none of the classes that experts speak for: examples of the rest.

That a pixel belongs to the rest is said by labels of known classes. Where there are hardly any, it is also
likely of pixels that nobody labelled, so a sample of them counts as rest, too, but less, and the less the
less sure the network is of them. Where there are enough, they count little: many of them are of the new
classes, and would teach that they are not. Lastly, the experts are told what else there is in the world
(`background`): one kind of image does not tell how a class differs from all that other images show, where the
network's classes are at home.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn.experts import REST
from napari_crfasrnn.training.growing import Pixels

_UNTOUCHED_WEIGHT = 0.05  # of these together, where nothing of the rest is labelled and the base counts 1
_LEAST_REST = 200.0  # pixels: what labels of the rest count at least, were there fewer or none
_ENOUGH_REST = 50.0  # pixels: from so many labels of the rest on, pixels that nobody labelled say little:
_LEAST_UNTOUCHED = 0.2  # of what they say where none are
_MOST_REST = 0.15  # of what strokes of the new classes count: what strokes of the rest count at most
_BLOCK, _DENSE = 128, 0.25  # pixels; share of the labelled blocks of a plane: from here on, no strokes


def rest_beside(
    n_labelled: float, column: int, untouched: Pixels, rows: Tensor, share: float
) -> list[Pixels]:
    """Return examples of the rest, weighed beside those that are labelled.

    Parameters
    ----------
    n_labelled
        How much the labelled ones count together.
    column
        The column of the rest.
    untouched
        Pixels that nobody labelled, weighed by how sure the network is of them.
    rows
        [N, d] features of what else there is in the world.
    share
        How much these count together, where the labelled ones count 1.
    """
    base = max(_LEAST_REST, n_labelled)
    missing = max(_LEAST_UNTOUCHED, 1 - n_labelled / _ENOUGH_REST)
    sure = missing * untouched.weight / untouched.weight.sum().clamp_min(1)
    weight = torch.full((len(rows),), share * base / max(1, len(rows)))
    return [
        Pixels(untouched.rows, untouched.column, sure * _UNTOUCHED_WEIGHT * base),
        Pixels(rows, torch.full((len(rows),), column), weight),
    ]


def strokes_beside(pixels: Pixels, column: int) -> Pixels:
    """Return pixels of strokes, of which those of the rest count a share of the others at most.

    Who corrects a new class paints mostly where it was seen and is not. Counted one by one, these strokes
    would drown the few that show what it is.

    Parameters
    ----------
    pixels
        What is labelled.
    column
        The column of the rest.
    """
    is_rest = pixels.column == column
    most = _MOST_REST * float(pixels.weight[~is_rest].sum())
    factor = min(1.0, most / max(float(pixels.weight[is_rest].sum()), 1e-9))
    return Pixels(pixels.rows, pixels.column, torch.where(is_rest, factor * pixels.weight, pixels.weight))


def are_strokes(labelled: Sequence[NDArray[np.bool_]]) -> bool:
    """Return whether the labels of some planes are strokes, not regions that are labelled as a whole.

    Of regions how much is of which class says how frequent it is; of strokes it says nothing.

    Parameters
    ----------
    labelled
        [H, W] of each plane: where something is labelled.
    """
    shares = []
    for mask in labelled:
        counts, sizes = (
            np.add.reduceat(
                np.add.reduceat(each, range(0, mask.shape[0], _BLOCK), axis=0, dtype=np.int64),
                range(0, mask.shape[1], _BLOCK),
                axis=1,
            )
            for each in (mask, np.ones_like(mask))
        )
        shares += (counts / sizes)[counts > 0].tolist()
    return not shares or sum(shares) < _DENSE * len(shares)


def sureness(known: Tensor, speaks_for: Sequence[int]) -> Tensor:  # [n, L] → [n]
    """Return how sure the network is of some pixels, 0..1, of the classes that are not the experts'.

    Parameters
    ----------
    known
        Its logits.
    speaks_for
        What the experts speak for, as in `PanelConfig`.
    """
    own = [value for value in speaks_for if value != REST]
    known = known.clone()
    known[:, own] = -math.inf
    entropy: Tensor = torch.special.entr(known.softmax(1)).sum(1)
    return 1 - entropy / math.log(max(2, known.shape[1] - len(own)))
