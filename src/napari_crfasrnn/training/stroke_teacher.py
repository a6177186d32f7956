"""Teaching a small panel what is painted on a plane, whenever a stroke ends.

It is of the kind that a round of learning teaches, with fewer trees and iterations; and nothing is held back
to check it by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn.classes import ignore_value, label_dtype
from napari_crfasrnn.config import TrainConfig
from napari_crfasrnn.edits import Box
from napari_crfasrnn.experts import REST, FeatureMaps, Panel, Sieve
from napari_crfasrnn.experts.features import FINE, columns
from napari_crfasrnn.network import LiteNetwork, SegmentationModel
from napari_crfasrnn.plane_logits import PlaneLogits
from napari_crfasrnn.progress import Cancel, raise_if_cancelled
from napari_crfasrnn.segmenter.refined import Strokes
from napari_crfasrnn.training.background import background_rows
from napari_crfasrnn.training.growing import Pixels
from napari_crfasrnn.training.panel_learner import PanelLearner
from napari_crfasrnn.training.planes import any_of, balanced
from napari_crfasrnn.training.rest import rest_beside, sureness

_CONFIG = TrainConfig(seed=0, max_iterations=60)
_TREES = 16  # of each forest
_MAX_PIXELS = 3_000  # to learn of all planes
_MOST_KEPT = 600  # pixels of the last answer, of each class
_KEEP = 0.1  # what these weigh beside the strokes of the class
_MOST_UNTOUCHED = 400  # pixels that nobody painted, as examples of the rest
_WORLD = 2.0  # what other photographs count, beside strokes of the rest
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
class Answer:
    """What was made of some strokes: labels [h, w], and how much likelier than the next they are, 0..1."""

    strokes: Strokes
    labels: Strokes
    sure: NDArray[np.float16]

    @classmethod
    def of(cls, strokes: Strokes, logits: Tensor) -> Answer:
        """Return the answer that logits [L, h, w] give to strokes [h, w]."""
        chances, labels = logits.softmax(0).topk(2, dim=0)
        sure = (chances[0] - chances[1]).half()
        return cls(strokes, labels[0].cpu().numpy().astype(strokes.dtype), sure.cpu().numpy())


class StrokeTeacher:
    """Teaches panels the strokes in a box of a plane.

    Parameters
    ----------
    model
        Whose class table, and whose encoder gives features.
    plane
        ``[1, C, H, W]``, 0..255.
    box
        (y0, x0, y1, x1) what is labelled, the end excluded.
    elsewhere
        The lessons of other planes and parts, which are learnt, too.
    beside
        The classes that the panels are to tell from the rest, and what the network says of that; None: they
        speak for all classes.
    cancel
        Asked while features are computed.

    Attributes
    ----------
    lesson
        What is painted in the box, as of the last panel.
    """

    def __init__(
        self,
        model: SegmentationModel,
        plane: Tensor,
        box: Box,
        elsewhere: Sequence[StrokeLesson],
        beside: tuple[Sequence[int], PlaneLogits] | None = None,
        cancel: Cancel | None = None,
    ) -> None:
        network = model.network
        assert isinstance(network, LiteNetwork)
        plane_shape = (int(plane.shape[-2]), int(plane.shape[-1]))
        self._model, self._box, self._elsewhere = model, box, tuple(elsewhere)
        self._maps = FeatureMaps(network, model.expert_input(plane), plane_shape, cancel, box)
        self._speaks_for = self._known = self._world = None
        self._column_of = np.arange(model.n_labels)  # label → column
        if beside is not None:
            new, self._known = beside
            self._speaks_for = (*new, REST)
            self._column_of[:] = len(new)
            self._column_of[list(new)] = range(len(new))
            self._world = columns(background_rows(model, cancel, lambda: False), _GROUPS)
        dtype = label_dtype(model.n_labels)
        self.lesson = self._read(np.full((box[2] - box[0], box[3] - box[1]), ignore_value(dtype), dtype))

    def teach(self, strokes: Strokes, last: Answer | None, cancel: Cancel | None) -> Panel | None:
        """Return a panel that learnt strokes, or None where these are of too few classes to tell apart.

        Parameters
        ----------
        strokes
            ``[h, w]`` what is painted in the box, the ignore value elsewhere.
        last
            What was made of the strokes before the last one. It counts for a little: a stroke that says the
            opposite of what was seen right would otherwise turn all of the plane over.
        cancel
            Asked all the time.

        Raises
        ------
        Cancelled
            If ``cancel`` said so.
        """
        self.lesson = self._read(strokes)
        lessons = (self.lesson, *self._elsewhere)
        labels = np.concatenate([each.labels for each in lessons])
        some = balanced(labels, _MAX_PIXELS, np.random.default_rng(_CONFIG.seed))
        rows = torch.cat([each.rows for each in lessons])[torch.from_numpy(some)]
        column = self._column_of[labels[some]]
        told, rest = set(column.tolist()), None if self._speaks_for is None else len(self._speaks_for) - 1
        if len(told) < 2 if rest is None else told <= {rest}:
            return None
        parts = [Pixels(rows, torch.from_numpy(column), torch.ones(len(column)))]
        if last is not None:
            parts += self._kept(last, strokes, column)
        parts += self._rest(strokes, column)
        learner = PanelLearner(
            self._model.n_labels,
            self._speaks_for,
            Pixels.joined(parts),
            False,
            False,
            _CONFIG,
            cancel,
            n_trees=_TREES,
            long_side=self._model.expert_side,
        )
        for _ in range(_CONFIG.max_iterations):
            raise_if_cancelled(cancel)
            learner.step()
        learner.finish()
        return learner.panel.to(self._model.device)

    def judge(self, panel: Panel, cancel: Cancel | None) -> Tensor:  # [1, K, h, w]
        """Return the logarithms of what a panel says of the box.

        Raises
        ------
        Cancelled
            If ``cancel`` said so.
        """
        size = (self._box[2] - self._box[0], self._box[3] - self._box[1])
        sieve = Sieve(self._box, Sieve.of_image(size, quick=True).step)
        return sieve.spread(panel.judge(self._maps, sieve, cancel))

    def _read(self, strokes: Strokes) -> StrokeLesson:
        y, x = np.nonzero(strokes != ignore_value(strokes.dtype))
        labels = strokes[y, x].astype(np.int64)
        some = balanced(labels, _MAX_PIXELS, np.random.default_rng(_CONFIG.seed))
        y, x = self._box[0] + y[some], self._box[1] + x[some]
        return StrokeLesson(y, x, labels[some], self._maps.at(y, x, _GROUPS))

    def _kept(self, last: Answer, strokes: Strokes, painted: NDArray[np.int64]) -> list[Pixels]:
        """Return pixels that nobody painted as they were seen last, the less weighty the less sure."""
        random, is_free = np.random.default_rng(_CONFIG.seed), strokes == ignore_value(strokes.dtype)
        seen, parts = self._column_of[last.labels], []
        for column, n_painted in zip(*np.unique(painted, return_counts=True), strict=True):
            y, x = np.nonzero((seen == column) & is_free)
            some = any_of(len(y), _MOST_KEPT, random)
            y, x = y[some], x[some]
            weight = last.sure[y, x].astype(np.float64)
            weight *= _KEEP * n_painted / max(weight.sum(), 1e-9)
            parts.append(self._pixels(y, x, int(column), torch.from_numpy(weight).float()))
        return parts

    def _rest(self, strokes: Strokes, painted: NDArray[np.int64]) -> list[Pixels]:
        """Return examples of what is none of the classes that the panel speaks for."""
        if self._speaks_for is None or self._known is None or self._world is None:
            return []
        column = len(self._speaks_for) - 1
        y, x = np.nonzero(strokes == ignore_value(strokes.dtype))
        some = any_of(len(y), _MOST_UNTOUCHED, np.random.default_rng(_CONFIG.seed))
        y, x = y[some], x[some]
        known = self._known.at(torch.from_numpy(self._box[0] + y), torch.from_numpy(self._box[1] + x))
        untouched = self._pixels(y, x, column, sureness(known.T.cpu(), self._speaks_for))
        return rest_beside(float((painted == column).sum()), column, untouched, self._world, _WORLD)

    def _pixels(self, y: NDArray[np.int64], x: NDArray[np.int64], column: int, weight: Tensor) -> Pixels:
        rows = self._maps.at(self._box[0] + y, self._box[1] + x, _GROUPS)
        return Pixels(rows, torch.full((len(y),), column), weight)
