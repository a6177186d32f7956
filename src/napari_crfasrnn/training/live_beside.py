"""Live refinement where the model knows some of the classes, and others are new.

The network says nothing of a class that a person has just added, so there is nothing for the CRF to refine: a
stroke of it would follow the edges for a few pixels and end. So whenever a stroke ends, a small panel learns
what is painted in the new classes against all else (`StrokeTeacher`), and speaks for them beside the network,
as after a round of learning. The CRF is that of the model. As long as nothing is painted in a new class,
all is as without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn.edits import Box, is_about
from napari_crfasrnn.experts import Panel
from napari_crfasrnn.network import LiteNetwork, SegmentationModel
from napari_crfasrnn.plane_logits import PlaneLogits
from napari_crfasrnn.progress import Cancel
from napari_crfasrnn.segmenter.live import LiveRefinement
from napari_crfasrnn.segmenter.parts import area, inner, intersection
from napari_crfasrnn.segmenter.refined import Refined, Strokes, checked_strokes
from napari_crfasrnn.training.stroke_teacher import Answer, StrokeLesson, StrokeTeacher


class LiveBeside:
    """One plane, made ready for refining while somebody paints on it, new classes among others.

    It has the verbs of `LiveRefinement`. What it answers to strokes of new classes depends on the answer
    before, as with `LiveClassifier`. To be used by one thread at a time.

    Parameters
    ----------
    model
        Whose class table, and whose encoder gives features.
    image
        ``float32 [C, H, W]``, 0..255.
    live
        The refinement of the plane, without a panel.
    new
        The classes that the model does not know.
    elsewhere
        The lessons of other planes and parts, which are learnt, too.
    box
        (y0, x0, y1, x1) where new classes are looked for, the end excluded: what `edits.box_about` names for
        the first stroke. None: in all of the plane.

    Attributes
    ----------
    box
        Where new classes are looked for.
    is_part
        Whether that is not the whole plane.
    is_whole
        Whether `exact` answers for the whole plane whatever is painted.

    Raises
    ------
    ValueError
        If the model has no encoder.
    """

    has_previews: Final[Literal[True]] = True

    def __init__(
        self,
        model: SegmentationModel,
        image: NDArray[np.float32],
        live: LiveRefinement,
        new: Sequence[int],
        elsewhere: Sequence[StrokeLesson] = (),
        box: Box | None = None,
    ) -> None:
        if not self.takes(model):
            raise ValueError(f"model must be an FcnLite or FcnFine, got {type(model.network).__name__}")
        self.box = box or (0, 0, *live.plane_shape)
        self.is_part, self.is_whole = self.box != (0, 0, *live.plane_shape), live.is_whole
        self._model, self._image, self._new = model, image, tuple(new)
        self._elsewhere = tuple(elsewhere)
        self._plain = self._taught = self._now = live
        self._logits = live.logits
        self._teacher: StrokeTeacher | None = None  # made when first needed
        self._known: _Known | None = None

    @staticmethod
    def takes(model: SegmentationModel) -> bool:
        """Return whether the encoder of a model has what the panel reads."""
        return isinstance(model.network, LiteNetwork)

    @property
    def lesson(self) -> StrokeLesson | None:
        """What was painted in the box, as of the last answer; None where nothing new was."""
        return None if self._teacher is None else self._teacher.lesson

    def covers(self, box: Box) -> bool:
        """Return whether what lies around strokes within a box is seen, too."""
        return is_about(self.box, box, self._plain.plane_shape, self._model.n_labels)

    def preview_window(self, box: Box) -> Box:
        """Return the part of the plane that a preview of strokes in a box sees sharply, and may change."""
        return self._now.preview_window(box)

    def preview(
        self, box: Box, strokes: Strokes, before: Strokes, *, cancel: Cancel | None = None
    ) -> Refined:
        """Guess what strokes within a box do around it, by what was learnt before."""
        return self._now.preview(box, strokes, before, cancel=cancel)

    def prepare(self, strokes: Strokes, *, cancel: Cancel | None = None) -> None:
        """Answer what is painted on the whole plane, so that the next stroke finds it done.

        Parameters
        ----------
        strokes
            ``[H, W]``, the ignore value where nothing was painted.
        cancel
            Asked all the time.
        """
        if not self._holds_new(strokes):
            self._now = self._plain
            self._now.prepare(strokes, cancel=cancel)
        elif self.is_whole:
            shape = self._plain.plane_shape
            self._answer(checked_strokes("strokes", strokes, shape, self._model.n_labels), cancel)

    def exact_window(self, box: Box) -> Box:
        """Return the part of the plane that the answer to strokes within a box looks at."""
        one, other = self._plain.exact_window(box), self._plain.seen_around(self.box)
        return min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3])

    def exact(self, box: Box, strokes: Strokes, before: Strokes, *, cancel: Cancel | None = None) -> Refined:
        """Tell what strokes within a box do.

        Parameters
        ----------
        box
            ``(y0, x0, y1, x1)`` around what was painted.
        strokes, before
            Of ``exact_window(box)``: all that is painted now, and what was before this stroke.
        cancel
            Asked all the time.

        Returns
        -------
        Refined, of ``self.box``, or where nothing is painted there in a new class of what
        `LiveRefinement.exact` answers for.

        Raises
        ------
        ValueError
            If the box lies outside the plane, or a shape or a label does not fit.
        Cancelled
            If ``cancel`` said so.
        """
        window, seen = self.exact_window(box), self._plain.seen_around(self.box)
        strokes, before = (
            checked_strokes(name, each, _shape(window), self._model.n_labels)
            for name, each in (("strokes", strokes), ("before", before))
        )
        now, earlier = (inner(each, seen, window) for each in (strokes, before))
        if not (self._holds_new(now) or self._holds_new(earlier)):
            self._known, self._now = None, self._plain
            seen = self._plain.exact_window(box)
            strokes, before = (inner(each, seen, window) for each in (strokes, before))
            return self._plain.exact(box, strokes, before, cancel=cancel)
        if self._known is None or not np.array_equal(self._known.seen, earlier):
            self._known = None
            self._answer(earlier, cancel)
        assert self._known is not None
        was = self._known.answer.labels
        refined = self._answer(now, cancel)
        return Refined(refined.box, refined.labels, refined.labels != was, refined.logits)

    def _answer(self, strokes: Strokes, cancel: Cancel | None) -> Refined:
        """Return the labels of the box with strokes of what is seen around it, and keep them."""
        known, self._known = self._known, None
        window = self._plain.seen_around(self.box)
        painted, live = inner(strokes, self.box, window), self._plain
        if self._holds_new(strokes):
            if self._teacher is None:
                plane = torch.from_numpy(self._image)[None].to(self._model.device)
                beside = self._new, self._logits
                self._teacher = StrokeTeacher(
                    self._model, plane, self.box, self._elsewhere, beside, cancel=cancel
                )
            last = None if known is None or not self._holds_new(known.seen) else known.answer
            panel = self._teacher.teach(painted, last, cancel)
            if panel is not None:
                judged = self._teacher.judge(panel, cancel)
                live = self._taught = self._taught.beside(
                    panel, _Joined(self._logits, panel, judged, self.box), cancel
                )
        refined = live.answer(self.box, inner(strokes, live.seen_around(self.box), window), cancel=cancel)
        self._known, self._now = _Known(strokes, Answer.of(painted, refined.logits)), live
        return refined

    def _holds_new(self, strokes: Strokes) -> bool:
        return bool(np.isin(strokes, self._new).any())


@dataclass(frozen=True, eq=False)
class _Known:
    """The last answer, and all strokes that it looked at."""

    seen: Strokes
    answer: Answer


class _Joined(PlaneLogits):
    """What a network says of a plane, and in a part of it a panel beside it."""

    def __init__(self, known: PlaneLogits, panel: Panel, judged: Tensor, box: Box) -> None:
        self.size = known.size
        self._known, self._box = known, box
        self._inside = panel.joined(judged, known.within(box))

    def within(self, box: Box) -> Tensor:
        common = intersection(box, self._box)
        if common == box:
            return inner(self._inside, box, self._box)
        logits = self._known.within(box).clone()
        if area(common):
            inner(logits, common, box)[:] = inner(self._inside, common, self._box)
        return logits

    def at(self, rows: Tensor, columns: Tensor) -> Tensor:
        logits, (y0, x0, y1, x1) = self._known.at(rows, columns).clone(), self._box
        is_inside = (rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)
        logits[:, is_inside] = self._inside[0][:, rows[is_inside] - y0, columns[is_inside] - x0]
        return logits


def _shape(box: Box) -> tuple[int, int]:
    return box[2] - box[0], box[3] - box[1]
