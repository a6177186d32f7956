"""What a CRF can be beside the published one: forms of its matrices, untied iterations, learned widths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor

from napari_crfasrnn.checkpoint import load_checkpoint, save_checkpoint
from napari_crfasrnn.classes import class_table
from napari_crfasrnn.config import CrfConfig, ModelConfig
from napari_crfasrnn.crf import CrfRnn
from napari_crfasrnn.kernels import Kernel
from napari_crfasrnn.lattice import Lattice, available_backends
from napari_crfasrnn.network import SegmentationModel

BACKENDS = available_backends()


def photograph(side: int = 24, step: int = 6) -> Tensor:  # [1, 3, side, side]
    pixels = skimage.data.astronaut()[100 : 100 + side * step : step, 180 : 180 + side * step : step]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()


def logits_like(*shape: int, seed: int = 1) -> Tensor:
    return 2.0 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def disturbed(crf: CrfRnn, seed: int = 2) -> CrfRnn:
    """Change everything that is learned."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return crf


# --- Normalisation -------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["default", "crfrnn"])
def test_marginals_of_pydensecrf_normalised_before(shared_dir: Any, setting: str) -> None:
    stored = np.load(shared_dir / "ref" / "pydensecrf_40x56.npz")
    config = CrfConfig(normalization="before", n_iterations=5)
    if setting == "default":
        config = config.model_copy(update={"theta_alpha": 80.0, "theta_beta": 13.0, "bilateral_weight": 10.0})
    image = torch.from_numpy(stored["image"]).permute(2, 0, 1)[None]
    unary = -torch.from_numpy(stored["unary"]).reshape(1, 5, 40, 56)
    crf = CrfRnn(5, config).eval()
    for inference in (False, True):
        with torch.inference_mode(inference):
            marginals = crf(unary, image).softmax(dim=1).detach().reshape(5, -1).numpy()
        assert (np.abs(marginals - stored[f"q5_before_{setting}"]) > 1e-4).mean() <= 0.005


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalization", ["after", "symmetric", "before", "none"])
def test_normalisation_is_what_it_says(backend: Any, normalization: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    features = 3 * torch.rand(40, 3, generator=generator)
    kernel = Kernel.build(features, normalization, backend)
    dense = Lattice(features, backend=backend).filter(torch.eye(40))
    sums = dense.sum(dim=1, keepdim=True)
    expected = {
        "after": dense / sums,
        "before": dense / sums.T,
        "symmetric": dense / (sums * sums.T).sqrt(),
        "none": dense,
    }[normalization]
    torch.testing.assert_close(kernel.apply(torch.eye(40)), expected, atol=1e-5, rtol=1e-4)


# --- Forms of the matrices -------------------------------------------------------------------------


def as_stored(form: str, matrix: Tensor) -> Tensor:
    """The matrix that stands for a form, written down independently."""
    if form == "full":
        return matrix
    diagonal = torch.diagonal(matrix)
    return torch.eye(len(matrix)) * (diagonal if form == "per_class" else diagonal.sum() / len(matrix))


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("compatibility", ["learned", "potts"])
@pytest.mark.parametrize("form", ["full", "per_class", "scalar"])
def test_a_form_equals_full_matrices_of_that_form(form: Any, compatibility: Any, inference: bool) -> None:
    config = CrfConfig(theta_alpha=8, theta_beta=30, weight_form=form, compatibility_form=compatibility)
    crf = disturbed(CrfRnn(3, config))
    full = CrfRnn(3, CrfConfig(theta_alpha=8, theta_beta=30))
    state = dict(crf.state_dict())
    for name in ("spatial_weights", "bilateral_weights"):
        state[name] = as_stored(form, state[name])
    if compatibility == "potts":
        state["compatibility"] = -torch.eye(3)
    full.load_state_dict(state)
    image, unary = photograph(), logits_like(1, 3, 24, 24)
    with torch.inference_mode(inference):
        torch.testing.assert_close(crf(unary, image), full(unary, image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("form", "degrees"), [("full", 9), ("per_class", 3), ("scalar", 1)])
def test_training_keeps_the_form(form: Any, degrees: int) -> None:
    config = CrfConfig(theta_alpha=8, theta_beta=30, weight_form=form, compatibility_form="potts")
    crf = CrfRnn(3, config)
    before = crf.bilateral_weights.detach().clone()
    optimizer = torch.optim.Adam(crf.parameter_groups(0.05))
    image, unary = photograph(), logits_like(1, 3, 24, 24)
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(crf(unary, image), unary.argmax(dim=1).roll(1, 2)).backward()
        optimizer.step()
    change = (crf.bilateral_weights.detach() - before).flatten()
    moved = change[change.abs() > 1e-6]
    assert len(moved) == {"full": 9, "per_class": 3, "scalar": 3}[form]
    assert len(torch.unique((moved * 1e5).round())) == degrees
    assert torch.equal(crf.compatibility, -torch.eye(3))


def test_parameter_groups_have_the_multipliers() -> None:
    config = CrfConfig(
        spatial_multiplier=2,
        bilateral_multiplier=3,
        compatibility_multiplier=0.5,
        scale_multiplier=0.25,
        theta_multiplier=7,
        trainable_thetas=True,
        untied_iterations=2,
    )
    crf = CrfRnn(3, config)
    groups = crf.parameter_groups(0.1)
    assert [(group["name"], pytest.approx(group["lr"])) for group in groups] == [
        ("spatial", 0.2),
        ("bilateral", 0.3),
        ("compatibility", 0.05),
        ("scales", 0.025),
        ("thetas", 0.7),
    ]
    members = [parameter for group in groups for parameter in group["params"]]
    assert {id(parameter) for parameter in members} == {id(parameter) for parameter in crf.parameters()}
    assert len(members) == len(list(crf.parameters()))
    torch.optim.AdamW(groups)
    constant = CrfRnn(3, CrfConfig(compatibility_form="potts")).parameter_groups(0.1)
    assert [group["name"] for group in constant] == ["spatial", "bilateral", "scales"]


# --- Untied iterations -----------------------------------------------------------------------------


@pytest.mark.parametrize("inference", [False, True])
def test_untied_iterations_have_their_own_matrices(inference: bool) -> None:
    base = {"theta_alpha": 8, "theta_beta": 30}
    untied = disturbed(CrfRnn(3, CrfConfig(**base, untied_iterations=2)))
    image, unary = photograph(), logits_like(1, 3, 24, 24)
    prepared = untied.prepare(image)
    # One iteration at a time with tied CRFs: U stays, the state goes on.
    state = unary * float(untied.log_unary_scale.detach().exp())
    scaled = state
    assert prepared.pixel_of is not None
    order = prepared.pixel_of[0]
    for iteration in range(4):
        number = min(iteration, 1)
        matrices = [
            getattr(untied, name) + getattr(untied, f"{name.split('_')[0]}_offsets")[number]
            for name in ("spatial_weights", "bilateral_weights", "compatibility")
        ]
        marginals = state.softmax(dim=1).flatten(2)[0].T
        points = marginals[order]
        message = torch.zeros_like(points)
        for kernel, matrix in zip((prepared.spatial[0], prepared.bilateral[0]), matrices[:2], strict=True):
            message = message + kernel.apply(points) @ matrix.T
        back = torch.empty_like(message)
        back[order] = message @ matrices[2].T
        state = scaled - back.T.reshape(1, 3, 24, 24)
    expected = state * untied.log_output_scale.exp()
    with torch.inference_mode(inference):
        out = untied(unary, prepared=prepared, n_iterations=4)
    torch.testing.assert_close(out.detach(), expected.detach(), atol=1e-4, rtol=1e-4)


def test_untied_iterations_start_as_tied_ones_and_all_learn() -> None:
    untied, tied = CrfRnn(3, CrfConfig(untied_iterations=3)), CrfRnn(3)
    image, unary = photograph(), logits_like(1, 3, 24, 24)
    with torch.no_grad():
        ours, theirs = untied(unary, image, n_iterations=4), tied(unary, image, n_iterations=4)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)  # in torch, and compiled
    untied.train()(unary, image, n_iterations=3).square().mean().backward()
    for name in ("spatial_offsets", "bilateral_offsets", "compatibility_offsets"):
        gradient = getattr(untied, name).grad
        assert (gradient.flatten(1).abs().amax(dim=1) > 0).all(), name


# --- Gradients to widths, image and further features -----------------------------------------------


class ExactLattice:
    """Stands for a lattice that computes the Gaussian itself."""

    def __init__(self, features: Tensor) -> None:
        self.dense = torch.exp(-0.5 * torch.cdist(features, features) ** 2)

    def filter(self, values: Tensor, *, transpose: bool = False) -> Tensor:
        return (self.dense.T if transpose else self.dense) @ values


def exact_message(values: Tensor, features: Tensor, normalization: str) -> Tensor:
    """The message of the exact Gaussian, which autograd differentiates."""
    squared = (features[:, None] - features[None]).square().sum(dim=2)
    dense = torch.exp(-0.5 * squared)
    sums = dense.sum(dim=1, keepdim=True)
    if normalization == "after":
        return dense @ values / sums
    if normalization == "before":
        return dense @ (values / sums)
    return dense @ (values * sums.rsqrt()) * sums.rsqrt()


def test_the_formula_is_the_derivative_of_the_gaussian() -> None:
    features = torch.rand(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    features.mul_(2).requires_grad_()
    values = torch.rand(
        7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    ).requires_grad_()

    def filtered(values: Tensor, features: Tensor) -> Tensor:
        lattice: Any = ExactLattice(features.detach())
        return Kernel(lattice, None, None, features).filter(values)

    assert torch.autograd.gradcheck(filtered, (values, features))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("normalization", "alike"), [("after", 0.9), ("symmetric", 0.9), ("before", 0.87)])
@pytest.mark.parametrize(("theta_alpha", "theta_beta"), [(10, 20), (160, 13), (40, 8)])
def test_gradients_to_features_are_near_those_of_the_exact_kernel(
    backend: Any, normalization: Any, alike: float, theta_alpha: float, theta_beta: float
) -> None:
    side = 40
    rows, columns = np.mgrid[:side, :side]
    position = torch.from_numpy(np.stack([columns, rows], -1).reshape(-1, 2)).float()
    colour = photograph(side, 5)[0].flatten(1).T
    features = torch.cat([position / theta_alpha, colour / theta_beta], dim=1)
    values = (colour / 60).softmax(dim=1)
    cotangent = torch.sin(position[:, :1] / 6) + torch.cos(position[:, 1:] / 9) * torch.tensor(
        [1.0, -2.0, 0.5]
    )
    exact = features.double().requires_grad_()
    (wanted,) = torch.autograd.grad(
        (exact_message(values.double(), exact, normalization) * cotangent).sum(), exact
    )
    given = features.clone().requires_grad_()
    message = Kernel.build(given, normalization, backend, differentiable_from=0).apply(values)
    (found,) = torch.autograd.grad((message * cotangent).sum(), given)
    found = found.double()
    # The lattice's values are some percent off the Gaussian's, differences of them by more:
    # measured are cosines from 0.92, 0.93 and 0.90, and lengths from 0.97 to 1.10.
    assert float((found * wanted).sum() / found.norm() / wanted.norm()) >= alike
    assert 0.9 <= float(found.norm() / wanted.norm()) <= 1.2


def test_gradients_skip_what_nobody_asked_for() -> None:
    crf = CrfRnn(3, CrfConfig(theta_alpha=8, theta_beta=30))
    image, unary = photograph().requires_grad_(), logits_like(1, 3, 24, 24)
    crf(unary, image, n_iterations=2).square().mean().backward()
    assert image.grad is not None
    assert float(image.grad.abs().max()) > 0
    assert not crf.prepare(image).is_differentiable
    with torch.no_grad():
        assert crf(unary, image).grad_fn is None
    frozen = CrfRnn(3, CrfConfig(theta_alpha=8, theta_beta=30)).requires_grad_(False)
    assert frozen(unary, image, n_iterations=2).requires_grad


@pytest.mark.parametrize("batch", [1, 2])
def test_the_differentiable_kernels_are_the_same_kernels(batch: int) -> None:
    crf = CrfRnn(3, CrfConfig(theta_alpha=8, theta_beta=30, normalization="symmetric"))
    image = torch.cat([photograph(), photograph().flip(3)])[:batch]
    unary, depth = logits_like(batch, 3, 24, 24), logits_like(batch, 1, 24, 24, seed=5)
    expected = crf(unary, image, extra_features=depth, n_iterations=3).detach()
    found = crf(unary, image.requires_grad_(), extra_features=depth, n_iterations=3)
    # Not the same bits: the pixels come in another order, so sums round differently.
    torch.testing.assert_close(found.detach(), expected, atol=1e-3, rtol=1e-3)


def test_learning_the_widths_lowers_the_loss() -> None:
    image = photograph()
    truth = (image[:, 0] > image[:, 0].median()).long()
    unary = 2.0 * torch.nn.functional.one_hot(truth, 2).movedim(3, 1).float() + 1.5 * logits_like(
        1, 2, 24, 24
    )
    config = CrfConfig(
        theta_alpha=2, theta_beta=150, theta_gamma=4, trainable_thetas=True, compatibility_form="potts"
    )
    crf = CrfRnn(2, config).train()
    optimizer = torch.optim.Adam([g for g in crf.parameter_groups(0.2) if g["name"] == "thetas"])
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(crf(unary, image), truth)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    settings = crf.settings
    assert settings.theta_beta < 150
    assert settings.theta_beta == pytest.approx(float(crf.log_theta_beta.detach().exp()))  # type: ignore[union-attr]
    # Prediction uses the learned widths, on every path.
    fixed = CrfRnn(2, settings.model_copy(update={"trainable_thetas": False}))
    with torch.inference_mode():
        torch.testing.assert_close(crf.eval()(unary, image), fixed.eval()(unary, image))


def test_second_derivatives_are_refused() -> None:
    crf, image = CrfRnn(2, CrfConfig(theta_alpha=8, theta_beta=30)), photograph().requires_grad_()
    loss = crf(logits_like(1, 2, 24, 24), image, n_iterations=1).square().mean()
    (gradient,) = torch.autograd.grad(loss, image, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not there"):
        gradient.sum().backward()


# --- Further features ------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_further_features_are_channels_of_width_one(backend: Any) -> None:
    crf = CrfRnn(3, CrfConfig(theta_alpha=8, theta_beta=30))
    crf.backend = backend
    image, unary, depth = photograph(16), logits_like(1, 3, 16, 16), logits_like(1, 2, 16, 16, seed=4)
    with torch.no_grad():
        found = crf(unary, image, extra_features=depth)
        expected = crf(unary, torch.cat([image, 30 * depth], dim=1))
    torch.testing.assert_close(found, expected)
    assert crf.prepare(image, depth).bilateral[0].lattice.n_dims == 7
    volume, relief = torch.rand(1, 1, 4, 5, 6) * 200, torch.rand(1, 1, 4, 5, 6)
    assert crf(logits_like(1, 3, 4, 5, 6), volume, extra_features=relief).shape == (1, 3, 4, 5, 6)


def test_an_edge_that_only_the_depth_shows() -> None:
    image, unary = torch.full((1, 1, 12, 20), 100.0), torch.zeros(1, 2, 12, 20)
    unary[:, 0, :, :4] = unary[:, 1, :, -4:] = 2.0
    depth = torch.zeros(1, 1, 12, 20)
    depth[..., 13:] = 10.0
    crf = CrfRnn(2, CrfConfig(theta_alpha=40, theta_beta=10, spatial_weight=0))
    with torch.inference_mode():
        labels = crf(unary, image, extra_features=depth).argmax(dim=1)
    assert torch.equal(labels[0], (depth[0, 0] > 5).long())


def test_further_features_that_do_not_fit() -> None:
    crf, image = CrfRnn(2), photograph()
    unary = logits_like(1, 2, 24, 24)
    with pytest.raises(ValueError, match="extra_features must have the batch and space axes"):
        crf(unary, image, extra_features=torch.zeros(1, 1, 24, 23))
    with pytest.raises(ValueError, match="extra_features must be finite"):
        crf(unary, image, extra_features=torch.full((1, 1, 24, 24), float("nan")))
    with pytest.raises(ValueError, match="extra_features must come with image"):
        crf(unary, prepared=crf.prepare(image), extra_features=torch.zeros(1, 1, 24, 24))
    with pytest.raises(TypeError, match="extra_features must be a torch tensor"):
        crf.prepare(image, np.zeros((1, 1, 24, 24)))  # type: ignore[arg-type]


# --- Models with such a CRF -------------------------------------------------------------------------


def test_every_option_survives_the_file_and_other_classes(tmp_path: Any) -> None:
    crf = CrfConfig(
        untied_iterations=2, trainable_thetas=True, weight_form="per_class", normalization="before"
    )
    model = SegmentationModel(ModelConfig(classes=class_table(["a", "b", "c"]), crf=crf))
    disturbed(model.crf)
    save_checkpoint(model, tmp_path / "model.safetensors")
    loaded = load_checkpoint(tmp_path / "model.safetensors")
    assert loaded.config == model.config
    for name, tensor in model.crf.state_dict().items():
        assert torch.equal(loaded.crf.state_dict()[name], tensor), name
    other = model.with_classes(["c", "new", "a"]).crf
    assert other.log_theta_beta == model.crf.log_theta_beta
    for name in ("spatial_weights", "compatibility_offsets"):
        old, new = getattr(model.crf, name), getattr(other, name)
        assert torch.equal(new[..., 0, 2], old[..., 2, 0])
        torch.testing.assert_close(new[..., 1, 1], old.diagonal(dim1=-2, dim2=-1).mean(dim=-1))
        assert not new[..., 0, 1].any()


def test_the_plain_layer_has_the_tensors_it_always_had() -> None:
    assert list(CrfRnn(2).state_dict()) == [
        "spatial_weights",
        "bilateral_weights",
        "compatibility",
        "log_unary_scale",
        "log_output_scale",
    ]
