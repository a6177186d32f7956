"""What else there is in the world: pixels of photographs, for experts that learn one class against the rest.

They are what scikit-image bundles: people, a cat, a cup, a rocket, motorcycles, walls and meadows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_crfasrnn.experts import FeatureMaps
from napari_crfasrnn.experts.features import GROUPS
from napari_crfasrnn.network import LiteNetwork, SegmentationModel
from napari_crfasrnn.progress import Cancel, raise_if_cancelled

_PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "camera", "grass", "brick")
_SIDE = 256  # pixels, the longer one
_PIXELS = 600  # of each
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
    from skimage import data

    assert isinstance(model.network, LiteNetwork)
    random = np.random.default_rng(0)
    found: list[Tensor] = []
    for name in _PHOTOGRAPHS:
        raise_if_cancelled(cancel)
        if found and is_late():
            break
        pixels = np.atleast_3d(getattr(data, name)())
        photograph = torch.from_numpy(pixels).movedim(-1, 0).float()[None]
        height, width = photograph.shape[-2:]
        size = (round(height * _SIDE / max(height, width)), round(width * _SIDE / max(height, width)))
        photograph = F.interpolate(photograph, size, mode="bilinear", antialias=True)
        maps = FeatureMaps(model.network, model.preprocess(photograph), size, cancel)
        y, x = (random.integers(0, side, _PIXELS) for side in size)
        found.append(maps.at(y, x, _EVERY))
    return torch.cat(found)
