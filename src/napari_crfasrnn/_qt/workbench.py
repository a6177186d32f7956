"""One viewer, its session, and the label layers between them. Every widget of a viewer shares it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psygnal import Signal
from qtpy.QtCore import QTimer

from napari_crfasrnn._qt import present
from napari_crfasrnn._qt.keys import Keys
from napari_crfasrnn._qt.layers import (
    ImageInput,
    LabelGroup,
    image_arguments,
    image_layers,
    key_of,
    mark_of,
    may_be_channels,
    plane_index,
    read_image_layer,
    says_channels,
    set_mark,
    visible_region,
)
from napari_crfasrnn._qt.state import Labels, Opened, PlaneIndex, Session, Work
from napari_crfasrnn.classes import ignore_value
from napari_crfasrnn.config import TrainConfig

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from napari_crfasrnn.project import Item

COUNT_MS = 120  # after the last stroke, shares and edits are counted
SAVE_MS = 800  # after the last stroke, it is saved

_workbenches: dict[int, Workbench] = {}


class Workbench:
    """One viewer, its session, and the label layers between them.

    Made by `Workbench.of`, and closed when the last widget that uses it says `release`.
    """

    changed = Signal()  # something that the widgets show

    def __init__(self, viewer: ViewerModel) -> None:
        self.viewer = viewer
        self.session = Session(self._write)
        self.groups: dict[str, LabelGroup] = {}
        self.image: Any = None  # the image layer that is worked on
        self.all_slices = False
        self.per_class = True
        self.uncertainty_on = False
        self.before_on = False
        self.left: list[Item] = []  # images of the project that were not opened
        self._channels: dict[str, bool] = {}  # what a person said of a first axis
        self._users = 0
        self._count_timer = _timer(COUNT_MS, self._count)
        self._save_timer = _timer(SAVE_MS, self.session.storage.save)
        self._show_timer = _timer(0, self._show)
        self._keys = Keys(self)
        self._connect()
        self._select_first_image()
        self.session.begin()
        self._take_over()

    @classmethod
    def of(cls, viewer: ViewerModel) -> Workbench:
        """Return the workbench of a viewer, for one more widget."""
        # napari gives plugins a proxy, whose layers are new proxies at each look: none *is* another.
        viewer = getattr(viewer, "__wrapped__", viewer)
        bench = _workbenches.get(id(viewer))
        if bench is None:
            bench = _workbenches[id(viewer)] = cls(viewer)
        bench._users += 1
        return bench

    def release(self) -> None:
        """Say that a widget needs it no longer."""
        self._users -= 1
        if self._users == 0:
            _workbenches.pop(id(self.viewer), None)
            self.close()

    def close(self) -> None:
        """Save what is unsaved, stop everything, and leave the layers as they are."""
        with suppress(RuntimeError):  # at the end of the program, Qt may have deleted the layers' timers
            for group in self.groups.values():
                group.flush()
        self.session.close()
        with suppress(RuntimeError):
            for timer in (self._count_timer, self._save_timer, self._show_timer):
                timer.stop()
            for group in self.groups.values():
                group.close()
        self.groups.clear()
        self._keys.unbind()
        self._disconnect()

    # --- what is worked on --------------------------------------------------------------------------

    @property
    def key(self) -> str | None:
        """Key of the image that is worked on."""
        return None if self.image is None else key_of(self.image)

    @property
    def group(self) -> LabelGroup | None:
        """Label layers of the image that is worked on."""
        return self.groups.get(self.key or "")

    @property
    def work(self) -> Work | None:
        """Labels of the image that is worked on."""
        return self.session.works.get(self.key or "")

    @property
    def index(self) -> PlaneIndex:
        """The plane that is shown."""
        work = self.work
        shape = work.image.stack_shape if work is not None else ()
        return plane_index(self.viewer, self.image, shape) if shape else ()

    @property
    def painting(self) -> int | None:
        """The class that is painted with, if one is."""
        group, active = self.group, self.viewer.layers.selection.active
        if group is None or active is None or mark_of(active).get("image") != self.key:
            return None
        if mark_of(active).get("role") not in ("labels", "class"):
            return None
        return int(active.selected_label)

    @property
    def first_is_channels(self) -> bool | None:
        """Whether the first axis of the image holds channels; None where nobody has to say."""
        if self.image is None or not may_be_channels(self.image):
            return None
        return self._channels.get(key_of(self.image), says_channels(self.image))

    @property
    def pending(self) -> bool:
        """Whether something waits to be counted, saved or shown."""
        timers = (self._count_timer, self._save_timer, self._show_timer)
        return any(timer.isActive() for timer in timers) or self.session.is_counting

    def read_image(self) -> ImageInput:
        """Return the image as the core takes it.

        Raises
        ------
        ValueError
            If its axes are none that can be segmented.
        """
        return read_image_layer(self.image, bool(self.first_is_channels))

    def select_image(self, key: str) -> None:
        """Work on another image."""
        for layer in image_layers(self.viewer.layers):
            if key_of(layer) == key and layer is not self.image:
                self.image = layer
                self._after_change_of_image()

    def set_channels(self, channels: bool) -> None:
        """Say what the first axis of the image holds."""
        if self.key is not None:
            self._channels[self.key] = channels
            self.show_soon()

    # --- what is done -------------------------------------------------------------------------------

    def segment(self) -> None:
        """Segment the slice that is shown, or all of them."""
        if self.image is None or self.session.busy is not None:
            return
        try:
            image = self.read_image()
        except ValueError as error:
            self.session.tasks.say("start", str(error), "problem")
            self.session.finished.emit("failed")
            return
        self._flush()
        index = None
        if image.stack_shape and not self.all_slices:
            index = plane_index(self.viewer, self.image, image.stack_shape)
        self.session.segment(image, index)

    def refine(self, view_only: bool = True) -> None:
        """Let the CRF snap the labels of the slice to edges, on the screen or all over."""
        work, key = self.work, self.key
        if work is None or key is None or self.group is None:
            return
        self._flush()
        region = visible_region(self.viewer, self.image, work.image.plane_shape) if view_only else None
        self.session.refine(key, self.index, region)

    def learn(self, config: TrainConfig | None = None) -> None:
        """Teach the model what was corrected."""
        self._flush()
        self.session.learn(config)

    def learn_if_possible(self) -> None:
        """Learn, if there is something to learn from."""
        if present.learn_state(self).learn.enabled:
            self.learn()

    def accept(self) -> None:
        """Say that all labels of the image are right, or take that back."""
        if self.key is not None and self.work is not None:
            self._flush()
            self.session.accept(self.key)

    def paint_with(self, value: int) -> None:
        """Select the layer of a class and a brush with it; labels are begun if there are none."""
        if self.image is None or not self.session.table.classes:
            return
        if self.group is None:
            self._begin_labels()
        if self.group is not None:
            self.group.paint_with(value)
            self.session.table.give_keys([value])
            self.show_soon()

    def paint_unlabelled(self) -> None:
        """Select a brush that takes labels away."""
        if self.group is not None:
            self.paint_with(ignore_value(self.group.labels.dtype))

    def undo(self) -> None:
        """Take back the last stroke, refinement or segmentation of the image."""
        if self.group is not None:
            self.group.flush()
            self.group.combined.undo()

    def redo(self) -> None:
        """Do again what was undone last."""
        if self.group is not None:
            self.group.combined.redo()

    def set_visible(self, value: int, visible: bool) -> None:
        """Show or hide a class in every image."""
        for group in self.groups.values():
            group.set_visible(value, visible)
        self.show_soon()

    def set_per_class(self, per_class: bool) -> None:
        """Show a layer per class, or the combined layer alone."""
        self.per_class = per_class
        for group in self.groups.values():
            group.set_per_class(per_class)
        self.show_soon()

    def show_uncertainty(self, on: bool) -> None:
        """Show or hide the uncertainty layer."""
        self.uncertainty_on = on and self.work is not None and self.work.entropy is not None
        if self.group is not None:
            entropy = self.work.entropy if self.uncertainty_on and self.work is not None else None
            self.group.show_uncertainty(entropy)
        self.show_soon()

    def show_before(self, on: bool) -> None:
        """Show the labels from before the CRF instead of the labels, or the labels again."""
        self.before_on = on and self.work is not None and self.work.before_crf is not None
        if self.group is not None:
            before = self.work.before_crf if self.before_on and self.work is not None else None
            self.group.show_before(before)
        self.show_soon()

    def toggle_contour(self) -> None:
        """Draw outlines instead of regions, or regions again."""
        for group in self.groups.values():
            group.set_contour(0 if group.combined.contour else 2)

    def bring_back(self) -> None:
        """Show the labels of the image again after their layer was removed."""
        if self.key is not None and self.work is not None and self.group is None:
            self._make_group(self.key)
            self.session.tasks.say("classes", "")

    def open_sample(self, name: str) -> None:
        """Open one of the sample images."""
        from napari_crfasrnn import samples

        for data, arguments, _ in getattr(samples, f"open_{name}")():
            self.viewer.add_image(data, **arguments)

    def open_item(self, number: int) -> None:
        """Open one more image of the project."""
        self.left = [item for item in self.left if item.id != number]
        self.session.storage.open_item(number)

    def labels_hold(self, value: int) -> bool:
        """Whether some image has pixels of a class."""
        return any((work.labels == value).any() for work in self.session.works.values())

    # --- labels to layers ---------------------------------------------------------------------------

    def _write(self, key: str, labels: Labels, index: PlaneIndex) -> None:
        """Bring labels into the viewer as one undo step; the first ones make the layers."""
        work, group = self.session.works[key], self.groups.get(key)
        if group is not None and group.labels is not work.labels:
            self._follow_table(key, group)
            group = self.groups.get(key)
        if group is not None and group.alive:
            group.write(labels, index)
            return
        work.labels[index] = labels
        written = work.labels
        self._make_group(key)
        if work.labels is not written:  # there was a layer from an earlier time
            self.groups[key].write(written)

    def _make_group(self, key: str) -> None:
        work = self.session.works[key]
        layer = self._image_layer(key)
        if layer is None:
            return  # removed meanwhile: the labels are in the project
        old = self.groups.pop(key, None)
        if old is not None:
            old.close(remove=True)
        group = LabelGroup(
            self.viewer, layer, work.labels, self.session.table.classes, per_class=self.per_class
        )
        work.labels = group.labels
        self.groups[key] = group
        group.changed.connect(lambda: self._on_labels_changed(key))
        group.visibility_changed.connect(self.show_soon)
        group.refused.connect(lambda text: self.session.tasks.say("classes", text, "problem"))
        group.lost.connect(lambda role, name: self._on_lost(key, role, name))
        group.added.connect(self._keys.bind_layer)
        for label_layer in (group.combined, *group.class_layers.values()):
            self._keys.bind_layer(label_layer)
        self._mark_project(key)

    def when_grown(self, then: Callable[[], None]) -> None:
        """Do something when every label layer is there: now, or soon."""
        group = self.group
        if group is None or not group.growing:
            then()
            return

        def go_on() -> None:
            group.grown.disconnect(go_on)
            then()

        group.grown.connect(go_on)

    def _begin_labels(self) -> None:
        """Make the layers of an image that nobody segmented: all of it is unlabelled."""
        try:
            image = self.read_image()
        except ValueError as error:
            self.session.tasks.say("classes", str(error), "problem")
            return
        self.session.table.locked = True
        self.session.work_on(image)
        self._make_group(image.key)

    def _follow_table(self, key: str, group: LabelGroup) -> None:
        """Let layers follow a change of the class table."""
        work, classes = self.session.works.get(key), self.session.table.classes
        if work is None or (group.classes == classes and group.labels is work.labels):
            return
        if group.labels.shape != work.labels.shape:
            self.groups.pop(key).close(remove=True)
        elif group.labels is not work.labels:
            group.replace(work.labels, classes)
        else:
            group.restyle(classes)

    def _image_layer(self, key: str) -> Any | None:
        return next((layer for layer in image_layers(self.viewer.layers) if key_of(layer) == key), None)

    def _flush(self) -> None:
        for key, group in self.groups.items():
            group.flush()
            self.session.touch(key)

    # --- events -------------------------------------------------------------------------------------

    def _connect(self) -> None:
        layers = self.viewer.layers
        layers.events.inserted.connect(self._on_inserted)
        layers.events.removed.connect(self._on_removed)
        layers.selection.events.active.connect(self._on_active)
        self.viewer.dims.events.current_step.connect(self._on_moved)
        self.viewer.events.theme.connect(self.show_soon)
        self.session.changed.connect(self._on_session)
        self.session.touched.connect(self._on_touched)
        self.session.counted.connect(self._on_counted)
        self.session.segmented.connect(self._on_segmented)
        self.session.storage.opened.connect(self._on_opened)
        self.session.storage.saved.connect(self._on_saved)

    def _disconnect(self) -> None:
        layers = self.viewer.layers
        layers.events.inserted.disconnect(self._on_inserted)
        layers.events.removed.disconnect(self._on_removed)
        layers.selection.events.active.disconnect(self._on_active)
        self.viewer.dims.events.current_step.disconnect(self._on_moved)
        self.viewer.events.theme.disconnect(self.show_soon)
        if self.image is not None:
            self.image.events.name.disconnect(self.show_soon)

    def show_soon(self, event: Any = None) -> None:
        """Let the widgets show what there is, once for all that happens now."""
        self._show_timer.start()

    def _show(self) -> None:
        for key, group in list(self.groups.items()):
            self._follow_table(key, group)
        self.changed.emit()

    def _on_session(self) -> None:
        self.show_soon()

    def _on_labels_changed(self, key: str) -> None:
        group, work = self.groups.get(key), self.session.works.get(key)
        if group is None or work is None:
            return
        if group.labels is not work.labels and group.labels.shape == work.labels.shape:
            work.labels = group.labels  # a script put another array into the layer
        self.session.touch(key)

    def _on_touched(self, key: str) -> None:
        self._count_timer.start()
        self._save_timer.start()

    def _count(self) -> None:
        key, group = self.key, self.group
        if key is None or self.work is None:
            return
        if group is not None and group.alive:
            group.flush()
        self.session.count(key, self.index)

    def _on_segmented(self, key: str, present: Sequence[int]) -> None:
        group = self.groups.get(key)
        if group is not None:
            group.show_present({*present, *group.class_layers})

    def _on_counted(self, key: str) -> None:
        group, numbers = self.groups.get(key), self.session.numbers.get(key)
        if group is not None and numbers is not None:
            group.show_present(numbers.present)
        self.show_soon()

    def _on_inserted(self, event: Any) -> None:
        layer = event.value
        if layer in image_layers(self.viewer.layers):
            self.select_image(key_of(layer))
        self.show_soon()

    def _on_active(self, event: Any) -> None:
        layer = event.value
        if layer is not None and layer is not self.image:
            key = mark_of(layer).get("image") or (
                key_of(layer) if layer in image_layers(self.viewer.layers) else None
            )
            if key is not None:
                self.select_image(str(key))
        self.show_soon()

    def _on_removed(self, event: Any) -> None:
        if event.value is self.image:
            kept = self.work is not None
            self.image = None
            self._select_first_image()
            if kept:
                self.session.tasks.say(
                    "start", f"“{event.value.name}” was removed; its labels are kept in the project."
                )
        self.show_soon()

    def _on_moved(self, event: Any = None) -> None:
        if self.work is not None and self.work.image.stack_shape:
            self._count_timer.start()
        self.show_soon()

    def _on_lost(self, key: str, role: str, name: str) -> None:
        group, say = self.groups.get(key), self.session.tasks.say
        if role == "class":
            say("classes", f"“{name}” was removed; its pixels are still in the combined labels.")
        elif role == "uncertainty":
            self.uncertainty_on = False
        elif role == "before":
            self.before_on = False
        elif group is not None:
            del self.groups[key]
            # Not from within napari's own removal, which may go on to the next selected layer.
            QTimer.singleShot(0, lambda: group.close(remove=True))
            self.uncertainty_on = self.before_on = False
            if role == "labels" and key == self.key:
                say("classes", f"“{name}” was removed; the labels are kept.", cure="bring-back")
            self._save_timer.start()
        self.show_soon()

    def _select_first_image(self) -> None:
        active = self.viewer.layers.selection.active
        images = image_layers(self.viewer.layers)
        self.image = active if active in images else next(iter(images), None)
        self._after_change_of_image()

    def _after_change_of_image(self) -> None:
        for key, group in self.groups.items():
            if key != self.key:
                group.show_before(None)
        self.before_on = False
        self.uncertainty_on = self.group is not None and self.group.has_uncertainty
        for section in ("start", "classes", "correct"):  # they spoke of the other image
            self.session.tasks.lines.pop(section, None)
        self._count_timer.start()
        self.show_soon()

    # --- project ------------------------------------------------------------------------------------

    def _on_opened(self, opened: Sequence[Opened], left: Sequence[Item] | None) -> None:
        if left is not None:  # another project
            for group in self.groups.values():
                group.close(remove=True)  # all of it is in the other project
            self.groups.clear()
            self.left = list(left)
        for one in opened:
            layer = self._image_layer(one.key)
            if layer is None:
                arguments = image_arguments(one.item.metadata)
                layer = self.viewer.add_image(one.array, name=one.item.name, **arguments)
                set_mark(layer, image=one.key)
            self._channels[one.key] = one.item.axes.startswith("C")
            image = read_image_layer(layer, one.item.axes.startswith("C"))
            n_classes = len(self.session.table.classes)
            self.session.works[one.key] = Work.restored(
                image, one.labels, one.baseline, one.verified, n_classes
            )
            self._make_group(one.key)
            self.groups[one.key].show_present(one.present)
        self._count_timer.start()
        self.show_soon()

    def _on_saved(self, key: str, path: Path, number: int) -> None:
        layer = self._image_layer(key)
        if layer is not None:
            set_mark(layer, project=str(path), item=number)

    def _mark_project(self, key: str) -> None:
        keeper = self.session.storage.keeper
        path, number = keeper.path, keeper.number_of(key)
        if path is not None and number is not None:
            self._on_saved(key, path, number)

    def _take_over(self) -> None:
        """Go on with layers that an earlier widget left in the viewer."""
        found: dict[str, dict[str, int]] = {}
        for layer in image_layers(self.viewer.layers):
            mark = mark_of(layer)
            if "project" in mark and Path(mark["project"]).is_dir():
                found.setdefault(mark["project"], {})[mark["image"]] = int(mark["item"])
        if len(found) == 1:
            ((path, items),) = found.items()
            self.session.storage.open(Path(path), only=items)


def _timer(interval: int, then: Any) -> QTimer:
    timer = QTimer()
    timer.setSingleShot(True)
    timer.setInterval(interval)
    timer.timeout.connect(then)
    return timer
