"""Strokes that contradict the others: a person is led to them, one after the other.

The view changes when a person presses something, and only then. If they look at another image or slice by
themselves, or work on, the tour ends and the view stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from napari_crfasrnn._qt.layers import Frame, key_of, show_plane, shows_planes
from napari_crfasrnn._qt.state import PlaneIndex

if TYPE_CHECKING:
    from napari_crfasrnn._qt.state.tasks import Line
    from napari_crfasrnn._qt.workbench import Workbench
    from napari_crfasrnn.edits import Box
    from napari_crfasrnn.training import PlaceOfContradiction

LEAST_SIDE = 96  # pixels of what is framed around a stroke, so that one sees what it lies in
CORRECTED = "Corrected."
NO_PLANES = "Strokes are shown on a slice: show the image in 2-D, not turned."


class Doubts:
    """Showing contradicting strokes in one viewer.

    Parameters
    ----------
    bench
        The viewer's workbench.

    Attributes
    ----------
    shown
        Which one is framed; None while none is.
    """

    def __init__(self, bench: Workbench) -> None:
        self.shown: PlaceOfContradiction | None = None
        self._bench, self._session = bench, bench.session
        self._frame = Frame(bench.viewer)
        self._where: tuple[str | None, PlaneIndex] = (None, ())
        self._from: tuple[str | None, PlaneIndex] = (None, ())  # what was looked at before the first
        self._line: Line | None = None  # what is said of the one that is framed
        bench.changed.connect(self._follow)

    @property
    def places(self) -> tuple[PlaceOfContradiction, ...]:
        """The strokes in question: of the round that is neither kept nor discarded, as far as they stand."""
        return tuple(filter(self._stands, self._all))

    @property
    def _all(self) -> tuple[PlaceOfContradiction, ...]:
        report = self._session.lessons.report
        return () if report is None else report.contradictions

    def next(self) -> None:
        """Frame the first of them, or the one after that which is framed."""
        bench, say = self._bench, self._session.tasks.say
        places = self.places
        if not places or self._session.busy is not None:
            return
        bench.patching.leave()
        bench.comparing.end()
        if not shows_planes(bench.viewer):
            say("learn", NO_PLANES)
            return
        if self.shown is None:
            self._from = bench.key, bench.index
        every = self._all
        start = every.index(self.shown) + 1 if self.shown in every else 0  # it may have been corrected
        place = next(place for place in (*every[start:], *every) if place in places)
        key = self._session.storage.keeper.key_of(place.item_id)
        layer = bench.labelling.image_layer(key) if key is not None else None
        work = self._session.works.get(key or "")
        said = f"Stroke {places.index(place) + 1} of {len(places)}: {self._said(place)}"
        self._line = None
        if layer is None or work is None:
            self._frame.hide(restore=False)
            said += " Its image is not open."
        else:
            if layer is not bench.image:  # else the layer that is painted on stays selected
                bench.choose_image(key_of(layer))
            if place.index:
                show_plane(bench.viewer, layer, place.index)
            shape = work.image.plane_shape
            self._frame.show(layer, shape, _around(place.region.box, shape))
        self.shown, self._where = place, (bench.key, bench.index)
        self._tell(said)

    def end(self, *, restore: bool = True) -> None:
        """Take the frame away; with ``restore`` the view is as it was, if it is still of the same plane."""
        if self.shown is None:
            return
        self._frame.hide(restore=restore and self._where == self._from)
        self.shown = None
        if self._session.tasks.lines.get("learn") is self._line:  # else something else was said since
            self._session.tasks.say("learn", "")

    def close(self) -> None:
        """Stop."""
        self._bench.changed.disconnect(self._follow)
        self.end(restore=False)

    def _stands(self, place: PlaceOfContradiction) -> bool:
        """Return whether most of a stroke is as it was when it was learnt, as far as its image is open."""
        work = self._session.works.get(self._session.storage.keeper.key_of(place.item_id) or "")
        report, label = self._session.lessons.report, place.region.label
        if work is None or report is None or len(place.index) != work.labels.ndim - 2:
            return True
        name, names = report.model.classes[label].name, self._session.table.names
        if name in names:  # else it was renamed: its value is the same
            label = names.index(name)
        y0, x0, y1, x1 = place.region.box
        strokes = work.strokes(place.index, np.s_[y0:y1, x0:x1])
        return bool(2 * np.count_nonzero(strokes == label) > place.region.n_pixels)

    def _tell(self, said: str) -> None:
        line = self._line
        if line is None or line.text != said:
            more = ["next-doubt"] if any(place != self.shown for place in self.places) else []
            self._session.tasks.say("learn", said, "plain", *more, "end-doubts")
            self._line = self._session.tasks.lines.get("learn")

    def _said(self, place: PlaceOfContradiction) -> str:
        report, region = self._session.lessons.report, place.region
        assert report is not None  # else there was no place to go to
        names = [spec.name for spec in report.model.classes]
        share, seen = f"{100 * region.share:.0f} %", names[region.predicted]
        what = f"and still {seen} to what was learnt ({share} of {region.n_pixels:,} px)"
        if region.is_learnt:
            what = f"but from the other strokes it looks like {seen} ({share})"
        return f"painted {names[region.label]}, {what}."

    def _follow(self) -> None:
        """End where a person looks at something else, works on, or has decided about the round."""
        if self.shown is None:
            return
        elsewhere = self._where != (self._bench.key, self._bench.index)
        is_seen = not elsewhere and shows_planes(self._bench.viewer)
        if not is_seen or self.shown not in self._all or self._session.busy is not None:
            self.end(restore=False)
        elif not self._stands(self.shown) and self._session.tasks.lines.get("learn") is self._line:
            self._tell(CORRECTED)  # the frame stays until they go on: the view would jump


def _around(box: Box, shape: tuple[int, int]) -> Box:
    """Return a square around a box that is large enough to see what lies there, as far as the plane goes."""
    y0, x0, y1, x1 = box
    side = max(LEAST_SIDE, y1 - y0, x1 - x0)
    bounds = []
    for low, high, length in ((y0, y1, shape[0]), (x0, x1, shape[1])):
        start = min(max(0, (low + high - side) // 2), max(0, length - side))
        bounds.append((start, min(length, start + side)))
    (top, bottom), (left, right) = bounds
    return top, left, bottom, right
