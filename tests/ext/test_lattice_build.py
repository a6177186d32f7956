"""How the compiled lattice is built: around pixels, in runs of points, with any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from napari_crfasrnn._ext import _lattice
from napari_crfasrnn._reference import ReferenceLattice
from napari_crfasrnn.lattice import Lattice, order_pixels, set_num_threads
from napari_crfasrnn.mean_field import DifferentiableMeanField, MeanField


@pytest.fixture
def threads() -> Iterator[None]:
    yield
    set_num_threads(0)


def blobs(n_channels: int, *space: int) -> torch.Tensor:  # [C, N]
    """Return an image with flat parts, edges and noise, in 0..255."""
    generator = torch.Generator().manual_seed(n_channels)
    coarse = torch.rand(1, n_channels, *(2 + size // 24 for size in space), generator=generator)
    image = 255.0 * torch.nn.functional.interpolate(coarse, space).flatten(2)[0]
    return (image + 3.0 * torch.randn(image.shape, generator=generator)).clamp(0.0, 255.0).round()


def features_of(
    image: torch.Tensor,
    space: tuple[int, ...],
    order: torch.Tensor,
    position_width: float,
    colour_width: float,
) -> torch.Tensor:  # [N, S + C]
    axes = torch.meshgrid(*(torch.arange(size, dtype=torch.float32) for size in space), indexing="ij")
    position = torch.stack([axis.flatten() for axis in reversed(axes)], dim=1)
    return torch.cat([position / position_width, image.T / colour_width], dim=1)[order].contiguous()


@pytest.mark.parametrize(
    ("n_channels", "space"),
    [
        *((3, (130, 97)), (1, (70, 66)), (2, (9, 20, 30)), (4, (300,)), (5, (1, 1))),
        # In the plane: a cell for every vertex that may be.
        *((0, (130, 97)), (0, (1, 500)), (0, (500, 1)), (1, (300,))),
    ],
)
def test_pixels_are_points_with_their_features(n_channels: int, space: tuple[int, ...]) -> None:
    image = blobs(n_channels, *space) if n_channels else torch.empty(0, int(np.prod(space)))
    order = order_pixels(image, space, colour_step=12.0)
    assert torch.equal(order.sort().values, torch.arange(len(order)))
    of_pixels = Lattice.of_pixels(image, space, order, position_width=7.0, colour_width=5.0)
    of_features = Lattice(features_of(image, space, order, 7.0, 5.0), backend="cpu")
    assert (of_pixels.n_points, of_pixels.n_dims) == (of_features.n_points, of_features.n_dims)
    assert of_pixels.n_vertices == of_features.n_vertices
    values = torch.randn(len(order), 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(of_pixels.filter(values), of_features.filter(values))


@pytest.mark.parametrize("position_width", [0.25, 1.0, 1.7, 3.0, 40.0])
@pytest.mark.usefixtures("threads")
def test_planes_are_numbered_with_or_without_hashing(position_width: float) -> None:
    space = (190, 201)  # too many cells for the smallest width
    image = torch.empty(0, 190 * 201)
    order = order_pixels(image, space, colour_step=1.0)
    of_features = Lattice(features_of(image, space, order, position_width, 1.0), backend="cpu")
    values = torch.randn(len(order), 3, generator=torch.Generator().manual_seed(0))
    expected = of_features.filter(values)
    for n_threads in (1, 2, 3):
        set_num_threads(n_threads)
        of_pixels = Lattice.of_pixels(image, space, order, position_width=position_width)
        assert of_pixels.n_vertices == of_features.n_vertices
        assert torch.equal(of_pixels.filter(values), expected)


@pytest.mark.parametrize("n_channels", [0, 3])
def test_building_tells_how_far_it_is_and_can_be_stopped(n_channels: int) -> None:
    space = (600, 700)  # two times 64 runs of 4096 points
    image = blobs(n_channels, *space) if n_channels else torch.empty(0, 600 * 700)
    order = order_pixels(image, space, colour_step=12.0)
    widths = {"position_width": 20.0, "colour_width": 30.0}
    told: list[tuple[int, int]] = []
    Lattice.of_pixels(image, space, order, **widths, on_step=lambda done, total: told.append((done, total)))
    assert told == sorted(told)  # what takes long is told of more than once
    assert set(told) - {(0, 6)} == {(done, 6) for done in range(1, 7)}

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        if done == wanted:
            raise KeyboardInterrupt

    for wanted in (1, 3, 6):
        told.clear()
        with pytest.raises(KeyboardInterrupt):
            Lattice.of_pixels(image, space, order, **widths, on_step=stop)
        assert set(told) - {(0, 6)} == {(done, 6) for done in range(1, wanted + 1)}


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.usefixtures("threads")
def test_long_work_asks_in_between_whether_to_go_on(n_threads: int) -> None:
    set_num_threads(n_threads)
    space = (2400, 3000)  # what is asked for takes two to ten times the 50 ms between questions
    image = blobs(3, *space)
    asked: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        asked.append((done, total))
        raise KeyboardInterrupt

    large = (2 * space[0], 2 * space[1])  # ordering is quick
    with pytest.raises(KeyboardInterrupt):
        order_pixels(image.repeat(1, 4), large, colour_step=12.0, on_step=stop)
    order = order_pixels(image, space, colour_step=12.0)
    near = Lattice.of_pixels(image[:0], space, order, position_width=1.0)
    if n_threads == 1:
        with pytest.raises(KeyboardInterrupt):
            near.row_sums(on_step=stop)
    assert set(asked) == {(0, 1)}
    after = 1.0 / near.row_sums().flatten()
    if n_threads == 1:
        asked.clear()
        for kind in (MeanField, DifferentiableMeanField):
            with pytest.raises(KeyboardInterrupt):
                kind(near, near, (after, after), (after, after), pixel_of=order, space=space, on_step=stop)
        assert asked == [(0, 1)] * 2
    field = MeanField(near, near, (None, after), (None, after), pixel_of=order, space=space, averages=True)
    for n_labels in (2, 3):
        unary = torch.zeros(n_labels, len(order))
        maps = {"spatial_map": -torch.eye(n_labels), "bilateral_map": -torch.eye(n_labels)}
        asked.clear()
        with pytest.raises(KeyboardInterrupt):
            field.run(unary, **maps, unary_scale=1.0, output_scale=1.0, n_iterations=2, on_iteration=stop)
        assert asked == [(0, 2)]


@pytest.mark.parametrize("n_dims", [2, 5])
def test_row_sums_are_the_filter_of_ones(n_dims: int) -> None:
    points = torch.randn(9000, n_dims, generator=torch.Generator().manual_seed(1))
    lattice = Lattice(points, backend="cpu")
    assert torch.equal(lattice.row_sums(), lattice.filter(torch.ones(9000, 1)))
    reference = Lattice(points[:500], backend="reference")
    assert torch.allclose(reference.row_sums(), Lattice(points[:500], backend="cpu").row_sums(), rtol=1e-5)


@pytest.mark.parametrize("n_points", [4095, 4096, 4097, 3 * 4096 + 5])
@pytest.mark.parametrize("n_dims", [2, 5, 7])
@pytest.mark.usefixtures("threads")
def test_runs_of_points_are_joined_in_order(n_points: int, n_dims: int) -> None:
    generator = torch.Generator().manual_seed(n_points)
    # Few vertices for many points, and a run in which every point has new ones.
    points = torch.randn(n_points, n_dims, generator=generator)
    points[4000:] *= 30.0
    values = torch.randn(n_points, 2, generator=generator)
    results = []
    for n_threads in (1, 2, 3):
        set_num_threads(n_threads)
        lattice = Lattice(points, backend="cpu")
        results.append((lattice.n_vertices, lattice.filter(values)))
    for n_vertices, filtered in results[1:]:
        assert n_vertices == results[0][0]
        assert torch.equal(filtered, results[0][1])
    reference = ReferenceLattice(points.numpy())
    assert results[0][0] == reference.n_vertices
    expected = torch.from_numpy(reference.filter(values.numpy()))
    assert torch.allclose(results[0][1], expected, atol=2e-5 * float(expected.abs().max()))


def test_pixels_that_do_not_fit() -> None:
    image = np.zeros((3, 12), np.float32)
    order = np.arange(12, dtype=np.uint32)
    widths = {"position_width": 3.0, "colour_width": 3.0}
    with pytest.raises(ValueError, match="multiply to N"):
        _lattice.Lattice.of_pixels(image, [3, 5], pixel_of=order, **widths)
    with pytest.raises(ValueError, match="below N"):
        _lattice.Lattice.of_pixels(image, [3, 4], pixel_of=order + 1, **widths)
    with pytest.raises(ValueError, match="d <= 16"):
        _lattice.Lattice.of_pixels(np.zeros((15, 12), np.float32), [3, 4], pixel_of=order, **widths)
    image[1, 7] = np.nan
    with pytest.raises(ValueError, match="finite"):
        _lattice.Lattice.of_pixels(image, [3, 4], pixel_of=order, **widths)
    image[1, 7] = 1e8
    with pytest.raises(ValueError, match="too large"):
        _lattice.Lattice.of_pixels(image, [3, 4], pixel_of=order, **widths)


def test_a_mean_field_takes_only_orders_that_leave_pixels_in_their_squares() -> None:
    space = (3, 130)
    image = torch.rand(1, 390)
    order = order_pixels(image, space, colour_step=0.1)
    near, alike = (
        Lattice.of_pixels(image[:c], space, order, position_width=3.0, colour_width=0.1) for c in (0, 1)
    )
    none = (None, None)
    MeanField(near, alike, none, none, pixel_of=order, space=space)
    swapped = order.clone()
    swapped[[0, -1]] = order[[-1, 0]]  # pixels of the first square and of the last
    doubled = order.clone()
    doubled[1] = order[0]
    for wrong in (swapped, doubled, order + 1, order - 1):
        with pytest.raises(ValueError, match="permutation"):
            MeanField(near, alike, none, none, pixel_of=wrong, space=space)
    with pytest.raises(ValueError, match="space"):
        MeanField(near, alike, none, none, pixel_of=order, space=(3, 131))
