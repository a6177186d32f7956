"""Labels for a plane from its strokes, before any round of learning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from napari_crfasrnn import load_model
from napari_crfasrnn.classes import class_table
from napari_crfasrnn.config import ModelConfig
from napari_crfasrnn.edits import box_about, fits_live, places_in
from napari_crfasrnn.experts import Sieve
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.progress import Cancelled
from napari_crfasrnn.training import LiveClassifier
from napari_crfasrnn.training.panel_tiles import is_kind

NOTHING = 255
SIDE = 128


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    return load_model("starter").with_classes(class_table(["background", "disc", "square"]))


def scene(seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Bright discs and darker squares in noise, and what they are."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    truth = np.zeros((SIDE, SIDE), np.uint8)
    for row, column in ((28, 30), (90, 40), (60, 100)):
        truth[(y - row) ** 2 + (x - column) ** 2 < 16**2] = 1
    for row, column in ((20, 70), (95, 80)):
        truth[row : row + 22, column : column + 22] = 2
    grey = np.choose(truth, [40.0, 190.0, 110.0]) + random.normal(0, 12, truth.shape)
    return grey.clip(0, 255).astype(np.float32)[None], truth


def strokes_on(truth: NDArray[np.uint8], *classes: int) -> NDArray[np.uint8]:
    """One short stroke for each class."""
    places = {0: np.s_[4:8, 5:60], 1: np.s_[26:30, 22:38], 2: np.s_[28:32, 74:88]}
    strokes = np.full_like(truth, NOTHING)
    for value in classes:
        strokes[places[value]] = value
        assert (truth[places[value]] == value).all()
    return strokes


def answer(classifier: LiveClassifier, strokes: NDArray[np.uint8], **how: object) -> NDArray[np.uint8]:
    box = (0, 0, SIDE, SIDE)
    return classifier.exact(box, strokes, np.full_like(strokes, NOTHING), **how).labels  # type: ignore[arg-type]


def overlaps(labels: NDArray[np.uint8], truth: NDArray[np.uint8]) -> list[float]:
    return [
        float(((labels == value) & (truth == value)).sum() / ((labels == value) | (truth == value)).sum())
        for value in np.unique(truth)
    ]


def test_a_stroke_of_each_class_labels_the_plane(model: SegmentationModel) -> None:
    image, truth = scene(0)
    classifier, strokes = LiveClassifier(model, image), strokes_on(truth, 0, 1, 2)
    refined = classifier.exact((0, 0, 9, 9), strokes, np.full_like(strokes, NOTHING))
    assert refined.box == (0, 0, SIDE, SIDE) == classifier.exact_window((3, 3, 9, 9))
    assert refined.labels.dtype == np.uint8
    assert refined.changed.all()
    assert refined.logits.shape == (3, SIDE, SIDE)
    assert min(overlaps(refined.labels, truth)) > 0.85
    # A stroke that is wrong stays as it was painted, whatever the others say.
    strokes[60:63, 98:104] = 2
    labels = answer(classifier, strokes)
    assert (labels[strokes != NOTHING] == strokes[strokes != NOTHING]).all()


def test_the_same_strokes_give_the_same_labels_unless_they_go_on_from_others(
    model: SegmentationModel,
) -> None:
    image, truth = scene(0)
    strokes, more = strokes_on(truth, 0, 1), strokes_on(truth, 0, 1, 2)
    box, nothing = (0, 0, 9, 9), np.full_like(strokes, NOTHING)
    expected = LiveClassifier(model, image).exact(box, strokes, nothing)
    classifier, before = LiveClassifier(model, image), torch.get_num_threads()
    went_on = classifier.exact(box, strokes, nothing), classifier.exact(box, more, strokes)
    torch.set_num_threads(3)
    try:
        again = classifier.exact((5, 5, 30, 30), strokes, nothing)  # after an undo, say
        once_more = classifier.exact(box, more, strokes)
    finally:
        torch.set_num_threads(before)
    for one in (went_on[0], again):
        np.testing.assert_array_equal(one.labels, expected.labels)
    np.testing.assert_array_equal(went_on[1].labels, once_more.labels)
    assert not (expected.labels == 2).any()  # nobody has painted one


def test_one_sloppy_stroke_does_not_turn_the_plane_over(model: SegmentationModel) -> None:
    """Of a class that one bright example shows, dim ones would be taken for what the stroke says."""
    random = np.random.default_rng(5)
    y, x = np.mgrid[:256, :256]
    places = [(40 + 60 * (n // 4), 35 + 60 * (n % 4)) for n in range(16)]
    grey, truth = np.full(y.shape, 30.0), np.zeros(y.shape, bool)
    for n, (row, column) in enumerate(places):
        inside = (y - row) ** 2 + (x - column) ** 2 < 14**2
        grey[inside], truth = 200.0 - 8 * n, truth | inside
    grey = ndimage.gaussian_filter(grey, 2.5) + random.normal(0, 5, grey.shape)
    strokes, nothing = np.full(y.shape, NOTHING, np.uint8), np.full(y.shape, NOTHING, np.uint8)
    strokes[37:44, 28:43], strokes[66:73, 50:80] = 1, 0
    classifier = LiveClassifier(model, grey.clip(0, 255).astype(np.float32)[None])
    first = classifier.exact((0, 0, 9, 9), strokes, nothing).labels == 1
    sloppy = strokes.copy()
    sloppy[22:32, 28:44] = 0  # a third of it lies on the brightest disc
    then = classifier.exact((0, 0, 9, 9), sloppy, strokes).labels == 1
    alone = classifier.exact((0, 0, 9, 9), sloppy, nothing).labels == 1
    overlap = [float((each & truth).sum() / (each | truth).sum()) for each in (first, then, alone)]
    assert overlap[0] > 0.7
    assert overlap[1] > overlap[0] - 0.1
    assert overlap[1] > overlap[2] - 0.02


@pytest.mark.parametrize("classes", [(), (1,)])
def test_one_class_alone_says_nothing(model: SegmentationModel, classes: tuple[int, ...]) -> None:
    image, truth = scene(0)
    classifier, strokes = LiveClassifier(model, image), strokes_on(truth, *classes)
    refined = classifier.exact((0, 0, 9, 9), strokes, np.full_like(strokes, NOTHING))
    assert not refined.changed.any()
    np.testing.assert_array_equal(refined.labels, strokes)


def test_what_was_painted_elsewhere_is_learnt_too(model: SegmentationModel) -> None:
    first, truth = scene(0)
    teacher = LiveClassifier(model, first)
    answer(teacher, strokes_on(truth, 0, 1, 2))
    second, _ = scene(1)
    pupil = LiveClassifier(model, second, [teacher.lesson])
    assert min(overlaps(answer(pupil, np.full_like(truth, NOTHING)), truth)) > 0.8
    labels = answer(pupil, strokes_on(truth, 1))
    assert min(overlaps(labels, truth)) > 0.8
    assert set(pupil.lesson.labels.tolist()) == {1}  # of its own plane alone


def test_thin_classes_stay(model: SegmentationModel) -> None:
    """A wide CRF would dissolve lines in what lies around them."""
    truth = np.zeros((SIDE, SIDE), np.uint8)
    truth[8::16] = truth[9::16] = 1
    random = np.random.default_rng(0)
    image = (np.choose(truth, [120.0, 100.0]) + random.normal(0, 2, truth.shape)).astype(np.float32)[None]
    strokes = np.full_like(truth, NOTHING)
    strokes[8:10, 10:60], strokes[14:20, 10:60] = 1, 0
    assert overlaps(answer(LiveClassifier(model, image), strokes), truth)[1] > 0.5


def test_it_is_cancelled_at_once(model: SegmentationModel) -> None:
    image, truth = scene(0)
    classifier, asked = LiveClassifier(model, image), []

    def cancel() -> bool:
        asked.append(True)
        return len(asked) == 20

    with pytest.raises(Cancelled):
        answer(classifier, strokes_on(truth, 0, 1), cancel=cancel)
    assert len(asked) == 20
    answer(classifier, strokes_on(truth, 0, 1))  # and goes on as if nothing had been


def test_a_part_of_a_larger_plane_is_labelled_as_if_it_were_all(model: SegmentationModel) -> None:
    image, truth = scene(0)
    rows, columns = 200, 300
    plane = np.full((1, rows + SIDE, columns + SIDE), 40, np.float32)
    plane[0] += np.random.default_rng(1).normal(0, 12, plane.shape[1:])
    plane[:, rows:, columns:] = image
    box = (rows, columns, rows + SIDE, columns + SIDE)
    part, alone = LiveClassifier(model, plane, box=box), LiveClassifier(model, image)
    assert part.is_part
    assert not alone.is_part
    assert part.exact_window((210, 310, 220, 320)) == box
    strokes = strokes_on(truth, 0, 1, 2)
    refined = part.exact((210, 310, 220, 320), strokes, np.full_like(strokes, NOTHING))
    assert refined.box == box
    assert min(overlaps(refined.labels, truth)) > 0.85
    assert (refined.labels != answer(alone, strokes)).mean() < 0.02
    there = part.lesson.y - rows, part.lesson.x - columns
    assert (strokes[there] == part.lesson.labels).all()
    strokes[60, 98:104] = 0  # corrected: what was answered before counts, too
    again = part.exact((0, 0, 9, 9), strokes, strokes_on(truth, 0, 1, 2)).labels
    assert (again[strokes != NOTHING] == strokes[strokes != NOTHING]).all()
    assert min(overlaps(again, np.where(truth == 1, refined.labels, truth))) > 0.85


def test_a_part_covers_strokes_with_something_around_them(model: SegmentationModel) -> None:
    plane = np.zeros((1, 1200, 1500), np.float32)
    box = box_about((0, 700, 10, 720), (1200, 1500), 3)
    classifier = LiveClassifier(model, plane, box=box)
    assert classifier.covers((0, 700, 10, 720))
    assert classifier.covers((0, 330, 300, 900))
    assert not classifier.covers((0, 250, 10, 900))  # too near to the left border
    assert not classifier.covers((1000, 700, 1100, 720))
    assert classifier.covers(
        (0, 100, 10, 1320)
    )  # longer than all that is labelled at once: around its middle


@given(
    st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
    st.integers(2, 300),
)
def test_what_is_labelled_holds_the_stroke(
    shape: tuple[int, int], shares: list[float], n_labels: int
) -> None:
    starts = [int(share * (length - 1)) for share, length in zip(shares, shape, strict=False)]
    ends = [
        start + 1 + int(share * min(400, length - start - 1))
        for share, start, length in zip(shares[2:], starts, shape, strict=True)
    ]
    y0, x0, y1, x1 = box_about((*starts, *ends), shape, n_labels)  # type: ignore[arg-type]
    assert 0 <= y0 <= starts[0]
    assert ends[0] <= y1 <= shape[0]
    assert 0 <= x0 <= starts[1]
    assert ends[1] <= x1 <= shape[1]
    assert fits_live((y1 - y0, x1 - x0), n_labels)
    assert (y0, x0, y1, x1) == (0, 0, *shape) or not fits_live(shape, n_labels)


def test_what_does_not_fit_is_refused(model: SegmentationModel) -> None:
    image, truth = scene(0)
    classifier, strokes = LiveClassifier(model, image), strokes_on(truth, 0, 1)
    wrong = strokes.copy()
    wrong[0, 0] = 7
    for given_strokes, said in (
        (wrong, "strokes must be places in the class table, 0 to 2"),
        (strokes[:-1], r"strokes must be uint8 of shape \(128, 128\)"),
        (strokes.astype(np.uint16), "strokes must be uint8"),
    ):
        with pytest.raises(ValueError, match=said):
            classifier.exact((0, 0, 9, 9), given_strokes, strokes)
    with pytest.raises(ValueError, match="before must be places"):
        classifier.exact((0, 0, 9, 9), strokes, wrong)


def test_a_crf_is_kind_to_many_small_classes_too() -> None:
    labels = torch.arange(64).repeat_interleave(64).reshape(64, 64)
    logits = 20.0 * torch.nn.functional.one_hot(labels, 64).permute(2, 0, 1)[None]
    given_labels = np.full((64, 64), NOTHING, np.uint8)
    assert is_kind([logits], [labels.numpy()], [given_labels])
    assert not is_kind([logits], [np.zeros((64, 64), np.int64)], [given_labels])


def test_what_it_does_not_take(model: SegmentationModel) -> None:
    assert LiveClassifier.takes(model)
    with pytest.raises(ValueError, match="got 1281 x 1280 pixels, 3 classes and FcnLite"):
        LiveClassifier(model, np.zeros((1, 1281, 1280), np.float32))
    assert fits_live((1024, 1024), 64)
    assert not fits_live((1024, 1024), 65)
    other = SegmentationModel(
        ModelConfig(architecture="fcn-8s", width=1 / 32, classes=class_table(["a", "b"]))
    )
    assert not LiveClassifier.takes(other)
    with pytest.raises(ValueError, match="64 x 64 pixels, 2 classes and Fcn8s"):
        LiveClassifier(other, np.zeros((3, 64, 64), np.float32))


@settings(deadline=None)
@given(st.integers(1, 7), st.integers(1, 40), st.integers(1, 40), st.integers(0, 5), st.integers(0, 5))
def test_a_sieve_of_any_step_fills_its_box(step: int, height: int, width: int, y0: int, x0: int) -> None:
    """What is linear in the rows and the columns stays so between the pixels that are judged."""
    sieve = Sieve((y0, x0, y0 + height, x0 + width), step)
    y, x = sieve.pixels()
    marginals = torch.from_numpy(np.exp(-0.01 * y - 0.02 * x)).float()[:, None]
    spread = sieve.spread(marginals)[0, 0].numpy()
    assert spread.shape == (height, width)
    rows, columns = np.mgrid[y0 : y0 + height, x0 : x0 + width]
    last_y, last_x = y.max(), x.max()  # beyond these it stays as it is
    expected = -0.01 * np.minimum(rows, last_y) - 0.02 * np.minimum(columns, last_x)
    np.testing.assert_allclose(spread, expected, atol=1e-4)


@pytest.mark.parametrize(("side", "step"), [(256, 1), (300, 2), (632, 2), (1024, 4), (2048, 7)])
def test_a_quick_look_judges_some_hundred_thousand_pixels(side: int, step: int) -> None:
    sieve = Sieve.of_image((side, side), quick=True)
    assert sieve.step == step
    assert len(sieve.pixels()[0]) <= 101_000
    assert Sieve.of_image((side, side)).step == min(step, 2)


@given(
    arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))),
    st.integers(0, 3),
    st.integers(0, 4),
    st.sampled_from([(), (1,), (2, 0)]),
    st.sampled_from([np.uint8, np.uint16]),
)
def test_places_in_a_box_keep_and_bring_back(
    where: NDArray[np.bool_], y: int, x: int, index: tuple[int, ...], dtype: type
) -> None:
    random = np.random.default_rng(0)
    shape = (3, 2)[: len(index)]
    labels = random.integers(0, 9, (*shape, 13, 14)).astype(dtype)
    height, width = where.shape
    box = (*index, slice(y, y + height), slice(x, x + width))
    changed = labels.copy()
    changed[box][where] = 200
    places = places_in(box, where, labels.itemsize)
    assert isinstance(places[-1], np.ndarray) or places == box
    kept, came = labels[places].copy(), changed[places].copy()
    work = labels.copy()
    work[places] = came
    np.testing.assert_array_equal(work, changed)
    work[places] = kept
    np.testing.assert_array_equal(work, labels)
    indices = sum(part.nbytes for part in places if isinstance(part, np.ndarray))
    as_points = where.sum() * (8 * len(box) + 2 * labels.itemsize)
    assert indices + kept.nbytes + came.nbytes == min(as_points, 2 * labels.itemsize * where.size)
