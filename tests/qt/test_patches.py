"""Patch mode, in a real viewer: framed, corrected, said to be right, taken back, and learnt from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest
from window_user import User

from napari_crfasrnn import least_certain_patch
from napari_crfasrnn._qt.layers.frame import NAME
from napari_crfasrnn._qt.patching import ALL_DONE, NONE_LEFT, NOT_SEGMENTED
from napari_crfasrnn.config import TrainConfig
from napari_crfasrnn.training.planes import labelled_planes

SHIFT, NONE = Qt.KeyboardModifier.ShiftModifier, Qt.KeyboardModifier.NoModifier
CONTROL = Qt.KeyboardModifier.ControlModifier


def press(user: User, key: Qt.Key, modifier: Qt.KeyboardModifier = NONE) -> None:
    QTest.keyClick(user.viewer.window._qt_viewer.canvas.native, key, modifier)
    user.wait(lambda: not user.bench.patching.busy)
    QTest.qWait(20)


def view(user: User) -> tuple[Any, float]:
    camera = user.viewer.scene.camera
    return tuple(camera.center), camera.zoom


def part(box: tuple[int, int, int, int]) -> tuple[slice, slice]:
    return np.s_[box[0] : box[2], box[1] : box[3]]


@pytest.fixture
def corrector(user: User, photograph: np.ndarray) -> User:
    """Somebody in front of a segmented photograph; 256 pixels hold four squares that do not overlap."""
    user.viewer.add_image(photograph, name="photo", scale=(0.5, 0.5), translate=(3, 4))
    assert user.do(user.widget.segment) == "segment"
    user.settle()
    return user


def test_a_patch_is_framed_corrected_and_verified(corrector: User) -> None:
    user, patching, correct = corrector, corrector.bench.patching, corrector.widget.correct
    names = [layer.name for layer in user.viewer.layers]
    before, selected = view(user), user.viewer.layers.selection.active
    assert correct.patch.isVisible()
    assert not correct.approve.isVisible()
    user.click(correct.patch)
    user.wait(lambda: patching.patch is not None)
    QTest.qWait(20)
    assert patching.patch == least_certain_patch(user.bench.work.entropy[()])
    assert correct.approve.isVisible()
    assert not correct.patch.isVisible()

    # It is framed and fills the canvas; no layer was added, none selected.
    box = patching.patch.box
    (*_, y, x), zoom = view(user)
    assert (y, x) == pytest.approx(
        (3 + 0.25 * (box[0] + box[2] - 1), 4 + 0.25 * (box[1] + box[3] - 1)), abs=1e-6
    )
    height, width = user.viewer.canvas.size
    side = 0.5 * (box[2] - box[0]) * zoom
    assert 0.6 * min(height, width) < side < min(height, width)
    assert NAME in user.viewer.scene.overlays
    assert [layer.name for layer in user.viewer.layers] == names
    assert user.viewer.layers.selection.active is selected
    frame = user.color_at(3 + 0.5 * (box[0] - 1), 4 + 0.25 * (box[1] + box[3]))
    assert frame[0] > 200 > 100 > frame[2]  # the yellow line

    # Painted inside, and then right: dense labels, and the next square.
    user.bench.paint_with(3)
    user.viewer.layers.selection.active.brush_size = 6
    user.drag((y - 10, x - 10), (y - 10, x + 10))
    painted = user.labels.copy()
    assert (painted[part(box)] == 3).any()
    press(user, Qt.Key.Key_A, SHIFT)
    user.settle()
    verified = np.zeros(painted.shape, bool)
    verified[part(box)] = True
    np.testing.assert_array_equal(user.bench.work.verified, verified)
    np.testing.assert_array_equal(user.labels, painted)
    assert "25 % verified" in correct.note.toolTip()
    second = patching.patch
    assert second == user.bench.work.least_certain(())
    assert not verified[part(second.box)].all()

    # Undo takes back that it is right, then the stroke; redo brings both back.
    press(user, Qt.Key.Key_Z, CONTROL)
    assert not user.bench.work.verified.any()
    np.testing.assert_array_equal(user.labels, painted)
    press(user, Qt.Key.Key_Z, CONTROL)
    np.testing.assert_array_equal(user.labels, user.bench.work.baseline)
    user.bench.redo()
    np.testing.assert_array_equal(user.labels, painted)
    assert not user.bench.work.verified.any()
    user.bench.redo()
    np.testing.assert_array_equal(user.bench.work.verified, verified)
    user.settle()
    assert "25 % verified" in correct.note.toolTip()

    # Leaving brings the view back, and takes the frame away.
    press(user, Qt.Key.Key_N, SHIFT)
    assert view(user) == before
    assert NAME not in user.viewer.scene.overlays
    assert user.line("correct") == "1 square verified."
    assert correct.patch.isVisible()


def test_undo_takes_back_that_the_image_was_accepted(corrector: User) -> None:
    user, correct = corrector, corrector.widget.correct
    user.bench.paint_with(3)
    user.viewer.layers.selection.active.brush_size = 6
    user.drag((20, 20), (20, 40))
    painted = user.labels.copy()
    user.click(correct.accept)
    assert user.bench.work.verified.all()
    press(user, Qt.Key.Key_Z, CONTROL)
    assert not user.bench.work.verified.any()
    np.testing.assert_array_equal(user.labels, painted)
    user.wait(lambda: "0 % verified" in correct.note.toolTip() and not correct.accept.isChecked())
    user.bench.redo()
    assert user.bench.work.verified.all()
    press(user, Qt.Key.Key_Z, CONTROL)
    press(user, Qt.Key.Key_Z, CONTROL)
    np.testing.assert_array_equal(user.labels, user.bench.work.baseline)
    user.settle()


def test_skipping_and_going_through_all_of_it(corrector: User) -> None:
    user, patching = corrector, corrector.bench.patching
    before, boxes = view(user), []
    press(user, Qt.Key.Key_N)
    while patching.patch is not None:
        boxes.append(patching.patch.box)
        press(user, Qt.Key.Key_N)
    assert user.line("correct") == NONE_LEFT
    assert not user.bench.work.verified.any()
    assert len(set(boxes)) == len(boxes) >= 4
    assert view(user) == before

    user.bench.paint_with(3)
    erased = np.s_[10:20, 10:20]
    user.bench.group.combined.data[erased] = 255  # unlabelled on purpose: not asked for again
    user.bench.group.combined.refresh()
    press(user, Qt.Key.Key_N)
    while patching.patch is not None:
        press(user, Qt.Key.Key_A, SHIFT)
    assert user.line("correct") == ALL_DONE
    np.testing.assert_array_equal(user.bench.work.verified, user.labels != 255)
    user.settle()
    verified = user.bench.work.verified.copy()

    # It is on the disk.
    (item,) = user.session.storage.keeper.project.items
    np.testing.assert_array_equal(item.verified(), verified)


def test_verified_squares_teach_with_all_their_pixels(corrector: User) -> None:
    user, patching = corrector, corrector.bench.patching
    press(user, Qt.Key.Key_N)
    box = patching.patch.box
    press(user, Qt.Key.Key_A, SHIFT)
    press(user, Qt.Key.Key_N, SHIFT)
    user.settle()
    assert user.widget.learning.task.button.isEnabled()
    (plane,) = labelled_planes(user.session.storage.keeper.project, 0.1, None)
    learnt, held = plane.training != 255, plane.locked != 255
    taught = np.zeros(learnt.shape, bool)
    taught[part(box)] = True
    np.testing.assert_array_equal(learnt | held | plane.aside, taught)
    assert not (learnt & held).any()
    assert held.sum() < 0.3 * taught.sum()  # cells of it, not all of it
    np.testing.assert_array_equal(plane.training[learnt], user.labels[learnt])
    lesson = TrainConfig(seconds=None, max_iterations=3, crf_iterations=0)
    assert user.do(lambda: user.widget.learn(lesson)) == "learn"
    assert user.session.lessons.report.n_training_pixels == learnt.sum()

    # Segmenting again keeps what is right, and the rest is asked about anew.
    labels = user.labels.copy()
    assert user.do(user.widget.segment) == "segment"
    np.testing.assert_array_equal(user.labels[part(box)], labels[part(box)])
    np.testing.assert_array_equal(user.bench.work.verified, taught)


def test_without_a_prediction_a_sentence_says_so(user: User, photograph: np.ndarray) -> None:
    assert not user.widget.correct.patch.isEnabled()
    assert "Open an image" in user.widget.correct.patch.toolTip()
    user.viewer.add_image(photograph[:100, :90], name="small")
    QTest.qWait(50)
    assert not user.widget.correct.patch.isEnabled()
    assert "Segment the image first" in user.widget.correct.patch.toolTip()
    press(user, Qt.Key.Key_N)
    assert user.line("correct") == NOT_SEGMENTED
    QTest.qWait(50)
    assert user.do(lambda: user.click(user.widget.correct.message.buttons[0])) == "segment"
    assert user.line("correct") == ""
    user.wait(user.widget.correct.patch.isEnabled)
    user.click(user.widget.correct.patch)
    user.wait(lambda: user.bench.patching.patch is not None)
    assert user.bench.patching.patch.box == (0, 0, 100, 90)  # smaller than a square
    user.viewer.dims.ndisplay = 3
    user.wait(lambda: user.bench.patching.patch is None)
    press(user, Qt.Key.Key_N)
    assert "2-D" in user.line("correct")
    user.viewer.dims.ndisplay = 2


def test_slices_are_corrected_one_by_one_and_come_back(
    user: User, photograph: np.ndarray, make_napari_viewer: Any, tmp_path: Any
) -> None:
    stack = np.stack([photograph[..., 0], photograph[..., 1]])
    user.viewer.add_image(stack, name="stack")
    user.viewer.dims.set_current_step(0, 0)
    assert user.do(user.widget.segment) == "segment"
    press(user, Qt.Key.Key_N)
    box = user.bench.patching.patch.box
    press(user, Qt.Key.Key_A, SHIFT)
    framed = view(user)
    user.viewer.dims.set_current_step(0, 1)  # looking elsewhere ends it, and moves nothing
    QTest.qWait(50)
    assert user.bench.patching.patch is None
    assert view(user) == framed
    press(user, Qt.Key.Key_N)
    assert user.line("correct") == NOT_SEGMENTED  # this slice was not
    user.settle()
    verified = user.bench.work.verified.copy()
    assert verified.sum() == verified[0][part(box)].sum() == 128 * 128
    target = tmp_path / "saved"
    assert user.do(lambda: user.session.storage.save_as(target)) == "save"
    user.viewer.window.remove_dock_widget(user.dock)
    QTest.qWait(50)
    assert NAME not in user.viewer.scene.overlays

    other = User(make_napari_viewer(show=True))
    assert other.do(lambda: other.session.storage.open(target)) == "open"
    QTest.qWait(50)
    np.testing.assert_array_equal(other.bench.work.verified, verified)
    other.session.cancel()


def test_squares_of_the_other_slices_follow(user: User, photograph: np.ndarray) -> None:
    stack = np.stack([photograph, photograph[:, ::-1], photograph[::-1]])
    user.viewer.add_image(stack, name="stack", rgb=True, scale=(2, 0.5, 0.5), translate=(7, 3, 4))
    user.bench.all_slices = True
    assert user.do(user.widget.segment) == "segment"
    user.settle()
    work, patching = user.bench.work, user.bench.patching
    user.viewer.dims.set_current_step(0, 1)
    user.wait(lambda: user.bench.index == (1,))
    press(user, Qt.Key.Key_N)
    assert patching.patch == work.least_certain((1,))

    # The slice is done with; of the others, the less certain one is next.
    work.verified[1] = True
    left = {index: work.least_certain((index,)) for index in (0, 2)}
    expected = max(left, key=lambda index: left[index].uncertainty)
    press(user, Qt.Key.Key_N)
    assert user.bench.index == (expected,)
    assert patching.patch == left[expected]
    assert NAME in user.viewer.scene.overlays

    # There, squares are skipped and said to be right as everywhere.
    press(user, Qt.Key.Key_N)
    assert user.bench.index == (expected,)
    assert patching.patch not in (None, left[expected])
    box = patching.patch.box
    press(user, Qt.Key.Key_A, SHIFT)
    assert work.verified[expected][part(box)].all()
    work.verified[:] = True
    press(user, Qt.Key.Key_N)
    assert patching.patch is None
    assert user.line("correct") == NONE_LEFT
    press(user, Qt.Key.Key_N)
    assert user.line("correct") == ALL_DONE


def test_a_slice_nobody_segmented_is_not_left_for_another(user: User, photograph: np.ndarray) -> None:
    user.viewer.add_image(np.stack([photograph, photograph]), name="stack", rgb=True)
    assert user.do(user.widget.segment) == "segment"
    user.settle()
    here = user.bench.index
    user.viewer.dims.set_current_step(0, 1 - here[0])
    user.wait(lambda: user.bench.index != here)
    press(user, Qt.Key.Key_N)
    assert user.bench.patching.patch is None
    assert user.line("correct") == NOT_SEGMENTED
