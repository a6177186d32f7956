"""What else there is in the world: photographs, beside the images of a project.

Experts that learn a class against the rest need examples of the rest; and a head that learns from a few
strokes in one kind of image sees what it is told there everywhere, unless it is shown other images and what
it said of them before. The photographs are what scikit-image bundles: a person, a cat, a cup, a rocket, a
photographer, a meadow, a wall.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_crfasrnn.classes import ignore_value
from napari_crfasrnn.experts import FeatureMaps
from napari_crfasrnn.experts.features import GROUPS
from napari_crfasrnn.network import LiteNetwork, SegmentationModel
from napari_crfasrnn.progress import Cancel, raise_if_cancelled
from napari_crfasrnn.training.planes import LOOKS, LabelledPlane, View, draw_pixels, make_view

_PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "camera", "grass", "brick")
_SIDE = 256  # pixels, the longer one
_PIXELS = 100  # of each
_EVERY = tuple(GROUPS)


def background_rows(
    model: SegmentationModel, cancel: Cancel | None, is_late: Callable[[], bool]
) -> Tensor:  # [N, d]
    """Return the features of some pixels of everyday photographs; of fewer when it is late.

    Raises
    ------
    Cancelled
        When asked to stop.
    """
    assert isinstance(model.network, LiteNetwork)
    random = np.random.default_rng(0)
    found: list[Tensor] = []
    for photograph in _photographs():
        raise_if_cancelled(cancel)
        if found and is_late():
            break
        size = (int(photograph.shape[-2]), int(photograph.shape[-1]))
        maps = FeatureMaps(model.network, model.preprocess(photograph), size, cancel)
        y, x = (random.integers(0, side, _PIXELS) for side in size)
        found.append(maps.at(y, x, _EVERY))
    return torch.cat(found)


def background_views(model: SegmentationModel, *, encode: bool, cancel: Cancel | None) -> list[View]:
    """Return views of everyday photographs on which nothing is labelled.

    ``encode`` and ``cancel`` are those of `make_view`.

    Raises
    ------
    Cancelled
        When asked to stop.
    """
    random = np.random.default_rng(0)
    views = []
    for number, photograph in enumerate(_photographs()):
        raise_if_cancelled(cancel)
        nothing = np.full(photograph.shape[-2:], ignore_value(np.uint8), np.uint8)
        plane = LabelledPlane(-1, (), photograph, nothing, nothing, np.zeros(nothing.shape, bool))
        pixels = draw_pixels(plane, random)
        views.append(make_view(model, number, plane, pixels, LOOKS[0], encode=encode, cancel=cancel))
    return views


def _photographs() -> Iterator[Tensor]:  # [1, C, H, W], 0..255
    from skimage import data

    for name in _PHOTOGRAPHS:
        pixels = np.atleast_3d(getattr(data, name)())
        photograph = torch.from_numpy(pixels).movedim(-1, 0).float()[None]
        height, width = photograph.shape[-2:]
        size = (round(height * _SIDE / max(height, width)), round(width * _SIDE / max(height, width)))
        yield F.interpolate(photograph, size, mode="bilinear", antialias=True)
