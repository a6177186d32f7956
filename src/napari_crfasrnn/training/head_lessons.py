"""What a head learns from a view: all of it, or parts where memory or time does not allow for more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from napari_crfasrnn.encoder import STRIDE
from napari_crfasrnn.experts.sampling import Grid, Lay, Positions
from napari_crfasrnn.network import Fcn8s, Features, Network
from napari_crfasrnn.training.planes import PixelSample, View
from napari_crfasrnn.training.teacher import Advice


@dataclass(frozen=True, eq=False)
class Lesson:
    """A view with what there is to learn of it.

    Attributes
    ----------
    view
        With the pixels.
    weight
        [N] of each labelled pixel, by its class.
    advice
        What its untouched pixels should become; None if nobody knows.
    say
        How much all labelled pixels count together: see `weighed`.
    """

    view: View
    weight: Tensor
    advice: Advice | None
    say: float = 1.0

    def split(self, network: Network) -> list[Lesson]:
        """Return its halves; none if it is too small to be cut."""
        found = []
        for view, mine, free in halves(self.view, network):
            advice = self.advice
            some = None if advice is None else Advice(advice.marginals[free], advice.weight[free])
            found.append(Lesson(view, self.weight[mine], some))
        return found

    def within(self, network: Network, n_cells: int) -> list[Lesson]:
        """Return it in parts of so many cells of the network's finest map at most, as far as it can be cut.

        It is not cut where all labels of a class would lie on the cut, which no part would teach.
        """
        height, width = _n_cells(self.view, network)
        parts = self.split(network) if height * width > n_cells else []
        left = {value for part in parts for value in part.view.training.target.tolist()}
        if left != set(self.view.training.target.tolist()):
            return [self]
        return [small for part in parts for small in part.within(network, n_cells)] or [self]


def weighed(lessons: Sequence[Lesson]) -> list[Lesson]:
    """Return lessons that know their say: a view with more labels has more, but not by their area."""
    sums = [float(each.weight.sum()) for each in lessons]
    mean = sum(sums) / max(1, len(sums))
    return [replace(each, say=(total / mean) ** 0.5) for each, total in zip(lessons, sums, strict=True)]


def halves(view: View, network: Network) -> list[tuple[View, Tensor, Tensor]]:
    """Cut a view into two, across its longer side.

    Returns
    -------
    halves
        For each half that holds a pixel: the view, and which of the training and of the untouched
        pixels are in it, as indices. Pixels whose interpolation crosses the cut are in neither. Empty if the
        view is too small to be cut.
    """
    sides = view.grid.input_size
    axis = 0 if sides[0] >= sides[1] else 1
    cut = round(sides[axis] / 2 / STRIDE) * STRIDE  # a multiple of every stride: cells stay where they were
    if not 0 < cut < sides[axis]:
        return []
    stride, cells = _stride(network), _n_cells(view, network)
    found = []
    for first, last in ((0, cut), (cut, sides[axis])):
        size = (last - first, sides[1]) if axis == 0 else (sides[0], last - first)
        grid = Grid(view.grid.image_size, size)
        part = _Part(axis, first // stride, Lay.of_encoder(grid, stride).size[axis])
        training, mine = _inside(view.training, cells, part)
        untouched, free = _inside(view.untouched, cells, part)
        if len(training) or len(untouched):
            half = replace(
                view,
                grid=grid,
                input=None if view.input is None else _cut(view.input, axis, first, last),
                features=None if view.features is None else _cut_maps(view, axis, first, last),
                training=training,
                untouched=untouched,
                n_untouched=round(view.n_untouched * len(untouched) / max(1, len(view.untouched))),
            )
            found.append((half, mine, free))
    return found


def _cut(values: Tensor, axis: int, first: int, last: int) -> Tensor:
    return values.narrow(2 + axis, first, last - first).contiguous()


def _cut_maps(view: View, axis: int, first: int, last: int) -> Features:
    """Return the features of the rows (axis 0) or columns (1) of a view from ``first`` to ``last``."""
    assert view.features is not None
    side = view.grid.input_size[axis]
    filled = -(-side // STRIDE) * STRIDE  # the encoder reads full multiples
    found = []
    for values in view.features:
        stride = filled // values.shape[2 + axis]
        end = values.shape[2 + axis] if last == side else last // stride
        found.append(_cut(values, axis, first // stride, end))
    return tuple(found)


def _stride(network: Network) -> int:
    return 1 if isinstance(network, Fcn8s) else network.stride


def _n_cells(view: View, network: Network) -> tuple[int, int]:
    """Return rows and columns of the network's finest map."""
    return Lay.of_encoder(view.grid, _stride(network)).size


@dataclass(frozen=True)
class _Part:
    """Some rows (axis 0) or columns (1) of a map: how many, from which on."""

    axis: int
    start: int
    count: int


def _inside(sample: PixelSample, size: tuple[int, int], part: _Part) -> tuple[PixelSample, Tensor]:
    """Return the pixels whose cells in a map of some size all lie in a part of it, as pixels of the part."""
    cells, width = sample.positions.cells, size[1]
    places = [cells // width, cells % width]
    along = places[part.axis] - part.start
    chosen = ((along >= 0) & (along < part.count)).all(0).nonzero()[:, 0]
    places[part.axis] = along
    cells = places[0] * (width if part.axis == 0 else part.count) + places[1]
    positions = Positions(cells[:, chosen], sample.positions.weights[:, chosen])
    return PixelSample(positions, sample.place[chosen], sample.target[chosen]), chosen
