"""The compiled mean field with gradients, against the definition in torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad

from napari_crfasrnn._ext import _lattice
from napari_crfasrnn.config import CrfConfig
from napari_crfasrnn.crf import CrfRnn
from napari_crfasrnn.kernels import PreparedImage
from napari_crfasrnn.lattice import set_num_threads

INSTRUCTION_SETS = tuple(_lattice.instruction_sets())
NORMALIZATIONS = ("after", "before", "symmetric", "none")


@pytest.fixture(autouse=True)
def _restore_settings() -> Iterator[None]:
    yield
    set_num_threads(0)
    _lattice.use_instruction_set(INSTRUCTION_SETS[0])


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def patches(batch: int, channels: int, *space: int, seed: int = 0) -> Tensor:
    """Smooth patches with edges and noise, in 0..255."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, channels, *(max(1, size // 5) for size in space), generator=generator)
    large = torch.nn.functional.interpolate(coarse, size=space, mode="nearest")
    return 200 * large + 20 * torch.rand(batch, channels, *space, generator=generator)


def layer(n_labels: int, normalization: Any = "after", maps: str = "full") -> CrfRnn:
    # Unnormalised messages are as large as the number of neighbours; and entries of large random matrices
    # add up. Both would only make every pixel certain of its label, where all gradients are 0.
    strength = 0.02 if normalization == "none" else 1.0
    config = CrfConfig(
        theta_alpha=7.31,
        theta_beta=28.7,
        normalization=normalization,
        spatial_weight=strength,
        bilateral_weight=1.5 * strength,
        unary_scale=0.7,
        output_scale=1.3,
    )
    crf = CrfRnn(n_labels, config)
    with torch.no_grad():
        for seed, matrix in enumerate((crf.spatial_weights, crf.bilateral_weights, crf.compatibility)):
            if maps == "full":
                matrix.add_(0.3 * strength / n_labels**0.5 * noise(n_labels, n_labels, seed=seed))
            elif maps == "diagonal":
                matrix.diagonal().mul_(1 + 0.3 * noise(n_labels, seed=seed))
    return crf


def gradients(
    crf: CrfRnn,
    unary: Tensor,
    prepared: PreparedImage,
    *,
    defined: bool = False,
    n_iterations: int = 4,
) -> dict[str, Tensor]:
    """Return the result and all gradients of a random linear function of it."""
    crf.zero_grad()
    unary = unary.detach().requires_grad_()
    path = crf._mean_field if defined else crf
    out = path(unary, prepared=prepared, n_iterations=n_iterations)
    (out * noise(*out.shape, seed=5)).sum().backward()
    found = {name: parameter.grad for name, parameter in crf.named_parameters()}
    return {"result": out.detach(), "unary": unary.grad, **found}  # type: ignore[dict-item]


def assert_agree(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        # Measured: up to 2e-6 of the largest entry, a few roundings of float32 on either side.
        size = float(expected.abs().max())
        if name.startswith("log_"):  # a sum over all pixels and labels, whose terms may cancel
            size = max(size, 1e-3 * float(theirs["result"].abs().sum()))
        assert float((ours[name] - expected).abs().max()) <= tolerance * size, name


@pytest.mark.parametrize("maps", ["Potts", "diagonal", "full"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("n_labels", [1, 2, 3, 5, 8, 9, 21, 40, 64])
def test_agrees_with_the_definition(n_labels: int, normalization: Any, maps: str) -> None:
    crf = layer(n_labels, normalization, maps)
    unary = 2 * noise(2, n_labels, 21, 30)
    prepared = crf.prepare(patches(2, 3, 21, 30))
    assert_agree(gradients(crf, unary, prepared), gradients(crf, unary, prepared, defined=True))


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("n_labels", [1, 3, 16, 24, 30, 40, 48, 56, 64])
def test_every_instruction_set_and_width(instruction_set: str, n_labels: int) -> None:
    crf = layer(n_labels)
    unary, prepared = noise(1, n_labels, 17, 23), crf.prepare(patches(1, 3, 17, 23))
    _lattice.use_instruction_set(instruction_set)
    assert_agree(gradients(crf, unary, prepared), gradients(crf, unary, prepared, defined=True))


@pytest.mark.parametrize(
    ("channels", "space"),
    [(1, (40,)), (1, (13, 15)), (7, (9, 9)), (1, (5, 8, 9)), (3, (4, 5, 6)), (3, (1, 1))],
)
def test_any_space(channels: int, space: tuple[int, ...]) -> None:
    crf = layer(4)
    unary, prepared = noise(2, 4, *space), crf.prepare(patches(2, channels, *space))
    assert_agree(gradients(crf, unary, prepared), gradients(crf, unary, prepared, defined=True))


@settings(max_examples=20, deadline=None)
@given(
    n_labels=st.integers(1, 12),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    n_iterations=st.integers(1, 6),
    normalization=st.sampled_from(["after", "symmetric"]),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_definition_on_anything(
    n_labels: int, height: int, width: int, n_iterations: int, normalization: Any, seed: int
) -> None:
    crf = layer(n_labels, normalization)
    unary = 3 * noise(1, n_labels, height, width, seed=seed)
    prepared = crf.prepare(patches(1, 3, height, width, seed=seed))
    ours = gradients(crf, unary, prepared, n_iterations=n_iterations)
    theirs = gradients(crf, unary, prepared, defined=True, n_iterations=n_iterations)
    assert_agree(ours, theirs, tolerance=1e-4)


def test_stays_near_float64() -> None:
    crf = layer(5)
    unary, image = noise(1, 5, 30, 40), patches(1, 3, 30, 40)
    ours = gradients(crf, unary, crf.prepare(image))
    crf.backend = "reference"
    exact = gradients(crf.double(), unary.double(), crf.prepare(image.double()))
    assert_agree({name: one.double() for name, one in ours.items()}, exact, tolerance=2e-5)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_threads_do_not_change_a_bit(normalization: Any) -> None:
    crf = layer(21, normalization)
    unary, prepared = noise(2, 21, 130, 150), crf.prepare(patches(2, 3, 130, 150))
    assert prepared.bilateral[0].lattice.n_vertices > 3 * 2048  # several partial sums
    set_num_threads(1)
    alone = gradients(crf, unary, prepared)
    for n_threads in (2, 5):
        set_num_threads(n_threads)
        for name, one in gradients(crf, unary, prepared).items():
            assert torch.equal(one, alone[name]), name


def test_images_of_a_batch_are_apart() -> None:
    crf = layer(3)
    unary, image = noise(3, 3, 14, 18), patches(3, 3, 14, 18)
    together = gradients(crf, unary, crf.prepare(image))
    weights = noise(3, 3, 14, 18, seed=5)
    crf.zero_grad()
    for i in range(3):
        one = unary[i : i + 1].detach().requires_grad_()
        (crf(one, image[i : i + 1], n_iterations=4) * weights[i : i + 1]).sum().backward()
        assert torch.equal(one.grad[0], together["unary"][i])  # type: ignore[index]
    for name, parameter in crf.named_parameters():
        torch.testing.assert_close(parameter.grad, together[name], rtol=1e-5, atol=1e-6)


class Recorder:
    """A native mean field that notes what is asked of it."""

    def __init__(self, native: Any) -> None:
        self.native = native
        self.asked: list[dict[str, Any]] = []
        self.floats_kept = 0

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        out, trace = self.native.forward(*arguments, **keywords)
        self.floats_kept = trace.size
        return out, trace

    def backward(self, *arguments: Any, **keywords: Any) -> Any:
        self.asked.append(keywords)
        return self.native.backward(*arguments, **keywords)


@pytest.mark.parametrize("unary_learns", [False, True])
@pytest.mark.parametrize(
    "learns",
    [
        (),
        ("spatial_weights",),
        ("bilateral_weights",),
        ("compatibility",),
        ("log_unary_scale",),
        ("log_output_scale",),
        ("spatial_weights", "bilateral_weights", "log_unary_scale", "log_output_scale"),
    ],
)
def test_what_is_frozen_costs_nothing(learns: tuple[str, ...], unary_learns: bool) -> None:
    crf = layer(4)
    unary, prepared = noise(1, 4, 16, 20), crf.prepare(patches(1, 3, 16, 20))
    everything = gradients(crf, unary, prepared)
    crf.zero_grad()
    assert prepared.fused_training is not None
    recorder = Recorder(prepared.fused_training[0]._native)
    prepared.fused_training[0]._native = recorder
    for name, parameter in crf.named_parameters():
        parameter.requires_grad_(name in learns)
    unary.requires_grad_(unary_learns)
    out = crf(unary, prepared=prepared, n_iterations=4)
    if not learns and not unary_learns:
        assert not out.requires_grad
        assert recorder.floats_kept == 0
        return
    (out * noise(*out.shape, seed=5)).sum().backward()

    # Learning less takes shortcuts whose sums round differently.
    for name, parameter in crf.named_parameters():
        if name in learns:
            torch.testing.assert_close(parameter.grad, everything[name], rtol=1e-5, atol=1e-6)
        else:
            assert parameter.grad is None
    if unary_learns:
        torch.testing.assert_close(unary.grad, everything["unary"], rtol=1e-5, atol=1e-6)
    for_unary = unary_learns or "log_unary_scale" in learns
    for_maps = {"spatial_weights", "bilateral_weights", "compatibility"} & set(learns)
    if not for_unary and not for_maps:
        assert recorder.asked == []
        return
    (asked,) = recorder.asked
    assert asked["for_unary"] == for_unary
    assert asked["for_spatial"] == bool({"spatial_weights", "compatibility"} & set(learns))
    assert asked["for_bilateral"] == bool({"bilateral_weights", "compatibility"} & set(learns))
    n_vertices = prepared.spatial[0].lattice.n_vertices + prepared.bilateral[0].lattice.n_vertices
    per_iteration = recorder.floats_kept // 4
    assert 16 * 20 * 4 <= per_iteration - (4 * n_vertices if for_maps else 0) <= 16 * 20 * 4 + 3 * 16


def test_many_labels_take_the_path_in_torch() -> None:
    crf = layer(65)
    unary, prepared = noise(1, 65, 9, 11), crf.prepare(patches(1, 3, 9, 11))
    assert prepared.fused_training is not None
    recorder = Recorder(prepared.fused_training[0]._native)
    prepared.fused_training[0]._native = recorder
    ours = gradients(crf, unary, prepared)
    assert recorder.floats_kept == 0
    assert_agree(ours, gradients(crf, unary, prepared, defined=True), tolerance=0.0)


# --- What autograd may ask for ---------------------------------------------------------------------


def test_derivatives_of_derivatives() -> None:
    crf = layer(3)
    prepared = crf.prepare(patches(2, 3, 8, 9))
    inputs = [noise(2, 3, 8, 9).requires_grad_(), *crf.parameters()]
    directions = [noise(*one.shape, seed=seed) for seed, one in enumerate(inputs, start=10)]
    found = []
    for path in (crf, crf._mean_field):
        out = path(inputs[0], prepared=prepared, n_iterations=3).square().sum()
        first = torch.autograd.grad(out, inputs, create_graph=True)
        along = sum((one * way).sum() for one, way in zip(first, directions, strict=True))
        assert isinstance(along, Tensor)
        found.append(torch.autograd.grad(along, inputs))
    for ours, theirs in zip(*found, strict=True):
        assert float(theirs.abs().max()) > 0
        assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())


def test_the_graph_serves_twice_if_kept_and_once_if_not() -> None:
    crf = layer(3)
    unary = noise(1, 3, 12, 15).requires_grad_()
    loss = crf(unary, patches(1, 3, 12, 15)).square().sum()
    (first,) = torch.autograd.grad(loss, unary, retain_graph=True)
    (second,) = torch.autograd.grad(loss, unary)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, unary)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, at first use
def test_forward_mode_goes_through_torch() -> None:
    crf = layer(3)
    unary, prepared = noise(1, 3, 10, 12), crf.prepare(patches(1, 3, 10, 12))
    way, cotangent = noise(1, 3, 10, 12, seed=2), noise(1, 3, 10, 12, seed=3)
    with forward_ad.dual_level():
        out = crf(forward_ad.make_dual(unary, way), prepared=prepared)
        tangent = forward_ad.unpack_dual(out).tangent
    assert tangent is not None
    unary.requires_grad_()
    (gradient,) = torch.autograd.grad(crf(unary, prepared=prepared), unary, cotangent)
    # <J way, cotangent> = <way, J^T cotangent>
    tangent = tangent.detach()
    assert float((tangent * cotangent).sum()) == pytest.approx(float((way * gradient).sum()), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strides_and_precisions(dtype: torch.dtype) -> None:
    crf = layer(3)
    prepared = crf.prepare(patches(2, 3, 12, 15))
    rows = noise(2, 12, 15, 3).to(dtype).requires_grad_()
    # The gradient of a sum is one number, expanded: strides of 0.
    crf(rows.permute(0, 3, 1, 2), prepared=prepared, n_iterations=3).sum().backward()
    assert rows.grad is not None
    assert rows.grad.dtype == dtype
    planes = rows.detach().permute(0, 3, 1, 2).contiguous().float().requires_grad_()
    crf._mean_field(planes, prepared, 3).sum().backward()
    assert planes.grad is not None
    torch.testing.assert_close(
        rows.grad.permute(0, 3, 1, 2).float(), planes.grad, rtol=1e-5, atol=1e-5 * float(planes.grad.max())
    )


def test_a_step_of_gradient_descent_lowers_the_loss() -> None:
    crf = layer(4)
    image = patches(1, 3, 30, 40)
    truth = (image[:, 0] > 100).long()
    unary, prepared = noise(1, 4, 30, 40), crf.prepare(image)
    optimizer = torch.optim.SGD(crf.parameters(), lr=0.1)
    losses = []
    for _ in range(10):
        loss = torch.nn.functional.cross_entropy(crf(unary, prepared=prepared), truth)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


def test_native_code_refuses_arrays_of_another_run() -> None:
    crf = layer(3)
    prepared = crf.prepare(patches(1, 3, 8, 9))
    assert prepared.fused_training is not None
    native = prepared.fused_training[0]._native
    eye, values = np.eye(3, dtype=np.float32), np.zeros((3, 72), np.float32)
    weights = {"spatial": eye, "bilateral": eye, "unary_scale": 1.0, "output_scale": 1.0}
    wanted = {"for_unary": True, "for_spatial": True, "for_bilateral": False}
    _, trace = native.forward(values, **weights, n_iterations=2, with_vertices=False)
    with pytest.raises(ValueError, match="with vertices for gradients of matrices"):
        native.backward(trace, values, **weights, **wanted)
    with pytest.raises(ValueError, match="trace must be what forward returned"):
        native.backward(trace[:, :-1].copy(), values, **weights, **{**wanted, "for_spatial": False})
    with pytest.raises(ValueError, match=r"gradient must be \[L, N\]"):
        native.backward(trace, values[:, :-1].copy(), **weights, **wanted)
    with pytest.raises(ValueError, match=r"matrices must be \[L, L\]"):
        native.forward(values[:2].copy(), **weights, n_iterations=2, with_vertices=True)
    with pytest.raises(ValueError, match="n_iterations must be at least 1"):
        native.forward(values, **weights, n_iterations=0, with_vertices=True)
    with pytest.raises(ValueError, match="same shape"):
        _lattice.dot(values, eye)


# --- Marginals in 16 bits --------------------------------------------------------------------------------


def refined(crf: CrfRnn, unary: Tensor, prepared: PreparedImage, marginal_dtype: Any) -> Tensor:
    crf.marginal_dtype = marginal_dtype
    with torch.inference_mode():
        return crf(unary, prepared=prepared, n_iterations=10)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("n_labels", [1, 3, 5, 8, 21, 64])
def test_16_bits_change_little_and_no_number_of_threads_matters(n_labels: int, instruction_set: str) -> None:
    _lattice.use_instruction_set(instruction_set)
    crf = CrfRnn(n_labels, CrfConfig(theta_alpha=40.3, theta_beta=9.7)).eval()
    prepared = crf.prepare(patches(2, 3, 43, 71))
    unary = 2 * noise(2, n_labels, 43, 71)
    set_num_threads(1)
    wide, narrow = (refined(crf, unary, prepared, dtype) for dtype in ("float32", "uint16"))
    assert n_labels == 1 or not torch.equal(wide, narrow)
    change = (wide.softmax(1) - narrow.softmax(1)).abs().flatten()
    # Rounding is amplified where a pixel is undecided.
    assert float(change.quantile(0.999)) <= 1e-4
    assert float((wide.argmax(1) != narrow.argmax(1)).float().mean()) <= 1e-3
    set_num_threads(2)
    assert torch.equal(refined(crf, unary, prepared, "uint16"), narrow)


@pytest.mark.parametrize("normalization", ["before", "symmetric", "none"])
def test_kernels_that_do_not_average_keep_marginals_as_they_are(normalization: Any) -> None:
    crf = layer(5, normalization).eval()
    prepared = crf.prepare(patches(1, 3, 12, 17))
    unary = noise(1, 5, 12, 17)
    assert torch.equal(refined(crf, unary, prepared, "float32"), refined(crf, unary, prepared, "uint16"))


def test_16_bits_serve_learned_matrices_and_two_labels() -> None:
    for n_labels in (2, 4):
        crf = layer(n_labels).eval()
        prepared = crf.prepare(patches(1, 3, 20, 31))
        unary = noise(1, n_labels, 20, 31)
        wide, narrow = (refined(crf, unary, prepared, dtype) for dtype in ("float32", "uint16"))
        assert torch.equal(wide, narrow) == (n_labels == 2)
        torch.testing.assert_close(narrow, wide, rtol=1e-3, atol=1e-3)


def test_there_is_no_other_marginal_dtype() -> None:
    crf = layer(3).eval()
    with pytest.raises(ValueError, match=r"marginal_dtype must be \"float32\" or \"uint16\", got 'int8'"):
        refined(crf, noise(1, 3, 6, 7), crf.prepare(patches(1, 3, 6, 7)), "int8")


# --- Tile by tile ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("n_labels", [1, 3, 5, 21])
def test_many_points_on_few_vertices_agree_with_the_definition(n_labels: int, instruction_set: str) -> None:
    # From 131072 points on, and with fewer than a fourth as many vertices, they are splatted tile by tile.
    # Squares of 64 x 64 pixels at the border, and so tiles, have odd sizes.
    space = (359, 371)
    _lattice.use_instruction_set(instruction_set)
    crf = CrfRnn(n_labels, CrfConfig(theta_alpha=91.7, theta_beta=21.3)).eval()
    image = patches(1, 3, 6, 7).repeat_interleave(60, 2).repeat_interleave(53, 3)
    prepared = crf.prepare(image[..., :359, :])
    lattice = prepared.bilateral[0].lattice
    assert lattice.n_points >= 2**17
    assert 4 * lattice.n_vertices < lattice.n_points
    unary = 2 * noise(1, n_labels, *space)
    set_num_threads(1)
    with torch.inference_mode():
        ours = crf(unary, prepared=prepared, n_iterations=3)
        definition = crf._mean_field(unary, prepared, 3)
        torch.testing.assert_close(ours.softmax(1), definition.softmax(1), rtol=0, atol=2e-5)
        set_num_threads(2)
        assert torch.equal(crf(unary, prepared=prepared, n_iterations=3), ours)


def test_tiles_refuse_what_is_not_finite() -> None:
    crf = CrfRnn(3, CrfConfig(theta_alpha=91.7, theta_beta=21.3)).eval()
    unary = noise(1, 3, 400, 400)
    unary[0, 1, 399, 7] = torch.nan
    with pytest.raises(ValueError, match="unary must be finite"), torch.inference_mode():
        crf(unary, torch.zeros(1, 3, 400, 400))


def test_a_flat_image_keeps_its_precision_in_tiles() -> None:
    # Every vertex has points in many tiles, and none of its sums may lose digits.
    crf = CrfRnn(2, CrfConfig(theta_alpha=400.0, theta_beta=3.0)).eval()
    crf3 = CrfRnn(3, CrfConfig(theta_alpha=400.0, theta_beta=3.0)).eval()
    unary = noise(1, 2, 400, 400)
    # The third label never wins: three labels then are two, which take another path.
    padded = torch.cat([unary, torch.full((1, 1, 400, 400), -80.0)], 1)
    image = torch.full((1, 3, 400, 400), 128.0)
    with torch.inference_mode():
        two, three = crf(unary, image).softmax(1), crf3(padded, image).softmax(1)
    torch.testing.assert_close(three[:, :2], two, rtol=0, atol=2e-5)
