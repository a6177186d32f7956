from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_crfasrnn import shortage
from napari_crfasrnn.classes import class_table
from napari_crfasrnn.config import CrfConfig, ModelConfig
from napari_crfasrnn.imaging import open_image
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.progress import Cancelled
from napari_crfasrnn.samples import sample
from napari_crfasrnn.segmenter import Segmentation, Segmenter

CRF = CrfConfig.starter().model_copy(update={"theta_alpha": 10.0})  # a reach that small test images have


def new_model(n_labels: int = 3) -> SegmentationModel:
    """A network with random weights that gives every class some of a photograph."""
    torch.manual_seed(0)
    model = SegmentationModel(ModelConfig(classes=class_table([f"c{i}" for i in range(n_labels)]), crf=CRF))
    with torch.no_grad():
        for layer in model.network.score_layers:
            layer.weight.mul_(4)
        image = torch.from_numpy(sample("chelsea")[::2, ::2].transpose(2, 0, 1).astype(np.float32))
        model.network.score_layers[-1].bias -= model.logits(image[None]).mean((0, 2, 3))
    return model


def undecided_model(n_labels: int = 3, first: float = 0.0) -> SegmentationModel:
    """A network that says the same everywhere, ``first`` for class 0: only labels and the CRF speak."""
    model = new_model(n_labels)
    with torch.no_grad():
        for layer in model.network.score_layers:
            layer.weight.zero_()
            layer.bias.zero_()
        model.network.score_layers[-1].bias[0] = first
    return model


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    return new_model()


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return sample("chelsea")[60:156:1, 120:248:1].copy()  # [96, 128, 3]


@pytest.fixture(scope="module")
def segmented(model, photo) -> Segmenter:
    segmenter = Segmenter(model, "cpu")
    segmenter.set_image(photo)
    return segmenter


# ---------------------------------------------------------------------------------------------- predict


def test_a_prediction_is_what_network_and_crf_compute(model, photo, segmented):
    result = segmented.predict(marginals=True)
    image = torch.from_numpy(photo.transpose(2, 0, 1).astype(np.float32))[None]
    with torch.no_grad():
        logits = model.logits(image)
        refined = model.crf(logits, model.crf_image(image))
    np.testing.assert_array_equal(result.before_crf, logits[0].argmax(0))
    np.testing.assert_array_equal(result.labels, refined[0].argmax(0))
    q = refined[0].softmax(0)
    np.testing.assert_allclose(result.marginals, q, atol=1e-6)
    np.testing.assert_allclose(result.entropy, -(q * q.log()).sum(0) / np.log(3), atol=1e-5)
    assert len(np.unique(result.labels)) > 1
    assert (result.before_crf != result.labels).any()
    assert result.classes == model.classes


def test_without_crf_the_network_has_the_last_word(model, photo):
    segmenter = Segmenter(model)
    segmenter.set_image(photo)
    result = segmenter.predict(crf=False)
    np.testing.assert_array_equal(result.labels, segmenter.predict().before_crf)
    assert result.before_crf is None
    assert result.marginals is None
    assert result.timings["crf"] == 0


def test_a_result_is_typed_shaped_and_frozen(photo, segmented):
    result = segmented.predict(marginals=True)
    assert (result.labels.dtype, result.before_crf.dtype) == (np.uint8, np.uint8)
    assert (result.entropy.dtype, result.marginals.dtype) == (np.float32, np.float32)
    assert result.labels.shape == result.before_crf.shape == result.entropy.shape == photo.shape[:2]
    assert result.marginals.shape == (3, *photo.shape[:2])
    assert result.entropy.min() >= 0
    assert result.entropy.max() <= 1
    for array in (result.labels, result.before_crf, result.entropy, result.marginals):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.labels = None
    assert set(result.timings) == {"network", "crf", "total"}
    assert 0 < result.timings["crf"] < result.timings["total"]


def test_shares_are_of_the_whole_image(model):
    labels = np.array([[0, 0, 2, 255]], np.uint8)
    result = Segmentation(labels, model.classes, None, np.zeros((1, 4), np.float32))
    assert result.shares() == (0.5, 0.0, 0.25)
    labels[0, 0] = 1  # the caller's own array stays writable


def test_the_image_set_is_not_written_to(model, photo):
    for array in (photo.copy(), photo.astype(np.float32), photo[::-1, ::2, ::-1]):
        before = array.copy()
        array.flags.writeable = False
        segmenter = Segmenter(model)
        segmenter.set_image(array)
        segmenter.predict()
        np.testing.assert_array_equal(array, before)


def test_the_network_is_asked_once(photo):
    model = new_model()
    asked = []
    model.network.register_forward_hook(lambda *_: asked.append(1))
    segmenter = Segmenter(model)
    segmenter.set_image(photo)
    first = segmenter.predict()
    second = segmenter.predict()
    segmenter.refine(first.labels)
    assert len(asked) == 1
    np.testing.assert_array_equal(first.labels, second.labels)
    segmenter.set_image(photo)
    segmenter.predict()
    assert len(asked) == 2


def test_a_model_left_in_training_mode_predicts_all_the_same_and_stays_so(photo, segmented):
    model = new_model()
    model.network.train()
    model.crf.train()
    segmenter = Segmenter(model)
    segmenter.set_image(photo)
    np.testing.assert_array_equal(segmenter.predict().labels, segmented.predict().labels)
    assert model.network.training
    assert model.crf.training
    # and what the CRF keeps of a prediction is good for training
    unary = torch.randn(1, 3, *photo.shape[:2], requires_grad=True)
    model.crf(unary, torch.from_numpy(photo.transpose(2, 0, 1).copy())[None].float()).sum().backward()
    assert unary.grad is not None


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((40, 50), "YX"),
        ((40, 50, 4), "YXC"),
        ((2, 40, 50), "CYX"),
        ((5, 40, 50), "CYX"),
        ((20, 40, 50), "CYX"),
        ((1, 1), "YX"),
        ((1, 9), "YX"),
        ((9, 1), "YX"),
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "bool"])
def test_every_kind_of_image_gives_labels_of_its_size(model, shape, axes, dtype):
    rng = np.random.default_rng(0)
    image = (rng.random(shape) * (1 if dtype == "bool" else 200)).round().astype(dtype)
    segmenter = Segmenter(model)
    segmenter.set_image(image, axes)
    result = segmenter.predict()
    assert result.labels.shape == segmenter.source.plane_shape
    assert np.isfinite(result.entropy).all()


def test_constant_images_and_holes(model):
    segmenter = Segmenter(model)
    segmenter.set_image(np.zeros((30, 40), np.float32))
    assert segmenter.predict().labels.shape == (30, 40)
    image = np.random.default_rng(0).random((30, 40))
    image[3:6, 4:9] = np.nan
    segmenter.set_image(image)
    assert segmenter.source.n_nonfinite == 15
    assert np.isfinite(segmenter.predict().entropy).all()


def test_one_class_is_certain_and_three_hundred_need_sixteen_bits():
    image = sample("chelsea")[:24, :32]
    for n_labels, dtype in ((1, np.uint8), (255, np.uint8), (256, np.uint16), (300, np.uint16)):
        segmenter = Segmenter(new_model(n_labels))
        segmenter.set_image(image)
        result = segmenter.predict()
        assert result.labels.dtype == dtype
        assert len(result.shares()) == n_labels
        assert sum(result.shares()) == pytest.approx(1)
        if n_labels == 1:
            assert (result.entropy == 0).all()
        else:
            assert result.labels.max() > 0
        labels = result.labels.copy()
        labels[:4] = 255 if dtype == np.uint8 else 65535
        assert segmenter.refine(labels).labels.max() < n_labels


# ----------------------------------------------------------------------------------------------- stacks


@pytest.fixture
def stack() -> np.ndarray:
    photo = sample("chelsea")[..., 0]
    planes = [photo[10 * i : 10 * i + 40, 20 * i : 20 * i + 48] for i in range(6)]
    return np.stack(planes).reshape(2, 3, 40, 48)  # TZYX


def test_a_stack_is_segmented_plane_by_plane(model, stack):
    segmenter = Segmenter(model)
    segmenter.set_image(stack, "TZYX")
    whole = segmenter.predict(marginals=True)
    assert whole.labels.shape == whole.entropy.shape == whole.before_crf.shape == (2, 3, 40, 48)
    assert whole.marginals.shape == (3, 2, 3, 40, 48)
    for t, z in ((0, 0), (1, 2), (0, 1)):
        one = segmenter.predict(index=(t, z), marginals=True)
        assert one.labels.shape == (40, 48)
        np.testing.assert_array_equal(one.labels, whole.labels[t, z])
        np.testing.assert_allclose(one.marginals, whole.marginals[:, t, z])
        alone = Segmenter(model)
        alone.set_image(stack[t, z])
        np.testing.assert_array_equal(alone.predict().labels, whole.labels[t, z])
    assert len({whole.entropy[t, z].tobytes() for t in range(2) for z in range(3)}) == 6


def test_a_stack_of_one_plane_keeps_its_axis(model, stack):
    segmenter = Segmenter(model)
    segmenter.set_image(stack[:1, 0], "ZYX")
    assert segmenter.predict().labels.shape == (1, 40, 48)
    assert segmenter.predict(index=0).labels.shape == (40, 48)


@pytest.mark.parametrize("index", [(2, 0), (0,), (0, 0, 0), (-1, 0)])
def test_planes_outside_the_stack_are_refused(model, stack, index):
    segmenter = Segmenter(model)
    segmenter.set_image(stack, "TZYX")
    with pytest.raises(ValueError, match=r"index must lie within a stack of shape \(2, 3\)"):
        segmenter.predict(index=index)
    with pytest.raises(ValueError, match="index must lie within"):
        segmenter.refine(np.zeros((40, 48), np.uint8), index=index)


def test_refining_a_plane_of_a_stack_needs_its_index(model, stack):
    segmenter = Segmenter(model)
    segmenter.set_image(stack, "TZYX")
    labels = segmenter.predict(index=(1, 1)).labels
    with pytest.raises(ValueError, match="index must say which plane"):
        segmenter.refine(labels)
    assert segmenter.refine(labels, index=(1, 1)).labels.shape == (40, 48)


# --------------------------------------------------------------------------------- progress and cancel


@pytest.mark.parametrize(("crf", "steps"), [(True, 7), (False, 1)])  # 5 iterations
def test_progress_counts_the_steps_of_every_plane(model, stack, crf, steps):
    segmenter = Segmenter(model)
    segmenter.set_image(stack[0], "ZYX")
    seen: list[tuple[int, int]] = []
    segmenter.predict(crf=crf, progress=lambda *step: seen.append(step))
    assert seen == [(i + 1, 3 * steps) for i in range(3 * steps)]
    seen.clear()
    segmenter.predict(crf=crf, index=(1,), progress=lambda *step: seen.append(step))
    assert seen == [(i + 1, steps) for i in range(steps)]


def test_a_cancel_stops_at_any_step_and_harms_nothing(model, stack):
    segmenter = Segmenter(model)
    segmenter.set_image(stack, "TZYX")
    expected = segmenter.predict().labels
    for patience in (0, 1, 2, 3, 6, 7, 8, 9, 20, 40, 41):
        left = iter([False] * patience)
        with pytest.raises(Cancelled):
            segmenter.predict(cancel=lambda left=left: next(left, True))
        np.testing.assert_array_equal(segmenter.predict(index=(1, 1)).labels, expected[1, 1])
    with pytest.raises(Cancelled):
        segmenter.refine(expected[0, 0], index=(0, 0), cancel=lambda: True)
    np.testing.assert_array_equal(segmenter.predict().labels, expected)


@pytest.mark.parametrize("verb", ["predict", "refine"])
def test_a_cancel_from_another_thread_is_heard_within_the_iterations(verb):
    model = undecided_model()
    # Far more than are done before the cancel comes: it must not wait for the last.
    model.crf.config = model.crf.config.model_copy(update={"n_iterations": 100_000})
    segmenter = Segmenter(model)
    segmenter.set_image(sample("chelsea")[:128, :160])
    asked_again, wanted = threading.Event(), threading.Event()
    n_asked = 0

    def cancel() -> bool:
        nonlocal n_asked
        n_asked += 1
        if n_asked > 5:  # network and lattices are done, iterations under way
            asked_again.set()
        return wanted.is_set()

    def work() -> Any:
        if verb == "predict":
            return segmenter.predict(cancel=cancel)
        return segmenter.refine(np.full((128, 160), 255, np.uint8), cancel=cancel)

    with ThreadPoolExecutor(1) as thread:
        job = thread.submit(work)
        assert asked_again.wait(60)
        wanted.set()
        with pytest.raises(Cancelled):
            job.result(60)
    assert n_asked < 10_000

    model.crf.config = model.crf.config.model_copy(update={"n_iterations": 2})
    assert segmenter.predict().labels.shape == (128, 160)


# ----------------------------------------------------------------------------------------------- refine

TWO_TONES = np.full((64, 80), 60, np.uint8)
TWO_TONES[:, 45:] = 190


def test_a_stroke_spreads_to_the_edge_of_the_image_and_not_across():
    segmenter = Segmenter(undecided_model())
    segmenter.set_image(TWO_TONES)
    strokes = np.full(TWO_TONES.shape, 255, np.uint8)
    strokes[20:44, 50:75] = 1
    strokes[20:44, 10:40] = 2
    for clamp in (None, strokes != 255):
        labels = segmenter.refine(strokes, clamp=clamp).labels
        assert (labels[10:54, 45:] == 1).mean() > 0.99
        assert (labels[10:54, :45] == 2).mean() > 0.99


def test_a_correction_of_a_few_pixels_changes_its_surroundings():
    segmenter = Segmenter(undecided_model(2, first=0.1))
    segmenter.set_image(TWO_TONES)
    labels = np.zeros(TWO_TONES.shape, np.uint8)  # what the network says
    labels[24:40, 46:79] = 1
    refined = segmenter.refine(labels).labels
    assert (refined[24:40, 46:79] == 1).all()
    assert (refined == 1).sum() > 1.3 * (labels == 1).sum()
    assert (refined[:, :44] == 0).mean() > 0.99


def test_labels_that_agree_with_the_network_change_nothing(segmented):
    result = segmented.predict()
    refined = segmented.refine(result.before_crf)
    np.testing.assert_array_equal(refined.labels, result.labels)
    np.testing.assert_allclose(refined.entropy, result.entropy, atol=1e-6)
    unlabelled = np.full(result.labels.shape, 255, np.uint8)
    np.testing.assert_array_equal(segmented.refine(unlabelled).labels, result.labels)
    assert refined.before_crf is None


def test_logits_go_through_the_crf_as_they_are(model, photo, segmented):
    rng = np.random.default_rng(0)
    unary = rng.normal(size=(3, *photo.shape[:2]))
    image = torch.from_numpy(photo.transpose(2, 0, 1).astype(np.float32))[None]
    with torch.no_grad():
        expected = model.crf(torch.from_numpy(unary).float()[None], model.crf_image(image))
    result = segmented.refine(unary)
    np.testing.assert_array_equal(result.labels, expected[0].argmax(0))
    fresh = Segmenter(model)
    fresh.set_image(photo)
    assert fresh.refine(unary.astype(np.float16)).timings["network"] == 0  # nobody asked the network


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_clamped_pixels_keep_their_labels_and_nothing_outside_the_region_changes(data):
    segmenter, height, width = HYPOTHESIS_SEGMENTER, 48, 56
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    labels = rng.choice([0, 1, 2, 255], (height, width)).astype(
        data.draw(st.sampled_from(["uint8", "int64"]))
    )
    clamp = rng.random((height, width)) < data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    y0, x0 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    y1, x1 = data.draw(st.integers(y0 + 1, height)), data.draw(st.integers(x0 + 1, width))
    before = labels.copy()
    result = segmenter.refine(labels, clamp=clamp, region=(y0, x0, y1, x1))
    np.testing.assert_array_equal(labels, before)
    outside = np.ones((height, width), bool)
    outside[y0:y1, x0:x1] = False
    np.testing.assert_array_equal(result.labels[outside], labels[outside])
    held = clamp & (labels != 255)
    np.testing.assert_array_equal(result.labels[held], labels[held])
    assert (result.labels[~outside] != 255).all()
    assert (result.entropy[held & ~outside] == 0).all()


HYPOTHESIS_SEGMENTER = Segmenter(new_model())
HYPOTHESIS_SEGMENTER.set_image(sample("chelsea")[100:148, 100:156])


def test_clamped_logits_keep_the_likeliest_class(photo, segmented):
    unary = np.random.default_rng(0).normal(size=(3, *photo.shape[:2])).astype(np.float32)
    clamp = np.zeros(photo.shape[:2], bool)
    clamp[::3, ::2] = True
    result = segmented.refine(unary, clamp=clamp)
    np.testing.assert_array_equal(result.labels[clamp], unary.argmax(0)[clamp])
    assert (result.labels != unary.argmax(0)).any()


def test_a_region_gives_nearly_what_the_whole_plane_gives():
    segmenter = Segmenter(new_model())
    segmenter.set_image(sample("chelsea"))
    labels = segmenter.predict().labels.copy()
    labels[150:170, 200:240] = (labels[150:170, 200:240] + 1) % 3
    region = (140, 190, 180, 250)
    whole, part = segmenter.refine(labels), segmenter.refine(labels, region=region)
    inside = np.s_[140:180, 190:250]
    # Not exactly, because the kernels of the part end 2 theta_alpha away and its lattice lies elsewhere.
    assert (whole.labels[inside] == part.labels[inside]).mean() > 0.97
    assert np.abs(whole.entropy[inside] - part.entropy[inside]).mean() < 0.03


def test_the_entropy_outside_the_region_is_that_of_the_result_before(segmented, photo):
    result = segmented.predict()
    refined = segmented.refine(result.labels, region=(10, 10, 30, 30))
    outside = np.ones(photo.shape[:2], bool)
    outside[10:30, 10:30] = False
    np.testing.assert_array_equal(refined.entropy[outside], result.entropy[outside])


def test_lattices_are_built_once_for_neighbouring_strokes(monkeypatch):
    model = undecided_model()
    segmenter = Segmenter(model)
    segmenter.set_image(sample("chelsea"))
    built = []
    prepare = model.crf.prepare
    monkeypatch.setattr(
        model.crf,
        "prepare",
        lambda image, *more, **others: built.append(image.shape) or prepare(image, *more, **others),
    )
    labels = np.full((300, 451), 255, np.uint8)
    for step in range(4):
        segmenter.refine(labels, region=(140, 200 + step, 150, 210 + step))
    assert len(built) == 1
    assert max(built[0][2:]) < 150  # far from the whole plane


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((95, 128), np.uint8), r"labels must have shape \[H, W\] = \(96, 128\), got \(95, 128\)"),
        (np.full((96, 128), 3, np.uint8), "places in the class table, 0 to 2, or 255 for unlabelled, got 3"),
        (np.full((96, 128), -1), "got -1"),
        (np.zeros((96, 128), bool), "labels must be integers"),
        (np.zeros((96, 128)), r"logits must have shape \[L, H, W\] = \(3, 96, 128\)"),
        (np.zeros((4, 96, 128)), "logits must have shape"),
        (np.full((3, 96, 128), np.nan), "logits must be finite"),
        (np.full((96, 128), "a"), "labels must be integers"),
    ],
)
def test_wrong_labels_are_refused(segmented, given, message):
    with pytest.raises(ValueError, match=message):
        segmented.refine(given)


@pytest.mark.parametrize(
    "region", [(0, 0, 0, 5), (-1, 0, 5, 5), (0, 0, 97, 5), (5, 5, 1, 9), (0, 0, 5), "abcd", 7]
)
def test_wrong_regions_are_refused(segmented, region):
    with pytest.raises(ValueError, match="region must"):
        segmented.refine(np.zeros((96, 128), np.uint8), region=region)


@pytest.mark.parametrize("clamp", [np.zeros((96, 128), np.uint8), np.zeros((9, 9), bool)])
def test_wrong_clamps_are_refused(segmented, clamp):
    with pytest.raises(ValueError, match="clamp must be boolean"):
        segmented.refine(np.zeros((96, 128), np.uint8), clamp=clamp)


# ------------------------------------------------------------------------------------- images and devices


def test_an_image_must_be_set_first(model):
    segmenter = Segmenter(model)
    for work in (segmenter.predict, lambda: segmenter.refine(np.zeros((3, 3), np.uint8))):
        with pytest.raises(ValueError, match=r"an image must be set first, with \.set_image"):
            work()


def test_a_wrong_image_leaves_the_one_before(model, photo):
    segmenter = Segmenter(model)
    segmenter.set_image(photo)
    with pytest.raises(ValueError, match="finite"):
        segmenter.set_image(np.full((9, 9), np.nan))
    assert segmenter.predict().labels.shape == photo.shape[:2]


def test_an_opened_image_can_be_set(model, photo):
    segmenter = Segmenter(model)
    segmenter.set_image(open_image(photo, spacing=0.5))
    assert segmenter.source.spacing == (0.5, 0.5)
    assert segmenter.predict().labels.shape == photo.shape[:2]


def test_devices(model):
    assert Segmenter(model, "cpu").device == torch.device("cpu")
    assert Segmenter(model, "auto").device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    for wrong in ("gpu", "mps", "meta"):
        with pytest.raises(ValueError, match="device must be 'auto', 'cpu' or 'cuda'"):
            Segmenter(model, wrong)
    with pytest.raises(RuntimeError, match=r"device 'cuda:99' is not available: torch sees \d+ CUDA devices"):
        Segmenter(model, "cuda:99")
    with pytest.raises(TypeError, match="model must be a SegmentationModel, got str: use load_model"):
        Segmenter("starter")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_graphics_card_agrees_with_the_processor(photo):
    results = []
    for device in ("cpu", "cuda"):
        segmenter = Segmenter(new_model(), device)
        segmenter.set_image(photo)
        results.append(segmenter.predict())
    assert (results[0].labels == results[1].labels).mean() > 0.995
    np.testing.assert_allclose(results[0].entropy, results[1].entropy, atol=0.02)


# ------------------------------------------------------------------------------------- extra features


def test_the_crf_follows_edges_of_extra_features(model) -> None:
    """A grey image without any edge, and depth with one: only with it labels stop there."""
    image = np.full((64, 80), 120, np.uint8)
    depth = np.zeros((64, 80))
    depth[:, 40:] = 30.0
    logits = np.zeros((model.n_labels, 64, 80), np.float32)
    logits[1, :, :37] = logits[2, :, 37:] = 1.0  # an edge that is three pixels off
    segmenter = Segmenter(model, device="cpu")
    segmenter.set_image(image)
    off = segmenter.refine(logits).labels
    segmenter.set_image(image, extra_features=depth)
    right = segmenter.refine(logits).labels
    assert (right[:, 37:40] == 1).mean() > 0.9
    assert (off[:, 37:40] == 1).mean() < 0.5
    # as the layer does it
    with torch.no_grad():
        features = torch.from_numpy(depth).float()[None, None]
        grey = torch.from_numpy(image).float()[None, None]
        expected = model.crf(torch.from_numpy(logits)[None], model.crf_image(grey), extra_features=features)
    np.testing.assert_array_equal(right, expected[0].argmax(0).numpy())


def test_extra_features_in_every_use(model, photo) -> None:
    small = np.ascontiguousarray(photo[:64, :80])
    rng = np.random.default_rng(0)
    depth = rng.normal(0, 5, (2, 64, 80))
    segmenter = Segmenter(model, device="cpu")
    segmenter.set_image(small)
    plain = segmenter.predict(marginals=True)
    segmenter.set_image(small, extra_features=depth)
    found = segmenter.predict(marginals=True)
    np.testing.assert_array_equal(found.before_crf, plain.before_crf)  # the network does not see them
    assert np.abs(found.marginals - plain.marginals).max() > 1e-3
    segmenter.set_image(np.stack([small, small]), axes="ZYXC", extra_features=np.stack([depth, 0 * depth], 1))
    stack = segmenter.predict(marginals=True)
    np.testing.assert_array_equal(stack.marginals[:, 0], found.marginals)
    np.testing.assert_allclose(stack.marginals[:, 1], plain.marginals, atol=0.05)
    # live refinement is that of `refine` here, too: a preview looks at a crop, the answer at the whole
    strokes = np.full((64, 80), 255, np.uint8)
    strokes[20:30, 20:40] = 2
    segmenter.set_image(small, extra_features=depth)
    live, nothing, box = segmenter.live(), np.full((64, 80), 255, np.uint8), (20, 20, 30, 40)
    assert live.is_whole
    refined = segmenter.refine(strokes, clamp=strokes != 255).labels
    np.testing.assert_array_equal(live.exact(box, strokes, nothing).labels, refined)
    y0, x0, y1, x1 = live.preview_window(box)
    crops = strokes[y0:y1, x0:x1], nothing[y0:y1, x0:x1]
    preview = live.preview(box, *crops).entropy()
    segmenter.set_image(small)  # forgotten with the image
    assert np.abs(segmenter.live().preview(box, *crops).entropy() - preview).max() > 1e-3
    np.testing.assert_array_equal(segmenter.predict(marginals=True).marginals, plain.marginals)


def test_extra_features_that_do_not_fit(model) -> None:
    segmenter = Segmenter(model, device="cpu")
    image = np.zeros((8, 9), np.uint8)
    segmenter.set_image(image)
    for wrong, says in (
        (np.zeros((9, 8)), r"shape of the image, \(8, 9\).*got \(9, 8\)"),
        (np.zeros((7, 8, 9)), "up to 6 features"),
        (np.zeros((0, 8, 9)), "up to 6 features"),
        (np.full((8, 9), np.nan), "must be finite"),
    ):
        with pytest.raises(ValueError, match=says):
            segmenter.set_image(np.ones((8, 9), np.uint8), extra_features=wrong)
    with pytest.raises(TypeError, match="must hold numbers"):
        segmenter.set_image(image, extra_features=np.full((8, 9), "a"))
    assert segmenter.source.plane().max() == 0  # the image set before stays
    framed = Segmenter(model.with_frame("caffe"), device="cpu")
    framed.set_image(image, extra_features=np.zeros((8, 9)))
    with pytest.raises(ValueError, match="extra features are of the image as it is"):
        framed.predict()


class TestLackOfMemory:
    @pytest.fixture
    def free(self, monkeypatch):
        """Let so many bytes be free."""

        def set_free(n_bytes: int) -> None:
            monkeypatch.setattr(shortage.psutil, "virtual_memory", lambda: SimpleNamespace(available=n_bytes))
            monkeypatch.setattr(shortage.psutil, "swap_memory", lambda: SimpleNamespace(free=0))

        return set_free

    def test_what_does_not_fit_is_refused_before_it_is_begun(self, model, photo, free) -> None:
        segmenter = Segmenter(model, "cpu")
        segmenter.set_image(photo)
        free(photo.shape[0] * photo.shape[1] * 150)
        says = r"96 x 128 pixels takes more than .* GB of memory with 3 classes, and .* are free: cut it into"
        for refused in (segmenter.predict, lambda: segmenter.refine(photo[..., 0] % 3), segmenter.live):
            with pytest.raises(MemoryError, match=says):
                refused()
        segmenter.predict(crf=False)  # that takes less
        free(10**12)
        labels = segmenter.predict().labels
        free(0)  # what there is is used again
        np.testing.assert_array_equal(segmenter.predict().labels, labels)

    def test_the_frame_of_a_demo_takes_logits_of_all_pixels(self, model, photo, free) -> None:
        free(photo.shape[0] * photo.shape[1] * 20)
        framed = Segmenter(model.with_frame("caffe"), "cpu")
        framed.set_image(photo)
        with pytest.raises(MemoryError, match="takes more than"):
            framed.predict()
        plain = Segmenter(model, "cpu")
        plain.set_image(photo)
        plain.predict(crf=False)

    def test_what_is_kept_for_later_is_given_back_first(self, model, photo, free, monkeypatch) -> None:
        free(0)
        monkeypatch.setattr("napari_crfasrnn.segmenter.segmenter.release_memory", lambda: free(10**12))
        segmenter = Segmenter(model, "cpu")
        segmenter.set_image(photo)
        segmenter.predict()

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (MemoryError("std::bad_alloc"), "not enough memory for an image of this size"),
            (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "not enough memory"),
            (shortage.MemoryShortageError("an image of 9 x 9"), "an image of 9 x 9"),
            (ValueError("image is empty"), None),
        ],
    )
    def test_what_is_said_of_it(self, error, said) -> None:
        lack = shortage.lack_of_memory(error)
        assert lack is None if said is None else said in lack
