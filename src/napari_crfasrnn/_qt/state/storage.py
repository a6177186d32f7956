"""Saving as one goes, and opening again: the disk's own thread, beside whatever else is going on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

from psygnal import Signal

from napari_crfasrnn._qt.state.engine import Engine
from napari_crfasrnn._qt.state.keeper import UNREADABLE, Keeper, Opened, unnamed_path
from napari_crfasrnn._qt.state.recents import Recent, recent_projects, remember
from napari_crfasrnn._qt.state.shelf import PREFIX, round_choice
from napari_crfasrnn._qt.state.table import ClassTable
from napari_crfasrnn._qt.state.tasks import Busy, Tasks, sentence
from napari_crfasrnn._qt.state.work import Labels, Work
from napari_crfasrnn._qt.worker import Report, Task, Worker
from napari_crfasrnn.progress import raise_if_cancelled
from napari_crfasrnn.project import Exported, LabelChoice, Layout, export_project

if TYPE_CHECKING:
    from napari_crfasrnn._qt.layers import ImageInput
    from napari_crfasrnn.classes import ClassSpec
    from napari_crfasrnn.project import Item

_log = logging.getLogger(__name__)

READ_ONLY = "This project is read-only: save a copy with “Save as…”, and what you paint goes on there."
MOST_IMAGES = 12  # of a project are opened at once


@dataclass(frozen=True, eq=False)
class _Incoming:
    """A project that was read, and that nobody works on yet."""

    keeper: Keeper
    images: list[Opened]
    left: list[Item]
    replacement: tuple[Any, ...]  # as `Storage.replaced` tells it
    taught: dict[int, dict[str, Labels]]
    notice: str | None


class Storage:
    """Keeps the work of a session in a project on the disk.

    A project gives way to another one in one turn of the GUI thread: what was done until then is saved in
    the one that it was done in, and nothing else is.
    """

    flushing = Signal()  # what was done until now is to be told at once
    saved = Signal(str, Path, int)  # key of an image, folder of the project, number of its item
    left = Signal()  # the project is closed, and the next one is new
    opened = Signal(object, object)  # `Opened` images; the items left closed, None where nothing was closed
    # Of the project that was opened: class table, `ModelChoice` rounds, number of the one to go on with, 0
    # for none, and what became of classes, as `Project.renames` has it.
    replaced = Signal(object, object, int, object)
    refused = Signal(str)  # key of an image that a project does not take as it is
    copied = Signal()  # the project, to a folder where it goes on
    taught = Signal(str, object)  # name of a round's model; labels it was taught, by keys of opened images

    def __init__(self, tasks: Tasks, engine: Engine, works: dict[str, Work], table: ClassTable) -> None:
        self.keeper = Keeper()
        self.recents: list[Recent] = []
        self._tasks, self._engine, self._works, self._table = tasks, engine, works, table
        self._worker = Worker("crfasrnn-disk", finishes=True)
        self._reading: Keeper | None = None  # what is being opened
        self._how_many = ""  # what was said of the number of images that were opened
        self._unsaved: set[str] = set()
        self._failed: set[str] = set()
        self._n_begun = 0  # how often saving an image was begun

    @property
    def unsaved(self) -> bool:
        """Whether there are changes that nobody has begun to save, or that could not be saved."""
        return bool(self._unsaved or self._failed)

    @property
    def fails(self) -> bool:
        """Whether what was painted last could not be saved."""
        return bool(self._failed)

    def touch(self, key: str) -> None:
        """Note that an image has something to save."""
        self._unsaved.add(key)

    def move(self, key: str, new_key: str) -> None:
        """Call an image by another key from now on; it has something to save."""
        self._unsaved.discard(key)
        self._failed.discard(key)
        self.touch(new_key)
        self.run("noting an image", partial(self.keeper.move, key, new_key))

    def save(self) -> None:
        """Begin to save what has changed; in a project that is read-only nothing can be."""
        keeper, classes = self.keeper, self._table.classes
        keys = (self._unsaved | self._failed) & set(self._works)
        self._unsaved.clear()
        self._failed.clear()
        if keeper.is_read_only and keys:
            self._failed |= keys
            self._tasks.say("project", READ_ONLY, "problem")
            return
        for key in sorted(keys):
            snapshot = self._works[key].snapshot()
            self._n_begun += 1
            self.run(
                "saving the project",
                partial(keeper.save, snapshot, classes),
                partial(self._on_saved, keeper, key),
                partial(self._on_not_saved, keeper, key),
            )

    def when_saved(
        self,
        busy: Busy,
        then: Callable[[], None],
        otherwise: Callable[[], None] = lambda: None,
        instead: Callable[[], None] | None = None,
    ) -> None:
        """Save what has changed, then go on; or end the task, if it cannot be saved.

        ``otherwise`` is called if it cannot, and where the task was cancelled meanwhile. With ``instead`` the
        task does not end if it cannot be saved, but goes on with that.
        """
        self._tasks.hold(busy)
        self.flushing.emit()
        self.save()

        def wait() -> None:
            n_begun = self._n_begun
            self.run("saving the project", lambda: None, lambda _: done(n_begun))

        def done(n_begun: int) -> None:
            if self._tasks.busy is not busy:  # cancelled meanwhile
                otherwise()
            elif self._n_begun > n_begun:  # again: what was refused at first was mended
                wait()
            elif not self._failed:
                then()
            elif instead is not None:
                instead()
            else:
                otherwise()
                line = self._tasks.lines.get("project")
                self._tasks.end(busy, OSError(line.text if line else "the project could not be saved"))

        wait()

    def set_classes(self, classes: tuple[ClassSpec, ...], mapping: Mapping[str, str | None]) -> None:
        """Change the class table of the project."""
        self.run("saving the class table", partial(self.keeper.set_classes, classes, mapping))

    def save_as(self, path: Path) -> None:
        """Copy the project to a folder and go on there."""
        busy = Busy("save", "Saving…")
        lost: list[Path] = []  # the folder, where it could not even be read

        def done(copied: Keeper) -> None:
            # Where it cannot be saved there, all that is in memory is saved in the copy.
            self._go_over_to(copied, saves=not self._failed)
            self._remember(path)
            for key in self._works:  # also what was painted while it was copied
                self.touch(key)
            self.save()
            said = f"Saved in {path.name}; from now on it is kept up to date there."
            if lost:
                said += f" Only what is in this window could be: {lost[0]} cannot be read, with its rounds."
            self._tasks.say("project", said, "plain" if lost else "good")
            self.copied.emit()
            for key in self._works:  # a widget that is opened again goes on there
                number = self.keeper.number_of(key)
                if number is not None:
                    self.saved.emit(key, path, number)
            self.list_recents()

        def start() -> None:
            keeper, classes = self.keeper, self._table.classes
            self._tasks.start(busy, lambda task, report: keeper.copy(path, classes), done, dropped=drop)

        def rescue() -> None:  # the project cannot be written: it may be full, or gone
            keeper, classes = self.keeper, self._table.classes
            snapshots = [work.snapshot() for work in self._works.values()]

            def run(task: Task, report: Report) -> Keeper:
                try:
                    return keeper.copy(path, classes)
                except (OSError, ValueError) as error:
                    _log.warning("the project cannot be copied: %s", error)
                    if keeper.path is not None:
                        lost.append(keeper.path)
                    return Keeper.anew(path, classes, snapshots)

            self._tasks.start(busy, run, done, dropped=drop)

        def drop(copied: Keeper) -> None:
            def remove() -> None:
                copied.close()
                rmtree(path, ignore_errors=True)  # it was empty, or not there

            self.run("removing the copy", remove)

        if self.keeper.is_read_only:  # what was painted there is saved in the copy
            self.flushing.emit()
            start()
        else:
            self.when_saved(busy, start, instead=rescue)

    def export(self, path: Path, labels: LabelChoice, layout: Layout = "plain") -> None:
        """Write the project to a folder as a training set; it stays where it is."""
        busy = Busy("export", "Exporting…")

        def run(task: Task, report: Report) -> Exported:
            if keeper.project is None:
                raise ValueError("there is nothing to export yet: open an image and label something")
            return export_project(
                keeper.project,
                path,
                labels=labels,
                layout=layout,
                progress=lambda done, total: report((done, total)),
                cancel=task.cancelled,
            )

        def done(exported: Exported) -> None:
            notes = "".join(f" {note[:1].upper()}{note[1:]}." for note in exported.notes)
            said = f"Exported to {path.name}: {exported.summary}.{notes}"
            self._tasks.say("project", said, "plain" if notes else "good")

        def drop(exported: Exported) -> None:
            self.run("removing the training set", partial(rmtree, exported.path, ignore_errors=True))

        keeper = self.keeper  # cannot become another one before the task has ended
        self.when_saved(busy, lambda: self._tasks.start(busy, run, done, dropped=drop))

    def begin(self) -> None:
        """Close the project, which is kept, and begin a new one."""
        if self._tasks.busy is not None:
            return
        busy = Busy("open", "Beginning a new project…")

        def done(_: None) -> None:
            self._go_over_to(Keeper())
            self.left.emit()
            self._tasks.say("project", "A new project. The one before is found under Open.")
            self.list_recents()

        def start() -> None:
            self._tasks.start(busy, lambda task, report: None, done)

        self.when_saved(busy, start)

    def open(
        self,
        path: Path,
        *,
        only: Mapping[str, int] | None = None,
        here: Mapping[str, ImageInput] | None = None,
    ) -> None:
        """Open a project instead of the present one.

        Parameters
        ----------
        path
            Its folder.
        only
            The items to open, by the keys of images that are in the viewer already; None opens the first
            ones.
        here
            Images in the viewer, by their keys: those that are the project's are used, not opened anew.
        """
        if self._tasks.busy is not None:
            return
        if path.absolute() == self.keeper.path:
            self._tasks.say("project", "That project is open already.")
            return
        busy = Busy("open", "Opening…")
        keys = {number: key for key, number in (only or {}).items()}

        def run(task: Task, report: Report) -> _Incoming:
            self._reading = keeper = Keeper.open(path)
            with ExitStack() as undo:
                undo.callback(keeper.close)
                incoming = self._read(keeper, keys, here or {}, task, report)
                undo.pop_all()
            return incoming

        def done(incoming: _Incoming) -> None:
            self.when_saved(busy, partial(take, incoming), incoming.keeper.close)

        def take(incoming: _Incoming) -> None:
            images, left, notice = incoming.images, incoming.left, incoming.notice
            self._go_over_to(incoming.keeper)
            self._reading = None
            self._remember(path)
            self.replaced.emit(*incoming.replacement)
            self._tell_taught(incoming.taught)
            self.opened.emit(images, left)
            n_all = len(images) + len(left)
            self._how_many = f"{len(images)} of {n_all} images opened." if left else ""
            self._tasks.say("project", self._how_many)
            if notice:
                self._tasks.say("project", f"{notice[:1].upper()}{notice[1:].rstrip('.')}.", "problem")
            self.list_recents()
            self._tasks.conclude(busy)

        def start() -> None:
            self._tasks.start(busy, run, done, dropped=lambda incoming: incoming.keeper.close())

        self.when_saved(busy, start)

    def forget_how_many(self) -> None:
        """Say no more how many images were opened: now there are others."""
        line = self._tasks.lines.get("project")
        if self._how_many and line is not None and line.text == self._how_many:
            self._tasks.say("project", "")

    def _read(
        self,
        keeper: Keeper,
        keys: Mapping[int, str],
        here: Mapping[str, ImageInput],
        task: Task,
        report: Report,
    ) -> _Incoming:
        """Read what is shown of a project: the images that ``keys`` names by number, or the first ones."""
        project = keeper.project
        assert project is not None
        items = [item for item in project.items if not keys or item.id in keys]
        shown = items[: len(keys) or MOST_IMAGES]
        left = [item for item in project.items if item not in shown]
        images, unreadable = [], list[str]()
        for place, item in enumerate(shown):
            raise_if_cancelled(task.cancelled)  # so that the project is free again at once
            report((place, len(shown)))
            try:
                images.append(keeper.read(item, keys.get(item.id) or keeper.find(item, here)))
            except UNREADABLE as error:  # no reason not to open the others
                _log.warning("%r cannot be read: %s", item.name, error)
                left.append(item)
                unreadable.append(f"“{item.name}” cannot be read: {sentence(error)}")
        if unreadable and not images:
            raise OSError(unreadable[0])
        rounds = [
            round_choice(r.number, r.model_path, self._engine.names(r.model_path)) for r in project.rounds
        ]
        # As it was before: before the first round that was kept, what was just learnt was chosen.
        current = project.current_round or project.undecided_round
        replacement = (project.classes, rounds, current.number if current else 0, project.renames)
        notice = " ".join([*unreadable, *([project.notice] if project.notice else [])])
        return _Incoming(keeper, images, left, replacement, keeper.taught_lately(), notice)

    def _go_over_to(self, keeper: Keeper, *, saves: bool = True) -> None:
        """Leave the project for another one; what was done to it until now is saved there, if it can be."""
        self.flushing.emit()
        if self.keeper.is_read_only or not saves:
            self._unsaved.clear()
            self._failed.clear()
        else:
            self.save()
        self.run("closing the project", self.keeper.close)
        self.keeper = keeper

    def open_item(self, number: int) -> None:
        """Open one more image of the project."""
        keeper = self.keeper

        def run(task: Task, report: Report) -> tuple[list[Opened], dict[int, dict[str, Labels]]]:
            if keeper.project is None:
                raise ValueError("no project is open")
            # One that was removed from the viewer comes back as what it was there.
            opened = keeper.read(keeper.project.item(number), keeper.key_of(number))
            return [opened], keeper.taught_lately()

        def done(result: tuple[list[Opened], dict[int, dict[str, Labels]]]) -> None:
            images, taught = result
            self._tell_taught(taught)
            self.opened.emit(images, None)

        busy = Busy("open", "Opening…")
        if keeper.is_read_only:
            self._tasks.start(busy, run, done)
        else:
            self.when_saved(busy, lambda: self._tasks.start(busy, run, done))

    def _remember(self, path: Path) -> None:
        self.run("noting where the project is", partial(remember, path))

    def list_recents(self) -> None:
        """Find out which earlier projects there are."""

        def done(recents: list[Recent]) -> None:
            self.recents = recents
            self._tasks.changed.emit()

        keeper = self.keeper  # its project may be made only by what was given to the thread before
        self.run("looking for earlier projects", lambda: recent_projects(keeper.path), done)

    def run(
        self,
        what: str,
        work: Callable[[], Any],
        done: Callable[[Any], None] = lambda _: None,
        failed: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        """Do something in the thread of the disk, after what was given to it before."""

        def on_failed(error: Exception) -> None:
            failed(error)
            self._tasks.complain("project", what, error)

        self._worker.start(what, lambda task, report: work(), done, on_failed)

    def close(self) -> None:
        """Save what is unsaved, and close the project."""
        if self._reading is not None:
            self._reading.close()
        self._worker.close(wait=True)
        # Here and now: when the program ends, Python takes no more work for threads.
        lost = []
        for key in sorted((self._unsaved | self._failed) & set(self._works)):
            try:
                self.keeper.save(self._works[key].snapshot(), self._table.classes)
            except (OSError, ValueError) as error:
                _log.error("the last changes could not be saved: %s", error)
                lost.append(key)
        if lost:
            self._rescue(lost)
        self.keeper.close()

    def _rescue(self, keys: Sequence[str]) -> None:
        """Keep images that the project does not take in one of their own, which is found under Open."""
        try:
            snapshots = [self._works[key].snapshot() for key in keys]
            rescued = Keeper.anew(unnamed_path("rescued"), self._table.classes, snapshots)
        except (OSError, ValueError) as error:
            _log.error("nor could they be saved elsewhere: %s", error)
        else:
            _log.error("they are kept in %s, which is found under Open", rescued.path)
            rescued.close()

    def read_taught(self, number: int) -> None:
        """Read what a round was taught."""
        self.run("reading what was taught", partial(self.keeper.taught, [number]), self._tell_taught)

    def _tell_taught(self, taught: Mapping[int, dict[str, Labels]]) -> None:
        for number, lessons in taught.items():
            self.taught.emit(f"{PREFIX}{number}", lessons)

    def _on_not_saved(self, keeper: Keeper, key: str, error: Exception) -> None:
        if keeper is self.keeper:
            self._failed.add(key)
            if isinstance(error, ValueError):
                self.refused.emit(key)

    def _on_saved(self, keeper: Keeper, key: str, item: Item) -> None:
        if keeper is not self.keeper:
            return  # it was the last of a project that was left
        if keeper.path is not None:
            self.saved.emit(key, keeper.path, item.id)
        line = self._tasks.lines.get("project")
        if line is not None and line.tone == "problem" and not self._failed:
            self._tasks.lines.pop("project")
        self._tasks.changed.emit()
