"""The images of a project and their labels: what is asked of them, and every change, whole or not at all.

Callers hold the database's guard and translate errors (`files.saving`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_crfasrnn.classes import ClassSpec, ignore_value, label_dtype
from napari_crfasrnn.edits import Box
from napari_crfasrnn.imaging import check_spacing, open_image
from napari_crfasrnn.project.arrays import ProjectArrays, StagedPlane, checked_index
from napari_crfasrnn.project.database import Database, now
from napari_crfasrnn.project.items import Item, PlaneIndex
from napari_crfasrnn.project.records import (
    ITEM_COLUMNS,
    last_item_id,
    map_classes,
    read_classes,
    read_item,
    to_json,
    write_classes,
    write_event,
    write_item,
)


@dataclass(frozen=True, eq=False)
class LabelArrays:
    """Labels as a caller gives them; what is None stays as it was."""

    labels: NDArray[Any] | None = None
    baseline: NDArray[Any] | None = None
    verified: NDArray[Any] | None = None


class ProjectItems:
    """The images of one project, and the class table that their labels are of.

    Parameters
    ----------
    database, arrays
        The project's.
    """

    def __init__(self, database: Database, arrays: ProjectArrays) -> None:
        self._database, self._arrays = database, arrays

    def all(self) -> tuple[Item, ...]:
        """Return the images, in the order in which they were added."""
        rows = self._database.rows(f"SELECT {', '.join(ITEM_COLUMNS)} FROM items ORDER BY id")
        return tuple(read_item(row, self._arrays) for row in rows)

    def get(self, item_id: int) -> Item:
        """Return one image by its number, or raise `KeyError`."""
        rows = self._database.rows(f"SELECT {', '.join(ITEM_COLUMNS)} FROM items WHERE id = ?", (item_id,))
        if not rows:
            raise KeyError(f"the project has no item {item_id}")
        return read_item(rows[0], self._arrays)

    def add(
        self,
        image: NDArray[Any],
        *,
        name: str | None,
        axes: str | None,
        spacing: float | Sequence[float] | None,
        units: Sequence[str | None] | None,
        metadata: Mapping[str, Any] | None,
        labels: LabelArrays,
    ) -> Item:
        """Add an image, as `Project.add`."""
        source = open_image(image, axes, spacing)
        array = np.asarray(image)
        _check_units(units, source.axes)
        details = to_json("metadata", dict(metadata or {}))
        given = self._checked(source.stack_shape + source.plane_shape, labels)
        item_id = 1 + last_item_id(self._database)
        image_file = self._arrays.stage_image(item_id, array)
        with self._staging(image_file) as staged:
            staged += self._arrays.stage(item_id, given, source.stack_shape)
            with self._database.transaction():
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
                    "image_file": image_file,
                }
                write_item(self._database, values)
                self._arrays.record(staged)
                write_event(self._database, "add", {"item": item_id, "name": values["name"]})
        return self.get(item_id)

    def set_labels(self, item: Item, labels: LabelArrays, index: PlaneIndex | None) -> Item:
        """Store labels, as `Project.set_labels`."""
        self._check_own(item)
        if index is not None:
            index = checked_index(index, item.stack_shape)
        given = self._checked(item.label_shape if index is None else item.plane_shape, labels)
        with self._staging() as staged:
            staged += self._arrays.stage(item.id, given, item.stack_shape, index)
            with self._database.transaction():
                replaced = self._arrays.record(staged)
                self._database.execute(
                    "UPDATE items SET modified = ?, has_baseline = has_baseline OR ? WHERE id = ?",
                    (now(), "baseline" in given, item.id),
                )
        self._arrays.remove(replaced)
        return self.get(item.id)

    def describe(
        self,
        item: Item,
        name: str,
        spacing: float | Sequence[float] | None,
        units: Sequence[str | None] | None,
        metadata: Mapping[str, Any],
    ) -> Item:
        """Change what is said of an image, as `Project.describe`."""
        item = self._check_own(item)
        _check_units(units, item.axes)
        values = {
            "name": name or item.name,
            "spacing": to_json("spacing", check_spacing(spacing, item.axes)),
            "units": to_json("units", units),
            "metadata": to_json("metadata", dict(metadata)),
            "modified": now(),
        }
        with self._database.transaction():
            changes = ", ".join(f"{column} = ?" for column in values)
            self._database.execute(f"UPDATE items SET {changes} WHERE id = ?", (*values.values(), item.id))
        return self.get(item.id)

    def verify(self, item: Item, box: Box | None, index: PlaneIndex | None) -> Item:
        """Take labels for right, as `Project.verify`."""
        self._check_own(item)
        height, width = item.plane_shape
        y0, x0, y1, x1 = box or (0, 0, height, width)
        if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
            raise ValueError(f"box must lie in the plane {item.plane_shape} and hold pixels, got {box}")
        labels, verified = item.labels(index), item.verified(index).copy()
        part = np.s_[..., y0:y1, x0:x1]
        verified[part] = labels[part] != ignore_value(labels.dtype)
        return self.set_labels(item, LabelArrays(labels, None, verified), index)

    def remove(self, item: Item) -> None:
        """Remove an image and its labels."""
        item = self._check_own(item)
        files = self._arrays.files(item)
        with self._database.transaction():
            self._database.execute("DELETE FROM items WHERE id = ?", (item.id,))
            write_event(self._database, "remove", {"item": item.id, "name": item.name})
        self._arrays.remove(files)

    def set_classes(self, table: Sequence[ClassSpec], mapping: Mapping[str, str | None]) -> None:
        """Change the class table and all labels with it, as `Project.set_classes`."""
        old = read_classes(self._database)
        new_values = map_classes(old, table, mapping)
        with self._staging() as staged:
            if not _keeps_every_value(new_values, len(old), len(table)):
                for item in self.all():
                    staged += self._arrays.stage_remapped(item, new_values, len(table))
            with self._database.transaction():
                replaced = self._arrays.record(staged)
                write_classes(self._database, table)
                detail = {"classes": [spec.name for spec in table], "mapping": dict(mapping)}
                write_event(self._database, "classes", detail)
        self._arrays.remove(replaced)

    def _check_own(self, item: Item) -> Item:
        """Return an image as it is now, if it is of this project; others have images of the same number."""
        if not isinstance(item, Item):
            raise TypeError(f"item must be an image of the project, as Project.items has them, got {item!r}")
        own = self.get(item.id)
        if (own.created, own.axes, own.shape, own.dtype) != (item.created, item.axes, item.shape, item.dtype):
            raise ValueError(
                f"item must be of this project, got {item.name!r} of another one: take it from Project.items"
            )
        return own

    def _checked(self, shape: tuple[int, ...], given: LabelArrays) -> dict[str, Any]:
        return self._arrays.check(shape, given.labels, given.baseline, given.verified)

    @contextmanager
    def _staging(self, *files: str) -> Iterator[list[StagedPlane]]:
        """Gather planes that were written aside, and remove them again if they do not get recorded."""
        staged: list[StagedPlane] = []
        with ExitStack() as undo:
            undo.callback(self._arrays.discard, staged, *files)
            yield staged
            undo.pop_all()


def _check_units(units: Sequence[str | None] | None, axes: str) -> None:
    if units is not None and len(units) != len(axes):
        raise ValueError(f"units must hold one entry for each axis of {axes!r}, got {list(units)}")


def _keeps_every_value(new_values: list[int | None], n_old: int, n_new: int) -> bool:
    return new_values == list(range(n_old)) and label_dtype(n_old) is label_dtype(n_new)
