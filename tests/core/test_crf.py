"""The CRF-RNN layer against the published implementation, a float64 replay, and its own promises."""

from __future__ import annotations

import copy
import gc
import math
import signal
import sys
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from napari_crfasrnn.config import CrfConfig
from napari_crfasrnn.crf import CrfRnn
from napari_crfasrnn.kernels import PreparedImage
from napari_crfasrnn.lattice import available_backends
from napari_crfasrnn.progress import Cancelled, raise_if_cancelled
from napari_crfasrnn.segmenter.contenders import crf_among

BACKENDS = available_backends()


def photo_like(batch: int, channels: int, *space: int, seed: int = 0) -> Tensor:
    """Smooth patches with edges and noise, in 0..255."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, channels, *(max(1, size // 5) for size in space), generator=generator)
    patches = torch.nn.functional.interpolate(coarse, size=space, mode="nearest")
    return (200 * patches + 20 * torch.rand(batch, channels, *space, generator=generator)).round()


def logits_like(batch: int, labels: int, *space: int, seed: int = 1) -> Tensor:
    return 2.0 * torch.randn(batch, labels, *space, generator=torch.Generator().manual_seed(seed))


def perturbed(crf: CrfRnn, seed: int = 2) -> CrfRnn:
    """Give all matrices entries everywhere, as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (crf.spatial_weights, crf.bilateral_weights, crf.compatibility):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return crf


def load_stored(stored: Any, variant: str) -> tuple[CrfRnn, Tensor, Tensor]:
    image = torch.from_numpy(stored["image"]).permute(2, 0, 1)[None]
    logits = torch.from_numpy(stored["logits"])[None]
    crf = CrfRnn(logits.shape[1])
    with torch.no_grad():
        crf.spatial_weights.copy_(torch.from_numpy(stored[f"spatial_ker_weights_{variant}"]))
        crf.bilateral_weights.copy_(torch.from_numpy(stored[f"bilateral_ker_weights_{variant}"]))
        # That implementation adds the message; we subtract it as the paper does.
        crf.compatibility.copy_(-torch.from_numpy(stored[f"compatibility_matrix_{variant}"]))
    return crf, image, logits


# --- The stored vectors ------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["init", "pert"])
@pytest.mark.parametrize("size", ["40x56_c21", "56x72_c5"])
def test_ten_iterations_of_the_published_layer(
    shared_dir: Path, size: str, variant: str, backend: Any
) -> None:
    crf, image, logits = load_stored(np.load(shared_dir / "ref" / f"layer_{size}_fwd.npz"), variant)
    expected = np.load(shared_dir / "ref" / f"layer_{size}_fwd.npz")[f"out10_{variant}"]
    crf.backend = backend
    for inference in (False, True):
        with torch.inference_mode(inference):
            out = crf.eval()(logits, image)[0].detach().numpy()
        assert (np.abs(out - expected) > 1e-4).mean() <= 0.005
        assert np.linalg.norm(out - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["init", "pert"])
@pytest.mark.parametrize("size", ["40x56_c21", "56x72_c5"])
def test_gradients_of_the_published_layer(shared_dir: Path, size: str, variant: str, backend: Any) -> None:
    stored = np.load(shared_dir / "ref" / f"layer_{size}_grad.npz")
    crf, image, logits = load_stored(stored, variant)
    crf.backend = backend
    logits.requires_grad_()
    out = crf.train()(logits, image)
    assert (np.abs(out.detach().numpy()[0] - stored[f"out5_{variant}"]) > 1e-4).mean() <= 0.005
    loss = (out * torch.from_numpy(stored["loss_weights"])[None]).sum() / logits[0, 0].numel()
    loss.backward()
    assert loss.item() == pytest.approx(float(stored[f"loss_{variant}"]), abs=1e-5)
    assert logits.grad is not None
    for name, gradient, sign in (
        ("logits", logits.grad[0], 1),
        ("spatial_ker_weights", crf.spatial_weights.grad, 1),
        ("bilateral_ker_weights", crf.bilateral_weights.grad, 1),
        ("compatibility_matrix", crf.compatibility.grad, -1),
    ):
        expected = stored[f"grad_{name}_{variant}"]
        assert gradient is not None
        # Both sides are float32 over five iterations; 1e-4 of the largest entry leaves room for that.
        assert np.abs(sign * gradient.numpy() - expected).max() <= 1e-4 * np.abs(expected).max(), name


@pytest.mark.parametrize("normalization", ["symmetric", "after", "none"])
@pytest.mark.parametrize("setting", ["default", "crfrnn"])
def test_marginals_of_pydensecrf(shared_dir: Path, setting: str, normalization: Any) -> None:
    stored = np.load(shared_dir / "ref" / "pydensecrf_40x56.npz")
    config = CrfConfig(normalization=normalization, n_iterations=5)
    if setting == "default":
        config = config.model_copy(update={"theta_alpha": 80.0, "theta_beta": 13.0, "bilateral_weight": 10.0})
    image = torch.from_numpy(stored["image"]).permute(2, 0, 1)[None]
    unary = -torch.from_numpy(stored["unary"]).reshape(1, 5, 40, 56)
    crf = CrfRnn(5, config).eval()
    marginals = crf(unary, image).softmax(dim=1).detach().reshape(5, -1).numpy()
    expected = stored[f"q5_{normalization}_{setting}"]
    assert (np.abs(marginals - expected) > 1e-4).mean() <= 0.005
    if setting == "default" and normalization == "symmetric":
        assert (marginals.argmax(axis=0) == stored["map5_symmetric_default"]).all()


def test_ten_iterations_of_pydensecrf(shared_dir: Path) -> None:
    stored = np.load(shared_dir / "ref" / "pydensecrf_96x128.npz")
    config = CrfConfig(theta_alpha=80, theta_beta=13, bilateral_weight=10, normalization="symmetric")
    image = torch.from_numpy(stored["image"]).permute(2, 0, 1)[None]
    unary = -torch.from_numpy(stored["unary"]).reshape(1, 3, 96, 128)
    with torch.inference_mode():
        marginals = CrfRnn(3, config).eval()(unary, image).softmax(dim=1).reshape(3, -1).numpy()
    assert (np.abs(marginals - stored["q10"]) > 1e-4).mean() <= 0.005
    assert (marginals.argmax(axis=0) == stored["map10"]).mean() >= 0.9999


# --- The definition, written down independently -----------------------------------------------


def replay(crf: CrfRnn, unary: Tensor, image: Tensor, n_iterations: int) -> Tensor:
    """The mean field of one image with dense kernel matrices, straight from the formulas, in float64."""
    prepared = crf.prepare(image)
    n_pixels = unary[0, 0].numel()
    eye = torch.eye(n_pixels, dtype=prepared.dtype)
    kernels = []
    for kernel in (prepared.spatial[0], prepared.bilateral[0]):
        dense = kernel.lattice.filter(eye).double()
        if prepared.pixel_of is not None:  # from the order of points to that of pixels
            place = prepared.pixel_of[0].argsort()
            dense = dense[place][:, place]
        row_sums = dense.sum(dim=1)
        if crf.config.normalization == "after":
            dense = dense / row_sums[:, None]
        elif crf.config.normalization == "symmetric":
            dense = dense / (row_sums[:, None] * row_sums[None, :]).sqrt()
        kernels.append(dense)
    scaled = crf.log_unary_scale.double().exp() * unary[0].double().flatten(1)  # [L, N]
    state = scaled
    for _ in range(n_iterations):
        marginals = state.softmax(dim=0)
        spatial, bilateral = (marginals @ kernel.T for kernel in kernels)
        weighted = crf.spatial_weights.double() @ spatial + crf.bilateral_weights.double() @ bilateral
        state = scaled - crf.compatibility.double() @ weighted
    return (crf.log_output_scale.double().exp() * state).reshape(unary.shape)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalization", ["after", "symmetric", "none"])
@pytest.mark.parametrize("inference", [False, True])
def test_equals_the_formulas(backend: Any, normalization: Any, inference: bool) -> None:
    config = CrfConfig(
        theta_alpha=8, theta_beta=20, normalization=normalization, unary_scale=0.7, output_scale=0.6
    )
    crf = perturbed(CrfRnn(4, config))
    crf.backend = backend
    image, unary = photo_like(1, 3, 13, 17), logits_like(1, 4, 13, 17)
    expected = replay(crf, unary, image, 4).detach()
    with torch.inference_mode(inference):
        out = crf(unary, image, n_iterations=4)
    torch.testing.assert_close(out.detach().double(), expected, atol=2e-4, rtol=1e-5)


def test_gradcheck_in_float64() -> None:
    crf = perturbed(CrfRnn(3, CrfConfig(theta_alpha=4, theta_beta=40, unary_scale=0.8))).double()
    crf.backend = "reference"
    prepared = crf.prepare(photo_like(2, 1, 3, 4).double())
    unary = logits_like(2, 3, 3, 4).double().requires_grad_()
    names = [name for name, _ in crf.named_parameters()]
    values = [parameter.detach().clone().requires_grad_() for parameter in crf.parameters()]

    def layer(unary: Tensor, *parameters: Tensor) -> Tensor:
        arguments = (unary,)
        keywords = {"prepared": prepared, "n_iterations": 2}
        out = torch.func.functional_call(crf, dict(zip(names, parameters, strict=True)), arguments, keywords)
        assert isinstance(out, Tensor)
        return out

    assert torch.autograd.gradcheck(layer, (unary, *values))


@settings(max_examples=15, deadline=None)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    channels=st.integers(1, 4),
    labels=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_inference_equals_the_differentiable_path(
    height: int, width: int, channels: int, labels: int, seed: int
) -> None:
    crf = perturbed(CrfRnn(labels, CrfConfig(theta_alpha=7.3, theta_beta=11.7)), seed)
    image = photo_like(2, channels, height, width, seed=seed)
    unary = logits_like(2, labels, height, width, seed=seed)
    differentiable = crf(unary, image, n_iterations=5)
    assert differentiable.requires_grad
    with torch.no_grad():
        fused = crf(unary, image, n_iterations=5)
    assert not fused.requires_grad
    torch.testing.assert_close(fused, differentiable.detach(), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("labels", "normalization"), [(2, "after"), (5, "symmetric"), (21, "after")])
def test_ten_fused_iterations_stay_near_float64(labels: int, normalization: Any) -> None:
    # Widths without a common measure, so that no pixel lies on the face of a simplex: there float32 and
    # float64 may rightly disagree about which vertices exist.
    config = CrfConfig(
        theta_alpha=159.731, theta_beta=2.98713, theta_gamma=2.99157, normalization=normalization
    )
    crf = CrfRnn(labels, config).eval()
    height, width = 72, 88
    photograph = skimage.data.astronaut()[100 : 100 + height, 200 : 200 + width]
    image = torch.from_numpy(photograph.copy()).permute(2, 0, 1)[None].float()
    unary = torch.nn.functional.interpolate(logits_like(1, labels, 9, 11), (height, width), mode="bilinear")
    with torch.no_grad():
        fused = crf(unary, image).softmax(dim=1)
        crf.backend = "reference"
        exact = crf(unary.double(), image.double()).softmax(dim=1)
    difference = (fused.double() - exact).abs().flatten()
    # Measured: 1e-5 to 5e-5, and 3e-4 at the worst pixel; the mean field amplifies rounding where a pixel
    # is undecided.
    assert float(difference.quantile(0.9999)) <= 1e-4
    assert float(difference.max()) <= 1e-3


def test_two_labels_take_their_own_path_to_the_same_result() -> None:
    crf = perturbed(CrfRnn(2, CrfConfig(theta_alpha=8, theta_beta=30, unary_scale=0.7, output_scale=1.3)))
    image, unary = photo_like(1, 3, 21, 30), 10 * logits_like(1, 2, 21, 30)
    unary[..., :3, :3] *= 1e4
    expected = crf(unary, image, n_iterations=6).detach()
    with torch.no_grad():
        fused = crf(unary, image, n_iterations=6)
    torch.testing.assert_close(fused, expected, atol=1e-4, rtol=1e-5)


def test_pixels_come_in_an_order_and_go_back() -> None:
    crf = CrfRnn(3)
    image = photo_like(2, 3, 70, 90)
    prepared = crf.prepare(image)
    assert prepared.pixel_of is not None
    assert not torch.equal(prepared.pixel_of[0], prepared.pixel_of[1])
    for order in prepared.pixel_of:
        assert torch.equal(order.sort().values, torch.arange(70 * 90))


# --- What the layer promises ---------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inference", [False, True])
def test_each_image_of_a_batch_has_its_own_kernels(backend: Any, inference: bool) -> None:
    crf = CrfRnn(3, CrfConfig(theta_alpha=9))
    crf.backend = backend
    image, unary = photo_like(3, 3, 10, 14), logits_like(3, 3, 10, 14)
    with torch.inference_mode(inference):
        together = crf(unary, image)
        apart = torch.cat([crf(unary[i : i + 1], image[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, apart, rtol=0, atol=0)
    assert not torch.allclose(together[0], crf(unary[:1], image[1:2])[0], atol=1e-3)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_any_number_of_channels(channels: int) -> None:
    prepared = CrfRnn(2).prepare(photo_like(1, channels, 8, 9))
    assert prepared.bilateral[0].lattice.n_dims == 2 + channels
    assert CrfRnn(2)(logits_like(1, 2, 8, 9), prepared=prepared).shape == (1, 2, 8, 9)


@pytest.mark.parametrize("space", [(1, 1), (1, 9), (9, 1), (7,), (4, 5, 6), (1, 1, 1)])
def test_any_space(space: tuple[int, ...]) -> None:
    crf = CrfRnn(3, CrfConfig(theta_alpha=6, theta_beta=30))
    image, unary = photo_like(2, 2, *space), logits_like(2, 3, *space)
    prepared = crf.prepare(image)
    assert prepared.space == space
    assert prepared.n_images == 2
    assert prepared.spatial[0].lattice.n_dims == len(space)
    out = crf(unary, prepared=prepared)
    assert out.shape == unary.shape
    assert torch.isfinite(out).all()
    with torch.inference_mode():
        torch.testing.assert_close(crf(unary, image), out.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("inference", [False, True])
def test_a_constant_image_smooths_alone(inference: bool) -> None:
    unary = torch.zeros(1, 2, 24, 24)
    unary[:, 1] = 1.0
    unary[:, :, 12, 12] = torch.tensor([1.0, 0.0])
    with torch.inference_mode(inference):
        out = CrfRnn(2)(unary, torch.full((1, 3, 24, 24), 90.0), n_iterations=10)
    assert (out.argmax(dim=1) == 1).all()


def test_labels_follow_the_edge_of_the_image() -> None:
    image = torch.zeros(1, 3, 30, 40)
    image[..., 20:] = 200.0
    truth = (image[0, 0] > 100).long()
    unary = torch.stack([1.0 - truth.float(), truth.float()])[None]
    unary[..., 16:24] = 0.5  # undecided near the edge, and on its wrong side wrong
    unary[:, 1, :, 18:20] = 0.7
    with torch.inference_mode():
        refined = CrfRnn(2)(unary, image, n_iterations=10).argmax(dim=1)[0]
    assert (unary.argmax(dim=1)[0] != truth).float().mean() > 0.1
    assert torch.equal(refined, truth)


def test_iterations_follow_the_mode() -> None:
    crf = CrfRnn(3, CrfConfig(n_iterations=4, n_iterations_train=2, theta_alpha=8))
    image, unary = photo_like(1, 3, 9, 9), logits_like(1, 3, 9, 9)
    assert torch.equal(crf.train()(unary, image), crf(unary, image, n_iterations=2))
    assert torch.equal(crf.eval()(unary, image), crf(unary, image, n_iterations=4))


@pytest.mark.parametrize("inference", [False, True])
def test_scales_work_on_what_goes_in_and_out(inference: bool) -> None:
    image, unary = photo_like(1, 3, 9, 9), logits_like(1, 3, 9, 9)
    scaled = CrfRnn(3, CrfConfig(unary_scale=0.5, output_scale=3.0))
    with torch.inference_mode(inference):
        expected = 3.0 * CrfRnn(3)(0.5 * unary, image)
        torch.testing.assert_close(scaled(unary, image), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("inference", [False, True])
def test_other_precisions_compute_in_float32_and_come_back(dtype: torch.dtype, inference: bool) -> None:
    crf = CrfRnn(3)
    image, unary = photo_like(1, 3, 9, 9), logits_like(1, 3, 9, 9).to(dtype)
    with torch.inference_mode(inference):
        out = crf(unary, image)
        assert out.dtype == dtype
        torch.testing.assert_close(out, crf(unary.float(), image).to(dtype), rtol=0, atol=0)


def test_autocast_does_not_lower_the_precision() -> None:
    crf = perturbed(CrfRnn(3))
    image, unary = photo_like(1, 3, 9, 9), logits_like(1, 3, 9, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = crf(unary, image)
    assert out.dtype == torch.float32
    assert torch.equal(out, crf(unary, image))


def test_inference_keeps_no_graph_and_training_does() -> None:
    crf = CrfRnn(3)
    image, unary = photo_like(1, 3, 9, 9), logits_like(1, 3, 9, 9)
    with torch.no_grad():
        assert crf(unary, image).grad_fn is None
    frozen = copy.deepcopy(crf).requires_grad_(False)
    assert frozen(unary, image).grad_fn is None
    loss = crf(unary, image).square().mean()
    loss.backward()
    for name, parameter in crf.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


def test_kernels_built_in_inference_mode_serve_training() -> None:
    crf, image, unary = CrfRnn(3), photo_like(1, 3, 13, 17), logits_like(1, 3, 13, 17)
    with torch.inference_mode():
        crf(unary, image)  # the spatial kernel of this size is kept
        prepared = crf.prepare(image.clone())
    for arguments in ({"image": image}, {"prepared": prepared}):
        crf(unary, **arguments).sum().backward()
    assert crf.spatial_weights.grad is not None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("labels", [2, 5])
def test_the_caller_hears_of_every_iteration(backend: Any, inference: bool, labels: int) -> None:
    crf = perturbed(CrfRnn(labels, CrfConfig(theta_alpha=9)))
    crf.backend = backend
    image, unary = photo_like(3, 3, 10, 14), logits_like(3, labels, 10, 14)
    seen: list[tuple[int, int]] = []
    with torch.inference_mode(inference):
        expected = crf(unary, image, n_iterations=4)
        out = crf(unary, image, n_iterations=4, on_iteration=lambda *step: seen.append(step))
    assert torch.equal(out, expected)
    # The GPU gets all iterations of the batch as one submission. Long iterations are told of more than once.
    one_by_one = backend != "cuda" or not inference
    assert seen == sorted(seen)
    assert sorted(set(seen) - {(0, 12)}) == ([(i, 12) for i in range(1, 13)] if one_by_one else [(4, 4)])


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("labels", [2, 5])
def test_what_the_caller_raises_ends_the_iterations(inference: bool, labels: int) -> None:
    class EnoughError(Exception):
        pass

    class Patience:
        def __init__(self, patience: int) -> None:
            self.patience, self.done = patience, 0

        def __call__(self, done: int, total: int) -> None:
            self.done = done
            if done == self.patience:
                raise EnoughError(f"{done} of {total}")

    crf = perturbed(CrfRnn(labels, CrfConfig(theta_alpha=9)))
    image, unary = photo_like(2, 3, 30, 40), logits_like(2, labels, 30, 40)
    prepared = crf.prepare(image)
    with torch.inference_mode(inference):
        expected = crf(unary, prepared=prepared, n_iterations=5)
        for patience in (1, 3, 5, 6, 10):
            hook = Patience(patience)
            with pytest.raises(EnoughError, match=f"^{patience} of 10$"):
                crf(unary, prepared=prepared, n_iterations=5, on_iteration=hook)
            assert hook.done == patience
            trace = weakref.ref(hook)
            del hook
            gc.collect()
            assert trace() is None
            assert torch.equal(crf(unary, prepared=prepared, n_iterations=5), expected)


def test_a_hook_may_itself_run_the_layer() -> None:
    crf = CrfRnn(3)
    image, unary = photo_like(1, 3, 20, 30), logits_like(1, 3, 20, 30)
    prepared = crf.prepare(image)
    seen: list[Tensor] = []
    with torch.no_grad():
        expected = crf(unary, prepared=prepared, n_iterations=2)
        crf(
            unary,
            prepared=prepared,
            n_iterations=2,
            on_iteration=lambda *_: seen.append(crf(unary, prepared=prepared, n_iterations=2)),
        )
    assert len(seen) >= 2
    assert all(torch.equal(one, expected) for one in seen)


@pytest.mark.parametrize("n_untied", [0, 3])
@pytest.mark.parametrize("weight_form", ["full", "per_class", "scalar"])
def test_some_labels_are_as_among_others_that_are_nowhere_likely(weight_form: Any, n_untied: int) -> None:
    config = CrfConfig(theta_alpha=9, weight_form=weight_form, untied_iterations=n_untied)
    crf = perturbed(CrfRnn(5, config))
    with torch.no_grad():
        crf.log_output_scale.fill_(0.2)
        if weight_form == "scalar":  # one number, whatever labels are left
            crf.spatial_weights.fill_diagonal_(1.3)
            crf.bilateral_weights.fill_diagonal_(0.7)
    labels = torch.tensor([1, 4])
    image, unary = photo_like(1, 3, 20, 30), logits_like(1, 5, 20, 30)
    few = crf_among(crf, labels)
    assert few.n_labels == 3
    assert not any(parameter.requires_grad for parameter in few.parameters())
    assert not few.training
    unary[:, [0, 2, 3]] = -1e4
    with torch.no_grad():
        expected = crf(unary, image, n_iterations=4)[:, labels]
        refined = few(unary[:, [1, 4, 0]], image, n_iterations=4)[:, :2]
    assert torch.allclose(refined, expected, atol=1e-4)
    few.spatial_weights.zero_()
    assert bool((crf.spatial_weights != 0).any())


def test_labels_that_are_alike_may_be_one() -> None:
    crf = perturbed(CrfRnn(5, CrfConfig(theta_alpha=9)))
    alike = [0, 2, 3]
    with torch.no_grad():  # each of the three is to the others what these are to it
        for matrix in (crf.spatial_weights, crf.bilateral_weights, crf.compatibility):
            matrix[alike] = matrix[alike].mean(0)
            matrix[:, alike] = matrix[:, alike].mean(1, keepdim=True)
    image, unary = photo_like(1, 3, 20, 30), logits_like(1, 5, 20, 30)
    unary[:, alike] = unary[:, :1].clone()
    scales = [float(log_scale.detach().exp()) for log_scale in (crf.log_unary_scale, crf.log_output_scale)]
    together = unary[:, :1] + math.log(3) / scales[0]
    with torch.no_grad():
        expected = crf(unary, image, n_iterations=4)
        few = crf_among(crf, torch.tensor([1, 4]))
        refined = few(torch.cat([unary[:, [1, 4]], together], 1), image, n_iterations=4)
    refined[:, 2] -= scales[1] * math.log(3)
    ratio = refined[:, 0] - refined[:, 1]
    assert torch.allclose(ratio, expected[:, 1] - expected[:, 4], atol=1e-3)
    ratio = refined[:, 0] - refined[:, 2]
    assert torch.allclose(ratio, expected[:, 1] - expected[:, 0], atol=1e-3)


def test_copies_and_state_dicts() -> None:
    crf = perturbed(CrfRnn(3))
    other = CrfRnn(3)
    other.load_state_dict(crf.state_dict())
    image, unary = photo_like(1, 3, 9, 9), logits_like(1, 3, 9, 9)
    assert torch.equal(other(unary, image), crf(unary, image))
    assert torch.equal(copy.deepcopy(crf)(unary, image), crf(unary, image))
    assert set(crf.state_dict()) == {
        "spatial_weights",
        "bilateral_weights",
        "compatibility",
        "log_unary_scale",
        "log_output_scale",
    }


def test_prepared_images_are_independent_of_the_weights() -> None:
    crf = CrfRnn(3)
    image, unary = photo_like(1, 3, 9, 9), logits_like(1, 3, 9, 9)
    prepared = crf.prepare(image)
    assert isinstance(prepared, PreparedImage)
    assert prepared.backend == "cpu"
    perturbed(crf)
    with torch.inference_mode():
        assert torch.equal(crf(unary, prepared=prepared), crf(unary, image))


def test_extreme_logits_stay_finite() -> None:
    unary = logits_like(1, 3, 9, 9)
    unary[0, 0, :3] = 1e5
    unary[0, 1, 3:6] = -1e5
    for inference in (False, True):
        with torch.inference_mode(inference):
            out = CrfRnn(3)(unary, photo_like(1, 3, 9, 9))
        assert torch.isfinite(out).all()
        assert (out.argmax(dim=1)[0, :3] == 0).all()


# --- Bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("inference", [False, True])
def test_values_that_are_not_finite(bad: float, inference: bool) -> None:
    crf = CrfRnn(2)
    image, unary = photo_like(1, 3, 5, 5), logits_like(1, 2, 5, 5)
    broken_unary, broken_image = unary.clone(), image.clone()
    broken_unary[0, 1, 2, 3] = bad
    broken_image[0, 1, 2, 3] = bad
    with torch.inference_mode(inference):
        with pytest.raises(ValueError, match="unary must be finite"):
            crf(broken_unary, image)
        with pytest.raises(ValueError, match="image must be finite"):
            crf(unary, broken_image)


def test_an_image_too_bright_for_the_lattice() -> None:
    with pytest.raises(ValueError, match="rescale the image"):
        CrfRnn(2).prepare(1e6 * photo_like(1, 3, 5, 5))


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # torch's own
def test_a_network_that_holds_it_can_be_compiled() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = torch.nn.Conv2d(3, 4, 3, padding=1)
            self.crf = CrfRnn(4)

        def forward(self, image: Tensor) -> Tensor:
            return self.crf(self.score(image / 255), image).softmax(1)

    torch.manual_seed(0)
    net, image = Net(), 255 * torch.rand(1, 3, 20, 30)
    compiled = torch.compile(net, backend="eager")
    for training in (True, False):
        net.train(training)
        with torch.set_grad_enabled(training):
            ours, theirs = net(image), compiled(image)
        torch.testing.assert_close(theirs, ours)
    gradients = [
        torch.autograd.grad(one(image)[:, 0].sum(), list(net.parameters())) for one in (net, compiled)
    ]
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other)


def test_a_prepared_image_cannot_be_copied() -> None:
    prepared = CrfRnn(2).prepare(photo_like(1, 3, 5, 6))
    with pytest.raises(TypeError, match="prepare it there"):
        copy.deepcopy(prepared)


@pytest.mark.filterwarnings("ignore:.torch.jit.trace.:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_what_cannot_look_into_it_is_refused() -> None:
    """A trace would repeat the answer for its own image, whatever it is given, without an error."""
    layer, unary, image = CrfRnn(2), logits_like(1, 2, 5, 6), photo_like(1, 3, 5, 6)
    for call in (
        lambda: torch.jit.trace(layer, (unary, image), check_trace=False),
        lambda: torch.jit.trace(lambda image: layer.eval()(unary, image), (image,), check_trace=False),
    ):
        with pytest.raises(RuntimeError, match=r"torch\.jit\.trace cannot record a CRF"):
            call()
    parameters = dict(layer.named_parameters())
    for call in (
        lambda: torch.vmap(lambda u, i: layer(u[None], i[None]))(unary, image),
        lambda: torch.func.grad(lambda u: layer(u, image).sum())(unary),
        lambda: torch.func.grad(lambda p: torch.func.functional_call(layer, p, (unary, image)).sum())(
            parameters
        ),
    ):
        with pytest.raises(RuntimeError, match=r"torch\.func and torch\.vmap cannot transform a CRF"):
            call()
    expected = layer(unary, image)
    assert torch.equal(torch.func.functional_call(layer, parameters, (unary, image)), expected)
    for call in (
        lambda: layer(unary.to("meta"), image.to("meta")),
        lambda: layer.prepare(image.to("meta")),
        lambda: torch.export.export(layer, (unary, image), strict=False),
    ):
        with pytest.raises(RuntimeError, match="a CRF takes tensors with values"):
            call()


def test_it_works_while_the_compiler_is_being_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, unary, image = CrfRnn(2), logits_like(1, 2, 5, 6), photo_like(1, 3, 5, 6)
    expected = layer(unary, image)
    monkeypatch.setitem(sys.modules, "torch._dynamo", ModuleType("torch._dynamo"))  # as far as it is by then
    assert torch.equal(layer(unary, image), expected)


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="nothing else interrupts after a while")
@pytest.mark.parametrize("is_training", [False, True])
def test_an_interrupt_is_heard_while_compiled_code_runs(is_training: bool) -> None:
    layer, image = CrfRnn(21), 255 * torch.rand(1, 3, 200, 300)
    unary = torch.randn(1, 21, 200, 300, requires_grad=is_training)
    prepared = layer.prepare(image)
    layer(unary, prepared=prepared, n_iterations=1)
    before = signal.getsignal(signal.SIGALRM)

    def heard(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, heard)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            layer(unary, prepared=prepared, n_iterations=60 if is_training else 400)  # several times as long
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_too_many_channels() -> None:
    with pytest.raises(ValueError, match="1 to 16 dimensions"):
        CrfRnn(2).prepare(photo_like(1, 15, 5, 5))


@pytest.mark.parametrize(
    ("unary_shape", "image_shape", "message"),
    [
        ((1, 3, 5, 5), (1, 3, 5, 5), r"unary must be \[B, 2"),
        ((2, 5), (1, 3, 5, 5), r"unary must be \[B, 2"),
        ((1, 2, 5, 5), (1, 3, 5, 6), "same batch and space"),
        ((2, 2, 5, 5), (1, 3, 5, 5), "same batch and space"),
        ((1, 2, 0, 5), (1, 3, 0, 5), "must have pixels"),
        ((1, 2, 5, 5), (1, 0, 5, 5), "must have pixels"),
        ((1, 2, 1, 1, 1, 1), (1, 3, 1, 1, 1, 1), "1 to 3 space axes"),
    ],
)
def test_shapes_that_do_not_fit(
    unary_shape: tuple[int, ...], image_shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        CrfRnn(2)(torch.zeros(unary_shape), torch.zeros(image_shape))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("what", ["image", "widths"])
def test_second_derivatives_by_way_of_the_features_are_refused(backend: Any, what: str) -> None:
    crf = CrfRnn(3, CrfConfig(n_iterations_train=2, trainable_thetas=what == "widths"))
    crf.backend = backend
    image = photo_like(1, 3, 6, 6).requires_grad_(what == "image")
    unary = logits_like(1, 3, 6, 6).requires_grad_()
    loss = crf(unary, image).square().mean()
    (gradient,) = torch.autograd.grad(loss, unary, create_graph=True)
    for inputs in (unary, crf.bilateral_weights, image if what == "image" else crf.log_theta_alpha):
        with pytest.raises(RuntimeError, match="second derivatives are not there"):
            torch.autograd.grad(gradient.square().sum(), inputs, retain_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not there"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_graph_of_the_gradients_leaves_them_as_they_are(backend: Any) -> None:
    crf = CrfRnn(3, CrfConfig(n_iterations_train=2, trainable_thetas=True))
    crf.backend = backend
    image, unary = photo_like(1, 3, 6, 6).requires_grad_(), logits_like(1, 3, 6, 6).requires_grad_()
    found = [
        torch.autograd.grad(
            crf(unary, image).square().mean(), (unary, image, crf.log_theta_beta), create_graph=create_graph
        )
        for create_graph in (False, True)
    ]
    for once, other in zip(*found, strict=True):
        torch.testing.assert_close(once, other.detach(), rtol=1e-4, atol=1e-7)


def test_arguments_that_do_not_fit() -> None:
    crf = CrfRnn(2)
    image, unary = photo_like(1, 3, 5, 5), logits_like(1, 2, 5, 5)
    prepared = crf.prepare(image)
    with pytest.raises(ValueError, match="exactly one"):
        crf(unary)
    with pytest.raises(ValueError, match="exactly one"):
        crf(unary, image, prepared=prepared)
    with pytest.raises(ValueError, match="for this prepared image"):
        crf(logits_like(1, 2, 6, 5), prepared=prepared)
    with pytest.raises(ValueError, match="n_iterations must be at least 1"):
        crf(unary, image, n_iterations=0)
    with pytest.raises(TypeError, match="unary must be floating point"):
        crf(unary.long(), image)
    with pytest.raises(TypeError, match="unary must be a torch tensor"):
        crf(unary.numpy(), image)
    with pytest.raises(TypeError, match="image must be a torch tensor"):
        crf.prepare(image.numpy())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="image must be real"):
        crf.prepare(image.to(torch.complex64))
    with pytest.raises(TypeError, match="image must be a torch tensor"):
        crf(unary, image.numpy())
    with pytest.raises(TypeError, match="prepared must be what prepare returned, got Tensor"):
        crf(unary, prepared=image)
    with pytest.raises(TypeError, match=r"n_iterations must be an integer, got 1.5"):
        crf(unary, image, n_iterations=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_labels must be at least 1"):
        CrfRnn(0)
    with pytest.raises(TypeError, match="n_labels must be an integer, got '3'"):
        CrfRnn("3")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"config must be a CrfConfig, got \{'theta_alpha'"):
        CrfRnn(3, {"theta_alpha": 3})  # type: ignore[arg-type]
    assert CrfRnn(np.int64(3)).n_labels == 3  # type: ignore[arg-type]


def test_preparing_tells_how_far_it_is_and_can_be_stopped() -> None:
    images = 255.0 * torch.rand(2, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    crf = CrfRnn(2)
    crf.backend = "cpu"
    told: list[tuple[int, int]] = []
    crf.prepare(images, on_step=lambda done, total: told.append((done, total)))
    shares = [done / total for done, total in told]
    assert len(set(shares)) >= 12  # three steps of two lattices of two images
    assert shares == sorted(shares)
    assert shares[-1] == 1.0

    for wanted in (0.3, 0.5, 0.7):

        def stop(done: int, total: int, wanted: float = wanted) -> None:
            raise_if_cancelled(lambda: done / total >= wanted)

        with pytest.raises(Cancelled):
            crf.prepare(images, on_step=stop)
