"""What a round does for a panel: read the planes, teach the experts, choose the CRF."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn import metrics
from napari_crfasrnn.classes import ignore_value
from napari_crfasrnn.config import TrainConfig
from napari_crfasrnn.edits import Box, contradictions
from napari_crfasrnn.experts import FeatureMaps, Panel
from napari_crfasrnn.experts.features import GROUPS
from napari_crfasrnn.network import FcnLite, SegmentationModel
from napari_crfasrnn.progress import Cancel, raise_if_cancelled
from napari_crfasrnn.training.crf_tuning import choose_tiles
from napari_crfasrnn.training.panel_learner import PanelLearner
from napari_crfasrnn.training.panel_tiles import PanelTile, PanelTiles
from napari_crfasrnn.training.planes import LabelledPlane, any_of, balanced
from napari_crfasrnn.training.report import LockedScore, PlaceOfContradiction

_MAX_PIXELS = 15_000  # to learn, of all planes together; more teach hardly more, and take their time
_MIN_PLANE_PIXELS = 200  # of each plane, however many planes there are
_MAX_LOCKED = 4_000  # of all planes, for the scores on the way
_MAX_STROKE_PIXELS = 50_000  # of a plane; one with more holds masks, whose rims are always in doubt
_ALL = tuple(GROUPS)
_DRAW_STREAM = 4  # random stream, beside those of the head
_MEASURE_EVERY = 25  # iterations


@dataclass(frozen=True, eq=False)
class _Pixels:
    """Some labelled pixels of a plane: places, classes [n], features [n, d]."""

    y: NDArray[np.int64]
    x: NDArray[np.int64]
    target: NDArray[np.int64]
    rows: Tensor


@dataclass(eq=False)
class PanelRound:
    """Teaches a panel from labelled planes.

    Parameters
    ----------
    model
        Whose encoder and classes; not changed.
    planes
        All of them.
    config
        Seed, iterations, learning rate.
    cancel
        Asked all the time.
    is_late
        Whether there is no time to read yet another plane.

    Attributes
    ----------
    n_read
        How many planes were read: the first ones.
    """

    model: SegmentationModel
    planes: Sequence[LabelledPlane]
    config: TrainConfig
    cancel: Cancel | None
    is_late: Callable[[], bool]
    n_read: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        boxes = choose_tiles(self.planes, self.model.n_labels)
        random = np.random.default_rng([self.config.seed, _DRAW_STREAM])
        self._training: list[_Pixels] = []
        self._locked: list[_Pixels] = []
        tiles: list[PanelTile] = []
        for number, plane in enumerate(self.planes):
            raise_if_cancelled(self.cancel)
            if number and self.is_late():
                break
            self.n_read = number + 1
            maps = self._maps(plane)
            limit = max(_MIN_PLANE_PIXELS, _MAX_PIXELS // len(self.planes))
            self._training.append(_read(maps, plane.training, limit, random))
            self._locked.append(_read(maps, plane.locked, 1 + _MAX_LOCKED // len(self.planes), None))
            tiles += [_cut(maps, plane, box) for place, box in boxes if place == number]
        self.tiles = PanelTiles(tiles, self.model, self.cancel)
        self.learner: PanelLearner | None = None

    def start(self) -> PanelLearner:
        """Grow the forests, and get ready to teach the perceptrons step by step."""
        rows = torch.cat([pixels.rows for pixels in self._training])
        target = torch.from_numpy(np.concatenate([pixels.target for pixels in self._training]))
        self.learner = PanelLearner(self.model.n_labels, rows, target, self.config, self.cancel)
        return self.learner

    def measure(self, panel: Panel, iteration: int) -> float | None:
        """Return the mean IoU on held-back pixels, without CRF, if it is due and can be told."""
        rows = [pixels.rows for pixels in self._locked if len(pixels.target)]
        if iteration % _MEASURE_EVERY or not rows:
            return None
        given = panel.marginals(torch.cat(rows)).argmax(1).numpy()
        truth = np.concatenate([pixels.target for pixels in self._locked])
        counts = metrics.confusion(given, truth, self.model.n_labels, ignore=None)
        return LockedScore.from_confusion(counts, tuple(spec.name for spec in self.model.classes)).miou

    def contradictions(self, panel: Panel) -> tuple[PlaceOfContradiction, ...]:
        """Return the strokes that the panel, having learnt them, sees as another class."""
        found = []
        for plane, pixels in zip(self.planes, self._training, strict=False):
            raise_if_cancelled(self.cancel)
            if not 0 < plane.n_training <= _MAX_STROKE_PIXELS:
                continue
            prediction = plane.training.copy()
            prediction[pixels.y, pixels.x] = panel.marginals(pixels.rows).argmax(1).numpy()
            found += [
                PlaceOfContradiction(plane.item_id, plane.index, region)
                for region in contradictions(plane.training, prediction)
            ]
        return tuple(found)

    def _maps(self, plane: LabelledPlane) -> FeatureMaps:
        network = self.model.network
        assert isinstance(network, FcnLite)
        return FeatureMaps(network, self.model.preprocess(plane.image), plane.size, self.cancel)


def _read(
    maps: FeatureMaps, labels: NDArray[np.integer], limit: int, random: np.random.Generator | None
) -> _Pixels:
    """Return the labelled pixels with their features, or a drawn sample: balanced, or (None) as they come."""
    y, x = np.nonzero(labels != ignore_value(labels.dtype))
    target = labels[y, x].astype(np.int64)
    if random is None:
        chosen = any_of(len(y), limit, np.random.default_rng(0))
    else:
        chosen = balanced(target, limit, random)
    y, x, target = y[chosen], x[chosen], target[chosen]
    return _Pixels(y, x, target, maps.at(y, x, _ALL))


def _cut(maps: FeatureMaps, plane: LabelledPlane, box: Box) -> PanelTile:
    tile = PanelTile(plane, box, torch.empty(0))
    y, x = tile.sieve.pixels()
    return PanelTile(plane, box, maps.at(y, x, _ALL))
