"""A classifier that answers every stroke, for classes that no model knows yet.

Before the first round of learning there is nothing to refine: no network says a word of classes that a person
has just named. So forests learn the strokes themselves, each time one ends, and label the rest of the plane,
in about the time that it takes to look at it. They read what the experts of a round read, so what is seen
while painting is what a round begins with; a round adds perceptrons, chooses the CRF, and checks itself.
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
from napari_crfasrnn.experts import FeatureMaps, Panel, Sieve
from napari_crfasrnn.experts.features import FINE
from napari_crfasrnn.kernels import PreparedImage
from napari_crfasrnn.network import LiteNetwork, SegmentationModel
from napari_crfasrnn.progress import Cancel, stop_if
from napari_crfasrnn.segmenter.live import Refined, Strokes, labels_of, takes_whole
from napari_crfasrnn.segmenter.refining import Box, crf_plane, hold, run_crf
from napari_crfasrnn.training.growing import KINDS, Pixels, grow_forests
from napari_crfasrnn.training.panel_tiles import cautious_crf
from napari_crfasrnn.training.planes import balanced

MOST_PIXELS = 1 << 22  # of a plane that is labelled as a whole
_TREES = 16  # of each forest
_MAX_PIXELS = 3_000  # to learn from each plane
_SEED = 0


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
        Asked while features are computed and lattices are built.

    Attributes
    ----------
    lesson
        What was painted on this plane, as of the last answer.

    Raises
    ------
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
        assert self.takes(model, self._size)
        assert isinstance(model.network, LiteNetwork)
        plane = torch.from_numpy(image)[None].to(model.device)
        self.lesson = StrokeLesson(np.empty(0, np.int64), torch.empty(0))
        self._elsewhere = tuple(elsewhere)
        self._maps = FeatureMaps(model.network, model.preprocess(plane), self._size, cancel)
        self._model = model.with_crf(cautious_crf(model.n_labels).to(model.device))
        self._prepared: PreparedImage | None = None
        if takes_whole(self._size):  # of larger planes the features are coarser than what a CRF could mend
            self._prepared = self._model.crf.prepare(crf_plane(model, plane), on_step=stop_if(cancel))

    @staticmethod
    def takes(model: SegmentationModel, plane_shape: tuple[int, int]) -> bool:
        """Return whether the encoder of a model has what forests read, and a plane is not too large."""
        return isinstance(model.network, LiteNetwork) and math.prod(plane_shape) <= MOST_PIXELS

    def exact_window(self, box: Box) -> Box:
        """Return the part of the plane that the answer to strokes within a box looks at: all of it."""
        return (0, 0, *self._size)

    def exact(self, box: Box, strokes: Strokes, before: Strokes, *, cancel: Cancel | None = None) -> Refined:
        """Label the plane from its strokes.

        Parameters
        ----------
        box
            What the last stroke lies in; it does not matter where that is.
        strokes
            ``[H, W]`` all that is painted now, the ignore value elsewhere.
        before
            What was before the last stroke; it does not matter.
        cancel
            Asked while trees grow, pixels are judged and the CRF iterates.

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
        labels = np.concatenate([each.labels for each in lessons]) if lessons else np.empty(0, np.int64)
        whole, n_labels = (0, 0, *self._size), self._model.n_labels
        if len(np.unique(labels)) < 2:
            nothing = torch.zeros(n_labels, *self._size)
            return Refined(whole, strokes.copy(), np.zeros(self._size, bool), nothing)
        rows = torch.cat([each.rows for each in lessons])
        pixels = Pixels(rows, torch.from_numpy(labels), torch.ones(len(labels)))
        forests, _ = grow_forests(pixels, KINDS, n_labels, _TREES, _SEED, torch.get_num_threads(), cancel)
        panel = Panel.of(forests, [1 / len(forests)] * len(forests), n_labels).to(self._model.device)
        sieve = Sieve.of_image(self._size, quick=True)
        logits = sieve.spread(panel.judge(self._maps, sieve, cancel))
        if self._prepared is not None:
            painted = strokes != ignore_value(strokes.dtype)
            unary = hold(logits, logits, strokes, painted, self._prepared)
            logits = run_crf(self._model, unary, self._prepared, stop_if(cancel))
        return Refined(whole, labels_of(logits, strokes), np.ones(self._size, bool), logits[0])

    def _read(self, strokes: Strokes) -> StrokeLesson:
        y, x = np.nonzero(strokes != ignore_value(strokes.dtype))
        labels = strokes[y, x].astype(np.int64)
        some = balanced(labels, _MAX_PIXELS, np.random.default_rng(_SEED))
        return StrokeLesson(labels[some], self._maps.at(y[some], x[some], FINE))
