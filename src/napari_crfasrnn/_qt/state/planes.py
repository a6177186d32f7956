"""What is known of some planes of a stack, where most planes of a long one are never looked at."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from napari_crfasrnn._qt.state.array_like import ArrayLike

PlaneIndex = tuple[int, ...]


class KnownPlanes(ArrayLike):
    """Values of those planes of a stack that something is known of; all others hold one value.

    It looks like an array ``[*stack, H, W]``, of which napari asks for what it shows. Only planes that
    are known take memory.

    Parameters
    ----------
    shape
        Of the stack, with rows and columns.
    dtype
        Of the values.
    nothing
        The value where nothing is known.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike, nothing: float) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._nothing = np.array(nothing, dtype)
        self._planes: dict[PlaneIndex, NDArray[Any]] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known of any plane."""
        return not self._planes

    def knows(self, index: PlaneIndex) -> bool:
        """Whether something is known of a plane."""
        return index in self._planes

    def plane(self, index: PlaneIndex) -> NDArray[Any]:
        """Return the values [H, W] of a plane, not to be written to."""
        found = self._planes.get(index)
        return np.broadcast_to(self._nothing, self.shape[-2:]) if found is None else found

    def put(self, index: PlaneIndex, values: NDArray[Any], part: Any = ...) -> None:
        """Take the values of a plane or of a part of it; without an index, of all planes."""
        for rest in np.ndindex(self.shape[len(index) : -2]):
            place = (*index, *rest)
            if part is ...:
                self._planes[place] = np.array(values[rest], self.dtype)
                continue
            if place not in self._planes:
                self._planes[place] = np.full(self.shape[-2:], self._nothing, self.dtype)
            self._planes[place][part] = values[rest]

    def forget(self, index: PlaneIndex) -> None:
        """Know nothing of a plane any more."""
        self._planes.pop(index, None)

    def mapped(self, change: Callable[[NDArray[Any]], NDArray[Any]], nothing: float) -> KnownPlanes:
        """Return the same planes with their values changed by a function, of any type."""
        planes = {index: change(plane) for index, plane in self._planes.items()}
        dtype = next((plane.dtype for plane in planes.values()), self.dtype)
        found = KnownPlanes(self.shape, dtype, nothing)
        found._planes = planes
        return found

    def __getitem__(self, key: Any) -> Any:
        n_stack = self.ndim - 2
        key = () if key is ... else key if isinstance(key, tuple) else (key,)
        stack_key = (*key[:n_stack], *[slice(None)] * (n_stack - len(key)))
        if not all(isinstance(part, int | np.integer | slice) for part in stack_key):
            return np.asarray(self)[key]
        places = [range(size)[part] for size, part in zip(self.shape, stack_key, strict=False)]
        ranges = [place if isinstance(place, range) else (place,) for place in places]
        found = [self.plane(index)[key[n_stack:]] for index in itertools.product(*ranges)]
        nowhere = np.broadcast_to(self._nothing, self.shape[-2:])[key[n_stack:]]
        stacked = np.stack(found) if found else nowhere[np.newaxis][:0]
        size = [len(place) for place in places if isinstance(place, range)]
        return stacked.reshape((*size, *stacked.shape[1:]))

    def __repr__(self) -> str:
        return f"<{len(self._planes)} known planes of {self.shape}, {self.dtype}>"
