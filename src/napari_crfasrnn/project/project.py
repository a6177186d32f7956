"""`Project`: the one owner of a project folder."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from numpy.typing import NDArray

from napari_crfasrnn.classes import VOC_CLASSES, ClassSpec, class_table
from napari_crfasrnn.edits import Box, Labels
from napari_crfasrnn.project.arrays import ProjectArrays
from napari_crfasrnn.project.changes import LabelArrays, ProjectItems
from napari_crfasrnn.project.database import DATABASE, Database, WriterLock
from napari_crfasrnn.project.files import remove_files, saving
from napari_crfasrnn.project.folders import ARRAYS, MODELS, copy_folder, create_folder
from napari_crfasrnn.project.items import Item, PlaneIndex, Round
from napari_crfasrnn.project.records import read_classes, read_events, read_renames
from napari_crfasrnn.project.rounds import ProjectRounds, SavableModel, SavableReport

if TYPE_CHECKING:
    from napari_crfasrnn.network import SegmentationModel

_log = logging.getLogger(__name__)


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
        with ExitStack() as undo:
            undo.callback(self._release)
            self._database = Database(path, read_only=self.read_only)
            undo.pop_all()
        self._arrays = ProjectArrays(path / ARRAYS, self._database)
        self._items = ProjectItems(self._database, self._arrays)
        self._rounds = ProjectRounds(path / MODELS, self._database)
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
        create_folder(path, class_table(classes))
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
        with self._database.guard:
            copy_folder(self.path, path, self._database, self._arrays.files(), self._rounds.files())
        return path

    # Items

    @property
    def items(self) -> tuple[Item, ...]:
        """The images, in the order in which they were added."""
        return self._items.all()

    def item(self, item_id: int) -> Item:
        """Return one image by its number.

        Raises
        ------
        KeyError
            If the project has no such image.
        """
        return self._items.get(item_id)

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
        with self._writable().guard, saving(self.path):
            return self._items.add(
                image,
                name=name,
                axes=axes,
                spacing=spacing,
                units=units,
                metadata=metadata,
                labels=LabelArrays(labels, baseline, verified),
            )

    def describe(
        self,
        item: Item,
        *,
        name: str,
        spacing: float | Sequence[float] | None = None,
        units: Sequence[str | None] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Item:
        """Change what is said of an image: all of it, as in `add`, which also has the errors."""
        with self._writable().guard, saving(self.path):
            return self._items.describe(item, name, spacing, units, metadata or {})

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
        with self._writable().guard, saving(self.path):
            return self._items.set_labels(item, LabelArrays(labels, baseline, verified), index)

    def verify(self, item: Item, box: Box | None = None, *, index: PlaneIndex | None = None) -> Item:
        """Say that the labels in a box are right, so that `fine_tune` learns from all of them.

        Parameters
        ----------
        item
            Whose labels.
        box
            (y0, x0, y1, x1), the ends excluded, such as `Patch.box`; None for all of the plane. Unlabelled
            pixels stay out.
        index
            Place of the plane in the stack; None for an image that is one plane, or for all planes.

        Raises
        ------
        ValueError
            If the box does not lie in the plane.
        IndexError, PermissionError, SaveError
            As `set_labels`.
        """
        with self._writable().guard, saving(self.path):
            return self._items.verify(item, box, index)

    def remove(self, item: Item) -> None:
        """Remove an image and its labels.

        Raises
        ------
        KeyError
            If the project has no such image.
        PermissionError
            If the project is read-only.
        """
        with self._writable().guard, saving(self.path):
            self._items.remove(item)

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
        with self._writable().guard, saving(self.path):
            self._items.set_classes(class_table(classes), mapping or {})

    # Rounds

    @property
    def rounds(self) -> tuple[Round, ...]:
        """The rounds of learning, oldest first; also those that were rolled back from."""
        return self._rounds.all()

    @property
    def current_round(self) -> Round | None:
        """The round in force: the last one, unless `roll_back` chose another; None before the first."""
        return self._rounds.current()

    @property
    def undecided_round(self) -> Round | None:
        """The last round if it was stored without being put in force, and nobody chose since."""
        return self._rounds.undecided()

    def add_round(
        self,
        report: SavableReport | Mapping[str, Any],
        model: SavableModel,
        *,
        use: bool = True,
        parent: int | None = None,
        started_from: str = "",
        taught: Mapping[int, Labels] | None = None,
    ) -> Round:
        """Store the model and the report of a round of learning.

        Parameters
        ----------
        report
            A `TrainReport`, or JSON values.
        model
            The model that the round produced.
        use
            Put it in force; otherwise it is stored, and the round in force stays.
        parent
            Number of the round whose model was in use before; 0 for a model of no round, None for the
            round in force.
        started_from
            Name of the model that the first round of the line began with.
        taught
            What it learnt from, for `taught`: by the id of an image its labels ``[*stack, H, W]``, the ignore
            value where none was known.

        Raises
        ------
        KeyError
            If there is no such parent.
        TypeError
            If the report holds something that is no JSON value.
        PermissionError
            If the project is read-only.
        SaveError
            If it cannot be written; the earlier rounds are untouched then.
        """
        with self._writable().guard, saving(self.path):
            return self._rounds.add(
                report, model, use=use, parent=parent, started_from=started_from, taught=taught
            )

    def taught(self, number: int) -> dict[int, Labels]:
        """Return what a round was taught, as far as that was noted.

        Returns
        -------
        labels
            By the id of an image its labels ``[*stack, H, W]`` as the round learnt them, in the values of the
            present class table; the ignore value where none was known, and where the class is gone.

        Raises
        ------
        KeyError
            If there is no such round.
        ValueError
            If the note cannot be read.
        """
        return self._rounds.taught(number)

    def roll_back(self, number: int) -> Round | None:
        """Put another round in force, an earlier one or a later one; 0 for the time before the first.

        No round is lost by it.

        Returns
        -------
        round
            The round in force now.

        Raises
        ------
        KeyError
            If there is no such round.
        PermissionError
            If the project is read-only.
        """
        with self._writable().guard, saving(self.path):
            return self._rounds.choose(number)

    def remove_round(self, number: int) -> None:
        """Remove a round and its model from the disk.

        Raises
        ------
        KeyError
            If there is no such round.
        ValueError
            If it is the one in force.
        PermissionError
            If the project is read-only.
        """
        with self._writable().guard, saving(self.path):
            self._rounds.remove(number)

    def model(self, number: int) -> SegmentationModel:
        """Return the model of a round.

        Raises
        ------
        KeyError
            If there is no such round.
        """
        return self._rounds.load(number)

    def latest_model(self) -> SegmentationModel | None:
        """Return the model of the round in force, or None before the first round."""
        current = self.current_round
        return None if current is None else self.model(current.number)

    @property
    def events(self) -> tuple[Mapping[str, Any], ...]:
        """What was done to the project as a whole and when: time (UTC), action, detail."""
        return read_events(self._database)

    @property
    def renames(self) -> tuple[Mapping[str, str | None], ...]:
        """What became of classes, change after change: old name → new one, or None where a class went."""
        return read_renames(self._database)

    def _writable(self) -> Database:
        if self.read_only:
            raise PermissionError(f"the project at {self.path} was {self.notice}: save a copy with save_as")
        return self._database

    def _remove_leftovers(self) -> None:
        """Remove what a killed program left behind: files that were never recorded."""
        arrays, models = self._arrays.files(), self._rounds.files()
        for place, known in ((self.path / ARRAYS, arrays), (self.path / MODELS, models)):
            if not place.is_dir():
                place.mkdir()
            remove_files(place, sorted({file.name for file in place.iterdir()} - set(known)))
