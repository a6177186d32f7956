"""The label layers of an image stay in step.

Most tests use napari's viewer model without its window: the layers, their slices and their events are the
same ones, only faster. `test_loop.py` paints with a real mouse in a real window.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from napari.components import ViewerModel

from napari_crfasrnn._qt.layers import LabelGroup, mark_of
from napari_crfasrnn.classes import class_table

CLASSES = class_table(["background", "cell", "nucleus", "debris"])
H, W = 40, 50


@pytest.fixture
def viewer(qapp) -> ViewerModel:
    return ViewerModel()


def make_group(viewer, labels=None, shape=(H, W), **kwargs) -> LabelGroup:
    image = viewer.add_image(np.zeros(shape, np.uint8), name="photo", **kwargs)
    if labels is None:
        labels = np.zeros(shape, np.uint8)
        labels[..., 5:20, 5:20] = 1
        labels[..., 10:30, 25:45] = 2
    group = LabelGroup(viewer, image, labels, CLASSES)
    group.class_layers.show_present(np.unique(labels))
    group.class_layers.grow_now()
    return group


def assert_in_step(group: LabelGroup) -> None:
    combined = group.combined.data
    assert combined is group.labels
    for value, layer in group.class_layers.by_value.items():
        np.testing.assert_array_equal(np.asarray(layer.data), np.where(combined == value, value, 0))


def assert_drawn(group: LabelGroup) -> None:
    """What napari would draw is what the data hold."""
    group.redraw()
    for layer in (group.combined, *group.class_layers):
        if layer.visible:
            np.testing.assert_array_equal(layer._slice.image.raw, np.asarray(layer.data))


def test_layers_are_named_placed_and_marked(viewer) -> None:
    group = make_group(viewer)
    viewer.add_points(np.zeros((1, 2)), name="points")
    assert [layer.name for layer in viewer.layers] == [
        "photo", "photo · cell", "photo · nucleus", "photo · labels", "points",
    ]  # fmt: skip
    marks = [mark_of(layer) for layer in viewer.layers[1:4]]
    assert [mark["role"] for mark in marks] == ["class", "class", "labels"]
    assert {mark["image"] for mark in marks} == {group.key}


def test_strokes_in_either_layer_reach_the_other_and_undo_takes_one_back(viewer) -> None:
    group = make_group(viewer)
    cell, nucleus = group.class_layers[1], group.class_layers[2]
    start = group.labels.copy()

    with cell.block_history():  # as napari's own brush does
        for x in range(20, 40):
            cell.paint((15, x), 1, refresh=False)
    assert (group.labels[15, 22:40] == 1).all()
    assert_in_step(group)
    painted = group.labels.copy()

    with nucleus.block_history():
        nucleus.paint((26, 40), 0)
    assert group.labels[26, 40] == 0
    assert_in_step(group)

    nucleus.undo()
    np.testing.assert_array_equal(group.labels, painted)
    cell.undo()
    np.testing.assert_array_equal(group.labels, start)
    group.combined.redo()
    np.testing.assert_array_equal(group.labels, painted)
    assert_in_step(group)
    assert_drawn(group)


actions = st.lists(
    st.tuples(
        st.sampled_from(["paint", "erase", "fill", "polygon", "set", "undo", "redo", "data"]),
        st.sampled_from([0, 1, 2, 3]),  # the layer: 0 is the combined one
        st.sampled_from([0, 1, 2, 3, 255]),
        st.integers(0, H - 1),
        st.integers(0, W - 1),
    ),
    min_size=1,
    max_size=12,
)


def test_any_sequence_of_edits_keeps_the_layers_in_step(viewer) -> None:
    labels = np.zeros((H, W), np.uint8)
    labels[:10, :10], labels[10:20, :10], labels[20:30, :10] = 1, 2, 3
    group = make_group(viewer, labels)

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(actions)
    def run(steps) -> None:
        history = [group.labels.copy()]
        place = 0  # in the history
        for what, which, label, y, x in steps:
            layer = group.class_layers[which] if which else group.combined
            if what == "paint":
                layer.paint((y, x), label)
            elif what == "erase":
                with layer.block_history():
                    layer.paint((y, x), 0, refresh=False)
                    layer.paint((y, max(0, x - 9)), 0, refresh=False)
            elif what == "fill":
                layer.fill((y, x), label)
            elif what == "polygon":
                layer.paint_polygon([[y, x], [H - 1 - y, x], [y, W - 1 - x]], label)
            elif what == "set":
                layer.data_setitem((np.array([y]), np.array([x])), label)
            elif what == "data":
                if which:  # a silent write by a script, found when the layers are asked
                    layer.data[y, : x + 1] = label
                    group.flush()
            elif what == "undo":
                layer.undo()
                place = max(0, place - 1)
                np.testing.assert_array_equal(group.labels, history[place])
            else:
                layer.redo()
                place = min(len(history) - 1, place + 1)
                np.testing.assert_array_equal(group.labels, history[place])
            assert_in_step(group)
            if what not in ("undo", "redo") and not np.array_equal(group.labels, history[place]):
                history = [*history[: place + 1], group.labels.copy()]
                place += 1
        while place:  # back to the beginning, one step at a time
            group.combined.undo()
            place -= 1
            np.testing.assert_array_equal(group.labels, history[place])
        group.combined._reset_history()
        assert_drawn(group)

    run()


def test_a_script_may_replace_the_data_of_a_layer(viewer) -> None:
    group = make_group(viewer)
    refused = []
    group.refused.connect(refused.append)
    new = np.zeros((H, W), np.uint8)
    new[:4] = 3
    group.combined.data = new
    assert group.labels is new
    group.class_layers[1].data = np.ones((H, W), int)
    assert (group.labels == 1).all()
    assert_in_step(group)
    group.class_layers[1].undo()
    np.testing.assert_array_equal(group.labels[:4], 3)

    group.combined.data = np.zeros((3, 3), np.uint8)
    assert group.combined.data.shape == (H, W)
    group.class_layers[2].data = np.zeros((3, 3), np.uint8)
    group.combined.data = np.full((H, W), 77)
    assert len(refused) == 3
    assert "shape" in refused[0]
    assert "77" in refused[2]
    assert_in_step(group)


@pytest.mark.parametrize(
    ("shape", "place"),
    [
        ((H, W), {"scale": (0.5, 0.25), "translate": (2, 3), "rotate": 20, "shear": [0.2],
                  "units": ("um", "um"), "axis_labels": ("y", "x"), "affine": np.diag([2.0, 3, 1])}),
        ((3, H, W), {"scale": (4, 0.5, 0.25), "translate": (1, 2, 3), "units": ("s", "um", "um"),
                     "axis_labels": ("t", "y", "x")}),
    ],
)  # fmt: skip
def test_every_placement_is_carried(viewer, shape, place) -> None:
    group = make_group(viewer, shape=shape, **place)
    group.show_uncertainty(np.zeros(shape, np.float32))
    group.show_before(np.zeros(shape, np.uint8))
    image, *outputs = viewer.layers
    assert len(outputs) == 5
    point = np.array([1.0, 7.0, 9.0])[-len(shape) :]
    for layer in outputs:
        np.testing.assert_allclose(layer.data_to_world(point), image.data_to_world(point))
        assert layer.units == image.units
        assert layer.axis_labels == image.axis_labels
    image.scale = (1, 2, 2)[-len(shape) :]
    image.translate = (0, 5, 5)[-len(shape) :]
    for layer in outputs:
        np.testing.assert_allclose(layer.data_to_world(point), image.data_to_world(point))


def test_labels_of_an_image_with_channels_lie_on_each_of_them(viewer) -> None:
    image = viewer.add_image(
        np.zeros((3, H, W), np.uint8), name="photo", scale=(1, 0.5, 0.25), rotate=(0, 0, 20)
    )
    group = LabelGroup(viewer, image, np.ones((H, W), np.uint8), CLASSES)
    place = image.data_to_world((0, 7, 9))[-2:]
    np.testing.assert_allclose(group.combined.data_to_world((7, 9)), place)


def test_the_combined_layer_alone_and_back(viewer) -> None:
    group = make_group(viewer)
    viewer.layers.selection.active = group.class_layers[2]
    group.class_layers[2].mode = "paint"
    group.class_layers[2].brush_size = 23
    group.set_per_class(False)
    assert [layer.name for layer in viewer.layers] == ["photo", "photo · labels"]
    assert viewer.layers.selection.active is group.combined
    assert group.combined.mode == "paint"
    assert group.combined.brush_size == 23
    assert group.combined.colormap.map(2)[3] == 1
    group.set_per_class(True)
    assert group.combined.colormap.map(2)[3] == 1  # until its own layer is there
    group.class_layers.grow_now()
    assert set(group.class_layers.by_value) == {1, 2}
    assert group.combined.colormap.map(2)[3] == 0  # its own layer draws it


def test_each_class_is_drawn_once_and_hidden_by_either_eye(viewer) -> None:
    group = make_group(viewer)
    group.set_visible(1, False)
    assert not group.class_layers[1].visible
    group.class_layers[1].visible = True
    assert 1 not in group.hidden
    group.set_per_class(False)
    group.set_visible(1, False)
    assert group.combined.colormap.map(1)[3] == 0
    assert group.combined.colormap.map(2)[3] == 1
    assert group.combined.colormap.map(255)[3] == 0


def test_painting_a_class_selects_its_layer_and_keeps_the_brush(viewer) -> None:
    group = make_group(viewer)
    layer = group.paint_with(1)
    assert viewer.layers.selection.active is layer is group.class_layers[1]
    assert (layer.mode, layer.selected_label) == ("paint", 1)
    layer.brush_size = 31
    layer.mode = "fill"
    other = group.paint_with(3)  # absent so far
    assert other.name == "photo · debris"
    assert (other.mode, other.selected_label, other.brush_size) == ("fill", 3, 31)
    combined = group.paint_with(0)
    assert combined is group.combined
    assert (combined.mode, combined.selected_label, combined.brush_size) == ("fill", 0, 31)


def test_writing_a_prediction_is_one_undo_step(viewer) -> None:
    group = make_group(viewer, shape=(3, H, W))
    start = group.labels.copy()
    assert group.write(np.full((H, W), 3, np.uint8), (1,)) == H * W
    assert (group.labels[1] == 3).all()
    np.testing.assert_array_equal(group.labels[[0, 2]], start[[0, 2]])
    group.combined.undo()
    np.testing.assert_array_equal(group.labels, start)
    assert group.write(start) == 0


def test_removed_layers_are_told_and_the_rest_goes_on(viewer) -> None:
    group = make_group(viewer)
    group.show_uncertainty(np.zeros((H, W), np.float32))
    lost = []
    group.lost.connect(lambda role, name: lost.append((role, name)))
    viewer.layers.remove("photo · cell")
    viewer.layers.remove("photo · uncertainty")
    assert lost == [("class", "photo · cell"), ("uncertainty", "photo · uncertainty")]
    assert group.combined.colormap.map(1)[3] == 1  # the combined layer draws it now
    group.combined.paint((15, 30), 1)
    assert_in_step(group)
    viewer.layers.remove("photo · labels")
    viewer.layers.remove("photo")
    assert [role for role, _ in lost[2:]] == ["labels", "image"]
    assert not group.alive
    group.close(remove=True)
    assert len(viewer.layers) == 0


def test_a_new_group_finds_the_layers_of_an_earlier_one(viewer) -> None:
    group = make_group(viewer)
    group.combined.paint((0, 0), 2)
    labels, combined = group.labels, group.combined
    group.close()
    again = LabelGroup(viewer, viewer.layers["photo"], np.zeros((H, W), np.uint8), CLASSES)
    again.class_layers.grow_now()
    assert again.combined is combined
    assert again.labels is labels
    assert [layer.name for layer in viewer.layers].count("photo · labels") == 1
    assert [layer.name for layer in viewer.layers].count("photo · cell") == 1
    assert_in_step(again)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7)])
def test_tiny_images(viewer, shape) -> None:
    image = viewer.add_image(np.zeros(shape, np.uint8), name="photo")
    group = LabelGroup(viewer, image, np.ones(shape, np.uint8), CLASSES)
    group.class_layers.show_present([1])
    group.class_layers.grow_now()
    group.class_layers[1].paint((0, 0), 0)
    assert group.labels[0, 0] == 0
    group.combined.undo()
    assert (group.labels == 1).all()
    assert_in_step(group)


def test_the_layer_of_a_class_without_a_pixel_goes_when_nobody_works_on_it(viewer) -> None:
    group = make_group(viewer)
    cell = group.class_layers[1]
    gone = []
    group.class_layers.removed.connect(gone.append)
    group.paint_with(3)
    assert [layer.name for layer in group.class_layers] == [
        "photo · cell",
        "photo · nucleus",
        "photo · debris",
    ]
    group.class_layers.drop_absent([1, 2])  # debris is worked on
    group.write(np.where(group.labels == 1, 2, group.labels))
    group.class_layers.drop_absent([1, 2])  # somebody counted before that
    assert not gone
    group.class_layers.drop_absent([2])
    assert gone == [cell]
    group.paint_with(2)
    group.class_layers[3].paint((0, 0), 3)  # not counted yet
    group.class_layers.drop_absent([2])
    assert [layer.name for layer in viewer.layers[1:-1]] == ["photo · nucleus", "photo · debris"]
    assert_in_step(group)

    group.undo()
    group.undo()  # the cell is back, drawn by the combined layer until it has its own again
    assert group.combined.colormap.map(np.array([1]))[0][3] > 0
    group.class_layers.drop_absent([1, 2])
    group.class_layers.show_present([1, 2])
    group.class_layers.grow_now()
    assert [layer.name for layer in viewer.layers[1:-1]] == ["photo · cell", "photo · nucleus"]
    assert group.combined.colormap.map(np.array([1]))[0][3] == 0
    group.class_layers[1].paint((30, 40), 1)
    assert_in_step(group)
    assert_drawn(group)


def test_layers_follow_a_change_of_the_class_table(viewer) -> None:
    group = make_group(viewer)
    group.combined.paint((0, 0), 3)
    group.restyle(class_table(["background", "body", "nucleus", "debris", "new"]))
    assert [layer.name for layer in viewer.layers[1:3]] == ["photo · body", "photo · nucleus"]
    without_cell = np.where(group.labels == 1, 255, np.where(group.labels > 1, group.labels - 1, 0))
    group.replace(without_cell.astype(np.uint8), class_table(["background", "nucleus", "debris"]))
    group.class_layers.show_present([1, 2])
    group.class_layers.grow_now()
    assert [layer.name for layer in viewer.layers] == [
        "photo", "photo · nucleus", "photo · debris", "photo · labels",
    ]  # fmt: skip
    assert_in_step(group)
    labels = group.labels.copy()
    group.undo()  # there is nothing that values of the old table could come back from
    np.testing.assert_array_equal(group.labels, labels)


def test_a_moved_slider_is_no_edit(viewer) -> None:
    group = make_group(viewer, shape=(4, H, W))
    changes = []
    group.changed.connect(lambda: changes.append(1))
    viewer.dims.set_current_step(0, 2)
    viewer.dims.set_current_step(0, 3)
    assert not changes
    group.combined.undo()
    group.combined.paint((3, 5, 5), 3)
    assert changes
    group.undo()
    assert len(changes) >= 2


def test_copies_of_layers_stay_out_of_it(viewer) -> None:
    from copy import deepcopy

    from napari.layers import Layer

    group = make_group(viewer)
    for layer in (group.class_layers[1], group.combined):
        data, state, kind = layer.as_layer_data_tuple()
        copied = viewer.add_layer(Layer.create(deepcopy(data), {**deepcopy(state), "name": "mine"}, kind))
        assert type(copied.data) is np.ndarray
    labels = group.labels.copy()
    viewer.layers["mine"].data[:] = 0
    np.testing.assert_array_equal(group.labels, labels)
    group.close()
    again = LabelGroup(viewer, group.image, np.zeros((H, W), np.uint8), CLASSES)
    assert again.combined is group.combined
    assert {"mine", "mine [1]"} <= {layer.name for layer in viewer.layers}


def test_a_fill_in_a_class_layer_covers_a_region_of_the_labels(viewer) -> None:
    """To the layer all other classes are 0, and a fill there would take everything."""
    group = make_group(viewer)
    layer, before = group.class_layers[1], group.labels.copy()
    layer.fill((15, 40), 1)  # inside of class 2
    np.testing.assert_array_equal(group.labels, np.where(before == 2, 1, before))
    assert_in_step(group)
    group.undo()
    np.testing.assert_array_equal(group.labels, before)
    layer.fill((0, 0), 1)  # the background around both
    assert (group.labels[before == 2] == 2).all()
    assert (group.labels[before == 0] == 1).all()
    assert_drawn(group)
    group.undo()
    layer.contiguous = False
    layer.fill((15, 40), 1)
    assert not (group.labels == 2).any()


def test_labels_that_are_preserved_are_those_of_all_classes(viewer) -> None:
    group = make_group(viewer)
    layer, before = group.class_layers[1], group.labels.copy()
    layer.preserve_labels, layer.brush_size = True, 20
    layer.paint((12, 30), 1)
    assert (group.labels[before == 2] == 2).all()
    assert (group.labels == 1).sum() > (before == 1).sum()
    layer.fill((15, 40), 1)
    assert (group.labels[before == 2] == 2).all()
    assert_in_step(group)
