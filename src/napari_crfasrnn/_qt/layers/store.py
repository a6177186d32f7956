"""One label array, and live views of its single classes.

The array holds the truth. A `ClassView` looks like an array that holds ``k`` where the truth is class ``k``
and 0 elsewhere, without holding anything itself: reading computes it, writing goes through to the truth. So
the views cannot fall out of step with the array, whoever writes to either of them.

What is written through a view is kept until `LabelStore.take_pending` hands it over, so that the layer that
owns the truth can take it into its undo history.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_crfasrnn._qt.state.array_like import ArrayLike

Labels = NDArray[Any]  # uint8 or uint16
Box = tuple[slice, ...]


class LabelStore:
    """The label array of one image, and what was written to it through views.

    Parameters
    ----------
    array
        Labels ``[*stack, H, W]``; shared, not copied.
    on_write
        Called after every write through a view, with a box around what was written.
    """

    def __init__(self, array: Labels, on_write: Callable[[Box], None]) -> None:
        self.array = array
        self._on_write = on_write
        self._pending: list[tuple[Box, Labels]] = []

    @property
    def has_pending(self) -> bool:
        """Whether something was written through a view and not taken yet."""
        return bool(self._pending)

    def view(self, value: int) -> ClassView:
        """Return the live view of one class."""
        return ClassView(self, value)

    def write(self, key: Any, values: Any, value: int) -> None:
        """Write what a view of class ``value`` was given.

        Pixels where the view changes take the new value; so 0 clears pixels of this class and of no other.
        """
        box = bounding_box(key, self.array.shape)
        old = self.array[key]
        shown = np.where(old == value, old, 0)
        new = np.asarray(values).astype(self.array.dtype, copy=False)
        changed = shown != new
        if not np.any(changed):
            return
        self._pending.append((box, self.array[box].copy()))
        self.array[key] = np.where(changed, new, old)
        self._on_write(box)

    def take_pending(self) -> tuple[tuple[NDArray[np.intp], ...], Labels] | None:
        """Undo what is pending, and return it as indices and the values to write there again."""
        pending, self._pending = self._pending, []
        if not pending:
            return None
        box = _union([box for box, _ in pending])
        after = self.array[box].copy()
        for part, old in reversed(pending):
            self.array[part] = old
        places = np.nonzero(self.array[box] != after)
        if not places[0].size:
            return None
        return tuple(p + part.start for p, part in zip(places, box, strict=True)), after[places]

    def drop_pending(self) -> None:
        """Undo what is pending and forget it."""
        for box, old in reversed(self._pending):
            self.array[box] = old
        self._pending = []


class ClassView(ArrayLike):
    """An array-like that shows one class of a `LabelStore`: the class value, and 0 elsewhere."""

    def __init__(self, store: LabelStore, value: int) -> None:
        self._store = store
        self._value = value

    @property
    def value(self) -> int:
        """The class value that is shown."""
        return self._value

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of the label array."""
        return self._store.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:  # type: ignore[override]
        """Type of the label array."""
        return self._store.array.dtype

    def __getitem__(self, key: Any) -> Any:
        part = self._store.array[key]
        return (part == self._value) * self.dtype.type(self._value)

    def __setitem__(self, key: Any, values: Any) -> None:
        self._store.write(key, values, self._value)

    def fill(self, value: int) -> None:
        """Write one value everywhere, as `numpy.ndarray.fill` does."""
        self[...] = value

    def __repr__(self) -> str:
        return f"<class {self._value} of labels {self.shape}, {self.dtype}>"


def bounding_box(key: Any, shape: tuple[int, ...]) -> Box:
    """Return slices that cover all that ``array[key]`` addresses in an array of this shape.

    Exact for integers and slices, the hull for arrays of integers, the whole array for anything else.
    """
    parts = key if isinstance(key, tuple) else (key,)
    whole = tuple(slice(0, size) for size in shape)
    if sum(part is Ellipsis for part in parts) == 1:
        at = next(i for i, part in enumerate(parts) if part is Ellipsis)
        missing = len(shape) - (len(parts) - 1)
        parts = (*parts[:at], *[slice(None)] * missing, *parts[at + 1 :])
    if len(parts) > len(shape):
        return whole
    box = list(whole)
    for axis, part in enumerate(parts):
        size = shape[axis]
        if isinstance(part, slice):
            covered = range(size)[part]
            first, last = (min(covered[0], covered[-1]), max(covered[0], covered[-1])) if covered else (0, -1)
        elif isinstance(part, np.ndarray) and part.dtype.kind in "iu" and part.size:
            first, last = int(part.min()), int(part.max())
            if first < 0:
                return whole
        elif isinstance(part, int | np.integer) and not isinstance(part, bool):
            first = last = int(part) % size if size else 0
        else:
            return whole
        box[axis] = slice(first, last + 1)
    return tuple(box)


def _union(boxes: list[Box]) -> Box:
    return tuple(
        slice(min(part.start for part in parts), max(part.stop for part in parts))
        for parts in zip(*boxes, strict=True)
    )
