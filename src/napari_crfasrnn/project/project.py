"""`Project`: the one owner of a project folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from napari_crfasrnn.classes import VOC_CLASSES, ClassSpec, class_table, label_dtype
from napari_crfasrnn.imaging import open_image
from napari_crfasrnn.project.arrays import ProjectArrays, StagedPlane, checked_index
from napari_crfasrnn.project.database import DATABASE, Database, WriterLock, create_database, now
from napari_crfasrnn.project.files import (
    copy_file,
    publish_folder,
    remove_files,
    require_free,
    save_file,
    saving,
)
from napari_crfasrnn.project.items import Item, PlaneIndex, Round
from napari_crfasrnn.project.records import (
    ITEM_COLUMNS,
    last_item_id,
    map_classes,
    read_classes,
    read_events,
    read_item,
    to_json,
    write_classes,
    write_event,
    write_item,
)

if TYPE_CHECKING:
    from napari_crfasrnn.network import SegmentationModel

ARRAYS = "arrays"
MODELS = "models"

_log = logging.getLogger(__name__)


class SavableModel(Protocol):
    """A model that can write itself to a file, such as `SegmentationModel`."""

    def save(self, path: Path) -> None: ...  # noqa: D102


class SavableReport(Protocol):
    """A report that can say itself in JSON values, such as `TrainReport`."""

    def as_dict(self) -> dict[str, Any]: ...  # noqa: D102


class Project:
    """Images, labels, classes and rounds of learning in one folder.

    Every change is on the disk when the call returns, and is there whole or not at all, whatever happens:
    a kill, a full disk, a power cut. One program writes at a time; another one that opens the same
    project reads only and says so (`read_only`, `notice`). Safe to use from several threads.

    Made by `Project.create` and `Project.open`; use it in a ``with`` statement or call `close`.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.notice: str | None = None
        self._lock: WriterLock | None = None
        if read_only:
            self.notice = "opened read-only, as asked for"
        else:
            self._lock, reason = WriterLock.acquire(path)
            if reason is not None:
                self.notice = f"opened read-only, because {reason}"
                _log.warning("project %s %s", path, self.notice)
        try:
            self._database = Database(path, read_only=self.read_only)
        except BaseException:
            self._release()
            raise
        self._arrays = ProjectArrays(path / ARRAYS, self._database)
        if not self.read_only:
            self._remove_leftovers()

    # Opening and closing

    @classmethod
    def create(cls, path: str | Path, classes: Iterable[str | ClassSpec] = VOC_CLASSES) -> Self:
        """Create a project and open it.

        Parameters
        ----------
        path
            A folder that does not exist yet or is empty.
        classes
            The class table: names or `ClassSpec`; the place of a class is its label value.

        Raises
        ------
        FileExistsError
            If the folder holds a project or anything else.
        ValueError
            If the class table is empty or repeats a name.
        SaveError
            If it cannot be written.
        """
        path = Path(path).absolute()
        table = class_table(classes)
        require_free(path)

        def fill(folder: Path) -> None:
            (folder / ARRAYS).mkdir()
            (folder / MODELS).mkdir()
            create_database(folder)
            database = Database(folder, read_only=False)
            try:
                with database.transaction():
                    write_classes(database, table)
                    write_event(database, "create", {"classes": [spec.name for spec in table]})
            finally:
                database.close()

        with saving(path):
            publish_folder(path, fill)
        return cls(path)

    @classmethod
    def open(cls, path: str | Path, *, read_only: bool = False) -> Self:
        """Open a project.

        When another window or program has it open, it is opened read-only and `notice` says why.

        Raises
        ------
        FileNotFoundError
            If there is no such folder.
        ValueError
            If the folder is no project, is damaged, or was written by a newer version.
        """
        path = Path(path).absolute()
        if not path.exists():
            raise FileNotFoundError(f"path must be a project folder, got one that does not exist: {path}")
        if not (path / DATABASE).is_file():
            raise ValueError(
                f"path must be a project folder (one that holds {DATABASE}), got {path}: "
                "choose another or create a project"
            )
        return cls(path, read_only=read_only)

    @property
    def id(self) -> str:
        """What tells this project from all others; copies by `save_as` share it."""
        return str(self._database.rows("SELECT value FROM meta WHERE key = 'id'")[0][0])

    @property
    def read_only(self) -> bool:
        """Whether changes are refused; `notice` says why."""
        return self.notice is not None

    def close(self) -> None:
        """Close the project and let others write to it; closing twice is no error."""
        self._database.close()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Project({str(self.path)!r})"

    def save_as(self, path: str | Path) -> Path:
        """Copy the project to another folder, whole or not at all, and return that folder.

        This project stays open and is not changed; `Project.open` the copy to go on there.

        Raises
        ------
        FileExistsError
            If the folder exists and is not empty.
        SaveError
            If it cannot be written.
        """
        path = Path(path).absolute()
        require_free(path)
        database = self._database

        def fill(folder: Path) -> None:
            (folder / ARRAYS).mkdir()
            (folder / MODELS).mkdir()
            database.copy_to(folder)
            models = [done.model_path.name for done in self.rounds]
            for place, names in ((ARRAYS, self._arrays.files()), (MODELS, models)):
                for name in names:
                    copy_file(self.path / place / name, folder / place / name)

        with database.guard, saving(path):
            publish_folder(path, fill)
        return path

    # Items

    @property
    def items(self) -> tuple[Item, ...]:
        """The images, in the order in which they were added."""
        rows = self._database.rows(f"SELECT {', '.join(ITEM_COLUMNS)} FROM items ORDER BY id")
        return tuple(read_item(row, self._arrays) for row in rows)

    def item(self, item_id: int) -> Item:
        """Return one image by its number.

        Raises
        ------
        KeyError
            If the project has no such image.
        """
        rows = self._database.rows(f"SELECT {', '.join(ITEM_COLUMNS)} FROM items WHERE id = ?", (item_id,))
        if not rows:
            raise KeyError(f"the project has no item {item_id}")
        return read_item(rows[0], self._arrays)

    def add(
        self,
        image: NDArray[Any],
        *,
        name: str | None = None,
        axes: str | None = None,
        spacing: float | Sequence[float] | None = None,
        units: Sequence[str | None] | None = None,
        metadata: Mapping[str, Any] | None = None,
        labels: NDArray[Any] | None = None,
        baseline: NDArray[Any] | None = None,
        verified: NDArray[Any] | None = None,
    ) -> Item:
        """Add an image, with its labels if there are any.

        Parameters
        ----------
        image
            Any numeric array that `open_image` takes; stored exactly as it is.
        name
            What people call it; "image 1", "image 2", … if there is none.
        axes, spacing
            As `open_image` takes them.
        units
            Unit of each axis of ``axes``, None for an axis without one.
        metadata
            Whatever is to be found again; JSON values.
        labels, baseline
            [*stack, H, W] integers; 255 (65535 with more than 255 classes) means unlabelled.
        verified
            [*stack, H, W] booleans.

        Raises
        ------
        TypeError, ValueError
            If an array has the wrong type, shape or values.
        PermissionError
            If the project is read-only.
        SaveError
            If it cannot be written; nothing was added then.
        """
        database = self._writable()
        source = open_image(image, axes, spacing)
        array = np.asarray(image)
        if units is not None and len(units) != len(source.axes):
            raise ValueError(f"units must hold one entry for each axis of {source.axes!r}, got {list(units)}")
        details = to_json("metadata", dict(metadata or {}))
        given = self._arrays.check(source.stack_shape + source.plane_shape, labels, baseline, verified)
        staged: list[StagedPlane] = []
        files: list[str] = []
        with database.guard, saving(self.path):
            item_id = 1 + last_item_id(database)
            try:
                files.append(self._arrays.stage_image(item_id, array))
                staged += self._arrays.stage(item_id, given, source.stack_shape)
                with database.transaction():
                    values = {
                        "id": item_id,
                        "name": name or f"image {item_id}",
                        "axes": source.axes,
                        "shape": array.shape,
                        "dtype": array.dtype.name,
                        "spacing": source.spacing,
                        "units": units,
                        "metadata": details,
                        "stack_shape": source.stack_shape,
                        "plane_shape": source.plane_shape,
                        "has_baseline": int("baseline" in given),
                        "image_file": files[0],
                    }
                    write_item(database, values)
                    self._arrays.record(staged)
                    write_event(database, "add", {"item": item_id, "name": values["name"]})
            except BaseException:
                self._arrays.discard(staged, *files)
                raise
        return self.item(item_id)

    def set_labels(
        self,
        item: Item,
        labels: NDArray[Any],
        *,
        baseline: NDArray[Any] | None = None,
        verified: NDArray[Any] | None = None,
        index: PlaneIndex | None = None,
    ) -> Item:
        """Store corrected labels; a baseline or a verified mask that is not given stays as it was.

        Only planes that changed are written.

        Parameters
        ----------
        item
            Whose labels they are.
        labels, baseline, verified
            As in `add`; with ``index`` one plane [H, W] each.
        index
            Place of that plane in the stack.

        Returns
        -------
        item
            The item as it is now.

        Raises
        ------
        TypeError, ValueError
            If an array has the wrong type, shape or values.
        IndexError
            If the index is not in the stack.
        PermissionError
            If the project is read-only.
        SaveError
            If it cannot be written; the labels stored before are untouched then.
        """
        database = self._writable()
        self.item(item.id)
        if index is not None:
            index = checked_index(index, item.stack_shape)
        shape = item.label_shape if index is None else item.plane_shape
        given = self._arrays.check(shape, labels, baseline, verified)
        with database.guard, saving(self.path):
            staged = self._arrays.stage(item.id, given, item.stack_shape, index)
            try:
                with database.transaction():
                    replaced = self._arrays.record(staged)
                    has_baseline = "baseline" in given
                    database.execute(
                        "UPDATE items SET modified = ?, has_baseline = has_baseline OR ? WHERE id = ?",
                        (now(), has_baseline, item.id),
                    )
            except BaseException:
                self._arrays.discard(staged)
                raise
            self._arrays.remove(replaced)
        return self.item(item.id)

    def remove(self, item: Item) -> None:
        """Remove an image and its labels.

        Raises
        ------
        KeyError
            If the project has no such image.
        PermissionError
            If the project is read-only.
        """
        database = self._writable()
        self.item(item.id)
        with database.guard, saving(self.path):
            files = self._arrays.files(item)
            with database.transaction():
                database.execute("DELETE FROM items WHERE id = ?", (item.id,))
                write_event(database, "remove", {"item": item.id, "name": item.name})
            self._arrays.remove(files)

    # Classes

    @property
    def classes(self) -> tuple[ClassSpec, ...]:
        """The class table; the place of a class is its label value."""
        return read_classes(self._database)

    def set_classes(
        self,
        classes: Iterable[str | ClassSpec],
        mapping: Mapping[str, str | None] | None = None,
    ) -> None:
        """Change the class table, and the labels of every image with it, in one step.

        Parameters
        ----------
        classes
            The new table, in any order.
        mapping
            What becomes of an old class, by name: the name of a new one (renamed, or merged into it) or
            None (its pixels become unlabelled). Classes not mentioned keep their name; those whose name
            is not in the new table become unlabelled.

        Raises
        ------
        ValueError
            If the mapping names a class that does not exist, or the table is empty or repeats a name.
        PermissionError
            If the project is read-only.
        SaveError
            If it cannot be written; table and labels are as they were then.
        """
        database = self._writable()
        table = class_table(classes)
        with database.guard, saving(self.path):
            old = self.classes
            new_values = map_classes(old, table, mapping or {})
            staged: list[StagedPlane] = []
            try:
                if not _keeps_every_value(new_values, len(old), len(table)):
                    for item in self.items:
                        staged += self._arrays.stage_remapped(item, new_values, len(table))
                with database.transaction():
                    replaced = self._arrays.record(staged)
                    write_classes(database, table)
                    detail = {"classes": [spec.name for spec in table], "mapping": dict(mapping or {})}
                    write_event(database, "classes", detail)
            except BaseException:
                self._arrays.discard(staged)
                raise
            self._arrays.remove(replaced)

    # Rounds

    @property
    def rounds(self) -> tuple[Round, ...]:
        """The rounds of learning, oldest first."""
        rows = self._database.rows("SELECT number, created, report, model_file FROM rounds ORDER BY number")
        return tuple(
            Round(number, created, json.loads(report), self.path / MODELS / file)
            for number, created, report, file in rows
        )

    def add_round(self, report: SavableReport | Mapping[str, Any], model: SavableModel) -> Round:
        """Store the model and the report of a round of learning.

        Parameters
        ----------
        report
            A `TrainReport`, or JSON values.
        model
            The model that the round produced.

        Raises
        ------
        TypeError
            If the report holds something that is no JSON value.
        PermissionError
            If the project is read-only.
        SaveError
            If it cannot be written; the earlier rounds are untouched then.
        """
        database = self._writable()
        values = dict(report) if isinstance(report, Mapping) else report.as_dict()
        text = to_json("report", values)
        with database.guard, saving(self.path):
            number = 1 + max((done.number for done in self.rounds), default=0)
            path = self.path / MODELS / f"round_{number:03d}.safetensors"
            save_file(path, model.save)
            try:
                with database.transaction():
                    database.execute(
                        "INSERT INTO rounds VALUES (?, ?, ?, ?)", (number, now(), text, path.name)
                    )
                    write_event(database, "round", {"round": number})
            except BaseException:
                remove_files(path.parent, [path.name])
                raise
        return self.rounds[-1]

    def model(self, number: int) -> SegmentationModel:
        """Return the model of a round.

        Raises
        ------
        KeyError
            If there is no such round.
        """
        # Only who asks for a model pays for loading torch.
        from napari_crfasrnn.checkpoint import load_checkpoint

        for done in self.rounds:
            if done.number == number:
                return load_checkpoint(done.model_path)
        raise KeyError(f"the project has no round {number}")

    def latest_model(self) -> SegmentationModel | None:
        """Return the model of the last round, or None if there was none."""
        rounds = self.rounds
        return self.model(rounds[-1].number) if rounds else None

    @property
    def events(self) -> tuple[Mapping[str, Any], ...]:
        """What was done to the project as a whole and when: time (UTC), action, detail."""
        return read_events(self._database)

    def _writable(self) -> Database:
        if self.read_only:
            raise PermissionError(f"the project at {self.path} was {self.notice}: save a copy with save_as")
        return self._database

    def _remove_leftovers(self) -> None:
        """Remove what a killed program left behind: files that were never recorded."""
        models = [done.model_path.name for done in self.rounds]
        for place, known in ((self.path / ARRAYS, self._arrays.files()), (self.path / MODELS, models)):
            if not place.is_dir():
                place.mkdir()
            remove_files(place, sorted({file.name for file in place.iterdir()} - set(known)))


def _keeps_every_value(new_values: list[int | None], n_old: int, n_new: int) -> bool:
    return new_values == list(range(n_old)) and label_dtype(n_old) is label_dtype(n_new)
