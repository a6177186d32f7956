"""The label layers of one image: one combined layer that holds the truth, and one layer per class.

The class layers show live views of the combined array (`ClassView`), so both sides are in step at any
moment, whoever paints, undoes or writes to ``layer.data``. What is left to do here is to draw again what
changed, and to take what was painted into a class layer into the undo history of the combined layer, so
that one undo takes back one stroke, wherever it was made.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels
from numpy.typing import NDArray
from psygnal import Signal
from qtpy.QtCore import QTimer

from napari_crfasrnn._qt.layers import looks
from napari_crfasrnn._qt.layers.class_layer import ClassLayer
from napari_crfasrnn._qt.layers.extras import UNCERTAINTY, ExtraLayers
from napari_crfasrnn._qt.layers.images import insert_above, key_of, mark_of, placement, set_mark
from napari_crfasrnn._qt.layers.store import ClassView, LabelStore
from napari_crfasrnn.classes import ClassSpec, ignore_value
from napari_crfasrnn.edits import as_labels

if TYPE_CHECKING:
    from napari.components import ViewerModel

PAINTING_MODES = ("paint", "erase", "fill", "polygon")
MIN_REDRAW_MS = 15  # of the other layers, while a stroke goes on: more often than the screen needs no one


class LabelGroup:
    """The output layers of one image layer.

    Parameters
    ----------
    viewer
        Where the layers are.
    image
        The image layer that they lie on.
    labels
        ``[*stack, H, W]`` uint8 or uint16; held by the combined layer as it is.
    classes
        The class table.
    per_class
        Whether there is a layer for each class that is present, or the combined layer alone.
    """

    changed = Signal()  # labels may have changed; compare to know
    visibility_changed = Signal()
    added = Signal(object)  # a class layer
    lost = Signal(str, str)  # role and name of a layer that a person removed
    grown = Signal()  # every class that is present has its layer
    refused = Signal(str)  # why something that was written to a layer was not taken

    def __init__(
        self,
        viewer: ViewerModel,
        image: Any,
        labels: NDArray[Any],
        classes: Sequence[ClassSpec],
        *,
        per_class: bool = True,
    ) -> None:
        self.viewer = viewer
        self.image = image
        self.classes = tuple(classes)
        self.store = LabelStore(labels, self._on_view_written)
        self.per_class = per_class
        self.hidden: set[int] = {0}
        self._class_layers: dict[int, ClassLayer] = {}
        self._extras = ExtraLayers(viewer, image)
        self._quiet = 0  # above 0 while we change layers ourselves
        self._stale = False  # the combined layer is not drawn as it is
        self._redraw_timer = QTimer()
        self._redraw_timer.setSingleShot(True)
        self._redraw_timer.timeout.connect(self.redraw)
        self._redraw_ms = 0.0
        self._present: set[int] = set()
        self._missing: list[int] = []  # classes whose layers are still to come
        self._grow_timer = QTimer()
        self._grow_timer.setSingleShot(True)
        self._grow_timer.setInterval(0)
        self._grow_timer.timeout.connect(self._grow)
        self.combined = self._find_combined() or self._add_combined()
        found = self._take_over_class_layers()
        self._connect()
        self._dress()
        self.show_present(found)

    # --- what a caller does -------------------------------------------------------------------------

    @property
    def key(self) -> str:
        """What identifies the image layer."""
        return key_of(self.image)

    @property
    def labels(self) -> NDArray[Any]:
        """The truth, ``[*stack, H, W]``; not to be written to."""
        return self.store.array

    @property
    def class_layers(self) -> dict[int, ClassLayer]:
        """The layer of each class that has one."""
        return dict(self._class_layers)

    @property
    def outputs(self) -> list[Any]:
        """Every layer that belongs to the image, as far as it is in the viewer."""
        ours = [*self._class_layers.values(), self.combined, *self._extras.layers.values()]
        return [layer for layer in ours if layer in self.viewer.layers]

    def write(self, labels: NDArray[Any], index: tuple[int, ...] = ()) -> int:
        """Replace the labels of a plane or of everything, as one undo step; return how many changed."""
        self.flush()
        places = np.nonzero(self.labels[index] != labels)
        if not places[0].size:
            return 0
        n_lead = len(index)
        lead = tuple(np.full(places[0].size, i, dtype=np.intp) for i in index[:n_lead])
        with self.combined.block_history():
            self.combined.data_setitem((*lead, *places), labels[places], refresh=False)
        self._stale = True
        self._redraw_timer.start(0)
        return int(places[0].size)

    def replace(self, labels: NDArray[Any], classes: Sequence[ClassSpec]) -> None:
        """Take labels of another class table. Earlier strokes cannot be undone past this."""
        self.flush()
        self.classes = tuple(classes)
        shown = [value for value in self._class_layers if value < len(classes)]
        with self._silently():
            self._remove(self._class_layers.values())
            self._class_layers.clear()
            self.store.array = labels
            self.combined.data = labels
            self.combined._reset_history()  # its items hold values of the old table
        self._dress()
        self.show_present(shown)
        self.changed.emit()

    def restyle(self, classes: Sequence[ClassSpec]) -> None:
        """Take new names and colours of the same classes, or classes added at the end."""
        self.classes = tuple(classes)
        for value, layer in self._class_layers.items():
            layer.name = looks.layer_name(self.image.name, self.classes[value].name)
        self._dress()

    def flush(self) -> None:
        """Take what was written to class layers into the undo history, unless a stroke still goes on."""
        if not any(_in_stroke(layer) for layer in self._class_layers.values()):
            self._commit()

    def _commit(self) -> None:
        writes = self.store.take_pending()
        if writes is None:
            return
        with self._silently(), self.combined.block_history():
            self.combined.data_setitem(*writes, refresh=False)
        self._stale = True
        self._redraw_timer.start(0)
        self.changed.emit()

    def set_per_class(self, per_class: bool) -> None:
        """Show a layer per class, or the combined layer alone."""
        if per_class == self.per_class:
            return
        self.flush()
        self.per_class = per_class
        if per_class:
            self.show_present(self._present)
            return
        active = self.viewer.layers.selection.active
        with self._silently():
            self._remove(self._class_layers.values())
        if active in self._class_layers.values():
            self._hand_brush(active, self.combined)
            self.viewer.layers.selection.active = self.combined
        self._class_layers.clear()
        self._stop_growing()
        self._dress()

    def show_present(self, values: Iterable[int]) -> None:
        """Add a layer for each class that is present and has none, where classes have layers.

        napari takes its time to add a layer, so they come one at a time, with the window alive between
        them; until then the combined layer draws their classes. `grown` says when all are there.
        """
        self._present = {value for value in values if 0 < value < len(self.classes)}
        if not self.per_class or not self.alive:
            return
        self._missing = sorted(self._present - set(self._class_layers))
        if self._missing:
            self._grow_timer.start()

    def _grow(self) -> None:
        if self._missing and self.per_class and self.alive:
            value = self._missing.pop(0)
            if value < len(self.classes) and value not in self._class_layers:
                self._add_class_layer(value)
        if self._missing:
            self._grow_timer.start()
        else:
            self.grown.emit()

    def _stop_growing(self) -> None:
        self._grow_timer.stop()
        if self._missing:
            self._missing.clear()
            self.grown.emit()  # somebody may wait for it

    @property
    def growing(self) -> bool:
        """Whether layers are still to come."""
        return bool(self._missing)

    def grow_now(self) -> None:
        """Add the layers that are still to come."""
        while self._missing:
            self._grow()

    def set_visible(self, value: int, visible: bool) -> None:
        """Show or hide a class."""
        (self.hidden.discard if visible else self.hidden.add)(value)
        layer = self._class_layers.get(value)
        if layer is not None and layer.visible != visible:
            with self._silently():
                layer.visible = visible
        self._dress()
        self.visibility_changed.emit()

    def paint_with(self, value: int) -> Any:
        """Select the layer to paint a class in, with its label and a brush; return the layer."""
        target = self.combined
        if self.per_class and 0 < value < len(self.classes):
            if value not in self._class_layers:
                self._add_class_layer(value)
            target = self._class_layers[value]
        active = self.viewer.layers.selection.active
        if value in self.hidden and value:
            self.set_visible(value, True)
        if not target.visible:
            target.visible = True
        if active in (self.combined, *self._class_layers.values()):
            self._hand_brush(active, target)
        if str(target.mode) not in PAINTING_MODES or str(target.mode) == "erase":
            target.mode = "paint"
        target.selected_label = value
        self.viewer.layers.selection.active = target
        return target

    def set_contour(self, width: int) -> None:
        """Draw outlines of this width in pixels; 0 fills the regions."""
        for layer in (self.combined, *self._class_layers.values()):
            layer.contour = width

    def show_uncertainty(self, entropy: NDArray[np.float32] | None) -> None:
        """Show an uncertainty layer with values 0..1, or remove it."""
        with self._silently():
            self._extras.show_uncertainty(entropy, self.outputs)

    def show_before(self, labels: NDArray[Any] | None) -> None:
        """Show the labels as they were before the CRF instead of the others, or show those again."""
        colors = looks.colormap(self.classes, self._shown())
        with self._silently():
            self._extras.show_before(labels, colors, [self.combined, *self._class_layers.values()])

    @property
    def has_uncertainty(self) -> bool:
        """Whether the uncertainty layer is there."""
        return UNCERTAINTY in self._extras.layers

    @property
    def alive(self) -> bool:
        """Whether the combined layer is still in the viewer."""
        return self.combined in self.viewer.layers

    def redraw(self) -> None:
        """Draw again what is stale."""
        start = time.perf_counter()
        with self._silently():
            if self._stale:
                self.combined.refresh(extent=False, highlight=False)
                self._stale = False
            for layer in self._class_layers.values():
                layer.refresh(extent=False, highlight=False)
        self._redraw_ms = 1000 * (time.perf_counter() - start)

    def close(self, *, remove: bool = False) -> None:
        """Stop watching the layers, and remove them if asked to."""
        self._redraw_timer.stop()
        self._stop_growing()
        self._disconnect()
        if remove:
            self._remove(self.outputs)
        self._class_layers.clear()
        self._extras.layers.clear()

    # --- layers -------------------------------------------------------------------------------------

    def _find_combined(self) -> Any | None:
        for layer in self.viewer.layers:
            mark = mark_of(layer)
            if mark.get("image") != self.key or isinstance(layer, ClassLayer):
                continue
            if mark.get("role") == "labels" and layer.data.shape == self.labels.shape:
                self.store.array = layer.data
                return layer
        return None

    def _take_over_class_layers(self) -> list[int]:
        """Remove the class layers that an earlier group left, and return their values."""
        left = [layer for layer in self.viewer.layers if mark_of(layer).get("image") == self.key]
        left = [layer for layer in left if mark_of(layer).get("role") == "class"]
        self.hidden |= {mark_of(layer)["value"] for layer in left if not layer.visible}
        with self._silently():
            self._remove(left)
        return [mark_of(layer)["value"] for layer in left]

    def _add_combined(self) -> Any:
        name = looks.layer_name(self.image.name, "labels")
        layer = Labels(self.labels, name=name, opacity=0.6, **placement(self.image, self.labels.ndim))
        set_mark(layer, image=self.key, role="labels")
        insert_above(self.viewer, self.image, layer)
        return layer

    def _add_class_layer(self, value: int) -> None:
        layer = ClassLayer(
            self,
            self.store.view(value),
            name=looks.layer_name(self.image.name, self.classes[value].name),
            opacity=self.combined.opacity,
            visible=value not in self.hidden,
            colormap=looks.colormap(self.classes, [value]),
            features=self._names_in_class_layer(value),
            **placement(self.image, self.labels.ndim),
        )
        set_mark(layer, image=self.key, role="class", value=value)
        layer.selected_label = value
        layer.brush_size = self.combined.brush_size
        layer.contour = self.combined.contour
        below = [other for v, other in self._class_layers.items() if v < value]
        with self._silently():
            insert_above(self.viewer, self.image, layer, above=below)
            self._class_layers[value] = layer
            self._color_combined()
        for name in ("paint", "labels_update", "set_data"):
            getattr(layer.events, name).connect(self._on_class_layer)
        layer.events.data.connect(self._on_class_data)
        layer.events.visible.connect(self._on_visible)
        layer.events.selected_label.connect(self._on_selected_label)
        self.added.emit(layer)

    def _remove(self, layers: Iterable[Any]) -> None:
        for layer in list(layers):
            if layer in self.viewer.layers:
                layer.locked = False
                self.viewer.layers.remove(layer)

    def _dress(self) -> None:
        """Give every layer its colours and the names for the status bar."""
        ignore = (ignore_value(self.labels.dtype), "unlabelled")
        with self._silently():  # a colour is no edit
            self._color_combined()
            self.combined.features = looks.features([*enumerate(c.name for c in self.classes), ignore])
            for value, layer in self._class_layers.items():
                layer.colormap = looks.colormap(self.classes, [value])
                layer.features = self._names_in_class_layer(value)

    def _color_combined(self) -> None:
        """Let the combined layer draw what no class layer draws."""
        self.combined.colormap = looks.colormap(self.classes, self._shown() - set(self._class_layers))

    def _names_in_class_layer(self, value: int) -> dict[str, NDArray[Any]]:
        name = self.classes[value].name
        return looks.features([(0, f"not {name}"), (value, name)])

    def _shown(self) -> set[int]:
        return set(range(len(self.classes))) - self.hidden

    def _hand_brush(self, source: Any, target: Any) -> None:
        """Let a person go on with the brush they have."""
        if source is target:
            return
        target.brush_size = source.brush_size
        target.n_edit_dimensions = source.n_edit_dimensions
        target.contiguous = source.contiguous
        if str(source.mode) in PAINTING_MODES:
            target.mode = source.mode

    # --- events -------------------------------------------------------------------------------------

    def _connect(self) -> None:
        events = self.combined.events
        events.paint.connect(self._on_combined)
        events.set_data.connect(self._on_combined)
        events.labels_update.connect(self._on_combined)
        events.data.connect(self._on_combined_data)
        events.selected_label.connect(self._on_selected_label)
        self.viewer.layers.events.removed.connect(self._on_removed)
        for name in ("scale", "translate", "rotate", "shear", "affine"):
            getattr(self.image.events, name).connect(self._on_moved)
        self.image.events.name.connect(self._on_renamed)

    def _disconnect(self) -> None:
        events = self.combined.events
        for emitter in (events.paint, events.set_data, events.labels_update):
            emitter.disconnect(self._on_combined)
        events.data.disconnect(self._on_combined_data)
        events.selected_label.disconnect(self._on_selected_label)
        self.viewer.layers.events.removed.disconnect(self._on_removed)
        for name in ("scale", "translate", "rotate", "shear", "affine"):
            getattr(self.image.events, name).disconnect(self._on_moved)
        self.image.events.name.disconnect(self._on_renamed)
        for layer in self._class_layers.values():
            for emitter in (layer.events.paint, layer.events.labels_update, layer.events.set_data):
                emitter.disconnect(self._on_class_layer)
            layer.events.data.disconnect(self._on_class_data)
            layer.events.visible.disconnect(self._on_visible)
            layer.events.selected_label.disconnect(self._on_selected_label)

    @contextmanager
    def _silently(self) -> Iterator[None]:
        self._quiet += 1
        try:
            yield
        finally:
            self._quiet -= 1

    def _schedule_redraw(self) -> None:
        # A redraw may cost more than the screen needs: leave three quarters of the time to the brush.
        if not self._redraw_timer.isActive():
            self._redraw_timer.start(max(MIN_REDRAW_MS, int(3 * self._redraw_ms)))

    def _on_view_written(self) -> None:
        self._stale = True
        self._schedule_redraw()

    def _on_combined(self, event: Any) -> None:
        if self._quiet:
            return
        self._schedule_redraw()
        if event.type != "labels_update":
            self.changed.emit()

    def _on_combined_data(self) -> None:
        """Take an array that a script put into the combined layer, if it fits."""
        if self._quiet or self.combined.data is self.store.array:
            return
        given = self.combined.data
        try:
            if given.shape != self.labels.shape:
                raise ValueError(
                    f"{self.combined.name!r} must keep its shape {self.labels.shape}, got {given.shape}: "
                    "the labels are as they were"
                )
            labels = as_labels(np.asarray(given), len(self.classes))
        except (ValueError, TypeError) as error:
            with self._silently():
                self.combined.data = self.store.array
            self.refused.emit(str(error))
            return
        self.store.drop_pending()
        if labels.dtype != self.store.array.dtype or not labels.flags.writeable:
            labels = labels.astype(self.store.array.dtype)
        self.store.array = labels
        if self.combined.data is not labels:
            with self._silently():
                self.combined.data = labels
        self._schedule_redraw()
        self.changed.emit()

    def _on_class_layer(self, event: Any) -> None:
        if self._quiet or not self.store.has_pending:
            return
        # A stroke is taken when it ends: napari then says "paint".
        if event.type == "paint" or not _in_stroke(event.source):
            self._commit()

    def _on_class_data(self, event: Any) -> None:
        """Write an array that a script put into a class layer through to the truth."""
        layer = event.source
        if self._quiet or isinstance(layer.data, ClassView):
            return
        given = np.asarray(layer.data)
        view = self.store.view(layer.value)
        with self._silently():
            layer.data = view
        if given.shape != view.shape:
            self.refused.emit(
                f"{layer.name!r} must keep its shape {view.shape}, got {given.shape}: "
                "the labels are as they were"
            )
            return
        view[...] = np.where(given == 0, 0, layer.value)
        self.flush()

    def _on_selected_label(self, event: Any) -> None:
        """Let nobody paint with a value that is no class, such as napari's "new label"."""
        layer = event.source
        value, last = int(layer.selected_label), len(self.classes) - 1
        if value > last and value != ignore_value(self.labels.dtype):
            layer.selected_label = getattr(layer, "value", last)
            self.refused.emit(f"There is no class {value}: add one first.")

    def _on_visible(self, event: Any) -> None:
        if self._quiet:
            return
        layer = event.source
        (self.hidden.discard if layer.visible else self.hidden.add)(layer.value)
        self.visibility_changed.emit()

    def _on_removed(self, event: Any) -> None:
        layer = event.value
        if self._quiet:
            return
        for value, other in list(self._class_layers.items()):
            if other is layer:
                del self._class_layers[value]
                self._dress()
                self.lost.emit("class", layer.name)
        role = self._extras.forget(layer)
        if role is not None:
            with self._silently():
                self._extras.unhide()
            self.lost.emit(role, layer.name)
        if layer is self.combined:
            self.lost.emit("labels", layer.name)
        elif layer is self.image:
            self.lost.emit("image", layer.name)

    def _on_moved(self, event: Any) -> None:
        for layer in self.outputs:
            setattr(layer, event.type, placement(self.image, layer.ndim)[event.type])

    def _on_renamed(self) -> None:
        names = {value: self.classes[value].name for value in self._class_layers}
        for value, layer in self._class_layers.items():
            layer.name = looks.layer_name(self.image.name, names[value])
        self.combined.name = looks.layer_name(self.image.name, "labels")
        self._extras.rename()


def _in_stroke(layer: Any) -> bool:
    return bool(getattr(layer, "_block_history", False))
