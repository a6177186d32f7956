"""Refining while somebody paints: the exact answer, the guess before it, and what they cost."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from napari_crfasrnn.classes import class_table
from napari_crfasrnn.config import CrfConfig, ModelConfig
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.plane_logits import PlaneLogits
from napari_crfasrnn.progress import Cancelled
from napari_crfasrnn.samples import sample
from napari_crfasrnn.segmenter import LiveRefinement, Segmenter, parts
from napari_crfasrnn.segmenter import contenders as contenders_module
from napari_crfasrnn.segmenter.contenders import Contenders, labels_in
from napari_crfasrnn.segmenter.sketch import Sketch

N_LABELS, NOTHING = 4, 255
CRF = CrfConfig.starter().model_copy(update={"theta_alpha": 12.0})


def new_model(sure: float = 4.0) -> SegmentationModel:
    """A network with random weights that gives every class some of a photograph."""
    torch.manual_seed(0)
    classes = class_table([f"c{i}" for i in range(N_LABELS)])
    model = SegmentationModel(ModelConfig(classes=classes, crf=CRF))
    with torch.no_grad():
        for layer in model.network.score_layers:
            layer.weight.mul_(sure)
        image = torch.from_numpy(sample("chelsea")[::2, ::2].transpose(2, 0, 1).astype(np.float32))
        model.network.score_layers[-1].bias -= model.logits(image[None]).mean((0, 2, 3))
    return model


MODEL = new_model()
PHOTO = sample("chelsea")[40:200, 90:282].copy()  # [160, 192, 3]


def new_segmenter(image: np.ndarray = PHOTO) -> Segmenter:
    segmenter = Segmenter(MODEL, "cpu")
    segmenter.set_image(image)
    return segmenter


def nothing(live: LiveRefinement) -> np.ndarray:
    return np.full(live.plane_shape, NOTHING, np.uint8)


def part(array: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    return array[box[0] : box[2], box[1] : box[3]]


def painted(live: LiveRefinement, box: tuple[int, int, int, int], label: int) -> np.ndarray:
    """A cross of strokes within a box."""
    strokes = nothing(live)
    y, x = (box[0] + box[2]) // 2, (box[1] + box[3]) // 2
    strokes[y - 3 : y + 3, box[1] : box[3]] = label
    strokes[box[0] : box[2], x - 3 : x + 3] = label
    return strokes


BOX = (60, 70, 100, 110)


@pytest.fixture
def regional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "LIVE_PIXELS", 100)


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_the_exact_answer_is_that_of_a_cold_run_bit_for_bit(data):
    """However many previews and strokes came before."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    live = new_segmenter().live()
    strokes = nothing(live)
    for _ in range(data.draw(st.integers(1, 3))):
        before = strokes.copy()
        y0, x0 = int(rng.integers(0, 150)), int(rng.integers(0, 180))
        box = (y0, x0, min(160, y0 + int(rng.integers(1, 50))), min(192, x0 + int(rng.integers(1, 50))))
        inside = part(strokes, box)
        inside[rng.random(inside.shape) < 0.5] = rng.integers(0, N_LABELS)
        for _ in range(data.draw(st.integers(0, 2))):
            window = live.preview_window(box)
            live.preview(box, part(strokes, window), part(before, window))
        exact = live.exact(box, strokes, before)
        cold = new_segmenter().refine(strokes, clamp=strokes != NOTHING)
        assert exact.box == (0, 0, 160, 192)
        np.testing.assert_array_equal(exact.labels, cold.labels)
        without = new_segmenter().refine(before, clamp=before != NOTHING)
        np.testing.assert_array_equal(exact.changed, cold.labels != without.labels)


def test_the_exact_logits_are_those_of_a_cold_run_too():
    live = new_segmenter().live()
    strokes = painted(live, BOX, 1)
    live.prepare(nothing(live))
    first = live.exact(BOX, strokes, nothing(live))
    again = new_segmenter().live().exact(BOX, strokes, nothing(live))
    assert torch.equal(first.logits, again.logits)
    held = strokes != NOTHING
    cold = new_segmenter().refine(strokes, clamp=held)
    np.testing.assert_array_equal(first.entropy()[~held], cold.entropy[~held])


def test_a_large_plane_is_refined_around_the_stroke_like_a_region(regional):
    live = new_segmenter().live()
    assert not live.is_whole
    strokes, before = painted(live, BOX, 2), painted(live, (20, 20, 50, 50), 1)
    strokes[before != NOTHING] = before[before != NOTHING]
    window = live.exact_window(BOX)
    exact = live.exact(BOX, part(strokes, window), part(before, window))
    assert exact.box == live.exact_box(BOX) != (0, 0, 160, 192)
    cold = new_segmenter().refine(strokes, clamp=strokes != NOTHING, region=exact.box)
    np.testing.assert_array_equal(exact.labels, part(cold.labels, exact.box))


@pytest.mark.parametrize("whole", [True, False])
def test_painted_pixels_stay_as_painted(whole, request):
    if not whole:
        request.getfixturevalue("regional")
    live = new_segmenter().live()
    rng = np.random.default_rng(0)
    for label in range(N_LABELS):
        strokes = painted(live, BOX, label)
        strokes[(rng.random(strokes.shape) < 0.05) & (strokes == NOTHING)] = rng.integers(0, N_LABELS)
        for answer, window in ((live.preview, live.preview_window), (live.exact, live.exact_window)):
            seen = window(BOX)
            refined = answer(BOX, part(strokes, seen), part(nothing(live), seen))
            inside = part(strokes, refined.box)
            np.testing.assert_array_equal(refined.labels[inside != NOTHING], inside[inside != NOTHING])


def test_without_a_stroke_nothing_changes():
    live = new_segmenter().live()
    live.prepare(nothing(live))
    predicted = new_segmenter().predict().labels
    window = live.preview_window(BOX)
    preview = live.preview(BOX, part(nothing(live), window), part(nothing(live), window))
    np.testing.assert_array_equal(preview.labels, part(predicted, window))
    assert not preview.changed.any()
    exact = live.exact(BOX, nothing(live), nothing(live))
    np.testing.assert_array_equal(exact.labels, predicted)
    assert not exact.changed.any()


def test_a_preview_guesses_most_of_what_the_exact_answer_changes():
    """And next to nothing that it does not change."""
    model = new_model(sure=1.0)  # unsure, as a network is where it has to be corrected
    segmenter = Segmenter(model, "cpu")
    segmenter.set_image(PHOTO)
    live = segmenter.live()
    hits = wrong = missed = 0
    for label in range(N_LABELS):
        strokes = painted(live, BOX, label)
        live.prepare(nothing(live))
        window = live.preview_window(BOX)
        preview = live.preview(BOX, part(strokes, window), part(nothing(live), window))
        exact = live.exact(BOX, strokes, nothing(live))
        free = part(strokes, window) == NOTHING
        should = part(exact.changed, window) & free
        does = preview.changed & free & (preview.labels == part(exact.labels, window))
        hits += np.count_nonzero(should & does)
        missed += np.count_nonzero(should & ~does)
        wrong += np.count_nonzero(preview.changed & ~part(exact.changed, window))
    assert hits > 300
    assert missed < 0.2 * hits
    assert wrong < 0.2 * hits


TWO_TONES = np.full((96, 120), 60, np.uint8)
TWO_TONES[:, 65:] = 190


def test_a_stroke_against_a_network_that_is_sure_spreads_to_the_edge_and_not_across():
    model = new_model()
    with torch.no_grad():
        for layer in model.network.score_layers:
            layer.weight.zero_()
            layer.bias.zero_()
        model.network.score_layers[-1].bias[0] = 4.0  # 95 % sure of class 0, everywhere
    segmenter = Segmenter(model, "cpu")
    segmenter.set_image(TWO_TONES)
    live = segmenter.live()
    box = (30, 68, 60, 76)  # three pixels beside the edge
    strokes = nothing(live)
    part(strokes, box)[...] = 1
    window = live.preview_window(box)
    preview = live.preview(box, part(strokes, window), part(nothing(live), window))
    exact = live.exact(box, strokes, nothing(live))
    guessed = np.zeros_like(exact.labels)
    part(guessed, window)[...] = preview.labels
    for labels in (exact.labels, guessed):
        assert (labels[38:52, 65:68] == 1).all()
        assert (labels[:, :65] == 0).all()
        assert (labels[:, 105:] == 0).all()  # of the same colour, and not near


class _Largest(TorchDispatchMode):
    """Notes the largest tensor that an operation makes (views are no work)."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if all(result.alias_info is None for result in func._schema.returns):
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, torch.Tensor):
                    self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize("what", ["preview", "exact"])
def test_the_work_does_not_grow_with_the_plane(what, regional, monkeypatch):
    largest, peaks, pixels = [], [], []
    method = "prepare_points" if what == "preview" else "prepare"
    # The kernels would be wider in an image that the network sees shrunk.
    preprocessing = MODEL.config.preprocessing.model_copy(update={"long_side": None})
    monkeypatch.setattr(MODEL, "config", MODEL.config.model_copy(update={"preprocessing": preprocessing}))
    prepare = getattr(MODEL.crf, method)
    for times in (2, 8):
        image = np.tile(PHOTO, (times, times, 1))
        with monkeypatch.context() as patch:
            patch.setattr(MODEL.network, "forward", lambda x: torch.zeros(1, N_LABELS, *x.shape[2:]))
            live = new_segmenter(image).live()
        strokes, before = painted(live, BOX, 1), nothing(live)
        seen = 0

        def counted(image, *more, **others):
            nonlocal seen
            seen += len(image) if what == "preview" else image[0, 0].numel()
            return prepare(image, *more, **others)

        window = getattr(live, f"{what}_window")(BOX)
        with monkeypatch.context() as patch, _Largest() as mode:
            patch.setattr(MODEL.crf, method, counted)
            tracemalloc.start()
            getattr(live, what)(BOX, part(strokes, window), part(before, window))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        largest.append(mode.numel)
        pixels.append(seen)
    assert pixels[0] == pixels[1]
    n_pixels = (window[2] - window[0]) * (window[3] - window[1])
    if what == "preview":  # what lies around the window costs a fraction of it
        assert n_pixels < pixels[0] < 1.2 * n_pixels
    else:
        assert pixels[0] == n_pixels
    assert largest[0] == largest[1] > 0
    assert peaks[1] < 1.5 * peaks[0] + 65536  # of NumPy; what Python itself holds varies a little


def test_neighbouring_previews_share_their_kernels(monkeypatch):
    live = new_segmenter().live()
    built = []
    prepare = MODEL.crf.prepare_points
    monkeypatch.setattr(
        MODEL.crf,
        "prepare_points",
        lambda *points, **others: built.append(1) or prepare(*points, **others),
    )
    for step in range(4):
        box = (70, 66 + step, 80, 76 + step)
        window = live.preview_window(box)
        live.preview(box, part(painted(live, box, 1), window), part(nothing(live), window))
    assert len(built) == 1


@pytest.mark.parametrize("window", [(32, 64, 96, 128), (0, 0, 64, 64), (96, 96, 150, 181)])
def test_a_sketch_has_the_pixels_of_its_window_and_the_mass_of_what_lies_around(window):
    plane = torch.arange(150.0 * 181.0).reshape(1, 1, 150, 181)
    logits = PlaneLogits(plane, (150, 181))
    y0, x0, y1, x1 = window
    top, left, bottom, right = max(y0 - 32, 0), max(x0 - 32, 0), min(y1 + 32, 150), min(x1 + 32, 181)
    sketch = Sketch.draw(MODEL, plane, window, (top, left, bottom, right))
    assert torch.equal(sketch.in_window(sketch.gather(logits)), plane[:, :, y0:y1, x0:x1])
    n_pixels = (bottom - top) * (right - left)
    mass = sketch.prepared.mass
    assert float(mass.sum()) == n_pixels
    assert len(mass) < (window[2] - window[0]) * (window[3] - window[1]) + n_pixels / 16 + 50
    places = sketch.rows * 181 + sketch.columns
    assert len(places.unique()) == len(places)
    strokes = np.full((window[2] - window[0], window[3] - window[1]), 3, np.uint8)
    around = np.full((150, 181), 2, np.uint8)
    for painted, outside in ((around, 2), (None, NOTHING)):
        taken = sketch.gather_strokes(strokes, painted, NOTHING)[0]
        assert (taken[: strokes.size] == 3).all()
        assert (taken[strokes.size :] == outside).all()


def test_contenders_are_those_needed_and_the_likeliest():
    model = SegmentationModel(ModelConfig(classes=class_table([f"c{i}" for i in range(20)]), crf=CRF))
    logits = torch.zeros(1, 20, 16, 16)
    logits[:, 3::2] = 5.0  # nine odd ones, of which 19 most and 17 least
    logits[:, 19] += 1.0
    logits[:, 17] -= 1.0
    needed = labels_in(np.array([[4, 4, NOTHING, 19]], np.uint8), 20)
    assert np.flatnonzero(needed).tolist() == [4, 19]
    few = Contenders.choose(model, needed, logits)
    assert len(few.labels) == 7  # and one for all others
    assert {4, 19} < set(few.labels.tolist()) < {4, 19, *range(3, 17, 2)}
    assert sorted(few.labels.tolist() + few.others.tolist()) == list(range(20))
    assert torch.equal(few.labels, few.labels.sort().values)
    assert few.include(needed)
    assert not few.include(labels_in(np.array([2]), 20))
    strokes = np.array([[19, NOTHING, 4]], np.uint8)
    numbers = few.numbers_of(strokes)
    assert few.labels[numbers[strokes != NOTHING].astype(np.int64)].tolist() == [19, 4]
    assert numbers[0, 1] == NOTHING
    joined = few.join(logits)
    assert torch.equal(joined[:, :7], logits[:, few.labels])
    scale = few.crf.log_unary_scale.exp()
    mass = (scale * few.count_others(joined)).softmax(1)[:, 7]
    assert torch.allclose(mass, (scale * logits).softmax(1)[:, few.others].sum(1))
    own = torch.rand(1, 8, 3, 4)
    own[:, 7] = 2.0  # what stands for the others cannot win
    spread = few.spread(own, logits[..., :3, :4])
    assert torch.equal(spread[:, few.labels], own[:, :7])
    assert torch.equal(spread[:, few.others], logits[:, few.others, :3, :4])
    spread = few.spread(own, None)
    assert torch.equal(spread.amin(1), own.amin(1))
    assert torch.equal(few.winners(own), few.labels[own[0, :7].max(0).indices])
    # Eight labels and what stands for the others take two rows; more than fifteen are as dear as all.
    assert len(Contenders.choose(model, np.arange(20) < 8, logits).labels) == 15
    everyone = Contenders.choose(model, np.arange(20) < 16, logits)
    assert everyone.are_all
    assert everyone.crf is model.crf
    assert everyone.join(logits) is logits


def test_a_preview_of_many_labels_computes_with_few(monkeypatch):
    """And guesses what it would with all."""
    n_labels = 12
    torch.manual_seed(1)
    model = SegmentationModel(ModelConfig(classes=class_table([f"c{i}" for i in range(n_labels)]), crf=CRF))
    drawn = torch.rand(1, n_labels, 4, 4)
    drawn[:, 5:] -= 1.0  # three never win
    logits = 6.0 * torch.nn.functional.interpolate(drawn, PHOTO.shape[:2], mode="bilinear")
    image = torch.from_numpy(PHOTO.transpose(2, 0, 1).astype(np.float32))[None]
    whole = model.crf.prepare(image)
    previews = []
    for as_quick in (8, n_labels):
        monkeypatch.setattr(contenders_module, "AS_QUICK_AS_ONE", as_quick)
        live = LiveRefinement(model, image, PlaneLogits(logits, PHOTO.shape[:2]), whole)
        live.prepare(nothing(live))
        window = live.preview_window(BOX)
        before = part(nothing(live), window)
        for label in (0, 3, 11):  # the last is among the few only since it was painted
            strokes = part(painted(live, BOX, label), window)
            preview = live.preview(BOX, strokes, before)
            assert (preview.labels[strokes != NOTHING] == label).all()
            assert preview.logits.shape == (n_labels, *strokes.shape)
            previews.append(preview)
            assert len(live._sketches[window].contenders.labels) == (7 if as_quick == 8 else n_labels)
    for few, all_of_them in zip(previews[:3], previews[3:], strict=True):
        assert all_of_them.changed.sum() > 50
        assert (few.labels == all_of_them.labels).mean() > 0.99


def test_a_preview_knows_of_what_was_painted_around_its_window():
    live = new_segmenter().live()
    far = painted(live, (4, 150, 40, 190), 2)
    live.prepare(far)
    window = live.preview_window(BOX)
    assert (part(far, window) == NOTHING).all()
    strokes, before = painted(live, BOX, 1), far
    strokes[far != NOTHING] = 2
    live.preview(BOX, part(strokes, window), part(before, window))
    assert (live._sketches[window].strokes == 2).any()
    live.prepare(nothing(live))  # that stroke is taken back
    live.preview(BOX, part(strokes, window), part(before, window))
    assert (live._sketches[window].strokes == NOTHING).all()


def test_what_was_given_may_be_painted_on_meanwhile():
    live = new_segmenter().live()
    strokes, before = painted(live, BOX, 1), nothing(live)
    live.prepare(before)
    before[...] = 2
    first = live.exact(BOX, strokes, nothing(live))
    np.testing.assert_array_equal(
        first.changed,
        first.labels != new_segmenter().refine(nothing(live), clamp=nothing(live) != NOTHING).labels,
    )


def test_cancelling_harms_nothing():
    live = new_segmenter().live()
    strokes, before = painted(live, BOX, 1), nothing(live)
    window = live.preview_window(BOX)
    for patience in range(12):
        for answer in (
            lambda cancel: live.prepare(before, cancel=cancel),
            lambda cancel: live.preview(BOX, part(strokes, window), part(before, window), cancel=cancel),
            lambda cancel: live.exact(BOX, strokes, before, cancel=cancel),
        ):
            left = iter([False] * patience)
            try:
                answer(lambda left=left: next(left, True))
            except Cancelled:
                continue
    with pytest.raises(Cancelled):
        live.exact(BOX, strokes, before, cancel=lambda: True)
    cold = new_segmenter().refine(strokes, clamp=strokes != NOTHING)
    np.testing.assert_array_equal(live.exact(BOX, strokes, before).labels, cold.labels)


def test_wrong_input_is_refused():
    live = new_segmenter().live()
    window = live.preview_window(BOX)
    right = part(nothing(live), window)
    with pytest.raises(ValueError, match="region must lie within the plane"):
        live.preview_window((0, 0, 161, 5))
    with pytest.raises(ValueError, match=r"strokes must be uint8 of shape .* got int64"):
        live.preview(BOX, right.astype(np.int64), right)
    with pytest.raises(ValueError, match=r"before must be uint8 of shape .* got uint8 of shape \(160, 192\)"):
        live.preview(BOX, right, nothing(live))
    wrong = right.copy()
    wrong[0, 0] = N_LABELS
    with pytest.raises(ValueError, match="strokes must be places in the class table, 0 to 3, or 255"):
        live.preview(BOX, wrong, right)
    stack = Segmenter(MODEL, "cpu")
    stack.set_image(np.stack([PHOTO[..., 0]] * 2), "ZYX")
    with pytest.raises(ValueError, match="index must say which plane"):
        stack.live()
    assert stack.live(index=1).plane_shape == (160, 192)
