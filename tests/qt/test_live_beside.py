"""A class that is new beside those of a model: a stroke of it is learnt at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from napari_crfasrnn._qt.state.telling import PAINT_ANOTHER, PAINT_WRONG
from napari_crfasrnn.segmenter import LiveRefinement
from napari_crfasrnn.training import LiveBeside

UNLABELLED = 255
DISCS = ((30, 30), (34, 90), (88, 40), (84, 96))


def inside(shift: int = 0) -> np.ndarray:
    y, x = np.mgrid[:120, :120]
    return np.any([(y - row) ** 2 + (x - column - shift) ** 2 < 15**2 for row, column in DISCS], axis=0)


def discs(shift: int = 0) -> np.ndarray:
    noise = np.random.default_rng(shift).normal(0, 8, (120, 120, 3))
    bright = np.where(inside(shift)[..., None], (190, 150, 60), (60, 80, 70))
    return (bright + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture
def painter(user: Any) -> Any:
    """Somebody who has segmented an image of discs with the starter, and added a class for them."""
    user.viewer.add_image(discs(), name="discs")
    user.settle()
    user.widget.start.task.button.click()
    user.wait(lambda: user.session.busy is None and user.bench.group is not None)
    user.session.classes.add("disc")
    user.settle()
    user.new = user.session.table.names.index("disc")
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


def overlap(user: Any, shift: int = 0) -> float:
    found, wanted = user.labels == user.new, inside(shift)
    return float((found & wanted).sum() / (found | wanted).sum())


def test_strokes_of_a_new_class_find_it_elsewhere(painter) -> None:
    before = painter.labels.copy()
    stroke(painter, 0, (60, 8), (62, 40))
    assert isinstance(painter.bench.live._refinement, LiveBeside)
    assert painter.line("classes") not in (PAINT_ANOTHER, PAINT_WRONG)  # nothing of it is new
    stroke(painter, painter.new, (28, 24), (32, 36))
    assert painter.line("classes") == PAINT_WRONG
    assert overlap(painter) > 0.8
    assert set(np.unique(painter.labels)) <= {*np.unique(before), painter.new, 0}
    work, labels = painter.bench.work, painter.labels.copy()
    held = work.held(())
    assert 100 < held.sum() < 500  # strokes alone are labels to learn from
    assert (labels[held] == painter.new).sum() > 20
    painter.bench.undo()
    painter.settle()
    assert (painter.labels == painter.new).sum() == (held & (labels == painter.new)).sum()
    np.testing.assert_array_equal(work.held(()), held)
    painter.bench.redo()
    painter.settle()
    np.testing.assert_array_equal(painter.labels, labels)

    # On another image it needs a stroke, and knows those of the first.
    painter.viewer.add_image(discs(9), name="others")
    painter.settle()
    stroke(painter, painter.new, (28, 33), (32, 45))
    assert overlap(painter, 9) > 0.8


def test_what_a_round_has_learnt_is_refined(painter) -> None:
    stroke(painter, painter.new, (28, 24), (32, 36))
    stroke(painter, 0, (60, 8), (62, 40))
    painter.widget.learning.task.button.click()
    painter.wait(lambda: painter.session.busy is None)
    painter.wait(lambda: not painter.bench.live.busy)
    painter.settle()
    assert painter.session.table.own_values == ()
    stroke(painter, painter.new, (82, 92), (86, 100))
    assert isinstance(painter.bench.live._refinement, LiveRefinement)


def test_a_model_without_features_refines_alone(painter, monkeypatch) -> None:
    monkeypatch.setattr(LiveBeside, "takes", lambda model: False)
    stroke(painter, painter.new, (28, 24), (32, 36))
    assert isinstance(painter.bench.live._refinement, LiveRefinement)
    assert (painter.labels == painter.new).any()
