"""Every backend against the reference vectors, against the readable lattice, and against mathematics."""

from __future__ import annotations

import copy
import logging
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import napari_crfasrnn
from napari_crfasrnn import lattice as room
from napari_crfasrnn._ext import _lattice
from napari_crfasrnn._reference import ReferenceLattice, gaussian_filter
from napari_crfasrnn.lattice import Lattice, available_backends, build_config, set_num_threads

BACKENDS = available_backends()
COMPILED = tuple(name for name in BACKENDS if name != "reference")
INSTRUCTION_SETS = tuple(_lattice.instruction_sets())

Floats = NDArray[np.float32]


@pytest.fixture(autouse=True)
def _restore_settings() -> Iterator[None]:
    yield
    set_num_threads(0)
    _lattice.use_instruction_set(INSTRUCTION_SETS[0])


def cloud(n_points: int, n_dims: int, seed: int = 0, spread: float = 2.0) -> Floats:
    """Random points, away from the faces of simplices with probability one."""
    return np.random.default_rng(seed).normal(scale=spread, size=(n_points, n_dims)).astype(np.float32)


def values_for(features: Floats, n_values: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).normal(size=(len(features), n_values)).astype(np.float32)


def image_features(image: NDArray[np.uint8]) -> dict[str, Floats]:
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    position = np.stack([x, y], axis=-1).reshape(-1, 2)
    colour = image.reshape(-1, 3).astype(np.float32)
    bilateral = np.concatenate([position / np.float32(160), colour / np.float32(3)], axis=1)
    return {"bilateral": bilateral, "spatial": position / np.float32(3)}


def assert_close(actual: NDArray[np.floating], expected: NDArray[np.floating], rtol: float = 2e-6) -> None:
    """Compare to the largest expected value: the rounding error of a filter is relative to that.

    float32 sums of a few hundred terms round by about 1e-7 to 1e-6 of the largest.
    """
    assert actual.shape == expected.shape
    scale = max(float(np.abs(expected).max(initial=0.0)), 1e-30)
    assert float(np.abs(actual - expected).max(initial=0.0)) <= rtol * scale


# --- The stored vectors ------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["c1", "c3", "c21"])
@pytest.mark.parametrize("n_dims", [2, 3, 5, 6])
def test_reproduces_the_reference_implementation(
    shared_dir: Path, backend: str, n_dims: int, case: str
) -> None:
    stored = np.load(shared_dir / "ref" / f"lattice_d{n_dims}.npz")
    lattice = Lattice(stored[f"features_{case}"], backend=backend)
    assert lattice.n_vertices == int(stored[f"num_vertices_{case}"])
    values = stored[f"values_{case}"].T
    # Same float32 simplices, so all that differs is the order of sums.
    assert_close(lattice.filter(values), stored[f"out_fwd_{case}"].T)
    assert_close(lattice.filter(values, transpose=True), stored[f"out_rev_{case}"].T)
    ones = np.ones((lattice.n_points, 1), np.float32)
    assert_close(lattice.filter(ones)[:, 0], stored[f"ones_{case}"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["near", "far"])
def test_no_point_is_invented_to_fill_up_a_vector_register(shared_dir: Path, backend: str, name: str) -> None:
    stored = np.load(shared_dir / "ref" / "lattice_tail.npz")  # 997 points, which no power of two divides
    features, values = stored[f"features_{name}"], stored[f"values_{name}"].T
    lattice = Lattice(features, backend=backend)
    assert lattice.n_vertices == int(stored[f"num_vertices_nopad_{name}"])
    # Far from 0, float32 features keep fewer digits of a position in its simplex.
    assert_close(lattice.filter(values), stored[f"out_fwd_nopad_{name}"].T, rtol=1e-5)
    # The stored float32 outputs come from an implementation that pads with points at the origin.
    padding = np.zeros((3, 3), np.float32)
    padded = Lattice(np.concatenate([features, padding]), backend=backend)
    assert padded.n_vertices == int(stored[f"num_vertices_ref_{name}"])
    padded_values = np.concatenate([values, padding])
    assert_close(padded.filter(padded_values)[:-3], stored[f"out_fwd_{name}"].T)
    assert_close(padded.filter(padded_values, transpose=True)[:-3], stored[f"out_rev_{name}"].T)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", ["bilateral", "spatial"])
@pytest.mark.parametrize("size", ["64x80", "120x160"])
def test_reproduces_the_image_filters(shared_dir: Path, backend: str, kernel: str, size: str) -> None:
    stored = np.load(shared_dir / "ref" / f"filter_{size}.npz")
    features = image_features(stored["image"])[kernel]
    lattice = Lattice(features, backend=backend)
    assert lattice.n_vertices == int(stored[f"num_vertices_{kernel}"])
    norm = 1.0 / lattice.filter(np.ones((len(features), 1), np.float32))
    values = stored["values"].reshape(len(stored["values"]), -1).T
    out = lattice.filter(values) * norm
    expected = stored[f"{kernel}_out"].reshape(len(stored["values"]), -1).T
    assert_close(norm[:, 0], stored[f"{kernel}_norm"].ravel(), rtol=1e-5)
    far_off = np.abs(out - expected) > 1e-5 * np.abs(expected).max()
    assert far_off.mean() <= 0.005
    assert np.linalg.norm(out - expected) <= 2e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("n_dims", [2, 3, 5, 6])
def test_the_exact_gaussian_is_that_of_the_stored_vectors(shared_dir: Path, n_dims: int) -> None:
    stored = np.load(shared_dir / "ref" / f"lattice_d{n_dims}.npz")
    exact = gaussian_filter(stored["features_c3"], stored["values_c3"].T)
    np.testing.assert_allclose(exact, stored["gauss_c3"].T, rtol=1e-10, atol=1e-10)


# --- Against the readable lattice ---------------------------------------------------------------


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("n_dims", range(1, 17))
def test_every_number_of_dimensions(n_dims: int, instruction_set: str) -> None:
    _lattice.use_instruction_set(instruction_set)
    features = cloud(203, n_dims, seed=n_dims)
    values = values_for(features, 3)
    reference = ReferenceLattice(features)
    lattice = Lattice(features, backend="cpu")
    assert lattice.n_vertices == reference.n_vertices
    for transpose in (False, True):
        assert_close(
            lattice.filter(values, transpose=transpose), reference.filter(values, transpose=transpose)
        )


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("n_values", [*range(1, 27), 31, 32, 33, 40, 47, 48, 56, 63, 64, 65, 70, 128, 131])
def test_every_number_of_values(n_values: int, instruction_set: str) -> None:
    _lattice.use_instruction_set(instruction_set)
    features = cloud(150, 3)
    values = values_for(features, n_values)
    assert_close(Lattice(features, backend="cpu").filter(values), ReferenceLattice(features).filter(values))


@pytest.mark.parametrize("n_points", [1, 2, 15, 16, 17, 63, 64, 65, 127, 129, 1000])
def test_every_number_of_points(n_points: int) -> None:
    features = cloud(n_points, 4)
    values = values_for(features, 5)
    assert_close(Lattice(features, backend="cpu").filter(values), ReferenceLattice(features).filter(values))


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_instruction_sets_find_the_same_simplices(instruction_set: str) -> None:
    features = image_features(np.random.default_rng(3).integers(0, 256, (40, 50, 3), np.uint8))["bilateral"]
    values = values_for(features, 21)
    best = Lattice(features, backend="cpu")
    expected = best.filter(values)
    _lattice.use_instruction_set(instruction_set)
    other = Lattice(features, backend="cpu")
    assert other.n_vertices == best.n_vertices
    # Fused multiply-add rounds once instead of twice; a filter stays within 1e-5.
    assert_close(other.filter(values), expected, rtol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_points_on_the_faces_of_simplices(backend: str) -> None:
    # Integers over 1/2 land on vertices and faces: ranks tie and corners have weight 0.
    grid = np.mgrid[:12, :12].reshape(2, -1).T.astype(np.float32)
    features = np.concatenate([grid / 2, np.zeros_like(grid)], axis=1)
    values = values_for(features, 2)
    expected = ReferenceLattice(features)
    lattice = Lattice(features, backend=backend)
    assert lattice.n_vertices == expected.n_vertices
    assert_close(lattice.filter(values), expected.filter(values))


@pytest.mark.parametrize("backend", BACKENDS)
def test_float64_reference_confirms_float32(backend: str) -> None:
    features = cloud(500, 3, seed=8)
    values = values_for(features, 4)
    exact = ReferenceLattice(features.astype(np.float64)).filter(values.astype(np.float64))
    assert_close(Lattice(features, backend=backend).filter(values), exact, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_dims", [2, 3, 5])
def test_approximates_the_exact_gaussian(backend: str, n_dims: int) -> None:
    features = cloud(800, n_dims, spread=1.0)
    values = np.random.default_rng(4).random((800, 1)).astype(np.float32)
    ones = np.ones_like(values)
    lattice = Lattice(features, backend=backend)
    smooth = lattice.filter(values) / lattice.filter(ones)
    exact = gaussian_filter(features, values) / gaussian_filter(features, ones)
    # The lattice is an approximation: some percent of what the exact filter does to the values.
    effect = np.abs(exact - values).mean()
    assert np.abs(smooth - exact).mean() < 0.08 * effect


# --- Mathematics ----------------------------------------------------------------------------------

shapes = st.tuples(st.integers(1, 60), st.integers(1, 8), st.integers(1, 9), st.integers(0, 2**31))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=30, deadline=None)
@given(shape=shapes)
def test_transpose_is_the_adjoint(backend: str, shape: tuple[int, int, int, int]) -> None:
    n_points, n_dims, n_values, seed = shape
    features = cloud(n_points, n_dims, seed)
    lattice = Lattice(features, backend=backend)
    x, y = values_for(features, n_values, seed + 1), values_for(features, n_values, seed + 2)
    forward = lattice.filter(x).astype(np.float64)
    left = float((forward * y).sum())
    right = float((x * lattice.filter(y, transpose=True).astype(np.float64)).sum())
    # Rounding of either side is relative to the products that are summed, not to their sum.
    assert abs(left - right) <= 2e-6 * float((np.abs(forward) * np.abs(y)).sum() + 1.0)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=30, deadline=None)
@given(shape=shapes)
def test_order_of_points_does_not_matter(backend: str, shape: tuple[int, int, int, int]) -> None:
    n_points, n_dims, n_values, seed = shape
    features = cloud(n_points, n_dims, seed)
    values = values_for(features, n_values)
    order = np.random.default_rng(seed).permutation(n_points)
    straight = Lattice(features, backend=backend)
    shuffled = Lattice(features[order], backend=backend)
    assert shuffled.n_vertices == straight.n_vertices
    assert_close(shuffled.filter(values[order]), straight.filter(values)[order])


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=30, deadline=None)
@given(shape=shapes, factor=st.floats(-8, 8, width=32))
def test_linear_in_the_values(backend: str, shape: tuple[int, int, int, int], factor: float) -> None:
    n_points, n_dims, n_values, seed = shape
    features = cloud(n_points, n_dims, seed)
    a, b = values_for(features, n_values, seed), values_for(features, n_values, seed + 1)
    lattice = Lattice(features, backend=backend)
    together = lattice.filter(a + np.float32(factor) * b)
    apart = lattice.filter(a) + np.float32(factor) * lattice.filter(b)
    scale = np.abs(lattice.filter(np.abs(a) + abs(factor) * np.abs(b))).max()
    assert np.abs(together - apart).max() <= 3e-6 * scale


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=30, deadline=None)
@given(shape=shapes)
def test_positive_kernel(backend: str, shape: tuple[int, int, int, int]) -> None:
    n_points, n_dims, n_values, seed = shape
    features = cloud(n_points, n_dims, seed)
    lattice = Lattice(features, backend=backend)
    values = np.abs(values_for(features, n_values))
    out = lattice.filter(values)
    largest = lattice.filter(np.ones((n_points, 1), np.float32)) * values.max(initial=0.0)
    assert (out >= 0).all()
    assert (out <= largest * (1 + 1e-5)).all()


# torch itself scripts a function when forward-mode differentiation is first used.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_backward_is_the_adjoint_of_any_order() -> None:
    features = torch.from_numpy(cloud(12, 2, spread=1.0)).double()
    lattice = Lattice(features, backend="reference")
    values = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lattice.filter, values, check_forward_ad=True)
    assert torch.autograd.gradcheck(lambda v: lattice.filter(v, transpose=True), values)
    assert torch.autograd.gradgradcheck(lambda v: lattice.filter(v) ** 2, values)


@pytest.mark.parametrize("backend", COMPILED)
def test_gradient_of_the_compiled_filter(backend: str) -> None:
    features = torch.from_numpy(cloud(300, 5))
    lattice = Lattice(features, backend=backend)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(300, 7, generator=generator, requires_grad=True)
    weight = torch.randn(300, 7, generator=generator)
    direction = torch.randn(300, 7, generator=generator)
    (gradient,) = torch.autograd.grad((lattice.filter(values) * weight).sum(), values)
    # K is linear: a finite difference is exact but for rounding, however large the step.
    with torch.no_grad():
        ahead = (lattice.filter(values + direction) * weight).double().sum()
        behind = (lattice.filter(values - direction) * weight).double().sum()
    assert float((gradient * direction).double().sum()) == pytest.approx(float(ahead - behind) / 2, rel=1e-4)
    # And the second derivative of a quadratic form is K transposed K.
    (first,) = torch.autograd.grad((lattice.filter(values) ** 2).sum() / 2, values, create_graph=True)
    (second,) = torch.autograd.grad((first * direction).sum(), values)
    with torch.no_grad():
        expected = lattice.filter(lattice.filter(direction), transpose=True)
    assert_close(second.numpy(), expected.numpy(), rtol=1e-5)


# --- Determinism and threads ------------------------------------------------------------------------


@pytest.mark.parametrize("n_values", [1, 2, 21, 70])
def test_every_number_of_threads_gives_the_same_bits(n_values: int) -> None:
    # Enough points for several chunks; a constant half makes vertices with thousands of points.
    image = np.random.default_rng(5).integers(0, 256, (300, 240, 3), np.uint8)
    image[:, :120] = 77
    features = image_features(image)["bilateral"]
    values = values_for(features, n_values)
    set_num_threads(1)
    alone = Lattice(features, backend="cpu")
    expected = alone.filter(values)
    expected_transposed = alone.filter(values, transpose=True)
    for n_threads in (2, 3, 5):
        set_num_threads(n_threads)
        lattice = Lattice(features, backend="cpu")
        assert lattice.n_vertices == alone.n_vertices
        np.testing.assert_array_equal(lattice.filter(values), expected)
        np.testing.assert_array_equal(lattice.filter(values, transpose=True), expected_transposed)


def test_several_python_threads_share_a_lattice() -> None:
    set_num_threads(2)
    features = cloud(40_000, 3)
    lattice = Lattice(features, backend="cpu")
    inputs = [values_for(features, 1 + 4 * i, seed=i) for i in range(4)]
    expected = [lattice.filter(values) for values in inputs]
    mismatches: list[int] = []

    def work(number: int) -> None:
        for _ in range(3):
            if not np.array_equal(lattice.filter(inputs[number]), expected[number]):
                mismatches.append(number)
            if Lattice(features, backend="cpu").n_vertices != lattice.n_vertices:
                mismatches.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mismatches == []


def test_other_python_threads_run_during_native_code() -> None:
    set_num_threads(1)
    features = cloud(150_000, 5)
    values = values_for(features, 32)
    intervals: list[tuple[float, float]] = []
    ticks: list[float] = []
    finished = threading.Event()

    def tick() -> None:
        while not finished.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    ticker = threading.Thread(target=tick)
    ticker.start()
    try:
        for _ in range(3):
            begin = time.perf_counter()
            native = _lattice.Lattice(features)
            intervals.append((begin, time.perf_counter()))
        for _ in range(3):
            begin = time.perf_counter()
            native.filter(values)
            intervals.append((begin, time.perf_counter()))
    finally:
        finished.set()
        ticker.join()
    # With the GIL held during these calls there would be none.
    inside = sum(begin < tick < end for begin, end in intervals for tick in ticks)
    assert inside >= 6


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="this system does not fork")
def test_a_forked_child_computes_with_threads_of_its_own() -> None:
    script = """
import os
import numpy as np
from napari_crfasrnn._ext import _lattice
_lattice.set_n_threads(3)
features = np.random.default_rng(0).normal(size=(100_000, 3)).astype(np.float32)
values = np.ones((100_000, 2), np.float32)
def run():
    return _lattice.Lattice(features).filter(values)
expected = run()
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(run(), expected) else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert np.array_equal(run(), expected)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60)


# --- Odd and bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_duplicates_and_far_points(backend: str) -> None:
    features = np.repeat(cloud(1, 3), 50, axis=0)
    features = np.concatenate([features, np.full((1, 3), 5000, np.float32)])
    values = np.ones((51, 2), np.float32)
    out = Lattice(features, backend=backend).filter(values)
    assert_close(out[:50], np.broadcast_to(out[0], (50, 2)))
    assert (out[0] > 10 * out[50]).all()
    alone = Lattice(features[50:], backend=backend).filter(values[50:])
    np.testing.assert_array_equal(out[50:], alone)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_dims", [1, 5, 16])
def test_keys_wider_than_one_word(backend: str, n_dims: int) -> None:
    features = cloud(40, n_dims, spread=10_000.0)
    values = values_for(features, 2)
    expected = ReferenceLattice(features)
    lattice = Lattice(features, backend=backend)
    assert lattice.n_vertices == expected.n_vertices
    assert_close(lattice.filter(values), expected.filter(values))


@pytest.mark.parametrize("backend", COMPILED)
def test_long_sums_stay_exact(backend: str) -> None:
    # All points on one spot: a plain float32 sum of 2^18 weights drifts by 1e-4 and more.
    n_points = 1 << 18
    features = np.full((n_points, 2), 0.3, np.float32)
    ones = np.ones((n_points, 1), np.float32)
    out = Lattice(features, backend=backend).filter(ones)
    one = Lattice(features[:1].astype(np.float64), backend="reference").filter(ones[:1].astype(np.float64))
    assert float(out[0, 0]) == pytest.approx(n_points * float(one[0, 0]), rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_points_and_no_values(backend: str) -> None:
    empty = Lattice(np.empty((0, 3), np.float32), backend=backend)
    assert (empty.n_points, empty.n_dims, empty.n_vertices) == (0, 3, 0)
    assert empty.filter(np.empty((0, 4), np.float32)).shape == (0, 4)
    assert Lattice(cloud(5, 2), backend=backend).filter(np.empty((5, 0), np.float32)).shape == (5, 0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite(backend: str, bad: float) -> None:
    features = cloud(100, 3)
    features[57, 1] = bad
    with pytest.raises(ValueError, match="features must be finite"):
        Lattice(features, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1e7, 3e38])
def test_features_out_of_range(backend: str, size: float) -> None:
    features = cloud(100, 3)
    features[99, 2] = size
    with pytest.raises(ValueError, match="too large"):
        Lattice(features, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(4,), (4, 0), (4, 17), (2, 3, 4)])
def test_features_of_wrong_shape(backend: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="features must"):
        Lattice(np.zeros(shape, np.float32), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.float16, np.complex64, bool])
def test_features_and_values_of_wrong_dtype(backend: str, dtype: type) -> None:
    with pytest.raises(TypeError, match="features must be float32"):
        Lattice(np.zeros((4, 2), dtype), backend=backend)
    with pytest.raises(TypeError, match="values must be float32"):
        Lattice(np.zeros((4, 2), np.float32), backend=backend).filter(np.zeros((4, 1), dtype))


@pytest.mark.parametrize("backend", COMPILED)
def test_float64_is_refused_rather_than_rounded(backend: str) -> None:
    with pytest.raises(TypeError, match="float32 for backend"):
        Lattice(np.zeros((4, 2)), backend=backend)
    with pytest.raises(TypeError, match="float32 for backend"):
        Lattice(torch.zeros(4, 2), backend=backend).filter(torch.zeros(4, 2, dtype=torch.float64))


def test_arguments_that_are_no_arrays() -> None:
    with pytest.raises(TypeError, match="features must be a NumPy array or torch tensor, got list"):
        Lattice([[1.0, 2.0]])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="values must be a NumPy array or torch tensor, got float"):
        Lattice(cloud(3, 2)).filter(1.0)  # type: ignore[call-overload]


@pytest.mark.parametrize("shape", [(9, 2), (11, 2), (10,), (10, 2, 1)])
def test_values_of_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"values must be \[N, V\] with N = 10"):
        Lattice(cloud(10, 2)).filter(np.zeros(shape, np.float32))


def test_unknown_and_missing_backends() -> None:
    with pytest.raises(ValueError, match="backend must be"):
        Lattice(cloud(3, 2), backend="gpu")  # type: ignore[arg-type]
    if not build_config()["cuda"]:
        with pytest.raises(RuntimeError, match="compiled with CUDA"):
            Lattice(cloud(3, 2), backend="cuda")


def test_native_code_defends_itself() -> None:
    lattice = _lattice.Lattice(cloud(6, 2))
    with pytest.raises(ValueError, match="one row for every point"):
        lattice.filter(np.zeros((5, 2), np.float32))
    with pytest.raises(TypeError):
        lattice.filter(np.zeros((6, 2)))
    with pytest.raises(TypeError):
        lattice.filter(np.zeros((6, 4), np.float32)[:, ::2])
    with pytest.raises(TypeError):
        _lattice.Lattice(None)
    with pytest.raises(ValueError, match="1 <= d <= 16"):
        _lattice.Lattice(np.zeros((3, 0), np.float32))
    with pytest.raises(ValueError, match="instruction_sets"):
        _lattice.use_instruction_set("mmx")


# --- Arrays in and out ----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_arrays_come_back_as_they_went_in(backend: str) -> None:
    features = cloud(30, 3)
    values = values_for(features, 4)
    from_numpy = Lattice(features, backend=backend)
    from_torch = Lattice(torch.from_numpy(features), backend=backend)
    expected = from_numpy.filter(values)
    assert isinstance(expected, np.ndarray)
    assert expected.dtype == np.float32
    tensor = from_torch.filter(torch.from_numpy(values))
    assert isinstance(tensor, torch.Tensor)
    assert not tensor.requires_grad
    np.testing.assert_array_equal(tensor.numpy(), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides_and_read_only_arrays(backend: str) -> None:
    features = cloud(40, 3)
    values = values_for(features, 6)
    expected = Lattice(features, backend=backend).filter(values)
    strided = np.asfortranarray(features)
    strided.setflags(write=False)
    lattice = Lattice(strided, backend=backend)
    wide = np.zeros((80, 12), np.float32)
    wide[::2, ::2] = values
    np.testing.assert_array_equal(lattice.filter(wide[::2, ::2]), expected)
    backwards = Lattice(features[::-1], backend=backend)
    assert_close(backwards.filter(values[::-1]), expected[::-1])
    transposed = torch.from_numpy(values.T.copy()).T
    np.testing.assert_array_equal(lattice.filter(transposed).numpy(), expected)


@pytest.mark.parametrize("backend", COMPILED)
def test_autocast_hands_over_half_precision(backend: str) -> None:
    features = cloud(40, 3)
    values = torch.from_numpy(values_for(features, 4)).bfloat16().requires_grad_()
    lattice = Lattice(features, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = lattice.filter(values)
    assert out.dtype == torch.float32
    assert torch.equal(out, lattice.filter(values.float()))
    (gradient,) = torch.autograd.grad(out.sum(), values)
    assert gradient.dtype == torch.bfloat16
    with pytest.raises(TypeError, match="values must be float32"):
        lattice.filter(values)


@pytest.mark.parametrize("backend", BACKENDS)
def test_input_is_not_touched(backend: str) -> None:
    features, values = cloud(50, 2), values_for(cloud(50, 2), 3)
    kept_features, kept_values = features.copy(), values.copy()
    lattice = Lattice(features, backend=backend)
    lattice.filter(values)
    features[:] = 0  # The lattice keeps no view of them either.
    np.testing.assert_array_equal(
        lattice.filter(values), Lattice(kept_features, backend=backend).filter(values)
    )
    np.testing.assert_array_equal(values, kept_values)


# --- The extension itself ---------------------------------------------------------------------------------


def test_versions_agree() -> None:
    assert build_config()["version"] == napari_crfasrnn.__version__


def test_build_config_tells_what_is_needed() -> None:
    config = build_config()
    assert config["simd"] in config["simd_available"]
    assert "plain" in config["simd_available"]
    assert config["backends"] == available_backends()
    set_num_threads(3)
    assert build_config()["threads"] == 3
    with pytest.raises(ValueError, match="n_threads must be 0 or more"):
        set_num_threads(-1)
    with pytest.raises(TypeError, match=r"n_threads must be an integer, got 2\.5"):
        set_num_threads(2.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("copied", [pickle.dumps, copy.deepcopy])
def test_a_copy_is_refused_in_a_sentence(copied: Callable[[object], object]) -> None:
    lattice = Lattice(np.zeros((3, 2), np.float32), backend="cpu")
    with pytest.raises(TypeError, match="a lattice cannot be pickled or copied, nor can a prepared image"):
        copied([lattice])


def test_automatic_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    room._said.clear()
    with caplog.at_level(logging.INFO, logger="napari_crfasrnn.lattice"):
        assert Lattice(cloud(3, 2)).backend == "cpu"
        Lattice(cloud(3, 2))
    assert [record.message.split(" (")[0] for record in caplog.records] == ["lattice backend: cpu"]


def test_committed_stub_is_current(tmp_path: Path) -> None:
    stub = Path(_lattice.__file__).with_name("_lattice.pyi")
    fresh = tmp_path / "_lattice.pyi"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "nanobind.stubgen",
            "-q",
            "-m",
            "napari_crfasrnn._ext._lattice",
            "-o",
            str(fresh),
        ],
        check=True,
        timeout=60,
    )
    assert stub.read_text() == fresh.read_text()


def test_memory_is_kept_for_reuse_and_given_back() -> None:
    features = cloud(20_000, 3)
    out = Lattice(features, backend="cpu").filter(values_for(features, 8))
    kept = out.copy()
    assert _lattice.release_memory() > 0
    np.testing.assert_array_equal(out, kept)  # what Python still holds is not given away
    del out
    assert _lattice.release_memory() > 0
    assert _lattice.release_memory() == 0
