"""The permutohedral lattice in readable NumPy: the specification of the compiled backends.

Names and order of the stages are those of the C++ code: elevate, round, rank, barycentric
coordinates, vertex numbers, then splat, blur, slice. Page numbers refer to Adams, Baek and Davis,
"Fast High-Dimensional Filtering Using the Permutohedral Lattice", 2010. `gaussian_filter` is the
exact sum that the lattice approximates.

Letters: N points, d feature dimensions, M vertices, V values per point.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Indices = NDArray[np.int64]

COORDINATE_LIMIT = 2.0**20
"""Largest elevated coordinate; float32 keeps three binary digits behind the point there."""


class ReferenceLattice:
    """A lattice around `features`, computed in their dtype (float32 or float64).

    Parameters
    ----------
    features
        ``[N, d]``, already divided by the widths of the Gaussian (dimensionless).

    Raises
    ------
    ValueError
        For features that are not finite or too large to be keyed.
    """

    def __init__(self, features: Floats) -> None:
        self.n_points, self.n_dims = features.shape
        if not np.isfinite(features).all():
            raise ValueError("features must be finite, got NaN or infinity; replace or mask them first")
        elevated = elevate(features)
        if not (np.abs(elevated) <= COORDINATE_LIMIT).all():
            raise ValueError(
                "features are too large for lattice coordinates (about 2**20 at most); "
                "divide them by larger widths or rescale the image"
            )
        origin, order, self.barycentric = simplices(elevated)
        keys = corner_keys(origin, order)
        vertices, numbers = np.unique(keys.reshape(-1, self.n_dims), axis=0, return_inverse=True)
        self.n_vertices = len(vertices)
        self.vertex_of: Indices = numbers.reshape(self.n_points, self.n_dims + 1)  # [N, d + 1]
        self.neighbours = [_neighbours(vertices, axis) for axis in range(self.n_dims + 1)]

    def filter(self, values: Floats, *, transpose: bool = False) -> Floats:
        """Return ``slice(blur(splat(values)))``, ``[N, V]``, unnormalised, in the dtype of `values`.

        The transpose blurs the axes in the opposite order and is the exact adjoint.
        """
        vertices = self._splat(values)
        axes = range(self.n_dims + 1)
        vertices = self._blur(vertices, reversed(axes) if transpose else axes)
        return self._slice(vertices)

    def _splat(
        self,
        values: Floats,  # [N, V]
    ) -> Floats:  # [M, V]
        vertices = np.zeros((self.n_vertices, values.shape[1]), values.dtype)
        for corner in range(self.n_dims + 1):
            weight = self.barycentric[:, corner, None].astype(values.dtype)
            np.add.at(vertices, self.vertex_of[:, corner], weight * values)
        return vertices

    def _blur(self, vertices: Floats, axes: Iterable[int]) -> Floats:
        # A row of zeros at the end stands for every neighbour that does not exist (number -1).
        padded = np.concatenate([vertices, np.zeros_like(vertices[:1], shape=(1, vertices.shape[1]))])
        for axis in axes:
            before, after = self.neighbours[axis]
            padded[:-1] += 0.5 * (padded[before] + padded[after])
        return padded[:-1]

    def _slice(
        self,
        vertices: Floats,  # [M, V]
    ) -> Floats:  # [N, V]
        gain = 1.0 / (1.0 + 2.0**-self.n_dims)
        weights = gain * self.barycentric.astype(vertices.dtype)
        out = np.zeros((self.n_points, vertices.shape[1]), vertices.dtype)
        for corner in range(self.n_dims + 1):
            out += weights[:, corner, None] * vertices[self.vertex_of[:, corner]]
        return out


def elevate(
    features: Floats,  # [N, d]
) -> Floats:  # [N, d + 1], rows sum to 0
    """Map features to the hyperplane of the lattice (p. 5), scaled to its own blur (p. 6)."""
    n_points, d = features.shape
    kind = features.dtype.type
    gain = kind(np.sqrt(2.0 / 3.0) * (d + 1))
    elevated = np.empty((n_points, d + 1), features.dtype)
    total = np.zeros(n_points, features.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        for j in range(d, 0, -1):
            scaled = features[:, j - 1] * kind(1.0 / np.sqrt(j * (j + 1.0)) * float(gain))
            elevated[:, j] = total - kind(j) * scaled
            total = total + scaled
    elevated[:, 0] = total
    return elevated


def simplices(
    elevated: Floats,  # [N, d + 1]
) -> tuple[Indices, Indices, Floats]:
    """Find the simplex around each point (p. 4).

    Returns
    -------
    origin : ``[N, d + 1]``, the corner whose coordinates are all multiples of ``d + 1``
    order : ``[N, d + 1]``, ``order[:, r]`` is the coordinate of rank ``r``, largest residual first
    barycentric : ``[N, d + 1]``, weight of the corner with remainder ``k``
    """
    n_corners = elevated.shape[1]
    d = n_corners - 1
    kind = elevated.dtype.type
    down = kind(1.0) / kind(n_corners)
    rounded = np.rint(elevated * down)  # ties to even
    origin = rounded * kind(n_corners)
    # Stable: of equal residuals the earlier coordinate comes first.
    order = np.argsort(-(elevated - origin), axis=1, kind="stable")
    rank = np.argsort(order, axis=1)
    # Where the rounded coordinates do not sum to 0, walk back along those that rounding moved most.
    rank += rounded.sum(axis=1, keepdims=True).astype(rank.dtype)
    wrap = (rank < 0).astype(np.int64) - (rank > d)
    rank += wrap * n_corners
    origin += (wrap * n_corners).astype(elevated.dtype)
    order = np.argsort(rank, axis=1)
    # Barycentric coordinates are differences of the ordered residuals (p. 10).
    residual = np.take_along_axis((elevated - origin) * down, order, axis=1)
    barycentric = np.empty_like(residual)
    barycentric[:, 0] = residual[:, d] + (kind(1.0) - residual[:, 0])
    for k in range(1, n_corners):
        barycentric[:, k] = residual[:, d - k] - residual[:, d + 1 - k]
    return origin.astype(np.int64), order, barycentric


def corner_keys(
    origin: Indices,  # [N, d + 1]
    order: Indices,  # [N, d + 1]
) -> Indices:  # [N, d + 1, d]
    """Return the first d coordinates of every corner; the last one is implied by the sum.

    From the corner of remainder ``k`` to the next one is a step of +1 in every coordinate but -d in
    the one of rank ``d - k``. A corner is listed even where its weight is 0: which vertices exist
    decides how the blur spreads.
    """
    n_points, n_corners = origin.shape
    keys = np.empty((n_points, n_corners, n_corners), np.int64)
    key = origin.copy()
    rows = np.arange(n_points)
    for k in range(n_corners):
        keys[:, k] = key
        key += 1
        key[rows, order[:, n_corners - 1 - k]] -= n_corners
    return keys[:, :, :-1]


def _neighbours(
    vertices: Indices,  # [M, d]
    axis: int,
) -> tuple[Indices, Indices]:
    """Return the numbers of the vertices one step down and up an axis, -1 where there is none."""
    number_of = {tuple(vertex): number for number, vertex in enumerate(vertices.tolist())}
    d = vertices.shape[1]
    step = np.ones(d, np.int64)
    if axis < d:
        step[axis] = -d
    found = [
        np.array([number_of.get(tuple(key), -1) for key in (vertices + sign * step).tolist()], np.int64)
        for sign in (-1, 1)
    ]
    return found[0], found[1]


def gaussian_filter(
    features: Floats,  # [N, d]
    values: Floats,  # [N, V]
    block: int = 512,
) -> NDArray[np.float64]:  # [N, V]
    """Return the exact sum ``out_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j`` in float64, in O(N^2) time.

    The lattice approximates it up to a factor that depends on d and on the density of the points;
    after normalisation by the filter of ones the two are comparable.
    """
    f = features.astype(np.float64)
    v = values.astype(np.float64)
    squared = (f * f).sum(axis=1)
    out = np.empty(v.shape, np.float64)
    for first in range(0, len(f), block):
        own = slice(first, first + block)
        distance = squared[own, None] + squared[None, :] - 2.0 * (f[own] @ f.T)
        out[own] = np.exp(-0.5 * np.maximum(distance, 0.0)) @ v
    return out
