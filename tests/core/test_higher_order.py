"""Superpixels and detections: their energies by enumeration, their gradients, and what they do to a CRF."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor

from napari_crfasrnn import Segmenter
from napari_crfasrnn.checkpoint import load_checkpoint, save_checkpoint
from napari_crfasrnn.classes import class_table
from napari_crfasrnn.config import CrfConfig, HigherOrderConfig, ModelConfig
from napari_crfasrnn.crf import CrfRnn, Potential
from napari_crfasrnn.higher_order import (
    Detection,
    DetectionPotential,
    HigherOrder,
    SuperpixelPotential,
    cut_into_superpixels,
)
from napari_crfasrnn.network import SegmentationModel


def random_marginals(n_pixels: int, n_labels: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(n_pixels, n_labels, generator=generator, dtype=torch.float64)).softmax(dim=1)


# --- Against all labelings of a tiny image -----------------------------------------------------------


def labelings(q: Tensor) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every labeling with its probability."""
    n_pixels, n_labels = q.shape
    for x in itertools.product(range(n_labels), repeat=n_pixels):
        yield x, float(torch.stack([q[i, label] for i, label in enumerate(x)]).prod())


def expected_given(q: Tensor, pixel: int, label: int, energy: Callable[[tuple[int, ...]], float]) -> float:
    """The mean energy of all labelings that give a pixel a label, the others drawn from the marginals."""
    certain = q.clone()
    certain[pixel] = 0.0
    certain[pixel, label] = 1.0
    return sum(p * energy(x) for x, p in labelings(certain) if p > 0)


def superpixel_energy(x: tuple[int, ...], number: list[int], weights: Tensor, share: float) -> float:
    energy = 0.0
    for superpixel in set(number):
        labels = [label for label, n in zip(x, number, strict=True) if n == superpixel]
        limit = max(1, round(share * len(labels)))
        for label, weight in enumerate(weights.tolist()):
            others = sum(1 for other in labels if other != label)
            energy -= weight * max(0, limit - others)
    return energy


@pytest.mark.parametrize(("share", "tolerance"), [(0.0, 1e-7), (0.2, 1e-7), (0.5, 0.07), (0.7, 0.07)])
def test_support_of_superpixels_is_the_mean_energy(share: float, tolerance: float) -> None:
    q = random_marginals(6, 3)
    number = [0, 0, 0, 0, 1, 1]
    potential = SuperpixelPotential(3, 1, share=share)
    with torch.no_grad():
        potential.weights.copy_(torch.tensor([[0.7, 1.1, -0.4]]))
    weights = potential.weights.detach()[0].double()
    bound = potential.on(torch.tensor(number).reshape(1, 1, 2, 3))
    support = bound.support(0, q, bound.begin(0))[0].detach()
    wanted = torch.tensor(
        [
            [
                -expected_given(q, pixel, label, lambda x: superpixel_energy(x, number, weights, share))
                for label in range(3)
            ]
            for pixel in range(6)
        ],
        dtype=torch.float64,
    )
    # A constant of each pixel means nothing to a softmax. Three other pixels are few for a normal law:
    # that is where the tolerance is large.
    difference = (support - support.mean(1, keepdim=True)) - (wanted - wanted.mean(1, keepdim=True))
    assert float(difference.abs().max()) <= tolerance
    assert float((wanted - wanted.mean(1, keepdim=True)).abs().max()) > 0.1


def test_the_normal_approximation_of_large_superpixels() -> None:
    n = 200
    q = random_marginals(n, 2, seed=3)
    q[:, 0] = 0.55 + 0.3 * (q[:, 0] - 0.5)
    q[:, 1] = 1 - q[:, 0]
    for share in (0.4, 0.44, 0.48):
        bound = SuperpixelPotential(2, 1, weight=1.0, share=share).on(torch.zeros(1, 1, n, dtype=torch.int64))
        support = bound.support(0, q, None)[0].detach()
        # The exact distribution of how many of the others disagree, coin by coin.
        for pixel in (0, 57):
            distribution = np.array([1.0])
            for other in range(n):
                if other != pixel:
                    p = float(1 - q[other, 0])
                    distribution = np.convolve(distribution, [1 - p, p])
            exact = distribution[: round(share * n)].sum()
            assert 0.01 < exact < 0.99
            assert float(support[pixel, 0]) == pytest.approx(exact, abs=2e-3)


def detection_energy(x: tuple[int, ...], y: int, detection: Detection, evidence: float) -> float:
    pixels = np.flatnonzero(detection.mask)
    agreeing = sum(1 for pixel in pixels if x[pixel] == detection.label)
    wrong = agreeing if y == 0 else len(pixels) - agreeing
    prior = -np.log(detection.score if y == 1 else 1 - detection.score)
    return float(evidence * detection.score / len(pixels) * wrong + prior)


def test_support_of_detections_is_the_mean_energy() -> None:
    q = random_marginals(6, 3)
    mask = np.array([[1, 1, 0], [0, 1, 1]], bool)
    detection = Detection(2, 0.7, mask)
    evidence = 3.0
    potential = DetectionPotential(3, weight=evidence / mask.sum(), evidence=evidence)
    bound = potential.on([[detection]])
    truth = torch.tensor([0.35], dtype=torch.float64)
    support, after = (tensor.detach() for tensor in bound.support(0, q, truth))

    def energy(x: tuple[int, ...]) -> float:
        return sum(p * detection_energy(x, y, detection, evidence) for y, p in ((0, 0.65), (1, 0.35)))

    wanted = torch.tensor([[-expected_given(q, i, label, energy) for label in range(3)] for i in range(6)])
    difference = (support - support.mean(1, keepdim=True)) - (wanted - wanted.mean(1, keepdim=True))
    assert float(difference.abs().max()) <= 1e-6  # the scores are float32
    # And of the hidden variable, given the pixels.
    mean = [sum(p * detection_energy(x, y, detection, evidence) for x, p in labelings(q)) for y in (0, 1)]
    assert float(after) == pytest.approx(1 / (1 + np.exp(mean[1] - mean[0])), abs=1e-6)
    assert bound.begin(0).tolist() == pytest.approx([0.7])


# --- Gradients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_gradcheck_through_the_whole_mean_field(share: float) -> None:
    crf = CrfRnn(3, CrfConfig(theta_alpha=4, theta_beta=40, unary_scale=0.8)).double()
    crf.backend = "reference"
    generator = torch.Generator().manual_seed(0)
    image = 200 * torch.rand(2, 1, 3, 4, generator=generator, dtype=torch.float64)
    prepared = crf.prepare(image)
    unary = torch.randn(2, 3, 3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    superpixels = torch.randint(0, 3, (2, 2, 3, 4), generator=generator)
    mask = torch.rand(3, 4, generator=generator).numpy() > 0.5
    detections = [[Detection(1, 0.8, mask), Detection(0, 0.3, ~mask)], [Detection(2, 0.6, mask)]]
    terms = torch.nn.ModuleDict(
        {"superpixels": SuperpixelPotential(3, 2, share=share), "detections": DetectionPotential(3)}
    ).double()
    names = [name for name, _ in terms.named_parameters()]
    values = [
        (p.detach() + 0.3 * torch.rand(p.shape, generator=generator, dtype=torch.float64)).requires_grad_()
        for p in terms.parameters()
    ]

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.terms = terms

        def forward(self, unary: Tensor) -> Tensor:
            potentials = [terms["superpixels"].on(superpixels), terms["detections"].on(detections)]  # type: ignore[operator]
            refined: Tensor = crf(unary, prepared=prepared, potentials=potentials, n_iterations=3)
            return refined

    layer = Layer()

    def function(unary: Tensor, *parameters: Tensor) -> Any:
        named = {f"terms.{name}": value for name, value in zip(names, parameters, strict=True)}
        return torch.func.functional_call(layer, named, (unary,))

    assert torch.autograd.gradcheck(function, (unary, *values))


def test_learning_the_weights_lowers_the_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(1, 20, 20, dtype=torch.int64)
    truth[:, :, 10:] = 1
    image = 100.0 * truth[:, None].float()
    clear = torch.nn.functional.one_hot(truth, 2).movedim(3, 1).float()
    unary = 0.6 * clear + torch.randn(1, 2, 20, 20, generator=generator)
    terms, crf = HigherOrder(2, HigherOrderConfig(superpixel_weight=0.0, detection_weight=0.0)), CrfRnn(2)
    crf.requires_grad_(False)
    superpixels = (torch.arange(20) // 5)[None, None, None].expand(1, 3, 20, 20)
    wrong = Detection.box(0, 0.6, (0, 10, 20, 20), (20, 20))
    right = Detection.box(1, 0.6, (2, 10, 18, 20), (20, 20))
    optimizer = torch.optim.Adam(terms.parameters(), lr=0.2)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        potentials = terms.potentials(superpixels, [[wrong, right]])
        refined = crf(unary, image, potentials=potentials, n_iterations=3)
        loss = torch.nn.functional.cross_entropy(refined, truth)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert (terms.superpixels.weights > 0).all()
    for parameter in terms.parameters():
        assert float(parameter.grad.abs().max()) > 0  # type: ignore[union-attr]


# --- In the CRF -----------------------------------------------------------------------------------------


class Nothing:
    """A potential that says nothing."""

    def begin(self, image: int) -> None: ...

    def support(self, image: int, marginals: Tensor, state: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(marginals), None


class Memory:
    """A potential that favours label 0 at one pixel of one image, and keeps count."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def begin(self, image: int) -> int:
        return 10 * image

    def support(self, image: int, marginals: Tensor, state: int) -> tuple[Tensor, int]:
        self.seen.append((image, state))
        support = torch.zeros_like(marginals)
        if image == 1:
            support[7, 0] = 100.0
        return support, state + 1


def test_potentials_are_asked_in_the_order_of_the_pixels() -> None:
    crf = CrfRnn(3, CrfConfig(theta_alpha=5, theta_beta=20)).eval()
    generator = torch.Generator().manual_seed(0)
    image, unary = 200 * torch.rand(2, 3, 9, 11, generator=generator), torch.zeros(2, 3, 9, 11)
    unary[:, 1] = 3.0
    memory = Memory()
    potentials: list[Potential] = [Nothing(), memory]
    with torch.inference_mode():
        plain = crf(unary, image, n_iterations=3)
        torch.testing.assert_close(
            crf(unary, image, n_iterations=3, potentials=[Nothing()]), plain, atol=1e-4, rtol=1e-4
        )
        found = crf(unary, image, n_iterations=3, potentials=potentials).argmax(dim=1)
    assert memory.seen == [(0, 0), (0, 1), (0, 2), (1, 10), (1, 11), (1, 12)]
    changed = (found != plain.argmax(dim=1)).nonzero().tolist()
    assert changed == [[1, 0, 7]]


def test_a_superpixel_overrules_its_dissenters() -> None:
    unary = torch.zeros(1, 2, 12, 12)
    unary[:, 1] = 1.0
    unary[:, :, 3:5, 3:5] = torch.tensor([1.5, 0.0])[None, :, None, None]
    crf = CrfRnn(2, CrfConfig(spatial_weight=0, bilateral_weight=0)).eval()
    superpixels = torch.zeros(1, 1, 12, 12, dtype=torch.int64)
    superpixels[..., 6:] = 1
    with torch.inference_mode():
        image = torch.zeros(1, 1, 12, 12)
        assert int((crf(unary, image).argmax(1) == 0).sum()) == 4
        robust = SuperpixelPotential(2, 1, weight=2.0, share=0.4).on(superpixels)
        assert (crf(unary, image, potentials=[robust]).argmax(1) == 1).all()
        strict = SuperpixelPotential(2, 1, weight=2.0, share=0.0).on(superpixels)
        assert int((crf(unary, image, potentials=[strict]).argmax(1) == 0).sum()) == 4


def test_a_detection_is_believed_or_not() -> None:
    unary = torch.zeros(1, 3, 10, 10)
    unary[:, 0] = 0.5
    box = Detection.box(2, 0.9, (2, 3, 7, 8), (10, 10))
    crf = CrfRnn(3, CrfConfig(spatial_weight=0, bilateral_weight=0)).eval()
    image = torch.zeros(1, 1, 10, 10)
    terms = DetectionPotential(3)
    with torch.inference_mode():
        assert not (crf(unary, image).argmax(1) == 2).any()
        labels = crf(unary, image, potentials=[terms.on([[box]])]).argmax(1)
        assert torch.equal(labels[0] == 2, torch.from_numpy(box.mask))
        # An unlikely one that the pixels contradict is given up, and counts against its label.
        unary[:, 1] = 4.0
        doubtful = Detection.box(2, 0.2, (2, 3, 7, 8), (10, 10))
        refined = crf(unary, image, potentials=[terms.on([[doubtful]])])
        assert (refined.argmax(1) == 1).all()
        assert float(refined[0, 2, 4, 5]) < 0


def test_masks_of_the_detections_of_an_image_are_all_as_large() -> None:
    potential = DetectionPotential(3)
    large, small = (
        Detection.box(1, 0.9, (0, 15, 10, 30), (30, 30)),
        Detection.box(2, 0.9, (5, 5, 9, 9), (20, 20)),
    )
    potential.on([[large], [small]])  # of two images
    for each in ([small, large], [large, small]):
        with pytest.raises(ValueError, match=r"masks of the detections of an image must all be as large"):
            potential.on([each])


def test_detections_with_nothing_to_say() -> None:
    q = random_marginals(12, 3).float()
    terms = DetectionPotential(3)
    bound = terms.on([[], [Detection(1, 0.5, np.zeros((3, 4), bool))]])
    for image in (0, 1):
        support, state = bound.support(image, q, bound.begin(image))
        assert not support.any()
        assert torch.isfinite(state).all()
    assert HigherOrder(3).potentials(None, [[], []]) == []
    for score in (0.0, 1.0):
        bound = terms.on([[Detection(1, score, np.ones((3, 4), bool))]])
        support, state = bound.support(0, q, bound.begin(0))
        assert torch.isfinite(support).all()
        assert torch.isfinite(state).all()


# --- Superpixels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "least"), [("slic", 0.4), ("felzenszwalb", 0.05)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_cutting(method: str, least: float, channels: int) -> None:
    photograph = np.repeat(skimage.data.astronaut()[:96, 150:270].astype(np.float32), 2, axis=2)
    cuts = cut_into_superpixels(np.moveaxis(photograph[..., :channels], 2, 0), method, (50, 400))
    assert cuts.shape == (2, 96, 120)
    for numbers, size in zip(cuts, (50, 400), strict=True):
        present = np.unique(numbers)
        assert np.array_equal(present, np.arange(len(present)))
        assert least * 96 * 120 / size <= len(present) <= 3 * 96 * 120 / size
    assert cuts[0].max() > cuts[1].max()


def test_cutting_a_volume() -> None:
    cuts = cut_into_superpixels(200 * np.random.default_rng(0).random((1, 6, 20, 20)), "slic", (100,))
    assert cuts.shape == (1, 6, 20, 20)
    with pytest.raises(ValueError, match="must have 2 space axes"):
        cut_into_superpixels(np.zeros((1, 6, 20, 20)), "felzenszwalb", (100,))


# --- In models, files and the segmenter ------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    torch.manual_seed(0)
    config = ModelConfig(
        classes=class_table(["sky", "ground", "thing"]),
        higher_order=HigherOrderConfig(superpixel_sizes=(60, 300), detection_weight=30.0),
    )
    model = SegmentationModel(config)
    with torch.no_grad():
        model.crf.log_unary_scale.fill_(5.0)  # a random network is sure of nothing
    return model


def test_weights_are_saved_with_a_model_that_has_them(model: SegmentationModel, tmp_path: Path) -> None:
    changed = model.copy()
    with torch.no_grad():
        for parameter in changed.higher_order.parameters():
            parameter.add_(torch.rand(parameter.shape))
    path = tmp_path / "model.safetensors"
    save_checkpoint(changed, path)
    loaded = load_checkpoint(path)
    assert loaded.config.higher_order == model.config.higher_order
    for name, tensor in changed.higher_order.state_dict().items():
        assert torch.equal(loaded.higher_order.state_dict()[name], tensor), name
        assert not torch.equal(model.higher_order.state_dict()[name], tensor), name
    other = changed.with_classes(["thing", "new", "sky"])
    old, new = changed.higher_order.superpixels.weights, other.higher_order.superpixels.weights
    assert torch.equal(new[:, [0, 2]], old[:, [2, 0]])
    torch.testing.assert_close(new[:, 1], old.mean(dim=1))


def test_a_model_without_them_has_the_file_it_always_had(tmp_path: Path) -> None:
    plain = SegmentationModel(ModelConfig(classes=class_table(["a", "b"])))
    save_checkpoint(plain, tmp_path / "model.safetensors")
    loaded = load_checkpoint(tmp_path / "model.safetensors")
    assert loaded.config.higher_order is None
    assert loaded.higher_order.superpixels.weights.shape == (3, 2)


def test_detections_are_a_list_of_detections(model: SegmentationModel) -> None:
    segmenter = Segmenter(model, "cpu")
    segmenter.set_image(np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(TypeError, match="detections must be a list of them"):
        segmenter.predict(detections=Detection.box("thing", 0.9, (0, 0, 9, 9), (20, 20)))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="detections must hold Detection objects"):
        segmenter.predict(detections=[("thing", 0.9, (0, 0, 9, 9))])  # type: ignore[list-item]


def test_the_segmenter_takes_superpixels_and_detections(model: SegmentationModel) -> None:
    segmenter = Segmenter(model, device="cpu")
    pixels = skimage.data.astronaut()[:80, 150:250]
    segmenter.set_image(pixels)
    plain = segmenter.predict(marginals=True)
    with_superpixels = segmenter.predict(superpixels=True, marginals=True)
    assert not np.allclose(plain.marginals, with_superpixels.marginals, atol=1e-3)
    again = segmenter.predict(superpixels=True, marginals=True)
    np.testing.assert_array_equal(again.marginals, with_superpixels.marginals)
    box = Detection.box("thing", 0.95, (20, 30, 60, 70), (80, 100))
    detected = segmenter.predict(detections=[box])
    assert (detected.labels[box.mask] == 2).mean() > 0.9
    outside = ~box.mask
    assert (detected.labels[outside] == plain.labels[outside]).mean() > 0.5
    np.testing.assert_array_equal(segmenter.predict().labels, plain.labels)
    np.testing.assert_array_equal(detected.before_crf, plain.before_crf)


def test_what_the_segmenter_refuses(model: SegmentationModel) -> None:
    segmenter = Segmenter(model, device="cpu")
    segmenter.set_image(np.zeros((3, 40, 50), np.uint8), axes="ZYX")
    box = Detection.box("thing", 0.9, (0, 0, 9, 9), (40, 50))
    with pytest.raises(ValueError, match="index must say which plane"):
        segmenter.predict(detections=[box])
    assert segmenter.predict(detections=[box], index=1).labels.shape == (40, 50)
    with pytest.raises(ValueError, match="'dog' is no class"):
        segmenter.predict(detections=[Detection("dog", 0.9, box.mask)], index=1)
    with pytest.raises(ValueError, match="need the CRF"):
        segmenter.predict(crf=False, superpixels=True)
    framed = Segmenter(model.with_frame("caffe"), device="cpu")
    framed.set_image(np.zeros((40, 50), np.uint8))
    with pytest.raises(ValueError, match="with_frame"):
        framed.predict(superpixels=True)
    with pytest.raises(ValueError, match="mask of a detection must have the shape"):
        segmenter.predict(detections=[Detection.box(0, 0.9, (0, 0, 9, 9), (50, 40))], index=0)


# --- Bad input ---------------------------------------------------------------------------------------------


def test_values_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="score must be from 0 to 1"):
        Detection(0, 1.2, np.zeros((2, 2), bool))
    with pytest.raises(ValueError, match="mask must be boolean"):
        Detection(0, 0.5, np.zeros((2, 2)))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"label must be the name of a class or its place .*, got 8\.7"):
        Detection(8.7, 0.5, np.zeros((2, 2), bool))  # type: ignore[arg-type]
    listed = Detection(np.int64(8), 0.5, [[True, False]])  # type: ignore[arg-type]
    assert listed.mask.shape == (1, 2)
    assert type(listed.label) is int
    with pytest.raises(ValueError, match="corners must be 4 finite numbers"):
        Detection.box(0, 0.5, (0, 0, 1), (4, 4))
    with pytest.raises(ValueError, match="label of a detection must be from 0 to 2"):
        DetectionPotential(3).on([[Detection(3, 0.5, np.ones((2, 2), bool))]])
    with pytest.raises(ValueError, match=r"superpixels must be \[B, 2"):
        SuperpixelPotential(3, 2).on(torch.zeros(1, 1, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="superpixels must be integers from 0"):
        SuperpixelPotential(3, 1).on(torch.full((1, 1, 4, 4), -1))
    with pytest.raises(ValueError, match="share must be from 0"):
        SuperpixelPotential(3, 1, share=1.0)
    with pytest.raises(ValueError, match="method must be"):
        cut_into_superpixels(np.zeros((1, 4, 4)), "watershed", (4,))
    bound = SuperpixelPotential(2, 1).on(torch.zeros(1, 1, 4, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="superpixels must have the size of the image"):
        CrfRnn(2)(torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4), potentials=[bound])


def test_boxes_are_cut_at_the_border() -> None:
    box = Detection.box(0, 0.5, (-3.2, 2.6, 2.4, 99), (4, 6))
    expected = np.zeros((4, 6), bool)
    expected[:2, 3:] = True
    np.testing.assert_array_equal(box.mask, expected)
    assert not Detection.box(0, 0.5, (-9, -9, -2, -2), (4, 6)).mask.any()


def test_polygons_hold_the_pixels_whose_middle_is_inside() -> None:
    square = [(0.6, 0.6), (0.6, 3.4), (2.4, 3.4), (2.4, 0.6)]
    expected = np.zeros((4, 6), bool)
    expected[1:3, 1:4] = True
    for corners in (square, square[::-1]):
        np.testing.assert_array_equal(Detection.polygon(0, 0.5, corners, (4, 6)).mask, expected)
    triangle = Detection.polygon("a", 0.5, [(-0.5, -0.5), (7.5, -0.5), (7.5, 7.5)], (8, 8)).mask
    np.testing.assert_array_equal(triangle | triangle.T, np.ones((8, 8), bool))  # half of all, give or take
    assert not triangle[0, 7]
    huge = Detection.polygon(0, 0.5, [(-1e300, -9), (-1e300, 99), (1e300, 99), (1e300, -9)], (4, 6))
    assert huge.mask.all()
    assert not Detection.polygon(0, 0.5, [(-9, -9), (-9, -5), (-5, -5)], (4, 6)).mask.any()
    for wrong in ([(0, 0), (1, 1)], [(0, 0, 0)] * 3, [(0, 0), (1, np.nan), (1, 1)]):
        with pytest.raises(ValueError, match=r"corners must be \[n, 2\]"):
            Detection.polygon(0, 0.5, wrong, (4, 4))


def test_detections_of_several_planes(model: SegmentationModel) -> None:
    rng = np.random.default_rng(0)
    segmenter = Segmenter(model, device="cpu")
    segmenter.set_image(rng.integers(0, 256, (3, 40, 50), np.uint8), axes="ZYX")
    boxes = {
        at: [Detection.box("thing", 0.9, (5 + 9 * at[0], 5, 20 + 9 * at[0], 40), (40, 50))]
        for at in ((0,), (2,))
    }
    plain, both = segmenter.predict(), segmenter.predict(detections=boxes)
    for index in range(3):
        alone = segmenter.predict(detections=boxes.get((index,), ()), index=index)
        np.testing.assert_array_equal(both.labels[index], alone.labels)
    np.testing.assert_array_equal(both.labels[1], plain.labels[1])
    for index in (0, 2):
        assert (both.labels[index] != plain.labels[index]).any()
    # one plane takes its own and leaves the others'
    np.testing.assert_array_equal(segmenter.predict(detections=boxes, index=1).labels, plain.labels[1])
    with pytest.raises(ValueError, match=r"within a stack of shape \(3,\), got \(3,\)"):
        segmenter.predict(detections={(3,): boxes[0,]})
