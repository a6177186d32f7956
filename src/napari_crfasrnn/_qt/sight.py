"""The image that somebody begins to work on is seen: the view changes where it would show another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_crfasrnn._qt.layers import fit, is_lost, raise_above, shows_planes

if TYPE_CHECKING:
    from napari_crfasrnn._qt.workbench import Workbench


class Sight:
    """Keeps the image of a workbench in view.

    The view changes with the image, never while one is worked on.

    Parameters
    ----------
    bench
        The viewer's workbench. What is there at the beginning is taken for seen.
    """

    def __init__(self, bench: Workbench) -> None:
        self._bench, self._image = bench, bench.image
        self._units = bench.viewer.layers.units
        self._asked = False
        bench.changed.connect(self._follow)  # after patches and comparisons, which end with their image

    def ask(self) -> None:
        """Say that somebody chose the image by its name, or works on it: it comes above what covers it."""
        self._asked = True
        self._bench.show_soon()

    def close(self) -> None:
        """Stop."""
        self._bench.changed.disconnect(self._follow)

    def _follow(self) -> None:
        viewer, image, before = self._bench.viewer, self._bench.image, self._image
        asked, self._asked, self._image = self._asked, False, image
        units, self._units = self._units, viewer.layers.units
        if image is None or image not in viewer.layers or not shows_planes(viewer):
            return
        lost = image is not before and is_lost(viewer, image, before, units)
        if lost or asked:
            group = self._bench.group
            raise_above(viewer, image, group.outputs if group is not None else ())
        if lost:
            fit(viewer, image)
