"""A forest that reads strokes, for classes that the network knows nothing of yet.

A few strokes of a new kind of image are too little for the head of a network, which sees everything
through features of stride 8 and learns the strokes by heart. Extremely randomised trees (Geurts, Ernst
and Wehenkel, Machine Learning 2006) on fine features are not troubled by that. So they label the rest of
the image, softly, and the head learns from them: it ends up better than they are, because it sees
context, and only the head is needed afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from skimage.feature import multiscale_basic_features
from sklearn.ensemble import ExtraTreesClassifier
from torch import Tensor

from napari_crfasrnn.encoder import fill_up
from napari_crfasrnn.experts.sampling import Grid, Lay, locate_cells, values_at
from napari_crfasrnn.network import LiteNetwork, SegmentationModel
from napari_crfasrnn.progress import Cancel, raise_if_cancelled
from napari_crfasrnn.training.planes import LabelledPlane, PixelSample, View

# One forest for each kind of feature, averaged: the kinds fail in different places, and a forest of all
# of them together picks little from the smaller groups.
_KINDS = {"classic": (1,), "fine": (2, 4, 8), "context": (8, 16)}  # strides of the maps
_TREES = 24  # of each kind
_TREES_AT_ONCE = 4  # between two looks at the cancel button
_DEPTH = 20
_MIN_LEAF = 3
_MAX_PIXELS = 12_000  # more make the forest slow and hardly better
_WIDEST_BLUR = 16.0  # pixels, of the classic features
_FINE_BLOCKS = {0: 2, 2: 4, 4: 8, 10: 16}  # blocks of the encoder, and the strides of their outputs


def forest_marginals(
    model: SegmentationModel,
    planes: Sequence[LabelledPlane],
    views: Sequence[View],
    seed: int,
    cancel: Cancel | None,
) -> list[Tensor]:
    """Return for each view the marginals [K, L] of its untouched pixels, by a forest of all views' labels.

    Parameters
    ----------
    model
        Whose encoder gives part of the features.
    planes, views
        Labelled planes, and a view of each, not mirrored.
    seed
        Of the forest and of the pixels it learns from.
    cancel
        Asked between images and every few trees.

    Raises
    ------
    Cancelled
        When asked to stop.
    """
    features = []
    for plane, view in zip(planes, views, strict=True):
        raise_if_cancelled(cancel)
        features.append(_Features(model, plane, view.grid))
    targets = np.concatenate([view.training.target.cpu().numpy() for view in views])
    total = [np.zeros((len(view.untouched), model.n_labels), np.float32) for view in views]
    kinds = [strides for strides in _KINDS.values() if features[0].has(strides)]
    for strides in kinds:
        rows = [one.at(view.training, strides) for one, view in zip(features, views, strict=True)]
        forest = _grow(np.concatenate(rows), targets, seed, cancel)
        for one, view, marginals in zip(features, views, total, strict=True):
            raise_if_cancelled(cancel)
            if len(marginals):
                marginals[:, forest.classes_] += forest.predict_proba(one.at(view.untouched, strides))
    return [torch.from_numpy(marginals / len(kinds)).to(model.device) for marginals in total]


def _grow(
    rows: NDArray[np.float32],  # [N, d]
    targets: NDArray[np.int64],  # [N]
    seed: int,
    cancel: Cancel | None,
) -> ExtraTreesClassifier:
    counts = np.bincount(targets).astype(np.float64)
    if len(rows) > _MAX_PIXELS:
        chance = counts[targets] ** -0.5
        random = np.random.default_rng([seed, 3])
        chosen = random.choice(len(rows), _MAX_PIXELS, replace=False, p=chance / chance.sum())
        rows, targets = rows[chosen], targets[chosen]
        counts = np.bincount(targets).astype(np.float64)
    forest = ExtraTreesClassifier(
        n_estimators=0,
        max_depth=_DEPTH,
        min_samples_leaf=_MIN_LEAF,
        random_state=seed % 2**32,
        warm_start=True,
    )
    for n_trees in range(_TREES_AT_ONCE, _TREES + 1, _TREES_AT_ONCE):
        raise_if_cancelled(cancel)
        forest.set_params(n_estimators=n_trees)
        forest.fit(rows, targets, sample_weight=1 / counts[targets])
    return forest


class _Features:
    """Fine features of a plane: blurred colours, edges and ridges, and the encoder's first maps."""

    def __init__(self, model: SegmentationModel, plane: LabelledPlane, grid: Grid) -> None:
        self._grid = grid
        image = F.interpolate(plane.image, size=grid.input_size, mode="bilinear", antialias=True)[0]
        classic = multiscale_basic_features(
            image.numpy(), channel_axis=0, sigma_min=1.0, sigma_max=_WIDEST_BLUR
        )
        self._maps = {1: torch.from_numpy(classic).movedim(-1, 0)}
        if isinstance(model.network, LiteNetwork):
            with torch.no_grad():
                self._maps |= _fine_maps(model.network, model.preprocess(plane.image))

    def has(self, strides: Sequence[int]) -> bool:
        """Return whether there are maps of these strides."""
        return all(stride in self._maps for stride in strides)

    def at(self, sample: PixelSample, strides: Sequence[int]) -> NDArray[np.float32]:  # [N, d]
        """Return the features of some pixels, from the maps of some strides."""
        y, x = sample.place.cpu().numpy().astype(np.int64).T
        parts = [
            values_at(self._maps[stride], locate_cells(self._grid, y, x, Lay.of_encoder(self._grid, stride)))
            for stride in strides
        ]
        rows: NDArray[np.float32] = torch.cat(parts, dim=1).numpy()
        return rows


def _fine_maps(network: LiteNetwork, seen: Tensor) -> dict[int, Tensor]:
    """Return the encoder's maps [C, h, w] by stride."""
    maps = network.encoder.maps(fill_up(seen), tuple(_FINE_BLOCKS))
    return {stride: each[0].cpu() for stride, each in zip(_FINE_BLOCKS.values(), maps, strict=True)}
