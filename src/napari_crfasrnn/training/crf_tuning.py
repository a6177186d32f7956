"""Learning the CRF's matrices on tiles around the labels, and scoring a model with its CRF there.

A tile is small enough that one inference takes a fraction of a second; its lattices are built once
and serve every iteration and every score.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn import metrics
from napari_crfasrnn.classes import ignore_value
from napari_crfasrnn.config import TrainConfig
from napari_crfasrnn.crf import CrfRnn
from napari_crfasrnn.edits import Box
from napari_crfasrnn.experts.sampling import Positions, values_at
from napari_crfasrnn.kernels import PreparedImage
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.progress import Cancel, raise_if_cancelled, stop_if
from napari_crfasrnn.training.adamw import AdamW
from napari_crfasrnn.training.planes import LabelledPlane, View
from napari_crfasrnn.training.positions import locate, score_map
from napari_crfasrnn.training.report import LockedScore

_MAX_TILES = 8
_TILE_SIDE = 256  # pixels, with few classes
_TILE_VALUES = 8 * _TILE_SIDE**2  # pixels times classes; more classes take smaller tiles
_MIN_TILE_SIDE = 96
_BALANCE = 0.25  # classes weigh frequency to the power of minus this; more would undo the CRF's priors
_MAX_GRADIENT = 5.0


@dataclass(frozen=True, eq=False)
class Tile:
    """A part of a plane, ready for inference.

    Attributes
    ----------
    view
        Of the plane that it is cut from.
    positions
        Its pixels in the score map, row by row.
    prepared
        The lattices of its image.
    training, locked
        [h, w] classes; -1 elsewhere.
    """

    view: View
    positions: Positions
    prepared: PreparedImage
    training: Tensor
    locked: Tensor

    def logits(self, scores: Tensor) -> Tensor:  # [L, gh, gw] → [1, L, h, w]
        """Return the network's logits of the tile."""
        height, width = self.training.shape
        return values_at(scores, self.positions).T.reshape(1, -1, height, width)


class CrfTuner:
    """Tiles of labelled planes, on which a model's CRF is scored and learns.

    Parameters
    ----------
    model
        Whose CRF; only its `crf` is ever changed, by `tune`.
    planes, views
        Labelled planes, and one view of each, not mirrored.
    config
        Learning rate.
    cancel
        Asked between tiles and iterations.

    Raises
    ------
    Cancelled
        When asked to stop.
    """

    def __init__(
        self,
        model: SegmentationModel,
        planes: Sequence[LabelledPlane],
        views: Sequence[View],
        config: TrainConfig,
        cancel: Cancel | None,
    ) -> None:
        self._model = model
        self._config = config
        self._cancel = cancel
        self._tiles: list[Tile] = []
        for number, box in choose_tiles(planes, model.n_labels):
            raise_if_cancelled(cancel)
            self._tiles.append(_cut(model, planes[number], views[number], box, cancel))

    def __len__(self) -> int:
        return len(self._tiles)

    def score(self) -> LockedScore:
        """Return how well the model, CRF included, does on the tiles' held-back pixels."""
        n_labels = self._model.n_labels
        counts = np.zeros((n_labels, n_labels), np.int64)
        for tile, logits in self._logits():
            held = tile.locked >= 0
            if held.any():
                raise_if_cancelled(self._cancel)
                with torch.no_grad():
                    refined = self._model.crf(
                        logits, prepared=tile.prepared, on_iteration=stop_if(self._cancel)
                    )
                given = refined[0].argmax(0)[held].cpu().numpy()
                counts += metrics.confusion(given, tile.locked[held].cpu().numpy(), n_labels, ignore=None)
        return LockedScore.from_confusion(counts, tuple(spec.name for spec in self._model.classes))

    def turn_to(self, model: SegmentationModel) -> None:
        """Score and tune another model from now on, with the same encoder and the same kernels."""
        self._model = model

    def tune(self) -> CrfTuning:
        """Begin to learn the CRF for the network as it is now."""
        lessons = [(tile, logits) for tile, logits in self._logits() if (tile.training >= 0).any()]
        return CrfTuning(self._model.crf, lessons, self._config)

    def _logits(self) -> list[tuple[Tile, Tensor]]:
        """Return every tile with the network's logits; those of a plane are computed once."""
        network = self._model.network
        scores: dict[int, Tensor] = {}
        found = []
        with torch.no_grad():
            for tile in self._tiles:
                view = tile.view
                if view.plane not in scores:
                    raise_if_cancelled(self._cancel)
                    scores[view.plane] = score_map(network, view.encoded(self._model), view.grid)
                found.append((tile, tile.logits(scores[view.plane])))
        return found


class CrfTuning:
    """The CRF learning, one iteration per call of `step`."""

    def __init__(self, crf: CrfRnn, lessons: Sequence[tuple[Tile, Tensor]], config: TrainConfig) -> None:
        self._crf = crf
        self._lessons = lessons
        self._first = copy.deepcopy(crf.state_dict())
        n_labels = crf.n_labels
        counts = torch.zeros(n_labels)
        for tile, _ in lessons:
            counts += torch.bincount(tile.training[tile.training >= 0].cpu(), minlength=n_labels)
        self._weight = (counts.clamp_min(1) ** -_BALANCE).to(crf.compatibility.device)
        # The compatibility multiplies both weight matrices: learning it, too, would be redundant.
        # The tiles are prepared: the widths are constants here.
        groups = [
            group
            for group in crf.parameter_groups(config.crf_learning_rate)
            if group["name"] in ("spatial", "bilateral", "scales")
        ]
        self._optimizer = AdamW(groups, betas=(0.9, 0.99), max_norm=_MAX_GRADIENT)
        self._iteration = 0

    def step(self) -> float:
        """Do one iteration on the next tile and return its loss; when that is not finite, nothing changed."""
        tile, logits = self._lessons[self._iteration % len(self._lessons)]
        with torch.enable_grad():
            loss = self._loss(tile, logits)
            value = float(loss.detach())
            if not np.isfinite(value):
                return value
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._iteration += 1
        return value

    @torch.no_grad()
    def loss(self, cancel: Cancel | None) -> float:
        """Return the mean loss over all tiles as the CRF is now."""
        losses = []
        for tile, logits in self._lessons:
            raise_if_cancelled(cancel)
            losses.append(float(self._loss(tile, logits)))
        return float(np.mean(losses)) if losses else 0.0

    def undo(self) -> None:
        """Put the CRF back as it was."""
        self._crf.load_state_dict(self._first)

    def __len__(self) -> int:
        return len(self._lessons)

    def _loss(self, tile: Tile, logits: Tensor) -> Tensor:
        n_iterations = self._crf.config.n_iterations_train
        refined = self._crf(logits, prepared=tile.prepared, n_iterations=n_iterations)
        return F.cross_entropy(refined, tile.training[None], weight=self._weight, ignore_index=-1)


def choose_tiles(planes: Sequence[LabelledPlane], n_labels: int) -> list[tuple[int, Box]]:
    """Return up to `_MAX_TILES` tiles as (plane, box), those first that add most to the rarest labels."""
    side = max(_MIN_TILE_SIDE, min(_TILE_SIDE, int((_TILE_VALUES / n_labels) ** 0.5)))
    candidates: list[tuple[int, Box, NDArray[np.float64]]] = []
    for number, plane in enumerate(planes):
        for box in _tile_boxes(plane.place, side):
            counts = np.concatenate([_count(part, box, n_labels) for part in (plane.training, plane.locked)])
            if counts.any():
                candidates.append((number, box, counts))
    chosen: list[tuple[int, Box]] = []
    total = np.zeros(2 * n_labels)
    while candidates and len(chosen) < _MAX_TILES:
        gains = [np.sum(np.sqrt(total + counts) - np.sqrt(total)) for _, _, counts in candidates]
        number, box, counts = candidates.pop(int(np.argmax(gains)))
        chosen.append((number, box))
        total += counts
    return chosen


def _tile_boxes(place: Box, side: int) -> list[Box]:
    rows, columns = (
        np.linspace(start, end, -(-(end - start) // side) + 1).round().astype(int).tolist()
        for start, end in zip(place[:2], place[2:], strict=True)
    )
    return [(y0, x0, y1, x1) for y0, y1 in pairwise(rows) for x0, x1 in pairwise(columns)]


def _count(labels: NDArray[np.integer], box: Box, n_labels: int) -> NDArray[np.float64]:
    y0, x0, y1, x1 = box
    part = labels[y0:y1, x0:x1]
    present = part[part != ignore_value(labels.dtype)]
    return np.bincount(present, minlength=n_labels).astype(np.float64)


def _cut(model: SegmentationModel, plane: LabelledPlane, view: View, box: Box, cancel: Cancel | None) -> Tile:
    y0, x0, y1, x1 = box
    y, x = (axis.ravel() for axis in np.mgrid[y0:y1, x0:x1])
    device = model.device

    def part(labels: NDArray[np.integer]) -> Tensor:
        cut = labels[y0:y1, x0:x1].astype(np.int64)
        cut[cut == ignore_value(labels.dtype)] = -1
        return torch.from_numpy(cut).to(device)

    image = model.crf_image(plane.image)[..., y0:y1, x0:x1]
    return Tile(
        view=view,
        positions=locate(model.network, view.grid, y, x).to(device),
        prepared=model.crf.prepare(image, scale=model.crf_scale(plane.size), on_step=stop_if(cancel)),
        training=part(plane.training),
        locked=part(plane.locked),
    )
