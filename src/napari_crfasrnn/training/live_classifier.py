"""A classifier that answers every stroke, for classes that no model knows yet.

Before the first round of learning there is nothing to refine: no network says a word of classes that a person
has just named. So a small panel learns the strokes themselves, each time one ends, and labels the rest of the
plane, in about the time that it takes to look at it. It is of the kind that a round of learning teaches, with
fewer trees and iterations; and nothing is held back to check it by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn.classes import ignore_value
from napari_crfasrnn.config import TrainConfig
from napari_crfasrnn.experts import FeatureMaps, Panel, Sieve
from napari_crfasrnn.experts.features import FINE
from napari_crfasrnn.kernels import PreparedImage
from napari_crfasrnn.network import LiteNetwork, SegmentationModel
from napari_crfasrnn.progress import Cancel, raise_if_cancelled, stop_if
from napari_crfasrnn.segmenter.live import Refined, Strokes, labels_of, takes_whole
from napari_crfasrnn.segmenter.refining import Box, crf_plane, hold, run_crf
from napari_crfasrnn.training.growing import Pixels
from napari_crfasrnn.training.panel_learner import PanelLearner
from napari_crfasrnn.training.panel_tiles import cautious_crf, is_kind, wide_crf
from napari_crfasrnn.training.planes import balanced

MOST_PIXELS = 1 << 22  # of a plane that is labelled as a whole
_CONFIG = TrainConfig(seed=0, max_iterations=60)
_TREES = 16  # of each forest
_MAX_PIXELS = 3_000  # to learn from each plane
_GROUPS = (*FINE, 32)  # features that the panel reads


@dataclass(frozen=True, eq=False)
class StrokeLesson:
    """Some painted pixels of a plane.

    Attributes
    ----------
    labels
        [N] what was painted.
    rows
        [N, d] features.
    """

    labels: NDArray[np.int64]
    rows: Tensor


class LiveClassifier:
    """One plane, labelled anew from its strokes whenever one ends.

    It has the verbs of `LiveRefinement`, but no previews. To be used by one thread at a time.

    Parameters
    ----------
    model
        Whose class table, and whose encoder gives features.
    image
        ``float32 [C, H, W]``, 0..255, of a size that it `takes`.
    elsewhere
        The lessons of other planes, which are learnt, too.
    cancel
        Asked while features are computed.

    Attributes
    ----------
    lesson
        What was painted on this plane, as of the last answer.

    Raises
    ------
    ValueError
        If it does not take such a plane, or the model has no encoder.
    Cancelled
        When asked to stop.
    """

    is_whole = True
    has_previews: Final[Literal[False]] = False

    def __init__(
        self,
        model: SegmentationModel,
        image: NDArray[np.float32],
        elsewhere: Sequence[StrokeLesson] = (),
        cancel: Cancel | None = None,
    ) -> None:
        self._size = (image.shape[1], image.shape[2])
        if not isinstance(model.network, LiteNetwork) or not self.takes(model, self._size):
            raise ValueError(
                f"image must be of at most {MOST_PIXELS:,} pixels, and the model an FcnLite or FcnFine; got "
                f"{self._size[0]} x {self._size[1]} pixels and {type(model.network).__name__}"
            )
        plane = torch.from_numpy(image)[None].to(model.device)
        self.lesson = StrokeLesson(np.empty(0, np.int64), torch.empty(0))
        self._elsewhere = tuple(elsewhere)
        self._model, self._plane = model, crf_plane(model, plane)
        self._maps = FeatureMaps(model.network, model.preprocess(plane), self._size, cancel)
        # Of larger planes the features are coarser than what a CRF could mend.
        crfs = (wide_crf, cautious_crf) if takes_whole(self._size) else ()
        self._models = [model.with_crf(crf(model.n_labels).to(model.device)) for crf in crfs]
        self._prepared: dict[int, PreparedImage] = {}  # of each of these

    @staticmethod
    def takes(model: SegmentationModel, plane_shape: tuple[int, int]) -> bool:
        """Return whether the encoder of a model has what the panel reads, and a plane is not too large."""
        return isinstance(model.network, LiteNetwork) and math.prod(plane_shape) <= MOST_PIXELS

    def exact_window(self, box: Box) -> Box:
        """Return the part of the plane that the answer to strokes within a box looks at: all of it."""
        return (0, 0, *self._size)

    def exact(self, box: Box, strokes: Strokes, before: Strokes, *, cancel: Cancel | None = None) -> Refined:
        """Label the plane from its strokes; the same strokes give the same labels.

        Parameters
        ----------
        box
            What the last stroke lies in; it does not matter where that is.
        strokes
            ``[H, W]`` all that is painted now, the ignore value elsewhere.
        before
            What was before the last stroke; it does not matter.
        cancel
            Asked all the time.

        Returns
        -------
        Refined, of the whole plane. As long as all strokes are of one class, nothing changes.

        Raises
        ------
        Cancelled
            If ``cancel`` said so.
        """
        self.lesson = self._read(strokes)
        lessons = [each for each in (self.lesson, *self._elsewhere) if len(each.labels)]
        whole = (0, 0, *self._size)
        if len({*np.concatenate([each.labels for each in lessons] or [self.lesson.labels]).tolist()}) < 2:
            unknown = torch.zeros(self._model.n_labels, *self._size)
            return Refined(whole, strokes.copy(), np.zeros(self._size, bool), unknown)
        sieve = Sieve.of_image(self._size, quick=True)
        judged = self._taught(lessons, cancel).judge(self._maps, sieve, cancel)
        logits = self._refined(sieve.spread(judged), strokes, cancel)
        return Refined(whole, labels_of(logits, strokes), np.ones(self._size, bool), logits[0])

    def _read(self, strokes: Strokes) -> StrokeLesson:
        y, x = np.nonzero(strokes != ignore_value(strokes.dtype))
        labels = strokes[y, x].astype(np.int64)
        some = balanced(labels, _MAX_PIXELS, np.random.default_rng(_CONFIG.seed))
        return StrokeLesson(labels[some], self._maps.at(y[some], x[some], _GROUPS))

    def _taught(self, lessons: Sequence[StrokeLesson], cancel: Cancel | None) -> Panel:
        column = torch.from_numpy(np.concatenate([each.labels for each in lessons]))
        pixels = Pixels(torch.cat([each.rows for each in lessons]), column, torch.ones(len(column)))
        learner = PanelLearner(
            self._model.n_labels, None, pixels, False, False, _CONFIG, cancel, n_trees=_TREES
        )
        for _ in range(_CONFIG.max_iterations):
            raise_if_cancelled(cancel)
            learner.step()
        learner.finish()
        return learner.panel.to(self._model.device)

    def _refined(self, logits: Tensor, strokes: Strokes, cancel: Cancel | None) -> Tensor:  # [1, L, H, W]
        """Return what the wide CRF makes of logits, or the narrow one where that would dissolve classes."""
        if not self._models:
            return logits
        (wide, narrow), on_step = self._models, stop_if(cancel)
        free = run_crf(
            wide, logits, self._kernels(wide, cancel), on_step
        )  # strokes that are held stay anyway
        refined = free[0].argmax(0).cpu().numpy()
        model = wide if is_kind([logits], [refined], [strokes]) else narrow
        prepared, painted = self._kernels(model, cancel), strokes != ignore_value(strokes.dtype)
        return run_crf(model, hold(logits, logits, strokes, painted, prepared), prepared, on_step)

    def _kernels(self, model: SegmentationModel, cancel: Cancel | None) -> PreparedImage:
        """Return the kernels of the plane, made when first needed."""
        if id(model) not in self._prepared:
            self._prepared[id(model)] = model.crf.prepare(self._plane, on_step=stop_if(cancel))
        return self._prepared[id(model)]
