"""What is known of one image: its labels, what they started from, and what a person settled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_crfasrnn._qt.state.planes import KnownPlanes, PlaneIndex
from napari_crfasrnn._qt.state.steps import BaselineChange, Steps, Verdict, VerifiedBox
from napari_crfasrnn.classes import ignore_value, label_dtype
from napari_crfasrnn.edits import (
    Box,
    EditSummary,
    Patch,
    Places,
    as_labels,
    edited_mask,
    labelled_mask,
    least_certain_patch,
    merge_prediction,
    places_in,
    remap_labels,
    settled_mask,
    summarize,
)

if TYPE_CHECKING:
    from napari_crfasrnn._qt.layers import ImageInput
    from napari_crfasrnn.segmenter import Segmentation
    from napari_crfasrnn.training import StrokeLesson

Labels = NDArray[Any]  # uint8 or uint16
Mask = NDArray[np.bool_]
Part = Any  # what NumPy takes for an index of a plane

MAX_REVISIONS = 4  # predictions whose baseline an undo can bring back; each holds copies of its planes


@dataclass(frozen=True, eq=False)
class PlaneState:
    """Labels of a plane, the prediction they started from, and the pixels that a person settled."""

    labels: Labels
    baseline: Labels
    verified: Mask


@dataclass(frozen=True, eq=False)
class Revision:
    """What a segmentation makes of a plane; of the whole image where the index is empty."""

    index: PlaneIndex
    before: PlaneState
    after: PlaneState


MAX_COPIED = 1 << 24  # bytes of labels that are copied for saving: some 10 ms


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The state of an image at the moment when it shall be saved."""

    image: ImageInput
    labels: Labels
    baseline: Labels
    verified: Mask


@dataclass(eq=False)
class Work:
    """One image that is worked on.

    Attributes
    ----------
    image
        The image as the core takes it.
    labels
        ``[*stack, H, W]``: the very array that the combined layer holds. It is written to by the layer only.
    baseline
        The labels as they were predicted, or as Refine changed them since; the ignore value where nothing
        was predicted yet, and where a person painted what was predicted: that is an edit, too.
    verified
        Where a person said that the labels are right.
    entropy, before_crf
        Of the last predictions; NaN and the ignore value where there was none.
    accepted
        Of each plane that was accepted as a whole: ``verified`` as it was before.
    lessons
        What Live learnt from the strokes of each plane, and the source of the model whose features it read.
    """

    image: ImageInput
    labels: Labels
    baseline: Labels
    verified: Mask
    entropy: KnownPlanes | None = None
    before_crf: KnownPlanes | None = None
    accepted: dict[PlaneIndex, Mask] = field(default_factory=dict)
    lessons: dict[PlaneIndex, tuple[object, StrokeLesson]] = field(default_factory=dict)
    _steps: Steps = field(default_factory=Steps)
    _claims: list[tuple[Places, Labels, Labels]] = field(default_factory=list)  # of a stroke that goes on
    _revisions: list[Revision] = field(default_factory=list)
    _at: int = 0  # how many revisions are in force

    @classmethod
    def blank(cls, image: ImageInput, n_classes: int) -> Work:
        """Return the work on an image nobody has looked at: all pixels unlabelled."""
        dtype = label_dtype(n_classes)
        labels, baseline = (np.full(image.shape, ignore_value(dtype), dtype) for _ in range(2))
        return cls(image, labels, baseline, np.zeros(image.shape, bool))

    @classmethod
    def restored(
        cls, image: ImageInput, labels: Labels, baseline: Labels | None, verified: Mask, n_classes: int
    ) -> Work:
        """Return the work on an image as a project stored it."""
        work = cls.blank(image, n_classes)
        work.labels[...] = as_labels(labels, n_classes)
        if baseline is not None:
            work.baseline[...] = as_labels(baseline, n_classes)
        work.verified[...] = verified
        for index in np.ndindex(image.stack_shape):
            is_labelled = work.labels[index] != ignore_value(work.labels.dtype)
            if is_labelled.any() and work.verified[index][is_labelled].all():
                # Accepted, or square by square; what was verified before that is not known any more.
                work.accepted[index] = np.zeros(image.plane_shape, bool)
        return work

    def merge(self, segmentation: Segmentation, index: PlaneIndex) -> Revision:
        """Return what a segmentation of a plane (or, without index, of everything) makes of the labels.

        Nothing that a person settled is lost; what they settled counts as verified from now on.
        """
        old = self._state(index)
        labels = merge_prediction(segmentation.labels, old.labels, old.baseline, old.verified)
        settled = settled_mask(old.labels, old.baseline, old.verified)
        return Revision(index, old, PlaneState(labels, np.array(segmentation.labels), settled))

    def take(self, revision: Revision, segmentation: Segmentation) -> None:
        """Take the baseline and the rest of a segmentation whose merged labels are in the layer now."""
        index = revision.index
        self._put(index, revision.after)
        self._put_entropy(index, segmentation.entropy)
        if segmentation.before_crf is not None:
            if self.before_crf is None:
                dtype = self.labels.dtype
                self.before_crf = KnownPlanes(self.labels.shape, dtype, ignore_value(dtype))
            self.before_crf.put(index, segmentation.before_crf)
        self._revisions = [*self._revisions[: self._at], revision][-MAX_REVISIONS:]
        self._at = len(self._revisions)

    def follow_undo(self) -> bool:
        """Let baseline and verified pixels follow the labels through undo and redo of predictions."""
        start = self._at
        while self._at > 0:
            revision = self._revisions[self._at - 1]
            if not self._is_at(revision.index, revision.before) or self._is_at(
                revision.index, revision.after
            ):
                break
            self._put(revision.index, revision.before)
            self._at -= 1
        while self._at < len(self._revisions):
            revision = self._revisions[self._at]
            if not self._is_at(revision.index, revision.after):
                break
            self._put(revision.index, revision.after)
            self._at += 1
        return self._at != start

    def held(self, index: PlaneIndex, part: Part = ..., labels: Labels | None = None) -> Mask:
        """Return the pixels of a plane that Refine must not touch: strokes and verified pixels.

        Of a part of the plane, if asked to; and with other labels of that part than those there are.
        """
        labels = self.labels[index][part] if labels is None else labels
        strokes = edited_mask(labels, self.baseline[index][part])
        return np.asarray((strokes | self.verified[index][part]) & (labels != ignore_value(labels.dtype)))

    def strokes(self, index: PlaneIndex, part: Part = ..., labels: Labels | None = None) -> Labels:
        """Return the labels that `held` tells of, and the ignore value elsewhere; a new array."""
        labels = self.labels[index][part] if labels is None else labels
        ignore = labels.dtype.type(ignore_value(labels.dtype))
        return np.where(self.held(index, part, labels), labels, ignore)

    def erased(self, index: PlaneIndex, part: Part = ...) -> Mask:
        """Return the pixels that were predicted and that a person made unlabelled."""
        ignore = ignore_value(self.labels.dtype)
        return np.asarray((self.labels[index][part] == ignore) & (self.baseline[index][part] != ignore))

    def claim(self, part: tuple[slice, ...], mask: Mask, value: int) -> Mask | None:
        """Take pixels that a stroke covers for edited, even where it painted what the baseline holds.

        To be followed by `keep_claims` when the stroke ends, or `drop_claims`.

        Parameters
        ----------
        part
            Slices of the labels, one for each axis.
        mask
            What of this part the stroke covers.
        value
            What was painted; pixels that are not of it now were left out by the brush.

        Returns
        -------
        claimed
            Pixels of the part that count as edited because of this; None where there is none.
        """
        ignore = ignore_value(self.labels.dtype)
        baseline = self.baseline[part]
        where: Mask = np.asarray(mask & (self.labels[part] == value) & (baseline == value), bool)
        after = ignore
        if value == ignore:
            # Made unlabelled on purpose: that differs from any prediction, but not from no prediction.
            where = where & bool(where.any() and (self.baseline[part[:-2]] != ignore).any())
            after = 0
        if not where.any():
            return None
        places = tuple(p + one.start for p, one in zip(np.nonzero(where), part, strict=True))
        before = self.baseline[places]
        self.baseline[places] = after
        self._claims.append((places, before, np.full_like(before, after)))
        return where

    @property
    def has_claims(self) -> bool:
        """Whether `claim` was called to some effect for a stroke that has not ended."""
        return bool(self._claims)

    def keep_claims(self, step: object) -> None:
        """Let the claims of a stroke stand until ``step`` of the history of the labels is undone."""
        places, before, after = zip(*self._claims, strict=True)
        joined = tuple(np.concatenate(axis) for axis in zip(*places, strict=True))
        self._steps.add(BaselineChange(joined, np.concatenate(before), np.concatenate(after), step))
        self._claims = []

    def drop_claims(self) -> None:
        """Take back the claims of a stroke that has not ended."""
        for places, before, _ in reversed(self._claims):
            self.baseline[places] = before
        self._claims = []

    def take_refined(self, index: PlaneIndex, corner: tuple[int, int], where: Mask, step: object) -> None:
        """Take the labels that Refine gave to some pixels for what the model thinks: for no edits.

        Parameters
        ----------
        index, corner
            The plane, and where in it the mask lies.
        where
            ``[h, w]``, the pixels that changed; the new labels are there already.
        step
            What the history of the labels knows the change by: see `follow_steps`.
        """
        if not where.any():
            return
        (y, x), (height, width) = corner, where.shape
        box: tuple[int | slice, ...] = (*index, slice(y, y + height), slice(x, x + width))
        places = places_in(box, where, self.labels.itemsize)
        before, after = self.baseline[places].copy(), self.labels[places].copy()
        own = np.packbits(where) if isinstance(places[-1], slice) else None
        change = BaselineChange(places, before, after, step, own)
        change.put(self, back=False)
        self._steps.add(change)

    def set_entropy(
        self, index: PlaneIndex, part: Part, entropy: NDArray[np.float32], *, is_first: bool = False
    ) -> None:
        """Take the uncertainty of a part of a plane, if the image has one or this is the first."""
        if self.entropy is not None or is_first:
            self._put_entropy(index, np.where(self.held(index, part), np.float32(0), entropy), part)

    def forget_entropy(self, index: PlaneIndex) -> None:
        """Know of no uncertainty of a plane any more."""
        if self.entropy is not None:
            self.entropy.forget(index)
            if self.entropy.is_empty:
                self.entropy = None

    def has_guesses(self, index: PlaneIndex) -> bool:
        """Whether a model has a say in the labels of a plane: not all of them are strokes."""
        return bool((self.baseline[index] != ignore_value(self.baseline.dtype)).any())

    def standing_lessons(
        self, source: object, without: tuple[PlaneIndex, Box] | None = None
    ) -> list[StrokeLesson]:
        """Return what Live learnt outside a box of a plane, by a model's features, as far as it stands."""
        found = []
        for index, (read_by, lesson) in self.lessons.items():
            if read_by == source:
                there = lesson.y, lesson.x
                stands = self.held(index, there) & (self.labels[index][there] == lesson.labels)
                if without is not None and index == without[0]:
                    stands &= ~lesson.lies_in(without[1])
                found.append(lesson.select(stands))
        return found

    def take_lesson(self, source: object, index: PlaneIndex, box: Box, lesson: StrokeLesson) -> None:
        """Remember what Live learnt in a box of a plane, and what it had learnt there outside of it."""
        read_by, earlier = self.lessons.get(index, (None, None))
        if earlier is not None and read_by == source:
            lesson = lesson.joined(earlier.select(~earlier.lies_in(box)))
        self.lessons[index] = (source, lesson)

    def is_segmented(self, index: PlaneIndex) -> bool:
        """Whether there is an uncertainty of a plane."""
        return self.entropy is not None and bool(np.isfinite(self.entropy.plane(index)).any())

    def least_certain(self, index: PlaneIndex, without: Sequence[Box] = ()) -> Patch | None:
        """Return the square of a plane to correct next, if there is one.

        Verified pixels and erased ones need no look, and the boxes in ``without`` are left out.
        """
        if self.entropy is None or not self.entropy.knows(index):
            return None
        settled = self.verified[index] | (self.labels[index] == ignore_value(self.labels.dtype))
        for y0, x0, y1, x1 in without:
            settled[y0:y1, x0:x1] = True
        return least_certain_patch(self.entropy.plane(index), settled)

    def next_patch(
        self, index: PlaneIndex, without: Mapping[PlaneIndex, Sequence[Box]]
    ) -> tuple[PlaneIndex, Patch] | None:
        """Return the square to correct next and its plane, if there is one.

        It is of the given plane as long as that has one, then the least certain one of the other segmented
        planes; there is none where the given plane is not segmented. Boxes in ``without`` are left out.
        """
        if not self.is_segmented(index):
            return None
        here = self.least_certain(index, without.get(index, ()))
        if here is not None:
            return index, here
        others = [
            (other, patch)
            for other in np.ndindex(self.labels.shape[:-2])
            if other != index and (patch := self.least_certain(other, without.get(other, ()))) is not None
        ]
        return max(others, key=lambda found: found[1].uncertainty, default=None)

    def verify(self, index: PlaneIndex, box: Box, step: object) -> None:
        """Say that the labels of a part of a plane are right; unlabelled pixels stay out.

        ``step`` is what stands for it in the history of the labels: see `follow_steps`.
        """
        y0, x0, y1, x1 = box
        part = np.s_[y0:y1, x0:x1]
        before = self.verified[index][part].copy()
        after = np.asarray(self.labels[index][part] != ignore_value(self.labels.dtype))
        self.verified[index][part] = after
        self._steps.add(VerifiedBox(index, box, before, after, step))

    def follow_steps(self, undone: Callable[[object], bool | None]) -> None:
        """Let all but the labels follow undo and redo: ``undone`` says whether a step was taken back."""
        self._steps.follow(self, undone)

    def is_accepted(self, indices: Iterable[PlaneIndex]) -> bool:
        """Whether somebody said that all labels of these planes are right."""
        return all(index in self.accepted for index in indices)

    def accept(self, indices: Sequence[PlaneIndex], step: object) -> None:
        """Say that all labels of some planes are right; said again, take it back. Unlabelled pixels stay out.

        ``step`` is what stands for it in the history of the labels: see `follow_steps`.
        """
        ignore = ignore_value(self.labels.dtype)
        before: dict[PlaneIndex, tuple[Mask, Mask | None]] = {}
        after: dict[PlaneIndex, tuple[Mask, Mask | None]] = {}
        takes_back = self.is_accepted(indices)
        for index in indices if takes_back else [one for one in indices if one not in self.accepted]:
            verified = self.verified[index].copy()
            before[index] = verified, self.accepted.get(index)
            after[index] = (
                (self.accepted[index], None)
                if takes_back
                else (np.asarray(self.labels[index] != ignore), verified.copy())
            )
        verdict = Verdict(before, after, step)
        verdict.put(self, back=False)
        self._steps.add(verdict)

    def is_no_class(self, n_classes: int) -> Mask:
        """Return where labels hold a value that is no class: a script may have written it."""
        ignore = ignore_value(self.labels.dtype)
        unknown: Mask = (self.labels >= n_classes) & (self.labels != ignore)
        return unknown

    def snapshot(self) -> Snapshot:
        """Return what there is to save: a copy that later strokes do not change.

        Of a long stack no copy, which would take seconds: it is read plane by plane while it is saved. What
        is painted meanwhile is in it or not, and is saved after that in any case.
        """
        arrays = self.labels, self.baseline, self.verified
        is_long = bool(self.image.stack_shape) and self.labels.nbytes > MAX_COPIED
        return Snapshot(self.image, *(arrays if is_long else (array.copy() for array in arrays)))

    def known(self) -> Labels:
        """Return the labels that are known to be true, and the ignore value elsewhere; a new array."""
        is_known = labelled_mask(self.labels, self.baseline, self.verified)
        return np.where(is_known, self.labels, self.labels.dtype.type(ignore_value(self.labels.dtype)))

    def summary(self) -> EditSummary:
        """Count the edited and verified pixels."""
        return summarize(self.labels, self.baseline, self.verified)

    def shares(self, index: PlaneIndex, n_classes: int) -> tuple[float, ...]:
        """Return the share that each class has of a plane's pixels."""
        plane = self.labels[index]
        counts = np.bincount(plane.reshape(-1), minlength=n_classes)[:n_classes]
        return tuple(float(count) / max(plane.size, 1) for count in counts)

    def present(self, n_classes: int) -> list[int]:
        """Return the classes that have at least a pixel anywhere."""
        found = np.zeros(n_classes, bool)
        # Plane by plane: NumPy counts in an array of eight bytes for each label.
        for plane in self.labels.reshape(-1, *self.labels.shape[-2:]):
            if plane.size and plane.min() < n_classes:  # of a long stack most planes may be unlabelled
                found |= np.bincount(plane.reshape(-1), minlength=n_classes)[:n_classes] > 0
        return [int(value) for value in np.flatnonzero(found)]

    def remapped(self, new_values: Sequence[int | None], n_classes: int) -> Work:
        """Return the work after a change of the class table; undo does not reach back past it."""

        def change(labels: Labels) -> Labels:
            return remap_labels(labels, new_values, n_classes)

        labels, before = change(self.labels), self.before_crf
        return Work(
            image=self.image,
            labels=labels,
            baseline=change(self.baseline),
            verified=self.verified,
            entropy=self.entropy,
            before_crf=None if before is None else before.mapped(change, ignore_value(labels.dtype)),
            accepted=self.accepted,
        )

    def without_predictions(self) -> Work:
        """Return the work with what a person said alone; undo does not reach back past it."""
        ignore = self.labels.dtype.type(ignore_value(self.labels.dtype))
        settled = settled_mask(self.labels, self.baseline, self.verified)
        return Work(
            image=self.image,
            labels=np.where(settled, self.labels, ignore),
            baseline=np.full_like(self.baseline, ignore),
            verified=self.verified,
        )

    def _state(self, index: PlaneIndex) -> PlaneState:
        return PlaneState(self.labels[index].copy(), self.baseline[index].copy(), self.verified[index].copy())

    def _put_entropy(self, index: PlaneIndex, entropy: NDArray[np.float32], part: Any = ...) -> None:
        if self.entropy is None:
            self.entropy = KnownPlanes(self.labels.shape, np.float32, np.nan)
        self.entropy.put(index, entropy, part)

    def _put(self, index: PlaneIndex, state: PlaneState) -> None:
        self.baseline[index] = state.baseline
        self.verified[index] = state.verified

    def _is_at(self, index: PlaneIndex, state: PlaneState) -> bool:
        return bool(np.array_equal(self.labels[index], state.labels))
