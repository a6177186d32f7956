"""What is being painted on the label layers of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from psygnal import Signal
from qtpy.QtCore import QTimer

from napari_crfasrnn._qt.layers.class_layers import ClassLayer
from napari_crfasrnn._qt.layers.drawing import box_of, shows_planes

if TYPE_CHECKING:
    from napari_crfasrnn._qt.layers.group import LabelGroup


class StrokeWatch:
    """Tells what a person paints on the label layers of an image, as it happens.

    Parameters
    ----------
    group
        The layers.
    """

    painted = Signal(object)  # Box of the plane that is shown, just painted in
    claimed = Signal(object, object)  # Box, and where in it was painted what there was
    ended = Signal()  # the stroke, fill or polygon that `painted` told of
    disturbed = Signal()  # labels may have changed in another way: undo, redo, a script, a segmentation

    def __init__(self, group: LabelGroup) -> None:
        self._group = group
        self._going = False  # something was painted and has not ended
        self._end_timer = QTimer()
        self._end_timer.setSingleShot(True)
        self._end_timer.setInterval(0)
        self._end_timer.timeout.connect(self._end)
        self._layers: list[Any] = []
        for layer in group.label_layers:
            self._watch(layer)
        group.class_layers.added.connect(self._watch)
        group.class_layers.removed.connect(self._let_go)
        group.claimed.connect(self._on_claimed)
        group.stroke_ended.connect(self._end)

    @property
    def in_stroke(self) -> bool:
        """Whether the pen is down."""
        return any(layer._block_history for layer in self._group.label_layers)

    def close(self) -> None:
        """Watch no more."""
        self._end_timer.stop()
        self._group.class_layers.added.disconnect(self._watch)
        self._group.class_layers.removed.disconnect(self._let_go)
        self._group.claimed.disconnect(self._on_claimed)
        self._group.stroke_ended.disconnect(self._end)
        for layer in list(self._layers):
            self._let_go(layer)

    def _watch(self, layer: Any) -> None:
        self._layers.append(layer)
        for emitter in _emitters(layer):
            emitter.connect(self._on_event)

    def _let_go(self, layer: Any) -> None:
        self._layers.remove(layer)
        for emitter in _emitters(layer):
            emitter.disconnect(self._on_event)

    def _on_event(self, event: Any) -> None:
        if self._group.is_quiet:
            return
        if event.type == "labels_update":
            box = box_of(self._group.viewer, event)
            if box is not None:
                self._going = True
                self.painted.emit(box)
                if not event.source._block_history:  # a polygon, or a script
                    self._end_timer.start()
        elif event.type == "paint" and self._going:
            self._end()
        elif event.type == "paint" or not isinstance(event.source, ClassLayer):
            self._going = False
            self.disturbed.emit()

    def _on_claimed(self, part: tuple[slice, ...], where: NDArray[np.bool_]) -> None:
        if shows_planes(self._group.viewer) and all(one.stop - one.start == 1 for one in part[:-2]):
            rows, columns = part[-2:]
            self._going = True
            self.claimed.emit(
                (rows.start, columns.start, rows.stop, columns.stop), where[(0,) * (where.ndim - 2)]
            )

    def _end(self, step: object | None = None) -> None:
        self._end_timer.stop()
        if self._going:
            self._going = False
            self.ended.emit()


def _emitters(layer: Any) -> tuple[Any, ...]:
    events = layer.events
    return events.labels_update, events.paint, events.set_data, events.data
