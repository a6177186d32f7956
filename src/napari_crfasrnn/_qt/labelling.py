"""Between a session and a viewer: labels go into layers, and what is done to the layers comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.layers import Image
from psygnal import Signal
from qtpy.QtCore import QTimer

from napari_crfasrnn._qt.keys import Keys
from napari_crfasrnn._qt.layers import (
    MARK,
    ImageInput,
    LabelGroup,
    are_same,
    forget_mark,
    image_arguments,
    image_layers,
    insert_below,
    key_of,
    level_0,
    mark_of,
    placement_of,
    read_image_layer,
    remove_layers,
    set_mark,
)
from napari_crfasrnn._qt.state import Labels, Opened, PlaneIndex, Work
from napari_crfasrnn.classes import ignore_value
from napari_crfasrnn.edits import Mask

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from napari_crfasrnn._qt.state import Session


class Labelling:
    """The label layers of a viewer, and the labels of a session.

    Attributes
    ----------
    groups
        The layers of each image that has labels, by its key.
    """

    shown = Signal()  # something about the layers that the widgets show
    lost = Signal(str, str, str)  # key of an image; role and name of a layer of it that a person removed

    def __init__(self, viewer: ViewerModel, session: Session, keys: Keys) -> None:
        self.groups: dict[str, LabelGroup] = {}
        self.per_class = True
        self._in_view: str | None = None  # key of the image that is worked on
        self._sketches: set[str] = set()  # keys of images that no model segmented: all labels are strokes
        self._viewer, self._session, self._keys = viewer, session, keys
        session.counts.counted.connect(self._on_counted)
        session.segmented.connect(self._on_segmented)
        session.refined.connect(self._on_refined)
        session.unpredicted.connect(self._on_unpredicted)
        session.storage.saved.connect(self._on_saved)
        session.storage.flushing.connect(self.flush)

    # --- from the session ---------------------------------------------------------------------------

    def write(self, key: str, labels: Labels, index: PlaneIndex) -> object:
        """Bring labels into the viewer as one undo step, and return it; the first ones make the layers."""
        self.follow_table()
        work, group = self._session.works[key], self.groups.get(key)
        if group is not None and group.alive:
            return group.newest_step() if group.write(labels, index) else None
        work.labels[index] = labels
        written = work.labels
        self.make(key)
        if work.labels is not written:  # there was a layer from an earlier time
            self.groups[key].write(written)
        return None

    def begin(self, key: str) -> None:
        """Make the layers of an image that nobody segmented; strokes of background are seen there, too."""
        self._sketches.add(key)
        self.make(key)

    def make(self, key: str) -> None:
        """Make the layers of an image, if it still is in the viewer."""
        work, layer = self._session.works[key], self.image_layer(key)
        if layer is None:
            return  # removed meanwhile: the labels are in the project
        old = self.groups.pop(key, None)
        if old is not None:
            old.close(remove=True)
        classes = self._session.table.classes
        group = LabelGroup(self._viewer, layer, work.labels, classes, per_class=self.per_class)
        group.class_layers.set_in_view(key == self._in_view)
        work.labels = group.labels
        self.groups[key] = group
        if key in self._sketches:
            group.set_visible(0, True)
        group.changed.connect(lambda: self._on_labels_changed(key))
        group.described.connect(lambda: self._on_described(key))
        group.covered.connect(lambda part, mask, value: self._on_covered(key, part, mask, value))
        group.stroke_ended.connect(lambda step: self._on_stroke_ended(key, step))
        group.stroke_aborted.connect(lambda: self._on_stroke_aborted(key))
        group.visibility_changed.connect(self.shown)
        group.refused.connect(lambda text: self._session.tasks.say("classes", text, "problem"))
        group.lost.connect(lambda role, name: self._on_lost(key, role, name))
        group.class_layers.added.connect(self._keys.bind_layer)
        for label_layer in group.label_layers:
            self._keys.bind_layer(label_layer)
        keeper = self._session.storage.keeper
        if keeper.path is not None and (number := keeper.number_of(key)) is not None:
            self._on_saved(key, keeper.path, number)

    def recognise(self, layer: Any) -> str | None:
        """Show the labels of an image that was removed and is here again; return its key."""
        for key, work in self._session.works.items():
            there = key in self.groups or self.image_layer(key) is not None
            if not there and work.image.name == layer.name and are_same(level_0(layer), work.image.array):
                image = _read_as(layer, work.image.axes)
                if image is None:
                    continue
                set_mark(layer, image=key)
                work.image = replace(image, key=key)
                is_predicted = (work.baseline != ignore_value(work.baseline.dtype)).any()
                (self.make if is_predicted else self.begin)(key)
                return key
        return None

    def restore(self, opened: Opened, below: Any = None) -> Any:
        """Bring an image of a project into the viewer, with its labels; return its layer.

        Where it comes ``below`` another layer, nothing else is selected.
        """
        item = opened.item
        layer = self.image_layer(opened.key)
        if layer is None:
            placed = placement_of(item.axes, item.spacing, item.units)
            arguments = image_arguments(item.metadata) or placed
            # Marked from the beginning: it is nobody else's.
            metadata = {MARK: {"image": opened.key}}
            layer = Image(opened.array, name=item.name, metadata=metadata, **arguments)
            if below is None:
                self._viewer.add_layer(layer)
            else:
                insert_below(self._viewer, below, layer)
        image = read_image_layer(layer, item.axes.startswith("C"))
        self._session.storage.keeper.note_shown(image)
        n_classes = len(self._session.table.classes)
        self._session.works[opened.key] = Work.restored(
            image, opened.labels, opened.baseline, opened.verified, n_classes
        )
        (self.make if opened.baseline is not None else self.begin)(opened.key)
        self.groups[opened.key].class_layers.show_present(opened.present)
        return layer

    def follow_table(self) -> None:
        """Let the layers follow a change of the class table, or of the shape of an image."""
        classes = self._session.table.classes
        changed = []
        for key, group in self.groups.items():
            work = self._session.works.get(key)
            if work is not None and not (group.classes == classes and group.labels is work.labels):
                changed.append((key, group, work))
        remade = [(key, group) for key, group, work in changed if group.labels is not work.labels]
        painting = {key: painted for key, group in remade if (painted := group.leave_class_layers())}
        self._remove_class_layers([group for _, group in remade])
        for key, group, work in changed:
            if group.labels.shape != work.labels.shape:
                self.groups.pop(key).close(remove=True)
            elif group.labels is not work.labels:
                group.replace(work.labels, classes)
                group.return_to(painting.get(key))
                group.follow(work.entropy, None)  # what was before the CRF has colours of the former table
            else:
                group.restyle(classes)

    def leftovers(self) -> dict[Path, dict[str, int]]:
        """Return the projects of label layers that an earlier widget left: image keys and item numbers."""
        found: dict[Path, dict[str, int]] = {}
        for layer in image_layers(self._viewer.layers):
            mark = mark_of(layer)
            if "project" in mark and Path(mark["project"]).is_dir():
                found.setdefault(Path(mark["project"]), {})[mark["image"]] = int(mark["item"])
        return found

    def forget_project(self) -> None:
        """Let the images of the viewer no longer be of the project that was open."""
        for layer in image_layers(self._viewer.layers):
            forget_mark(layer, "project", "item")

    # --- from the layers ----------------------------------------------------------------------------

    def look_at(self, key: str | None) -> None:
        """Say which image is worked on."""
        self._in_view = key
        for other, group in self.groups.items():
            group.class_layers.set_in_view(other == key)

    def flush(self) -> None:
        """Take in what was done to the layers so far."""
        for group in self.groups.values():
            group.flush()

    def image_layer(self, key: str) -> Any | None:
        """Return an image layer by its key, if it is in the viewer."""
        return next((layer for layer in image_layers(self._viewer.layers) if key_of(layer) == key), None)

    def set_per_class(self, per_class: bool) -> None:
        """Show a layer per class, or the combined layers alone."""
        self.per_class = per_class
        if not per_class:
            for group in self.groups.values():
                group.leave_class_layers()
            self._remove_class_layers([group for group in self.groups.values() if group.class_layers.enabled])
        for group in self.groups.values():
            group.set_per_class(per_class)
        self.shown.emit()

    def set_visible(self, value: int, visible: bool) -> None:
        """Show or hide a class in every image."""
        for group in self.groups.values():
            group.set_visible(value, visible)
        self.shown.emit()

    def toggle_contour(self) -> None:
        """Draw outlines instead of regions, or regions again."""
        for group in self.groups.values():
            group.set_contour(0 if group.combined.contour else 2)

    def _remove_class_layers(self, groups: Sequence[LabelGroup]) -> None:
        """Remove the class layers of all these images at once, which takes as long as of a single one."""
        with ExitStack() as quiet:
            for group in groups:
                group.flush()
                quiet.enter_context(group.silently())
            remove_layers(self._viewer, [layer for group in groups for layer in group.class_layers])

    def when_grown(self, key: str | None, then: Callable[[], None]) -> None:
        """Do something when every label layer of an image is there: now, or soon."""
        group = self.groups.get(key or "")
        if group is None or not group.class_layers.growing:
            then()
            return
        grown = group.class_layers.grown

        def go_on() -> None:
            grown.disconnect(go_on)
            then()

        grown.connect(go_on)

    def clear(self, *, remove: bool) -> None:
        """Let go of all layers; remove all if asked to, else those that only show something."""
        gone = [layer for group in self.groups.values() for layer in group.let_go(remove=remove)]
        remove_layers(self._viewer, gone)
        self.groups.clear()
        self._sketches.clear()

    def _on_labels_changed(self, key: str) -> None:
        group, work = self.groups.get(key), self._session.works.get(key)
        if group is None or work is None:
            return
        if group.labels is not work.labels and group.labels.shape == work.labels.shape:
            work.labels = group.labels  # a script put another array into the layer
        work.follow_steps(group.find_undone())
        self._session.touch(key)

    def _on_described(self, key: str) -> None:
        work, layer = self._session.works.get(key), self.image_layer(key)
        if work is None or layer is None:
            return
        image = _read_as(layer, work.image.axes)
        if image is not None:  # else what was read before stands
            work.image = image
            self._session.storage.touch(key)
            self._session.touched.emit(key)

    def _on_covered(self, key: str, part: tuple[slice, ...], mask: Mask, value: int) -> None:
        group, work = self.groups.get(key), self._session.works.get(key)
        if group is not None and work is not None and group.labels is work.labels:
            claimed = work.claim(part, mask, value)
            if claimed is not None:
                group.claimed.emit(part, claimed)

    def _on_stroke_ended(self, key: str, step: object | None) -> None:
        said = self._session.tasks.lines.get("classes")
        if said is not None and said.tone == "problem":  # what was refused before is over
            self._session.tasks.say("classes", "")
        group, work = self.groups.get(key), self._session.works.get(key)
        if group is not None and work is not None and work.has_claims:
            work.keep_claims(group.add_step() if step is None else step)
            self._session.touch(key)

    def _on_stroke_aborted(self, key: str) -> None:
        work = self._session.works.get(key)
        if work is not None:
            work.drop_claims()

    def _on_segmented(self, key: str, present: tuple[int, ...]) -> None:
        group = self.groups.get(key)
        self._hide_background(key)
        if group is not None:
            group.class_layers.show_present({*present, *group.class_layers.by_value})
            group.show_before(None)  # or the labels would stay hidden behind it
        self.follow_predictions(key)

    def _on_refined(self, key: str) -> None:
        self._hide_background(key)
        self.follow_predictions(key)

    def _on_unpredicted(self, key: str) -> None:
        self.follow_predictions(key)
        self.show_as_strokes(key, True)

    def follow_predictions(self, key: str) -> None:
        """Show what is known by now of an image's uncertainty, and of its labels before the CRF."""
        group, work = self.groups.get(key), self._session.works.get(key)
        if group is not None and work is not None:
            group.follow(work.entropy, work.before_crf)

    def show_as_strokes(self, key: str, only_strokes: bool) -> None:
        """Show the background where all labels are strokes, else hide it."""
        group = self.groups.get(key)
        if not only_strokes:
            self._hide_background(key)
            return
        self._sketches.add(key)
        if group is not None:
            group.set_visible(0, True)

    def _hide_background(self, key: str) -> None:
        """Hide the background, once it is no longer strokes alone but all that is around objects."""
        group = self.groups.get(key)
        if key in self._sketches and group is not None:
            self._sketches.discard(key)
            group.set_visible(0, False)

    def _on_counted(self, key: str) -> None:
        group, numbers = self.groups.get(key), self._session.numbers.get(key)
        if group is not None and numbers is not None:
            group.class_layers.show_present(numbers.present)
        self.shown.emit()

    def drop_absent(self) -> None:
        """Remove the layers of classes that have no pixel any more and that nobody works on."""
        for key, group in self.groups.items():
            numbers = self._session.numbers.get(key)
            if numbers is not None and group.alive:
                group.class_layers.drop_absent(numbers.present)

    def _on_lost(self, key: str, role: str, name: str) -> None:
        group = self.groups.get(key)
        if role in ("labels", "image", "shape", "pixels") and group is not None:
            group.flush()
            del self.groups[key]
            for output in group.outputs:  # nobody takes them for those of the same image, here again at once
                forget_mark(output, "image")
            # Not from within napari's own removal, which may go on to the next selected layer.
            QTimer.singleShot(0, lambda: group.close(remove=True))
        self.lost.emit(key, role, name)

    def _on_saved(self, key: str, path: Path, number: int) -> None:
        layer = self.image_layer(key)
        if layer is not None:
            set_mark(layer, project=str(path), item=number)


def _read_as(layer: Any, axes: str) -> ImageInput | None:
    """Read an image layer whose axes are these; None if they are others."""
    try:
        image = read_image_layer(layer, axes.startswith("C"))
    except ValueError:  # none that can be segmented
        return None
    return image if image.axes == axes else None
