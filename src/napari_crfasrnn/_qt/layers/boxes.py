"""Shapes layers of boxes around objects: what a detector, or a person, says there is.

Any Shapes layer serves whose features table has the columns ``class`` (a name or a value) and ``score``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Shapes
from numpy.typing import NDArray

from napari_crfasrnn._qt.layers import looks
from napari_crfasrnn._qt.layers.images import insert_above, key_of, placement, set_mark
from napari_crfasrnn._qt.state.boxes import Outline

if TYPE_CHECKING:
    from napari.components import LayerList, ViewerModel

CLASS, SCORE = "class", "score"
ROLE = "boxes"
_SCORE = 1.0  # of a box that a person draws, who knows; a detector knows less
_OPEN = ("line", "path")  # shapes without an inside
_ARC = 64  # corners of an ellipse
_LINE = 2.0  # pixels of the screen, about


def box_layers(layers: LayerList) -> list[Any]:
    """Return the Shapes layers that say what is in their shapes, topmost first."""
    return [
        layer
        for layer in reversed(layers)
        if isinstance(layer, Shapes) and {CLASS, SCORE} <= set(layer.features.columns)
    ]


def add_box_layer(viewer: ViewerModel, image: Any, ndim: int, name: str) -> Any:
    """Add a layer for boxes on an image above all others, ready to draw one of a class.

    Parameters
    ----------
    viewer, image
        Where, and the image layer.
    ndim
        Axes of its labels: those of the stack, rows and columns.
    name
        Of the class.
    """
    layer = Shapes(
        ndim=ndim,
        name=looks.layer_name(image.name, looks.NAME_OF_ROLE[ROLE]),
        features={CLASS: np.array([], object), SCORE: np.array([], float)},
        feature_defaults={CLASS: name, SCORE: _SCORE},
        text={
            "string": "{class} {score:.2f}",
            "color": "yellow",
            "anchor": "upper_left",
            "size": 10,
        },
        edge_color="yellow",
        face_color="transparent",
        edge_width=max(1.0, _LINE / max(float(getattr(viewer.scene.camera, "zoom", 1.0)), 1e-3)),
        **placement(image, ndim),
    )
    set_mark(layer, image=key_of(image), role=ROLE)
    insert_above(viewer, image, layer, above=list(viewer.layers))
    draw_boxes(viewer, layer)
    return layer


def draw_boxes(viewer: ViewerModel, layer: Any) -> None:
    """Select a layer of boxes and its rectangle tool."""
    viewer.layers.selection.active = layer
    layer.mode = "add_rectangle"


def default_class(layer: Any) -> str:
    """Return the class of the next box."""
    return str(layer.feature_defaults[CLASS].iloc[0])


def default_score(layer: Any) -> float | None:
    """Return the score of the next box; None if it is none."""
    try:
        return float(layer.feature_defaults[SCORE].iloc[0])
    except (TypeError, ValueError):
        return None


def say_of_boxes(layer: Any, column: str, value: Any) -> None:
    """Set the class or the score of the next box and of those that are selected."""
    layer.feature_defaults = {**_row(layer), column: value}
    selected = sorted(layer.selected_data)
    if selected and not str(layer.mode).startswith("add"):
        table = layer.features.copy()
        if column == CLASS:
            table[column] = table[column].astype(object)
        table.loc[table.index[selected], column] = value
        layer.features = table
        layer.feature_defaults = {**_row(layer), column: value}  # napari took those of the last row
    layer.refresh_text()


def read_boxes(layer: Any, image: Any, stack_shape: tuple[int, ...]) -> list[Outline]:
    """Return the shapes of a layer in pixels of the planes of an image, wherever either lies in the world."""
    table = layer.features.iloc[: layer.nshapes]  # napari keeps the rows of shapes that a script took away
    return [
        Outline(
            label,
            score,
            *_place(layer, image, stack_shape, np.asarray(vertices, float), str(kind)),
        )
        for vertices, kind, label, score in zip(
            layer.data, layer.shape_type, table[CLASS], table[SCORE], strict=True
        )
    ]


def _place(
    layer: Any, image: Any, stack_shape: tuple[int, ...], vertices: NDArray[np.float64], kind: str
) -> tuple[NDArray[np.float64] | None, tuple[int | None, ...]]:
    """Return the corners of a shape on the plane of an image, and which plane that is."""
    if kind == "ellipse":
        vertices = _arc(vertices)
    points = np.array([_in_image(layer, image, vertex) for vertex in vertices])
    n_stack = len(stack_shape)
    lead = points[:, image.ndim - 2 - n_stack : image.ndim - 2].mean(axis=0)
    n_missing = max(0, n_stack + 2 - layer.ndim)
    index = (*(None,) * n_missing, *(int(np.floor(place + 0.5)) for place in lead[n_missing:]))
    return (None if kind in _OPEN else points[:, -2:]), index


def _in_image(layer: Any, image: Any, vertex: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take a point of a layer to pixels of an image; both share their last axes in the world."""
    world = np.asarray(layer.data_to_world(vertex), float)
    if len(world) < image.ndim:  # the axes that it lacks are those of stacks or channels: any place will do
        missing = image.ndim - len(world)
        world = np.concatenate([np.asarray(image.data_to_world((0,) * image.ndim), float)[:missing], world])
    return np.asarray(image.world_to_data(world[-image.ndim :]), float)


def _arc(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the outline of an ellipse, given the corners of the rectangle around it."""
    middle = corners.mean(axis=0)
    one, other = (corners[1] - corners[0]) / 2, (corners[3] - corners[0]) / 2
    turns = np.linspace(0, 2 * np.pi, _ARC, endpoint=False)[:, None]
    outline: NDArray[np.float64] = middle + np.cos(turns) * one + np.sin(turns) * other
    return outline


def _row(layer: Any) -> dict[str, Any]:
    return {str(name): values.iloc[0] for name, values in layer.feature_defaults.items()}
