"""The project on the disk behind the widget, so that nothing a person did is lost.

Every function here is slow and runs in the thread of the disk, one after another.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import platformdirs

from napari_crfasrnn.classes import ClassSpec
from napari_crfasrnn.edits import summarize
from napari_crfasrnn.project import Item, Project
from napari_crfasrnn.project.database import DATABASE

if TYPE_CHECKING:
    from napari_crfasrnn._qt.layers import ImageInput
    from napari_crfasrnn._qt.state.work import Labels, Mask, Snapshot

_log = logging.getLogger(__name__)

DATA_VARIABLE = "NAPARI_CRFASRNN_DATA"
"""Environment variable that names another folder for the projects that were not saved by name."""


NAMED = "named.json"  # in the folder of projects: where those are that were saved by name
MOST_NAMED = 20
MOST_COMPARED = 1_000_000  # values of an image
UNREADABLE = (LookupError, OSError, RuntimeError, TypeError, ValueError)  # of whatever array is in a layer


@dataclass(frozen=True)
class Recent:
    """A project that can be opened again."""

    path: Path
    title: str
    modified: datetime


@dataclass(frozen=True, eq=False)
class Opened:
    """One image of a project, read."""

    key: str
    item: Item
    array: Any
    labels: Labels
    baseline: Labels | None
    verified: Mask
    present: tuple[int, ...]  # classes that have at least a pixel


def data_dir() -> Path:
    """Return the folder of the projects that were not saved by name."""
    override = os.environ.get(DATA_VARIABLE)
    base = Path(override) if override else platformdirs.user_data_path("napari-crfasrnn", appauthor=False)
    return base / "projects"


def _named() -> list[Path]:
    """Return the folders that a person chose for projects, the latest first."""
    try:
        found = json.loads((data_dir() / NAMED).read_text(encoding="utf-8"))
        return [Path(place) for place in found]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:  # a list for convenience: nobody's work depends on it
        _log.warning("the list of projects cannot be read: %s", error)
        return []


def _remember(path: Path) -> None:
    """Put a folder that a person chose at the head of the list of these."""
    path = path.absolute()
    places = [path, *(other for other in _named() if other != path)][:MOST_NAMED]
    try:
        data_dir().mkdir(parents=True, exist_ok=True)
        (data_dir() / NAMED).write_text(json.dumps([str(place) for place in places]), encoding="utf-8")
    except OSError as error:
        _log.warning("the list of projects cannot be written: %s", error)


def _is_work(project: Project) -> bool:
    """Return whether somebody may want to go on with a project: it is of no sample, or something was done."""
    return bool(project.rounds) or any(
        not item.metadata.get("sample") or _is_corrected(item) for item in project.items
    )


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


def _identity(path: Path) -> str:
    """Return the identity of a project, which copies share; "" where it cannot be read."""
    try:
        with Project.open(path, read_only=True) as project:
            return project.id
    except (ValueError, OSError):
        return ""


def _about(path: Path) -> tuple[str, str]:
    """Return the identity of a project, which copies share, and what it is called by its images.

    The latter is "" where nobody may want to go on with it.
    """
    try:
        with Project.open(path, read_only=True) as project:
            identity = project.id
            names = [item.name for item in project.items] if _is_work(project) else []
    except (ValueError, OSError):
        return "", ""  # not ours to repair; opening it by hand says what is wrong
    return identity, ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _is_corrected(item: Item) -> bool:
    done = summarize(item.labels(), item.baseline(), item.verified())
    return bool(done.n_edited or done.n_verified)


class Keeper:
    """The owner of the open project. Used by one thread at a time, but for `project` and `path`."""

    def __init__(self) -> None:
        self.project: Project | None = None
        self._items: dict[str, Item] = {}  # by the key of the image in the viewer

    @property
    def path(self) -> Path | None:
        """Folder of the open project."""
        return None if self.project is None else self.project.path

    @property
    def n_images(self) -> int:
        """How many images of the viewer are in the open project."""
        return len(self._items)

    @property
    def is_named(self) -> bool:
        """Whether a person chose the place of the open project."""
        return self.project is not None and self.project.path.parent != data_dir().absolute()

    def number_of(self, key: str) -> int | None:
        """Return the number that an image of the viewer has in the project."""
        item = self._items.get(key)
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
            item = project.set_labels(
                item, snapshot.labels, baseline=snapshot.baseline, verified=snapshot.verified
            )
        self._items[image.key] = item
        return item

    def set_classes(self, classes: Sequence[ClassSpec], mapping: Mapping[str, str | None]) -> None:
        """Change the class table of the project, if there is one."""
        if self.project is not None:
            self.project.set_classes(classes, mapping)

    def save_as(self, path: Path, classes: Sequence[ClassSpec]) -> Path:
        """Copy the project to another folder and go on there."""
        project = self._open_or_new(classes)
        project.save_as(path)
        self.project = Project.open(path)
        project.close()
        if self.is_named:
            _remember(path)
        return path

    def open(self, path: Path) -> Project:
        """Open another project instead of the present one."""
        project = Project.open(path)
        self.close()
        self.project = project
        if self.is_named:
            _remember(path)
        return project

    def read(self, item: Item, key: str | None = None) -> Opened:
        """Read an image of the project; what it is called in the viewer is up to the caller, or new."""
        key = uuid4().hex if key is None else key
        self._items[key] = item
        labels = item.labels()
        present = tuple(int(value) for value in np.unique(labels))
        return Opened(key, item, item.image(), labels, item.baseline(), item.verified(), present)

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

    def read_number(self, number: int) -> Opened:
        """Read an image of the project by its number."""
        if self.project is None:
            raise ValueError("no project is open")
        return self.read(self.project.item(number))

    def recent(self, limit: int = 8) -> list[Recent]:
        """Return the projects that were open before, the one changed last first.

        Those that were not saved by name go by their images, and are left out where they hold samples alone
        that nobody corrected.
        """
        named = [place for place in _named() if (place / DATABASE).is_file()]
        known = {_identity(place) for place in named}  # the folders that these were begun in are stale
        places = [*named, *(file.parent for file in data_dir().glob(f"*/{DATABASE}"))]
        changed = {place: (place / DATABASE).stat().st_mtime for place in places if place != self.path}
        recents: list[Recent] = []
        for place in sorted(changed, key=changed.__getitem__, reverse=True):
            if len(recents) == limit:
                break
            title = place.name
            if place not in named:
                identity, title = _about(place)
                if identity in known:
                    continue
            if title:
                recents.append(Recent(place, title, datetime.fromtimestamp(changed[place])))
        return recents

    def close(self) -> None:
        """Close the project."""
        if self.project is not None:
            self.project.close()
            self.project = None
            self._items.clear()

    def _open_or_new(self, classes: Sequence[ClassSpec]) -> Project:
        if self.project is None:
            # The random part keeps two windows that start in the same second apart.
            name = f"{datetime.now():%Y-%m-%d %H.%M.%S} {secrets.token_hex(2)}"
            data_dir().mkdir(parents=True, exist_ok=True)
            self.project = Project.create(data_dir() / name, classes)
        return self.project
