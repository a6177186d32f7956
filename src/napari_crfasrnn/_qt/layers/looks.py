"""How label layers look: colours, names in the status bar, and the names of the layers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
from napari.utils.colormaps import DirectLabelColormap

from napari_crfasrnn.classes import ClassSpec

TRANSPARENT = np.zeros(4, dtype=np.float32)
NAME_OF_ROLE = {"labels": "labels", "uncertainty": "uncertainty", "before": "before CRF", "boxes": "boxes"}


def layer_name(image_name: str, what: str) -> str:
    """Return the name of an output layer, such as ``photo · labels``."""
    return f"{image_name} · {what}"


def colormap(classes: Sequence[ClassSpec], shown: Collection[int]) -> DirectLabelColormap:
    """Return the colours of the classes that are shown; all else is transparent, unlabelled pixels too."""
    colors: dict[int | None, np.ndarray] = {None: TRANSPARENT, 0: TRANSPARENT}
    for value in shown:
        colors[value] = np.array([*(c / 255 for c in classes[value].color), 1.0], dtype=np.float32)
    return DirectLabelColormap(color_dict=colors)


def features(names: Iterable[tuple[int, str]]) -> dict[str, np.ndarray]:
    """Return the table that lets napari's status bar say the name of the class under the cursor."""
    values, texts = zip(*names, strict=True)
    return {"index": np.array(values), "class": np.array(texts, dtype=object)}
