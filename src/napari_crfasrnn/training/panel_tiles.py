"""Parts of labelled planes on which a panel is scored with its CRF, and the CRF that suits it is chosen.

A dense CRF helps most classes and ruins thin ones: with a wide kernel a membrane dissolves in the cell around
it. Strokes do not show that, since they lie well inside of regions, so a wide kernel is taken only if it
leaves most of what the panel saw in place. Where regions are labelled as a whole, experts know borders
themselves, and any but a faint one harms more kinds of images than it helps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn import metrics
from napari_crfasrnn.classes import ignore_value
from napari_crfasrnn.config import CrfConfig
from napari_crfasrnn.crf import CrfRnn
from napari_crfasrnn.edits import Box
from napari_crfasrnn.experts import FeatureMaps, Look, Panel, Sieve
from napari_crfasrnn.kernels import PreparedImage
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.plane_logits import PlaneLogits
from napari_crfasrnn.progress import Cancel, raise_if_cancelled, stop_if
from napari_crfasrnn.training.encodings import Encodings
from napari_crfasrnn.training.planes import LabelledPlane
from napari_crfasrnn.training.report import LockedScore

STEP = 2
"""Every second row and column of a tile is judged, as in large images."""

_WIDE = CrfConfig.starter().model_copy(
    update={"theta_beta": 10.0, "bilateral_weight": 4.0, "spatial_weight": 3.0, "unary_scale": 1.0}
)
_NARROW = CrfConfig.starter().model_copy(
    update={"theta_alpha": 16.0, "theta_beta": 6.0, "bilateral_weight": 1.5}
)
_FAINT = CrfConfig.starter().model_copy(
    update={"theta_alpha": 10.0, "theta_beta": 5.0, "bilateral_weight": 0.5, "spatial_weight": 0.1}
)
_DENSE = 0.5  # share of the tiles' pixels that is labelled: from here on, a faint CRF is all there is to gain
_VISIBLE = 0.02  # share of the tiles: classes below do not count
_SURE, _PLAIN = 0.8, 0.005  # marginal; share of the tiles where a class has more than that
_SURVIVAL = 0.5  # of the classes' areas, on average, and of each class where the panel is sure of it
_KEPT = 0.85  # of the labelled pixels that the panel sees right, on average over the classes


@dataclass(frozen=True, eq=False)
class PanelTile:
    """A part of a plane.

    Attributes
    ----------
    plane
        What it is cut from.
    box
        Where.
    maps
        Features of the plane.
    """

    plane: LabelledPlane
    box: Box
    maps: FeatureMaps

    @property
    def sieve(self) -> Sieve:
        """The pixels that are judged."""
        return Sieve(self.box, STEP)

    @property
    def labelled(self) -> NDArray[Any]:
        """[h, w] its labels, held back or not."""
        training, locked = self.cut(self.plane.training), self.cut(self.plane.locked)
        return np.where(training == ignore_value(training.dtype), locked, training)

    def cut(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Return the tile's part of a plane's labels."""
        y0, x0, y1, x1 = self.box
        return labels[y0:y1, x0:x1]


def cautious_crf(n_labels: int) -> CrfRnn:
    """Return the CRF for a panel that there was no time to choose one for: it leaves thin classes alone."""
    return CrfRnn(n_labels, _NARROW).eval()


def wide_crf(n_labels: int) -> CrfRnn:
    """Return the CRF that suits most panels, where it `is_kind`."""
    return CrfRnn(n_labels, _WIDE).eval()


def is_kind(
    judged: Sequence[Tensor], refined: Sequence[NDArray[Any]], labelled: Sequence[NDArray[Any]]
) -> bool:
    """Return whether a CRF leaves the classes most of their area, above all what the panel is sure of.

    Parameters
    ----------
    judged
        [1, L, h, w] the logits of a panel on some parts of images.
    refined
        [h, w] the classes that the CRF makes of them.
    labelled
        Labels of these parts, the ignore value where there is none.
    """
    n_labels = judged[0].shape[1]
    before, after, sure, left, right, kept = np.zeros((6, n_labels))
    for logits, classes, labels in zip(judged, refined, labelled, strict=True):
        chance, first = (each[0].cpu().numpy() for each in logits.softmax(1).max(1))
        is_sure, agreed = chance >= _SURE, labels == first
        before += _counts(first, n_labels)
        after += _counts(classes, n_labels)
        sure += _counts(first[is_sure], n_labels)
        left += _counts(first[is_sure & (classes == first)], n_labels)
        right += _counts(first[agreed], n_labels)
        kept += _counts(first[agreed & (classes == first)], n_labels)
    visible, plain, there = before >= _VISIBLE * before.sum(), sure >= _PLAIN * before.sum(), right > 0
    return bool(
        np.sum(np.minimum(after[visible] / before[visible], 1)) >= _SURVIVAL * visible.sum()
        and (left[plain] >= _SURVIVAL * sure[plain]).all()
        and np.sum(kept[there] / right[there]) >= _KEPT * there.sum()
    )


def _counts(classes: NDArray[np.integer], n_labels: int) -> NDArray[np.int64]:
    return np.bincount(classes.ravel(), minlength=n_labels)[:n_labels]


def are_dense(places: Sequence[tuple[LabelledPlane, Box]]) -> bool:
    """Return whether most pixels of some parts of planes are labelled, held back or not."""
    labelled = []
    for plane, (y0, x0, y1, x1) in places:
        ignore = ignore_value(plane.training.dtype)
        known = (plane.training != ignore) | (plane.locked != ignore) | plane.aside
        labelled.append(float(known[y0:y1, x0:x1].mean()))
    return bool(labelled) and sum(labelled) >= _DENSE * len(labelled)


class PanelTiles:
    """Tiles, and what is computed once for all scores of them.

    Parameters
    ----------
    tiles
        Parts of planes.
    model
        Whose preprocessing.
    encodings
        Of the planes, for what the network says of them.
    cancel
        Asked between tiles, and while lattices are built and the CRF iterates.
    """

    def __init__(
        self,
        tiles: Sequence[PanelTile],
        model: SegmentationModel,
        encodings: Encodings,
        cancel: Cancel | None,
    ) -> None:
        self._tiles = tiles
        self._model = model
        self._encodings = encodings
        self._cancel = cancel
        self._prepared: dict[tuple[CrfConfig, bool], list[PreparedImage]] = {}
        self._seen: tuple[Panel, CrfRnn, list[NDArray[np.int64]]] | None = None  # what was chosen last

    @cached_property
    def are_dense(self) -> bool:
        """Whether most pixels are labelled, as they are where regions were painted as a whole."""
        return are_dense([(tile.plane, tile.box) for tile in self._tiles])

    def score(self, model: SegmentationModel) -> LockedScore:
        """Return how well a model, CRF included, does on the held-back pixels.

        Raises
        ------
        Cancelled
            When asked to stop.
        """
        if self._seen is not None and (model.panel, model.crf) == self._seen[:2]:
            return self._locked_score(self._seen[2])
        logits = self._logits(model)
        return self._locked_score(self._refined(model.crf, logits, with_experts=model.panel is not None))

    def choose_crf(self, panel: Panel) -> CrfRnn:
        """Return the CRF that suits a panel: wide, narrow where that would do harm, or faint.

        What it makes of the tiles is kept for `score`.

        Raises
        ------
        Cancelled
            When asked to stop.
        """
        narrow, wide = cautious_crf(panel.n_labels), wide_crf(panel.n_labels)
        if not self._tiles:
            return narrow
        logits = self._logits(self._model.with_panel(panel))
        if self.are_dense:
            faint = CrfRnn(panel.n_labels, _FAINT).eval()
            return self._chosen(panel, faint, self._refined(faint, logits))
        refined = self._refined(wide, logits)
        if is_kind(logits, refined, [tile.labelled for tile in self._tiles]):
            return self._chosen(panel, wide, refined)
        return self._chosen(panel, narrow, self._refined(narrow, logits))

    def _chosen(self, panel: Panel, crf: CrfRnn, given: list[NDArray[np.int64]]) -> CrfRnn:
        self._seen = (panel, crf, given)
        return crf

    def _logits(self, model: SegmentationModel) -> list[Tensor]:
        """Return the logits [1, L, h, w] of every tile before the CRF."""
        found = []
        whole: dict[int, PlaneLogits] = {}  # what the network says of a plane
        looks: dict[int, Look] = {}  # what the experts make of one
        for tile in self._tiles:
            raise_if_cancelled(self._cancel)
            judged = None
            if model.panel is not None:
                if id(tile.maps) not in looks:
                    looks[id(tile.maps)] = model.panel.look(tile.maps, self._cancel)
                look = looks[id(tile.maps)]
                judged = tile.sieve.spread(model.panel.judge(tile.maps, tile.sieve, self._cancel, look)).cpu()
                if model.panel.is_alone:
                    found.append(judged)
                    continue
            if id(tile.plane) not in whole:
                whole[id(tile.plane)] = self._encodings.logits(model, tile.plane, self._cancel)
            known = whole[id(tile.plane)].within(tile.box).cpu()
            found.append(
                known if model.panel is None or judged is None else model.panel.joined(judged, known)
            )
        return found

    def _refined(
        self, crf: CrfRnn, logits: Sequence[Tensor], *, with_experts: bool = True
    ) -> list[NDArray[np.int64]]:
        """Return the classes [h, w] of every tile after a CRF, in a model with experts or without."""
        on_step, which = stop_if(self._cancel), (crf.config, with_experts)
        if which not in self._prepared:
            self._prepared[which] = [self._kernels(crf, tile, with_experts) for tile in self._tiles]
        found = []
        for each, prepared in zip(logits, self._prepared[which], strict=True):
            raise_if_cancelled(self._cancel)
            with torch.no_grad():
                refined = crf(each.to(self._model.device), prepared=prepared, on_iteration=on_step)
            found.append(refined[0].argmax(0).cpu().numpy())
        return found

    def _kernels(self, crf: CrfRnn, tile: PanelTile, with_experts: bool) -> PreparedImage:
        y0, x0, y1, x1 = tile.box
        image = self._model.crf_image(tile.plane.image)[..., y0:y1, x0:x1]
        scale = self._model.crf_scale(tile.plane.size, with_experts=with_experts)
        return crf.prepare(image, scale=scale, on_step=stop_if(self._cancel))

    def _locked_score(self, given: Sequence[NDArray[np.int64]]) -> LockedScore:
        n_labels = self._model.n_labels
        counts = np.zeros((n_labels, n_labels), np.int64)
        for tile, classes in zip(self._tiles, given, strict=True):
            locked = tile.cut(tile.plane.locked)
            held = locked != ignore_value(locked.dtype)
            counts += metrics.confusion(classes[held], locked[held].astype(np.int64), n_labels, ignore=None)
        return LockedScore.from_confusion(counts, tuple(spec.name for spec in self._model.classes))
