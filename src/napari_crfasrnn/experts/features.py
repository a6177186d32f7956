"""What the experts see of a pixel: colours, edges and ridges at several blurs, and the encoder's maps.

The head of a network sees everything through features of stride 8 and deeper. What tells a membrane from
the cell beside it is finer than that. So the experts read the encoder's early maps, too, and features made
by hand, which know nothing and therefore are the same in every kind of image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from skimage.feature import multiscale_basic_features
from torch import Tensor

from napari_crfasrnn.encoder import STRIDE
from napari_crfasrnn.experts.sampling import Grid, Positions, locate_cells, values_at
from napari_crfasrnn.fcn import LiteNetwork
from napari_crfasrnn.progress import Cancel, raise_if_cancelled

CLASSIC = 1
"""The stride that stands for the hand-made features."""
GROUPS = {CLASSIC: 60, 2: 16, 4: 24, 8: 40, 16: 112, 32: 320}
"""Stride of each group of features → number of features."""

_BLOCKS = {0: 2, 2: 4, 4: 8, 10: 16, 15: 32}  # of the encoder, and the strides of their outputs
_WIDEST_BLUR = 16.0  # pixels
_RANGE = (0.5, 99.5)  # percentiles of an image that become -1 and 1
_SMALLEST_RANGE = 0.15  # of values that span 2: below, there is only noise to be seen
_SMALLEST = 8  # pixels; second derivatives need some


class FeatureMaps:
    """The feature maps of one image.

    Parameters
    ----------
    network
        Whose encoder gives the maps of stride 2 to 32.
    seen
        [1, 3, h, w], what the network reads.
    image_size
        Height and width of the image, of which ``seen`` may be a shrunk copy.
    cancel
        Asked between parts of the work.

    Raises
    ------
    Cancelled
        When asked to stop.
    """

    def __init__(
        self, network: LiteNetwork, seen: Tensor, image_size: tuple[int, int], cancel: Cancel | None = None
    ) -> None:
        self.grid = Grid(image_size, (int(seen.shape[-2]), int(seen.shape[-1])))
        with torch.no_grad():
            seen = _stretched(seen)
            self._maps = {CLASSIC: _classic(seen[0], cancel)} | _encoded(network, seen, cancel)

    def at(self, y: NDArray[np.integer], x: NDArray[np.integer], groups: Sequence[int]) -> Tensor:
        """Return the features [N, d] of some pixels of the image, one group after the other."""
        parts = []
        for stride in groups:
            positions: Positions = locate_cells(self.grid, y, x, stride)
            parts.append(values_at(self._maps[stride], positions))
        return torch.cat(parts, dim=1)


def columns(rows: Tensor, groups: Sequence[int]) -> Tensor:  # [N, d] → [N, d']
    """Return the features of some groups from rows that hold all of them."""
    starts = dict(zip(GROUPS, np.cumsum([0, *GROUPS.values()]).tolist(), strict=False))
    return torch.cat([rows[:, starts[group] : starts[group] + GROUPS[group]] for group in groups], dim=1)


def _stretched(seen: Tensor) -> Tensor:
    """Return an image that uses the whole range of values, -1 to 1, its colours in proportion.

    One micrograph is often several times brighter than the next, and all that was learnt of one by its
    brightness would be wrong in the other.
    """
    low, high = np.percentile(seen[..., ::2, ::2].cpu().numpy(), _RANGE).tolist()
    width = max(high - low, _SMALLEST_RANGE)
    stretched: Tensor = ((seen - low) * (2 / width) - 1).clamp(-1.5, 1.5)
    return stretched


def _classic(seen: Tensor, cancel: Cancel | None) -> Tensor:  # [3, h, w] → [60, h, w]
    height, width = seen.shape[-2:]
    short = (0, max(0, _SMALLEST - width), 0, max(0, _SMALLEST - height))
    planes = F.pad(seen[None], short, mode="replicate")[0].cpu().numpy()
    found: list[NDArray[np.float32]] = []
    for number, plane in enumerate(planes):
        raise_if_cancelled(cancel)
        if number and (plane == planes[0]).all():  # a grey image needs the work done once
            found.append(found[0])
            continue
        features = multiscale_basic_features(plane, sigma_min=1.0, sigma_max=_WIDEST_BLUR)
        found.append(np.moveaxis(features, -1, 0)[:, :height, :width].astype(np.float32))
    return torch.from_numpy(np.concatenate(found))


def _encoded(network: LiteNetwork, seen: Tensor, cancel: Cancel | None) -> dict[int, Tensor]:
    bottom, right = -seen.shape[-2] % STRIDE, -seen.shape[-1] % STRIDE
    x = F.relu6(network.encoder.stem(F.pad(seen, (0, right, 0, bottom), mode="replicate")))
    maps: dict[int, Tensor] = {}
    for number, block in enumerate(network.encoder.blocks):
        raise_if_cancelled(cancel)
        x = block(x)
        if number in _BLOCKS:
            maps[_BLOCKS[number]] = x[0].cpu()
    return maps
