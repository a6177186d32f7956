"""The layer of one class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari.layers import Labels

from napari_crfasrnn._qt.layers.images import mark_of
from napari_crfasrnn._qt.layers.store import ClassView

if TYPE_CHECKING:
    from napari_crfasrnn._qt.layers.group import LabelGroup


class ClassLayer(Labels):  # type: ignore[misc]
    """A labels layer that shows one class of the combined labels. Undo and redo are the combined layer's."""

    _history_limit = 0  # the combined layer has the history

    def __init__(self, group: LabelGroup, view: ClassView, **settings: Any) -> None:
        self.group = group
        super().__init__(view, **settings)

    @property
    def value(self) -> int:
        """The class value it shows."""
        return int(mark_of(self)["value"])

    @property
    def _type_string(self) -> str:  # napari saves and duplicates layers by it
        return "labels"

    def undo(self) -> None:
        """Take back the last stroke of the image, in whichever of its label layers it was made."""
        self.group.flush()
        self.group.combined.undo()

    def redo(self) -> None:
        """Do again what was undone last."""
        self.group.flush()
        self.group.combined.redo()

    def _abort_stroke(self) -> None:
        self.group.store.drop_pending()  # before napari writes back 0 where other classes were
        super()._abort_stroke()
