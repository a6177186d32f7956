"""Classes of one's own: strokes label the whole image at once, before any round of learning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from napari_crfasrnn._qt.present import STILL_EARLIER
from napari_crfasrnn._qt.state.telling import PAINT_ANOTHER, PAINT_AROUND, PAINT_WRONG
from napari_crfasrnn.edits import surroundings
from napari_crfasrnn.segmenter import LiveRefinement
from napari_crfasrnn.training import LiveClassifier

UNLABELLED = 255
DISCS = ((30, 30), (34, 90), (88, 40), (84, 96))


def discs(shift: int = 0) -> np.ndarray:
    y, x = np.mgrid[:120, :120]
    inside = np.any([(y - row) ** 2 + (x - column - shift) ** 2 < 15**2 for row, column in DISCS], axis=0)
    noise = np.random.default_rng(shift).normal(0, 8, inside.shape)
    return (np.where(inside, 170, 60) + noise).clip(0, 255).astype(np.uint8)


def truth(shift: int = 0) -> np.ndarray:
    y, x = np.mgrid[:120, :120]
    return np.any([(y - row) ** 2 + (x - column - shift) ** 2 < 15**2 for row, column in DISCS], axis=0)


@pytest.fixture
def painter(user: Any) -> Any:
    """Somebody who has named a class, with an image of discs in the viewer, and Live on."""
    user.viewer.add_image(discs(), name="discs")
    user.settle()
    user.session.classes.begin(["disc"])
    user.bench.set_live(True)
    user.answers = []
    user.bench.refined_live.connect(user.answers.append)
    return user


def stroke(user: Any, value: int, *points: tuple[float, float]) -> None:
    user.bench.paint_with(value)
    user.viewer.layers.selection.active.brush_size = 4
    user.wait(lambda: user.bench.live._refinement is not None)
    user.drag(*points)
    user.wait(lambda: not user.bench.live.busy)
    user.settle()


def overlap(labels: np.ndarray, shift: int = 0) -> float:
    found = labels == 1
    return float((found & truth(shift)).sum() / (found | truth(shift)).sum())


def test_two_strokes_label_the_image(painter) -> None:
    assert not painter.widget.start.task.button.isEnabled()  # no model knows the class
    stroke(painter, 1, (28, 24), (32, 36))
    assert isinstance(painter.bench.live._refinement, LiveClassifier)
    assert painter.answers == [0]  # one class says nothing of another
    assert painter.line("classes") == PAINT_ANOTHER
    first = painter.labels.copy()
    assert set(np.unique(first)) == {1, UNLABELLED}
    assert 0 not in painter.bench.group.hidden  # strokes of background shall be seen
    stroke(painter, 0, (60, 8), (62, 40))
    assert overlap(painter.labels) > 0.85
    assert (painter.labels != UNLABELLED).all()
    assert painter.answers[1] > 10_000
    assert 0 in painter.bench.group.hidden  # now it is all that lies around
    assert painter.line("classes") == PAINT_WRONG

    # There are squares to correct, and what it is unsure of; more so at the borders.
    correct = painter.widget.correct
    assert correct.patch.isEnabled()
    assert correct.uncertainty.isEnabled()
    assert not correct.before.isEnabled()
    assert painter.widget.start.task.button.text() == "Segment"
    edge = ndimage.binary_dilation(truth(), iterations=2) & ~ndimage.binary_erosion(truth(), iterations=2)
    entropy = painter.bench.work.entropy
    assert np.isfinite(entropy).all()
    assert entropy[edge].mean() > 2 * entropy[~edge].mean()
    assert (entropy[painter.bench.work.held(())] == 0).all()

    # Only strokes are labels to learn from; undo takes back the answer, then the stroke.
    work, group = painter.bench.work, painter.bench.group
    held = work.held(())
    assert 100 < held.sum() < 500
    assert painter.session.numbers[painter.bench.key].summary.n_labelled == held.sum()
    assert painter.widget.learning.task.button.isEnabled()
    labels = painter.labels.copy()
    painter.bench.undo()
    painter.settle()
    np.testing.assert_array_equal(painter.labels != UNLABELLED, held)
    np.testing.assert_array_equal(work.held(()), held)
    assert 0 not in group.hidden  # all that is left of it is strokes
    assert not correct.patch.isEnabled()
    painter.bench.undo()
    painter.settle()
    np.testing.assert_array_equal(painter.labels, first)
    painter.bench.redo()
    painter.bench.redo()
    painter.settle()
    np.testing.assert_array_equal(painter.labels, labels)
    np.testing.assert_array_equal(work.held(()), held)
    assert 0 in group.hidden
    for layer in group.class_layers:
        np.testing.assert_array_equal(np.asarray(layer.data), labels * (labels == layer.value))

    # A stroke where the answer was wrong, or right, is a label too, and stays.
    stroke(painter, 0, (84, 92), (86, 98))
    assert (painter.labels[84:86, 93:97] == 0).all()
    assert work.held(()).sum() > held.sum()


def test_what_was_painted_on_other_planes_counts(painter) -> None:
    painter.viewer.layers.clear()
    painter.viewer.add_image(np.stack([discs(), discs(6), discs(12)]), name="stack")
    painter.settle()
    painter.viewer.dims.set_current_step(0, 0)
    stroke(painter, 1, (28, 24), (32, 36))
    stroke(painter, 0, (60, 8), (62, 40))
    assert overlap(painter.labels[0]) > 0.85
    assert (painter.labels[1:] == UNLABELLED).all()
    painter.viewer.dims.set_current_step(0, 1)
    stroke(painter, 1, (32, 88), (36, 102))  # of one class, on this plane
    assert overlap(painter.labels[1], 6) > 0.8
    assert overlap(painter.labels[0]) > 0.85
    # So does what was painted on other images, also when a class has another colour, or a name beside it.
    painter.session.classes.recolor(1, (10, 200, 30))
    painter.session.classes.add("dirt")
    assert set(painter.bench.work.lessons) == {(0,), (1,)}
    painter.viewer.add_image(discs(3), name="another")
    painter.settle()
    stroke(painter, 1, (28, 28), (32, 38))
    assert overlap(painter.labels, 3) > 0.8
    # Without predictions, and with another class table, nothing of it is left.
    painter.session.classes.begin(["cell"])
    assert not painter.bench.work.lessons


def test_of_a_large_image_what_is_around_the_stroke_is_labelled(painter, monkeypatch) -> None:
    monkeypatch.setattr(surroundings, "MOST_PIXELS", 70 * 70)
    monkeypatch.setattr(surroundings, "SIDE", 70)
    monkeypatch.setattr(surroundings, "_LEAST_MARGIN", 10)
    painter.viewer.layers.clear()
    painter.viewer.add_image(discs(), name="a large one")
    painter.settle()
    painter.bench.paint_with(1)
    painter.settle()
    assert painter.bench.live._refinement is None  # what it is to be of, a stroke says
    assert not painter.bench.live.busy

    def large_stroke(value: int, *points: tuple[float, float]) -> None:
        painter.bench.paint_with(value)
        painter.viewer.layers.selection.active.brush_size = 4
        painter.drag(*points)
        painter.wait(lambda: not painter.bench.live.busy)
        painter.settle()

    large_stroke(1, (28, 24), (32, 36))
    classifier = painter.bench.live._refinement
    assert classifier.box == (0, 0, 70, 70)
    large_stroke(0, (50, 18), (52, 40))
    assert painter.bench.live._refinement is classifier
    labels, around = painter.labels.copy(), np.zeros((120, 120), bool)
    around[:70, :70] = True
    assert ((labels != UNLABELLED) == around).all()
    assert (labels[:70, :70] == truth()[:70, :70]).mean() > 0.95
    assert painter.line("classes") == PAINT_AROUND
    assert (np.isfinite(painter.bench.work.entropy) == around).all()
    assert painter.widget.correct.patch.isEnabled()

    # Elsewhere one stroke is enough: those of before count, too.
    large_stroke(1, (82, 92), (86, 104))
    box = painter.bench.live._refinement.box
    y0, x0, y1, x1 = box
    assert y0 > 20
    assert x0 > 20
    assert (y1 - y0, x1 - x0) == (70, 70)
    around[y0:y1, x0:x1] = True
    assert ((painter.labels != UNLABELLED) == around).all()
    assert (painter.labels == truth())[around].mean() > 0.95
    lesson = painter.bench.work.lessons[()][1]
    assert 0 < lesson.lies_in(box).sum() < len(lesson.y)  # of both parts
    assert (painter.bench.work.held(())[lesson.y, lesson.x]).all()
    assert len(set(zip(lesson.y, lesson.x, strict=True))) == len(lesson.y)
    painter.bench.undo()
    painter.bench.undo()
    painter.settle()
    np.testing.assert_array_equal(painter.labels, labels)


def test_strokes_that_were_undone_teach_no_other_plane(painter) -> None:
    painter.viewer.layers.clear()
    painter.viewer.add_image(np.stack([discs(), discs(6)]), name="stack")
    painter.settle()
    painter.viewer.dims.set_current_step(0, 0)
    stroke(painter, 1, (28, 24), (32, 36))
    stroke(painter, 0, (60, 8), (62, 40))
    for _ in range(4):
        painter.bench.undo()
        painter.settle()
    assert (painter.labels == UNLABELLED).all()
    painter.viewer.dims.set_current_step(0, 1)
    stroke(painter, 1, (32, 88), (36, 102))
    assert set(np.unique(painter.labels[1])) == {1, UNLABELLED}
    assert (painter.labels[1] == 1).mean() < 0.05


def test_what_no_classifier_takes_is_refined(painter, monkeypatch) -> None:
    monkeypatch.setattr(LiveClassifier, "takes", lambda model: False)
    stroke(painter, 1, (28, 24), (32, 36))
    assert isinstance(painter.bench.live._refinement, LiveRefinement)
    assert painter.bench.work.entropy is None  # a network that knows none of the classes is sure of nothing
    assert not painter.widget.correct.patch.isEnabled()


def test_with_live_off_strokes_stay_strokes(painter) -> None:
    painter.bench.set_live(False)
    painter.bench.paint_with(1)
    painter.drag((28, 24), (32, 36))
    painter.bench.paint_with(0)
    painter.drag((60, 8), (62, 40))
    painter.settle()
    assert (painter.labels == UNLABELLED).mean() > 0.9
    # Turned on, it answers the next stroke, with all of them.
    painter.bench.set_live(True)
    stroke(painter, 0, (110, 60), (112, 80))
    assert overlap(painter.labels) > 0.85


def test_a_round_takes_its_place(painter) -> None:
    stroke(painter, 1, (28, 24), (32, 36))
    stroke(painter, 0, (60, 8), (62, 40))
    shown = painter.labels.copy()
    assert painter.do(painter.widget.learn) == "learn"
    np.testing.assert_array_equal(painter.labels, shown)
    # Beside it are the labels that are there: the starter would make up discs.
    assert painter.do(lambda: painter.click(painter.widget.learning.compare)) == "compare"
    assert painter.line("learn").startswith("Left: The labels now. Right: ")
    changes = painter.bench.comparing.changes
    assert changes.where.mean() < 0.1
    painter.bench.comparing.end()
    painter.click(painter.widget.learning.keep)
    painter.settle()
    assert STILL_EARLIER in painter.widget.learning.message.label.text()
    assert painter.do(painter.widget.segment) == "segment"
    assert overlap(painter.labels) > 0.8
    painter.bench.paint_with(1)
    painter.wait(lambda: painter.bench.live._refinement is not None)
    assert not isinstance(painter.bench.live._refinement, LiveClassifier)  # there is a model to refine


def test_squares_are_corrected_before_any_round(painter) -> None:
    stroke(painter, 1, (28, 24), (32, 36))
    assert not painter.widget.correct.patch.isEnabled()  # one class says nothing
    stroke(painter, 0, (60, 8), (62, 40))
    before = painter.labels.copy()
    painter.click(painter.widget.correct.patch)
    painter.wait(lambda: painter.bench.patching.patch is not None)
    painter.click(painter.widget.correct.approve)
    painter.settle()
    np.testing.assert_array_equal(painter.labels, before)
    verified = painter.bench.work.verified
    assert verified.sum() >= 64**2
    # All of it teaches, and Live learns it, too.
    assert painter.session.numbers[painter.bench.key].summary.n_labelled >= verified.sum()
    painter.bench.patching.leave()
    stroke(painter, 0, (110, 60), (112, 80))
    assert (painter.labels[verified] == before[verified]).all()
    assert overlap(painter.labels) > 0.85


def test_a_class_that_goes_takes_no_count_of_other_images_away(painter) -> None:
    stroke(painter, 1, (28, 24), (32, 36))
    stroke(painter, 0, (60, 8), (62, 40))
    first = painter.bench.key
    assert painter.do(painter.widget.learn) == "learn"
    painter.click(painter.widget.learning.keep)
    painter.settle()
    learnt = painter.session.numbers[first]
    assert learnt.n_learnt == learnt.summary.n_labelled > 100
    painter.viewer.add_image(discs(3), name="another")
    painter.settle()
    painter.session.classes.add("dirt")
    painter.bench.set_live(False)
    painter.bench.paint_with(2)
    painter.drag((60, 60), (60, 80))
    painter.settle()
    painter.session.classes.delete(2)
    painter.settle()
    painter.wait(lambda: first in painter.session.numbers)
    after = painter.session.numbers[first]
    assert (after.n_learnt, after.summary) == (learnt.n_learnt, learnt.summary)
    assert painter.widget.learning.note.text().startswith(f"{learnt.summary.n_labelled:,} px in 1 image")
