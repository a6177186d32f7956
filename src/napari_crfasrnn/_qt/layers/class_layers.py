"""The layers of single classes: which there are, what they are called, how they look."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from psygnal import Signal
from qtpy.QtCore import QTimer

from napari_crfasrnn._qt.layers import looks
from napari_crfasrnn._qt.layers.images import insert_above, key_of, mark_of, placement, set_mark
from napari_crfasrnn._qt.layers.painted import PaintedLabels
from napari_crfasrnn._qt.layers.store import ClassView
from napari_crfasrnn.classes import ClassSpec, ignore_value

if TYPE_CHECKING:
    from napari_crfasrnn._qt.layers.group import LabelGroup


class ClassLayer(PaintedLabels):
    """A labels layer that shows one class of the combined labels. Undo and redo are the combined layer's."""

    _history_limit = 0  # the combined layer has the history

    def __init__(self, group: LabelGroup, view: ClassView, **settings: Any) -> None:
        self.group = group
        super().__init__(view, **settings)

    @property
    def value(self) -> int:
        """The class value it shows."""
        return int(mark_of(self)["value"])

    def _get_flood_mask_and_bbox(self, *args: Any) -> Any:
        """Return what a fill covers: a region of the combined labels, for here all other classes are 0."""
        combined = self.group.combined
        combined.contiguous, combined.preserve_labels = self.contiguous, self.preserve_labels
        found = combined._get_flood_mask_and_bbox(*args)
        if found is None:
            return None
        mask, starts, ends, region = found
        return mask, starts, ends, np.where(region == self.value, region, 0)

    def _apply_mask_to_data(self, region: NDArray[Any], mask: NDArray[Any], label: int, key: Any) -> Any:
        """Paint into a region, but not over other classes where these are to be preserved."""
        if self.preserve_labels:
            there = self.group.labels[key]
            mask = mask & np.isin(there, (0, self.value, ignore_value(there.dtype)))
        return super()._apply_mask_to_data(region, mask, label, key)

    def undo(self) -> None:
        """Take back the last stroke of the image, in whichever of its label layers it was made."""
        self.group.undo()

    def redo(self) -> None:
        """Do again what was undone last."""
        self.group.redo()

    def _abort_stroke(self) -> None:
        self.group.store.drop_pending()  # before napari writes back 0 where other classes were
        super()._abort_stroke()


class ClassLayers:
    """The class layers of one group.

    napari takes its time to add a layer, the more, the more there are. So they come one at a time, with the
    window alive between them, and only while somebody works on the image; until then the combined layer draws
    their classes.

    Parameters
    ----------
    group
        Whose layers they are.
    enabled
        Whether classes have layers at all.
    """

    added = Signal(object)
    removed = Signal(object)  # by us or by a person
    grown = Signal()  # every class that is present has its layer

    def __init__(self, group: LabelGroup, enabled: bool) -> None:
        self.enabled = enabled
        self._group = group
        self._in_view = True
        self._layers: dict[int, ClassLayer] = {}
        self._present: set[int] = set()
        self._missing: list[int] = []  # classes whose layers are still to come
        self._timer = QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(0)
        self._timer.timeout.connect(self._grow)

    def __iter__(self) -> Iterator[ClassLayer]:
        return iter(list(self._layers.values()))

    def __contains__(self, layer: Any) -> bool:
        return any(other is layer for other in self._layers.values())

    def __getitem__(self, value: int) -> ClassLayer:
        return self._layers[value]

    @property
    def by_value(self) -> dict[int, ClassLayer]:
        """The layer of each class that has one."""
        return dict(self._layers)

    @property
    def growing(self) -> bool:
        """Whether layers are still to come."""
        return bool(self._missing)

    def show_present(self, values: Iterable[int]) -> None:
        """Add a layer for each class that is present and has none, once the image is in view.

        `grown` says when all are there.
        """
        self._present = {value for value in values if 0 < value < len(self._group.classes)}
        if self.enabled and self._in_view and self._group.alive:
            self._missing = sorted(self._present - set(self._layers))
            if self._missing:
                self._timer.start()

    def drop_absent(self, present: Iterable[int]) -> None:
        """Remove the layers of classes without a pixel, but for those that are selected.

        ``present`` are classes that are known to have pixels; of the others it is looked up.
        """
        absent = [v for v in self._layers.keys() - set(present) if not self._is_needed(v)]
        if not absent or any(layer.in_stroke for layer in self._group.label_layers):
            return
        self._present -= set(absent)
        self._remove([self._layers.pop(value) for value in absent])
        self._group.color_combined()

    def _is_needed(self, value: int) -> bool:
        selected = self._layers[value] in self._group.viewer.layers.selection
        return selected or bool((self._group.labels == value).any())

    def set_in_view(self, in_view: bool) -> None:
        """Say whether somebody works on the image. Layers that are there stay when nobody does any more."""
        if in_view != self._in_view:
            self._in_view = in_view
            if in_view:
                self.show_present(self._present)
            else:
                self.stop()

    def set_enabled(self, enabled: bool) -> None:
        """Let classes have layers, or none."""
        self.enabled = enabled
        if enabled:
            self.show_present(self._present)
        else:
            present = self._present
            self.clear()
            self._present = present

    def grow_now(self) -> None:
        """Add the layers that are still to come."""
        while self._missing:
            self._grow()

    def get(self, value: int) -> ClassLayer:
        """Return the layer of a class, added if there is none."""
        return self._layers[value] if value in self._layers else self._add(value)

    def forget(self, layer: Any) -> bool:
        """Drop a layer that somebody removed; return whether it was one of these."""
        mine = [value for value, other in self._layers.items() if other is layer]
        for value in mine:
            self.removed.emit(self._layers.pop(value))
        return bool(mine)

    def clear(self) -> None:
        """Remove all of them."""
        self.stop()
        self._present = set()
        layers = list(self)
        self._layers.clear()
        self._remove(layers)

    def stop(self) -> None:
        """Add no more."""
        self._timer.stop()
        if self._missing:
            self._missing.clear()
            self.grown.emit()  # somebody may wait for it

    def dress(self, classes: Sequence[ClassSpec], image_name: str) -> None:
        """Give them the names and colours of a class table."""
        for value, layer in self._layers.items():
            layer.name = looks.layer_name(image_name, classes[value].name)
            looks.color_layer(layer, classes, [value])
            layer.features = _names(classes, value)

    def take_over(self) -> set[int]:
        """Remove the class layers that an earlier group left; return the values of the hidden ones."""
        left = [
            layer
            for layer in self._group.viewer.layers
            if isinstance(layer, ClassLayer) and mark_of(layer).get("image") == self._group.key
        ]
        self._group.remove_layers(left)
        self._present = {layer.value for layer in left}
        self.show_present(self._present)
        return {layer.value for layer in left if not layer.visible}

    def _remove(self, layers: Sequence[ClassLayer]) -> None:
        self._group.remove_layers(layers)
        for layer in layers:
            self.removed.emit(layer)

    def _grow(self) -> None:
        if self._missing:
            value = self._missing.pop(0)
            if self._group.alive and value not in self._layers:
                self._add(value)
        if self._missing:
            self._timer.start()
        else:
            self.grown.emit()

    def _add(self, value: int) -> ClassLayer:
        group = self._group
        combined = group.combined
        layer = ClassLayer(
            group,
            group.store.view(value),
            name=looks.layer_name(group.image.name, group.classes[value].name),
            opacity=combined.opacity,
            visible=value not in group.hidden,
            colormap=looks.colormap(group.classes, [value]),
            features=_names(group.classes, value),
            **placement(group.image, combined.ndim),
        )
        set_mark(layer, image=key_of(group.image), role="class", value=value)
        layer.selected_label = value
        layer.brush_size = combined.brush_size
        layer.contour = combined.contour
        below = [other for v, other in self._layers.items() if v < value]
        self._layers[value] = layer
        with group.silently():
            insert_above(group.viewer, group.image, layer, above=below)
        self.added.emit(layer)
        return layer


def _names(classes: Sequence[ClassSpec], value: int) -> dict[str, NDArray[Any]]:
    name = classes[value].name
    return looks.features([(0, f"not {name}"), (value, name)])
