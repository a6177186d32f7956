"""Two labellings of one plane side by side, in napari's grid, whose cameras are linked."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels, Layer
from napari.utils.colormaps import DirectLabelColormap
from numpy.typing import NDArray

from napari_crfasrnn._qt.layers import looks
from napari_crfasrnn._qt.layers.images import key_of, placement, remove_layers, set_mark
from napari_crfasrnn.classes import ClassSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari.components import ViewerModel

OUTLINE = 2  # pixels
# Bright cyan: hardly found in photographs or stained tissue, and in neither palette of the classes.
CHANGED = DirectLabelColormap(
    color_dict={None: looks.TRANSPARENT, 0: looks.TRANSPARENT, 1: np.array([0.1, 1, 1, 1], np.float32)}
)
COLUMNS = 2


class Comparison:
    """What one viewer shows while two labellings are compared.

    Everything else is hidden meanwhile; afterwards layers, grid and view are as they were.

    Parameters
    ----------
    viewer
        Where they are shown.
    silently
        Makes a context in which layers are hidden and shown without anybody taking it for a person's wish.
    """

    def __init__(self, viewer: ViewerModel, silently: Callable[[], AbstractContextManager[Any]]) -> None:
        self._viewer, self._silently = viewer, silently
        self._layers: list[Any] = []
        self._hidden: list[Any] = []
        self._grid: tuple[bool, int, tuple[int, int]] | None = None
        self._zoom = 1.0

    @property
    def is_shown(self) -> bool:
        """Whether two labellings are shown."""
        return self._grid is not None

    def show(
        self,
        image: Any,
        index: tuple[int, ...],
        shape: tuple[int, ...],
        both: Sequence[NDArray[Any]],
        where: NDArray[np.bool_],
        classes: Sequence[ClassSpec],
        titles: Sequence[str],
    ) -> None:
        """Show two labellings of a plane.

        Parameters
        ----------
        image
            Image layer under them.
        index, shape
            Place of the plane in the stack, and shape of all labels ``[*stack, H, W]``.
        both
            The labels of the plane, [H, W] each: left, right.
        where
            [H, W] pixels that differ; they are outlined.
        classes
            Their class table.
        titles
            What the two are called.
        """
        self.hide()
        viewer, grid = self._viewer, self._viewer.canvas.grid
        self._grid = grid.enabled, grid.stride, tuple(grid.shape)
        self._zoom = viewer.scene.camera.zoom
        sides = [
            _side(image, index, shape, labels, where, classes, title)
            for labels, title in zip(both, titles, strict=True)
        ]
        selected, active = set(viewer.layers.selection), viewer.layers.selection.active
        with self._silently(), viewer.layers.selection.events.blocker_all():
            self._hidden = [layer for layer in viewer.layers if layer.visible]
            for layer in self._hidden:
                layer.visible = False
            for side in reversed(sides):  # the grid counts from the top
                for layer in side:
                    viewer.layers.append(layer)
                    self._layers.append(layer)
            viewer.layers.selection.intersection_update(selected)
            viewer.layers.selection.update(selected)
            if active is not None:
                viewer.layers.selection.active = active
        grid.stride, grid.shape = -len(sides[0]), (1, COLUMNS)
        grid.enabled = True
        viewer.scene.camera.zoom = self._zoom / COLUMNS  # as much of the image is seen as before

    def hide(self) -> None:
        """Show again what was shown before."""
        if self._grid is None:
            return
        viewer, grid = self._viewer, self._viewer.canvas.grid
        grid.enabled, grid.stride, grid.shape = self._grid
        self._grid = None
        with self._silently():
            remove_layers(viewer, self._layers)
            for layer in self._hidden:
                if layer in viewer.layers:
                    layer.visible = True
        self._layers, self._hidden = [], []
        viewer.scene.camera.zoom = self._zoom


def _side(
    image: Any,
    index: tuple[int, ...],
    shape: tuple[int, ...],
    labels: NDArray[Any],
    where: NDArray[np.bool_],
    classes: Sequence[ClassSpec],
    title: str,
) -> list[Any]:
    """Return the layers of one side, from the bottom up."""
    data, settings, kind = image.as_layer_data_tuple()
    settings = {**settings, "name": f"{title} · image", "metadata": {}, "visible": True}
    under = Layer.create(data, settings, kind)
    place = placement(image, len(shape))
    drawn = Labels(
        _in_stack(labels, index, shape),
        name=f"{title} · labels",
        opacity=0.6,
        colormap=looks.colormap(classes, range(1, len(classes))),
        features=looks.features(enumerate(spec.name for spec in classes)),
        **place,
    )
    outlines = Labels(
        _in_stack(where.astype(np.uint8), index, shape),
        name=f"{title} · changed",
        opacity=1.0,
        colormap=CHANGED,
        **place,
    )
    outlines.contour = OUTLINE
    for layer in (under, drawn, outlines):
        set_mark(layer, role="comparison", image=key_of(image))
        layer.editable = False
    return [under, drawn, outlines]


def _in_stack(plane: NDArray[Any], index: tuple[int, ...], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a stack with one plane; pages of memory that nobody writes to cost nothing."""
    stack = np.zeros(shape, plane.dtype)
    stack[index] = plane
    return stack
