"""What changes the class table, with all that follows: labels, what was counted and taught, the project."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from psygnal import Signal

from napari_crfasrnn._qt.state.shelf import PHOTOGRAPHS
from napari_crfasrnn._qt.state.telling import BESIDE, OWN_CLASSES, PAINT_EACH, PAINT_NEW
from napari_crfasrnn.classes import ignore_value

if TYPE_CHECKING:
    from napari_crfasrnn._qt.state.counts import Counts
    from napari_crfasrnn._qt.state.shelf import Shelf
    from napari_crfasrnn._qt.state.standing import Standing
    from napari_crfasrnn._qt.state.storage import Storage
    from napari_crfasrnn._qt.state.table import ClassTable, TableChange
    from napari_crfasrnn._qt.state.tasks import Tasks
    from napari_crfasrnn._qt.state.work import Work
    from napari_crfasrnn.classes import ClassSpec
    from napari_crfasrnn.palette import Color


class ClassEditor:
    """Changes the class table, by hand or to a model's, and brings everything else along."""

    changing = Signal()  # now, so whoever holds labels with values of the table as it is shall hand them over
    remapped = Signal(str)  # key of an image whose labels may have other values now
    began = Signal(object)  # a table of one's own was begun; keys of the images that lost a model's labels

    def __init__(
        self,
        table: ClassTable,
        works: dict[str, Work],
        tasks: Tasks,
        shelf: Shelf,
        storage: Storage,
        counts: Counts,
        standing: Standing,
    ) -> None:
        self._table, self._works = table, works
        self._tasks, self._shelf, self._storage = tasks, shelf, storage
        self._counts, self._standing = counts, standing
        self._hinted_beside = False  # what the starter is not for was said

    def add(self, name: str) -> None:
        """Add a class at the end of the table; say what to do with it, or once where it belongs."""
        is_first = not self._table.edited
        self._change(self._table.added(name))
        if is_first and not self._hinted_beside and self._shelf.chosen_name == PHOTOGRAPHS:
            self._hinted_beside = True
            self._tasks.say("classes", BESIDE, "quiet", OWN_CLASSES)
        elif not self._table.is_unknown and "classes" not in self._tasks.lines:
            self._tasks.say("classes", PAINT_NEW)

    def begin(self, names: Sequence[str]) -> None:
        """Begin a table of one's own: the background and these; pixels of classes that go become unlabelled.

        Where no class stays, nor does what a model made of the images: its background is what was none of its
        own classes.

        Raises
        ------
        ValueError
            If there is no name, or a blank one, or one twice.
        """
        change = self._table.begun(names)
        stays = any(value for value in change.new_values or () if value)
        self._change(change)
        unpredicted = [] if stays else list(self._works)
        for key in unpredicted:
            self._works[key] = self._works[key].without_predictions()
            self._counts.forget(key)
            self._standing.forget(key)
        self.began.emit(unpredicted)
        self._tasks.lines.pop("start", None)
        self._tasks.say("classes", PAINT_EACH)

    def rename(self, value: int, name: str) -> None:
        """Give a class another name."""
        if self._table.names[value] != name.strip():
            self._change(self._table.renamed(value, name))

    def recolor(self, value: int, color: Color) -> None:
        """Give a class another colour."""
        self._change(self._table.recolored(value, color))

    def is_used(self, value: int) -> bool:
        """Whether some image has pixels of a class."""
        return any((work.labels == value).any() for work in self._works.values())

    def delete(self, value: int) -> None:
        """Remove a class; its pixels become unlabelled.

        Raises
        ------
        ValueError
            If it is the background.
        """
        self._change(self._table.without(value))

    def _change(self, change: TableChange) -> None:
        self.changing.emit()
        n_before = len(self._table.classes)
        self._table.replace(change.classes, change.origins, change.new_values)
        self._table.note_renames(change.mapping)
        self._table.edited = self._table.locked = True
        self._remap(change.new_values, n_before)
        self._storage.set_classes(self._table.classes, change.mapping)

    def adopt(self, classes: tuple[ClassSpec, ...], replaced: str | None) -> tuple[ClassSpec, ...]:
        """Take the class table of a model; what was labelled before is matched by name.

        Classes that the model does not know stay behind those of the model where labels hold them, but for
        the labels of an image (``replaced``, its key) that are all replaced now. Returns these classes.
        """
        self.changing.emit()
        n_before = len(self._table.classes)
        works = [work for key, work in self._works.items() if key != replaced]
        held = {value for work in works for value in work.present(n_before)}
        change, kept = self._table.adopting(classes, held)
        self._table.replace(change.classes, change.origins, change.new_values)
        self._table.locked = True
        self._remap(change.new_values, n_before, replaced)
        self._storage.set_classes(self._table.classes, change.mapping)
        return kept

    def _remap(
        self, new_values: Sequence[int | None] | None, n_before: int, replaced: str | None = None
    ) -> None:
        n_classes = len(self._table.classes)
        values = list(range(n_before)) if new_values is None else list(new_values)
        same = values == list(range(n_before))
        if not same:
            self._standing.remap_lessons(values, n_classes)
        for key, work in list(self._works.items()):
            if not same or n_classes > ignore_value(work.labels.dtype):
                self._works[key] = work.remapped(values, n_classes)
                self._counts.forget(key)
            self.remapped.emit(key)
        # Those that are not in view, too; but not one whose labels are just being replaced.
        self._counts.count_learnt(self._shelf.chosen_name, [key for key in self._works if key != replaced])
        self._tasks.changed.emit()
