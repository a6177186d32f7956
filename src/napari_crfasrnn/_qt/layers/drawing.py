"""Drawing parts of planes, so that a dab of a brush costs the same on an image of any size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers.labels._labels_utils import get_contours
from numpy.typing import NDArray

from napari_crfasrnn._qt.layers.class_layers import ClassLayer
from napari_crfasrnn._qt.layers.images import plane_index

if TYPE_CHECKING:
    from napari_crfasrnn._qt.layers.group import LabelGroup

Part = tuple[slice, slice]
Box = tuple[int, int, int, int]  # (y0, x0, y1, x1), the end excluded


@dataclass(frozen=True, eq=False)
class _Guessed:
    """A guess of a plane, ``[H, W]`` each. Pages of memory that nobody writes to cost nothing."""

    index: tuple[int, ...]
    labels: NDArray[Any]
    instead: NDArray[Any]  # of these labels, and of no others
    where: NDArray[np.bool_]

    @classmethod
    def nowhere(cls, index: tuple[int, ...], plane: NDArray[Any]) -> _Guessed:
        return cls(index, np.zeros_like(plane), np.zeros_like(plane), np.zeros(plane.shape, bool))

    def over(self, labels: NDArray[Any], part: Part) -> NDArray[Any]:
        """Return labels of a part of the plane with the guess in them."""
        guessed = self.where[part] & (labels == self.instead[part])
        return np.where(guessed, self.labels[part], labels)


class Drawing:
    """Draws parts of the plane that is shown, in all label layers of an image alike.

    A guess may be drawn over the labels, for as long as these stay what they were. It is in the textures
    of the layers and nowhere else: their data, and with them undo, what is saved and what is counted, know
    nothing of it.

    Parameters
    ----------
    group
        The layers.
    """

    def __init__(self, group: LabelGroup) -> None:
        self._group = group
        self._guessed: _Guessed | None = None
        self._box: Box | None = None  # where there may be a guess
        self._layers: list[Any] = []
        for layer in group.label_layers:
            self._follow(layer)
        group.class_layers.added.connect(self._follow)
        group.class_layers.removed.connect(self._let_go)

    def show(
        self, index: tuple[int, ...], box: Box, labels: NDArray[Any], where: NDArray[np.bool_], keep: int
    ) -> None:
        """Draw labels at some places of a box.

        Within ``keep`` pixels of the border of the box, an earlier guess stays where there is no new one.
        """
        plane = self._group.labels[index]
        if self._guessed is None or self._guessed.index != index:
            self.clear()
            self._guessed = _Guessed.nowhere(index, plane)
        guessed = self._guessed
        y0, x0, y1, x1 = box
        part = np.s_[y0:y1, x0:x1]
        guessed.where[y0 + keep : y1 - keep, x0 + keep : x1 - keep] = False
        np.copyto(guessed.labels[part], labels, where=where)
        np.copyto(guessed.instead[part], plane[part], where=where)
        guessed.where[part] |= where
        self._box = united(self._box, box)
        self.draw(box)

    def clear(self) -> None:
        """Draw no guess any more."""
        box, self._box = self._box, None
        self._guessed = None
        if box is not None:
            self.draw(box)

    def close(self) -> None:
        """Draw nothing any more."""
        self._group.class_layers.added.disconnect(self._follow)
        self._group.class_layers.removed.disconnect(self._let_go)
        for layer in list(self._layers):
            self._let_go(layer)

    def draw(self, box: Box, *, keep: bool = False) -> None:
        """Draw a part of the plane anew; with ``keep``, napari shall know what was written there."""
        group = self._group
        shape = group.labels.shape
        if not shows_planes(group.viewer):
            return
        index = plane_index(group.viewer, group.image, shape[:-2])
        margin = max(int(layer.contour) for layer in group.label_layers) + 1
        y0, x0 = max(box[0] - margin, 0), max(box[1] - margin, 0)
        part = np.s_[y0 : min(box[2] + margin, shape[-2]), x0 : min(box[3] + margin, shape[-1])]
        labels = group.labels[index][part]
        shown = labels
        if self._guessed is not None and self._guessed.index == index:
            shown = self._guessed.over(labels, part)
        inner = np.s_[box[0] - y0 : box[2] - y0, box[1] - x0 : box[3] - x0]
        with group.silently():
            for layer in group.label_layers:
                if not layer.visible:
                    continue  # napari draws all of it when it is shown again
                if keep:
                    _keep(layer, box, _of_layer(layer, labels)[inner], _texture(layer, labels, inner))
                texture = _texture(layer, shown, inner)
                layer.events.labels_update(data=texture, offset=[box[0], box[1]])

    def _follow(self, layer: Any) -> None:
        layer.events.labels_update.connect(self._on_labels_update)
        self._layers.append(layer)

    def _let_go(self, layer: Any) -> None:
        layer.events.labels_update.disconnect(self._on_labels_update)
        self._layers.remove(layer)

    def _on_labels_update(self, event: Any) -> None:
        # napari has just drawn what a dab of the brush covers, without the guess
        if self._box is not None and not self._group.is_quiet:
            box = box_of(self._group.viewer, event)
            if box is not None:
                self.draw(box)


def _of_layer(layer: Any, labels: NDArray[Any]) -> NDArray[Any]:
    """Return what a layer shows of labels."""
    if not isinstance(layer, ClassLayer):
        return labels
    return np.where(labels == layer.value, labels, 0).astype(labels.dtype)


def _texture(layer: Any, labels: NDArray[Any], inner: Part) -> NDArray[Any]:
    """Return how a layer draws the inner part of labels."""
    values = _of_layer(layer, labels)
    if layer.contour > 0:
        values = get_contours(values, layer.contour, layer.colormap.background_value)
    return np.asarray(layer.colormap._data_to_texture(np.array(values[inner])))


def _keep(layer: Any, box: Box, values: NDArray[Any], texture: NDArray[Any]) -> None:
    """Update what napari remembers of the plane that it draws, where that is no view of the data itself."""
    part = np.s_[box[0] : box[2], box[1] : box[3]]
    image = layer._slice.image
    for remembered, new in ((image.raw, values), (image.view, texture)):
        if isinstance(layer, ClassLayer) or not np.shares_memory(remembered, layer.data):
            remembered[part] = new


def box_of(viewer: Any, event: Any) -> Box | None:
    """Return what part of a plane napari says that it has updated; None where it shows no planes."""
    if not shows_planes(viewer):
        return None
    (y0, x0), (height, width) = event.offset, event.data.shape[:2]
    return int(y0), int(x0), int(y0 + height), int(x0 + width)


def shows_planes(viewer: Any) -> bool:
    """Return whether the viewer shows planes [Y, X], not a volume or a section through one."""
    ndim = viewer.dims.ndim
    return viewer.dims.ndisplay == 2 and tuple(viewer.dims.displayed) == (ndim - 2, ndim - 1)


def united(box: Box | None, other: Box) -> Box:
    """Return the smallest box around two."""
    if box is None:
        return other
    return min(box[0], other[0]), min(box[1], other[1]), max(box[2], other[2]), max(box[3], other[3])
