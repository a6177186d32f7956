"""How much of an image layer the canvas shows, and bringing one into view."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_crfasrnn._qt.layers.images import image_layers

if TYPE_CHECKING:
    from napari.components import ViewerModel

Rectangle = NDArray[np.float64]  # [2, 2], in the world: the corner of small coordinates, that of large ones

TINY = 0.25  # of the canvas: nobody works on an image whose sides are both smaller
PART = 0.25  # of an image: who sees less may take it for something else
WHOLE = 0.9  # of an image
MARGIN = 0.05  # of the canvas, around an image that is shown as a whole; as napari has it


def is_lost(viewer: ViewerModel, image: Any, before: Any | None, units: Any) -> bool:
    """Return whether the view has to change for somebody to see an image.

    It is so where the image lies outside of the canvas or is tiny in it, and where little of it is seen in a
    view that was of another one: that one is seen as a whole, or lies in a world of other units. A view that
    somebody zoomed into stays for the next image of the same world, such as another channel.

    Parameters
    ----------
    viewer
        The viewer; it shows planes.
    image
        The image layer.
    before
        The one that was looked at before, if there was one.
    units
        The units of the world then; a layer of finer ones changes them.
    """
    view = _canvas_rectangle(viewer)
    rectangle = _rectangle(viewer, image)
    seen = _share(rectangle, view)
    if seen == 0 or bool(np.all(_sides(rectangle) < TINY * _sides(view))):
        return True
    if seen >= PART or before is None:
        return False
    foreign = (
        units != viewer.layers.units or before.units[-1].dimensionality != image.units[-1].dimensionality
    )
    return bool(foreign or _share(_rectangle(viewer, before), view) >= WHOLE)


def fit(viewer: ViewerModel, image: Any) -> None:
    """Show all of the plane of an image layer, and no more than that."""
    rectangle = _rectangle(viewer, image)
    middle = rectangle.mean(axis=0)
    camera = viewer.scene.camera
    camera.center = (*camera.center[:-2], float(middle[0]), float(middle[1]))
    camera.zoom = (1 - MARGIN) * float(np.min(_canvas_size(viewer) / _sides(rectangle)))


def raise_above(viewer: ViewerModel, image: Any, outputs: Container[Any]) -> None:
    """Show an image layer that is hidden, and put it with its outputs above images that cover it."""
    image.visible = True
    layers = viewer.layers
    rectangle, place = _rectangle(viewer, image), layers.index(image)
    for other in image_layers(layers):
        above = other.visible and layers.index(other) > place
        if above and _hides(other) and _share(rectangle, _rectangle(viewer, other)) > 0:
            own = [layer for layer in layers if layer is image or layer in outputs]
            layers.move_multiple([layers.index(layer) for layer in own], len(layers))
            return


def _hides(layer: Any) -> bool:
    return layer.opacity > WHOLE and layer.blending in ("opaque", "translucent", "translucent_no_depth")


def _rectangle(viewer: ViewerModel, layer: Any) -> Rectangle:
    """Return where the planes of a layer lie, in the units of the canvas."""
    extent = layer.extent
    half = np.asarray(extent.step)[-2:] / 2  # a pixel lies around its place
    corners = np.asarray(extent.world)[:, -2:] + np.array([-half, half])
    units = viewer.layers.units
    if units is None:  # napari draws layers of different kinds of units as if they had none
        return np.asarray(corners, float)
    pairs = zip(layer.units[-2:], units[-2:], strict=True)
    return np.asarray(corners * np.array([float((1 * own).to(its).magnitude) for own, its in pairs]), float)


def _canvas_rectangle(viewer: ViewerModel) -> Rectangle:
    camera = viewer.scene.camera
    half = _canvas_size(viewer) / camera.zoom / 2
    middle = np.array(camera.center)[-2:]
    return np.array([middle - half, middle + half])


def _canvas_size(viewer: ViewerModel) -> NDArray[np.float64]:
    """Return height and width of the canvas in its pixels; of a cell of the grid, if that is on."""
    return np.array(viewer.canvas.viewbox_size(viewer.layers), float)


def _sides(rectangle: Rectangle) -> NDArray[np.float64]:
    return np.asarray(np.maximum(rectangle[1] - rectangle[0], np.finfo(float).tiny), float)


def _share(rectangle: Rectangle, within: Rectangle) -> float:
    """Return which share of a rectangle lies in another one."""
    common = np.minimum(rectangle[1], within[1]) - np.maximum(rectangle[0], within[0])
    return float(np.prod(np.maximum(common, 0) / _sides(rectangle)))
