"""Saving as one goes, and opening again: the disk's own thread, beside whatever else is going on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psygnal import Signal

from napari_crfasrnn._qt.state.engine import Engine
from napari_crfasrnn._qt.state.keeper import Keeper, Opened, Recent
from napari_crfasrnn._qt.state.shelf import PREFIX, round_choice
from napari_crfasrnn._qt.state.table import ClassTable
from napari_crfasrnn._qt.state.tasks import Busy, Tasks
from napari_crfasrnn._qt.state.work import Labels, Work
from napari_crfasrnn._qt.worker import Report, Task, Worker

if TYPE_CHECKING:
    from napari_crfasrnn._qt.layers import ImageInput
    from napari_crfasrnn.classes import ClassSpec
    from napari_crfasrnn.project import Item

_log = logging.getLogger(__name__)

MOST_IMAGES = 12  # of a project are opened at once


class Storage:
    """Keeps the work of a session in a project on the disk."""

    saved = Signal(str, Path, int)  # key of an image, folder of the project, number of its item
    left = Signal()  # the project is closed, and the next one is new
    opened = Signal(object, object)  # `Opened` images; the items left closed, None where nothing was closed
    # Of the project that was opened: class table, `ModelChoice` rounds, number of the round in force, and
    # what became of classes, as `Project.renames` has it.
    replaced = Signal(object, object, int, object)
    taught = Signal(str, object)  # name of a round's model; labels it was taught, by keys of opened images

    def __init__(self, tasks: Tasks, engine: Engine, works: dict[str, Work], table: ClassTable) -> None:
        self.keeper = Keeper()
        self.recents: list[Recent] = []
        self._tasks, self._engine, self._works, self._table = tasks, engine, works, table
        self._worker = Worker("crfasrnn-disk")
        self._unsaved: set[str] = set()
        self._failed: set[str] = set()

    @property
    def unsaved(self) -> bool:
        """Whether there are changes that nobody has begun to save, or that could not be saved."""
        return bool(self._unsaved or self._failed)

    def touch(self, key: str) -> None:
        """Note that an image has something to save."""
        self._unsaved.add(key)

    def save(self) -> None:
        """Begin to save what has changed."""
        classes = self._table.classes
        keys = (self._unsaved | self._failed) & set(self._works)
        self._unsaved.clear()
        self._failed.clear()
        for key in sorted(keys):
            snapshot = self._works[key].snapshot()
            self.run(
                "saving the project",
                partial(self.keeper.save, snapshot, classes),
                partial(self._on_saved, key),
                partial(self._failed.add, key),
            )

    def when_saved(self, busy: Busy, then: Callable[[], None]) -> None:
        """Save what has changed, then go on; or end the task, if it cannot be saved."""
        self._tasks.hold(busy)
        self.save()

        def done(_: Any) -> None:
            if self._tasks.busy is not busy:  # cancelled meanwhile
                return
            if not self._failed:
                then()
                return
            line = self._tasks.lines.get("project")
            self._tasks.end(busy, OSError(line.text if line else "the project could not be saved"))

        self.run("saving the project", lambda: None, done)

    def set_classes(self, classes: tuple[ClassSpec, ...], mapping: Mapping[str, str | None]) -> None:
        """Change the class table of the project."""
        self.run("saving the class table", partial(self.keeper.set_classes, classes, mapping))

    def save_as(self, path: Path) -> None:
        """Copy the project to a folder and go on there."""
        busy = Busy("save", "Saving…")

        def done(_: Path) -> None:
            self._tasks.say(
                "project", f"Saved in {path.name}; from now on it is kept up to date there.", "good"
            )
            for key in self._works:  # a widget that is opened again goes on there
                number = self.keeper.number_of(key)
                if number is not None:
                    self.saved.emit(key, path, number)
            self.list_recents()

        def start() -> None:
            classes = self._table.classes
            self._tasks.start(busy, lambda task, report: self.keeper.save_as(path, classes), done)

        self.when_saved(busy, start)

    def begin(self) -> None:
        """Close the project, which is kept, and begin a new one."""
        if self._tasks.busy is not None:
            return
        busy = Busy("open", "Beginning a new project…")

        def done(_: None) -> None:
            # In one turn: what was painted until now is of the project that is closed, and nothing else.
            self.save()
            self.run("closing the project", self.keeper.close)
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
        busy = Busy("open", "Opening…")

        def run(task: Task, report: Report) -> Any:
            project = self.keeper.open(path)
            keys = {number: key for key, number in (only or {}).items()}
            items = [item for item in project.items if not keys or item.id in keys]
            shown = items[: len(keys) or MOST_IMAGES]
            left = [item for item in project.items if item not in shown]
            images = []
            for place, item in enumerate(shown):
                report((place, len(shown)))
                images.append(self.keeper.read(item, keys.get(item.id) or self.keeper.find(item, here or {})))
            rounds = [
                round_choice(r.number, r.model_path, self._engine.names(r.model_path)) for r in project.rounds
            ]
            current = project.current_round
            in_force = current.number if current else 0
            return project, images, left, (rounds, in_force, project.renames), self._taught()

        def done(result: Any) -> None:
            project, images, left, (rounds, current, renames), taught = result
            self._unsaved.clear()
            self._failed.clear()
            self.replaced.emit(project.classes, rounds, current, renames)
            self._tell_taught(taught)
            self.opened.emit(images, left)
            n_all = len(images) + len(left)
            self._tasks.say("project", f"{len(images)} of {n_all} images opened." if left else "")
            if project.notice:
                self._tasks.say("project", f"{project.notice[:1].upper()}{project.notice[1:]}.", "problem")
            self.list_recents()

        self.when_saved(busy, lambda: self._tasks.start(busy, run, done))

    def open_item(self, number: int) -> None:
        """Open one more image of the project."""

        def run(task: Task, report: Report) -> tuple[list[Opened], dict[int, dict[str, Labels]]]:
            return [self.keeper.read_number(number)], self._taught()

        def done(result: tuple[list[Opened], dict[int, dict[str, Labels]]]) -> None:
            images, taught = result
            self._tell_taught(taught)
            self.opened.emit(images, None)

        self._tasks.start(Busy("open", "Opening…"), run, done)

    def list_recents(self) -> None:
        """Find out which earlier projects there are."""

        def done(recents: list[Recent]) -> None:
            self.recents = recents
            self._tasks.changed.emit()

        self.run("looking for earlier projects", self.keeper.recent, done)

    def run(
        self,
        what: str,
        work: Callable[[], Any],
        done: Callable[[Any], None] = lambda _: None,
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        """Do something in the thread of the disk, after what was given to it before."""

        def on_failed(error: Exception) -> None:
            failed()
            self._tasks.complain("project", what, error)

        self._worker.start(what, lambda task, report: work(), done, on_failed)

    def close(self) -> None:
        """Save what is unsaved, and close the project."""
        self._worker.close(wait=True)
        # Here and now: when the program ends, Python takes no more work for threads.
        for key in sorted((self._unsaved | self._failed) & set(self._works)):
            try:
                self.keeper.save(self._works[key].snapshot(), self._table.classes)
            except (OSError, ValueError) as error:
                _log.error("the last changes could not be saved: %s", error)
        self.keeper.close()

    def _taught(self) -> dict[int, dict[str, Labels]]:
        """Read what the rounds were taught that somebody is likely to use: the one in force, and the last."""
        project = self.keeper.project
        if project is None or not project.rounds:
            return {}
        in_force = project.current_round
        return self.keeper.taught(
            sorted({project.rounds[-1].number, *([in_force.number] if in_force else [])})
        )

    def read_taught(self, number: int) -> None:
        """Read what a round was taught."""
        self.run("reading what was taught", lambda: self.keeper.taught([number]), self._tell_taught)

    def _tell_taught(self, taught: Mapping[int, dict[str, Labels]]) -> None:
        for number, lessons in taught.items():
            self.taught.emit(f"{PREFIX}{number}", lessons)

    def _on_saved(self, key: str, item: Item) -> None:
        if self.keeper.path is not None:
            self.saved.emit(key, self.keeper.path, item.id)
        line = self._tasks.lines.get("project")
        if line is not None and line.tone == "problem" and not self._failed:
            self._tasks.lines.pop("project")
        self._tasks.changed.emit()
