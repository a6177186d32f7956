"""Labels layers that tell what is painted in them."""

from __future__ import annotations

from typing import Any

import numpy as np
from napari.layers import Labels
from numpy.typing import NDArray
from psygnal import Signal


class PaintedLabels(Labels):  # type: ignore[misc]
    """A labels layer that tells which pixels a brush, a fill or a polygon covers.

    napari's own events tell of the pixels that change. Who paints background over background says something,
    too, and only the layer knows where.
    """

    stroke_begun = Signal(object)  # the layer, before the first dab, and before each further one
    covered = Signal(object, object, int)  # slices of the data, a mask of them, and what was painted there
    stroke_ended = Signal(object)  # the layer; the stroke is in its history, if it changed anything
    stroke_aborted = Signal(object)  # the layer; it is as it was before the stroke

    @property
    def in_stroke(self) -> bool:
        """Whether a stroke goes on in it."""
        return bool(getattr(self, "_block_history", False))

    @property
    def _type_string(self) -> str:  # napari saves and duplicates layers by it
        return "labels"

    def _paint_region_with_mask(
        self,
        slice_key: tuple[slice, ...],
        mask: NDArray[np.bool_],
        new_label: int,
        dims_to_paint: list[int],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        self.stroke_begun.emit(self)
        super()._paint_region_with_mask(slice_key, mask, new_label, dims_to_paint, *args, **kwargs)
        others = tuple(axis for axis in range(self.ndim) if axis not in dims_to_paint)
        self.covered.emit(slice_key, np.expand_dims(mask, others), int(new_label))
        if not self.in_stroke:  # a polygon, or a script
            self.stroke_ended.emit(self)

    def _commit_staged_history(self) -> None:
        super()._commit_staged_history()
        self.stroke_ended.emit(self)

    def _abort_stroke(self) -> None:
        super()._abort_stroke()
        self.stroke_aborted.emit(self)
