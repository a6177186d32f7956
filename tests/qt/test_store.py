"""Views of single classes are in step with the label array, whoever writes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

pytest.importorskip("napari")

from napari_crfasrnn._qt.layers.store import LabelStore, bounding_box

SHAPES = st.sampled_from([(7, 9), (1, 6), (3, 5, 4)])
VALUES = st.sampled_from([0, 1, 2, 3, 255])


@st.composite
def writes(draw):
    shape = draw(SHAPES)
    labels = draw(hnp.arrays(np.uint8, shape, elements=VALUES))
    steps = []
    for _ in range(draw(st.integers(1, 6))):
        key = draw(
            st.one_of(
                hnp.basic_indices(shape, allow_newaxis=False),
                hnp.arrays(bool, shape),
                hnp.integer_array_indices(shape),
            )
        )
        steps.append((draw(st.integers(1, 3)), key, draw(VALUES)))
    return labels, steps


@given(writes())
def test_a_write_through_a_view_changes_its_class_and_what_it_covers(case) -> None:
    labels, steps = case
    store = LabelStore(labels.copy(), lambda _: None)
    for value, key, new in steps:
        before = store.array.copy()
        shown = np.asarray(store.view(value))
        np.testing.assert_array_equal(shown, np.where(before == value, value, 0))
        store.view(value)[key] = new
        touched = np.zeros(labels.shape, bool)
        touched[key] = True
        changed = touched & (shown != new)
        np.testing.assert_array_equal(store.array, np.where(changed, new, before))


@given(writes())
def test_pending_writes_are_undone_and_come_back_as_one_change(case) -> None:
    labels, steps = case
    store = LabelStore(labels.copy(), lambda _: None)
    for value, key, new in steps:
        store.view(value)[key] = new
    after = store.array.copy()
    change = store.take_pending()
    np.testing.assert_array_equal(store.array, labels)
    if change is not None:
        indices, values = change
        assert (store.array[indices] != values).all()
        store.array[indices] = values
    np.testing.assert_array_equal(store.array, after)
    assert store.take_pending() is None


@given(SHAPES.flatmap(lambda shape: st.tuples(st.just(shape), hnp.basic_indices(shape, allow_newaxis=False))))
def test_the_bounding_box_covers_what_a_key_addresses(case) -> None:
    shape, key = case
    touched = np.zeros(shape, bool)
    touched[key] = True
    covered = np.zeros(shape, bool)
    covered[bounding_box(key, shape)] = True
    assert not (touched & ~covered).any()


def test_a_view_passes_for_an_array() -> None:
    store = LabelStore(np.array([[0, 1], [2, 1]], np.uint8), lambda _: None)
    view = store.view(1)
    assert view.shape == (2, 2)
    assert view.size == 4
    assert len(view) == 2
    assert view.dtype == np.uint8
    assert (view == 1).sum() == 2
    assert view.max() == 1
    assert view.astype(int).tolist() == [[0, 1], [0, 1]]
    assert view[0, 1] == 1
    assert type(copy.deepcopy(view)) is np.ndarray
    assert np.unique(view).tolist() == [0, 1]
    with pytest.raises(AttributeError):
        view.sort()
    view.fill(0)
    assert store.array.tolist() == [[0, 0], [2, 0]]


def test_dropping_pending_writes_restores_the_labels() -> None:
    store = LabelStore(np.full((3, 3), 2, np.uint8), lambda _: None)
    store.view(1)[0] = 1
    store.view(2)[1:] = 0
    store.drop_pending()
    assert (store.array == 2).all()
    assert not store.has_pending
