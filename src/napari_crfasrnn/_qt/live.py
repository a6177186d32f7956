"""Live refinement: while somebody paints, the labels around the stroke follow the edges of the image.

A stroke goes through three states. While it is drawn, previews of it are made as fast as they come, of what
was painted since the last one, and drawn as a guess; none waits for another. When it ends, the exact answer
is asked for. When that is there, it is written, as one undo step of its own after that of the stroke. If
labels change in any other way meanwhile, or another plane is looked at, what is under way is dropped.

Where the model knows none of the classes, there is nothing to refine: when a stroke ends, a classifier learns
all strokes and labels the plane (`LiveClassifier`). The rest is the same, but for the previews. Where it
knows some of them, the strokes of the others are learnt and labelled beside what it says (`LiveBeside`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QTimer

from napari_crfasrnn._qt.layers import LabelGroup, StrokeWatch, shows_planes, united
from napari_crfasrnn._qt.state import Labels, PlaneIndex, Work
from napari_crfasrnn._qt.state.telling import PAINT_ANOTHER, PAINT_AROUND, PAINT_WRONG, TO_PAINT
from napari_crfasrnn.classes import ignore_value
from napari_crfasrnn.edits import Mask, box_about, fits_live

if TYPE_CHECKING:
    from napari_crfasrnn._qt.state.engine import ModelRequest
    from napari_crfasrnn._qt.workbench import Workbench
    from napari_crfasrnn._qt.worker import Task
    from napari_crfasrnn.segmenter import LiveRefinement, Refined
    from napari_crfasrnn.training import LiveBeside, LiveClassifier

    Refinement = LiveRefinement | LiveClassifier | LiveBeside

Box = tuple[int, int, int, int]

PREVIEW_SIDE = (
    96  # pixels; of more that was painted since the last preview, this much around the pen is shown
)
KEEP = 16  # pixels at the border of a preview where an earlier one knows more of the stroke
ABOUT_STROKES = ("prepare", "preview", "exact", "uncertainty")  # jobs; "make ready" is about the image
LIVE = "live"  # what labels of a classifier are of; no model has this name
REST_MS = 150  # without a change, until the next stroke is prepared


@dataclass(eq=False)
class _Stroke:
    """What is painted and not refined yet."""

    box: Box  # all of it
    fresh: Box | None  # since the last preview
    pen: Box  # last
    ended: bool = False


@dataclass(frozen=True, eq=False)
class _Place:
    """The plane that is worked on, the model that refines it, and which classes that does not know."""

    key: str
    group: LabelGroup
    work: Work
    index: PlaneIndex
    request: ModelRequest
    new: tuple[int, ...]
    is_unknown: bool  # whether the model knows no class beside the background

    @property
    def is_beside(self) -> bool:
        """Whether the model knows some of the classes, and not all."""
        return bool(self.new) and not self.is_unknown

    def is_same(self, other: _Place | None) -> bool:
        return (
            other is not None
            and self.group is other.group
            and self.work is other.work
            and self.work.image.array is other.work.image.array
            and self.index == other.index
            and self.request == other.request
            and self.new == other.new
            and self.is_unknown == other.is_unknown
        )


class Live:
    """Live refinement in one viewer.

    Parameters
    ----------
    bench
        The viewer's workbench.

    Attributes
    ----------
    on
        Whether strokes are refined.
    """

    def __init__(self, bench: Workbench) -> None:
        self.on = True
        self._bench, self._session = bench, bench.session
        self._place: _Place | None = None
        self._watch: StrokeWatch | None = None
        self._refinement: Refinement | None = None
        self._has_guesses = False  # of a classifier, on the plane
        self._prepared = False
        self._before: Labels = np.zeros((0, 0), np.uint8)  # [H, W], labels before the stroke
        self._claimed: Mask = np.zeros((0, 0), bool)  # [H, W], painted by it, but as they were
        self._failed: _Place | None = None  # where it cannot be made ready: only a stroke tries again
        self._stroke: _Stroke | None = None
        self._answers: list[Refined] = []  # that wait for the end of the next stroke
        self._uncertain: Refined | None = None  # whose uncertainty is to be computed
        self._job: tuple[str, Task] | None = None
        self._rest = QTimer()
        self._rest.setSingleShot(True)
        self._rest.setInterval(REST_MS)
        self._rest.timeout.connect(self._go)
        bench.changed.connect(self._follow)
        self._session.finished.connect(self._on_finished)

    @property
    def busy(self) -> bool:
        """Whether something is under way."""
        waits = bool(self._answers) or self._stroke is not None
        return waits or self._job is not None or self._rest.isActive()

    @property
    def is_getting_ready(self) -> bool:
        """Whether strokes are not refined yet, but will be soon."""
        return self._place is not None and self._refinement is None and self.busy

    def set_on(self, on: bool) -> None:
        """Refine strokes from now on, or do not."""
        self.on = on
        self._follow()

    def close(self) -> None:
        """Stop."""
        self._leave()
        self._bench.changed.disconnect(self._follow)

    # --- where -----------------------------------------------------------------------------------------

    def _where(self) -> _Place | None:
        bench, group, work = self._bench, self._bench.group, self._bench.work
        if not self.on or group is None or not group.alive or work is None or bench.before_on:
            return None
        if self._session.shelf.choice is None or not shows_planes(bench.viewer):
            return None
        if group.labels is not work.labels or len(group.classes) != len(self._session.table.classes):
            return None  # about to follow the class table
        table, request = self._session.table, self._session.request()
        return _Place(bench.key or "", group, work, bench.index, request, table.own_values, table.is_unknown)

    def _follow(self) -> None:
        """Work where the person does."""
        place = self._where()
        if place is None or not place.is_same(self._place):
            self._leave()
            if place is not None:
                self._enter(place)
        self._follow_guesses()
        waits = place is not None and self._refinement is None and not place.is_same(self._failed)
        if waits and self._bench.painting is not None:
            self._rest.start()

    @property
    def _classifies(self) -> bool:
        """Whether strokes are answered by a classifier."""
        return self._refinement is not None and not self._refinement.has_previews

    def _follow_guesses(self) -> None:
        """Where a classifier's labels came, or went by an undo: hide the background, or show its strokes."""
        place = self._place
        if place is None or not self._classifies:
            return
        has_guesses = place.work.has_guesses(place.index)
        if has_guesses == self._has_guesses:
            return
        self._has_guesses = has_guesses
        self._bench.labelling.show_as_strokes(place.key, not has_guesses)
        if not has_guesses:
            place.work.forget_entropy(place.index)
            self._session.standing.forget(place.key)
            self._bench.labelling.follow_predictions(place.key)

    def _enter(self, place: _Place) -> None:
        self._place = place
        self._has_guesses = place.work.has_guesses(place.index)
        self._watch = StrokeWatch(place.group)
        self._watch.painted.connect(self._on_painted)
        self._watch.claimed.connect(self._on_claimed)
        self._watch.ended.connect(self._on_ended)
        self._watch.disturbed.connect(self._on_disturbed)
        self._before = place.work.labels[place.index].copy()
        self._claimed = np.zeros_like(self._before, bool)

    def _leave(self) -> None:
        self._stop_job()
        self._drop()
        self._rest.stop()
        self._place = self._refinement = None
        self._prepared = False
        if self._watch is not None:
            self._watch.close()
        self._watch = None

    def _drop(self) -> None:
        """Forget strokes that are not refined yet."""
        self._stop_job(*ABOUT_STROKES)
        self._stroke = self._uncertain = None
        self._answers.clear()
        if self._place is not None:
            self._place.group.drawing.clear()

    # --- what happens ----------------------------------------------------------------------------------

    def _on_painted(self, box: Box) -> None:
        if self._place is None:
            return
        if self._stroke is None:
            self._stroke = _Stroke(box, box, box)
        else:
            stroke = self._stroke
            stroke.box, stroke.fresh, stroke.pen = united(stroke.box, box), united(stroke.fresh, box), box
            stroke.ended = False
        self._stop_job("uncertainty")
        self._go()

    def _on_claimed(self, box: Box, where: Mask) -> None:
        place = self._place
        if place is None:
            return
        part = _slices(box)
        as_before = place.work.labels[place.index][part] == self._before[part]
        self._claimed[part] |= where & as_before & ~place.work.verified[place.index][part]
        self._on_painted(box)

    def _on_ended(self) -> None:
        if self._stroke is not None:
            self._stroke.ended = True
            self._stop_job("preview")
            self._go()

    def _on_disturbed(self) -> None:
        place = self._place
        if place is None:
            return
        self._drop()
        self._before = place.work.labels[place.index].copy()
        self._claimed = np.zeros_like(self._before, bool)
        self._prepared = False
        if self._refinement is not None:
            self._rest.start()

    def _on_finished(self, what: str) -> None:
        self._follow()
        self._go()

    # --- what is done ----------------------------------------------------------------------------------

    def _go(self) -> None:
        """Begin what is due next, unless something is under way."""
        place, watch = self._place, self._watch
        if place is None or watch is None or self._job is not None or self._session.busy is not None:
            return
        ready, stroke = self._refinement, self._stroke
        if ready is not None and stroke is not None and not ready.covers(stroke.box):
            self._refinement = None  # of another part of a large plane
        if self._refinement is None:
            box = self._box(place)
            if box is not None:
                self._start("make ready", self._readied(place, box), self._take_ready)
        elif self._stroke is not None and self._stroke.ended:
            self._ask_exact(place, self._refinement, self._stroke)
        elif self._stroke is not None and self._stroke.fresh is not None and self._refinement.has_previews:
            self._ask_preview(place, self._refinement, self._stroke.pen, self._stroke.fresh)
            self._stroke.fresh = None
        elif not self._prepared and self._refinement.has_previews:
            self._ask_base(place, self._refinement)
        elif self._uncertain is not None and not watch.in_stroke:
            refined, self._uncertain = self._uncertain, None
            self._start(
                "uncertainty",
                lambda task: (refined.box, refined.entropy()),
                lambda result: self._take_entropy(place, *result),
            )

    def _box(self, place: _Place) -> Box | None:
        """Return the part of a plane to make ready; None where there must be a stroke first, to say which."""
        (height, width), n_classes = self._before.shape, len(self._session.table.classes)
        if not place.new or fits_live((height, width), n_classes):
            return (0, 0, height, width)
        return None if self._stroke is None else box_about(self._stroke.box, (height, width), n_classes)

    def _readied(self, place: _Place, box: Box) -> Callable[[Task], Refinement]:
        """Return what makes ready for strokes on a plane, or in a part of it."""
        engine, image = self._session.engine, place.work.image
        if not place.new:
            return lambda task: engine.live(place.request, image, place.index, task.cancelled)
        elsewhere = [
            lesson
            for work in self._session.works.values()
            for lesson in work.standing_lessons(
                place.request.source, (place.index, box) if work is place.work else None
            )
        ]
        if place.is_beside:
            return lambda task: engine.live_beside(
                place.request, image, place.index, box, place.new, elsewhere, task.cancelled
            )
        return lambda task: engine.live_classifier(
            place.request, image, place.index, box, elsewhere, task.cancelled
        )

    def _take_ready(self, refinement: Refinement) -> None:
        self._refinement = refinement
        self._prepared = not refinement.is_whole
        self._bench.show_soon()

    def _ask_base(self, place: _Place, live: LiveRefinement | LiveBeside) -> None:
        strokes = self._strokes_before(place, ...)
        self._prepared = True
        self._start("prepare", lambda task: live.prepare(strokes, cancel=task.cancelled), lambda _: None)

    def _ask_preview(self, place: _Place, live: LiveRefinement | LiveBeside, pen: Box, fresh: Box) -> None:
        box = _around(pen, fresh)
        part = _slices(live.preview_window(box))
        strokes = place.work.strokes(place.index, part)
        before = self._strokes_before(place, part)
        now = place.work.labels[place.index][part].copy()

        def show(refined: Refined) -> None:
            where = self._free(place, refined)
            where &= place.work.labels[place.index][part] == now  # not what was painted since
            place.group.drawing.show(place.index, refined.box, refined.labels, where, KEEP)

        self._start("preview", lambda task: live.preview(box, strokes, before, cancel=task.cancelled), show)

    def _ask_exact(self, place: _Place, live: Refinement, stroke: _Stroke) -> None:
        box, self._stroke = stroke.box, None
        part = _slices(live.exact_window(box))
        strokes = place.work.strokes(place.index, part)
        before = self._strokes_before(place, part)
        painted = _slices(box)
        self._before[painted] = place.work.labels[place.index][painted]
        self._claimed[painted] = False
        self._prepared = True
        self._start(
            "exact", lambda task: live.exact(box, strokes, before, cancel=task.cancelled), self._take_exact
        )

    def _take_exact(self, refined: Refined) -> None:
        place, watch = self._place, self._watch
        if place is None or watch is None:
            return
        self._answers.append(refined)
        live = self._refinement
        if live is not None and live.lesson is not None:
            place.work.take_lesson(place.request.source, place.index, live.box, live.lesson)
            if refined.changed.any():
                self._advise(PAINT_AROUND if live.is_part else PAINT_WRONG)
            elif not live.has_previews:
                self._advise(PAINT_ANOTHER)
        if (
            watch.in_stroke or self._stroke is not None
        ):  # written at the end of that stroke, in one step with its own
            place.group.drawing.show(place.index, refined.box, refined.labels, self._free(place, refined), 0)
            return
        self._write(place)
        self._uncertain = refined if refined.changed.any() else None

    def _write(self, place: _Place) -> None:
        """Bring the answers into the layers, the later over the earlier."""
        box = functools.reduce(united, (refined.box for refined in self._answers))
        part = _slices(box)
        now = place.work.labels[place.index][part]
        labels = now.copy()
        for refined in self._answers:
            covered = labels[_slices(refined.box, box)]
            np.copyto(covered, refined.labels, where=self._free(place, refined))
        self._answers.clear()
        where = labels != now
        if where.any():
            bounds = _bounds(where, box)
            inner = _slices(bounds, box)
            step = place.group.write_part(place.index, bounds[:2], labels[inner], where[inner])
            place.work.take_refined(place.index, bounds[:2], where[inner], step)
            self._before[part] = place.work.labels[place.index][part]
            self._follow_guesses()
            place.group.redraw()  # at once, so that nothing is seen between the guess and the answer
        place.group.drawing.clear()
        self._bench.refined_live.emit(int(np.count_nonzero(where)))

    def _take_entropy(self, place: _Place, box: Box, entropy: NDArray[np.float32]) -> None:
        is_first = self._classifies and place.work.has_guesses(place.index)
        place.work.set_entropy(place.index, _slices(box), entropy, is_first=is_first)
        self._bench.labelling.follow_predictions(place.key)
        if is_first:  # now there are squares to correct, and what a model is unsure of
            self._session.standing.segmented(place.key, place.index, LIVE)
            self._bench.show_soon()

    def _advise(self, what: str) -> None:
        """Say what to paint next, unless something else is said there."""
        said = self._session.tasks.lines.get("classes")
        if said is None or said.text in TO_PAINT:
            self._session.tasks.say("classes", what)

    def _strokes_before(self, place: _Place, part: Any) -> Labels:
        """Return `Work.strokes` of a part of the plane as they were before the stroke."""
        strokes = place.work.strokes(place.index, part, self._before[part])
        strokes[self._claimed[part]] = ignore_value(strokes.dtype)
        return strokes

    def _free(self, place: _Place, refined: Refined) -> Any:
        """Return where an answer may be shown or written: where the stroke matters and nobody has painted."""
        part = _slices(refined.box)
        settled = place.work.held(place.index, part) | place.work.erased(place.index, part)
        return refined.changed & ~settled

    def _start(self, what: str, work: Callable[[Task], Any], done: Callable[[Any], None]) -> None:
        place = self._place

        def finish(result: Any) -> None:
            self._job = None
            self._follow()  # the person may look at another plane already
            if self._place is place:
                done(result)
            self._go()

        def fail(error: Exception) -> None:
            self._job, self._failed = None, place if what == "make ready" else None
            self._drop()
            self._session.tasks.complain("correct", "Live refinement", error)

        self._job = (what, self._session.tasks.beside(f"live: {what}", work, finish, fail))

    def _stop_job(self, *only: str) -> None:
        if self._job is not None and (not only or self._job[0] in only):
            self._session.tasks.drop(self._job[1])
            self._job = None


def _slices(box: Box, within: Box = (0, 0, 0, 0)) -> tuple[slice, slice]:
    y0, x0 = within[:2]
    return slice(box[0] - y0, box[2] - y0), slice(box[1] - x0, box[3] - x0)


def _around(pen: Box, fresh: Box) -> Box:
    """Return the part of a box around the pen that a preview can be quick for."""
    sides = []
    for axis in (0, 1):
        start, end = fresh[axis], fresh[axis + 2]
        if end - start > PREVIEW_SIDE:
            middle = (pen[axis] + pen[axis + 2]) // 2
            start = min(max(start, middle - PREVIEW_SIDE // 2), end - PREVIEW_SIDE)
            end = start + PREVIEW_SIDE
        sides.append((start, end))
    return sides[0][0], sides[1][0], sides[0][1], sides[1][1]


def _bounds(where: Any, box: Box) -> Box:
    """Return the smallest box around the places within a box."""
    rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
    return (
        int(box[0] + rows[0]),
        int(box[1] + columns[0]),
        int(box[0] + rows[-1] + 1),
        int(box[1] + columns[-1] + 1),
    )
