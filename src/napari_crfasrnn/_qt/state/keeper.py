"""The project on the disk behind the widget, so that nothing a person did is lost."""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from napari_crfasrnn._qt.state.recents import data_dir, is_named
from napari_crfasrnn.classes import ClassSpec, ignore_value
from napari_crfasrnn.project import Item, Project

if TYPE_CHECKING:
    from napari_crfasrnn._qt.layers import ImageInput
    from napari_crfasrnn._qt.state.work import Labels, Mask, Snapshot

_log = logging.getLogger(__name__)

MOST_COMPARED = 1_000_000  # values of an image
UNREADABLE = (LookupError, OSError, RuntimeError, TypeError, ValueError)  # of whatever array is in a layer


@dataclass(frozen=True, eq=False)
class Opened:
    """One image of a project, read."""

    key: str
    item: Item
    array: Any
    labels: Labels
    baseline: Labels | None  # None where no model segmented it
    verified: Mask
    present: tuple[int, ...]  # classes that have at least a pixel


def _same_pixels(array: Any, item: Item) -> bool:
    """Return whether an array looks like an image of a project: of large ones, evenly spread pixels do."""
    if (tuple(array.shape), str(array.dtype)) != (tuple(item.shape), item.dtype):
        return False
    size = dict(zip(item.axes, item.shape, strict=True))
    steps = {letter: max(1, size[letter] - 1) for letter in "TZ" if letter in size}  # the first and the last
    within = math.prod(n for letter, n in size.items() if letter not in steps) * 2 ** len(steps)
    steps["Y"] = steps["X"] = max(1, round((within / MOST_COMPARED) ** 0.5))
    some = tuple(slice(None, None, steps.get(letter, 1)) for letter in item.axes)
    mine, its = np.asarray(array[some]), item.image()[some]
    return bool(np.array_equal(mine, its, equal_nan=np.issubdtype(mine.dtype, np.inexact)))


class Keeper:
    """The owner of one project, and of what its images are called in the viewer.

    What reads or writes files is slow: saving and closing are for the thread of the disk, opening, copying
    and reading images for that of the tasks. Both may be at work at the same time.

    Parameters
    ----------
    project
        An open project; None for one that is made when there is something to save.
    items
        Its images by the keys they have in the viewer.
    """

    def __init__(self, project: Project | None = None, items: Mapping[str, Item] | None = None) -> None:
        self.project = project
        self._items = dict(items or {})
        self._shown: dict[str, ImageInput] = {}  # how images were in the viewer when that was noted last
        self._making = Lock()

    @classmethod
    def open(cls, path: Path) -> Keeper:
        """Open a project."""
        return cls(Project.open(path))

    @classmethod
    def anew(cls, path: Path, classes: Sequence[ClassSpec], snapshots: Iterable[Snapshot]) -> Keeper:
        """Make a project of images in the viewer, for which the one that they were in cannot be read."""
        keeper = cls(Project.create(path, classes))
        with ExitStack() as undo:
            undo.callback(keeper.close)
            for snapshot in snapshots:
                keeper.save(snapshot, classes)
            undo.pop_all()
        return keeper

    @property
    def path(self) -> Path | None:
        """Folder of the project."""
        return None if self.project is None else self.project.path

    @property
    def is_read_only(self) -> bool:
        """Whether nothing can be saved in the project."""
        return self.project is not None and self.project.read_only

    @property
    def n_images(self) -> int:
        """How many images of the viewer are in the project."""
        return len(self._items)

    @property
    def is_named(self) -> bool:
        """Whether a person chose the place of the project."""
        return self.path is not None and is_named(self.path)

    def item_of(self, key: str) -> Item | None:
        """Return the image of the project that an image of the viewer is."""
        return self._items.get(key)

    def number_of(self, key: str) -> int | None:
        """Return the number that an image of the viewer has in the project."""
        item = self.item_of(key)
        return None if item is None else item.id

    def key_of(self, number: int) -> str | None:
        """Return the key that an image of the project has in the viewer, if it is open there."""
        return next((key for key, item in tuple(self._items.items()) if item.id == number), None)

    def name_of(self, number: int) -> str:
        """Return what an image of the project is called, as far as it is open in the viewer."""
        items = tuple(self._items.values())
        return next((f"“{item.name}”" for item in items if item.id == number), f"image {number}")

    def by_key(self, labels: Mapping[int, Labels]) -> dict[str, Labels]:
        """Return labels by the keys of the images in the viewer, not by their numbers in the project."""
        return {key: labels[item.id] for key, item in tuple(self._items.items()) if item.id in labels}

    def taught(self, rounds: Sequence[int]) -> dict[int, dict[str, Labels]]:
        """Return what rounds were taught, as far as images of it are in the viewer."""
        found: dict[int, dict[str, Labels]] = {}
        if self.project is None:
            return found
        for number in rounds:
            try:
                found[number] = self.by_key(self.project.taught(number))
            except ValueError as error:  # then its labels count as new: no reason not to open the project
                _log.warning("%s", error)
        return found

    def taught_lately(self) -> dict[int, dict[str, Labels]]:
        """Return what the rounds were taught that are likely to be used: the one in force, and the last."""
        if self.project is None or not self.project.rounds:
            return {}
        in_force = self.project.current_round
        return self.taught(sorted({self.project.rounds[-1].number, *([in_force.number] if in_force else [])}))

    def save(self, snapshot: Snapshot, classes: Sequence[ClassSpec]) -> Item:
        """Store an image, with its labels; a project is made for the first one."""
        project = self._open_or_new(classes)
        image = snapshot.image
        item = self._items.get(image.key)
        if item is None or item.label_shape != snapshot.labels.shape:
            item = project.add(
                np.asarray(image.array),
                name=image.name,
                axes=image.axes,
                spacing=image.spacing or None,
                units=image.units,
                metadata=image.settings,
                labels=snapshot.labels,
                baseline=snapshot.baseline,
                verified=snapshot.verified,
            )
        else:
            item = _described(project, item, self._shown.get(image.key, image), image)
            item = project.set_labels(
                item, snapshot.labels, baseline=snapshot.baseline, verified=snapshot.verified
            )
        self._items[image.key] = item
        self.note_shown(image)
        return item

    def note_shown(self, image: ImageInput) -> None:
        """Note how an image is in the viewer: what is changed there from now on is changed in the project."""
        self._shown[image.key] = replace(image, array=None)

    def set_classes(self, classes: Sequence[ClassSpec], mapping: Mapping[str, str | None]) -> None:
        """Change the class table of the project, if there is one."""
        if self.project is not None:
            self.project.set_classes(classes, mapping)

    def copy(self, path: Path, classes: Sequence[ClassSpec]) -> Keeper:
        """Copy the project to another folder, and return the owner of the copy."""
        self._open_or_new(classes).save_as(path)
        project = Project.open(path)
        known = {item.id: item for item in project.items}
        items = {key: known[item.id] for key, item in tuple(self._items.items()) if item.id in known}
        return Keeper(project, items)

    def move(self, key: str, new_key: str) -> None:
        """Call an image by another key."""
        if key in self._items:
            self._items[new_key] = self._items.pop(key)

    def read(self, item: Item, key: str | None = None) -> Opened:
        """Read an image of the project; what it is called in the viewer is up to the caller, or new."""
        key = uuid4().hex if key is None else key
        labels = item.labels()
        present = tuple(int(value) for value in np.unique(labels))
        baseline = item.baseline()
        if baseline is not None and (baseline == ignore_value(baseline.dtype)).all():
            baseline = None
        opened = Opened(key, item, item.image(), labels, baseline, item.verified(), present)
        self._items[key] = item
        return opened

    def find(self, item: Item, images: Mapping[str, ImageInput]) -> str | None:
        """Return the key of the image of the viewer that is an image of the project, by name and pixels."""
        for key, image in images.items():
            is_alike = key not in self._items and (image.name, image.axes) == (item.name, item.axes)
            try:
                if is_alike and _same_pixels(image.array, item):
                    return key
            except UNREADABLE as error:
                _log.warning("%r cannot be compared with the project's: %s", image.name, error)
        return None

    def close(self) -> None:
        """Close the project."""
        if self.project is not None:
            self.project.close()

    def _open_or_new(self, classes: Sequence[ClassSpec]) -> Project:
        with self._making:
            if self.project is None:
                self.project = Project.create(unnamed_path(), classes)
            return self.project


def unnamed_path(what: str = "") -> Path:
    """Return where a project is made whose place nobody has chosen; its folder is not there yet."""
    data_dir().mkdir(parents=True, exist_ok=True)
    # The random part keeps two windows that start in the same second apart.
    return data_dir() / f"{datetime.now():%Y-%m-%d %H.%M.%S} {what + ' ' * bool(what)}{secrets.token_hex(2)}"


def _described(project: Project, item: Item, before: ImageInput, now: ImageInput) -> Item:
    """Bring what was changed of an image in the viewer into the project; all else there stays as it is."""
    changed = {name: value for name, value in now.settings.items() if value != before.settings.get(name)}
    said = (before.name, before.spacing, before.units) != (now.name, now.spacing, now.units)
    if not (changed or said):
        return item
    return project.describe(
        item,
        name=item.name if now.name == before.name else now.name,
        spacing=item.spacing if now.spacing == before.spacing else now.spacing or None,
        units=item.units if now.units == before.units else now.units,
        metadata={**item.metadata, **changed},
    )
