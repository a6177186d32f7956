"""Edits against a baseline, the locked share, strokes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from napari_crfasrnn.edits import (
    as_labels,
    changed_boxes,
    contradictions,
    edited_mask,
    label_regions,
    labelled_mask,
    locked_cells,
    merge_prediction,
    remap_labels,
    settled_mask,
    split_locked,
    summarize,
    targets,
)

PLANES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24)


def label_planes(n_labels: int = 4) -> st.SearchStrategy[NDArray[np.uint8]]:
    return hnp.arrays(np.uint8, PLANES, elements=st.sampled_from([*range(n_labels), 255]))


@st.composite
def edited_planes(draw: st.DrawFn) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]:
    shape = draw(PLANES)
    values = st.sampled_from([0, 1, 2, 255])
    labels = draw(hnp.arrays(np.uint8, shape, elements=values))
    baseline = draw(hnp.arrays(np.uint8, shape, elements=values))
    return labels, baseline, draw(hnp.arrays(np.bool_, shape))


def to_16_bits(labels: NDArray[np.uint8]) -> NDArray[np.uint16]:
    wide = labels.astype(np.uint16)
    wide[labels == 255] = 65535
    return wide


class TestComparison:
    @given(edited_planes())
    def test_known_pixels_are_labelled_and_edited_or_verified(self, planes: tuple) -> None:
        labels, baseline, verified = planes
        known = labelled_mask(labels, baseline, verified)
        for place in np.ndindex(labels.shape):
            expected = labels[place] != 255 and (verified[place] or labels[place] != baseline[place])
            assert known[place] == expected

    @given(edited_planes())
    def test_label_types_compare_by_meaning(self, planes: tuple) -> None:
        labels, baseline, _ = planes
        assert (edited_mask(labels, to_16_bits(baseline)) == edited_mask(labels, baseline)).all()
        assert (edited_mask(to_16_bits(labels), baseline) == edited_mask(labels, baseline)).all()

    def test_without_a_baseline_every_label_is_an_edit(self) -> None:
        labels = np.array([[0, 255, 2]], np.uint8)
        assert edited_mask(labels, None).tolist() == [[True, False, True]]
        assert labelled_mask(labels, None, None).tolist() == [[True, False, True]]

    def test_a_label_erased_is_an_edit_but_nothing_to_learn(self) -> None:
        labels, baseline = np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8)
        assert edited_mask(labels, baseline).all()
        assert not labelled_mask(labels, baseline, None).any()

    def test_painting_back_needs_verification_to_be_known(self) -> None:
        baseline = np.ones((2, 2), np.uint8)
        verified = np.array([[True, False], [False, False]])
        assert labelled_mask(baseline.copy(), baseline, verified).sum() == 1

    def test_shapes_must_agree(self) -> None:
        labels = np.zeros((2, 3), np.uint8)
        with pytest.raises(ValueError, match=r"baseline must have the shape of labels, \(2, 3\)"):
            edited_mask(labels, np.zeros((3, 2), np.uint8))
        with pytest.raises(ValueError, match="verified must have the shape"):
            labelled_mask(labels, None, np.zeros((1, 3), bool))

    def test_summary_counts(self) -> None:
        labels = np.array([[0, 1, 255, 2]], np.uint8)
        baseline = np.array([[0, 0, 0, 2]], np.uint8)
        summary = summarize(labels, baseline, np.array([[True, False, False, False]]))
        assert (summary.n_edited, summary.n_verified, summary.n_labelled) == (2, 1, 2)
        assert summary.edited_share == 0.5
        assert summary.verified_share == 0.25


class TestTargets:
    @given(edited_planes())
    def test_known_pixels_have_full_weight_and_the_rest_none(self, planes: tuple) -> None:
        labels, baseline, verified = planes
        target, weight = targets(labels, baseline, verified)
        known = labelled_mask(labels, baseline, verified)
        assert (weight == known).all()
        assert (target[known] == labels[known]).all()
        assert (target[~known] == 255).all()

    def test_untouched_pixels_keep_the_baseline_by_its_certainty(self) -> None:
        labels = np.array([[1, 0, 0, 255]], np.uint8)
        baseline = np.zeros((1, 4), np.uint8)
        certainty = np.array([[0.9, 0.5, 1.0, 0.7]], np.float32)
        target, weight = targets(labels, baseline, None, certainty=certainty, keep_weight=0.1)
        assert target.tolist() == [[1, 0, 0, 255]]  # an erased pixel is not pulled back
        np.testing.assert_allclose(weight, [[1.0, 0.05, 0.1, 0.0]])


class TestAsLabels:
    def test_keeps_an_array_that_fits(self) -> None:
        labels = np.array([[0, 2, 255]], np.uint8)
        assert as_labels(labels, 3) is labels

    def test_both_unlabelled_values_are_understood(self) -> None:
        labels = as_labels(np.array([[0, 255, 65535]], np.int64), 3)
        assert labels.dtype == np.uint8
        assert labels.tolist() == [[0, 255, 255]]

    def test_255_is_a_class_of_a_long_table(self) -> None:
        labels = as_labels(np.array([[255, 65535, 299]], np.int32), 300)
        assert labels.dtype == np.uint16
        assert labels.tolist() == [[255, 65535, 299]]
        assert as_labels(np.array([[3, 255]], np.uint8), 300).tolist() == [[3, 65535]]

    @pytest.mark.parametrize("value", [-1, 3, 254, 70000])
    def test_a_value_outside_the_table_is_named(self, value: int) -> None:
        with pytest.raises(ValueError, match=rf"strokes must hold values from 0 to 2.*got {value}"):
            as_labels(np.array([[0, value]], np.int64), 3, name="strokes")

    def test_floats_are_refused(self) -> None:
        with pytest.raises(TypeError, match="labels must hold integers, got float64"):
            as_labels(np.zeros((2, 2)), 3)


class TestMerge:
    @given(edited_planes(), st.booleans())
    def test_settled_pixels_stay_and_the_rest_is_new(self, planes: tuple, keep_edits: bool) -> None:
        labels, baseline, verified = planes
        prediction = np.full(labels.shape, 7, np.uint8)
        merged = merge_prediction(prediction, labels, baseline, verified, keep_edits)
        kept = verified | (labels != baseline) if keep_edits else verified
        assert (merged[kept] == labels[kept]).all()
        assert (merged[~kept] == 7).all()

    @given(edited_planes(), label_planes())
    def test_what_was_known_stays_known_whatever_is_predicted(self, planes: tuple, other: NDArray) -> None:
        labels, baseline, verified = planes
        prediction = np.resize(other, labels.shape)
        merged = merge_prediction(prediction, labels, baseline, verified)
        settled = settled_mask(labels, baseline, verified)
        known = labelled_mask(labels, baseline, verified)
        assert (labelled_mask(merged, prediction, settled) >= known).all()
        assert (merged[known] == labels[known]).all()

    def test_label_types_may_differ(self) -> None:
        labels = np.array([[2, 255, 0]], np.uint8)
        baseline = np.array([[0, 0, 0]], np.uint8)
        merged = merge_prediction(np.array([[9, 9, 300]], np.uint16), labels, baseline, None)
        assert merged.tolist() == [[2, 65535, 300]]


class TestRemap:
    @given(label_planes(3))
    def test_a_permutation_and_back_is_the_identity(self, labels: NDArray[np.uint8]) -> None:
        there = remap_labels(labels, [2, 0, 1], 3)
        assert (remap_labels(there, [1, 2, 0], 3) == labels).all()

    def test_deletion_merging_and_widening(self) -> None:
        labels = np.array([[0, 1, 2, 255]], np.uint8)
        assert remap_labels(labels, [0, None, 0], 1).tolist() == [[0, 255, 0, 255]]
        assert remap_labels(labels, [0, 255, 299], 300).tolist() == [[0, 255, 299, 65535]]


class TestBoxes:
    def test_boxes_of_separate_changes(self) -> None:
        mask = np.zeros((20, 30), bool)
        mask[2:5, 3:8] = True
        mask[5, 8] = True  # touches at a corner: the same change
        mask[12:19, 20:30] = True
        assert changed_boxes(mask) == [(2, 3, 6, 9), (12, 20, 19, 30)]
        assert changed_boxes(mask, margin=4)[1] == (8, 16, 20, 30)

    def test_nothing_changed(self) -> None:
        assert changed_boxes(np.zeros((4, 4), bool)) == []

    @given(hnp.arrays(np.bool_, PLANES))
    def test_boxes_cover_every_change(self, mask: NDArray[np.bool_]) -> None:
        covered = np.zeros_like(mask)
        for y0, x0, y1, x1 in changed_boxes(mask):
            assert mask[y0:y1, x0:x1].any()
            covered[y0:y1, x0:x1] = True
        assert (covered >= mask).all()

    def test_a_stack_is_refused(self) -> None:
        with pytest.raises(ValueError, match="mask must be a plane"):
            changed_boxes(np.zeros((2, 4, 4), bool))


def scribbled_plane(seed: int, n_strokes: int = 12, side: int = 256) -> NDArray[np.uint8]:
    """Short wavy strokes of three classes on an unlabelled plane."""
    rng = np.random.default_rng(seed)
    target = np.full((side, side), 255, np.uint8)
    for _ in range(n_strokes):
        y, x = rng.uniform(0, side, 2)
        angle = rng.uniform(0, 2 * np.pi)
        value = rng.integers(3)
        for _ in range(60):
            angle += rng.normal(0, 0.2)
            y, x = (y + np.sin(angle)) % side, (x + np.cos(angle)) % side
            target[max(0, int(y) - 1) : int(y) + 2, max(0, int(x) - 1) : int(x) + 2] = value
    return target


class TestLockedShare:
    @given(
        share=st.floats(0, 0.9),
        seed=st.integers(0, 2**32 - 1),
        shape=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    )
    def test_the_share_is_about_what_was_asked_for(
        self, share: float, seed: int, shape: tuple[int, int]
    ) -> None:
        cells = locked_cells(shape, share, seed=seed)
        assert cells.shape == shape
        assert cells[::12, ::12].size < 64 or abs(cells.mean() - share) < 0.1

    @given(st.integers(0, 1000), st.sampled_from([0.1, 0.25]))
    def test_training_and_locked_pixels_never_meet(self, seed: int, share: float) -> None:
        target = scribbled_plane(seed)
        training, locked = split_locked(target, share, seed=3, key="image")
        assert not ((training != 255) & (locked != 255)).any()
        for part in (training, locked):
            assert (part[part != 255] == target[part != 255]).all()

    @given(st.integers(0, 1000))
    def test_every_class_keeps_training_pixels(self, seed: int) -> None:
        target = scribbled_plane(seed)
        training, _ = split_locked(target, 0.5)
        for value in np.unique(target[target != 255]):
            assert (training == value).sum() >= min(32, (target == value).sum())

    @given(st.integers(0, 1000), st.integers(0, 5))
    def test_what_is_locked_stays_locked_when_labels_grow(self, seed: int, key: int) -> None:
        grown = scribbled_plane(seed, n_strokes=20)
        early = grown.copy()
        early[:, 128:] = 255
        early[:20] = 255
        _, before = split_locked(early, 0.2, seed=1, key=str(key))
        _, after = split_locked(grown, 0.2, seed=1, key=str(key))
        assert (after[before != 255] != 255).all()

    def test_a_painted_region_has_a_held_back_part_near_its_middle(self) -> None:
        held = []
        for seed in range(20):
            target = np.full((512, 512), 255, np.uint8)
            target[100:200, 220:330] = 3
            training, locked = split_locked(target, 0.1, seed=seed)
            held.append((locked == 3).sum() / (target == 3).sum())
            assert (training == 3).sum() > 0.6 * (target == 3).sum()
        assert min(held) > 0.02
        assert 0.07 < np.mean(held) < 0.13

    def test_a_dab_of_the_brush_is_all_for_training(self) -> None:
        for seed in range(30):
            target = np.full((200, 200), 255, np.uint8)
            target[90:95, 100:106] = 1
            training, locked = split_locked(target, 0.5, seed=seed)
            assert (training == target).all()
            assert (locked == 255).all()

    def test_images_and_seeds_have_their_own_pattern(self) -> None:
        patterns = {locked_cells((256, 256), 0.1, seed=s, key=k).tobytes() for s in (0, 1) for k in "ab"}
        assert len(patterns) == 4

    def test_no_share_locks_nothing(self) -> None:
        target = scribbled_plane(0)
        training, locked = split_locked(target, 0.0)
        assert (training == target).all()
        assert (locked == 255).all()

    def test_a_share_out_of_range_is_refused(self) -> None:
        with pytest.raises(ValueError, match="share must be at least 0 and less than 1, got 1"):
            locked_cells((8, 8), 1.0)


class TestStrokes:
    def test_regions_are_connected_pixels_of_one_class(self) -> None:
        target = np.full((6, 10), 255, np.uint8)
        target[1, 1:5] = 0
        target[2, 5] = 0  # joined at a corner
        target[2, 6:9] = 1  # another class beside it
        target[5, 0] = 0
        regions = label_regions(target)
        assert regions.max() == 3
        assert regions[1, 1] == regions[2, 5] != regions[2, 6]
        assert (regions == 0).sum() == (target == 255).sum()

    def test_a_stroke_that_stays_predicted_otherwise_is_reported_with_its_place(self) -> None:
        target = np.full((40, 40), 255, np.uint8)
        target[2:6, 2:30] = 1
        target[20:24, 5:25] = 2
        prediction = np.ones((40, 40), np.uint8)
        prediction[20:24, 20:25] = 2
        (found,) = contradictions(target, prediction)
        assert (found.label, found.predicted, found.n_pixels) == (2, 1, 80)
        assert found.share == 0.75
        assert found.box == (20, 5, 24, 25)

    def test_strokes_that_were_learnt_are_not_reported(self) -> None:
        target = scribbled_plane(1)
        assert contradictions(target, np.where(target == 255, 0, target).astype(np.uint8)) == ()
