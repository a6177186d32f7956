"""The label layers of one image: one combined layer that holds the truth, and one layer per class.

The class layers show live views of the combined array (`ClassView`), so both sides are in step at any
moment, whoever paints, undoes or writes to ``layer.data``. What is left to do here is to draw again what
changed, and to take what was painted into a class layer into the undo history of the combined layer, so
that one undo takes back one stroke, wherever it was made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from psygnal import Signal
from qtpy.QtCore import QTimer

from napari_crfasrnn._qt.layers import looks
from napari_crfasrnn._qt.layers.class_layers import ClassLayers
from napari_crfasrnn._qt.layers.drawing import Box, Drawing, shows_planes, united
from napari_crfasrnn._qt.layers.extras import ExtraLayers
from napari_crfasrnn._qt.layers.images import (
    insert_above,
    key_of,
    mark_of,
    placement,
    remove_layers,
    set_mark,
)
from napari_crfasrnn._qt.layers.painted import PaintedLabels
from napari_crfasrnn._qt.layers.store import LabelStore
from napari_crfasrnn._qt.layers.watching import GroupWatch
from napari_crfasrnn.classes import ClassSpec, ignore_value
from napari_crfasrnn.edits import places_in

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from napari_crfasrnn._qt.state.planes import KnownPlanes

_BRUSH_SHARE = 0.01  # of the longer side of an image: the brush of a large one can be seen
_BRUSH_LIMIT = 0.1  # of the shorter side
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
        ``[*stack, H, W]`` uint8 or uint16; held by the combined layer as it is. If the combined layer of an
        earlier group is there, it and its labels are taken instead.
    classes
        The class table.
    per_class
        Whether there is a layer for each class that is present, or the combined layer alone.

    Attributes
    ----------
    combined
        The layer of all classes, which owns the undo history.
    class_layers
        The layers of single classes.
    hidden
        Values of classes that are not shown.
    """

    changed = Signal()  # labels may have changed; compare to know
    visibility_changed = Signal()
    lost = Signal(str, str)  # role and name of a layer that a person removed
    covered = Signal(object, object, int)  # slices of the labels, a mask of them, and what was painted there
    claimed = Signal(object, object)  # slices and a mask: painted as they were, and edited because of that
    stroke_ended = Signal(object)  # its step of the undo history; None if it changed no label
    stroke_aborted = Signal()
    described = Signal()  # the image has another name, or lies elsewhere
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
        self.hidden: set[int] = {0}
        self.store = LabelStore(labels, self._on_view_written)
        self.class_layers = ClassLayers(self, per_class)
        self.extras = ExtraLayers(viewer, image)
        self._quiet = 0  # above 0 while we change layers ourselves
        self._stale = False  # no layer is drawn as it is
        self._stale_part: Box | None = None  # of the plane that is shown, in any layer
        self._redraw_timer = QTimer()
        self._redraw_timer.setSingleShot(True)
        self._redraw_timer.timeout.connect(self.redraw)
        self._redraw_ms = 0.0
        self._stroke: tuple[Any, object] | None = None  # the layer, and the newest step before it
        self.combined = self._find_combined() or self._add_combined()
        self._watch = GroupWatch(self)
        self.drawing = Drawing(self)
        self.hidden |= self.class_layers.take_over()
        self.dress()

    # --- what there is ------------------------------------------------------------------------------

    @property
    def key(self) -> str:
        """What identifies the image layer."""
        return key_of(self.image)

    @property
    def labels(self) -> NDArray[Any]:
        """The truth, ``[*stack, H, W]``; not to be written to."""
        return self.store.array

    @property
    def label_layers(self) -> list[Any]:
        """The combined layer and the class layers."""
        return [self.combined, *self.class_layers]

    @property
    def outputs(self) -> list[Any]:
        """Every layer that belongs to the image, as far as it is in the viewer."""
        ours = [*self.class_layers, self.combined, *self.extras.layers.values()]
        return [layer for layer in ours if layer in self.viewer.layers]

    @property
    def alive(self) -> bool:
        """Whether the combined layer is still in the viewer."""
        return self.combined in self.viewer.layers

    @property
    def is_quiet(self) -> bool:
        """Whether layers are changed by this program just now."""
        return self._quiet > 0

    # --- labels -------------------------------------------------------------------------------------

    def write(self, labels: NDArray[Any], index: tuple[int, ...] = ()) -> int:
        """Replace the labels of a plane or of everything, as one undo step; return how many changed."""
        self.flush()
        changed = self.labels[index] != labels
        if changed.any():
            self._set((*index, *(slice(0, size) for size in changed.shape)), labels, changed)
            self._draw_soon()
        return int(np.count_nonzero(changed))

    def write_part(
        self, index: tuple[int, ...], corner: tuple[int, int], labels: NDArray[Any], where: NDArray[np.bool_]
    ) -> object | None:
        """Replace some labels of a part of a plane; return the undo step."""
        self.flush()
        (y, x), (height, width) = corner, where.shape
        with self.silently():
            self._set((*index, slice(y, y + height), slice(x, x + width)), labels, where)
        self.schedule_redraw((y, x, y + height, x + width))
        self.changed.emit()
        return self.newest_step()

    def _set(self, box: tuple[int | slice, ...], labels: NDArray[Any], where: NDArray[np.bool_]) -> None:
        """Replace some labels of a box, as one undo step."""
        key = places_in(box, where, self.labels.itemsize)
        with self.combined.block_history():  # told when it is written, in a step of its own
            if isinstance(key[-1], np.ndarray):
                self.combined.data_setitem(key, labels[where], refresh=False)
                return
            before = self.labels[key].copy()  # napari's history takes whatever indexes an array
            after = np.where(where, labels, before)
            self.combined._save_history((key, before, after))
            self.labels[key] = after

    def flush(self) -> None:
        """Take what was written to class layers into the undo history, unless a stroke still goes on."""
        if not any(layer.in_stroke for layer in self.class_layers):
            self.commit()

    def undo(self) -> None:
        """Take back the last stroke, or what was written last."""
        self.flush()
        self.combined.undo()

    def redo(self) -> None:
        """Do again what was undone last."""
        self.flush()
        self.combined.redo()

    def add_step(self) -> object:
        """Add an undo step that changes no label; `find_undone` tells when it is taken back."""
        self.flush()
        nowhere = np.zeros(0, np.intp)
        step = ((nowhere,) * self.labels.ndim, self.labels[:0].ravel(), self.labels[:0].ravel())
        with self.silently():  # not among the parts of a stroke, even of one that is just ending
            self.combined._redo_history.clear()
            self.combined._append_to_undo_history([step])
        return step

    def newest_step(self) -> object | None:
        """Return the undo step that would be taken back next, as `find_undone` knows it."""
        history = self.combined._undo_history
        return history[-1][0] if history else None

    def find_undone(self) -> Callable[[object], bool | None]:
        """Return what says, now, whether an undo step was taken back; None where the history forgot it."""
        combined = self.combined
        undone = {id(part): False for item in combined._undo_history for part in item}
        undone.update((id(part), True) for item in combined._redo_history for part in item)
        return lambda step: undone.get(id(step))

    def begin_stroke(self, layer: Any) -> None:
        """Note that something is about to be painted in one of the label layers."""
        if self._stroke is None or self._stroke[0] is not layer:
            self._stroke = layer, self.newest_step()

    def end_stroke(self, layer: Any) -> None:
        """Tell of the end of what was painted in a label layer."""
        if self._stroke is None or self._stroke[0] is not layer:
            return
        before, self._stroke = self._stroke[1], None
        self.commit()
        step = self.newest_step()
        self.stroke_ended.emit(None if step is before else step)

    def abort_stroke(self, layer: Any) -> None:
        """Tell that what was being painted is gone again."""
        self._stroke = None
        self.stroke_aborted.emit()

    def replace(self, labels: NDArray[Any], classes: Sequence[ClassSpec]) -> None:
        """Take labels of another class table. Earlier strokes cannot be undone past this.

        Class layers are removed; they come again with `ClassLayers.show_present`.
        """
        self.flush()
        self.classes = tuple(classes)
        self.class_layers.clear()
        with self.silently():
            self.store.array = labels
            self.combined.data = labels
            self.combined._reset_history()  # its items hold values of the old table
        self.dress()
        self.changed.emit()

    def commit(self) -> None:
        """Take what was written to class layers into the undo history."""
        writes = self.store.take_pending()
        if writes is None:
            return
        with self.silently(), self.combined.block_history():
            self.combined.data_setitem(*writes, refresh=False)
        self.changed.emit()

    # --- looks --------------------------------------------------------------------------------------

    def restyle(self, classes: Sequence[ClassSpec]) -> None:
        """Take new names and colours of the same classes, or classes added at the end."""
        self.classes = tuple(classes)
        self.dress()

    def set_per_class(self, per_class: bool) -> None:
        """Show a layer per class, or the combined layer alone."""
        if per_class == self.class_layers.enabled:
            return
        self.flush()
        if not per_class:
            self.leave_class_layers()
        self.class_layers.set_enabled(per_class)
        self.dress()

    def leave_class_layers(self) -> str | None:
        """Go on in the combined layer, with the same brush, where a class layer is selected.

        Returns the name of its class; `return_to` goes back there.
        """
        active = self.viewer.layers.selection.active
        if active not in self.class_layers:
            return None
        _hand_brush(active, self.combined)
        self.combined.selected_label, self.combined.mode = active.value, active.mode
        self.viewer.layers.selection.active = self.combined
        return str(self.classes[active.value].name)

    def return_to(self, name: str | None) -> None:
        """Select the layer of a class again, whatever its value is now; None: of none.

        Where the class is gone, nothing is painted with any more.
        """
        if name is None:
            return
        value = next((value for value, spec in enumerate(self.classes) if spec.name == name), None)
        if value is None:
            self.combined.mode = "pan_zoom"
        else:
            mode = self.combined.mode
            self.paint_with(value).mode = mode

    def set_visible(self, value: int, visible: bool) -> None:
        """Show or hide a class."""
        (self.hidden.discard if visible else self.hidden.add)(value)
        layer = self.class_layers.by_value.get(value)
        if layer is not None and layer.visible != visible:
            with self.silently():
                layer.visible = visible
        self.color_combined()
        self.visibility_changed.emit()

    def paint_with(self, value: int) -> Any:
        """Select the layer to paint a class in, with its label and a brush; return the layer."""
        target = self.combined
        if self.class_layers.enabled and 0 < value < len(self.classes):
            target = self.class_layers.get(value)
        if value in self.hidden and value:
            self.set_visible(value, True)
        if not target.visible:
            target.visible = True
        active = self.viewer.layers.selection.active
        if active in self.label_layers:
            _hand_brush(active, target)
        if str(target.mode) not in PAINTING_MODES or str(target.mode) == "erase":
            target.mode = "paint"
        target.selected_label = value
        self.viewer.layers.selection.active = target
        return target

    def set_contour(self, width: int) -> None:
        """Draw outlines of this width in pixels; 0 fills the regions."""
        for layer in self.label_layers:
            layer.contour = width

    def show_uncertainty(self, entropy: KnownPlanes | None) -> None:
        """Show an uncertainty layer with values 0..1, or hide it."""
        with self.silently():
            self.extras.show_uncertainty(entropy, self.outputs)

    def show_before(self, labels: KnownPlanes | None) -> None:
        """Show the labels as they were before the CRF instead of the others, or show those again."""
        colors = looks.colormap(self.classes, self._shown())
        with self.silently():
            self.extras.show_before(labels, colors, self.label_layers)

    def follow(self, entropy: KnownPlanes | None, before: KnownPlanes | None) -> None:
        """Show what is known by now in the layers that only show something, if they are shown."""
        with self.silently():
            self.extras.follow(entropy, before)

    def redraw(self) -> None:
        """Draw again what is stale."""
        start = time.perf_counter()
        part, self._stale_part = self._stale_part, None
        with self.silently():
            if self._stale:
                self._stale = False
                for layer in self.label_layers:
                    layer.refresh(extent=False, highlight=False)
            elif part is not None:
                self.drawing.draw(part, keep=True)
        self._redraw_ms = 1000 * (time.perf_counter() - start)

    @contextmanager
    def silently(self) -> Iterator[None]:
        """Change layers without taking it for something that a person did."""
        self._quiet += 1
        try:
            yield
        finally:
            self._quiet -= 1

    def dress(self) -> None:
        """Give every layer its name, its colours, and the names of the classes for the status bar."""
        ignore = (ignore_value(self.labels.dtype), "unlabelled")
        with self.silently():
            self.combined.name = looks.layer_name(self.image.name, "labels")
            self.combined.features = looks.features([*enumerate(c.name for c in self.classes), ignore])
            self.class_layers.dress(self.classes, self.image.name)
        self.color_combined()

    def color_combined(self) -> None:
        """Let the combined layer draw what no class layer draws, so that each class is drawn once."""
        with self.silently():
            looks.color_layer(self.combined, self.classes, self._shown() - set(self.class_layers.by_value))

    def _shown(self) -> set[int]:
        return set(range(len(self.classes))) - self.hidden

    def _draw_soon(self) -> None:
        self._stale = True
        self._redraw_timer.start(0)

    def schedule_redraw(self, part: Box | None = None) -> None:
        """Draw a part of the plane that is shown again soon, or all of it."""
        if part is None or not shows_planes(self.viewer):
            self._stale = True
        else:
            self._stale_part = united(self._stale_part, part)
        # A redraw may cost more than the screen needs: leave three quarters of the time to the brush.
        if not self._redraw_timer.isActive():
            self._redraw_timer.start(max(MIN_REDRAW_MS, int(3 * self._redraw_ms)))

    # --- coming and going ---------------------------------------------------------------------------

    def remove_layers(self, layers: Iterable[Any]) -> None:
        """Remove layers from the viewer."""
        with self.silently():
            remove_layers(self.viewer, layers)

    def close(self, *, remove: bool = False) -> None:
        """Stop watching the layers, and remove those that `let_go` gives."""
        self.remove_layers(self.let_go(remove=remove))

    def let_go(self, *, remove: bool) -> list[Any]:
        """Stop watching the layers; return those to be removed: all, or those that only show something."""
        self._redraw_timer.stop()
        self.class_layers.stop()
        self.drawing.close()
        self._watch.close()
        with self.silently():
            self.extras.close()
        return self.outputs if remove else list(self.extras.layers.values())

    def _find_combined(self) -> Any | None:
        found = [
            layer
            for layer in self.viewer.layers
            if mark_of(layer).get("image") == self.key
            and mark_of(layer).get("role") == "labels"
            and layer.data.shape == self.labels.shape
        ]
        name = looks.layer_name(self.image.name, "labels")
        found.sort(key=lambda layer: layer.name != name)  # a copy that somebody made has another name
        if found:
            self.store.array = found[0].data
        return found[0] if found else None

    def _add_combined(self) -> Any:
        name = looks.layer_name(self.image.name, "labels")
        layer = PaintedLabels(self.labels, name=name, opacity=0.6, **placement(self.image, self.labels.ndim))
        short, long = sorted(self.labels.shape[-2:])
        layer.brush_size = max(layer.brush_size, round(min(_BRUSH_SHARE * long, _BRUSH_LIMIT * short)))
        set_mark(layer, image=self.key, role="labels")
        insert_above(self.viewer, self.image, layer)
        return layer

    def _on_view_written(self, where: tuple[slice, ...]) -> None:
        (y0, y1), (x0, x1) = ((part.start, part.stop) for part in where[-2:])
        self.schedule_redraw((y0, x0, y1, x1))


def _hand_brush(source: Any, target: Any) -> None:
    """Let a person go on with the brush they have."""
    if source is target:
        return
    target.brush_size = source.brush_size
    target.n_edit_dimensions = source.n_edit_dimensions
    target.contiguous = source.contiguous
    if str(source.mode) in PAINTING_MODES:
        target.mode = source.mode
