from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from napari_crfasrnn import metrics

L = 4


@st.composite
def label_pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=3, max_side=9))
    pred = draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, L - 1)))
    target = draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from([*range(L), 255])))
    return pred, target


def brute_iou(pred: np.ndarray, target: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Intersection over union, set by set, as the textbook says."""
    values = []
    for label in range(L):
        a, b = (pred == label) & counted, (target == label) & counted
        union = np.count_nonzero(a | b)
        values.append(np.count_nonzero(a & b) / union if union else np.nan)
    return np.array(values)


@settings(deadline=None)
@given(label_pairs())
def test_confusion_and_iou_agree_with_counting_sets(pair):
    pred, target = pair
    counted = target != 255
    conf = metrics.confusion(pred, target, L)
    for row in range(L):
        for column in range(L):
            assert conf[row, column] == np.count_nonzero((target == row) & (pred == column))
    expected = brute_iou(pred, target, counted)
    np.testing.assert_allclose(metrics.iou(conf), expected)
    if counted.any():
        assert metrics.accuracy(conf) == pytest.approx(np.mean(pred[counted] == target[counted]))
        assert metrics.miou(conf) == pytest.approx(np.nanmean(expected))
        found = [np.mean(pred[target == c] == c) for c in range(L) if (target == c).any()]
        assert metrics.mean_accuracy(conf) == pytest.approx(np.mean(found))
        weighted = sum(np.mean(target[counted] == c) * np.nan_to_num(expected[c]) for c in range(L))
        assert metrics.frequency_weighted_iou(conf) == pytest.approx(weighted)
    else:
        assert np.isnan(metrics.miou(conf))
        assert np.isnan(metrics.accuracy(conf))
        assert np.isnan(metrics.frequency_weighted_iou(conf))


def test_agrees_with_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    import torch

    rng = np.random.default_rng(0)
    pred, target = rng.integers(0, L, (2, 3, 40, 50)).astype(np.uint8)
    target[:, :5] = 255
    as_torch = [torch.from_numpy(part.astype(np.int64)) for part in (pred, target)]
    theirs = torchmetrics.multiclass_jaccard_index(*as_torch, L, average=None, ignore_index=255)
    conf = metrics.confusion(pred, target, L)
    np.testing.assert_allclose(metrics.iou(conf), theirs.numpy(), rtol=1e-6)
    matrix = torchmetrics.multiclass_confusion_matrix(*as_torch, L, ignore_index=255)
    np.testing.assert_array_equal(conf, matrix.numpy())


@settings(deadline=None)
@given(label_pairs(), st.permutations(range(L)))
def test_renaming_the_classes_permutes_the_numbers(pair, order):
    pred, target = pair
    table = np.arange(256, dtype=np.uint8)
    table[:L] = order
    for score in (metrics.band_iou, metrics.boundary_iou):
        before = score(pred, target, L, width=2)
        after = score(table[pred], table[target], L, width=2)
        np.testing.assert_allclose(after[list(order)], before)


def test_matrices_of_several_images_add_up_and_chunks_do_not_show(monkeypatch):
    rng = np.random.default_rng(1)
    pred, target = rng.integers(0, L, (2, 10, 30, 30))
    whole = metrics.confusion(pred, target, L)
    parts = sum(metrics.confusion(p, t, L) for p, t in zip(pred, target, strict=True))
    np.testing.assert_array_equal(whole, parts)
    monkeypatch.setattr(metrics, "_CHUNK", 77)
    np.testing.assert_array_equal(metrics.confusion(pred, target, L), whole)


def test_classes_absent_from_both_do_not_enter_the_mean():
    target = np.zeros((4, 4), np.uint8)
    target[:2] = 1
    conf = metrics.confusion(target, target, 5)
    np.testing.assert_array_equal(metrics.iou(conf), [1, 1, np.nan, np.nan, np.nan])
    assert metrics.miou(conf) == 1.0
    pred = target.copy()
    pred[0, 0] = 4  # a class that is nowhere in the truth is a mistake, and counts
    assert metrics.miou(metrics.confusion(pred, target, 5)) == pytest.approx((1 + 7 / 8 + 0) / 3)


def half_and_half(column: int) -> np.ndarray:
    labels = np.zeros((40, 60), np.uint8)
    labels[:, column:] = 1
    return labels


def test_the_band_holds_width_pixels_on_both_sides_of_an_edge():
    target, pred = half_and_half(30), half_and_half(31)
    # One column of 40 pixels is wrong: of `width` columns of class 1, one is missing.
    for width in (1, 2, 5):
        band = metrics.band_iou(pred, target, 2, width)
        np.testing.assert_allclose(band, [width / (width + 1), (width - 1) / width])
    # A mistake far from every edge of the truth does not show.
    pred = target.copy()
    pred[5, 5] = 1
    np.testing.assert_array_equal(metrics.band_iou(pred, target, 2, 5), [1, 1])


def test_a_truth_without_edges_has_no_band():
    flat = np.zeros((9, 9), np.uint8)
    assert np.isnan(metrics.band_iou(flat, flat, 2)).all()


def test_the_border_of_the_ignored_region_is_no_edge():
    target = np.zeros((20, 20), np.uint8)
    target[:, 10:] = 255
    assert np.isnan(metrics.band_iou(np.zeros_like(target), target, 2)).all()


def boundary_iou_of_masks(pred: np.ndarray, target: np.ndarray, width: int) -> float:
    """Cheng et al. 2021, with repeated erosion as their published evaluation does it."""

    def rim(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        return mask & ~ndimage.binary_erosion(padded, np.ones((3, 3)), width)[1:-1, 1:-1]

    a, b = rim(pred), rim(target)
    return np.count_nonzero(a & b) / np.count_nonzero(a | b)


@pytest.mark.parametrize("width", [1, 3])
def test_boundary_iou_agrees_with_repeated_erosion(width):
    rng = np.random.default_rng(2)
    smooth = ndimage.gaussian_filter(rng.normal(size=(2, 60, 70)), (0, 5, 5))
    pred, target = (smooth > 0).astype(np.uint8)
    scores = metrics.boundary_iou(pred, target, 3, width)
    expected = [boundary_iou_of_masks(pred == c, target == c, width) for c in (0, 1)]
    np.testing.assert_allclose(scores, [*expected, np.nan])


def test_boundary_iou_defaults_to_two_percent_of_the_diagonal():
    target, pred = half_and_half(30), half_and_half(33)  # the diagonal is 72 pixels: width 1
    np.testing.assert_array_equal(
        metrics.boundary_iou(pred, target, 2), metrics.boundary_iou(pred, target, 2, width=1)
    )
    assert metrics.boundary_iou(pred, target, 2)[1] < metrics.boundary_iou(pred, target, 2, width=10)[1]


@pytest.mark.parametrize("score", [metrics.band_iou, metrics.boundary_iou])
def test_a_stack_is_judged_plane_by_plane(score):
    target, pred = half_and_half(30), half_and_half(32)
    alone = score(pred, target, 2, width=3)
    np.testing.assert_allclose(score(np.stack([pred] * 3), np.stack([target] * 3), 2, width=3), alone)
    # Neighbouring planes of another class make no edge.
    stack = np.stack([target, 1 - target])
    np.testing.assert_array_equal(score(stack, stack, 2, width=3), [1, 1])


def test_sixteen_bit_labels():
    target = np.array([[0, 299, 65535]], np.uint16)
    conf = metrics.confusion(np.array([[0, 298, 1]], np.uint16), target, 300, ignore=65535)
    assert conf.sum() == 2
    assert conf[299, 298] == 1


@pytest.mark.parametrize(
    ("pred", "target", "n_labels", "ignore", "error", "message"),
    [
        ([[0]], [[0.0]], 2, 255, TypeError, "target must hold integer labels"),
        ([[True]], [[0]], 2, 255, TypeError, "pred must hold integer labels"),
        ([[0]], [[0, 1]], 2, 255, ValueError, "pred must have the shape of target"),
        ([[0]], [[2]], 2, 255, ValueError, "target must hold labels from 0 to 1, got 2"),
        ([[255]], [[1]], 2, 255, ValueError, "pred must hold labels from 0 to 1, got 255"),
        ([[-1]], [[1]], 2, 255, ValueError, "got -1"),
        ([[0]], [[0]], 0, 255, ValueError, "n_labels must be at least 1"),
        ([[0]], [[0]], 300, 255, ValueError, "ignore must not be the label of a class"),
    ],
)
def test_bad_labels_are_named(pred, target, n_labels, ignore, error, message):
    with pytest.raises(error, match=message):
        metrics.confusion(np.array(pred), np.array(target), n_labels, ignore)


def test_other_bad_input():
    flat = np.zeros((3, 3), np.uint8)
    with pytest.raises(ValueError, match="width must be at least 1"):
        metrics.band_iou(flat, flat, 2, 0)
    with pytest.raises(ValueError, match="at least two axes"):
        metrics.boundary_iou(flat[0], flat[0], 2)
    with pytest.raises(ValueError, match="square matrix"):
        metrics.iou(np.zeros((2, 3)))


def test_empty_labels_have_no_numbers():
    empty = np.zeros((0, 5), np.uint8)
    assert np.isnan(metrics.miou(metrics.confusion(empty, empty, 2)))
    assert np.isnan(metrics.band_iou(empty, empty, 2)).all()
