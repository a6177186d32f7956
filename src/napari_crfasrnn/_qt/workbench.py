"""One viewer and what is done in it: which image, what is shown, what a button or a key sets off."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from psygnal import Signal
from qtpy.QtCore import QTimer

from napari_crfasrnn._qt import present
from napari_crfasrnn._qt.boxes import Boxes
from napari_crfasrnn._qt.comparing import Comparing
from napari_crfasrnn._qt.doubts import Doubts
from napari_crfasrnn._qt.image_order import ImageOrder
from napari_crfasrnn._qt.keys import Keys
from napari_crfasrnn._qt.labelling import Labelling
from napari_crfasrnn._qt.layers import (
    BEFORE,
    UNCERTAINTY,
    ImageInput,
    LabelGroup,
    forget_mark,
    image_layers,
    key_of,
    mark_of,
    may_be_channels,
    plane_index,
    read_image_layer,
    says_channels,
    visible_region,
)
from napari_crfasrnn._qt.live import Live
from napari_crfasrnn._qt.patching import Patching
from napari_crfasrnn._qt.projects import Projects
from napari_crfasrnn._qt.sight import Sight
from napari_crfasrnn._qt.state import Labels, PlaneIndex, Session, Work
from napari_crfasrnn._qt.state.telling import LOST
from napari_crfasrnn.classes import ignore_value
from napari_crfasrnn.config import TrainConfig

if TYPE_CHECKING:
    from napari.components import ViewerModel


COUNT_MS = 120  # after the last stroke, shares and edits are counted
SAVE_MS = 800  # after the last stroke, it is saved
BUSY_MS = 120  # between two looks at a task at work

_workbenches: dict[int, Workbench] = {}


class Workbench:
    """One viewer with its session and its label layers. Every widget of a viewer shares it.

    Made by `Workbench.of`, and closed when the last widget that uses it says `release`.

    Attributes
    ----------
    image
        The image layer that is worked on.
    all_slices
        Whether Segment and Accept take all slices of a stack.
    channels
        What a person or a project said of first axes: whether they hold channels, by the keys of the images.
    order
        The order of the images, for lists and for the keys that go through them.
    projects, live, patching, comparing, doubts, boxes
        What is opened and left; live refinement; patch mode; rounds side by side; strokes that contradict the
        others; boxes around objects that Segment heeds.
    """

    changed = Signal()  # something that the widgets show
    refined_live = Signal(int)  # how many labels changed when a stroke was refined

    def __init__(self, viewer: ViewerModel) -> None:
        self.viewer = viewer
        self.session = Session(self._write)
        self.keys, self.order = Keys(self), ImageOrder(self)
        self.labelling = Labelling(viewer, self.session, self.keys)
        self.image: Any = None
        self.all_slices = False
        self.boxes = Boxes(self)
        self.channels: dict[str, bool] = {}
        self._touched: set[str] = set()  # keys of images to count
        self._users = 0
        self._count_timer = _timer(COUNT_MS, self._count)
        self._save_timer = _timer(SAVE_MS, self.session.storage.save)
        self._show_timer = _timer(0, self._show)
        self._watch()
        self.projects, self.live = Projects(self), Live(self)
        self.patching, self.comparing, self.doubts = Patching(self), Comparing(self), Doubts(self)
        self._select_first_image()
        self._sight = Sight(self)
        self.session.begin()
        self.projects.go_on()

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
            self.projects.close()
            self.live.close()
            self.patching.close()
            self.comparing.close()
            self.doubts.close()
            self._sight.close()
            self.labelling.flush()
        self.session.close()
        with suppress(RuntimeError):
            for timer in (self._count_timer, self._save_timer, self._show_timer):
                timer.stop()
            self.labelling.clear(remove=False)
        self.keys.unbind()
        self._watch(False)

    # --- what is worked on --------------------------------------------------------------------------

    @property
    def key(self) -> str | None:
        """Key of the image that is worked on."""
        return None if self.image is None else key_of(self.image)

    @property
    def group(self) -> LabelGroup | None:
        """Label layers of the image that is worked on."""
        return self.labelling.groups.get(self.key or "")

    @property
    def work(self) -> Work | None:
        """Labels of the image that is worked on."""
        return self.session.works.get(self.key or "")

    @property
    def uncertainty_on(self) -> bool:
        """Whether the uncertainty of the image is shown."""
        return self.group is not None and self.group.extras.shows(UNCERTAINTY)

    @property
    def before_on(self) -> bool:
        """Whether the labels from before the CRF are shown instead of the labels."""
        return self.group is not None and self.group.extras.shows(BEFORE)

    @property
    def chosen_slices(self) -> list[PlaneIndex]:
        """The planes that a person works on: the one that is shown, or all of them."""
        stack_shape = self.work.image.stack_shape if self.work is not None else ()
        return list(np.ndindex(*stack_shape)) if self.all_slices else [self.index]

    @property
    def index(self) -> PlaneIndex:
        """The plane that is shown."""
        work = self.work
        shape = work.image.stack_shape if work is not None else ()
        return plane_index(self.viewer, self.image, shape) if shape else ()

    @property
    def painting(self) -> int | None:
        """The class that is painted with, if one is."""
        if self.boxes.drawing is not None:
            return self.boxes.value
        active = self.viewer.layers.selection.active
        if self.group is None or active not in self.group.label_layers:
            return None
        return int(active.selected_label)

    @property
    def first_is_channels(self) -> bool | None:
        """Whether the first axis of the image holds channels; None where nobody has to say."""
        if self.image is None or not may_be_channels(self.image):
            return None
        return self.channels.get(key_of(self.image), says_channels(self.image))

    @property
    def pending(self) -> bool:
        """Whether something waits to be counted, saved or shown."""
        timers = (self._count_timer, self._save_timer, self._show_timer)
        return (
            any(timer.isActive() for timer in timers)
            or self.session.counts.busy
            or self.live.busy
            or self.patching.busy
            or self.projects.busy
        )

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
        layer = self.labelling.image_layer(key)
        if layer is not None and layer is not self.image:
            self.image = layer
            self._after_change_of_image()

    def choose_image(self, key: str) -> None:
        """Work on another image, and see it. Its layer is selected: selecting any other goes there."""
        self.select_image(key)
        if self.image is not None:
            self.viewer.layers.selection.active = self.image
        self._sight.ask()

    def set_channels(self, channels: bool) -> None:
        """Say what the first axis of the image holds."""
        if self.key is not None:
            self.channels[self.key] = channels
            self.show_soon()

    # --- what is done -------------------------------------------------------------------------------

    def segment(self) -> None:
        """Segment the slice that is shown, or all of them."""
        if self.image is None or self.session.busy is not None:
            return
        try:
            image = self.read_image()
        except ValueError as error:
            self.session.tasks.complain("start", "Segmenting", error)
            self.session.finished.emit("failed")
            return
        self.labelling.flush()
        self._sight.ask()
        index = None
        if image.stack_shape and not self.all_slices:
            index = plane_index(self.viewer, self.image, image.stack_shape)
        self.session.segment(image, index, self.boxes.read(image))

    def refine(self, view_only: bool = True) -> None:
        """Let the CRF snap the labels of the slice to edges, on the screen or all over."""
        work, key = self.work, self.key
        if work is None or key is None or self.group is None:
            return
        self.labelling.flush()
        region = visible_region(self.viewer, self.image, work.image.plane_shape) if view_only else None
        self.session.refine(key, self.index, region)

    def set_live(self, on: bool) -> None:
        """Let labels follow edges while somebody paints, or only when asked to."""
        self.live.set_on(on)
        self.show_soon()

    def set_effort(self, **changes: Any) -> None:
        """Choose how many ``seconds`` a round may take, and whether to ``thaw`` the encoder."""
        self.session.effort = replace(self.session.effort, **changes)
        self.show_soon()

    def learn(self, config: TrainConfig | None = None) -> None:
        """Teach the model what was corrected, with the chosen effort if there is no ``config``."""
        self.labelling.flush()
        self.session.learn(config)

    def learn_if_possible(self) -> None:
        """Learn, if there is something to learn from."""
        if present.learn_state(self).learn.enabled:
            self.learn()

    def accept(self) -> None:
        """Say that all labels of the slice that is shown (or of all slices) are right, or take that back."""
        if self.key is not None and self.group is not None:
            self.labelling.flush()
            self.session.accept(self.key, self.chosen_slices, self.group.add_step())

    def undo(self) -> None:
        """Take back the last stroke, refinement or segmentation of the image."""
        if self.group is not None:
            self.group.undo()

    def redo(self) -> None:
        """Do again what was undone last."""
        if self.group is not None:
            self.group.redo()

    def paint_with(self, value: int) -> None:
        """Select the layer of a class and a brush with it; labels are begun if there are none.

        While boxes are drawn, they get the class.
        """
        if self.image is None or not self.session.table.classes:
            return
        if self.boxes.drawing is not None:
            self.boxes.say_class(value)
            return
        if self.group is None:
            self._begin_labels()
        self.labelling.follow_table()  # a class that was added just now is one already
        if self.group is not None:
            self.group.paint_with(value)
            self.session.table.give_keys([value])
            self.show_soon()

    def paint_unlabelled(self) -> None:
        """Select a brush that takes labels away."""
        if self.group is not None:
            self.paint_with(ignore_value(self.group.labels.dtype))

    def show_uncertainty(self, on: bool) -> None:
        """Show or hide the uncertainty layer."""
        if self.group is not None:
            self.group.show_uncertainty(self.work.entropy if on and self.work is not None else None)
        self.show_soon()

    def show_before(self, on: bool) -> None:
        """Show the labels from before the CRF instead of the labels, or the labels again."""
        if self.group is not None:
            self.group.show_before(self.work.before_crf if on and self.work is not None else None)
        self.show_soon()

    def bring_back(self) -> None:
        """Show the labels of the image again after their layer was removed."""
        if self.key is not None and self.work is not None and self.group is None:
            self.labelling.make(self.key)
            self.session.tasks.say("classes", "")
            self._count_timer.start()

    def open_sample(self, name: str) -> None:
        """Open one of the sample images, with the model that fits it."""
        from napari_crfasrnn import samples

        self.session.shelf.prefer(samples.FITTING_MODELS[name])
        for data, arguments, _ in getattr(samples, f"open_{name}")():
            self.viewer.add_image(data, **arguments)

    def count_soon(self) -> None:
        """Count what is on the image that is worked on, once for all that happens now."""
        self._count_timer.start()

    def show_soon(self, event: Any = None) -> None:
        """Let the widgets show what there is, once for all that happens now.

        While a task is at work, a few times a second: drawing takes turns with the task's Python, and one
        that tells every step would take several times as long.
        """
        if self.session.busy is None:
            self._show_timer.start(0)
        elif not self._show_timer.isActive():
            self._show_timer.start(BUSY_MS)

    def _begin_labels(self) -> None:
        """Make the layers of an image that nobody segmented: all of it is unlabelled."""
        try:
            image = self.read_image()
        except ValueError as error:
            self.session.tasks.complain("classes", "Labelling", error)
            return
        self.session.table.locked = True
        self.session.work_on(image)
        self.labelling.begin(image.key)
        self._sight.ask()

    def _write(self, key: str, labels: Labels, index: PlaneIndex) -> object:
        return self.labelling.write(key, labels, index)

    # --- events -------------------------------------------------------------------------------------

    def _watch(self, watch: bool = True) -> None:
        layers = self.viewer.layers
        for emitter, callback in (
            (layers.events.inserted, self._on_inserted),
            (layers.events.removed, self._on_removed),
            (layers.events.renamed, self.show_soon),
            (layers.selection.events.active, self._on_active),
            (self.viewer.dims.events.current_step, self._on_moved),
            (self.viewer.dims.events.ndisplay, self.show_soon),
            (self.viewer.dims.events.order, self.show_soon),
            (self.viewer.events.theme, self.show_soon),
        ):
            (emitter.connect if watch else emitter.disconnect)(callback)
        if watch:
            self.session.changed.connect(self.show_soon)
            self.session.shelf.chosen.connect(self._hint)
            self.session.touched.connect(self._on_touched)
            self.labelling.shown.connect(self.show_soon)
            self.labelling.lost.connect(self._on_lost)

    def _show(self) -> None:
        self.labelling.look_at(None if self.projects.busy else self.key)
        self.labelling.follow_table()
        self.labelling.drop_absent()
        self.changed.emit()

    def _on_touched(self, key: str) -> None:
        self._touched.add(key)
        self._count_timer.start()
        self._save_timer.start()

    def _count(self) -> None:
        if self.group is not None:
            self.group.flush()
        touched, self._touched = self._touched - {self.key}, set()
        for key in touched & set(self.session.works):  # left before they were counted
            self.session.count(key, (0,) * len(self.session.works[key].image.stack_shape))
        if self.key is not None and self.work is not None:
            self.session.count(self.key, self.index)

    def _on_inserted(self, event: Any) -> None:
        layer, images = event.value, image_layers(self.viewer.layers)
        if layer in images and (self.image is None or not self.projects.is_showing):
            if "image" not in mark_of(layer) and (key := self.labelling.recognise(layer)) is not None:
                self.projects.note_open(key)
            if [key_of(other) for other in images].count(key_of(layer)) > 1:
                forget_mark(layer)  # a copy of an image is another image
            self.select_image(key_of(layer))
        self.show_soon()

    def _on_active(self, event: Any) -> None:
        layer = event.value
        if layer is not None and layer is not self.image:
            key = mark_of(layer).get("image")
            if key is None and layer in image_layers(self.viewer.layers):
                key = key_of(layer)
            if key is not None:
                self.select_image(str(key))
        self.show_soon()

    def _on_removed(self, event: Any) -> None:
        self.projects.note_removed(event.value)
        if event.value is self.image:
            kept, name = self.work is not None, event.value.name
            self.image = None
            self._select_first_image()
            if kept:
                self.session.tasks.say("start", f"“{name}” was removed; its labels are kept in the project.")
        self.show_soon()

    def _on_moved(self, event: Any = None) -> None:
        if self.work is not None and self.work.image.stack_shape:
            self._count_timer.start()
        self.show_soon()

    def _on_lost(self, key: str, role: str, name: str) -> None:
        if role in ("shape", "pixels"):
            self.session.begin_anew(key)
        if key == self.key and role in LOST:
            cures = ("bring-back",) if role == "labels" else ()
            self.session.tasks.say("classes", LOST[role].format(name), "quiet", *cures)
        self._save_timer.start()
        self.show_soon()

    def _select_first_image(self) -> None:
        active = self.viewer.layers.selection.active
        images = image_layers(self.viewer.layers)
        self.image = active if active in images else next(iter(images), None)
        self._after_change_of_image()

    def _after_change_of_image(self) -> None:
        for key, group in self.labelling.groups.items():
            if key != self.key:
                group.show_before(None)
        for section in ("start", "classes", "correct"):  # they spoke of the other image
            self.session.tasks.lines.pop(section, None)
        if self.key is not None:
            self.session.tell_again(self.key)
        self._hint()
        self._count_timer.start()
        self.show_soon()

    def _hint(self) -> None:
        if self.image is not None and self.work is None:
            with suppress(ValueError):  # what cannot be read is told when it is asked for
                image = self.read_image()
                index = plane_index(self.viewer, self.image, image.stack_shape)
                self.session.hint(image, index, lambda: self.key == image.key)


def _timer(interval: int, then: Any) -> QTimer:
    timer = QTimer()
    timer.setSingleShot(True)
    timer.setInterval(interval)
    timer.timeout.connect(then)
    return timer
