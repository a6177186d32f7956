"""A classifier that answers every stroke, for classes that no model knows yet.

Before the first round of learning there is nothing to refine: no network says a word of classes that a person
has just named. So a small panel learns the strokes themselves, each time one ends, and labels the rest of the
plane, in about the time that it takes to look at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn.classes import ignore_value
from napari_crfasrnn.crf import CrfRnn
from napari_crfasrnn.edits import Box, fits_live, is_about
from napari_crfasrnn.kernels import PreparedImage
from napari_crfasrnn.network import LiteNetwork, SegmentationModel
from napari_crfasrnn.progress import Cancel, stop_if
from napari_crfasrnn.segmenter.refined import Refined, Strokes, checked_strokes, labels_of
from napari_crfasrnn.segmenter.refining import hold, run_crf
from napari_crfasrnn.training.panel_tiles import cautious_crf, is_kind, wide_crf
from napari_crfasrnn.training.stroke_teacher import Answer, StrokeLesson, StrokeTeacher


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
        self._last: Answer | None = None
        self._model, self._plane = model, model.crf_image(plane)[..., y0:y1, x0:x1]
        self._teacher = StrokeTeacher(model, plane, self.box, elsewhere, cancel=cancel)
        self._models = [
            model.with_crf(crf(model.n_labels).to(model.device)) for crf in (wide_crf, cautious_crf)
        ]
        self._prepared: dict[CrfRnn, PreparedImage] = {}  # made when first needed

    @property
    def lesson(self) -> StrokeLesson:
        """What was painted there, as of the last answer."""
        return self._teacher.lesson

    @staticmethod
    def takes(model: SegmentationModel) -> bool:
        """Return whether the encoder of a model has what the panel reads."""
        return isinstance(model.network, LiteNetwork)

    def covers(self, box: Box) -> bool:
        """Return whether what lies around strokes within a box is seen, too."""
        return is_about(self.box, box, self._plane_shape, self._model.n_labels)

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
        self._last = None
        panel = self._teacher.teach(strokes, last, cancel)
        if panel is None:
            unknown = torch.zeros(()).expand(n_labels, *self._size)
            return Refined(self.box, strokes, np.zeros(self._size, bool), unknown)
        logits = self._refined(self._teacher.judge(panel, cancel), strokes, cancel)
        self._last = Answer.of(strokes, logits[0])
        return Refined(self.box, labels_of(logits, strokes), np.ones(self._size, bool), logits[0])

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
