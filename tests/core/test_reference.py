"""The readable lattice: what the paper says of it, and the exact Gaussian beside it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_crfasrnn._reference import ReferenceLattice, corner_keys, elevate, gaussian_filter, simplices

cases = st.tuples(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**31))


def cloud(case: tuple[int, int, int]) -> np.ndarray:
    n_points, n_dims, seed = case
    return np.random.default_rng(seed).normal(scale=3.0, size=(n_points, n_dims))


@settings(max_examples=40, deadline=None)
@given(case=cases)
def test_elevated_points_lie_in_the_hyperplane_and_keep_their_distances(case: tuple[int, int, int]) -> None:
    features = cloud(case)
    elevated = elevate(features)
    np.testing.assert_allclose(elevated.sum(axis=1), 0.0, atol=1e-9)
    # The map is a similarity with factor (d + 1) sqrt(2 / 3) (p. 5 and 6).
    factor = (features.shape[1] + 1) * np.sqrt(2.0 / 3.0)
    apart = np.linalg.norm(features - features[:1], axis=1)
    np.testing.assert_allclose(np.linalg.norm(elevated - elevated[:1], axis=1), factor * apart, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(case=cases)
def test_barycentric_weights_place_the_point_between_its_corners(case: tuple[int, int, int]) -> None:
    elevated = elevate(cloud(case))
    origin, order, barycentric = simplices(elevated)
    assert (barycentric >= -1e-12).all()
    np.testing.assert_allclose(barycentric.sum(axis=1), 1.0, atol=1e-12)
    corners = corner_keys(origin, order)  # [N, d + 1, d]
    between = np.einsum("nk,nkj->nj", barycentric, corners.astype(np.float64))
    np.testing.assert_allclose(between, elevated[:, :-1], atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(case=cases)
def test_corner_k_has_remainder_k(case: tuple[int, int, int]) -> None:
    features = cloud(case)
    n_corners = features.shape[1] + 1
    origin, order, _ = simplices(elevate(features))
    assert (origin.sum(axis=1) == 0).all()
    assert (origin % n_corners == 0).all()
    remainders = corner_keys(origin, order) % n_corners
    assert (remainders == np.arange(n_corners)[None, :, None]).all()


def test_one_point_alone() -> None:
    lattice = ReferenceLattice(np.zeros((1, 2)))
    # The point sits on a vertex. That keeps the gain 0.8 = 1 / (1 + 2^-2): its neighbours in the
    # simplex exist with weight 0, receive half of its mass from the blur and give half of that back.
    assert lattice.n_vertices == 3
    out = lattice.filter(np.ones((1, 1)))
    dense = _dense(lattice)
    np.testing.assert_allclose(out, dense @ np.ones((1, 1)))
    assert 0.8 <= out[0, 0] <= 1.6


def _dense(lattice: ReferenceLattice) -> np.ndarray:
    """The filter as the product of its three matrices, written down independently."""
    n, m = lattice.n_points, lattice.n_vertices
    splat = np.zeros((m, n))
    for point in range(n):
        for corner, vertex in enumerate(lattice.vertex_of[point]):
            splat[vertex, point] += lattice.barycentric[point, corner]
    blur = np.eye(m)
    for before, after in lattice.neighbours:
        axis = np.eye(m)
        for vertex in range(m):
            for neighbour in (before[vertex], after[vertex]):
                if neighbour >= 0:
                    axis[vertex, neighbour] += 0.5
        blur = axis @ blur
    return splat.T @ blur @ splat / (1.0 + 2.0**-lattice.n_dims)


@settings(max_examples=25, deadline=None)
@given(case=cases)
def test_filter_is_the_product_of_its_matrices(case: tuple[int, int, int]) -> None:
    lattice = ReferenceLattice(cloud(case) / 3)
    dense = _dense(lattice)
    eye = np.eye(lattice.n_points)
    np.testing.assert_allclose(lattice.filter(eye), dense, atol=1e-12)
    np.testing.assert_allclose(lattice.filter(eye, transpose=True), dense.T, atol=1e-12)


def test_blur_has_no_neighbours_of_neighbours() -> None:
    lattice = ReferenceLattice(np.array([[0.0, 0.0], [0.9, 0.3]]))
    for before, after in lattice.neighbours:
        for vertex in range(lattice.n_vertices):
            if after[vertex] >= 0:
                assert before[after[vertex]] == vertex


def test_gaussian_of_two_points() -> None:
    features = np.array([[0.0, 0.0], [1.0, 2.0]])
    out = gaussian_filter(features, np.array([[1.0], [10.0]]), block=1)
    near = np.exp(-2.5)
    np.testing.assert_allclose(out, [[1 + 10 * near], [10 + near]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        ReferenceLattice(np.array([[0.0, bad]]))
    with pytest.raises(ValueError, match="too large"):
        ReferenceLattice(np.array([[0.0, 1e9]]))
