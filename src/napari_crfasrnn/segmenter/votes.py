"""What strokes say of the pixels that nobody painted, where the model knows the classes.

Somebody who paints a stroke into a wrong region means the region. The CRF alone carries a stroke only as far
as pixels of like colour are near, and a network that is wrong is as sure of itself all over the region. So
all pixels take a vote (a Nadaraya-Watson estimate) among the strokes and the network's own predictions. A
vote counts by how alike two pixels are in the network's eyes, in what they are predicted to be, in colour and
in their place; a prediction counts a fraction of a painted pixel, times how sure the network is. A pixel that
resembles the strokes more than the rest follows them, and the rest stays.

Here the voters are the cells of a grid as coarse as the network's own map: neighbouring pixels of a stroke
look the same to it, and a vote takes a tenth of the time. What it says goes to the logits; the CRF then finds
the edges.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn.fcn_fine import FcnFine
from napari_crfasrnn.network import LiteNetwork, SegmentationModel
from napari_crfasrnn.plane_logits import PlaneLogits
from napari_crfasrnn.progress import Cancel
from napari_crfasrnn.segmenter.parts import takes_whole
from napari_crfasrnn.segmenter.refining import evaluating

MOST_VOTERS = 1_500  # old predictions that vote: more change nothing but the time
WIDTH = 0.5  # of the kernel, in the units that the weights below and in `VoteWeights` set
NETWORK_WEIGHT = 0.5  # squared distances: 1 is what two random pixels have on average, per dimension
PREDICTION_WEIGHT = 1.5  # of the squared difference between the marginals
_COLOUR_WEIGHT = 0.5  # real images do not need it; a network that sees nothing does
PLACE_UNIT = 0.25  # of the longer side of the image
SMALLEST_DEVIATION = 1e-3
_CLIP = 6.0  # standard deviations
_GRID_SIDE = 80  # cells along the longer side, about: finer maps are averaged
_LEAST = 1e-6  # probability
_CHUNK = 1_024


@dataclass(frozen=True)
class VoteWeights:
    """How much counts in a vote what depends on what the network was made for."""

    place: float
    """Of the squared distance in the image, in `PLACE_UNIT`."""
    old: float
    """Of a prediction, where a painted pixel has 1."""


OF_ANY_IMAGE = VoteWeights(place=1.0, old=0.05)
OF_ONE_KIND = VoteWeights(place=4.0, old=0.1)
"""A network made for one kind of image is right in most places: strokes reach less far."""


class StrokeVotes:
    """The votes on one plane.

    Parameters
    ----------
    model
        What looks at the plane; `takes` says whether it can.
    image
        ``[1, C, H, W]``, 0..255.
    logits
        What the network says of it.
    cancel
        Asked while features are computed.

    Raises
    ------
    Cancelled
        If ``cancel`` said so.
    """

    def __init__(
        self, model: SegmentationModel, image: Tensor, logits: PlaneLogits, cancel: Cancel | None = None
    ) -> None:
        network = model.network
        assert isinstance(network, LiteNetwork)
        weights = OF_ONE_KIND if isinstance(network, FcnFine) else OF_ANY_IMAGE
        self._size, self._n_labels = logits.size, model.n_labels
        self._unheard: tuple[int, ...] = ()
        with evaluating(model):
            seen = model.preprocess(image)
            features = network.level_inputs(network.encode(seen, cancel))[-1]
            per_cell = max(1, round(max(features.shape[-2:]) / _GRID_SIDE))
            features = F.avg_pool2d(features, per_cell, ceil_mode=True)[0]
            stride = network.stride * per_cell
            # In pixels of the plane; the network fills its input up, and what it sees there is left out.
            self._cell = tuple(stride * of / to for of, to in zip(self._size, seen.shape[-2:], strict=True))
            self._grid = (math.ceil(seen.shape[-2] / stride), math.ceil(seen.shape[-1] / stride))
            features = features[:, : self._grid[0], : self._grid[1]]
            rows, columns = (
                ((torch.arange(count) + 0.5) * cell - 0.5).to(features.device)
                for count, cell in zip(self._grid, self._cell, strict=True)
            )
            place = torch.cartesian_prod(rows, columns)
            nearest = [
                middle.round().long().clamp(0, side - 1)
                for middle, side in zip(place.unbind(1), self._size, strict=True)
            ]
            self._marginals = logits.at(*nearest).T.float().softmax(1)
            colours = _standardised(F.adaptive_avg_pool2d(image / 255, self._grid)[0])
            in_network = kernel_place(
                _standardised(features),
                self._marginals,
                place / (PLACE_UNIT * max(self._size)),
                weights.place,
            )
            self._place = torch.cat(
                [in_network, colours * (math.sqrt(_COLOUR_WEIGHT / colours.shape[1]) / WIDTH)], dim=1
            )
            n_cells = len(place)
            voters = torch.linspace(0, n_cells - 1, min(n_cells, MOST_VOTERS), device=place.device).long()
            count = weights.old * math.prod(self._size) / len(voters) * certainty(self._marginals[voters])
            self._old = kernel_sums(self._place, self._place[voters], count[:, None])  # [G, 1]

    @staticmethod
    def takes(model: SegmentationModel, plane_shape: tuple[int, int]) -> bool:
        """Return whether a network has what the kernel reads, and a plane is refined as a whole."""
        reads = isinstance(model.network, LiteNetwork) and model.config.preprocessing.frame == "free"
        return reads and takes_whole(plane_shape)

    def without(self, classes: Sequence[int]) -> StrokeVotes:
        """Return votes on the same plane in which strokes of some classes have none."""
        others = copy.copy(self)
        others._unheard = tuple(classes)
        return others

    def added(
        self,
        logits: Tensor,  # [1, L, H, W]
        labels: NDArray[Any],  # [H, W]
        painted: NDArray[np.bool_],  # [H, W]
    ) -> Tensor:  # [1, L, H, W]
        """Return the logits of the plane with what painted pixels say; the same if there are none."""
        shift = self.shift(labels, painted)
        if shift is None:
            return logits
        covered = [round(count * cell) for count, cell in zip(self._grid, self._cell, strict=True)]
        size = [max(side, of) for side, of in zip(self._size, covered, strict=True)]
        large = F.interpolate(shift, size=size, mode="bilinear", align_corners=False)
        total: Tensor = logits + large[..., : self._size[0], : self._size[1]]
        return total

    def at(
        self,
        shift: Tensor,  # [1, L, gh, gw]
        rows: Tensor,  # [N]
        columns: Tensor,  # [N]
    ) -> Tensor:  # [L, N]
        """Return what is added to the logits of some pixels."""
        middles = [
            ((places + 0.5) / (cell * count) * 2 - 1).to(shift)
            for places, cell, count in zip((rows, columns), self._cell, self._grid, strict=True)
        ]
        grid = torch.stack(middles[::-1], dim=1)[None, None]
        return F.grid_sample(shift, grid, padding_mode="border", align_corners=False)[0, :, 0]

    def shift(
        self,
        labels: NDArray[Any],  # [H, W]
        painted: NDArray[np.bool_],  # [H, W]
    ) -> Tensor | None:  # [1, L, gh, gw]
        """Return what painted pixels add to the logits of the cells; None if there are none."""
        if self._unheard:
            painted = painted & ~np.isin(labels, self._unheard)
        rows, columns = painted.nonzero()
        if not len(rows):
            return None
        votes = self._marginals.new_zeros(self._grid[0] * self._grid[1], self._n_labels)
        at = [
            np.minimum((places / cell).astype(np.int64), count - 1)
            for places, cell, count in zip((rows, columns), self._cell, self._grid, strict=True)
        ]
        counts = np.bincount(
            (at[0] * self._grid[1] + at[1]) * self._n_labels + labels[painted].astype(np.int64),
            minlength=votes.numel(),
        )
        votes = torch.from_numpy(counts).to(votes).reshape(votes.shape)
        voters = votes.sum(1).nonzero()[:, 0]
        said = kernel_sums(self._place, self._place[voters], votes[voters])
        mass = said.sum(1, keepdim=True)
        old = self._marginals.clamp_min(_LEAST)
        # What strokes and predictions say, each by its mass; a pixel that resembles no stroke keeps its own.
        share = mass / (mass + self._old + _LEAST)
        new = (1 - share) * self._marginals + share * said / mass.clamp_min(_LEAST)
        shift: Tensor = (new.clamp_min(_LEAST).log() - old.log()).T.reshape(1, self._n_labels, *self._grid)
        return shift


def _standardised(cells: Tensor) -> Tensor:  # [F, gh, gw] → [G, F]
    flat = cells.flatten(1).T.float()
    return ((flat - flat.mean(0)) / flat.std(0).clamp_min(SMALLEST_DEVIATION)).clamp(-_CLIP, _CLIP)


def kernel_place(network: Tensor, marginals: Tensor, place: Tensor, place_weight: float) -> Tensor:
    """Return the places of pixels in the space of the kernel, [N, d], which has unit width.

    Parameters
    ----------
    network
        [N, F] what the network sees there, in standard deviations of the image.
    marginals
        [N, L] what they are predicted to be.
    place
        [N, 2] where they are, in `PLACE_UNIT`.
    place_weight
        Of that.
    """
    parts = (
        network.clamp(-_CLIP, _CLIP) * math.sqrt(NETWORK_WEIGHT / network.shape[1]),
        marginals * math.sqrt(PREDICTION_WEIGHT),
        place * math.sqrt(place_weight),
    )
    return torch.cat(parts, dim=1) / WIDTH


def kernel_sums(pixels: Tensor, voters: Tensor, votes: Tensor) -> Tensor:
    """Return the sum of votes [V, L] that each of some pixels [n, d] hears from voters [V, d]: [n, L]."""

    def of(part: Tensor) -> Tensor:
        distance: Tensor = torch.cdist(part, voters)
        return torch.exp(-distance.square() / 2) @ votes

    return torch.cat([of(pixels[i : i + _CHUNK]) for i in range(0, len(pixels), _CHUNK)])


def certainty(marginals: Tensor) -> Tensor:
    """Return how sure marginals [N, L] are: 1 less their entropy divided by log L, [N]."""
    entropy: Tensor = torch.special.entr(marginals).sum(1)
    return 1 - entropy / math.log(max(2, marginals.shape[1]))
