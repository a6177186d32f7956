"""The state behind the widget, and everything that can be done to it. It knows no layers and no widgets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from psygnal import Signal

from napari_crfasrnn._qt.engine import Engine, ModelRequest, Segmented
from napari_crfasrnn._qt.keeper import Keeper, Opened, Recent, Snapshot
from napari_crfasrnn._qt.table import ClassTable
from napari_crfasrnn._qt.work import Labels, PlaneIndex, Work
from napari_crfasrnn._qt.worker import Task, Worker
from napari_crfasrnn.classes import ClassSpec, ignore_value
from napari_crfasrnn.config import TrainConfig
from napari_crfasrnn.edits import EditSummary

if TYPE_CHECKING:
    from napari_crfasrnn._qt.layers import ImageInput
    from napari_crfasrnn.network import SegmentationModel
    from napari_crfasrnn.project import Item
    from napari_crfasrnn.segmenter import Segmentation
    from napari_crfasrnn.training import TrainReport, TrainStep

_log = logging.getLogger(__name__)

SECTIONS = ("start", "classes", "correct", "learn", "project")
UNNAMED_MODEL = "new"  # the choice that stands for what was learnt and not kept yet


@dataclass(frozen=True)
class Line:
    """What a section of the widget has to say: one sentence, and the action that cures it, if any."""

    text: str
    tone: str = "quiet"  # or "good", "problem"
    cure: str = ""


@dataclass(frozen=True)
class Busy:
    """The task at work: "segment", "refine", "learn", "open" or "save", and how far it is."""

    what: str
    text: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True, eq=False)
class ModelChoice:
    """A model that can be chosen."""

    name: str
    title: str
    source: Path | SegmentationModel
    class_names: tuple[str, ...]
    problem: str | None = None


@dataclass(frozen=True)
class Numbers:
    """What is counted on an image: of the plane that is shown, the shares; of all of it, the rest."""

    shares: tuple[float, ...]
    present: tuple[int, ...]
    summary: EditSummary


class Session:
    """One viewer's work: models, class table, images with their labels, the project on the disk.

    Attributes
    ----------
    write
        How labels get into the viewer: ``write(key, labels, index)``. Without a viewer they are written to
        the array itself.
    """

    changed = Signal()  # something that is shown
    finished = Signal(str)  # "segment", "refine", "learn", "save", "open", "cancelled" or "failed"
    stepped = Signal(object)  # a `TrainStep`
    opened = Signal(object, object)  # `Opened` images; the items left closed, None where nothing was closed
    saved = Signal(str, Path, int)  # key of an image, folder of the project, number of its item
    touched = Signal(str)  # key of an image whose labels may have changed
    counted = Signal(str)  # key of the image whose `Numbers` are new

    def __init__(self) -> None:
        self.jobs, self.disk, self.counter = (
            Worker("crfasrnn-jobs"),
            Worker("crfasrnn-disk"),
            Worker("counter"),
        )
        self.engine, self.keeper = Engine(), Keeper()
        self.table = ClassTable()
        self.models: tuple[ModelChoice, ...] = ()
        self.choice: ModelChoice | None = None
        self.works: dict[str, Work] = {}
        self.numbers: dict[str, Numbers] = {}
        self.busy: Busy | None = None
        self.lines: dict[str, Line] = {}
        self.report: TrainReport | None = None  # of a round that is neither kept nor discarded
        self.history: list[TrainStep] = []
        self.recents: list[Recent] = []
        self.write: Callable[[str, Labels, PlaneIndex], None] = self._write_in_place
        self._task: Task | None = None
        self._before_learning: ModelChoice | None = None
        self._unsaved: set[str] = set()
        self._counting: set[str] = set()
        self._closed = False

    # --- telling ------------------------------------------------------------------------------------

    def say(self, section: str, text: str, tone: str = "quiet", cure: str = "") -> None:
        """Say something in a section; an empty text clears it."""
        if text:
            self.lines[section] = Line(text, tone, cure)
        else:
            self.lines.pop(section, None)
        self.changed.emit()

    def _fail(self, section: str, doing: str, error: Exception) -> None:
        """Say in one sentence why something did not work."""
        self.busy = self._task = None
        if isinstance(error, ValueError | TypeError | OSError | MemoryError):
            _log.info("%s failed: %s", doing, error)
            text = str(error) or type(error).__name__
        else:
            _log.error("%s failed", doing, exc_info=error)
            text = f"{doing} failed: {error or type(error).__name__}. The log has the details."
        self.say(section, text[:1].upper() + text[1:], "problem")
        self.finished.emit("failed")

    def _start(
        self,
        busy: Busy,
        section: str,
        work: Callable[[Task, Callable[[Any], None]], Any],
        done: Callable[[Any], None],
        progress: Callable[[Any], None] | None = None,
    ) -> None:
        self.busy = busy
        self.lines.pop(section, None)

        def finish(result: Any) -> None:
            self.busy = self._task = None
            try:
                done(result)
            except (ValueError, TypeError, OSError) as error:
                self._fail(section, busy.text.rstrip("…"), error)
                return
            self.changed.emit()
            self.finished.emit(busy.what)

        self._task = self.jobs.start(
            busy.what, work, finish, lambda error: self._fail(section, busy.text.rstrip("…"), error), progress
        )
        self.changed.emit()

    def _show_progress(self, value: tuple[int, int]) -> None:
        if self.busy is not None:
            self.busy = replace(self.busy, done=value[0], total=value[1])
            self.changed.emit()

    def cancel(self) -> None:
        """Stop what is going on; everything is as it was before it was started."""
        if self.busy is None:
            return
        what, self.busy = self.busy.what, None
        if self._task is not None:
            self.jobs.cancel(self._task)
            self._task = None
        section = {"segment": "start", "refine": "correct", "learn": "learn"}.get(what, "project")
        if what == "learn":
            self.history = []
        self.say(section, "Cancelled; everything is as it was.")
        self.finished.emit("cancelled")

    # --- models -------------------------------------------------------------------------------------

    def load_models(self) -> None:
        """Find out which models and which earlier projects there are."""

        def done(entries: Any) -> None:
            found = [ModelChoice(e.name, e.title, e.path, e.class_names, e.problem) for e in entries]
            own = [
                choice for choice in self.models if choice.name.startswith(("file:", "round:", UNNAMED_MODEL))
            ]
            self.models = (*found, *own)
            usable = [choice for choice in self.models if choice.problem is None]
            if self.choice is None and usable:
                self.choose(usable[0].name)
            elif not usable:
                self.say("start", "No model is installed: open a model file with ⋯.", "problem", "open-model")
            self.changed.emit()

        def failed(error: Exception) -> None:
            self._fail("start", "Looking for models", error)

        self.jobs.start("models", lambda task, report: self.engine.list_models(), done, failed)
        self.load_recents()

    def load_recents(self) -> None:
        """Find out which earlier projects there are."""

        def done(recents: list[Recent]) -> None:
            self.recents = recents
            self.changed.emit()

        def failed(error: Exception) -> None:
            _log.info("earlier projects could not be listed: %s", error)

        self.disk.start("recent projects", lambda task, report: self.keeper.recent(), done, failed)

    def choose(self, name: str) -> None:
        """Choose a model by its name."""
        choice = next((c for c in self.models if c.name == name), None)
        if choice is None or choice is self.choice:
            return
        if choice.problem is not None:
            self.say("start", choice.problem, "problem")
            return
        self.choice = choice
        if not self._has_settled_pixels() and not self.table.edited:
            self.table.locked = bool(self.works) and choice.class_names == self.table.names
        self.table.follow(choice.class_names)
        self.lines.pop("start", None)
        self.changed.emit()

    def open_model(self, path: Path) -> None:
        """Add a model file to the models and choose it."""
        busy = Busy("load", "Reading the model…")

        def done(names: tuple[str, ...]) -> None:
            self._add_choice(ModelChoice(f"file:{path}", path.stem, path, names))

        self._start(busy, "start", lambda task, report: self.engine.check(path), done)

    def save_model(self, path: Path) -> None:
        """Write the chosen model, with the present class table, to a file."""
        if self.choice is None:
            return
        request = self._request()

        def done(written: Path) -> None:
            self.say("project", f"Model saved as {written.name}.", "good")

        self._start(
            Busy("save", "Saving the model…"), "project", lambda t, r: self.engine.save(request, path), done
        )

    def _add_choice(self, choice: ModelChoice) -> None:
        self.models = (*(c for c in self.models if c.name != choice.name), choice)
        self.choice = None
        self.choose(choice.name)

    def _request(self) -> ModelRequest:
        assert self.choice is not None
        if not self.table.locked:
            return ModelRequest(self.choice.source)
        return ModelRequest(self.choice.source, self.table.classes, self.table.continues())

    # --- segmenting and correcting ------------------------------------------------------------------

    def segment(self, image: ImageInput, index: PlaneIndex | None) -> None:
        """Segment a plane of an image, or all of it where ``index`` is None."""
        if self.busy is not None or self.choice is None:
            return
        request = self._request()
        work = self.work_on(image)

        def run(task: Task, report: Callable[[Any], None]) -> Segmented:
            return self.engine.segment(
                request, image, index, lambda done, total: report((done, total)), task.cancelled
            )

        def done(result: Segmented) -> None:
            self._take_segmentation(image, work, result, () if index is None else index)

        self._start(Busy("segment", "Segmenting…"), "start", run, done, self._show_progress)

    def _take_segmentation(self, image: ImageInput, work: Work, result: Segmented, index: PlaneIndex) -> None:
        segmentation = result.segmentation
        if segmentation.classes != self.table.classes or not self.table.locked:
            self._adopt_classes(segmentation.classes)
        work = self.works[image.key]  # a change of the class table makes new ones
        revision = work.merge(segmentation, index)
        self.write(image.key, revision.after.labels, index)
        work.take(revision, segmentation)
        self.touch(image.key)
        seconds = segmentation.timings
        text = f"{seconds['total']:.1f} s · network {seconds['network']:.1f} · CRF {seconds['crf']:.1f}"
        if result.n_nonfinite:
            text += f" · {result.n_nonfinite:,} NaN or infinite pixels taken as the darkest"
        self.say("start", text)

    def refine(self, key: str, index: PlaneIndex, region: tuple[int, int, int, int] | None) -> None:
        """Let the CRF snap the labels of a plane to the edges of the image, around what was painted."""
        work = self.works.get(key)
        if self.busy is not None or self.choice is None or work is None:
            return
        request, labels, held = self._request(), work.labels[index].copy(), work.held(index)

        def run(task: Task, report: Callable[[Any], None]) -> Segmentation:
            return self.engine.refine(request, work.image, labels, held, index, region, task.cancelled)

        def done(result: Segmentation) -> None:
            now = work.labels[index]
            kept = now != labels  # painted meanwhile
            refined = np.where(kept, now, result.labels).astype(now.dtype)
            changed = refined != now
            self.write(key, refined, index)
            work.snapped[index][changed] = refined[changed]
            if work.entropy is not None:
                work.entropy[index] = result.entropy
            self.touch(key)
            n_changed = int(np.count_nonzero(changed))
            self.say("correct", f"{n_changed:,} px snapped in {result.timings['total']:.1f} s.")

        self._start(Busy("refine", "Refining…"), "correct", run, done)

    def work_on(self, image: ImageInput) -> Work:
        """Return the work on an image, a new one if there is none or its shape has changed."""
        work = self.works.get(image.key)
        if work is None or work.labels.shape != image.shape:
            work = Work.blank(image, len(self.table.classes) or 1)
            self.works[image.key] = work
        else:
            work.image = image
        return work

    def touch(self, key: str) -> None:
        """Note that the labels of an image may have changed."""
        work = self.works.get(key)
        if work is None:
            return
        work.follow_undo()
        self._unsaved.add(key)
        self.touched.emit(key)
        self.changed.emit()

    def accept(self, key: str) -> None:
        """Say that all labels of an image are right, or take that back."""
        work = self.works.get(key)
        if work is None:
            return
        if work.accepted is None:
            work.accept()
        else:
            work.unaccept()
        self.touch(key)

    def count(self, key: str, index: PlaneIndex) -> None:
        """Count shares and edits anew, in a thread; `counted` says when."""
        work = self.works.get(key)
        if work is None or key in self._counting:
            return
        self._counting.add(key)
        n_classes = len(self.table.classes)

        def run(task: Task, report: Callable[[Any], None]) -> Numbers:
            return Numbers(work.shares(index, n_classes), tuple(work.present(n_classes)), work.summary())

        def done(numbers: Numbers) -> None:
            self._counting.discard(key)
            if self.works.get(key) is work:
                self.numbers[key] = numbers
                self.table.give_keys(v for v in numbers.present)
                self.counted.emit(key)

        def failed(error: Exception) -> None:
            self._counting.discard(key)
            _log.error("counting failed", exc_info=error)

        self.counter.start("count", run, done, failed)

    def _has_settled_pixels(self) -> bool:
        known = (numbers.summary.n_labelled for numbers in self.numbers.values())
        return any(known)

    @staticmethod
    def _write_in_place(key: str, labels: Labels, index: PlaneIndex) -> None:
        raise LookupError(f"nobody writes the labels of {key}")

    # --- classes ------------------------------------------------------------------------------------

    def add_class(self, name: str) -> None:
        """Add a class at the end of the table."""
        self._change_classes([*self.table.classes, name], [*self.table.origins, None])

    def rename_class(self, value: int, name: str) -> None:
        """Give a class another name."""
        classes = list(self.table.classes)
        old = classes[value]
        if old.name == name.strip():
            return
        classes[value] = ClassSpec(name=name, color=old.color)
        self._change_classes(classes, self.table.origins, {old.name: classes[value].name})

    def recolor_class(self, value: int, color: tuple[int, int, int]) -> None:
        """Give a class another colour."""
        classes = list(self.table.classes)
        classes[value] = ClassSpec(name=classes[value].name, color=color)
        self._change_classes(classes, self.table.origins)

    def delete_class(self, value: int) -> None:
        """Remove a class; its pixels become unlabelled."""
        if value == 0:
            raise ValueError("the first class stands for the background and stays: rename it instead")
        keep = [v for v in range(len(self.table.classes)) if v != value]
        classes = [self.table.classes[v] for v in keep]
        new_values = [None if v == value else v - (v > value) for v in range(len(self.table.classes))]
        mapping = {self.table.classes[value].name: None}
        self._change_classes(classes, [self.table.origins[v] for v in keep], mapping, new_values)

    def _change_classes(
        self,
        classes: Sequence[str | ClassSpec],
        origins: Sequence[str | None],
        mapping: Mapping[str, str | None] | None = None,
        new_values: Sequence[int | None] | None = None,
    ) -> None:
        n_before = len(self.table.classes)
        self.table.replace(classes, origins, new_values)
        self.table.edited = True
        self._remap(new_values, n_before)
        self._save_classes(mapping or {})

    def _adopt_classes(self, classes: tuple[ClassSpec, ...]) -> None:
        """Take the class table of a model; what was labelled before is matched by name."""
        old = self.table.classes
        names = {spec.name: value for value, spec in enumerate(classes)}
        new_values = [names.get(spec.name) for spec in old]
        self.table.replace(classes, [spec.name for spec in classes], new_values)
        self.table.locked = True
        self._remap(new_values, len(old))
        self._save_classes({})

    def _remap(self, new_values: Sequence[int | None] | None, n_before: int) -> None:
        classes = self.table.classes
        same = new_values is None or list(new_values) == list(range(n_before))
        for key, work in list(self.works.items()):
            wider = ignore_value(work.labels.dtype) <= len(classes)
            if not same or wider:
                values = list(range(n_before)) if new_values is None else new_values
                self.works[key] = work.remapped(values, len(classes))
                self.numbers.pop(key, None)
        self.changed.emit()

    def _save_classes(self, mapping: Mapping[str, str | None]) -> None:
        classes = self.table.classes
        self._disk("class table", lambda: self.keeper.set_classes(classes, mapping))

    # --- learning -----------------------------------------------------------------------------------

    def learn(self, config: TrainConfig | None = None) -> None:
        """Teach the model what was corrected; `report` holds the outcome until it is kept or discarded."""
        if self.busy is not None or self.choice is None:
            return
        request, config = self._request(), config or TrainConfig()
        self.history = []
        self.busy = Busy("learn", "Learning…")
        self.lines.pop("learn", None)
        self.changed.emit()

        def run(task: Task, report: Callable[[Any], None]) -> TrainReport:
            project = self.keeper.project
            if project is None:
                raise ValueError("there is nothing to learn from: correct something first")
            return self.engine.learn(request, project, config, report, task.cancelled)

        def done(report: TrainReport) -> None:
            self._before_learning = self.choice
            self.report = report
            names = tuple(spec.name for spec in report.model.classes)
            self.table.locked = True
            self._add_choice(ModelChoice(UNNAMED_MODEL, "What was just learnt", report.model, names))

        def saved() -> None:
            if self.busy is not None and self.busy.what == "learn":
                self._start(self.busy, "learn", run, done, self._show_step)

        self.when_saved(saved, "learn")

    def _show_step(self, step: TrainStep) -> None:
        self.history.append(step)
        self.stepped.emit(step)

    def keep(self) -> None:
        """Keep what was learnt: the project gets the round, and the models get its model."""
        report = self.report
        if report is None:
            return
        model = report.model

        def store() -> Any:
            assert self.keeper.project is not None
            return self.keeper.project.add_round(report, model)

        def done(learnt: Any) -> None:
            self.report = self._before_learning = None
            self.models = tuple(c for c in self.models if c.name != UNNAMED_MODEL)
            names = tuple(spec.name for spec in model.classes)
            self._add_choice(
                ModelChoice(f"round:{learnt.number}", f"Round {learnt.number}", learnt.model_path, names)
            )
            self.say("learn", f"Kept as round {learnt.number}.", "good")
            self.finished.emit("save")

        self._disk("the round", store, done)

    def discard(self) -> None:
        """Go back to the model from before learning."""
        previous, self._before_learning = self._before_learning, None
        self.report = None
        self.models = tuple(c for c in self.models if c.name != UNNAMED_MODEL)
        self.choice = None
        if previous is not None:
            self.choose(previous.name)
        self.say("learn", "Discarded; the model is as it was.")

    # --- project ------------------------------------------------------------------------------------

    @property
    def unsaved(self) -> bool:
        """Whether there are changes that nobody has begun to save."""
        return bool(self._unsaved)

    def save(self) -> None:
        """Store what has changed, in the thread of the disk."""
        classes = self.table.classes
        for key in sorted(self._unsaved & set(self.works)):
            work = self.works[key]
            snapshot = Snapshot(work.image, work.labels.copy(), work.baseline.copy(), work.verified.copy())

            def store(snapshot: Snapshot = snapshot) -> Any:
                return self.keeper.save(snapshot, classes)

            self._disk("the project", store, partial(self._on_saved, key), partial(self._unsaved.add, key))
        self._unsaved.clear()

    def when_saved(self, then: Callable[[], None], section: str) -> None:
        """Save what has changed, then go on; or say in a section that it could not be saved."""
        self.save()

        def done(_: Any) -> None:
            if not self._unsaved:
                then()
                return
            line = self.lines.get("project")
            self._fail(section, "Saving", OSError(line.text if line else "the project could not be saved"))

        self._disk("the project", lambda: None, done)

    def save_as(self, path: Path) -> None:
        """Copy the project to a folder and go on there."""
        classes = self.table.classes

        def done(_: Path) -> None:
            self.say("project", f"Saved in {path.name}; from now on it is kept up to date there.", "good")
            self.finished.emit("save")

        self.when_saved(
            lambda: self._disk("the project", lambda: self.keeper.save_as(path, classes), done), "project"
        )

    def open(self, path: Path, *, only: Mapping[str, int] | None = None, limit: int = 12) -> None:
        """Open a project; `opened` tells what it holds.

        Parameters
        ----------
        path
            Its folder.
        only
            The items to open, by the keys of images that are in the viewer already.
        limit
            How many images to open at most, otherwise.
        """
        if self.busy is not None:
            return

        def run(task: Task, report: Callable[[Any], None]) -> Any:
            project = self.keeper.open(path)
            keys = {number: key for key, number in (only or {}).items()}
            items = [item for item in project.items if not keys or item.id in keys]
            left = [item for item in project.items if item not in items] + items[limit:]
            images = []
            for place, item in enumerate(items[:limit]):
                report((place, min(len(items), limit)))
                images.append(self.keeper.read(item, keys.get(item.id)))
            rounds = [
                ModelChoice(
                    f"round:{r.number}", f"Round {r.number}", r.model_path, self.engine.names(r.model_path)
                )
                for r in project.rounds
            ]
            return project, images, left, rounds

        def done(result: Any) -> None:
            project, images, left, rounds = result
            self._take_project(project.classes, rounds)
            self.opened.emit(images, left)
            if project.notice:
                self.say("project", project.notice[:1].upper() + project.notice[1:] + ".", "problem")
            elif only is None:
                n_all = len(images) + len(left)
                self.say("project", f"{len(images)} of {n_all} images opened." if left else "")

        def start() -> None:
            self._start(Busy("open", "Opening…"), "project", run, done, self._show_progress)

        self.when_saved(start, "project")

    def open_item(self, number: int) -> None:
        """Open one more image of the project."""

        def run(task: Task, report: Callable[[Any], None]) -> list[Opened]:
            assert self.keeper.project is not None
            return [self.keeper.read(self.keeper.project.item(number))]

        self._start(Busy("open", "Opening…"), "project", run, lambda images: self.opened.emit(images, None))

    def _take_project(self, classes: tuple[ClassSpec, ...], rounds: list[ModelChoice]) -> None:
        self.works.clear()
        self.numbers.clear()
        self._unsaved.clear()
        self.report = self._before_learning = None
        self.table = ClassTable()
        others = [c for c in self.models if not c.name.startswith(("round:", UNNAMED_MODEL))]
        self.models = (*others, *rounds)
        self.table.replace(classes, [spec.name for spec in classes], None)
        self.table.locked = self.table.edited = True
        if rounds:
            self.choice = None
            self.choose(rounds[-1].name)
        elif self.choice is not None:
            self.table.follow(self.choice.class_names)

    def _on_saved(self, key: str, item: Item) -> None:
        if self.keeper.path is not None:
            self.saved.emit(key, self.keeper.path, item.id)
        line = self.lines.get("project")
        if line is not None and line.tone == "problem":
            self.lines.pop("project")
        self.changed.emit()

    def _disk(
        self,
        what: str,
        work: Callable[[], Any],
        done: Callable[[Any], None] = lambda _: None,
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        def on_failed(error: Exception) -> None:
            failed()
            busy, task = self.busy, self._task  # saving goes on beside other work
            self._fail("project", f"Saving {what}", error)
            self.busy, self._task = busy, task

        self.disk.start(what, lambda task, report: work(), done, on_failed)

    def close(self) -> None:
        """Save what is unsaved and stop everything."""
        if self._closed:
            return
        self._closed = True
        self.jobs.close()
        self.counter.close()
        self.save()
        self.disk.close(wait=True)
        self.keeper.close()
