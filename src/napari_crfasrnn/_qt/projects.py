"""The project of a viewer: begun, opened, and left; its images come into the viewer with their labels."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QTimer

from napari_crfasrnn._qt.layers import image_layers, key_of, mark_of, read_image_layer, says_channels
from napari_crfasrnn._qt.state import Opened

if TYPE_CHECKING:
    from napari_crfasrnn._qt.workbench import Workbench
    from napari_crfasrnn.project import Item


class Projects:
    """Projects in one viewer, one after the other.

    Their images come into it one at a time, with the window alive between them.

    Parameters
    ----------
    bench
        The viewer's workbench.

    Attributes
    ----------
    closed_items
        Images of the project that are not open.
    is_showing
        Whether an image is brought into the viewer just now, which is nothing that a person did.
    """

    def __init__(self, bench: Workbench) -> None:
        self.closed_items: list[Item] = []
        self.is_showing = False
        self._bench, self._storage = bench, bench.session.storage
        self._coming: deque[Opened] = deque()  # the last comes first, and is on top of all
        self._lowest: Any = None  # layer of the one that came last
        self._timer = QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(0)
        self._timer.timeout.connect(self._show_next)
        self._storage.left.connect(self._on_left)
        self._storage.opened.connect(self._on_opened)
        self._storage.saved.connect(self._on_saved)
        bench.session.classes.changing.connect(self.show_all)

    @property
    def busy(self) -> bool:
        """Whether images are still to come into the viewer."""
        return bool(self._coming)

    def close(self) -> None:
        """Show no more images."""
        self._timer.stop()
        self._coming.clear()
        self._lowest = None

    def open(self, path: Path) -> None:
        """Open a project instead of the present one; images of it that are in the viewer stay."""
        here = {}
        for layer in image_layers(self._bench.viewer.layers):
            key = key_of(layer)
            with suppress(ValueError):  # none that can be segmented
                here[key] = read_image_layer(layer, self._bench.channels.get(key, says_channels(layer)))
        self._storage.open(path, here=here)

    def open_item(self, number: int) -> None:
        """Open one more image of the project."""
        self.closed_items = [item for item in self.closed_items if item.id != number]
        self._storage.forget_how_many()
        self._storage.open_item(number)

    def go_on(self) -> None:
        """Open the project again whose label layers an earlier widget left, if it is one."""
        leftovers = self._bench.labelling.leftovers()
        if len(leftovers) == 1:
            self._storage.open(*leftovers.keys(), only=next(iter(leftovers.values())))

    def note_removed(self, layer: Any) -> None:
        """Note that a layer was removed from the viewer: an image of the project can be opened again."""
        mark = mark_of(layer)
        if "image" in mark and "role" not in mark:  # labels know their image, too
            self._close_item(mark["image"])
            self._storage.forget_how_many()
        if self._coming and not image_layers(self._bench.viewer.layers):
            self._stop_coming()

    def _stop_coming(self) -> None:
        """Leave the images that are still to come in the project: somebody has removed all that had come."""
        self._timer.stop()
        self.closed_items += [one.item for one in self._coming]
        self._coming.clear()
        self._show_next()

    def note_open(self, key: str) -> None:
        """Note that an image is in the viewer."""
        item = self._storage.keeper.item_of(key)
        self.closed_items = [other for other in self.closed_items if item is None or other.id != item.id]

    def _close_item(self, key: str) -> None:
        item = self._storage.keeper.item_of(key)
        if item is not None:
            self.note_open(key)
            self.closed_items.append(item)

    def _on_saved(self, key: str, path: Path, number: int) -> None:
        if self._bench.labelling.image_layer(key) is None:  # removed before it was saved
            self._close_item(key)

    def _on_left(self) -> None:
        """Let go of the labels of a project that was closed; they are in it."""
        self.close()
        self._bench.patching.leave()
        self._bench.comparing.end()
        self._bench.labelling.clear(remove=True)
        self._bench.labelling.forget_project()
        self.closed_items = []
        self._bench.show_soon()

    def _on_opened(self, opened: Sequence[Opened], left: Sequence[Item] | None) -> None:
        if left is not None:  # another project; what was there is in the one before
            self._on_left()
            self.closed_items = list(left)
        self._coming.extend(opened)
        self._show_next()

    def show_all(self) -> None:
        """Bring all images that are still to come into the viewer now: their classes are about to change."""
        while self._coming:
            self._show_next()

    def _show_next(self) -> None:
        bench = self._bench
        if self._coming:
            one = self._coming.pop()
            if self._coming:
                self._timer.start()  # first: should one fail to show, the others come all the same
            bench.channels[one.key] = one.item.axes.startswith("C")
            self.is_showing = self._lowest is not None
            try:
                self._lowest = bench.labelling.restore(one, self._lowest)
            finally:
                self.is_showing = False
            bench.session.count(one.key, (0,) * len(bench.session.works[one.key].image.stack_shape))
        if not self._coming:
            self._lowest = None
            bench.count_soon()
            bench.show_soon()
