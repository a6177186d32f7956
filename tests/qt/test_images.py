"""Every kind of image layer: 16-bit, grey, RGBA, channels, stacks, time series."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel
from qtpy.QtCore import Qt
from qtpy.QtGui import QOpenGLContext
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication

from napari_crfasrnn._qt.layers import axes_of, plane_index, read_image_layer, visible_region
from napari_crfasrnn._qt.state.telling import REPLACED


@pytest.fixture
def model(qapp) -> ViewerModel:
    return ViewerModel()


@pytest.mark.parametrize(
    ("shape", "arguments", "channels", "axes"),
    [
        ((8, 9), {}, False, "YX"),
        ((8, 9, 3), {"rgb": True}, False, "YXC"),
        ((4, 8, 9, 4), {"rgb": True}, False, "ZYXC"),
        ((4, 8, 9), {}, False, "ZYX"),
        ((4, 8, 9), {}, True, "CYX"),
        ((4, 8, 9), {"axis_labels": ("c", "y", "x")}, False, "CYX"),
        ((4, 8, 9), {"axis_labels": ("time", "y", "x")}, False, "TYX"),
        ((5, 4, 8, 9), {}, False, "TZYX"),
        ((2, 4, 8, 9), {}, True, "CZYX"),
        ((5, 4, 8, 9), {"axis_labels": ("z", "t", "y", "x")}, False, "ZTYX"),
    ],
)
def test_axes(model, shape, arguments, channels, axes) -> None:
    layer = model.add_image(np.zeros(shape, np.uint8), **arguments)
    assert axes_of(layer, channels) == axes
    image = read_image_layer(layer, channels)
    assert image.shape == tuple(size for letter, size in zip(axes, shape, strict=True) if letter != "C")


@pytest.mark.parametrize(
    ("shape", "labels", "what"),
    [
        ((2, 3, 4, 8, 9), ("a", "b", "c", "y", "x"), "channels"),
        ((2, 3, 4, 8, 9), ("a", "b", "d", "y", "x"), "axes"),
        ((3, 4, 8, 9), ("t", "time", "y", "x"), "time"),
    ],
)
def test_axes_that_cannot_be_segmented(model, shape, labels, what) -> None:
    layer = model.add_image(np.zeros(shape, np.uint8), axis_labels=labels, name="odd")
    with pytest.raises(ValueError, match=what):
        axes_of(layer)


def test_the_plane_that_is_shown(model) -> None:
    layer = model.add_image(np.zeros((5, 4, 8, 9), np.uint8), scale=(2, 3, 1, 1), translate=(10, 0, 0, 0))
    model.dims.set_current_step((0, 1), (3, 2))
    assert plane_index(model, layer, (5, 4)) == (3, 2)
    assert read_image_layer(layer).spacing == (3.0, 1.0, 1.0)


def test_the_pixels_of_several_resolutions_are_the_finest(model) -> None:
    levels = [np.zeros((40, 60), np.uint8), np.zeros((20, 30), np.uint8)]
    layer = model.add_image(levels, multiscale=True)
    assert read_image_layer(layer).array.shape == (40, 60)


def test_the_visible_region(viewer) -> None:
    layer = viewer.add_image(np.zeros((200, 300), np.uint8))
    QTest.qWait(50)
    assert visible_region(viewer, layer, (200, 300)) is None  # all of it
    viewer.scene.camera.zoom *= 4
    viewer.scene.camera.center = (0, 100, 150)
    QTest.qWait(50)
    y0, x0, y1, x1 = visible_region(viewer, layer, (200, 300))
    assert 0 < y0 < 100 < y1 < 200
    assert 0 < x0 < 150 < x1 < 300


def test_a_stack_is_segmented_slice_by_slice(user, photograph) -> None:
    small = photograph[::2, ::2]
    stack = np.stack([small, small[:, ::-1], np.zeros_like(small)])
    image = user.viewer.add_image(stack, rgb=True, name="stack", scale=(5, 0.5, 0.5), translate=(0, 3, 4))
    user.viewer.dims.set_current_step(0, 1)
    QTest.qWait(50)
    start = user.widget.start
    assert start.slices.isVisible()
    assert start.slices.itemText(0) == "slice 2 of 3"
    assert user.do(user.widget.segment) == "segment"
    assert user.labels.shape == (3, 128, 128)
    assert (user.labels[[0, 2]] == 255).all()  # nobody looked there
    assert (user.labels[1] == 15).any()
    user.settle()
    person = next(row for row in user.widget.classes.table.rows.rows if row.name == "person")
    assert person.share == pytest.approx(np.mean(user.labels[1] == 15))
    labels = user.viewer.layers["stack · labels"]
    np.testing.assert_array_equal(labels.scale, image.scale)
    np.testing.assert_array_equal(labels.translate, image.translate)

    start.slices.setCurrentIndex(1)
    start.slices.activated.emit(1)
    one = user.labels[1].copy()
    assert user.do(user.widget.segment) == "segment"
    assert (user.labels != 255).all()
    np.testing.assert_array_equal(user.labels[1], one)
    assert np.mean(user.labels[0][:, ::-1] == user.labels[1]) > 0.8

    user.viewer.dims.set_current_step(0, 0)
    user.bench.paint_with(0)
    user.viewer.layers.selection.active.brush_size = 10
    before = user.labels.copy()
    y, x = (np.array([60, 60]) * 0.5) + (3, 4)
    user.drag((y, x), (y, x + 10))
    changed = before != user.labels
    assert changed[0].any()
    assert not changed[1:].any()
    assert user.do(lambda: user.widget.refine(view_only=False)) == "refine"
    assert not (before != user.labels)[1:].any()


def test_sixteen_bits_and_alpha_and_channels(user, photograph) -> None:
    grey = photograph.mean(axis=-1)[::2, ::2]
    user.viewer.add_image((grey * 40).astype(np.uint16), name="sixteen")
    assert user.do(user.widget.segment) == "segment"
    assert user.labels.shape == grey.shape

    rgba = np.dstack([photograph, np.full(photograph.shape[:2], 255, np.uint8)])[::2, ::2]
    user.viewer.add_image(rgba, name="rgba")
    assert user.do(user.widget.segment) == "segment"
    assert (user.labels == 15).any()

    channels = np.moveaxis(photograph[::2, ::2], -1, 0)
    layer = user.viewer.add_image(channels, name="channels")
    QTest.qWait(50)
    axis = user.widget.start.channels
    assert axis.isVisible()
    axis.setCurrentIndex(1)
    axis.activated.emit(1)
    assert user.do(user.widget.segment) == "segment"
    assert user.labels.shape == (128, 128)
    assert (user.labels == 15).any()
    assert user.viewer.layers["channels · labels"].ndim == layer.ndim - 1


@pytest.mark.parametrize("floats", [False, True])
def test_layers_go_in_the_canvas_of_their_window(user, floats) -> None:
    """What drew them is deleted in the OpenGL context that drew it, not in Qt's own."""
    user.dock.setFloating(floats)
    layer = user.viewer.add_image(np.zeros((8, 9), np.uint8))
    QTest.qWait(100)  # until it is drawn
    canvas, contexts = user.viewer.window._qt_viewer.canvas.native, []
    user.viewer.layers.events.removed.connect(
        lambda event: contexts.append(QOpenGLContext.currentContext()), position="first"
    )
    canvas.doneCurrent()
    user.viewer.layers.remove(layer)
    assert contexts == [canvas.context()]


def seen(user, layer) -> float:
    """Return which share of an image the canvas shows, where it is the uppermost there."""
    canvas = user.viewer.window._qt_viewer.canvas.native
    inside = 0
    for y, x in np.ndindex(5, 5):
        place = layer.data_to_world((np.array(layer.data.shape[:2]) - 1) * (y + 0.5, x + 0.5) / 5)
        spot = user.on_canvas(*place[-2:])
        inside += canvas.rect().contains(spot)
    return inside / 25


def test_an_image_in_another_world_is_seen_when_somebody_goes_to_it(user, photograph) -> None:
    """One image has a scale in micrometres, the other has none: napari's view would stay at the first."""
    viewer, camera, start = user.viewer, user.viewer.scene.camera, user.widget.start
    small = viewer.add_image(
        np.full((660, 550), 99, np.uint8), name="cell", scale=(0.1, 0.1), units=("um", "um"),
        contrast_limits=(0, 99), colormap="green",
    )  # fmt: skip
    QTest.qWait(50)
    large = viewer.add_image(photograph, name="photo")
    QTest.qWait(50)
    assert seen(user, large) == 1
    assert 256 * camera.zoom > min(viewer.canvas.size) / 2  # and is not tiny

    # Chosen by its name, the small one is shown above the large one, as large as the canvas allows.
    start.image.activated.emit(start.image.findText("cell"))
    QTest.qWait(50)
    assert user.bench.image is small
    assert 66 * camera.zoom > min(viewer.canvas.size) / 2
    np.testing.assert_array_equal(user.color_at(30, 20), (0, 255, 0))
    assert viewer.layers.selection.active is small

    # Selecting a layer is enough, too; what a person zoomed into stays when they go to another channel.
    viewer.layers.selection.active = large
    QTest.qWait(50)
    assert seen(user, large) == 1
    camera.center, camera.zoom = (0, 100, 150), camera.zoom * 8
    view = tuple(camera.center), camera.zoom
    viewer.add_image(photograph[..., 0], name="channel", blending="additive")
    QTest.qWait(50)
    assert user.bench.image.name == "channel"
    assert (tuple(camera.center), camera.zoom) == view


def test_finer_units_change_the_world_and_the_view_follows(user) -> None:
    """With a layer in nanometres, napari counts all in these, and its camera stays where it was."""
    user.viewer.add_image(np.zeros((50, 60), np.uint8), units=("um", "um"))
    QTest.qWait(50)
    user.viewer.add_image(np.zeros((50, 60), np.uint8), scale=(1000, 1000), units=("nm", "nm"))
    QTest.qWait(50)
    shown = np.array(user.viewer.canvas.size) / user.viewer.scene.camera.zoom
    assert (shown >= (50_000, 60_000)).all()
    assert (shown < 2 * np.array((50_000, 60_000))).any()


def test_two_models_are_compared_where_the_image_lies(user, photograph) -> None:
    scale, viewer = (0.1, 0.1), user.viewer
    small = viewer.add_image(photograph[:100, :90], name="small", scale=scale, units=("um", "um"))
    QTest.qWait(50)
    viewer.add_image(photograph, name="photo")
    QTest.qWait(50)
    user.wait(lambda: user.session.shelf.get("road-scenes") is not None)
    user.widget.start.image_chosen.emit(user.widget.start.image.itemData(0))
    QTest.qWait(50)
    assert user.bench.image is small
    before = set(viewer.layers)
    assert user.do(lambda: user.bench.comparing.start("starter", "road-scenes")) == "compare"
    QTest.qWait(50)
    added = [layer for layer in viewer.layers if layer not in before]
    assert len(added) == 6
    for layer in added:
        np.testing.assert_array_equal(layer.extent.world, small.extent.world)
        assert layer.units == small.units
    height, width = np.array(viewer.canvas.size) / viewer.scene.camera.zoom / (1, 2)  # of a cell of the grid
    assert (height >= 10, width >= 9) == (True, True)
    assert height < 40 or width < 36

    # Another image ends it, and is seen.
    viewer.layers.selection.active = viewer.layers["photo"]
    QTest.qWait(50)
    assert not viewer.canvas.grid.enabled
    assert seen(user, viewer.layers["photo"]) == 1


def painted(user: Any, photograph: np.ndarray) -> tuple[Any, np.ndarray]:
    """Segment a photograph and paint a stroke; return its layer and the labels then."""
    layer = user.viewer.add_image(photograph, name="photo")
    user.do(user.widget.segment)
    user.bench.paint_with(3)
    user.drag((30, 30), (60, 60))
    return layer, user.labels.copy()


def test_an_image_of_another_shape_begins_anew_and_its_labels_are_kept(user, photograph) -> None:
    layer, labels = painted(user, photograph)
    layer.data = photograph.copy()  # the same pixels: labels stay
    user.settle()
    np.testing.assert_array_equal(user.labels, labels)
    user.drag((40, 30), (70, 60))  # not saved yet
    labels = user.labels.copy()
    layer.data = photograph[:100, :120].copy()
    user.settle()
    assert "another shape" in user.line("classes")
    assert [each.name for each in user.viewer.layers] == ["photo"]
    assert user.bench.work is None
    assert user.widget.start.task.button.text() == "Segment"
    assert user.bench.key not in user.session.works
    assert [work.labels.shape for work in user.session.works.values()] == [labels.shape]
    user.do(user.widget.segment)
    user.settle()
    assert user.labels.shape == (100, 120)
    items = user.session.storage.keeper.project.items
    assert [item.labels().shape for item in items] == [labels.shape, (100, 120)]
    np.testing.assert_array_equal(items[0].labels(), labels)


def test_another_image_in_the_same_layer_begins_anew_and_the_first_can_be_opened(user, photograph) -> None:
    """A script that goes through images must not put the labels of one onto the next."""
    layer, labels = painted(user, photograph)
    layer.data = photograph[::-1].copy()
    user.settle()
    assert "another image" in user.line("classes")
    assert user.bench.work is None
    (first,) = user.bench.projects.closed_items
    np.testing.assert_array_equal(first.image(), photograph)
    np.testing.assert_array_equal(first.labels(), labels)
    assert user.do(lambda: user.bench.projects.open_item(first.id)) == "open"
    assert user.bench.projects.closed_items == []
    np.testing.assert_array_equal(user.labels, labels)
    np.testing.assert_array_equal(user.bench.image.data, photograph)


def test_an_image_that_was_removed_has_its_labels_when_it_is_here_again(user, photograph) -> None:
    _, labels = painted(user, photograph)
    for again in ("opened from the project", "added as it was"):
        user.viewer.layers.remove("photo")
        user.settle()
        assert [layer.name for layer in user.viewer.layers] == []
        (item,) = user.bench.projects.closed_items
        if again == "added as it was":
            user.viewer.add_image(photograph.copy(), name="photo")
        else:
            assert user.do(lambda number=item.id: user.bench.projects.open_item(number)) == "open"
        user.settle()
        np.testing.assert_array_equal(user.labels, labels)
        assert user.bench.projects.closed_items == []
        assert len(user.session.storage.keeper.project.items) == 1
    user.viewer.layers.remove("photo")  # and at once, as a script would
    user.viewer.add_image(photograph.copy(), name="photo")
    user.settle()
    np.testing.assert_array_equal(user.labels, labels)
    assert user.bench.group is not None
    assert user.bench.group.combined in user.viewer.layers
    user.viewer.add_image(photograph[::-1].copy(), name="photo")  # of that name, but another
    user.settle()
    assert user.bench.work is None


@pytest.mark.parametrize("what", ["segment", "refine"])
def test_what_comes_out_for_an_image_that_was_replaced_meanwhile_is_not_taken(
    user, photograph, what, monkeypatch
) -> None:
    layer, labels = painted(user, photograph)
    replaced, real = threading.Event(), getattr(user.session.engine, what)

    def slowly(*arguments: Any) -> Any:
        result = real(*arguments)
        assert replaced.wait(60)
        return result

    monkeypatch.setattr(user.session.engine, what, slowly)

    def replace_meanwhile() -> None:
        (user.widget.segment if what == "segment" else lambda: user.click(user.widget.correct.refine_all))()
        layer.data = photograph[:100, :120].copy()
        replaced.set()

    assert user.do(replace_meanwhile) == what
    user.settle()
    assert user.line("start" if what == "segment" else "correct") == REPLACED
    assert user.bench.work is None
    (item,) = user.session.storage.keeper.project.items
    np.testing.assert_array_equal(item.labels(), labels)
    monkeypatch.undo()
    assert user.do(user.widget.segment) == "segment"
    assert user.labels.shape == (100, 120)


def test_what_cannot_be_saved_is_not_lost_where_its_image_is_replaced(user, photograph, tmp_path) -> None:
    storage = user.session.storage
    layer = user.viewer.add_image(photograph, name="photo")
    user.do(user.widget.segment)
    user.do(lambda: storage.save_as(tmp_path / "stick"))
    user.settle()
    (tmp_path / "stick").rename(tmp_path / "pulled out")
    user.bench.paint_with(3)
    user.drag((30, 30), (60, 60))
    labels = user.labels.copy()
    layer.data = photograph[:100, :120].copy()
    user.wait(lambda: storage.unsaved and user.line("project"))
    assert user.do(lambda: storage.save_as(tmp_path / "rescue")) == "save"
    user.settle()
    (item,) = storage.keeper.project.items
    np.testing.assert_array_equal(item.labels(), labels)
    np.testing.assert_array_equal(item.image(), photograph)


def test_images_keep_their_order_and_keys_go_through_them(user, photograph) -> None:
    for number in range(4):
        user.viewer.add_image(photograph[: 40 + number], name=f"image {number}")
    user.settle()
    names = [layer.name for layer in user.bench.order.layers()]
    assert names == [f"image {number}" for number in range(4)]
    box = user.widget.start.image
    for number in (2, 0, 3):
        box.setCurrentIndex(number)
        box.activated.emit(number)
        QTest.qWait(20)
        assert user.bench.image.name == f"image {number}"
        assert [box.itemText(place) for place in range(4)] == names
    user.bench.choose_image(box.itemData(0))
    canvas = user.viewer.window._qt_viewer.canvas.native
    seen = []
    for key in (
        Qt.Key.Key_PageDown,
        Qt.Key.Key_PageDown,
        Qt.Key.Key_PageUp,
        Qt.Key.Key_PageUp,
        Qt.Key.Key_PageUp,
    ):
        QTest.keyClick(canvas, key)
        QTest.qWait(20)
        seen.append(user.bench.image.name)
    assert seen == ["image 1", "image 2", "image 1", "image 0", "image 0"]


def test_keys_work_after_a_click_on_a_class(user, photograph) -> None:
    user.viewer.add_image(photograph, name="photo")
    assert user.do(user.widget.segment) == "segment"
    user.settle()
    table = user.widget.classes.table
    index = table.model().index(0, table.model().columnCount() - 2)
    table.setFocus()
    QTest.mouseClick(table.viewport(), Qt.MouseButton.LeftButton, pos=table.visualRect(index).center())
    assert not table.hasFocus()
    user.bench.show_uncertainty(False)
    QTest.keyClick(QApplication.focusWidget() or user.viewer.window._qt_window, Qt.Key.Key_U)
    assert user.bench.uncertainty_on
