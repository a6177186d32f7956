"""What a head learns from: looks at all planes, several where these are few."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from napari_crfasrnn.config import TrainConfig
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.progress import Cancel, raise_if_cancelled
from napari_crfasrnn.training.encodings import Encodings
from napari_crfasrnn.training.planes import LOOKS, LabelledPlane, View, draw_pixels, make_view

_LEAST_LOOKS = 2  # at a plane
_VARIED_UP_TO = 40  # planes; more of them are variety enough


def draw_views(
    model: SegmentationModel,
    planes: Sequence[LabelledPlane],
    config: TrainConfig,
    encodings: Encodings,
    n_views: int,
    is_late: Callable[[bool], bool],
    cancel: Cancel | None,
) -> list[View]:
    """Return a view of every plane as it is, and then others, as far as there is time.

    Parameters
    ----------
    model
        Who looks.
    planes
        All of them.
    config
        Seed; whether the encoder learns, too: then it is not run here.
    encodings
        Of the planes as they are.
    n_views
        About how many of all planes together, when these are few.
    is_late
        Whether there is no time for another view, given whether it were the first one of a plane.
    cancel
        Asked all the time.

    Raises
    ------
    Cancelled
        When asked to stop.
    """
    random = np.random.default_rng([config.seed, 0])
    pixels = [draw_pixels(plane, random) for plane in planes]
    n_looks = min(len(LOOKS), max(_LEAST_LOOKS, n_views // len(planes)))
    views: list[View] = []
    for look in LOOKS[: n_looks if len(planes) <= _VARIED_UP_TO else 1]:
        is_first = look == LOOKS[0]
        for number, plane in enumerate(planes):
            raise_if_cancelled(cancel)
            if views and is_late(is_first):
                return views
            features = None
            if is_first and not config.thaw:
                features = encodings.of(model, plane, cancel).features
            encode = features is None and not config.thaw
            part = (number, plane, pixels[number], look)
            views.append(make_view(model, *part, features=features, encode=encode, cancel=cancel))
    return views
