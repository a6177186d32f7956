"""A classifier that answers every stroke, for classes that no model knows yet.

Before the first round of learning there is nothing to refine: no network says a word of classes that a person
has just named. So a small panel learns the strokes themselves, each time one ends, and labels the rest of the
plane, in about the time that it takes to look at it. It is of the kind that a round of learning teaches, with
fewer trees and iterations; and nothing is held back to check it by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn.classes import ignore_value, label_dtype
from napari_crfasrnn.config import TrainConfig
from napari_crfasrnn.crf import CrfRnn
from napari_crfasrnn.edits import Box, box_about, fits_live
from napari_crfasrnn.experts import FeatureMaps, Panel, Sieve
from napari_crfasrnn.experts.features import FINE
from napari_crfasrnn.kernels import PreparedImage
from napari_crfasrnn.network import LiteNetwork, SegmentationModel
from napari_crfasrnn.progress import Cancel, raise_if_cancelled, stop_if
from napari_crfasrnn.segmenter.live import Refined, Strokes, checked_strokes, labels_of
from napari_crfasrnn.segmenter.refining import hold, run_crf
from napari_crfasrnn.training.growing import Pixels
from napari_crfasrnn.training.panel_learner import PanelLearner
from napari_crfasrnn.training.panel_tiles import cautious_crf, is_kind, wide_crf
from napari_crfasrnn.training.planes import any_of, balanced

_LEAST_MARGIN = 128  # pixels from a stroke to the border of that, at least
_CONFIG = TrainConfig(seed=0, max_iterations=60)
_TREES = 16  # of each forest
_MAX_PIXELS = 3_000  # to learn of all planes
_MOST_KEPT = 600  # pixels of the last answer, of each class
_KEEP = 0.1  # what these weigh beside the strokes of the class
_GROUPS = (*FINE, 32)  # features that the panel reads


@dataclass(frozen=True, eq=False)
class StrokeLesson:
    """Some painted pixels of a plane.

    Attributes
    ----------
    y, x
        [N] where they are in the plane.
    labels
        [N] what was painted.
    rows
        [N, d] features.
    """

    y: NDArray[np.int64]
    x: NDArray[np.int64]
    labels: NDArray[np.int64]
    rows: Tensor

    def lies_in(self, box: Box) -> NDArray[np.bool_]:  # [N]
        """Return which pixels lie in a box."""
        y0, x0, y1, x1 = box
        return (self.y >= y0) & (self.y < y1) & (self.x >= x0) & (self.x < x1)

    def joined(self, other: StrokeLesson) -> StrokeLesson:
        """Return these pixels and others of the same plane."""
        return StrokeLesson(
            np.concatenate([self.y, other.y]),
            np.concatenate([self.x, other.x]),
            np.concatenate([self.labels, other.labels]),
            torch.cat([self.rows, other.rows]),
        )

    def select(self, which: NDArray[np.bool_]) -> StrokeLesson:
        """Return some of the pixels, of a mask [N]."""
        return StrokeLesson(
            self.y[which], self.x[which], self.labels[which], self.rows[torch.from_numpy(which)]
        )


@dataclass(frozen=True, eq=False)
class _Answer:
    """What was made of some strokes: labels [H, W], and how much likelier than the next they are, 0..1."""

    strokes: Strokes
    labels: Strokes
    sure: NDArray[np.float16]

    @classmethod
    def of(cls, strokes: Strokes, logits: Tensor) -> _Answer:
        chances, labels = logits[0].softmax(0).topk(2, dim=0)
        sure = (chances[0] - chances[1]).half()
        return cls(strokes, labels[0].cpu().numpy().astype(strokes.dtype), sure.cpu().numpy())


class LiveClassifier:
    """One plane, or a part of it, labelled anew from its strokes whenever one ends.

    It has the verbs of `LiveRefinement`, but no previews. To be used by one thread at a time.

    What it answered last counts for a little, as long as only strokes were added since: a stroke that says
    the opposite of what was seen right would otherwise turn all of the plane over.

    Parameters
    ----------
    model
        Whose class table, and whose encoder gives features.
    image
        ``float32 [C, H, W]``, 0..255.
    elsewhere
        The lessons of other planes and parts, which are learnt, too.
    cancel
        Asked while features are computed.
    box
        (y0, x0, y1, x1) what is labelled, the end excluded: what `edits.box_about` names for the first
        stroke. None: all of it.

    Attributes
    ----------
    box
        What is labelled.
    is_part
        Whether that is not the whole plane.
    lesson
        What was painted there, as of the last answer.

    Raises
    ------
    ValueError
        If the box is too large, or the model has no encoder.
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
        box: Box | None = None,
    ) -> None:
        size = (image.shape[1], image.shape[2])
        self.box = y0, x0, y1, x1 = box or (0, 0, *size)
        self.is_part = self.box != (0, 0, *size)
        self._plane_shape, self._size = size, (y1 - y0, x1 - x0)
        if not isinstance(model.network, LiteNetwork) or not fits_live(self._size, model.n_labels):
            raise ValueError(
                "box must be one that edits.box_about names, and the model an FcnLite or FcnFine; got "
                f"{self._size[0]} x {self._size[1]} pixels, {model.n_labels} classes and "
                f"{type(model.network).__name__}"
            )
        plane = torch.from_numpy(image)[None].to(model.device)
        self._elsewhere = tuple(elsewhere)
        self._last: _Answer | None = None
        self._model, self._plane = model, model.crf_image(plane)[..., y0:y1, x0:x1]
        self._maps = FeatureMaps(model.network, model.expert_input(plane), size, cancel, box)
        self._models = [
            model.with_crf(crf(model.n_labels).to(model.device)) for crf in (wide_crf, cautious_crf)
        ]
        self._prepared: dict[CrfRnn, PreparedImage] = {}  # made when first needed
        dtype = label_dtype(model.n_labels)
        self.lesson = self._read(np.full(self._size, ignore_value(dtype), dtype))

    @staticmethod
    def takes(model: SegmentationModel) -> bool:
        """Return whether the encoder of a model has what the panel reads."""
        return isinstance(model.network, LiteNetwork)

    def covers(self, box: Box) -> bool:
        """Return whether what lies around strokes within a box is seen, too."""
        starts = zip(box[:2], self.box[:2], strict=True)
        ends = zip(box[2:], self.box[2:], self._plane_shape, strict=True)
        has_room = all(border == 0 or at - border >= _LEAST_MARGIN for at, border in starts)
        has_room &= all(border == length or border - at >= _LEAST_MARGIN for at, border, length in ends)
        return has_room or box_about(box, self._plane_shape, self._model.n_labels) == self.box

    def exact_window(self, box: Box) -> Box:
        """Return the part of the plane that the answer to strokes within a box looks at."""
        return self.box

    def exact(self, box: Box, strokes: Strokes, before: Strokes, *, cancel: Cancel | None = None) -> Refined:
        """Label what is seen of the plane from its strokes.

        Parameters
        ----------
        box
            What the last stroke lies in; it does not matter where that is.
        strokes, before
            ``[h, w]`` all that is painted there now, and what was before the last stroke; the ignore value
            elsewhere.
        cancel
            Asked all the time.

        Returns
        -------
        Refined, of all that is seen. As long as all strokes are of one class, nothing changes.

        Raises
        ------
        ValueError
            If a shape, a type or a label does not fit.
        Cancelled
            If ``cancel`` said so.
        """
        n_labels = self._model.n_labels
        strokes, before = (
            checked_strokes(name, each, self._size, n_labels)
            for name, each in (("strokes", strokes), ("before", before))
        )
        last = self._last if self._last is not None and np.array_equal(self._last.strokes, before) else None
        self.lesson, self._last = self._read(strokes), None
        labels, rows = self._taught_pixels()
        if len(np.unique(labels)) < 2:
            unknown = torch.zeros(()).expand(n_labels, *self._size)
            return Refined(self.box, strokes, np.zeros(self._size, bool), unknown)
        pixels = Pixels(rows, torch.from_numpy(labels), torch.ones(len(labels)))
        if last is not None:
            pixels = Pixels.joined([pixels, self._kept(last, strokes, labels)])
        sieve = Sieve(self.box, Sieve.of_image(self._size, quick=True).step)
        judged = self._taught(pixels, cancel).judge(self._maps, sieve, cancel)
        logits = self._refined(sieve.spread(judged), strokes, cancel)
        self._last = _Answer.of(strokes, logits)
        return Refined(self.box, labels_of(logits, strokes), np.ones(self._size, bool), logits[0])

    def _read(self, strokes: Strokes) -> StrokeLesson:
        y, x = np.nonzero(strokes != ignore_value(strokes.dtype))
        labels = strokes[y, x].astype(np.int64)
        some = balanced(labels, _MAX_PIXELS, np.random.default_rng(_CONFIG.seed))
        y, x = self.box[0] + y[some], self.box[1] + x[some]
        return StrokeLesson(y, x, labels[some], self._maps.at(y, x, _GROUPS))

    def _taught_pixels(self) -> tuple[NDArray[np.int64], Tensor]:
        """Return labels [N] and features [N, d] of some painted pixels of all planes."""
        lessons = (self.lesson, *self._elsewhere)
        labels = np.concatenate([each.labels for each in lessons])
        some = balanced(labels, _MAX_PIXELS, np.random.default_rng(_CONFIG.seed))
        return labels[some], torch.cat([each.rows for each in lessons])[torch.from_numpy(some)]

    def _kept(self, last: _Answer, strokes: Strokes, labels: NDArray[np.int64]) -> Pixels:
        """Return pixels that nobody painted as they were seen last, the less weighty the less sure."""
        random, is_free = np.random.default_rng(_CONFIG.seed), strokes == ignore_value(strokes.dtype)
        parts = []
        for value, n_painted in zip(*np.unique(labels, return_counts=True), strict=True):
            y, x = np.nonzero((last.labels == value) & is_free)
            some = any_of(len(y), _MOST_KEPT, random)
            y, x = y[some], x[some]
            weight = last.sure[y, x].astype(np.float64)
            weight *= _KEEP * n_painted / max(weight.sum(), 1e-9)
            column = torch.full((len(y),), int(value))
            rows = self._maps.at(self.box[0] + y, self.box[1] + x, _GROUPS)
            parts.append(Pixels(rows, column, torch.from_numpy(weight).float()))
        return Pixels.joined(parts)

    def _taught(self, pixels: Pixels, cancel: Cancel | None) -> Panel:
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
        (wide, narrow), on_step = self._models, stop_if(cancel)
        # Strokes that are held would stay in any case, and tell nothing.
        free = run_crf(wide, logits, self._kernels(wide, cancel), on_step)
        refined = free[0].argmax(0).cpu().numpy()
        model = wide if is_kind([logits], [refined], [strokes]) else narrow
        prepared, painted = self._kernels(model, cancel), strokes != ignore_value(strokes.dtype)
        return run_crf(model, hold(logits, logits, strokes, painted, prepared), prepared, on_step)

    def _kernels(self, model: SegmentationModel, cancel: Cancel | None) -> PreparedImage:
        """Return the kernels of the plane, made when first needed."""
        if model.crf not in self._prepared:
            self._prepared[model.crf] = model.crf.prepare(
                self._plane,
                scale=model.crf_scale(self._plane_shape, with_experts=True),
                on_step=stop_if(cancel),
            )
        return self._prepared[model.crf]
