"""Boxes around objects that Segment heeds: which layer holds them, and what is said of the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari_crfasrnn._qt.layers import boxes as layers
from napari_crfasrnn._qt.state.boxes import Outline, class_value

if TYPE_CHECKING:
    from napari_crfasrnn._qt.layers import ImageInput
    from napari_crfasrnn._qt.workbench import Workbench


class Boxes:
    """The boxes of a viewer; each image has a layer of them, or none."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._chosen: dict[str, Any] = {}  # by the key of an image

    @property
    def offered(self) -> list[Any]:
        """The layers that can be chosen."""
        return layers.box_layers(self._bench.viewer.layers)

    @property
    def chosen(self) -> Any | None:
        """The layer of the image that is worked on, if it is still there and says what its shapes are."""
        layer = self._chosen.get(self._bench.key or "")
        return next((one for one in self.offered if one is layer), None)

    @property
    def drawing(self) -> Any | None:
        """The chosen layer, while it is the one that is selected."""
        layer = self.chosen
        return layer if layer is not None and layer is self._bench.viewer.layers.selection.active else None

    @property
    def value(self) -> int | None:
        """The class of the next box; None if there is none such in the table."""
        layer = self.chosen
        return None if layer is None else class_value(layers.default_class(layer), self._classes)

    @property
    def score(self) -> float | None:
        """How sure the next box is; None without a layer."""
        layer = self.chosen
        return None if layer is None else layers.default_score(layer)

    def draw(self, on: bool, value: int | None = None) -> None:
        """Begin to draw boxes of a class, in a new layer if there is none, or stop and go back."""
        bench, layer = self._bench, self.chosen
        if on and bench.image is not None and self._classes:
            if layer is None:
                try:
                    ndim = len(bench.read_image().shape)
                except ValueError as error:
                    bench.session.tasks.complain("start", "Drawing boxes", error)
                    return
                # that with most pixels, as it has the first key; the background is around objects
                usual = bench.session.table.keys.get(1, min(1, len(self._classes) - 1))
                name = self._classes[value or usual].name
                layer = layers.add_box_layer(bench.viewer, bench.image, ndim, name)
                self._take(layer)
            else:
                layers.draw_boxes(bench.viewer, layer)
            bench.session.tasks.say(
                "start",
                f"Draw a box around a “{layers.default_class(layer)}”, or click another class in the table "
                "first; Segment then heeds it.",
            )
        elif layer is not None and self.drawing is not None:
            layer.mode = "pan_zoom"
            back = bench.image if bench.group is None else bench.group.combined
            bench.viewer.layers.selection.active = back
        bench.show_soon()

    def choose(self, name: str) -> None:
        """Heed the boxes of another layer, by its name; "" for none."""
        layer = next((one for one in self.offered if one.name == name), None)
        if self._bench.key is not None:
            self._chosen.pop(self._bench.key, None)
            if layer is not None:
                self._take(layer)
        self._bench.show_soon()

    def say_class(self, value: int) -> None:
        """Set the class of the next box, and of those that are selected."""
        if self.chosen is not None:
            layers.say_of_boxes(self.chosen, layers.CLASS, self._classes[value].name)
            self._bench.show_soon()

    def say_score(self, score: float) -> None:
        """Set how sure the next box is, and those that are selected."""
        if self.chosen is not None:
            layers.say_of_boxes(self.chosen, layers.SCORE, round(score, 2))
            self._bench.show_soon()

    def read(self, image: ImageInput) -> list[Outline]:
        """Return the boxes that Segment is to heed."""
        layer = self.chosen
        return [] if layer is None else layers.read_boxes(layer, self._bench.image, image.stack_shape)

    @property
    def _classes(self) -> tuple[Any, ...]:
        return self._bench.session.table.classes

    def _take(self, layer: Any) -> None:
        assert self._bench.key is not None
        if layer not in self._chosen.values():
            layer.events.feature_defaults.connect(self._bench.show_soon)
            layer.events.current_properties.connect(self._bench.show_soon)
        self._chosen[self._bench.key] = layer
