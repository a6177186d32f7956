"""What a project holds: items and rounds, as values that do not change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from napari_crfasrnn.edits import Labels, Mask

PlaneIndex = tuple[int, ...]


class ArrayStore(Protocol):
    """Where items get their arrays from."""

    def load_image(self, item: Item) -> NDArray[Any]: ...  # noqa: D102
    def load_labels(self, item: Item, kind: str, index: PlaneIndex | None) -> Labels | None: ...  # noqa: D102
    def load_verified(self, item: Item, index: PlaneIndex | None) -> Mask: ...  # noqa: D102


@dataclass(frozen=True)
class Item:
    """One image of a project, as it was when it was asked for; its arrays are read when they are used.

    Attributes
    ----------
    id
        Number in the project, never used twice.
    name
        What people call it.
    axes
        One letter for each axis of the image, as `open_image` takes them.
    shape, dtype
        Of the image.
    spacing
        Size of a voxel along each axis in space (Z, if any, Y, X), in the array's order; None if unknown.
    units
        Unit of each axis of ``axes`` (None where there is none), or None if unknown.
    metadata
        Whatever the caller wants to find again; JSON values.
    stack_shape, plane_shape
        Sizes of the T and Z axes, and height and width.
    created, modified
        UTC, ISO 8601.
    """

    id: int
    name: str
    axes: str
    shape: tuple[int, ...]
    dtype: str
    spacing: tuple[float, ...] | None
    units: tuple[str | None, ...] | None
    metadata: Mapping[str, Any] = field(compare=False)
    stack_shape: tuple[int, ...]
    plane_shape: tuple[int, int]
    created: str
    modified: str
    _store: ArrayStore = field(repr=False, compare=False)

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Shape of labels, baseline and verified: ``(*stack, H, W)``."""
        return *self.stack_shape, *self.plane_shape

    def indices(self) -> Iterator[PlaneIndex]:
        """Return the index of every plane; one empty index for a plain image."""
        return np.ndindex(*self.stack_shape)

    def image(self) -> NDArray[Any]:
        """Return the image exactly as it was added: shape, type and values."""
        return self._store.load_image(self)

    def labels(self, index: PlaneIndex | None = None) -> Labels:
        """Return the labels [*stack, H, W], or [H, W] of one plane; unlabelled where nothing was stored."""
        labels = self._store.load_labels(self, "labels", index)
        assert labels is not None
        return labels

    def baseline(self, index: PlaneIndex | None = None) -> Labels | None:
        """Return the prediction that the labels started from, or None if they started from nothing."""
        return self._store.load_labels(self, "baseline", index)

    def verified(self, index: PlaneIndex | None = None) -> Mask:
        """Return where a person accepted the labels; nowhere if nothing was stored."""
        return self._store.load_verified(self, index)


@dataclass(frozen=True)
class Round:
    """One round of learning.

    Attributes
    ----------
    number
        From 1.
    created
        UTC, ISO 8601.
    report
        What the training reported; JSON values.
    model_path
        The checkpoint it produced.
    parent
        Number of the round whose model was in use before it; 0 if that was of no round.
    started_from
        Name of the model that the first of its line began with, as the caller knows it; may be empty.
    """

    number: int
    created: str
    report: Mapping[str, Any] = field(compare=False)
    model_path: Path
    parent: int = 0
    started_from: str = ""
