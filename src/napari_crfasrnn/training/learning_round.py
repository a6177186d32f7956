"""`fine_tune`: one round of learning, from the labels of a project to a new model and a report."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

import numpy as np
import torch

from napari_crfasrnn.config import TrainConfig
from napari_crfasrnn.experts import REST, Panel
from napari_crfasrnn.network import LiteNetwork, SegmentationModel
from napari_crfasrnn.progress import Cancel, Cancelled, raise_if_cancelled
from napari_crfasrnn.project import Project
from napari_crfasrnn.training import round_notes
from napari_crfasrnn.training.aside import Aside
from napari_crfasrnn.training.crf_tuning import CrfTuner
from napari_crfasrnn.training.doubts import find_contradictions, mistaken_classes
from napari_crfasrnn.training.encodings import Encodings
from napari_crfasrnn.training.head import SETTLED, HeadLearner, n_iterations
from napari_crfasrnn.training.known_classes import TAUGHT, known_classes, may_begin_anew, with_classes_of
from napari_crfasrnn.training.outvoted import Votes
from napari_crfasrnn.training.panel_head import HeadStudent, n_steps, with_head
from napari_crfasrnn.training.panel_lesson import PanelLesson
from napari_crfasrnn.training.panel_round import PanelRound
from napari_crfasrnn.training.panel_tiles import cautious_crf
from napari_crfasrnn.training.pipeline import half_precision
from napari_crfasrnn.training.planes import LabelledPlane, View, labelled_planes, locked_sample
from napari_crfasrnn.training.report import LockedScore, StoppedBy, TrainReport, TrainStep
from napari_crfasrnn.training.restraint import Restraint
from napari_crfasrnn.training.round_clock import RoundClock
from napari_crfasrnn.training.teacher import Advice
from napari_crfasrnn.training.views import draw_views

_FIRST_LOOK_SHARE = 0.5  # of the time limit at most goes into looking at every image once
_LOOK_SHARE = 0.15  # and after this much, no further looks are taken: on a busy machine, steps matter more
_CRF_STEP_COST = 4.0  # an optimiser step on a tile, in inferences of it: forward and backward
_CRF_SHARE = 0.3  # of the time limit at most goes into the CRF
_VIEWS = 16  # of all planes together, when these are few
_CORRECTIONS = 75  # iterations of the head beside experts
_CORRECTION_VIEWS = 8  # and what it looks at
_CORRECTION_SHARE = 0.5  # of the time that is left at most goes into them; experts learn meanwhile
_STILL_WRONG = 0.03  # of the labels of a class, after them: worth a note
_FOREST_SHARE = 0.6  # of the time for experts at most goes into trees
_CHOICES = 3.0  # a score on the tiles in the time that choosing a CRF takes: up to three are tried
_TELL_EVERY = 0.05  # seconds without an iteration after which progress is told all the same
_SCORES_AFTER = 2.0  # scores on all tiles that come after the last head iteration


@torch.no_grad()
def fine_tune(
    model: SegmentationModel,
    project: Project,
    config: TrainConfig | None = None,
    progress: Callable[[TrainStep], None] | None = None,
    cancel: Cancel | None = None,
    *,
    base: SegmentationModel | None = None,
) -> TrainReport:
    """Teach a copy of a model what a person labelled.

    The head of the network learns first, then the CRF. A share of the labels is held back, never
    trained on, and the weights that do best there are kept (`edits.split_locked`).

    Parameters
    ----------
    model
        Where to start from; never modified. When its classes are not those of the project, the copy
        takes the project's, keeping what it knows of those with the same name.
    project
        Whose labels: pixels that are labelled, and edited, verified, or without a baseline.
    config
        Limits, seed, learning rates.
    progress
        Called after every iteration, in the calling thread.
    cancel
        Asked between iterations and images; once it says True, the best so far is returned.
    base
        The model that the first round in this project began with, where ``model`` is of a later one. The
        labels of all rounds are in the project, so a head begins there anew: each round that goes on from the
        last forgets some more of what the labels do not show. ``model`` is what ``before`` is measured of.

    Returns
    -------
    report
        The new model, in `TrainReport.model`, and how it did.

    Raises
    ------
    TypeError
        If ``model`` or ``project`` is none, but perhaps its name or folder.
    ValueError
        If nothing in the project is labelled.
    """
    if not isinstance(project, Project):
        raise TypeError(f"project must be a Project, got {project!r}: open its folder with Project.open")
    if not isinstance(model, SegmentationModel):
        raise TypeError(f"model must be a SegmentationModel, got {model!r}: load it with load_model")
    return _Round(model, project, config or TrainConfig(), progress, cancel, base).run()


class _Round:
    """The state of one call of `fine_tune`."""

    def __init__(
        self,
        model: SegmentationModel,
        project: Project,
        config: TrainConfig,
        progress: Callable[[TrainStep], None] | None,
        cancel: Cancel | None,
        base: SegmentationModel | None,
    ) -> None:
        self.clock = RoundClock(config.seconds, time.monotonic())
        self.project, self.config, self.progress = project, config, progress
        self.asked_cancel, self.told = cancel, self.clock.start
        self.known = known_classes(model, project)
        self.is_foreign = model.provenance.get(TAUGHT, {}).get("project") != project.id
        self.student = with_classes_of(model, project)
        self.base: SegmentationModel | None = None
        if self.config.thaw:
            self.student = self.student.with_panel(None)  # what is trained must also speak
        elif base is not None and may_begin_anew(self.student, base):
            self.base = with_classes_of(base, project).to(self.student.device)
        self.restraint = Restraint(self.student, self.knows, self.config)
        self.encodings = Encodings(keep=not self.config.thaw)
        self.planes: list[LabelledPlane] = []
        self.labelled: list[bool] = []
        self.history: list[TrainStep] = []
        self.notes: list[str] = []
        self.before: LockedScore | None = None
        self.after: LockedScore | None = None
        self.crf_learnt = False
        self.votes = Votes()
        self.total = self.config.max_iterations
        self.score_seconds = 0.0  # that a score on the tiles took

    def cancel(self) -> bool:
        """Return whether to stop; and show that the work goes on, when nothing was told for a while."""
        now = time.monotonic()
        if self.progress is not None and now - self.told >= _TELL_EVERY:
            self.told = now
            iteration = self.history[-1].iteration if self.history else 0
            self.progress(TrainStep(iteration, self.total, None, None, self.clock.seconds()))
        return self.asked_cancel is not None and self.asked_cancel()

    @property
    def knows(self) -> bool:
        """Whether the network knows more of the project's classes than the background."""
        return sum(self.known) > 1

    def run(self) -> TrainReport:
        """Learn, and report."""
        stopped_by: StoppedBy
        try:
            stopped_by = self._learn()
        except Cancelled:
            stopped_by = "cancelled"
        if self.history:
            round_notes.write_provenance(self.student, self.project, self.known)
        if self.after is not None:
            self.notes += round_notes.untold(self.after, self.student.classes, self.labelled, self.known)
        if stopped_by == "time":
            assert self.clock.limit is not None
            self.notes += round_notes.out_of_time(self.clock.limit, len(self.history), self.total)
        return TrainReport(
            model=self.student,
            before=self.before,
            after=self.after,
            history=tuple(self.history),
            stopped_by=stopped_by,
            n_planes=len(self.planes),
            n_training_pixels=sum(plane.n_training for plane in self.planes),
            n_locked_pixels=sum(plane.n_locked for plane in self.planes),
            n_locked_areas=sum(plane.n_locked_areas for plane in self.planes),
            crf_learnt=self.crf_learnt,
            contradictions=self.votes.places,
            notes=tuple(self.notes),
            config=self.config,
            seconds=self.clock.seconds(),
            strokes_known=self.votes.known,
            strokes_asked=self.votes.asked,
        )

    def _learn(self) -> StoppedBy:
        for plane in labelled_planes(self.project, self.config.locked_share, self.cancel):
            self.planes.append(plane)
        if not self.planes:
            raise ValueError(
                "project must hold labelled pixels to learn from, got none: paint or accept some first"
            )
        self._find_labelled()
        if not self.config.thaw and isinstance(self.student.network, LiteNetwork):
            if not self.knows:
                return self._learn_panel()
            new = self._new_classes()
            if new:
                return self._learn_beside(new)
        return self._learn_network()

    def _learn_network(self) -> StoppedBy:
        """Teach the head of the network (thawed, all of it), and the CRF."""
        views = self._draw_views(self.planes, _VIEWS)
        iterations, settled_after = self.config.max_iterations, 0
        if self.knows and not self.config.thaw:
            iterations = n_iterations(iterations, len(self.planes))
            settled_after = int(SETTLED * iterations)
        n_tuning = self.config.crf_iterations if self.restraint.may_tune_crf(self.planes) else 0
        self.total = iterations + n_tuning
        tuner = CrfTuner(self.student, self.planes, views[: len(self.planes)], self.config, self.cancel)
        begun = self.clock.seconds()
        self.before = tuner.score()
        score_seconds = self.clock.seconds() - begun
        crf_seconds = score_seconds / max(1, len(tuner)) * _CRF_STEP_COST * n_tuning
        if self.clock.limit is not None:
            crf_seconds = min(crf_seconds, _CRF_SHARE * self.clock.limit)
        reserve = crf_seconds + _SCORES_AFTER * score_seconds
        latest = self.student
        if self.base is not None:
            self.student = self.base
        try:
            advice = self.restraint.advice(self.student, self.planes, views, self.cancel)
            learner = self._head_learner(self.planes, views, advice, settled_after)
        except Cancelled:
            self.student = latest
            raise
        tuner.turn_to(self.student)
        stopped_by = self._learn_head(learner, iterations, reserve)
        if stopped_by != "diverged" and n_tuning:
            stopped_by = self._learn_crf(tuner, stopped_by, reserve=_SCORES_AFTER * score_seconds)
        if self.after is None:
            self.after = tuner.score()
        if not self.clock.is_over():
            places = find_contradictions(self.student, self.planes, self.encodings, self.cancel)
            self.votes = Votes(places=places)
        return stopped_by

    def _new_classes(self) -> list[int]:
        """Return the classes that experts must speak for: those to learn that the network does not know."""
        wanted = {value for value, is_there in enumerate(self.labelled) if is_there}
        panel = self.student.panel
        if panel is not None and panel.speaks_for is not None:
            wanted |= {panel.speaks_for[column] for column in panel.memory.column.tolist()}
        return sorted(value for value in wanted - {REST} if not self.known[value])

    def _learn_panel(self) -> StoppedBy:
        """Teach experts, for all classes, from the start."""
        work = self._read_for_panel(None)
        before = self.student.panel
        try:
            if work.has_head:
                stopped_by = self._teach_panel_with_head(work)
            else:
                self._score_before(work)
                stopped_by = self._teach_panel(work, _CHOICES)
            assert self.student.panel is not None
            crf = work.tiles.choose_crf(self.student.panel)
        except Cancelled:
            if self.student.panel is not before:  # the CRF suits the panel from before
                self.student = self.student.with_crf(cautious_crf(self.student.n_labels))
            raise
        self.student = self.student.with_crf(crf)
        self.crf_learnt = True
        self.after = work.tiles.score(self.student)
        if not self.clock.is_over():
            self.votes = work.votes(self.student)
        return stopped_by

    def _learn_beside(self, new: list[int]) -> StoppedBy:
        """Teach experts the classes that the network does not know, and the network where it is wrong.

        The CRF stays as it is: it was learnt from more images than these.
        """
        work = self._read_for_panel((*new, REST))
        self.total = work.n_iterations
        self._score_before(work)
        if self._mistaken_classes():
            stopped_by = self._teach_panel_beside_corrections(work)
            wrong = self._mistaken_classes(_STILL_WRONG)
            self.notes += round_notes.unlearnt(self.student.classes, wrong)
        else:
            stopped_by = self._teach_panel(work, 1)
        self.after = work.tiles.score(self.student)
        if not self.clock.is_over():
            self.votes = work.votes(self.student)
        return stopped_by

    def _mistaken_classes(self, least_share: float = 0.0) -> list[int]:
        work = (self.student, self.planes, self.known, self.encodings, self.cancel)
        return mistaken_classes(*work, least_share)

    def _corrections(self, iterations: int) -> HeadLearner:
        """Return what teaches the head labels of the classes that it knows, in so many iterations."""
        unknown = [value for value, is_known in enumerate(self.known) if not is_known]
        planes = [plane for plane in (each.without(unknown) for each in self.planes) if plane.n_training]
        views = self._draw_views(planes, _CORRECTION_VIEWS)
        advice = self.restraint.advice(self.student, planes, views, self.cancel)
        return self._head_learner(planes, views, advice, int(SETTLED * iterations))

    def _read_for_panel(self, speaks_for: tuple[int, ...] | None) -> PanelRound:
        """Read the planes for experts."""
        work = PanelRound(
            self.student,
            self.planes,
            speaks_for,
            self.is_foreign,
            self.config,
            self.encodings,
            self.cancel,
            lambda: self.clock.is_past(_FIRST_LOOK_SHARE),
        )
        if work.n_read < len(self.planes):
            self._note_left_out(self.planes, work.n_read)
        return work

    def _score_before(self, work: PanelRound) -> None:
        begun = self.clock.seconds()
        self.before = work.tiles.score(self.student)
        self.score_seconds = self.clock.seconds() - begun

    def _lesson(self, work: PanelRound, n_scores: float) -> PanelLesson:
        """Return what teaches experts, with time left for so many scores."""

        def reserve() -> float:  # the first score may still be being measured
            return n_scores * self.score_seconds

        return PanelLesson(
            work,
            lambda: self.clock.is_past(_FOREST_SHARE, reserve()),
            lambda: self.clock.is_over(reserve()),
        )

    def _teach_panel(self, work: PanelRound, n_scores: float) -> StoppedBy:
        """Teach experts, and give them to the student."""
        lesson = self._lesson(work, n_scores)
        try:
            return self._ended(lesson.run(self.cancel, self._report))
        finally:
            if lesson.panel is not None:
                self.student = self.student.with_panel(lesson.panel)

    def _teach_panel_beside_corrections(self, work: PanelRound) -> StoppedBy:
        """Teach experts, and meanwhile the head what it sees otherwise of the classes that it knows."""
        reserve = (1 - _CORRECTION_SHARE) * ((self.clock.limit or 0.0) - self.clock.seconds())
        n_corrections = min(_CORRECTIONS, self.config.max_iterations)
        learner = self._corrections(n_corrections)
        self.total += n_corrections
        lesson = self._lesson(work, 1)
        steps: deque[tuple[int, float, float | None]] = deque()
        with Aside(lambda stop: lesson.run(stop, lambda *step: steps.append(step))) as aside:
            try:
                self._learn_head(learner, n_corrections, reserve)
                n_corrected = len(self.history)

                def asked() -> bool:
                    while steps:
                        iteration, loss, miou = steps.popleft()
                        self._report(n_corrected + iteration, loss, miou)
                    return self.cancel()

                stopped_by = aside.wait(asked)
                asked()
                return self._ended(stopped_by)
            finally:
                aside.stop()
                if lesson.panel is not None:
                    self.student = self.student.with_panel(lesson.panel)

    def _teach_panel_with_head(self, work: PanelRound) -> StoppedBy:
        """Teach a head, and meanwhile the experts for single pixels; score the model before."""
        lesson = self._lesson(work, _CHOICES)
        n_images = sum(plane.n_training > 0 for plane in self.planes)
        self.total = n_steps(self.config.max_iterations, n_images)
        student: HeadStudent | None = None
        self._score_before(work)
        with Aside(lesson.run) as aside:
            try:
                windows = work.windows(lesson.trees_are_late)
                student = HeadStudent(windows, self.student.n_labels, self.config, self.total)
                stopped_by = self._teach_head(student, work, lesson.is_over)
                ended = aside.wait(self.cancel)
                return self._ended(ended if stopped_by == "iterations" else stopped_by)
            finally:
                aside.stop()
                if student is not None and student.iteration and lesson.panel is not None:
                    student.finish()
                    self.student = self.student.with_panel(with_head(lesson.panel, student.head))

    def _teach_head(self, student: HeadStudent, work: PanelRound, is_over: Callable[[], bool]) -> StoppedBy:
        alone = Panel.of([student.head], [1.0], self.student.n_labels)
        while student.iteration < self.total:
            raise_if_cancelled(self.cancel)
            if student.iteration and is_over():
                return "time"
            loss = student.step()
            if not math.isfinite(loss):
                return "diverged"
            self._report(student.iteration, loss, work.measure(alone, student.iteration))
        return "iterations"

    def _ended(self, stopped_by: StoppedBy) -> StoppedBy:
        if stopped_by == "diverged":
            self.notes.append(round_notes.DIVERGED)
        return stopped_by

    def _note_left_out(self, planes: list[LabelledPlane], n_read: int) -> None:
        self.notes.append(round_notes.left_out(len(planes), n_read))
        del planes[n_read:]

    def _draw_views(self, planes: list[LabelledPlane], n_views: int) -> list[View]:
        """Return a view of every plane as it is (planes that there is no time for go), and then others."""
        left = (self.clock.limit or 0.0) - self.clock.seconds()

        def is_late(is_first: bool) -> bool:
            return self.clock.is_over((1 - (_FIRST_LOOK_SHARE if is_first else _LOOK_SHARE)) * left)

        work = (self.student, planes, self.config, self.encodings, n_views)
        views = draw_views(*work, is_late, self.cancel)
        if len(views) < len(planes):
            self._note_left_out(planes, len(views))
        return views

    def _head_learner(
        self, planes: list[LabelledPlane], views: list[View], advice: list[Advice], settled_after: int
    ) -> HeadLearner:
        """Return what teaches the head views, of which the first ones are of the planes as they are."""
        locked = [
            (view, locked_sample(self.student, plane, view.grid))
            for view, plane in zip(views[: len(planes)], planes, strict=True)
        ]
        half = half_precision("auto", self.student.device)
        config, replay = self.restraint.config(planes), self.restraint.replay(self.student, self.cancel)
        work = (self.student, views, locked, config, advice, replay, half)
        return HeadLearner(*work, settled_after, self.restraint.most_cells(planes))

    def _learn_head(self, learner: HeadLearner, iterations: int, reserve: float) -> StoppedBy:
        """Teach the head so many iterations, as far as there is time."""
        try:
            while learner.iteration < iterations:
                raise_if_cancelled(self.cancel)
                if learner.iteration and self.clock.is_over(reserve):
                    return "time"
                loss = learner.step()
                if not math.isfinite(loss):
                    self.notes.append(round_notes.DIVERGED)
                    return "diverged"
                self._report(learner.iteration, loss, learner.measure())
        finally:
            learner.finish()
            if learner.n_halvings:
                self.notes.append(
                    "the GPU's memory did not hold whole images, so the encoder learnt from windows of "
                    f"1/{2**learner.n_halvings} of an image"
                )
        return "iterations"

    def _learn_crf(self, tuner: CrfTuner, stopped_by: StoppedBy, reserve: float) -> StoppedBy:
        """Learn the CRF; put it back if the held-back pixels (or else the labels) are worse for it."""
        tuning = tuner.tune()
        if not len(tuning):
            return stopped_by
        head_only = tuner.score()
        loss_before = tuning.loss(self.cancel) if head_only.miou is None else math.inf
        try:
            for number in range(1, self.config.crf_iterations + 1):
                raise_if_cancelled(self.cancel)
                if self.clock.is_over(reserve):
                    stopped_by = "time"
                    break
                loss = tuning.step()
                if not math.isfinite(loss):
                    self.notes.append(round_notes.DIVERGED)
                    break
                self._report(self.total - self.config.crf_iterations + number, loss, None)
            learnt = tuner.score()
            if head_only.miou is None or learnt.miou is None:
                self.crf_learnt = tuning.loss(self.cancel) <= loss_before
            else:
                self.crf_learnt = learnt.miou >= head_only.miou
        finally:
            if not self.crf_learnt:
                tuning.undo()
        self.after = learnt if self.crf_learnt else head_only
        return stopped_by

    def _report(self, iteration: int, loss: float, locked_miou: float | None) -> None:
        step = TrainStep(iteration, self.total, loss, locked_miou, self.clock.seconds())
        self.history.append(step)
        if self.progress is not None:
            self.told = time.monotonic()
            self.progress(step)

    def _find_labelled(self) -> None:
        """See which classes are labelled."""
        present = set[int]()
        for plane in self.planes:
            present |= set(np.unique(plane.training).tolist())
        self.labelled = [value in present for value in range(self.student.n_labels)]
        self.notes += round_notes.missing_classes(self.student, self.labelled, self.known, self.knows)
