"""What training does when the GPU's memory does not hold a step: half of it at a time."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from napari_crfasrnn.encoder import STRIDE
from napari_crfasrnn.experts.sampling import Grid, Lay, Positions
from napari_crfasrnn.network import Fcn8s, Network
from napari_crfasrnn.training.planes import PixelSample, View


def fits(work: Callable[[], None]) -> bool:
    """Do some work; return False if memory ran out, with all that it held given back."""
    try:
        work()
    except torch.OutOfMemoryError:
        pass  # only once the handler has ended are the tensors of its traceback free
    else:
        return True
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False


class Portions:
    """Computes a batch at once, or in parts of it when memory ran out, from then on.

    Parameters
    ----------
    may_halve
        Whether parts are allowed.

    Attributes
    ----------
    limit
        Windows in a part at most; None as long as memory has not run out.
    """

    def __init__(self, *, may_halve: bool) -> None:
        self.limit: int | None = None
        self._may_halve = may_halve

    def run(self, n: int, begin: Callable[[], None], compute: Callable[[slice], None]) -> None:
        """Compute all ``n`` windows.

        Parameters
        ----------
        begin
            Called before the first part, each time that it is tried.
        compute
            Called with each part of the batch.

        Raises
        ------
        torch.OutOfMemoryError
            If there is not enough memory for a single window, or for all where parts are not allowed.
        """

        def attempt(size: int) -> None:
            begin()
            for start in range(0, n, size):
                compute(slice(start, start + size))

        size = n if self.limit is None else min(self.limit, n)
        while not fits(partial(attempt, size)):
            begin()
            if size == 1 or not self._may_halve:
                raise torch.OutOfMemoryError(
                    f"the GPU's memory does not hold {size} of the {n} windows of a batch: choose a smaller "
                    f"{'crop' if size == 1 else 'batch'}"
                )
            self.limit = size = -(-size // 2)


def halves(view: View, network: Network) -> list[tuple[View, Tensor, Tensor]]:
    """Cut a view with its input into two, across its longer side.

    Returns
    -------
    halves
        For each half that holds a pixel to learn: the view, and which of the training and of the untouched
        pixels are in it, as indices. Pixels whose interpolation crosses the cut are in neither. Empty if the
        view is too small to be cut.
    """
    assert view.input is not None
    sides = view.grid.input_size
    axis = 0 if sides[0] >= sides[1] else 1
    cut = round(sides[axis] / 2 / STRIDE) * STRIDE  # a multiple of every stride: cells stay where they were
    if not 0 < cut < sides[axis]:
        return []
    stride = 1 if isinstance(network, Fcn8s) else network.stride
    cells = Lay.of_encoder(view.grid, stride).size
    found = []
    for first, last in ((0, cut), (cut, sides[axis])):
        size = (last - first, sides[1]) if axis == 0 else (sides[0], last - first)
        grid = Grid(view.grid.image_size, size)
        part = _Part(axis, first // stride, Lay.of_encoder(grid, stride).size[axis])
        training, mine = _inside(view.training, cells, part)
        untouched, free = _inside(view.untouched, cells, part)
        if len(training):
            half = replace(
                view,
                grid=grid,
                input=view.input.narrow(2 + axis, first, last - first).contiguous(),
                training=training,
                untouched=untouched,
                n_untouched=round(view.n_untouched * len(untouched) / max(1, len(view.untouched))),
            )
            found.append((half, mine, free))
    return found


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
