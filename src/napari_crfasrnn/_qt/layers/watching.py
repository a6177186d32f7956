"""What others do to the layers of an image, taken in, or refused in a sentence: people, napari, scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_crfasrnn._qt.layers.class_layers import ClassLayer
from napari_crfasrnn._qt.layers.drawing import box_of
from napari_crfasrnn._qt.layers.images import are_same, level_0, placement
from napari_crfasrnn._qt.layers.painted import PaintedLabels
from napari_crfasrnn._qt.layers.store import ClassView
from napari_crfasrnn.classes import ignore_value
from napari_crfasrnn.edits import as_labels

if TYPE_CHECKING:
    from napari_crfasrnn._qt.layers.group import LabelGroup

_PLACES = ("scale", "translate", "rotate", "shear", "affine", "units")


class GroupWatch:
    """Listens to the label layers of an image, to the image, and to the list of layers.

    Parameters
    ----------
    group
        The layers, which are kept in step.
    """

    def __init__(self, group: LabelGroup) -> None:
        self._group = group
        self._point = self._sliced_at()
        self._shape = self._image_shape()
        self._pixels = level_0(group.image)
        self._chosen = int(group.combined.selected_label)  # a class, or unlabelled
        for layer in group.label_layers:
            self._watch(layer)
        group.class_layers.added.connect(self._on_class_layer_added)
        group.class_layers.removed.connect(self._on_class_layer_removed)
        group.viewer.layers.events.removed.connect(self._on_removed)
        for name in _PLACES:
            getattr(group.image.events, name).connect(self._on_moved)
        group.extras.switched.connect(self._on_extra_switched)
        group.image.events.name.connect(self._on_renamed)
        group.image.events.data.connect(self._on_image_data)

    def close(self) -> None:
        """Listen no more."""
        group = self._group
        for layer in group.label_layers:
            self._watch(layer, False)
        group.viewer.layers.events.removed.disconnect(self._on_removed)
        for name in _PLACES:
            getattr(group.image.events, name).disconnect(self._on_moved)
        group.extras.switched.disconnect(self._on_extra_switched)
        group.image.events.name.disconnect(self._on_renamed)
        group.image.events.data.disconnect(self._on_image_data)

    def _watch(self, layer: Any, watch: bool = True) -> None:
        events = layer.events
        if isinstance(layer, ClassLayer):
            on_change, on_data = self._on_class_layer, self._on_class_data
            pairs = [(events.visible, self._on_visible)]
        else:
            on_change, on_data, pairs = self._on_combined, self._on_combined_data, []
        pairs += [(emitter, on_change) for emitter in (events.paint, events.set_data, events.labels_update)]
        pairs += [(events.data, on_data), (events.selected_label, self._on_selected_label)]
        for emitter, callback in pairs:
            (emitter.connect if watch else emitter.disconnect)(callback)
        if isinstance(layer, PaintedLabels):
            group = self._group
            for signal, then in (
                (layer.stroke_begun, group.begin_stroke),
                (layer.covered, self._on_covered),
                (layer.stroke_ended, group.end_stroke),
                (layer.stroke_aborted, group.abort_stroke),
            ):
                (signal.connect if watch else signal.disconnect)(then)

    def _on_covered(self, part: Any, mask: Any, value: int) -> None:
        # Were `emit` itself connected, psygnal would call it with numbers to find out how many it takes.
        self._group.covered.emit(part, mask, value)

    def _on_class_layer_added(self, layer: ClassLayer) -> None:
        self._watch(layer)
        self._group.color_combined()

    def _on_class_layer_removed(self, layer: ClassLayer) -> None:
        self._watch(layer, False)

    def _on_combined(self, event: Any) -> None:
        group = self._group
        if group.is_quiet:
            return
        if event.type == "set_data" and self._point != (point := self._sliced_at()):
            self._point = point  # another slice is shown, nothing else
            return
        if event.type != "paint":  # what was painted is told by "labels_update"
            painted = event.type == "labels_update"
            group.schedule_redraw(box_of(group.viewer, event) if painted else None)
        if event.type != "labels_update":
            group.changed.emit()

    def _sliced_at(self) -> tuple[Any, ...]:
        dims = self._group.viewer.dims
        return dims.point, dims.order, dims.ndisplay

    def _on_combined_data(self, event: Any) -> None:
        """Take an array that a script put into the combined layer, if it fits."""
        group = self._group
        if group.is_quiet or group.combined.data is group.store.array:
            return
        try:
            labels = self._checked(group.combined.data)
        except (ValueError, TypeError) as error:
            with group.silently():
                group.combined.data = group.store.array
            group.refused.emit(str(error))
            return
        group.store.drop_pending()
        group.store.array = labels
        if group.combined.data is not labels:
            with group.silently():
                group.combined.data = labels
        group.schedule_redraw()
        group.changed.emit()

    def _checked(self, given: Any) -> NDArray[Any]:
        group = self._group
        if given.shape != group.labels.shape:
            raise ValueError(
                f"{group.combined.name!r} must keep its shape {group.labels.shape}, got "
                f"{given.shape}: the labels are as they were"
            )
        labels = as_labels(np.asarray(given), len(group.classes))
        if labels.dtype != group.labels.dtype or not labels.flags.writeable:
            labels = labels.astype(group.labels.dtype)
        return labels

    def _on_class_layer(self, event: Any) -> None:
        group = self._group
        if group.is_quiet or not group.store.has_pending:
            return
        # A stroke is taken when it ends: napari then says "paint".
        if event.type == "paint" or not event.source.in_stroke:
            group.commit()

    def _on_class_data(self, event: Any) -> None:
        """Write an array that a script put into a class layer through to the truth."""
        group = self._group
        layer = event.source
        if group.is_quiet or isinstance(layer.data, ClassView):
            return
        given = np.asarray(layer.data)
        view = group.store.view(layer.value)
        with group.silently():
            layer.data = view
        if given.shape != view.shape:
            group.refused.emit(
                f"{layer.name!r} must keep its shape {view.shape}, got {given.shape}: "
                "the labels are as they were"
            )
            return
        view[...] = np.where(given == 0, 0, layer.value)
        group.flush()

    def _on_selected_label(self, event: Any) -> None:
        """Let nobody paint with a value that is no class, such as napari's "new label"."""
        group = self._group
        layer = event.source
        value, last, ignore = (
            int(layer.selected_label),
            len(group.classes) - 1,
            ignore_value(group.labels.dtype),
        )
        if value <= last or value == ignore:
            if layer is group.combined:
                self._chosen = value
            return
        before = layer.value if isinstance(layer, ClassLayer) else self._chosen
        if before > last and before != ignore:  # a class that went
            before = last
        layer.selected_label = before
        name = "nothing" if before == ignore else group.classes[before].name
        group.refused.emit(f"There is no class {value}: add one first. The brush still paints {name}.")

    def _on_visible(self, event: Any) -> None:
        group = self._group
        layer = event.source
        if not group.is_quiet:
            group.extras.let_be(layer)
            (group.hidden.discard if layer.visible else group.hidden.add)(layer.value)
            group.visibility_changed.emit()

    def _on_extra_switched(self, role: str) -> None:
        group = self._group
        if group.is_quiet:
            return
        with group.silently():
            group.extras.follow_eye(role, group.label_layers)
        group.visibility_changed.emit()

    def _on_removed(self, event: Any) -> None:
        group = self._group
        layer = event.value
        if group.is_quiet:
            return
        with group.silently():
            role = group.extras.forget(layer)
        if role is None:
            role = self._role_of(layer)
        if role is not None:
            group.lost.emit(role, layer.name)

    def _role_of(self, removed: Any) -> str | None:
        group = self._group
        if group.class_layers.forget(removed):
            group.color_combined()
            return "class"
        return "labels" if removed is group.combined else "image" if removed is group.image else None

    def _on_moved(self, event: Any) -> None:
        group = self._group
        for layer in group.outputs:
            setattr(layer, event.type, placement(group.image, layer.ndim)[event.type])
        group.described.emit()

    def _on_image_data(self) -> None:
        group = self._group
        if self._image_shape() != self._shape:  # nobody knows where the labels would be in this one
            group.lost.emit("shape", group.image.name)
        elif not are_same(self._pixels, level_0(group.image)):
            group.lost.emit("pixels", group.image.name)

    def _image_shape(self) -> tuple[int, ...]:
        """Return the axes of the image that its labels have, too."""
        image, n_axes = self._group.image, self._group.labels.ndim
        shape: tuple[int, ...] = level_0(image).shape
        return (shape[:-1] if image.rgb else shape)[-n_axes:]

    def _on_renamed(self) -> None:
        group = self._group
        group.dress()
        group.extras.rename()
        group.described.emit()
