"""How label layers look: colours, names in the status bar, and the names of the layers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from napari.utils.colormaps import DirectLabelColormap

from napari_crfasrnn.classes import ClassSpec
from napari_crfasrnn.palette import Color

STROKES_OF_BACKGROUND = (70, 130, 180)
"""Drawn instead of the background's black, which nobody sees on a dark image: strokes of it matter."""
TRANSPARENT = np.zeros(4, dtype=np.float32)
NAME_OF_ROLE = {"labels": "labels", "uncertainty": "uncertainty", "before": "before CRF", "boxes": "boxes"}


def layer_name(image_name: str, what: str) -> str:
    """Return the name of an output layer, such as ``photo · labels``."""
    return f"{image_name} · {what}"


def drawn_color(value: int, color: Color) -> Color:
    """Return the colour that a class is drawn in, red, green and blue in 0..255."""
    return STROKES_OF_BACKGROUND if value == 0 and color == (0, 0, 0) else color


def colormap(classes: Sequence[ClassSpec], shown: Collection[int]) -> DirectLabelColormap:
    """Return the colours of the classes that are shown; all else is transparent, unlabelled pixels too."""
    colors: dict[int | None, np.ndarray] = {None: TRANSPARENT, 0: TRANSPARENT}
    for value in shown:
        color = drawn_color(value, classes[value].color)
        colors[value] = np.array([*(c / 255 for c in color), 1.0], dtype=np.float32)
    return DirectLabelColormap(color_dict=colors)


def color_layer(layer: Any, classes: Sequence[ClassSpec], shown: Collection[int]) -> None:
    """Give a labels layer the `colormap` of some classes, unless it has it: napari draws it anew."""
    wanted, there = colormap(classes, shown), layer.colormap
    if (
        not isinstance(there, DirectLabelColormap)
        or there.color_dict.keys() != wanted.color_dict.keys()
        or any(
            not np.array_equal(there.color_dict[value], wanted.color_dict[value])
            for value in wanted.color_dict
        )
    ):
        layer.colormap = wanted


def features(names: Iterable[tuple[int, str]]) -> dict[str, np.ndarray]:
    """Return the table that lets napari's status bar say the name of the class under the cursor."""
    values, texts = zip(*names, strict=True)
    return {"index": np.array(values), "class": np.array(texts, dtype=object)}
