"""The order of the images of a viewer, as a person knows them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from napari_crfasrnn._qt.layers import image_layers, key_of

if TYPE_CHECKING:
    from napari_crfasrnn._qt.workbench import Workbench


class ImageOrder:
    """The images of one viewer: those of a project by their numbers, then others as they came.

    In the viewer's own list the image that is worked on lies on top, so the order changes there.

    Parameters
    ----------
    bench
        The viewer's workbench.
    """

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._ranks: dict[str, tuple[float, int]] = {}  # as of when an image was seen first

    def layers(self) -> list[Any]:
        """Return the image layers in their order."""
        bench = self._bench
        found = {key_of(layer): layer for layer in image_layers(bench.viewer.layers)}
        for key in reversed(found):  # the lowest layer came first
            if key not in self._ranks:
                number = bench.session.storage.keeper.number_of(key)
                self._ranks[key] = (math.inf if number is None else number, len(self._ranks))
        return [found[key] for key in sorted(found, key=self._ranks.__getitem__)]

    def step(self, n: int) -> None:
        """Work on the n-th image after this one, or before it; nothing happens past the ends."""
        keys = [key_of(layer) for layer in self.layers()]
        if self._bench.key in keys:
            place = keys.index(self._bench.key) + n
            if 0 <= place < len(keys):
                self._bench.choose_image(keys[place])
