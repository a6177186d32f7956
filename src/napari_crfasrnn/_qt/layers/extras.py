"""Layers that only show something: the uncertainty, and the labels as they were before the CRF."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Labels
from napari.utils.colormaps import Colormap
from numpy.typing import NDArray

from napari_crfasrnn._qt.layers import looks
from napari_crfasrnn._qt.layers.images import insert_above, key_of, placement, set_mark

if TYPE_CHECKING:
    from napari.components import ViewerModel

UNCERTAINTY, BEFORE = "uncertainty", "before"

# Clear where the model is sure, so that image and labels stay visible. A third of full uncertainty is much
# already (two classes of 21 alike are 0.23), and shall look so.
UNSURE = Colormap(
    [
        [0.9, 0.2, 0.5, 0.0],
        [0.9, 0.2, 0.5, 0.0],
        [0.95, 0.3, 0.4, 0.6],
        [1.0, 0.75, 0.2, 0.85],
        [1, 1, 0.8, 0.95],
    ],
    controls=[0.0, 0.03, 0.2, 0.45, 1.0],
    name="unsure",
)


class ExtraLayers:
    """The layers of one image that only show something."""

    def __init__(self, viewer: ViewerModel, image: Any) -> None:
        self._viewer, self._image = viewer, image
        self.layers: dict[str, Any] = {}
        self._hidden: list[Any] = []  # label layers that are hidden while those from before are shown

    def show_uncertainty(self, entropy: NDArray[np.float32] | None, above: Sequence[Any]) -> None:
        """Show values 0..1 above other layers, or remove the layer."""
        if entropy is None:
            self._remove(UNCERTAINTY)
        elif UNCERTAINTY in self.layers:
            self.layers[UNCERTAINTY].data = entropy
        else:
            layer = Image(
                entropy,
                name=self.name_of(UNCERTAINTY),
                colormap=UNSURE,
                contrast_limits=(0, 1),
                blending="translucent_no_depth",
                **placement(self._image, entropy.ndim),
            )
            self._add(UNCERTAINTY, layer, above)

    def show_before(self, labels: NDArray[Any] | None, colors: Any, instead_of: Sequence[Any]) -> None:
        """Show labels instead of the given layers, or those layers again."""
        if labels is None:
            self._remove(BEFORE)
            self.unhide()
        elif BEFORE in self.layers:
            self.layers[BEFORE].data = labels
        else:
            opacity = instead_of[0].opacity
            layer = Labels(
                labels,
                name=self.name_of(BEFORE),
                colormap=colors,
                opacity=opacity,
                **placement(self._image, labels.ndim),
            )
            layer.editable = False
            self._add(BEFORE, layer, instead_of)
            self._hidden = [other for other in instead_of if other.visible]
            for other in self._hidden:
                other.visible = False

    def unhide(self) -> None:
        """Show the label layers again."""
        for other in self._hidden:
            other.visible = True
        self._hidden = []

    def forget(self, layer: Any) -> str | None:
        """Drop a layer that was removed, and return its role; None if it is none of these."""
        for role, other in list(self.layers.items()):
            if other is layer:
                del self.layers[role]
                return role
        return None

    def rename(self) -> None:
        """Follow the name of the image."""
        for role, layer in self.layers.items():
            layer.name = self.name_of(role)

    def name_of(self, role: str) -> str:
        """Return what a layer is called."""
        return looks.layer_name(self._image.name, looks.NAME_OF_ROLE[role])

    def _add(self, role: str, layer: Any, above: Sequence[Any]) -> None:
        set_mark(layer, image=key_of(self._image), role=role)
        insert_above(self._viewer, self._image, layer, above=above)
        self.layers[role] = layer

    def _remove(self, role: str) -> None:
        layer = self.layers.pop(role, None)
        if layer is not None and layer in self._viewer.layers:
            self._viewer.layers.remove(layer)
