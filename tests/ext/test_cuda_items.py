"""The CUDA backend in host loops: what its threads do, in the order they do it, on any machine.

The backend's Python, its order of steps and the body of every kernel run here as they do on a GPU; only
launches, and the sort and scan that come with CUDA, are replaced. tests/ext/test_cuda.py runs on a GPU.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_lattice as suite
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from napari_crfasrnn import CrfConfig, CrfRnn
from napari_crfasrnn._ext import _lattice, cuda
from napari_crfasrnn._reference import ReferenceLattice
from napari_crfasrnn.lattice import Lattice, available_backends
from napari_crfasrnn.mean_field import MeanField

pytest.importorskip("napari_crfasrnn._ext._lattice_items", reason="built with CRFASRNN_HOST_LOOPS=OFF")

Floats = NDArray[np.float32]

# Where these round each product and sum at once, as the kernels do, there is nothing to round differently.
FUSED = tuple(name for name in _lattice.instruction_sets() if name != "plain")


@pytest.fixture(autouse=True)
def _host_loops() -> Iterator[None]:
    with cuda.host_loops():
        yield
    _lattice.use_instruction_set(_lattice.instruction_sets()[0])


# --- The tests that every backend passes -----------------------------------------------------------


def shared_cases() -> Iterator[Any]:
    """Every test of the lattice suite that takes a backend, with all its other parameters."""
    for name, test in vars(suite).items():
        if not name.startswith("test_") or "backend" not in inspect.signature(test).parameters:
            continue
        axes = []
        for mark in getattr(test, "pytestmark", []):
            if mark.name != "parametrize" or mark.args[0] == "backend":
                continue
            names = [part.strip() for part in mark.args[0].split(",")]
            axes.append([dict(zip(names, v if len(names) > 1 else [v], strict=True)) for v in mark.args[1]])
        for chosen in itertools.product(*axes):
            arguments = {key: value for one in chosen for key, value in one.items()}
            label = "-".join(str(getattr(v, "__name__", v)) for v in arguments.values())
            yield pytest.param(test, arguments, id=f"{name}[{label}]")


@pytest.mark.parametrize(("test", "arguments"), list(shared_cases()))
def test_passes_the_suite_of_all_backends(
    test: Callable[..., None], arguments: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    if "shared_dir" in inspect.signature(test).parameters:
        arguments = {**arguments, "shared_dir": request.getfixturevalue("shared_dir")}
    test(backend="cuda", **arguments)


# --- Bit by bit ------------------------------------------------------------------------------------


def unpack(lattice: Lattice) -> dict[str, NDArray[Any]]:
    """Read the arrays that the backend keeps (lattice_gpu.hpp), each on a multiple of 256 bytes."""
    native = lattice._native.native
    n_corners, m, s = native.n_dims + 1, native.n_vertices, native.n_segments
    e = native.n_points * n_corners
    found: dict[str, NDArray[Any]] = {}

    def carve(block: torch.Tensor, *arrays: tuple[str, Any, tuple[int, ...]]) -> None:
        at = 0
        for name, dtype, shape in arrays:
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            found[name] = block.numpy()[at : at + size].view(dtype).reshape(shape)
            at += -(-size // 256) * 256

    entry = np.dtype([("point", np.uint32), ("weight", np.float32)])
    carve(
        lattice._native.blocks[0],
        ("vertex_of", np.uint32, (native.n_points, n_corners)),
        ("weight_of", np.float32, (native.n_points, n_corners)),
        ("entries", entry, (e,)),
    )
    carve(
        lattice._native.blocks[1],
        ("segment_begin", np.uint32, (s + 1,)),
        ("segment_target", np.uint32, (s,)),
        ("long_vertices", np.uint32, (native.n_long, 3)),
        ("links", np.uint32, (n_corners, m, 2)),
    )
    return found


@pytest.mark.parametrize("spread", [0.02, 2.0, 5e3])
@pytest.mark.parametrize("n_dims", range(1, 17))
def test_geometry_is_that_of_the_reference_to_the_bit(n_dims: int, spread: float) -> None:
    # Sorted keys number the vertices in lexicographic order, as the reference does.
    features = suite.cloud(150, n_dims, seed=n_dims, spread=spread)
    reference = ReferenceLattice(features)
    own = unpack(Lattice(features, backend="cuda"))
    np.testing.assert_array_equal(own["vertex_of"], reference.vertex_of)
    np.testing.assert_array_equal(own["weight_of"], reference.barycentric)
    neighbours = own["links"].astype(np.int64)
    neighbours[neighbours == 0xFFFFFFFF] = -1
    np.testing.assert_array_equal(neighbours, np.stack([np.stack(n, axis=1) for n in reference.neighbours]))


def test_geometry_of_a_photograph_is_that_of_the_reference_to_the_bit() -> None:
    # Integers: many points on the faces of simplices, where one rounding apart is another vertex.
    data = pytest.importorskip("skimage.data")
    features = suite.image_features(data.astronaut()[60:100, 180:230])["bilateral"]
    reference = ReferenceLattice(features)
    own = unpack(Lattice(features, backend="cuda"))
    np.testing.assert_array_equal(own["vertex_of"], reference.vertex_of)
    np.testing.assert_array_equal(own["weight_of"], reference.barycentric)


@settings(max_examples=30, deadline=None)
@given(
    n_points=st.integers(1, 400),
    n_dims=st.integers(1, 6),
    spread=st.sampled_from([0.0, 0.05, 0.5, 5.0]),
    seed=st.integers(0, 99),
)
def test_splat_lists_are_complete_and_in_order(n_points: int, n_dims: int, spread: float, seed: int) -> None:
    own = unpack(Lattice(suite.cloud(n_points, n_dims, seed, spread), backend="cuda"))
    begin, target = own["segment_begin"].astype(int), own["segment_target"] & 0x7FFFFFFF
    lengths = np.diff(begin)
    assert begin[0] == 0
    assert begin[-1] == own["vertex_of"].size
    assert lengths.min() >= 1
    assert lengths.max() <= 64
    vertex = np.repeat(target, lengths)
    points = own["entries"]["point"]
    # By vertex, then by point, then by corner: the one order that does not depend on who sorts.
    order = np.lexsort((np.arange(vertex.size), own["vertex_of"].ravel()))
    np.testing.assert_array_equal(vertex, own["vertex_of"].ravel()[order])
    np.testing.assert_array_equal(points, order // (n_dims + 1))
    np.testing.assert_array_equal(own["entries"]["weight"], own["weight_of"].ravel()[order])
    degrees = np.bincount(own["vertex_of"].ravel())
    is_long = degrees > 64
    np.testing.assert_array_equal((own["segment_target"] >> 31).astype(bool), is_long[target])
    for v, first, n_segments in own["long_vertices"]:
        assert (target[first : first + n_segments] == v).all()
        assert n_segments == -(-degrees[v] // 64)
    np.testing.assert_array_equal(own["long_vertices"][:, 0], np.flatnonzero(is_long))


@pytest.mark.skipif(not FUSED, reason="this processor has no fused multiply-add")
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("n_values", [8, 21, 64, 72])
@pytest.mark.parametrize("n_dims", [2, 5, 16])
def test_filters_the_bits_of_the_cpu(n_dims: int, n_values: int, transpose: bool) -> None:
    # Sparse points: no vertex has so many that the two backends would cut their sum differently.
    features = suite.cloud(60, n_dims)
    values = suite.values_for(features, n_values)
    own = Lattice(features, backend="cuda")
    assert own._native.native.n_long == 0
    for instruction_set in FUSED:
        _lattice.use_instruction_set(instruction_set)
        expected = Lattice(features, backend="cpu").filter(values, transpose=transpose)
        np.testing.assert_array_equal(own.filter(values, transpose=transpose), expected)


@pytest.mark.parametrize("n_values", [*range(1, 14), 21, 33, 63, 64, 65, 66, 68, 128, 131])
def test_every_number_of_values(n_values: int) -> None:
    features = suite.cloud(200, 3)
    values = suite.values_for(features, n_values)
    expected = Lattice(features, backend="cpu").filter(values)
    # Sums of the same numbers in another order: rounding alone, relative to the largest.
    suite.assert_close(Lattice(features, backend="cuda").filter(values), expected)


@pytest.mark.parametrize("n_points", [1, 63, 64, 65, 127, 128, 129, 2048, 2049, 5000])
def test_every_length_of_sum(n_points: int) -> None:
    # All in one place: each of the d + 1 vertices sums all points, over up to 80 segments.
    features = np.full((n_points, 2), 0.3, np.float32)
    values = suite.values_for(features, 5)
    lattice = Lattice(features, backend="cuda")
    assert lattice._native.native.n_long == (3 if n_points > 64 else 0)
    expected = ReferenceLattice(features.astype(np.float64)).filter(values.astype(np.float64))
    suite.assert_close(lattice.filter(values), expected, rtol=1e-5)


def test_images_of_a_batch_share_no_vertex() -> None:
    images = [suite.cloud(120, 3, seed) for seed in range(5)]
    values = [suite.values_for(f, 4, seed) for seed, f in enumerate(images)]
    joint = cuda.CudaLattice(torch.from_numpy(np.concatenate(images)), n_groups=5)
    out = joint.filter(torch.from_numpy(np.concatenate(values))).numpy().reshape(5, 120, 4)
    alone = [Lattice(f, backend="cuda") for f in images]
    assert joint.n_vertices == sum(lattice.n_vertices for lattice in alone)
    for one, lattice, v in zip(out, alone, values, strict=True):
        np.testing.assert_array_equal(one, lattice.filter(v))


@pytest.mark.parametrize("n_dims", [8, 15, 16])
def test_images_of_a_batch_with_keys_of_several_words(n_dims: int) -> None:
    images = [suite.cloud(20, n_dims, seed, spread=3e3) for seed in range(3)]
    joint = cuda.CudaLattice(torch.from_numpy(np.concatenate(images)), n_groups=3)
    assert joint.n_vertices == sum(Lattice(f, backend="cuda").n_vertices for f in images)


# --- The mean field --------------------------------------------------------------------------------


def crf_with(n_labels: int, general: bool, normalization: str) -> CrfRnn:
    torch.manual_seed(3)
    crf = CrfRnn(n_labels, CrfConfig(theta_alpha=20.3, theta_beta=9.7, normalization=normalization))
    if general:
        with torch.no_grad():
            for matrix in (crf.spatial_weights, crf.bilateral_weights, crf.compatibility):
                matrix += 0.2 * torch.randn_like(matrix)
            crf.log_unary_scale.fill_(-0.2)
            crf.log_output_scale.fill_(0.1)
    return crf.eval()


@pytest.mark.parametrize("normalization", ["after", "symmetric", "none"])
@pytest.mark.parametrize("general", [False, True])
@pytest.mark.parametrize("n_labels", [1, 2, 3, 4, 5, 21, 64])
def test_fused_mean_field_agrees_with_the_definition(
    n_labels: int, general: bool, normalization: str
) -> None:
    if normalization == "none" and n_labels > 5:
        pytest.skip("unnormalised messages of many labels: exponents past where float32 tells states apart")
    crf = crf_with(n_labels, general, normalization)
    image = torch.from_numpy(np.random.default_rng(5).uniform(0, 255, (1, 3, 9, 11)).astype(np.float32))
    unary = torch.randn(1, n_labels, 9, 11)
    crf.backend = "cuda"
    prepared = crf.prepare(image)
    with torch.no_grad():
        fused = crf(unary, prepared=prepared, n_iterations=4)
        defined = crf._mean_field(unary, prepared, 4)
    # Softmax and products of matrices round differently; four iterations carry that on.
    scale = max(float(defined.abs().max()), 1.0)
    assert float((fused - defined).abs().max()) <= 2e-5 * scale


def test_fused_mean_field_agrees_with_the_cpu() -> None:
    crf = crf_with(21, True, "after")
    image = torch.from_numpy(np.random.default_rng(6).uniform(0, 255, (2, 3, 12, 13)).astype(np.float32))
    unary = torch.randn(2, 21, 12, 13)
    results = {}
    for backend in ("cpu", "cuda"):
        crf.backend = backend
        with torch.no_grad():
            results[backend] = crf(unary, image)
    assert float((results["cpu"].softmax(1) - results["cuda"].softmax(1)).abs().max()) <= 1e-4


@pytest.mark.parametrize("normalization", ["after", "symmetric"])
def test_a_batch_is_one_lattice_and_gives_what_its_images_give(normalization: str) -> None:
    crf = crf_with(4, True, normalization)
    crf.backend = "cuda"
    image = torch.from_numpy(np.random.default_rng(9).uniform(0, 255, (3, 3, 8, 10)).astype(np.float32))
    unary = torch.randn(3, 4, 8, 10)
    prepared = crf.prepare(image)
    assert prepared.n_images == 3
    assert len(prepared.bilateral) == 1
    with torch.no_grad():
        fused = crf(unary, prepared=prepared)
        alone = torch.cat([crf(u[None], i[None]) for u, i in zip(unary, image, strict=True)])
    np.testing.assert_array_equal(fused, alone)
    # With gradients the products of matrices are torch's, which round as they like.
    leaf = unary.clone().requires_grad_()
    defined = crf(leaf, prepared=prepared)
    assert float((defined.detach() - fused).abs().max()) <= 2e-5 * float(fused.abs().max())
    (joint_gradient,) = torch.autograd.grad(defined.square().sum(), leaf)
    for own, u, i in zip(joint_gradient, unary, image, strict=True):
        single = u[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(crf(single, i[None]).square().sum(), single)
        assert float((own - gradient[0]).abs().max()) <= 1e-4 * float(gradient.abs().max())


def test_only_this_backend_takes_groups() -> None:
    with pytest.raises(ValueError, match="n_groups must be 1 for backend 'cpu', got 2"):
        Lattice(suite.cloud(4, 2), backend="cpu", n_groups=2)


def test_gradients_agree_with_the_cpu() -> None:
    image = torch.from_numpy(np.random.default_rng(7).uniform(0, 255, (1, 3, 10, 9)).astype(np.float32))
    logits, cotangent = torch.randn(1, 4, 10, 9), torch.randn(1, 4, 10, 9)
    gradients = {}
    for backend in ("cpu", "cuda"):
        crf = crf_with(4, True, "symmetric").train()
        crf.backend = backend
        unary = logits.clone().requires_grad_()
        gradients[backend] = torch.autograd.grad(crf(unary, image), [unary, *crf.parameters()], cotangent)
    for ours, theirs in zip(gradients["cuda"], gradients["cpu"], strict=True):
        assert float((ours - theirs).abs().max()) <= 1e-4 * max(1.0, float(theirs.abs().max()))


def test_a_batch_in_one_mean_field_is_its_images_one_by_one() -> None:
    crf = crf_with(5, True, "after")
    rng = np.random.default_rng(8)
    spatial_features = suite.cloud(1, 2).repeat(90, axis=0) + rng.normal(size=(90, 2)).astype(np.float32)
    images = [rng.normal(scale=2, size=(90, 5)).astype(np.float32) for _ in range(3)]
    unary = torch.randn(3, 5, 90)
    matrices = {"spatial": crf.spatial_weights.detach(), "bilateral": crf.bilateral_weights.detach()}
    joint = cuda.CudaMeanField(
        cuda.CudaLattice(torch.from_numpy(np.concatenate([spatial_features] * 3)), n_groups=3),
        cuda.CudaLattice(torch.from_numpy(np.concatenate(images)), n_groups=3),
    ).run(unary, unary_scale=0.9, output_scale=1.1, n_iterations=3, **matrices)
    for own, logits, features in zip(joint, unary, images, strict=True):
        alone = cuda.CudaMeanField(
            cuda.CudaLattice(torch.from_numpy(spatial_features)), cuda.CudaLattice(torch.from_numpy(features))
        ).run(logits[None], unary_scale=0.9, output_scale=1.1, n_iterations=3, **matrices)
        np.testing.assert_array_equal(own, alone[0])


def test_repeated_calls_and_other_numbers_of_labels_share_nothing() -> None:
    lattices = [Lattice(suite.cloud(80, d), backend="cuda") for d in (2, 5)]
    field = MeanField(*lattices, (None, None), (None, None))

    def run(n_labels: int, seed: int) -> torch.Tensor:
        unary = torch.randn(n_labels, 80, generator=torch.Generator().manual_seed(seed))
        eye = -0.1 * torch.eye(n_labels)
        return field.run(
            unary, spatial_map=eye, bilateral_map=eye, unary_scale=1.0, output_scale=1.0, n_iterations=2
        )

    first = {(labels, seed): run(labels, seed) for labels in (4, 3, 1) for seed in (0, 1)}
    for (labels, seed), expected in first.items():
        assert torch.equal(run(labels, seed), expected)


def test_what_is_kept_from_inference_mode_can_be_used_outside() -> None:
    crf = crf_with(3, True, "after")
    crf.backend = "cuda"
    image, unary = torch.full((1, 3, 6, 7), 50.0), torch.randn(1, 3, 6, 7)
    with torch.inference_mode():
        prepared = crf.prepare(image)
        inside = crf(unary, prepared=prepared)
    with torch.no_grad():
        assert torch.equal(crf(unary, prepared=prepared), inside)
    leaf = unary.clone().requires_grad_()
    crf(leaf, prepared=prepared).sum().backward()
    assert leaf.grad is not None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_mean_field_refuses_logits_that_are_not_finite(bad: float) -> None:
    crf = crf_with(3, False, "after")
    crf.backend = "cuda"
    unary = torch.zeros(1, 3, 4, 4)
    unary[0, 1, 2, 3] = bad
    with torch.no_grad(), pytest.raises(ValueError, match="unary must be finite"):
        crf(unary, torch.zeros(1, 3, 4, 4))


# --- Errors ----------------------------------------------------------------------------------------


def test_host_loops_end_with_their_block() -> None:
    assert "cuda" in available_backends()
    with cuda.host_loops():
        pass
    assert "cuda" in available_backends()


def test_a_machine_without_the_gpu_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_loops", None)
    if cuda.why_not() is None:
        pytest.skip("this machine has a GPU, and the backend for it")
    assert "cuda" not in available_backends()
    with pytest.raises(RuntimeError, match=r"backend 'cuda' cannot be used: .*; use backend='auto' or 'cpu'"):
        Lattice(suite.cloud(4, 2), backend="cuda")
    assert Lattice(suite.cloud(4, 2)).backend == "cpu"


def test_out_of_memory_is_the_error_of_torch() -> None:
    with pytest.raises(torch.cuda.OutOfMemoryError, match="CUDA ran out of memory"), cuda._native_errors():
        raise MemoryError


def test_native_code_defends_itself() -> None:
    items = pytest.importorskip("napari_crfasrnn._ext._lattice_items")
    where = {"device": 0, "stream": 0}
    features = np.zeros((4, 2), np.float32)
    block = np.zeros(1 << 16, np.uint8)
    with pytest.raises(ValueError, match="1 <= d <= 16"):
        items.Lattice(4, 17)
    with pytest.raises(ValueError, match="too many points"):
        items.Lattice(1 << 30, 2)
    with pytest.raises(ValueError, match="multiple of n_groups"):
        items.Lattice(4, 2, 3)
    lattice = items.Lattice(4, 2)
    with pytest.raises(ValueError, match="measure, number and link"):
        lattice.number(features.ctypes.data, block.ctypes.data, 1 << 16, block.ctypes.data, 1 << 16, **where)
    with pytest.raises(ValueError, match="measure_bytes"):
        lattice.measure(features.ctypes.data, block.ctypes.data, 3, **where)
    lattice.measure(features.ctypes.data, block.ctypes.data, 1 << 16, **where)
    with pytest.raises(ValueError, match="bytes came where"):
        lattice.number(features.ctypes.data, block.ctypes.data, 3, block.ctypes.data, 1 << 16, **where)
    with pytest.raises(ValueError, match="measure, number and link"):
        lattice.filter(0, 0, 1, 0, 0, transpose=False, **where)
    with pytest.raises(ValueError, match="measure, number and link"):
        items.MeanField(lattice, lattice, 2)


def test_the_shared_suite_is_not_empty() -> None:
    assert len(list(shared_cases())) > 40
    assert Path(suite.__file__).name == "test_lattice.py"
