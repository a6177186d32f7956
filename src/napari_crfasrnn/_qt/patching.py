"""Patch mode: a person is led from square to square, and says of each that all of it is right.

The view changes when a person presses something, and only then: it goes to the square, and back to where
it was when they leave. When a slice of a stack has no square left, it goes to the least certain one of the
other segmented ones. If they look at another image or slice by themselves, the mode ends and the view stays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from napari_crfasrnn._qt.layers import Frame, LabelGroup, show_plane, shows_planes
from napari_crfasrnn._qt.state import PlaneIndex, Work

if TYPE_CHECKING:
    from napari_crfasrnn._qt.workbench import Workbench
    from napari_crfasrnn.edits import Box, Patch

HOW = "Correct what is wrong inside the frame; then say that all of it is right."
NOT_SEGMENTED = "Nobody knows yet where the model is unsure: segment this slice first."
ALL_DONE = "Everything that is segmented here is verified: no square is left."
NONE_LEFT = "All other squares are verified or were skipped."
NO_PLANES = "Patches are of a slice: show the image in 2-D, not turned."


@dataclass(frozen=True)
class _Place:
    """The plane that is worked on."""

    group: LabelGroup
    work: Work
    index: PlaneIndex


class Patching:
    """Patch mode in one viewer.

    Parameters
    ----------
    bench
        The viewer's workbench.

    Attributes
    ----------
    patch
        The square that is framed.
    """

    def __init__(self, bench: Workbench) -> None:
        self.patch: Patch | None = None
        self._approved: list[object] = []  # steps of the history by which squares were said to be right
        self._bench, self._session = bench, bench.session
        self._frame = Frame(bench.viewer)
        self._place: _Place | None = None
        self._skipped: dict[PlaneIndex, list[Box]] = {}
        self._looking = False  # the next square is being chosen
        bench.changed.connect(self._follow)
        self._session.segmented.connect(self._on_segmented)

    @property
    def busy(self) -> bool:
        """Whether the next square is being chosen."""
        return self._looking

    def next(self) -> None:
        """Go to the square that is least certain; in the mode, leave the present one as it is."""
        if self._looking:
            return
        self._bench.doubts.end(restore=False)
        if self.patch is not None and self._place is not None:
            self._skipped.setdefault(self._place.index, []).append(self.patch.box)
        self._look()

    @property
    def n_right(self) -> int:
        """How many squares were said to be right since the mode was entered, but for those undone."""
        if self._place is None:
            return 0
        undone = self._place.group.find_undone()
        return sum(undone(step) is not True for step in self._approved)

    def approve(self) -> None:
        """Say that all labels of the square are right, and go to the next one."""
        place, patch = self._place, self.patch
        if place is None or patch is None or self._looking:
            return
        self._bench.labelling.flush()
        step = place.group.add_step()
        place.work.verify(place.index, patch.box, step)
        self._approved.append(step)
        self._session.touch(place.group.key)
        self._look()

    def leave(self) -> None:
        """End the mode; the view is as it was."""
        if self._place is not None:
            n_right = self.n_right
            said = f"{n_right} square{'s' * (n_right != 1)} verified." if n_right else ""
            self._end(restore=True)
            self._session.tasks.say("correct", said)

    def close(self) -> None:
        """Stop."""
        self._bench.changed.disconnect(self._follow)
        self._session.segmented.disconnect(self._on_segmented)
        self._end(restore=False)

    def _where(self) -> _Place | None:
        bench, group, work = self._bench, self._bench.group, self._bench.work
        if group is None or not group.alive or work is None or group.labels is not work.labels:
            return None
        return _Place(group, work, bench.index) if shows_planes(bench.viewer) else None

    def _follow(self) -> None:
        """End where a person looks at something else."""
        place, now = self._place, self._where()
        if place is None:
            return
        if now is None or now.group is not place.group or now.index != place.index:
            self._end(restore=False)
            self._session.tasks.say("correct", "")
        elif now.work is not place.work:  # the class table has changed
            self._place = now

    def _on_segmented(self, key: str) -> None:
        line = self._session.tasks.lines.get("correct")
        if line is not None and line.text == NOT_SEGMENTED:
            self._session.tasks.say("correct", "")

    def _end(self, *, restore: bool) -> None:
        self._frame.hide(restore=restore)
        self._place = self.patch = None
        self._skipped.clear()
        self._looking = False
        self._approved = []

    def _look(self) -> None:
        """Choose the next square, beside whatever else is going on."""
        place = self._where()
        tasks = self._session.tasks
        if place is None:
            said = NO_PLANES if self._bench.group is not None else NOT_SEGMENTED
            tasks.say("correct", said, "quiet", *self._cures())
            return
        self._looking, self._place = True, place
        skipped = {index: tuple(boxes) for index, boxes in self._skipped.items()}

        def done(found: tuple[PlaneIndex, Patch] | None) -> None:
            if self._place is not place or not self._looking:
                return  # the person went elsewhere
            self._looking = False
            self._take(place, found)

        self._session.choose_patch(place.group.key, place.index, skipped, done)

    def _take(self, place: _Place, found: tuple[PlaneIndex, Patch] | None) -> None:
        say = self._session.tasks.say
        if found is not None:
            index, self.patch = found
            if index != place.index:  # first said, so that it is not taken for a person's looking elsewhere
                self._place = replace(place, index=index)
                show_plane(self._bench.viewer, place.group.image, index)
            self._frame.show(place.group.image, place.work.image.plane_shape, self.patch.box)
            say("correct", HOW)
            return
        skipped = bool(self._skipped)
        self._end(restore=True)
        if not place.work.is_segmented(place.index):
            say("correct", NOT_SEGMENTED, "quiet", *self._cures())
        else:
            say("correct", NONE_LEFT if skipped else ALL_DONE, "quiet" if skipped else "good")

    def _cures(self) -> tuple[str, ...]:
        return () if self._session.busy is not None or not shows_planes(self._bench.viewer) else ("segment",)
