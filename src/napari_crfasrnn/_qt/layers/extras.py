"""Layers that only show something: the uncertainty, and the labels as they were before the CRF."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from napari.layers import Image, Labels
from napari.utils.colormaps import Colormap
from psygnal import Signal

from napari_crfasrnn._qt.layers import looks
from napari_crfasrnn._qt.layers.images import insert_above, key_of, placement, remove_layers, set_mark

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from napari_crfasrnn._qt.state.planes import KnownPlanes

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
    """The layers of one image that only show something.

    What is switched off is hidden and not removed: for every removal, napari lets Python look through all
    objects there are for unreachable ones, and the window stands still meanwhile.

    Attributes
    ----------
    layers
        The layers by their roles, hidden ones, too.
    """

    switched = Signal(str)  # role of a layer that is shown or hidden now

    def __init__(self, viewer: ViewerModel, image: Any) -> None:
        self._viewer, self._image = viewer, image
        self.layers: dict[str, Any] = {}
        self._hidden: list[Any] = []  # label layers that are hidden while those from before are shown

    def shows(self, role: str) -> bool:
        """Whether there is a layer, and not a hidden one."""
        return role in self.layers and bool(self.layers[role].visible)

    def show_uncertainty(self, entropy: KnownPlanes | None, above: Sequence[Any]) -> None:
        """Show values 0..1 above other layers, or hide them."""
        if entropy is None:
            self._set_visible(UNCERTAINTY, False)
        elif UNCERTAINTY in self.layers:
            self._set_data(UNCERTAINTY, entropy)
            self._set_visible(UNCERTAINTY, True)
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

    def show_before(self, labels: KnownPlanes | None, colors: Any, instead_of: Sequence[Any]) -> None:
        """Show labels instead of the given layers, or those layers again."""
        if labels is None:
            self._set_visible(BEFORE, False)
            self._unhide()
            return
        if BEFORE in self.layers:
            self._set_data(BEFORE, labels)
            self.layers[BEFORE].colormap = colors
            self._set_visible(BEFORE, True)
        else:
            layer = Labels(
                labels,
                name=self.name_of(BEFORE),
                colormap=colors,
                opacity=instead_of[0].opacity,
                **placement(self._image, labels.ndim),
            )
            layer.editable = False
            self._add(BEFORE, layer, instead_of)
        self._hide(instead_of)

    def let_be(self, layer: Any) -> None:
        """Do not show a label layer again with the others: somebody chose whether it is shown."""
        self._hidden = [other for other in self._hidden if other is not layer]

    def follow_eye(self, role: str, labels: Sequence[Any]) -> None:
        """Do what else belongs to it that somebody showed or hid one of the layers."""
        if role == BEFORE and self.shows(BEFORE):
            self._hide(labels)
        elif role == BEFORE:
            self._unhide()

    def follow(self, entropy: KnownPlanes | None, before: KnownPlanes | None) -> None:
        """Show what is known by now in the layers that there are; what is not known any more is removed."""
        for role, data in ((UNCERTAINTY, entropy), (BEFORE, before)):
            if data is None:
                self._remove(role)
            elif role in self.layers:
                self._set_data(role, data)

    def forget(self, layer: Any) -> str | None:
        """Drop a layer that was removed, and return its role; None if it is none of these."""
        for role, other in list(self.layers.items()):
            if other is layer:
                self._let_go(role)
                return role
        return None

    def rename(self) -> None:
        """Follow the name of the image."""
        for role, layer in self.layers.items():
            layer.name = self.name_of(role)

    def name_of(self, role: str) -> str:
        """Return what a layer is called."""
        return looks.layer_name(self._image.name, looks.NAME_OF_ROLE[role])

    def close(self) -> None:
        """Let go of the layers, and show the label layers again."""
        for layer in self.layers.values():
            layer.events.visible.disconnect(self._on_visible)
        self._unhide()

    def _add(self, role: str, layer: Any, above: Sequence[Any]) -> None:
        set_mark(layer, image=key_of(self._image), role=role)
        insert_above(self._viewer, self._image, layer, above=above)
        self.layers[role] = layer
        layer.events.visible.connect(self._on_visible)

    def _remove(self, role: str) -> None:
        layer = self.layers.get(role)
        if layer is not None:
            self._let_go(role)
            remove_layers(self._viewer, [layer])

    def _let_go(self, role: str) -> None:
        self.layers.pop(role).events.visible.disconnect(self._on_visible)
        if role == BEFORE:
            self._unhide()

    def _set_data(self, role: str, data: KnownPlanes) -> None:
        layer = self.layers[role]
        if layer.data is data:  # other values in the same array
            layer.refresh(extent=False, highlight=False)
        else:
            layer.data = data

    def _set_visible(self, role: str, visible: bool) -> None:
        if role in self.layers:
            self.layers[role].visible = visible

    def _hide(self, labels: Sequence[Any]) -> None:
        hidden = [other for other in labels if other.visible]
        self._hidden += hidden
        for other in hidden:
            other.visible = False

    def _unhide(self) -> None:
        hidden, self._hidden = self._hidden, []
        for other in hidden:
            other.visible = True

    def _on_visible(self, event: Any) -> None:
        role = next((role for role, layer in self.layers.items() if layer is event.source), None)
        if role is not None:
            self.switched.emit(role)
