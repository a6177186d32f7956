"""The arrays of a project's items: images whole, labels plane by plane.

A stroke changes one plane, so labels, baselines and verified masks have a file per plane, and only
planes that changed are written. Writing takes two steps: files first, under names never used before,
then the database in one transaction; until that is through, the old files are the project.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_crfasrnn.classes import ignore_value, label_dtype
from napari_crfasrnn.edits import Labels, Mask, as_labels, edited_mask, remap_labels
from napari_crfasrnn.project.database import Database
from napari_crfasrnn.project.files import read_array, remove_files, write_array
from napari_crfasrnn.project.items import Item, PlaneIndex
from napari_crfasrnn.project.records import read_classes

_IMAGE_LEVEL = 6
_PLANE_LEVEL = 2  # labels are large areas of one value: more effort makes them hardly smaller
_READ_ATTEMPTS = 20  # a second program may see a file replaced between asking for its name and opening it


@dataclass(frozen=True)
class StagedPlane:
    """A plane whose file is written, but which the database does not know yet.

    Attributes
    ----------
    file
        Its file; None for a plane that holds nothing but the fill value.
    """

    item_id: int
    kind: str
    plane: int
    file: str | None
    digest: str


class ProjectArrays:
    """Reads and writes the files in one folder that the database refers to."""

    def __init__(self, folder: Path, database: Database) -> None:
        self._folder = folder
        self._database = database

    def load_image(self, item: Item) -> NDArray[Any]:
        """Return an item's image as it was added."""
        rows = self._database.rows("SELECT image_file FROM items WHERE id = ?", (item.id,))
        if not rows:
            raise KeyError(f"the project has no item {item.id}")
        return read_array(self._folder / rows[0][0], item.shape, item.dtype)

    def load_labels(self, item: Item, kind: str, index: PlaneIndex | None) -> Labels | None:
        """Return an item's labels, or its baseline if it has one."""
        with self._database.guard:
            rows = self._database.rows("SELECT has_baseline FROM items WHERE id = ?", (item.id,))
            if not rows:
                raise KeyError(f"the project has no item {item.id}")
            if kind == "baseline" and not rows[0][0]:
                return None
            dtype = label_dtype(len(read_classes(self._database)))
            return self._load(item, kind, dtype, ignore_value(dtype), index)

    def load_verified(self, item: Item, index: PlaneIndex | None) -> Mask:
        """Return where an item is verified."""
        return self._load(item, "verified", np.bool_, 0, index)

    def _load(
        self, item: Item, kind: str, dtype: type[np.generic], fill: int, index: PlaneIndex | None
    ) -> NDArray[Any]:
        if index is not None:
            index = checked_index(index, item.stack_shape)
        array = np.full(item.label_shape if index is None else item.plane_shape, fill, dtype=dtype)
        for place in item.indices() if index is None else [index]:
            plane = self._load_plane(item, kind, _number(place, item), np.dtype(dtype))
            if plane is not None:
                array[place if index is None else ...] = plane
        return array

    def _load_plane(self, item: Item, kind: str, number: int, dtype: np.dtype[Any]) -> NDArray[Any] | None:
        for attempt in range(_READ_ATTEMPTS):
            with self._database.guard:  # no other thread replaces the file meanwhile
                found = self._database.rows(
                    "SELECT file FROM planes WHERE item_id = ? AND kind = ? AND plane = ?",
                    (item.id, kind, number),
                )
                if not found:
                    return None
                try:
                    return read_array(self._folder / found[0][0], item.plane_shape, dtype.name)
                except FileNotFoundError:
                    if attempt == _READ_ATTEMPTS - 1:
                        raise
        return None

    def check(
        self,
        shape: tuple[int, ...],
        labels: NDArray[Any] | None,
        baseline: NDArray[Any] | None,
        verified: NDArray[Any] | None,
    ) -> dict[str, Labels | Mask]:
        """Return the arrays that were given, by kind, in the types they are stored in.

        Raises
        ------
        TypeError, ValueError
            If one has the wrong type, shape or values.
        """
        n_labels = len(read_classes(self._database))
        given: dict[str, Labels | Mask] = {}
        for kind, array in (("labels", labels), ("baseline", baseline)):
            if array is not None:
                given[kind] = as_labels(array, n_labels, name=kind)
        if verified is not None:
            mask = np.asarray(verified)
            if mask.dtype.kind not in "biu":
                raise TypeError(f"verified must hold booleans, got {mask.dtype}")
            given["verified"] = mask.astype(bool)
        for kind, checked in given.items():
            if checked.shape != shape:
                raise ValueError(
                    f"{kind} must have the shape of the image's planes, {shape}, got {checked.shape}"
                )
        return given

    def stage_image(self, item_id: int, image: NDArray[Any]) -> str:
        """Write the file of a new image and return its name."""
        return write_array(self._folder, f"{item_id:06d}_image", image, level=_IMAGE_LEVEL)

    def stage(
        self,
        item_id: int,
        given: Mapping[str, Labels | Mask],
        stack_shape: tuple[int, ...],
        index: PlaneIndex | None = None,
    ) -> list[StagedPlane]:
        """Write the files of all planes that differ from what is stored.

        Parameters
        ----------
        given
            Arrays by kind, [*stack, H, W], or [H, W] with an index.
        """
        staged: list[StagedPlane] = []
        with ExitStack() as undo:
            undo.callback(self.discard, staged)
            for kind, array in given.items():
                fill = 0 if kind == "verified" else ignore_value(array.dtype)
                stored = self._digests(item_id, kind)
                for place in list(np.ndindex(*stack_shape)) if index is None else [index]:
                    # A copy: the caller may go on to write to it, and the digest is to be that of the file.
                    plane = np.array(array[place] if index is None else array)
                    number = int(np.ravel_multi_index(place, stack_shape)) if stack_shape else 0
                    digest = "" if (plane == fill).all() else _digest(plane)
                    if stored.get(number, "") != digest:
                        name = self._write_plane(f"{item_id:06d}_{kind}_{number:05d}", plane, digest)
                        staged.append(StagedPlane(item_id, kind, number, name, digest))
            undo.pop_all()
        return staged

    def _write_plane(self, stem: str, plane: Labels | Mask, digest: str) -> str | None:
        return write_array(self._folder, stem, plane, level=_PLANE_LEVEL) if digest else None

    def _digests(self, item_id: int, kind: str) -> dict[int, str]:
        rows = self._database.rows(
            "SELECT plane, digest FROM planes WHERE item_id = ? AND kind = ?", (item_id, kind)
        )
        return {int(plane): str(digest) for plane, digest in rows}

    def stage_remapped(self, item: Item, new_values: list[int | None], n_labels: int) -> list[StagedPlane]:
        """Write an item's planes as a new class table has them.

        An edit that the new table makes equal to the baseline (two merged classes) would be forgotten,
        so it becomes verified; a pixel whose class is gone is no longer verified.
        """
        staged: list[StagedPlane] = []
        with ExitStack() as undo:
            undo.callback(self.discard, staged)
            for index in item.indices():
                labels, baseline, verified = item.labels(index), item.baseline(index), item.verified(index)
                remapped = remap_labels(labels, new_values, n_labels)
                given: dict[str, Labels | Mask] = {"labels": remapped}
                if baseline is not None:
                    moved = remap_labels(baseline, new_values, n_labels)
                    given["baseline"] = moved
                    verified = verified | (edited_mask(labels, baseline) & ~edited_mask(remapped, moved))
                given["verified"] = verified & (remapped != ignore_value(remapped.dtype))
                staged += self.stage(item.id, given, item.stack_shape, index)
            undo.pop_all()
        return staged

    def record(self, staged: list[StagedPlane]) -> list[str]:
        """Enter staged planes into the database, inside the caller's transaction.

        Returns
        -------
        replaced
            Files that nothing refers to once the transaction is through.
        """
        replaced: list[str] = []
        for plane in staged:
            key = (plane.item_id, plane.kind, plane.plane)
            where = "WHERE item_id = ? AND kind = ? AND plane = ?"
            replaced += [row[0] for row in self._database.rows(f"SELECT file FROM planes {where}", key)]
            self._database.execute(f"DELETE FROM planes {where}", key)
            if plane.file is not None:
                self._database.execute(
                    "INSERT INTO planes VALUES (?, ?, ?, ?, ?)", (*key, plane.file, plane.digest)
                )
        return replaced

    def discard(self, staged: list[StagedPlane], *files: str) -> None:
        """Remove files after a failure, except those that were recorded in spite of it.

        An interrupt may strike just after a transaction went through. When the database cannot answer,
        the files stay and are cleared when the project is opened next.
        """
        names = [plane.file for plane in staged if plane.file is not None] + list(files)
        with suppress(sqlite3.Error):
            recorded = set(self.files())
            self.remove([name for name in names if name not in recorded])

    def remove(self, files: list[str]) -> None:
        """Remove files that the database no longer refers to."""
        remove_files(self._folder, files)

    def files(self, item: Item | None = None) -> list[str]:
        """Return the names of all files the database refers to, of one item or of all."""
        images, planes = "SELECT image_file FROM items", "SELECT file FROM planes"
        if item is None:
            rows = self._database.rows(f"{images} UNION ALL {planes}")
        else:
            rows = self._database.rows(
                f"{images} WHERE id = ? UNION ALL {planes} WHERE item_id = ?", (item.id, item.id)
            )
        return [str(row[0]) for row in rows]


def checked_index(index: PlaneIndex, stack_shape: tuple[int, ...]) -> PlaneIndex:
    """Return the index of a plane as plain integers.

    Raises
    ------
    IndexError
        If it is no place in the stack.
    """
    if len(index) != len(stack_shape) or not all(
        0 <= place < size for place, size in zip(index, stack_shape, strict=True)
    ):
        raise IndexError(f"index must be a place in the stack of shape {stack_shape}, got {tuple(index)}")
    return tuple(int(place) for place in index)


def _number(index: PlaneIndex, item: Item) -> int:
    return int(np.ravel_multi_index(index, item.stack_shape)) if item.stack_shape else 0


def _digest(plane: NDArray[Any]) -> str:
    whole = hashlib.blake2b(digest_size=16)
    whole.update(plane.dtype.str.encode())
    whole.update(np.ascontiguousarray(plane).data)
    return whole.hexdigest()
