"""`fine_tune`: one round of learning, from the labels of a project to a new model and a report."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from napari_crfasrnn.config import TrainConfig
from napari_crfasrnn.network import FcnLite, SegmentationModel
from napari_crfasrnn.progress import Cancel, Cancelled, raise_if_cancelled
from napari_crfasrnn.project import Project
from napari_crfasrnn.training.crf_tuning import CrfTuner
from napari_crfasrnn.training.doubts import find_contradictions
from napari_crfasrnn.training.head import HeadLearner
from napari_crfasrnn.training.panel_round import PanelRound
from napari_crfasrnn.training.planes import (
    LOOKS,
    LabelledPlane,
    View,
    draw_pixels,
    labelled_planes,
    locked_sample,
    make_view,
)
from napari_crfasrnn.training.report import (
    LockedScore,
    PlaceOfContradiction,
    StoppedBy,
    TrainReport,
    TrainStep,
)
from napari_crfasrnn.training.teacher import Advice, advise_by_forest, advise_by_votes

_FIRST_LOOK_SHARE = 0.5  # of the time limit at most goes into looking at every image once
_LOOK_SHARE = 0.15  # and after this much, no further looks are taken: on a busy machine, steps matter more
_VIEWS = 16  # of all planes together, when these are few
_LEAST_LOOKS = 2  # at a plane
_VARIED_UP_TO = 40  # planes; more of them are variety enough
_CRF_STEP_COST = 4.0  # an optimiser step on a tile, in inferences of it: forward and backward
_CRF_SHARE = 0.3  # of the time limit at most goes into the CRF
_SCORES_AFTER = 2.0  # scores on all tiles that come after the last head iteration
_TITLE = "Fine-tuned from "
TAUGHT = "taught"  # in a model's provenance: the classes that it knows from the labels of one project only
_FROM_ELSEWHERE = "the model came with labels of another project: only those of this one were learnt"
_DIVERGED = "the loss was no longer a number, so learning stopped and the best weights before that were kept"


@torch.no_grad()
def fine_tune(
    model: SegmentationModel,
    project: Project,
    config: TrainConfig | None = None,
    progress: Callable[[TrainStep], None] | None = None,
    cancel: Cancel | None = None,
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

    Returns
    -------
    report
        The new model, in `TrainReport.model`, and how it did.

    Raises
    ------
    ValueError
        If nothing in the project is labelled.
    """
    return _Round(model, project, config or TrainConfig(), progress, cancel).run()


@dataclass
class _Clock:
    """Time since learning began, and the limit."""

    limit: float | None
    start: float

    def seconds(self) -> float:
        return time.monotonic() - self.start

    def is_over(self, reserve: float = 0.0) -> bool:
        return self.limit is not None and self.seconds() >= self.limit - reserve


class _Round:
    """The state of one call of `fine_tune`."""

    def __init__(
        self,
        model: SegmentationModel,
        project: Project,
        config: TrainConfig,
        progress: Callable[[TrainStep], None] | None,
        cancel: Cancel | None,
    ) -> None:
        self.clock = _Clock(config.seconds, time.monotonic())
        self.project, self.config, self.progress, self.cancel = project, config, progress, cancel
        self.knows = _n_known_classes(model, project) > 1
        self.student = _with_classes_of(model, project)
        if self.config.thaw:
            self.student = self.student.with_panel(None)  # what is trained must also speak
        self.planes: list[LabelledPlane] = []
        self.labelled: list[bool] = []
        self.history: list[TrainStep] = []
        self.notes: list[str] = []
        self.before: LockedScore | None = None
        self.after: LockedScore | None = None
        self.crf_learnt = False
        self.found: tuple[PlaceOfContradiction, ...] = ()

    def run(self) -> TrainReport:
        """Learn, and report."""
        stopped_by: StoppedBy
        try:
            stopped_by = self._learn()
            if self.student.panel is None and not self.clock.is_over():
                self.found = find_contradictions(self.student, self.planes, self.cancel)
        except Cancelled:
            stopped_by = "cancelled"
        self._note_provenance()
        return TrainReport(
            model=self.student,
            before=self.before,
            after=self.after,
            history=tuple(self.history),
            stopped_by=stopped_by,
            n_planes=len(self.planes),
            n_training_pixels=sum(plane.n_training for plane in self.planes),
            n_locked_pixels=sum(plane.n_locked for plane in self.planes),
            crf_learnt=self.crf_learnt,
            contradictions=self.found,
            notes=tuple(self.notes),
            config=self.config,
            seconds=self.clock.seconds(),
        )

    def _learn(self) -> StoppedBy:
        for plane in labelled_planes(self.project, self.config.locked_share, self.cancel):
            self.planes.append(plane)
        if not self.planes:
            raise ValueError(
                "project must hold labelled pixels to learn from, got none: paint or accept some first"
            )
        self._note_missing_classes()
        if self._takes_panel():
            return self._learn_panel()
        views = self._draw_views()
        tuner = CrfTuner(self.student, self.planes, views[: len(self.planes)], self.config, self.cancel)
        begun = self.clock.seconds()
        self.before = tuner.score()
        score_seconds = self.clock.seconds() - begun
        crf_seconds = score_seconds / max(1, len(tuner)) * _CRF_STEP_COST * self.config.crf_iterations
        if self.clock.limit is not None:
            crf_seconds = min(crf_seconds, _CRF_SHARE * self.clock.limit)
        stopped_by = self._learn_head(views, reserve=crf_seconds + _SCORES_AFTER * score_seconds)
        if stopped_by != "diverged" and self.config.crf_iterations:
            stopped_by = self._learn_crf(tuner, stopped_by, reserve=_SCORES_AFTER * score_seconds)
        if self.after is None:
            self.after = tuner.score()
        return stopped_by

    def _takes_panel(self) -> bool:
        """Return whether experts for pixels shall learn, and not the head of the network.

        They do for classes that the model knows nothing of, and where they have spoken for it before.
        """
        if self.config.thaw or not isinstance(self.student.network, FcnLite):
            return False
        return not self.knows or self.student.panel is not None

    def _learn_panel(self) -> StoppedBy:
        """Teach experts from the start: the project holds all labels that there are."""
        if self.knows:
            self.notes.append(_FROM_ELSEWHERE)
        work = PanelRound(self.student, self.planes, self.config, self.cancel, self._is_late)
        if work.n_read < len(self.planes):
            self._note_left_out(work.n_read)
        self.before = work.tiles.score(self.student)
        learner = work.start()
        stopped_by: StoppedBy = "iterations"
        total = self.config.max_iterations
        try:
            while learner.iteration < total:
                raise_if_cancelled(self.cancel)
                if learner.iteration and self.clock.is_over():
                    stopped_by = "time"
                    break
                loss = learner.step()
                if not math.isfinite(loss):
                    self.notes.append(_DIVERGED)
                    stopped_by = "diverged"
                    break
                self._report(learner.iteration, loss, work.measure(learner.panel, learner.iteration))
        finally:
            learner.finish()
            if learner.iteration:
                self.student = self.student.with_panel(learner.panel)
        crf = work.tiles.choose_crf(learner.panel)
        self.student = self.student.with_crf(crf)
        self.crf_learnt = True
        self.after = work.tiles.score(self.student)
        if not self.clock.is_over():
            self.found = work.contradictions(learner.panel)
        return stopped_by

    def _is_late(self) -> bool:
        limit = self.clock.limit
        return limit is not None and self.clock.is_over((1 - _FIRST_LOOK_SHARE) * limit)

    def _note_left_out(self, n_read: int) -> None:
        left_out = f"{len(self.planes) - n_read} of {len(self.planes)} labelled images"
        self.notes.append(f"{left_out} were left out for lack of time: give it more seconds")
        del self.planes[n_read:]

    def _draw_views(self) -> list[View]:
        """Return a view of every plane as it is, and then others, as far as there is time."""
        random = np.random.default_rng([self.config.seed, 0])
        encode = not self.config.thaw
        views: list[View] = []
        limit = self.clock.limit or 0.0
        pixels = [draw_pixels(plane, random) for plane in self.planes]
        n_looks = min(len(LOOKS), max(_LEAST_LOOKS, _VIEWS // len(self.planes)))
        for look in LOOKS[: n_looks if len(self.planes) <= _VARIED_UP_TO else 1]:
            for number, plane in enumerate(self.planes):
                raise_if_cancelled(self.cancel)
                share = _FIRST_LOOK_SHARE if look == LOOKS[0] else _LOOK_SHARE
                if views and self.clock.is_over((1 - share) * limit):
                    if look == LOOKS[0]:
                        self._note_left_out(number)
                    return views
                views.append(make_view(self.student, number, plane, pixels[number], look, encode=encode))
        return views

    def _learn_head(self, views: list[View], reserve: float) -> StoppedBy:
        locked = [
            (view, locked_sample(self.student, plane, view.grid))
            for view, plane in zip(views[: len(self.planes)], self.planes, strict=True)
        ]
        learner = HeadLearner(self.student, views, locked, self.config, self._advice(views))
        try:
            while learner.iteration < self.config.max_iterations:
                raise_if_cancelled(self.cancel)
                if learner.iteration and self.clock.is_over(reserve):
                    return "time"
                loss = learner.step()
                if not math.isfinite(loss):
                    self.notes.append(_DIVERGED)
                    return "diverged"
                self._report(learner.iteration, loss, learner.measure())
        finally:
            learner.finish()
        return "iterations"

    def _advice(self, views: list[View]) -> list[Advice]:
        """Return what the untouched pixels of every plane should become."""
        first = views[: len(self.planes)]
        if self.knows:
            return advise_by_votes(self.student, first, self.config, self.cancel)
        if sum(self.labelled) < 2:  # a forest that saw one class only would say that all is of this class
            return []
        return advise_by_forest(self.student, self.planes, first, self.config, self.cancel)

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
                    self.notes.append(_DIVERGED)
                    break
                self._report(self.config.max_iterations + number, loss, None)
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
        total = self.config.max_iterations + (0 if self._takes_panel() else self.config.crf_iterations)
        step = TrainStep(iteration, total, loss, locked_miou, self.clock.seconds())
        self.history.append(step)
        if self.progress is not None:
            self.progress(step)

    def _note_provenance(self) -> None:
        """Write into the model where it comes from."""
        about = self.student.provenance
        title = str(about.get("title", "a model"))
        if self.history:
            about["title"] = title if title.startswith(_TITLE) else _TITLE + title
            if not self.knows:
                names = [spec.name for spec in self.student.classes]
                about[TAUGHT] = {"project": self.project.id, "classes": names}

    def _note_missing_classes(self) -> None:
        present = set[int]()
        for plane in self.planes:
            present |= set(np.unique(plane.training).tolist())
        self.labelled = [value in present for value in range(self.student.n_labels)]
        names = [
            spec.name for spec, is_there in zip(self.student.classes, self.labelled, strict=True) if is_there
        ]
        if len(names) == 1:
            self.notes.append(
                f"only {names[0]!r} is labelled: label a little of what is not {names[0]!r}, too, "
                "or it may spread over everything"
            )


def _n_known_classes(model: SegmentationModel, project: Project) -> int:
    """Return how many of a project's classes a model knows from elsewhere.

    What it learnt from the labels of this very project does not count: they are all here, and say it better.
    """
    known = {spec.name for spec in model.classes}
    taught = model.provenance.get(TAUGHT, {})
    if taught.get("project") == project.id:
        known -= set(taught["classes"])
    renamed = _renamed(model, project)
    return sum(renamed.get(spec.name, spec.name) in known for spec in project.classes)


def _with_classes_of(model: SegmentationModel, project: Project) -> SegmentationModel:
    """Return a copy of a model with a project's classes."""
    classes = project.classes
    if [spec.name for spec in classes] == [spec.name for spec in model.classes]:
        return model.copy()
    # Growing a head draws random numbers; the caller's must not move on.
    with torch.random.fork_rng(devices=[]):
        return model.with_classes(classes, continues=_renamed(model, project))


def _renamed(model: SegmentationModel, project: Project) -> dict[str, str]:
    """Return the classes that the project has renamed: name in the project → name in the model."""
    names = {spec.name for spec in project.classes}
    continues: dict[str, str] = {}
    for spec in model.classes:
        name: str | None = spec.name
        for event in project.events:
            if event["action"] == "classes" and name is not None:
                name = event["detail"]["mapping"].get(name, name)
        if name is not None and name != spec.name and name in names:
            continues.setdefault(name, spec.name)
    return {new: old for new, old in continues.items() if new not in {spec.name for spec in model.classes}}
