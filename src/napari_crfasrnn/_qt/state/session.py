"""The state behind the widget, and all that can be done to it. It knows neither layers nor widgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
from psygnal import Signal

from napari_crfasrnn._qt.state.boxes import Outline
from napari_crfasrnn._qt.state.class_editor import ClassEditor
from napari_crfasrnn._qt.state.counts import Counts, Numbers
from napari_crfasrnn._qt.state.engine import Engine, ModelRequest, Segmented
from napari_crfasrnn._qt.state.lessons import Effort, Lessons
from napari_crfasrnn._qt.state.micrographs import Kind, kind_at_a_glance
from napari_crfasrnn._qt.state.planes import PlaneIndex
from napari_crfasrnn._qt.state.rounds import Rounds
from napari_crfasrnn._qt.state.shelf import LEARNT, PHOTOGRAPHS, PREFIX, ModelChoice, Shelf
from napari_crfasrnn._qt.state.standing import Standing
from napari_crfasrnn._qt.state.storage import Storage
from napari_crfasrnn._qt.state.table import ClassTable
from napari_crfasrnn._qt.state.tasks import Busy, Line, Tasks
from napari_crfasrnn._qt.state.telling import (
    CHANGED,
    KNOWS_NONE,
    REPLACED,
    TO_PAINT,
    hint_at,
    tell,
)
from napari_crfasrnn._qt.state.work import Labels, Work
from napari_crfasrnn._qt.worker import Report, Task, Worker
from napari_crfasrnn.classes import ClassSpec, ignore_value
from napari_crfasrnn.config import TrainConfig
from napari_crfasrnn.edits import Box, Patch

if TYPE_CHECKING:
    from napari_crfasrnn._qt.layers import ImageInput
    from napari_crfasrnn.segmenter import Segmentation

Region = tuple[int, int, int, int]


class Session:
    """One viewer's work: the models, the class table, the images with their labels, and the project.

    Parameters
    ----------
    write
        Brings labels to where they are seen and can be undone: ``write(key, labels, index)``. It has to
        write to the array of the image's `Work`, and returns what `Work.follow_steps` knows the step by.
    """

    touched = Signal(str)  # key of an image whose labels may have changed
    segmented = Signal(str, object)  # key of an image, and the classes that are in it
    refined = Signal(str)  # key of an image
    unpredicted = Signal(str)  # key of an image of which the predictions went

    def __init__(self, write: Callable[[str, Labels, PlaneIndex], object]) -> None:
        self.works: dict[str, Work] = {}
        self.told: dict[str, Line] = {}  # of the last segmentation of each image, by the chosen model
        self.table = ClassTable()
        self.tasks, self.engine = Tasks(), Engine()
        self.shelf = Shelf(self.tasks, self.engine)
        self.storage = Storage(self.tasks, self.engine, self.works, self.table)
        self.rounds = Rounds(self.tasks, self.engine, self.shelf, self.storage)
        self.effort = Effort()  # of rounds of learning
        self.lessons = Lessons(self.tasks, self.engine, self.shelf, self.storage, self.rounds)
        self.changed, self.finished = self.tasks.changed, self.tasks.finished
        self.standing = Standing()
        self._looker = Worker("crfasrnn-look")  # at the labels, whatever the tasks are at
        self.counts = Counts(self._looker, self.works, self.table, self.standing)
        self.classes = ClassEditor(
            self.table, self.works, self.tasks, self.shelf, self.storage, self.counts, self.standing
        )
        self._write = write
        self._closed = False
        self._tried_again: set[str] = set()  # images that could not be saved at first
        self.shelf.chosen.connect(self._on_model_chosen)
        self.classes.remapped.connect(self.touched)
        self.classes.began.connect(self._on_classes_began)
        self.lessons.kept.connect(lambda name: self.standing.rename(LEARNT, name))
        self.storage.left.connect(self._on_project_left)
        self.storage.replaced.connect(self._on_project_replaced)
        self.storage.copied.connect(self.rounds.list_again)
        self.storage.refused.connect(self._on_refused)
        self.storage.saved.connect(lambda key, path, number: self._tried_again.discard(key))
        self.storage.taught.connect(self._on_taught)

    @property
    def busy(self) -> Busy | None:
        """The task at work."""
        return self.tasks.busy

    @property
    def numbers(self) -> Mapping[str, Numbers]:
        """What was counted last on each image, by its key."""
        return self.counts.numbers

    def begin(self) -> None:
        """Find out which models and earlier projects there are."""
        self.shelf.load()
        self.tasks.aside("importing", self.engine.warm_up, lambda _: None, "start")
        self.storage.list_recents()

    def cancel(self) -> None:
        """Stop what is going on; everything is as it was before it was started.

        Of a round of learning that has begun to teach, what was learnt so far is offered; cancelled once
        more, it is dropped, too.
        """
        if self.busy is not None and self.busy.what == "learn":
            if self.lessons.history and not self.busy.is_stopping:
                self.tasks.stop()
                return
            self.lessons.history = []
        self.tasks.cancel()

    def close(self) -> None:
        """Save what is unsaved, and stop everything."""
        if self._closed:
            return
        self._closed = True
        self.tasks.close()
        self._looker.close()
        self.storage.close()

    # --- segmenting and correcting ------------------------------------------------------------------

    def segment(self, image: ImageInput, index: PlaneIndex | None, boxes: Sequence[Outline] = ()) -> None:
        """Segment a plane of an image, or all of it where ``index`` is None, heeding boxes around objects.

        A model that knows none of the table's classes segments nothing: it would make them up.
        """
        if self.busy is not None:
            return
        if self.table.is_unknown:
            self.tasks.say("start", KNOWS_NONE, "problem")
            self.finished.emit("failed")
            return
        self.shelf.when_loaded(
            Busy("segment", "Looking for models…"), lambda: self._segment(image, index, boxes)
        )

    def _segment(self, image: ImageInput, index: PlaneIndex | None, boxes: Sequence[Outline]) -> None:
        request, model, asked = self.request(), self.shelf.chosen_name, self.table.classes
        self.work_on(image)

        def run(task: Task, report: Report) -> Segmented:
            return self.engine.segment(
                request, image, index, lambda done, total: report((done, total)), task.cancelled, boxes
            )

        def done(result: Segmented) -> None:
            work = self.works.get(image.key)
            if work is None or work.labels.shape != image.shape:
                self.tasks.say("start", REPLACED, "problem")
                return
            if self.table.edited and self.table.classes != asked:
                names = [spec.name for spec in result.segmentation.classes]
                if self.table.is_unknown_to(names):
                    self.tasks.say("start", CHANGED, "problem")
                    return
                result = result.remapped(self.table.values_of(names), self.table.classes)
            self._take_segmentation(image, result, () if index is None else index)
            self.standing.segmented(image.key, () if index is None else index, model)

        self.tasks.start(Busy("segment", "Segmenting…"), run, done)

    def _take_segmentation(self, image: ImageInput, result: Segmented, index: PlaneIndex) -> None:
        segmentation = result.segmentation
        kept: tuple[ClassSpec, ...] = ()
        if not self.table.locked or segmentation.classes != self.table.classes:
            kept = self.classes.adopt(segmentation.classes, image.key if index == () else None)
        work = self.work_on(image)
        revision = work.merge(segmentation, index)
        self._write(image.key, revision.after.labels, index)
        work.take(revision, segmentation)
        self.segmented.emit(image.key, result.present)
        self.touch(image.key)
        is_free = not (self.table.edited or self.counts.is_settled)  # else models have to follow the table
        self.told[image.key] = tell(
            result,
            of_photographs=self.shelf.chosen_name == PHOTOGRAPHS,
            kept=[spec.name for spec in kept],
            names=self.table.names,
            models=[choice.name for choice in self.shelf.models] if is_free else (),
        )
        self.tell_again(image.key)

    def tell_again(self, key: str) -> None:
        """Say what there was to say of the last segmentation of an image, if it was with the chosen model."""
        line = self.told.get(key)
        if line is not None:
            self.tasks.say("start", line.text, line.tone, *line.cures)

    def hint(self, image: ImageInput, index: PlaneIndex, is_current: Callable[[], bool]) -> None:
        """Ask whether an image that nobody worked on is a micrograph, where the model is none for these."""
        if not self._may_hint(image.key):
            return

        def done(kind: Kind | None) -> None:
            text, cures = hint_at(kind, [choice.name for choice in self.shelf.models])
            if text and is_current() and self._may_hint(image.key) and "start" not in self.tasks.lines:
                self.tasks.say("start", text, "quiet", *cures)

        self._looker.start(
            "hint", lambda task, report: kind_at_a_glance(image, index), done, lambda error: None
        )

    def _may_hint(self, key: str) -> bool:
        is_new = key not in self.works and not self.table.edited and self.busy is None
        return is_new and self.shelf.chosen_name == PHOTOGRAPHS

    def refine(self, key: str, index: PlaneIndex, region: Region | None) -> None:
        """Let the CRF snap the labels of a plane to the edges of the image, around what was painted."""
        work = self.works.get(key)
        if self.busy is not None or self.shelf.choice is None or work is None:
            return
        request, labels, held = self.request(), work.labels[index].copy(), work.held(index)
        names = self.table.names

        def run(task: Task, report: Report) -> Segmentation:
            return self.engine.refine(request, work.image, labels, held, index, region, task.cancelled)

        def done(result: Segmentation) -> None:
            now = self.works.get(key)
            if now is None or now.labels.shape != work.labels.shape:
                self.tasks.say("correct", REPLACED, "problem")
                return
            if self.table.values_of(names) != tuple(range(len(names))):
                self.tasks.say("correct", CHANGED, "problem")
                return
            changed = self._take_refined(key, index, labels, result)
            self.tasks.say("correct", f"Refined: {changed:,} px in {result.timings['total']:.1f} s.")

        self.tasks.start(Busy("refine", "Refining…"), run, done)

    def _take_refined(self, key: str, index: PlaneIndex, given: Labels, result: Segmentation) -> int:
        work = self.works[key]
        now = work.labels[index].copy()
        kept = (now != given) | work.held(index) | work.erased(index)  # also what was painted meanwhile
        refined = np.where(kept, now, result.labels).astype(now.dtype)
        changed = refined != now
        step = self._write(key, refined, index)
        work.take_refined(index, (0, 0), changed, step)
        if work.entropy is not None:
            work.entropy.put(index, result.entropy)
        self.touch(key)
        self.refined.emit(key)
        return int(np.count_nonzero(changed))

    def learn(self, config: TrainConfig | None = None) -> None:
        """Teach the model what was corrected."""
        if self.busy is not None or self.shelf.choice is None:
            return
        self.table.locked = True
        self.tasks.lines.pop("correct", None)
        advice = self.tasks.lines.get("classes")
        if advice is not None and advice.text in TO_PAINT:
            self.tasks.say("classes", "")
        parent, first = self.rounds.parent_of(self.shelf.choice)
        base = self.shelf.get(first) if parent else None
        self.lessons.learn(
            self.request(),
            None if base is None else self.request(base),
            config or self.effort.config(),
            lambda taught: self.standing.taught(LEARNT, self.storage.keeper.by_key(taught)),
        )

    def accept(self, key: str, indices: Sequence[PlaneIndex], step: object) -> None:
        """Say that all labels of planes of an image are right, or take that back; see `Work.accept`."""
        work = self.works.get(key)
        if work is None:
            return
        work.accept(indices, step)
        self.touch(key)

    def choose_model(self, name: str) -> None:
        """Use a model from now on; a round of learning is put in force."""
        if name.startswith(PREFIX):
            self.rounds.roll_back(int(name.removeprefix(PREFIX)))
        else:
            self.shelf.choose(name)

    def compare(
        self,
        names: tuple[str, str],
        image: ImageInput,
        index: PlaneIndex,
        then: Callable[[tuple[ModelChoice, ModelChoice], Labels, Labels], None],
    ) -> None:
        """Segment a plane with two models on the shelf; ``then`` gets these and the labels of both."""
        one, other = self.shelf.get(names[0]), self.shelf.get(names[1])
        if one is None or other is None:
            return
        self.table.locked = True
        self.rounds.compare(
            (one, other),
            (self.request(one), self.request(other)),
            image,
            index,
            lambda first, second: then((one, other), first, second),
        )

    def request(self, choice: ModelChoice | None = None) -> ModelRequest:
        """Return the chosen model or another one, for the present class table."""
        choice = choice or self.shelf.choice
        assert choice is not None
        if not self.table.locked:
            return ModelRequest(choice.source)
        if choice is self.shelf.choice:
            return ModelRequest(choice.source, self.table.classes, self.table.continues())
        # Another model knows other classes, and renamed ones by other names.
        continues = self.table.continues_in(choice.class_names)
        return ModelRequest(choice.source, self.table.classes, continues)

    def save_model(self, path: Path) -> None:
        """Write the chosen model, with the present class table, to a file."""
        if self.shelf.choice is not None and self.busy is None:
            self.shelf.save(self.request(), path)

    # --- images -------------------------------------------------------------------------------------

    def work_on(self, image: ImageInput) -> Work:
        """Return the work on an image: a new one if there is none, or if its shape has changed."""
        work = self.works.get(image.key)
        if work is None or work.labels.shape != image.shape:
            work = self.works[image.key] = Work.blank(image, len(self.table.classes) or 1)
        work.image = image
        return work

    def begin_anew(self, key: str) -> None:
        """Begin with an image that is another one now; what it was stays, as an image of its own."""
        work = self.works.pop(key, None)
        if work is None:
            return
        before = uuid4().hex
        work.image = replace(work.image, key=before)
        self.works[before] = work
        self.storage.move(key, before)
        self.counts.forget(key)
        self.standing.forget(key)
        self.told.pop(key, None)

    def touch(self, key: str) -> None:
        """Note that the labels of an image may have changed."""
        work = self.works.get(key)
        if work is None:
            return
        work.follow_undo()
        self.storage.touch(key)
        self.touched.emit(key)
        self.changed.emit()

    def count(self, key: str, index: PlaneIndex) -> None:
        """Count shares and edits anew, in a thread; `Counts.counted` says when."""
        self.counts.count(key, index, self.shelf.chosen_name)

    def choose_patch(
        self,
        key: str,
        index: PlaneIndex,
        without: Mapping[PlaneIndex, Sequence[Box]],
        then: Callable[[tuple[PlaneIndex, Patch] | None], None],
    ) -> None:
        """Find the square to correct next, in a thread; ``then`` gets it with its plane, or None."""
        work = self.works[key]

        def failed(error: Exception) -> None:
            self.tasks.complain("correct", "Looking for a square", error)
            then(None)

        self._looker.start("patch", lambda task, report: work.next_patch(index, without), then, failed)

    # --- what others changed -------------------------------------------------------------------------

    def _on_classes_began(self, unpredicted: Sequence[str]) -> None:
        self.told.clear()
        for key in unpredicted:
            self.unpredicted.emit(key)
            self.touch(key)

    def _on_model_chosen(self) -> None:
        assert self.shelf.choice is not None
        self.told.clear()
        names = self.shelf.choice.class_names
        if not self.counts.is_settled and not self.table.edited and names != self.table.names:
            self.table.locked = False  # nothing would be lost: the table may follow the model
        if self.table.locked or not self.works:
            self.table.follow(names)
        self.counts.count_learnt(self.shelf.chosen_name)

    def _on_taught(self, model: str, lessons: dict[str, Labels]) -> None:
        self.standing.add_lessons(model, lessons)
        if model == self.shelf.chosen_name:
            self.counts.count_learnt(model, lessons)

    def _forget(self) -> None:
        """Forget all that is of the open project."""
        self.works.clear()
        self.counts.clear()
        self.told.clear()
        self.standing.clear()
        self.lessons.forget()
        self.rounds.forget()
        self.shelf.remove(PREFIX)
        self.table.clear()
        for section in ("start", "classes", "correct", "learn"):
            self.tasks.lines.pop(section, None)

    def _on_refused(self, key: str) -> None:
        """Make what is no class unlabelled: nothing of the project could be saved or learnt with it."""
        work = self.works.get(key)
        if work is None:
            return
        where = work.is_no_class(len(self.table.classes))
        if not where.any():
            if key not in self._tried_again:  # it held a class that the project did not know yet
                self._tried_again.add(key)
                self.storage.save()
            return
        values = ", ".join(str(value) for value in np.unique(work.labels[where])[:5])
        labels = np.where(where, work.labels.dtype.type(ignore_value(work.labels.dtype)), work.labels)
        self._write(key, labels, ())
        said = f"{np.count_nonzero(where):,} px of {work.image.name} had labels that are no class ({values})"
        self.touch(key)
        self.tasks.say("classes", f"{said}: they are unlabelled now.", "problem")
        self.storage.save()

    def _on_project_left(self) -> None:
        first = self.rounds.all[0].started_from if self.rounds.all else ""
        self._forget()
        self.rounds.list_again()
        if self.shelf.choice is None:  # it was of a round
            self.shelf.choose_first(first)
        else:
            self.table.follow(self.shelf.choice.class_names)

    def _on_project_replaced(
        self,
        classes: tuple[ClassSpec, ...],
        rounds: list[ModelChoice],
        current: int,
        renames: Sequence[Mapping[str, str | None]],
    ) -> None:
        self._forget()
        for mapping in renames:
            self.table.note_renames(mapping)
        self.table.replace(classes, [spec.name for spec in classes], None)
        self.table.locked = self.table.edited = True
        before = self.shelf.choice
        for choice in rounds:
            self.shelf.add(choice)
        if rounds and current:
            self.shelf.choose(f"{PREFIX}{current}")
        else:
            self.shelf.choose_first("" if before is None else before.name)
        self.rounds.list_again()
        if self.shelf.choice is not None:
            self.table.follow(self.shelf.choice.class_names)
        if self.table.is_unknown:
            self.shelf.choose_fitting(self.table.names)
