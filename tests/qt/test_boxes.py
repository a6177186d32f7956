"""Boxes around objects: drawn, said what they are, and heeded by Segment."""

from __future__ import annotations

import numpy as np
import pytest
from napari.components import ViewerModel
from qtpy.QtTest import QTest

from napari_crfasrnn._qt.layers.boxes import box_layers, read_boxes
from napari_crfasrnn._qt.state.boxes import Outline, class_value, heed
from napari_crfasrnn.classes import class_table

CLASSES = class_table(["background", "cat", "dog"])
SQUARE = np.array([[10.0, 20], [10, 40], [30, 40], [30, 20]])
SAID = {"class": ["dog"], "score": [0.8]}


@pytest.fixture
def model(qapp) -> ViewerModel:
    return ViewerModel()


def believe(user) -> None:
    """Let every model that is at work believe boxes against everything else."""
    engine = user.session.engine
    model = engine.model

    def believing(request):
        found = model(request)
        found.higher_order.detections.weights.data.fill_(40.0)
        return found

    engine.model = believing


# ------------------------------------------------------------------------------------ what they stand for


def test_labels_are_names_or_values() -> None:
    assert [class_value(x, CLASSES) for x in ("dog", " Dog", 2, 2.0, "2", np.int64(1))] == [2, 2, 2, 2, 2, 1]
    assert [class_value(x, CLASSES) for x in ("bird", 3, -1, 1.5, float("nan"), None, "")] == [None] * 7


def test_what_cannot_be_heeded_is_told_in_one_sentence() -> None:
    boxes = [
        Outline("dog", 0.8, SQUARE),
        Outline("bird", 0.8, SQUARE),
        Outline("bird", 0.8, SQUARE),
        Outline("cat", 1.8, SQUARE),
        Outline("cat", float("nan"), SQUARE),
        Outline("cat", "sure", SQUARE),
        Outline("cat", 0.5, None),
        Outline("cat", 0.5, SQUARE + 1000),  # outside: nothing to say
    ]
    heeded = heed(boxes, [()], (50, 60), CLASSES)
    assert heeded.n_boxes == 1
    assert heeded.left_out == (
        "Boxes left out: “bird” is no class of the table; 3 without a score from 0 to 1; 1 without an inside."
    )
    (detection,) = heeded.by_plane[()]
    assert (detection.label, detection.score) == (2, 0.8)
    expected = np.zeros((50, 60), bool)
    expected[10:31, 20:41] = True
    assert (detection.mask != expected).sum() <= expected[10].sum() + expected[:, 20].sum()  # its rim
    assert heed([], [()], (50, 60), CLASSES).by_plane == {}


def test_planes_of_a_stack() -> None:
    boxes = [Outline("cat", 0.5, SQUARE, at) for at in ((0, 1), (None, 1), (None, None), (9, 9))]
    heeded = heed(boxes, [(0, 0), (0, 1), (1, 1)], (50, 60), CLASSES)
    assert {at: len(found) for at, found in heeded.by_plane.items()} == {(0, 1): 3, (1, 1): 2, (0, 0): 1}
    assert heeded.n_boxes == 3
    assert not heeded.left_out


# ---------------------------------------------------------------------------------------------- layers


def test_only_layers_that_say_what_is_in_them_are_offered(model) -> None:
    model.add_shapes([SQUARE])
    model.add_shapes([SQUARE], features={"class": ["dog"]})
    model.add_points(np.zeros((1, 2)), features=SAID)
    good = model.add_shapes([SQUARE], features={**SAID, "more": [1]})
    assert box_layers(model.layers) == [good]


def test_boxes_lie_where_they_are_seen(model) -> None:
    """Image and shapes each with a transform of their own, shapes drawn in the world."""
    image = model.add_image(np.zeros((50, 60)), scale=(2, 0.5), translate=(7, -3), rotate=30)
    world = np.array([image.data_to_world(corner) for corner in SQUARE])
    layer = model.add_shapes(
        [(world - (1, 2)) / 4], shape_type="polygon", scale=(4, 4), translate=(1, 2), features=SAID
    )
    (box,) = read_boxes(layer, image, ())
    np.testing.assert_allclose(box.corners, SQUARE, atol=1e-6)
    assert (box.label, box.score, box.index) == ("dog", 0.8, ())


def test_kinds_of_shapes(model) -> None:
    image = model.add_image(np.zeros((50, 60)))
    kinds = ["rectangle", "ellipse", "polygon", "line", "path"]
    data = [SQUARE, SQUARE, SQUARE[:3], SQUARE[:2], SQUARE[:3]]
    layer = model.add_shapes(data, shape_type=kinds, features={"class": ["cat"] * 5, "score": [0.5] * 5})
    boxes = read_boxes(layer, image, ())
    assert [box.corners is None for box in boxes] == [False, False, False, True, True]
    middle, radii = np.array([20, 30]), np.array([10, 10])
    np.testing.assert_allclose((((boxes[1].corners - middle) / radii) ** 2).sum(1), 1)


def test_slices_of_stacks(model) -> None:
    stack = model.add_image(np.zeros((5, 4, 50, 60)), scale=(1, 3, 2, 2), translate=(0, 6, 0, 0))

    def place(*lead: float) -> np.ndarray:
        return np.column_stack([np.tile(lead, (4, 1)), SQUARE]) if lead else SQUARE

    drawn = model.add_shapes(
        [place(2, 3)], scale=(1, 3, 2, 2), translate=(0, 6, 0, 0), features=SAID
    )  # as on the stack
    flat = model.add_shapes([place()], scale=(2, 2), features=SAID)
    deep = model.add_shapes([place(9)], scale=(1, 2, 2), features=SAID)  # z = 9 is slice 1
    places = [read_boxes(layer, stack, (5, 4))[0] for layer in (drawn, flat, deep)]
    assert [box.index for box in places] == [(2, 3), (None, None), (None, 1)]
    for box in places:
        np.testing.assert_allclose(box.corners, SQUARE, atol=1e-6)
    channels = model.add_image(np.zeros((3, 4, 50, 60)), scale=(1, 3, 2, 2), translate=(0, 6, 0, 0))
    over = model.add_shapes([place(3)], scale=(3, 2, 2), translate=(6, 0, 0), features=SAID)
    assert read_boxes(over, channels, (4,))[0].index == (3,)


# ---------------------------------------------------------------------------------------------- widget


def test_a_person_draws_a_box_and_segment_heeds_it(user, photograph) -> None:
    start = user.widget.start
    assert not start.draw.isVisible() or not start.draw.isEnabled()  # there is no image
    user.viewer.add_image(photograph, name="photo", scale=(0.5, 0.5), translate=(3, 4))
    assert user.do(user.widget.segment) == "segment"
    user.settle()
    plain = user.labels.copy()
    believe(user)
    value = user.session.table.names.index("sofa")
    user.bench.paint_with(value)
    QTest.qWait(30)

    user.click(start.draw)
    layer = user.viewer.layers["photo · boxes"]
    assert user.viewer.layers.selection.active is layer
    assert layer.mode == "add_rectangle"
    assert "Draw a box around a “sofa”" in user.line("start")
    user.wait(start.boxes.isVisible)
    assert start.draw.isChecked()
    assert start.boxes.currentText() == "photo · boxes"
    assert user.bench.painting == value
    user.drag((13, 14), (53, 64))
    assert layer.nshapes == 1
    assert list(layer.features["class"]) == ["sofa"]
    assert list(layer.features["score"]) == [1.0]
    (box,) = user.bench.boxes.read(user.bench.read_image())
    np.testing.assert_allclose(box.corners.min(0), (20, 20), atol=1.5)
    np.testing.assert_allclose(box.corners.max(0), (100, 120), atol=1.5)

    # the table sets the class of the next box
    bird = user.session.table.names.index("bird")
    user.widget.classes.table.paint_wanted.emit(bird)
    assert user.viewer.layers.selection.active is layer
    user.drag((80, 90), (100, 110))
    assert list(layer.features["class"]) == ["sofa", "bird"]
    # and class and score of those that are selected
    layer.mode = "select"
    layer.selected_data = {0}
    QTest.qWait(30)
    user.bench.paint_with(value + 1)
    start.score.setValue(0.75)
    assert list(layer.features["class"]) == [user.session.table.names[value + 1], "bird"]
    assert list(layer.features["score"]) == [0.75, 1.0]
    user.bench.paint_with(value)

    asked = []
    predict = type(user.session.engine).segment

    def spy(self, *arguments):
        asked.append(arguments[-1])
        return predict(self, *arguments)

    type(user.session.engine).segment = spy
    try:
        assert user.do(user.widget.segment) == "segment"
    finally:
        type(user.session.engine).segment = predict
    assert [(box.label, box.score) for box in asked[0]] == [("sofa", 0.75), ("bird", 1.0)]
    assert "2 boxes heeded" in user.line("start")
    assert (user.labels[22:98, 22:118] == value).mean() > 0.9
    assert (user.labels[160:] == plain[160:]).mean() > 0.9

    # without boxes it is as before
    start.boxes.setCurrentIndex(0)
    start.boxes.activated.emit(0)
    assert user.do(user.widget.segment) == "segment"
    assert "heeded" not in user.line("start")
    np.testing.assert_array_equal(user.labels, plain)
    assert layer in user.viewer.layers


def test_a_layer_of_ones_own_and_boxes_that_cannot_be_heeded(user, photograph) -> None:
    start = user.widget.start
    user.viewer.add_image(photograph, name="photo")
    corners = np.array([[20.0, 20], [20, 90], [90, 90], [90, 20]])
    layer = user.viewer.add_shapes(
        [corners, corners + 9999, corners],
        shape_type="rectangle",
        features={"class": ["zebra", "person", 15], "score": [0.9, 0.9, 0.9]},
        name="from a detector",
    )
    QTest.qWait(50)
    assert start.boxes.isVisible()
    assert start.boxes.currentText() == "none"  # nothing is heeded that nobody chose
    assert not start.score.isVisible()
    assert user.do(user.widget.segment) == "segment"
    assert "heeded" not in user.line("start")
    user.bench.boxes.choose("from a detector")
    assert user.do(user.widget.segment) == "segment"
    assert user.line("start").startswith("Boxes left out: “zebra” is no class of the table. ")
    assert "1 box heeded" in user.line("start")
    layer.data = []
    assert user.do(user.widget.segment) == "segment"
    assert "ox" not in user.line("start").replace("px", "")
    user.viewer.layers.remove(layer)
    QTest.qWait(50)
    assert not start.boxes.isVisible()
    assert user.do(user.widget.segment) == "segment"


def test_boxes_of_slices(user, photograph) -> None:
    small = photograph[::2, ::2]
    user.viewer.add_image(np.stack([small, small, small]), name="stack", rgb=True, scale=(3, 1, 1))
    user.viewer.dims.set_current_step(0, 1)
    QTest.qWait(30)
    user.bench.boxes.draw(True, user.session.table.names.index("sofa"))
    layer = user.viewer.layers["stack · boxes"]
    user.drag((10, 10), (70, 90))
    assert layer.ndim == 3
    np.testing.assert_array_equal(layer.data[0][:, 0], 1)
    user.bench.all_slices = True
    believe(user)
    assert user.do(user.widget.segment) == "segment"
    assert "1 box heeded" in user.line("start")
    sofa = user.session.table.names.index("sofa")
    assert [np.mean(plane[12:68, 12:88] == sofa) > 0.9 for plane in user.labels] == [False, True, False]
    user.bench.all_slices = False
    user.viewer.dims.set_current_step(0, 2)
    assert user.do(user.widget.segment) == "segment"
    assert "heeded" not in user.line("start")
    user.click(user.widget.start.draw)  # stop: back to the labels
    assert user.viewer.layers.selection.active is user.bench.group.combined
    assert layer.mode == "pan_zoom"
