"""Live refinement with a mouse: a guess while the pen is down, the exact answer after it, undo."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest
from scipy import ndimage

from napari_crfasrnn._qt.layers.drawing import Drawing
from napari_crfasrnn._qt.live import Live
from napari_crfasrnn.segmenter import LiveRefinement, Segmenter

UNLABELLED = 255
HELMET = (
    (200, 131),
    (228, 136),
    (234, 149),
)  # part of the helmet, for the starter model a person
MOST_SHARE = 0.2  # of the CPU time of one segmentation, for the window's thread at one go


@pytest.fixture
def painter(user: Any, photograph: np.ndarray) -> Any:
    """Somebody about to paint background on a segmented photograph, with live refinement."""
    user.viewer.add_image(photograph, name="photo")
    assert user.do(user.widget.segment) == "segment"
    assert not user.widget.correct.live.isChecked()  # the fixture has turned it off
    user.click(user.widget.correct.live)
    user.answers = []
    user.bench.refined_live.connect(user.answers.append)
    user.bench.paint_with(0)
    user.viewer.layers.selection.active.brush_size = 8
    user.wait(lambda: user.bench.live._refinement is not None)
    user.settle()
    return user


def guessed(user: Any) -> int:
    """Return how many pixels are drawn otherwise than they are."""
    guess = user.bench.group.drawing._guessed
    return 0 if guess is None else int(np.count_nonzero(guess.over(user.labels, np.s_[:]) != user.labels))


def spot_within(mask: np.ndarray) -> tuple[int, int]:
    """Return the place that is farthest from the border of a mask."""
    deep = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(deep.argmax(), deep.shape)
    return int(y), int(x)


def undo(user: Any) -> None:
    canvas = user.viewer.window._qt_viewer.canvas.native
    QTest.keyClick(canvas, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)


def assert_in_step(user: Any) -> None:
    group = user.bench.group
    np.testing.assert_array_equal(group.combined.data, group.labels)
    for layer in group.class_layers:
        shown = np.where(group.labels == layer.value, group.labels, 0).astype(group.labels.dtype)
        np.testing.assert_array_equal(np.asarray(layer.data), shown)
        np.testing.assert_array_equal(layer._slice.image.raw, shown)  # what napari draws from
        np.testing.assert_array_equal(layer._slice.image.view, layer.colormap._data_to_texture(shown))


def test_a_stroke_from_pen_down_to_two_undos(painter, photograph) -> None:
    before = painter.labels.copy()
    live = painter.bench.live
    painter.drag(*HELMET, release=False)
    painter.wait(lambda: live._job is None and live._stroke.fresh is None)
    assert guessed(painter) > 30
    stroke = painter.bench.work.held(())  # all that the brush covers, also where background was
    assert stroke[painter.labels != before].all()
    assert (painter.labels[stroke] == 0).all()
    assert not painter.answers
    painted = painter.labels.copy()
    # The guess is on the screen, and nowhere else.
    guess = painter.bench.group.drawing._guessed
    otherwise = guess.over(painted, np.s_[:]) != painted
    places = ndimage.binary_erosion(otherwise & (before != 0) & ~stroke)
    spots = np.argwhere(places)  # with places all around them: rounding does not matter
    y, x = spots[len(spots) // 2]
    with_guess = painter.color_at(y, x)
    painter.bench.group.drawing.clear()
    assert np.abs(with_guess - painter.color_at(y, x)).max() > 10
    np.testing.assert_array_equal(painter.labels, painted)

    painter.release(*HELMET[-1])
    painter.wait(lambda: painter.answers)
    strokes = np.where(stroke, painted, UNLABELLED)
    cold = Segmenter(painter.session.engine._model, "cpu")
    cold.set_image(photograph)
    np.testing.assert_array_equal(painter.labels, cold.refine(strokes, clamp=stroke).labels)
    refined = painter.labels.copy()
    assert painter.answers == [np.count_nonzero(refined != painted)]
    assert painter.answers[0] > 30
    assert guessed(painter) == 0
    assert_in_step(painter)
    painter.settle()
    assert_in_step(painter)

    # What followed is what the model thinks, and no label: nobody painted it.
    work = painter.bench.work
    assert painter.session.numbers[painter.bench.key].summary.n_edited == np.count_nonzero(stroke)
    np.testing.assert_array_equal(work.held(()), stroke)
    np.testing.assert_array_equal(work.entropy[stroke], 0)

    undo(painter)
    np.testing.assert_array_equal(painter.labels, painted)
    undo(painter)
    np.testing.assert_array_equal(painter.labels, before)
    painter.settle()
    assert len(painter.answers) == 1  # undoing is no stroke
    painter.bench.redo()
    painter.bench.redo()
    np.testing.assert_array_equal(painter.labels, refined)
    np.testing.assert_array_equal(work.held(()), stroke)
    painter.settle()
    assert_in_step(painter)


def test_class_layers_outlines_and_erasers_are_refined_alike(painter) -> None:
    painter.bench.labelling.toggle_contour()
    painter.bench.paint_with(15)
    layer = painter.viewer.layers.selection.active
    assert layer is painter.bench.group.class_layers[15]
    layer.mode = "erase"
    before = painter.labels.copy()
    painter.drag(*HELMET, release=False)
    painter.wait(lambda: guessed(painter) > 30)
    painter.release(*HELMET[-1])
    painter.wait(lambda: painter.answers)
    changed = painter.labels != before
    assert (painter.labels[changed] == 0).mean() > 0.9
    undo(painter)
    undo(painter)
    np.testing.assert_array_equal(painter.labels, before)


def test_a_second_stroke_need_not_wait(painter) -> None:
    before = painter.labels.copy()
    painter.drag(*HELMET)
    painter.drag((20, 60), (30, 110), release=False)  # while the first is being refined
    painter.wait(lambda: painter.bench.live._answers)
    assert not painter.answers  # nothing is written under the pen
    painter.release(30, 110)
    painter.wait(lambda: painter.answers)
    painter.settle()
    assert len(painter.answers) == 1
    for _ in range(3):  # what followed both, the second stroke, the first
        assert (painter.labels != before).any()
        undo(painter)
    np.testing.assert_array_equal(painter.labels, before)


def test_an_undo_before_the_answer_is_final(painter) -> None:
    before = painter.labels.copy()
    painter.drag(*HELMET)
    undo(painter)
    np.testing.assert_array_equal(painter.labels, before)
    painter.settle()
    assert not painter.answers
    assert guessed(painter) == 0
    np.testing.assert_array_equal(painter.labels, before)


def test_unlabelled_stays_unlabelled(painter) -> None:
    painter.drag(*HELMET)
    painter.wait(lambda: painter.answers)
    painter.bench.paint_unlabelled()
    painter.drag(*HELMET)
    erased = painter.labels == UNLABELLED
    assert erased.any()
    painter.wait(lambda: len(painter.answers) > 1)
    painter.settle()
    assert (painter.labels[erased] == UNLABELLED).all()


def test_polygons_and_fills_are_strokes_too(painter) -> None:
    layer = painter.bench.group.combined
    layer.paint_polygon([[200, 128], [234, 130], [234, 150]], 0)
    painter.wait(lambda: painter.answers)
    assert painter.answers[0] > 0
    painter.settle()
    layer.mode = "fill"
    layer.selected_label = 3
    spot = painter.on_canvas(8, 120)
    canvas = painter.viewer.window._qt_viewer.canvas.native
    QTest.mouseClick(canvas, Qt.MouseButton.LeftButton, pos=spot)
    painter.wait(lambda: len(painter.answers) > 1)
    assert painter.labels[8, 120] == 3


def test_what_refine_gave_is_a_stroke_once_it_is_painted(painter) -> None:
    painter.drag(*HELMET)
    painter.wait(lambda: painter.answers)
    work = painter.bench.work
    refined = painter.labels.copy()
    undo(painter)
    followed = np.argwhere(painter.labels != refined)
    painter.settle()
    y, x = followed[len(followed) // 2]
    painter.bench.group.combined.paint((y, x), 0)
    painter.settle()
    assert work.held(())[y, x]


def test_another_slice_or_image_drops_what_is_under_way(user, photograph) -> None:
    stack = user.viewer.add_image(np.stack([photograph[..., 0], photograph[..., 1]]), name="stack")
    user.viewer.dims.set_current_step(0, 0)
    assert user.do(user.widget.segment) == "segment"
    user.bench.set_live(True)
    user.bench.paint_with(0)
    user.viewer.layers.selection.active.brush_size = 8
    user.wait(lambda: user.bench.live._refinement is not None)
    for leave in (
        lambda: user.viewer.dims.set_current_step(0, 1),
        lambda: user.viewer.add_image(photograph, name="another"),
        lambda: user.viewer.layers.remove(stack),
    ):
        user.settle()
        user.drag(*HELMET, release=False)
        labels = user.labels
        user.release(*HELMET[-1])
        painted = labels.copy()
        leave()
        user.settle()
        np.testing.assert_array_equal(labels, painted)
        if stack in user.viewer.layers:
            user.bench.select_image(user.bench.labelling.groups.copy().popitem()[0])
            user.viewer.dims.set_current_step(0, 0)
            user.bench.group.undo()
            user.bench.paint_with(0)


def test_switched_off_nothing_follows(painter) -> None:
    painter.click(painter.widget.correct.live)
    assert not painter.widget.correct.live.isChecked()
    before = painter.labels.copy()
    painter.drag(*HELMET)
    painter.settle()
    assert not painter.answers
    held = painter.bench.work.held(())
    assert held[painter.labels != before].all()
    assert (painter.labels[held] == 0).all()


def test_confirming_is_a_stroke_that_labels_follow(painter) -> None:
    work, before = painter.bench.work, painter.labels.copy()
    y, x = spot_within(before == 0)
    painter.drag((y, x), (y + 4, x + 4))
    painter.wait(lambda: painter.answers)
    painter.settle()
    assert work.held(())[y, x]
    assert painter.session.numbers[painter.bench.key].summary.n_edited == np.count_nonzero(work.held(()))
    if painter.answers[0]:
        undo(painter)
    undo(painter)
    painter.settle()
    np.testing.assert_array_equal(painter.labels, before)
    assert not work.held(()).any()


def test_nothing_holds_up_the_window(painter, photograph, monkeypatch, record_property) -> None:
    """The core works in another thread, and what is left to the window's own is little beside it."""
    longest: dict[str, float] = {}
    threads: dict[str, set[int]] = {}

    def measured(kind: type, name: str) -> None:
        method = getattr(kind, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            threads.setdefault(name, set()).add(threading.get_ident())
            start = time.thread_time()
            try:
                return method(*args, **kwargs)
            finally:
                longest[name] = max(longest.get(name, 0.0), time.thread_time() - start)

        monkeypatch.setattr(kind, name, run)

    handlers = ("_on_painted", "_on_ended", "_on_disturbed", "_go", "_take_exact", "_follow")
    for name in handlers:
        measured(Live, name)
    measured(Drawing, "show")
    core = ("prepare", "preview", "exact")
    for name in core:
        measured(LiveRefinement, name)
    painter.bench.set_live(False)
    painter.bench.set_live(True)  # connects the measured methods
    painter.wait(lambda: painter.bench.live._refinement is not None)
    painter.drag(*HELMET, release=False)
    painter.wait(lambda: guessed(painter) > 30)
    painter.release(*HELMET[-1])
    painter.wait(lambda: painter.answers)
    assert {"_on_painted", "_on_ended", "_take_exact", "show", "preview", "exact"} <= longest.keys()
    here = threading.get_ident()
    assert not any(here in threads.get(name, ()) for name in core)
    assert all(threads[name] == {here} for name in (*handlers, "show") if name in threads)

    # In one process and in CPU time, so that it does not matter what else the machine does.
    segmenter = Segmenter(painter.session.engine._model, "cpu")
    segmenter.set_image(photograph)
    start = time.process_time()
    segmenter.predict()
    whole = time.process_time() - start
    shares = {name: longest[name] / whole for name in (*handlers, "show") if name in longest}
    for name, share in shares.items():
        record_property(f"CPU time of {name}, share of a segmentation's", round(share, 4))
    assert max(shares.values()) < MOST_SHARE


def test_it_is_seen_that_live_is_not_ready_yet(user, photograph, monkeypatch) -> None:
    made = threading.Event()
    make_ready = user.session.engine.live

    def slowly(*arguments: Any) -> LiveRefinement:
        assert made.wait(60)
        return make_ready(*arguments)

    monkeypatch.setattr(user.session.engine, "live", slowly)
    user.viewer.add_image(photograph, name="photo")
    assert user.do(user.widget.segment) == "segment"
    user.settle()
    correct = user.widget.correct
    user.click(correct.live)
    user.bench.paint_with(0)
    user.wait(lambda: correct.live.text() == "Live …")
    assert correct.note.toolTip() == "Live is getting ready…"
    assert correct.live.isChecked()
    made.set()
    user.wait(lambda: correct.live.text() == "Live")
    assert user.bench.live._refinement is not None
    assert correct.note.toolTip() == "nothing edited yet"


def test_what_cannot_be_made_ready_is_told_once_and_tried_again_with_a_stroke(
    user, photograph, monkeypatch
) -> None:
    tried: list[int] = []

    def fail(*arguments: Any) -> LiveRefinement:
        tried.append(1)
        raise ValueError("there is no room")

    monkeypatch.setattr(user.session.engine, "live", fail)
    user.viewer.add_image(photograph, name="photo")
    assert user.do(user.widget.segment) == "segment"
    user.settle()
    user.click(user.widget.correct.live)
    user.bench.paint_with(0)
    user.wait(lambda: user.line("correct"))
    QTest.qWait(1000)
    assert user.line("correct") == "There is no room"
    assert len(tried) == 1
    user.viewer.layers.selection.active.brush_size = 8
    user.drag(*HELMET)
    user.wait(lambda: len(tried) > 1)


def test_much_that_is_written_while_the_pen_is_down_is_a_step_of_its_own(painter) -> None:
    """As Refine does when it ends: what it changed is no edit, before and after an undo."""
    painter.bench.set_live(False)
    before, work, group = painter.labels.copy(), painter.bench.work, painter.bench.group
    held = work.held(())
    painter.drag(*HELMET, release=False)
    refined = np.where(work.held(()), painter.labels, (before + 1) % 21).astype(before.dtype)
    where = refined != painter.labels
    assert where.mean() > 0.9
    seen = []
    disconnect = group.changed.connect(lambda: seen.append(painter.labels.copy()))
    step = group.write_part((), (0, 0), refined, where)
    group.changed.disconnect(disconnect)
    assert step is group.newest_step()
    work.take_refined((), (0, 0), where, step)
    np.testing.assert_array_equal(seen[0], refined)  # told when it is written
    painter.release(*HELMET[-1])
    painter.settle()
    stroke = work.held(())
    assert 0 < stroke.sum() < 2000
    np.testing.assert_array_equal(painter.labels[where], refined[where])
    for _ in range(4):
        undo(painter)
        painter.settle()
    np.testing.assert_array_equal(painter.labels, before)
    np.testing.assert_array_equal(work.held(()), held)


def test_the_next_stroke_knows_what_was_written_before_it(painter) -> None:
    live, work = painter.bench.live, painter.bench.work
    labels = ((painter.labels.astype(int) + 1) % 21).astype(painter.labels.dtype)
    painter.bench.group.write(labels)
    np.testing.assert_array_equal(live._before, work.labels)
    np.testing.assert_array_equal(live._before, labels)
