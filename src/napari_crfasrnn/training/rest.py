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

import torch
from torch import Tensor

from napari_crfasrnn.experts import REST
from napari_crfasrnn.training.growing import Pixels

_UNTOUCHED_WEIGHT = 0.5  # of these together, where nothing of the rest is labelled and the base counts 1
_BACKGROUND_WEIGHT = 3.0  # of what else there is in the world
_LEAST_REST = 200.0  # pixels: what labels of the rest count at least, were there fewer or none
_ENOUGH_REST = 50.0  # pixels: from so many labels of the rest on, pixels that nobody labelled say little:
_LEAST_UNTOUCHED = 0.2  # of what they say where none are


def rest_beside(n_labelled: float, column: int, untouched: Pixels, rows: Tensor) -> list[Pixels]:
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
    """
    base = max(_LEAST_REST, n_labelled)
    missing = max(_LEAST_UNTOUCHED, 1 - n_labelled / _ENOUGH_REST)
    sure = missing * untouched.weight / untouched.weight.sum().clamp_min(1)
    weight = torch.full((len(rows),), _BACKGROUND_WEIGHT * base / max(1, len(rows)))
    return [
        Pixels(untouched.rows, untouched.column, sure * _UNTOUCHED_WEIGHT * base),
        Pixels(rows, torch.full((len(rows),), column), weight),
    ]


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
