"""What holds a head back that learns: it must not lose what the network knew."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from napari_crfasrnn.config import TrainConfig
from napari_crfasrnn.fcn_fine import FcnFine
from napari_crfasrnn.network import LiteNetwork, SegmentationModel
from napari_crfasrnn.progress import Cancel
from napari_crfasrnn.training.background import background_views
from napari_crfasrnn.training.planes import LabelledPlane, View
from napari_crfasrnn.training.teacher import Advice, advise_by_forest, advise_by_votes, advise_to_stay

_SLOWNESS = 0.3  # of the learning rate, for corrections of a network that was made for one kind of image
_MOST_CELLS = 128**2  # of its finest map in an iteration: a window of 256 pixels
_WHOLE = 0.5  # share of labelled pixels from which on planes are labelled as a whole


class Restraint:
    """What holds the head of a network back in a round, by what the network knows.

    A network that was made for one kind of image is right in most places, and what a person leaves as it is
    there is right. So it keeps more than one of all kinds of photographs, whose errors are whole objects.

    Parameters
    ----------
    model
        Before the round.
    knows
        Whether the network knows more of its classes than the background.
    config
        Of the round.
    """

    def __init__(self, model: SegmentationModel, knows: bool, config: TrainConfig) -> None:
        self._knows = knows
        self._is_fitting = knows and isinstance(model.network, FcnFine) and not config.thaw
        self._config = config

    def advice(
        self,
        model: SegmentationModel,
        planes: Sequence[LabelledPlane],
        views: Sequence[View],
        cancel: Cancel | None,
    ) -> list[Advice]:
        """Return what the untouched pixels of every plane should become, or nothing where nobody knows.

        Raises
        ------
        Cancelled
            When asked to stop.
        """
        first = views[: len(planes)]
        if self._is_fitting:
            return [advise_to_stay(model, view, self._config.keep_weight) for view in first]
        if self._knows:
            return advise_by_votes(model, first, self._config, cancel)
        classes = set[int]().union(*(set(view.training.target.tolist()) for view in first))
        if len(classes) < 2:  # a forest that saw one class only would say that all is of this class
            return []
        return advise_by_forest(model, planes, first, self._config, cancel)

    def replay(self, model: SegmentationModel, cancel: Cancel | None) -> list[tuple[View, Advice]]:
        """Return views of photographs that are to look as they did, if the network knows their kind.

        What a network made for one kind of image says of everyday photographs is not worth keeping.

        Raises
        ------
        Cancelled
            When asked to stop.
        """
        is_of_photographs = model.config.preprocessing.stretch is None and not self._is_fitting
        if not (self._knows and is_of_photographs and isinstance(model.network, LiteNetwork)):
            return []
        views = background_views(model, encode=not self._config.thaw, cancel=cancel)
        return [(view, advise_to_stay(model, view, self._config.keep_weight)) for view in views]

    def config(self, planes: Sequence[LabelledPlane]) -> TrainConfig:
        """Return how the head learns."""
        if not self._are_corrections(planes):
            return self._config
        return self._config.model_copy(update={"learning_rate": _SLOWNESS * self._config.learning_rate})

    def most_cells(self, planes: Sequence[LabelledPlane]) -> int | None:
        """Return how many cells of the finest map an iteration may have; None if whole images shall teach."""
        return _MOST_CELLS if self._are_corrections(planes) else None

    def may_tune_crf(self, planes: Sequence[LabelledPlane]) -> bool:
        """Return whether the labels can teach a CRF that was learnt from many images.

        Strokes that correct errors say nothing of what is right, and lie where the CRF did not help.
        """
        return not self._are_corrections(planes)

    def _are_corrections(self, planes: Sequence[LabelledPlane]) -> bool:
        """Return whether the labels are of places where a network is wrong that is right elsewhere."""
        labelled = [plane.n_training / math.prod(plane.size) for plane in planes]
        return self._is_fitting and float(np.mean(labelled)) < _WHOLE
