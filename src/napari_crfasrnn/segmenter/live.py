"""Refining while somebody paints: a quick look around the stroke, and the exact answer when it ends.

What is asked is always the same: the labels that the CRF gives to a plane when everything painted on it
is held. `LiveRefinement.exact` answers that; `LiveRefinement.preview` guesses the answer around a stroke
from a `Sketch`: all pixels of a small window, and what lies around it coarsely, as points of more weight,
with the few labels that may win there (`Contenders`). The sketch is run twice, with the stroke and
without, and only the *difference* is taken:

    preview = exact logits before the stroke + sketch with the stroke - sketch without it

What the sketch gets wrong is nearly the same in both and goes away.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn.classes import ignore_value
from napari_crfasrnn.edits import Box
from napari_crfasrnn.experts import Panel
from napari_crfasrnn.kernels import PreparedImage
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.plane_logits import PlaneLogits
from napari_crfasrnn.progress import Cancel, raise_if_cancelled, stop_if
from napari_crfasrnn.segmenter.contenders import Contenders, labels_in
from napari_crfasrnn.segmenter.parts import HALO_WIDTHS, grown, inner, kernel_reach, parts_of, with_halo
from napari_crfasrnn.segmenter.refined import (
    Refined,
    Strokes,
    StrokeState,
    checked_strokes,
    held_in,
    joined,
    labels_of,
)
from napari_crfasrnn.segmenter.refining import (
    check_region,
    evaluating,
    hold,
    prepare_part,
    run_crf,
)
from napari_crfasrnn.segmenter.sketch import Sketch
from napari_crfasrnn.segmenter.votes import StrokeVotes

PREVIEW_HALO = 16  # pixels; benchmarks/live.py measures what more would bring
PREVIEW_ITERATIONS = 5  # at most: a preview has 50 ms
_SKETCHED_WIDTHS = 3.0  # how far around that a preview knows of coarsely, in theta_alpha
_LARGEST_REACH = 96  # pixels; how far from a stroke a plane that is not refined as a whole may change
_LARGEST_SKETCH = 128  # pixels; how far around a preview knows of at most
_KEPT_SKETCHES = 8  # of about 5 MB each


@dataclass(frozen=True, eq=False)
class _Sketched:
    """A sketch, and what it says of some strokes."""

    sketch: Sketch
    contenders: Contenders
    of_network: Tensor  # [1, L, 1, N]
    strokes: Strokes  # [1, N]
    voted: Tensor | None  # [1, L, gh, gw], what these strokes and those around add to the logits
    logits: Tensor  # [1, K, h, w], refined


class LiveRefinement:
    """One plane, made ready for refining while somebody paints on it; from `Segmenter.live`.

    Strokes are arrays of labels with the ignore value where nothing was painted. They are given for a
    window only, that which `preview_window` or `exact_window` names for the box that was painted in, so that
    the cost depends on the stroke, not on the plane. To be used by one thread at a time.

    Parameters
    ----------
    model
        Its CRF refines.
    image
        ``[1, C, H, W]``, 0..255.
    logits
        What the network says of the plane.
    whole
        The kernels of the whole plane, or None where it is too large for that: see `takes_whole`.
    extra
        ``[1, E, H, W]``, further features for the CRF, or None.
    votes
        What strokes say of all else, where the kernels are of the whole plane; None: nothing.
    """

    has_previews: Final[Literal[True]] = True
    lesson = None  # it learns nothing

    def __init__(
        self,
        model: SegmentationModel,
        image: Tensor,
        logits: PlaneLogits,
        whole: PreparedImage | None,
        extra: Tensor | None = None,
        votes: StrokeVotes | None = None,
    ) -> None:
        self._model, self._logits, self._whole, self._votes = model, logits, whole, votes
        self._image, self._seen, self._extra = image, model.crf_image(image), extra
        self._reach = kernel_reach(model, logits.size)
        self._state: StrokeState | None = None  # of the whole plane, where there are kernels of it
        self._sketches: OrderedDict[Box, _Sketched] = OrderedDict()
        self._iterations = min(model.crf.config.n_iterations, PREVIEW_ITERATIONS)

    def beside(self, panel: Panel, logits: PlaneLogits, cancel: Cancel | None = None) -> LiveRefinement:
        """Return what refines the same plane when experts have a say in it.

        Parameters
        ----------
        panel
            The experts: that there are some can change the widths of the kernels.
        logits
            What the network and they say together.
        cancel
            Asked while kernels are built, if these are others.
        """
        model, whole = self._model.with_panel(panel), self._whole
        if whole is not None and model.crf_scale(self.plane_shape) != self._model.crf_scale(self.plane_shape):
            whole = prepare_part(model, self._seen, (0, 0, *self.plane_shape), self._extra, cancel)
        # Where classes are that only the experts know, is theirs to say; the rest is shared out as before.
        votes = None if self._votes is None else self._votes.without(panel.speaks_for or ())
        return LiveRefinement(model, self._image, logits, whole, self._extra, votes)

    @property
    def logits(self) -> PlaneLogits:
        """What there is to refine."""
        return self._logits

    @property
    def plane_shape(self) -> tuple[int, int]:
        """H and W."""
        return self._logits.size

    @property
    def is_whole(self) -> bool:
        """Whether `exact` refines the whole plane, not only what lies around the stroke."""
        return self._whole is not None

    def covers(self, box: Box) -> bool:
        """Return whether strokes within a box can be answered: they can be everywhere."""
        return True

    def preview_window(self, box: Box) -> Box:
        """Return the part of the plane that a preview of strokes in a box sees sharply, and may change."""
        return grown(check_region(box, self.plane_shape), PREVIEW_HALO, self.plane_shape)

    def exact_window(self, box: Box) -> Box:
        """Return the part of the plane that the exact answer to strokes within a box looks at."""
        return self.seen_around(self.exact_box(box))

    def exact_box(self, box: Box) -> Box:
        """Return the part of the plane that the exact answer to strokes within a box may change.

        That is the whole plane, or, of one that is too large for that, the box and what the bilateral kernel
        reaches from there, at most 96 pixels and what is missing to the next multiple of 32.
        """
        check_region(box, self.plane_shape)
        if self.is_whole:
            return (0, 0, *self.plane_shape)
        reach = min(math.ceil(HALO_WIDTHS * self._reach), _LARGEST_REACH)
        return grown(box, reach, self.plane_shape)

    def prepare(self, strokes: Strokes, *, cancel: Cancel | None = None) -> None:
        """Refine the whole plane with what is painted on it, so that the next stroke finds it done.

        Parameters
        ----------
        strokes
            ``[H, W]``, the ignore value where nothing was painted.
        cancel
            Asked after each iteration.
        """
        strokes = self._check("strokes", strokes, (0, 0, *self.plane_shape))
        if self._whole is not None and not self._knows((0, 0, *self.plane_shape), strokes):
            self._state = self._run((0, 0, *self.plane_shape), strokes, self._whole, cancel)

    def preview(
        self, box: Box, strokes: Strokes, before: Strokes, *, cancel: Cancel | None = None
    ) -> Refined:
        """Guess what strokes within a box do around it.

        Parameters
        ----------
        box
            ``(y0, x0, y1, x1)`` around what was painted; the smaller, the quicker.
        strokes, before
            Of ``preview_window(box)``: all that is painted now, and what was before this stroke.
        cancel
            Asked between steps.

        Returns
        -------
        Refined, of ``preview_window(box)``.

        Raises
        ------
        ValueError
            If the box lies outside the plane, or a shape or a label does not fit.
        Cancelled
            If ``cancel`` said so.
        """
        window = self.preview_window(box)
        strokes, before = self._check("strokes", strokes, window), self._check("before", before, window)
        known = self._sketches.pop(window, None)
        sketch = self._sketch(window) if known is None else known.sketch
        raise_if_cancelled(cancel)
        around = None if self._state is None else self._state.strokes
        nothing = ignore_value(before.dtype)
        earlier, painted = (sketch.gather_strokes(s, around, nothing) for s in (before, strokes))
        votes = [self._voted(window, each) for each in (before, strokes)]
        needed = self._needed(window, earlier, painted)
        if known is None or not known.contenders.include(needed):
            known = self._contend(window, sketch, needed, earlier, votes[0], cancel)
        elif not np.array_equal(known.strokes, earlier):
            known = replace(known, strokes=earlier, voted=votes[0])
            known = replace(known, logits=self._run_sketch(known, earlier, votes[0], cancel))
        self._sketches[window] = known
        if len(self._sketches) > _KEPT_SKETCHES:
            self._sketches.popitem(last=False)
        contenders, now = known.contenders, self._run_sketch(known, painted, votes[1], cancel)
        if self._state is None or not self._knows(window, before):
            others, was = None, held_in(contenders.winners(known.logits), before)
        else:
            y0, x0, y1, x1 = window
            others, was = self._state.logits[..., y0:y1, x0:x1], self._state.labels[y0:y1, x0:x1]
            n_values = len(contenders.labels)
            now = others[:, contenders.labels] + (now - known.logits)[:, :n_values]
        labels = held_in(contenders.winners(now), strokes)
        return Refined(window, labels, labels != was, contenders.spread(now, others)[0])

    def exact(self, box: Box, strokes: Strokes, before: Strokes, *, cancel: Cancel | None = None) -> Refined:
        """Tell what strokes within a box do.

        The labels are those of ``Segmenter.refine(strokes, clamp=painted)``, of a plane that is too large for
        ``is_whole`` those of ``Segmenter.refine(strokes, clamp=painted, region=exact_box(box))``: the
        same bits, whatever was previewed before.

        Parameters
        ----------
        box
            ``(y0, x0, y1, x1)`` around what was painted.
        strokes, before
            Of ``exact_window(box)``: all that is painted now, and what was before this stroke.
        cancel
            Asked after each iteration.

        Returns
        -------
        Refined, of ``exact_box(box)``.

        Raises
        ------
        ValueError
            If the box lies outside the plane, or a shape or a label does not fit.
        Cancelled
            If ``cancel`` said so.
        """
        window, changing = self.exact_window(box), self.exact_box(box)
        strokes, before = self._check("strokes", strokes, window), self._check("before", before, window)
        if self._whole is not None:
            known = self._knows(window, before)
            was = self._state if known else self._run(window, before, self._whole, cancel)
            assert was is not None
            self._state = now = self._run(window, strokes, self._whole, cancel)
            return now.since(was, window)
        parts = parts_of(changing, self.plane_shape, self._model)
        return joined(
            changing,
            [self._exact_part(*part, window, strokes, before, cancel) for part in parts],
        )

    def answer(self, box: Box, strokes: Strokes, *, cancel: Cancel | None = None) -> Refined:
        """Tell what the labels of a part of the plane are when everything painted is held.

        Parameters
        ----------
        box
            ``(y0, x0, y1, x1)``; the whole plane if ``is_whole``.
        strokes
            Of ``seen_around(box)``: all that is painted.
        cancel
            Asked after each iteration.

        Returns
        -------
        Refined, of the box; all of it counts as changed.

        Raises
        ------
        ValueError
            If the box lies outside the plane, or a shape or a label does not fit.
        Cancelled
            If ``cancel`` said so.
        """
        window = self.seen_around(box)
        strokes = self._check("strokes", strokes, window)
        if self._whole is not None:
            if self._state is None or not self._knows(window, strokes):
                self._state = self._run(window, strokes, self._whole, cancel)
            return self._state.as_answer(window)
        found = []
        for part, seen in parts_of(box, self.plane_shape, self._model):
            prepared = prepare_part(self._model, self._seen, seen, self._extra, cancel)
            raise_if_cancelled(cancel)
            state = self._run(seen, inner(strokes, seen, window), prepared, cancel)
            found.append(state.cut(seen, part).as_answer(part))
        return joined(box, found)

    def seen_around(self, box: Box) -> Box:
        """Return the part of the plane that `answer` looks at."""
        check_region(box, self.plane_shape)
        return box if self.is_whole else with_halo(box, self.plane_shape, self._model)

    def _exact_part(
        self, part: Box, seen: Box, window: Box, strokes: Strokes, before: Strokes, cancel: Cancel | None
    ) -> Refined:
        """Tell what strokes of a window do to a part of it, of which the CRF sees a little more."""
        prepared = prepare_part(self._model, self._seen, seen, self._extra, cancel)
        raise_if_cancelled(cancel)
        now, was = (
            self._run(seen, inner(painted, seen, window), prepared, cancel) for painted in (strokes, before)
        )
        return now.cut(seen, part).since(was.cut(seen, part), part)

    def _knows(self, window: Box, strokes: Strokes) -> bool:
        """Return whether the state of the whole plane is that with these strokes, in a part of it."""
        y0, x0, y1, x1 = window
        return self._state is not None and np.array_equal(self._state.strokes[y0:y1, x0:x1], strokes)

    def _sketch(self, window: Box) -> Sketch:
        return Sketch.draw(self._model, self._seen, window, self._surroundings(window), self._extra)

    def _surroundings(self, window: Box) -> Box:
        """Return the part of the plane that a preview knows of coarsely."""
        reach = min(math.ceil(_SKETCHED_WIDTHS * self._reach), _LARGEST_SKETCH)
        return grown(window, reach, self.plane_shape)

    def _check(self, name: str, strokes: Strokes, window: Box) -> Strokes:
        shape = (window[2] - window[0], window[3] - window[1])
        return checked_strokes(name, strokes, shape, self._model.n_labels)

    def _needed(self, window: Box, *strokes: Strokes) -> NDArray[np.bool_]:  # [L]
        """Return the labels that a preview cannot do without: those painted, and those that win now."""
        y0, x0, y1, x1 = window
        n_labels = self._model.n_labels
        if self._state is None:
            seen = self._logits.within(window)[0].max(0).indices.cpu().numpy()
        else:
            seen = self._state.labels[y0:y1, x0:x1]
        needed = labels_in(seen, n_labels)
        for painted in strokes:
            needed |= labels_in(painted, n_labels)
        return needed

    def _contend(
        self,
        window: Box,
        sketch: Sketch,
        needed: NDArray[np.bool_],  # [L]
        strokes: Strokes,  # [1, N]
        voted: Tensor | None,  # [1, L, gh, gw]
        cancel: Cancel | None,
    ) -> _Sketched:
        """Choose the labels to compute with, and compute what some strokes do."""
        around = self._logits.within(self._surroundings(window))
        contenders = Contenders.choose(self._model, needed, around)
        of_network = sketch.gather(self._logits)
        known = _Sketched(sketch, contenders, of_network, strokes, voted, of_network)
        return replace(known, logits=self._run_sketch(known, strokes, voted, cancel))

    def _run_sketch(
        self,
        known: _Sketched,
        strokes: Strokes,  # [1, N]
        voted: Tensor | None,  # [1, L, gh, gw]
        cancel: Cancel | None,
    ) -> Tensor:  # [1, K, h, w]
        sketch, unary = known.sketch, known.of_network
        if voted is not None and self._votes is not None:
            unary = unary + self._votes.at(voted, sketch.rows, sketch.columns)[None, :, None]
        prepared, unary = sketch.prepared, known.contenders.join(unary)
        painted = known.contenders.numbers_of(strokes)
        unary = hold(unary, unary, painted, painted != ignore_value(painted.dtype), prepared)
        unary = known.contenders.count_others(unary)
        with evaluating(self._model):
            refined = known.contenders.crf(
                unary, prepared=prepared, on_iteration=stop_if(cancel), n_iterations=self._iterations
            )
        return known.sketch.in_window(refined)

    def _voted(self, window: Box, strokes: Strokes) -> Tensor | None:  # [1, L, gh, gw]
        """Return what strokes of a window, and those around it, add to the logits."""
        if self._votes is None:
            return None
        nothing = ignore_value(strokes.dtype)
        if self._state is None:
            painted = np.full(self.plane_shape, nothing, strokes.dtype)
        else:
            painted = self._state.strokes.copy()
        inner(painted, window, (0, 0, *self.plane_shape))[:] = strokes
        return self._votes.shift(painted, painted != nothing)

    def _run(
        self, window: Box, strokes: Strokes, prepared: PreparedImage, cancel: Cancel | None
    ) -> StrokeState:
        logits = self._logits.within(window)
        painted = strokes != ignore_value(strokes.dtype)
        if self._votes is not None:
            logits = self._votes.added(logits, strokes, painted)
        unary = hold(logits, logits, strokes, painted, prepared)
        refined = run_crf(self._model, unary, prepared, stop_if(cancel))
        return StrokeState(strokes, refined, labels_of(refined, strokes))
