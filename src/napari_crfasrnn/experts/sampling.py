"""Feature maps read at single pixels of an image, without computing those of all the others.

A map of some stride is coarser than the image; bilinear interpolation at a pixel needs four of its cells.
So a loss on a few thousand labelled pixels, at full resolution, costs next to nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn.edits import Box
from napari_crfasrnn.encoder import STRIDE


@dataclass(frozen=True)
class Grid:
    """Where the cells of a network's maps lie in an image.

    Attributes
    ----------
    image_size, input_size
        Height and width of the image, and of what the network reads (the image shrunk).
    part
        (y0, x0, y1, x1) the part of the input that maps are made of, the end excluded; None: all of it. It
        begins at multiples of 32, so that cells lie where they would lie in maps of all of it.
    """

    image_size: tuple[int, int]
    input_size: tuple[int, int]
    part: Box | None = None

    @classmethod
    def about(cls, image_size: tuple[int, int], input_size: tuple[int, int], box: Box, margin: int) -> Grid:
        """Return the grid of what shows a box of the image, and so many pixels of the input around it."""
        starts, ends = [], []
        for axis, (image_side, input_side) in enumerate(zip(image_size, input_size, strict=True)):
            start = box[axis] * input_side // image_side
            end = math.ceil(box[axis + 2] * input_side / image_side)
            starts.append(max(0, start - margin) // STRIDE * STRIDE)
            ends.append(min(input_side, end + margin))
        return cls(image_size, input_size, (starts[0], starts[1], ends[0], ends[1]))

    @property
    def box(self) -> Box:
        """The part of the input that maps are made of."""
        return self.part or (0, 0, *self.input_size)


@dataclass(frozen=True)
class Positions:
    """Pixels of an image as interpolation from a flattened map.

    Attributes
    ----------
    cells
        [4, N] the cells around each pixel.
    weights
        [4, N] how much each counts.
    """

    cells: Tensor
    weights: Tensor

    def select(self, chosen: Tensor) -> Positions:
        """Return some of the positions."""
        return Positions(self.cells[:, chosen], self.weights[:, chosen])

    def to(self, device: torch.device) -> Positions:
        """Return the positions on a device."""
        return Positions(self.cells.to(device), self.weights.to(device))

    def __len__(self) -> int:
        return self.cells.shape[1]


@dataclass(frozen=True)
class Lay:
    """How the cells of a map lie in a network's input.

    Attributes
    ----------
    stride
        Pixels from a cell to the next.
    first
        Where the centre of the first cell is, row and column in pixels.
    size
        Rows and columns of cells.
    """

    stride: int
    first: tuple[float, float]
    size: tuple[int, int]

    @classmethod
    def of_encoder(cls, grid: Grid, stride: int) -> Lay:
        """Return the lay of a map of the `LiteNetwork` encoder, stride 2 to 32; 1 is the input itself."""
        y0, x0, y1, x1 = grid.box
        last = stride - 1  # cell i sits at its last pixel, see `fcn.enlarge`
        return cls(stride, (y0 + last, x0 + last), (_n_cells(y1 - y0, stride), _n_cells(x1 - x0, stride)))

    @classmethod
    def of_mirrored(cls, grid: Grid, stride: int) -> Lay:
        """Return the lay of such a map of the input's mirror image, its columns put back in their order."""
        lay = cls.of_encoder(grid, stride)
        # The last of n columns sits s n - 1 pixels from the left of the mirror image.
        return cls(stride, (lay.first[0], grid.box[3] - stride * lay.size[1]), lay.size)

    def between(
        self, at: NDArray[np.floating], axis: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Return the cells before and after pixels of the input, and how far each is from the former."""
        last = self.size[axis] - 1
        place = np.clip((at - self.first[axis]) / self.stride, 0, last)
        before = np.floor(place).astype(np.int64)
        return before, np.minimum(before + 1, last), place - before


def locate_cells(
    grid: Grid,
    y: NDArray[np.integer],  # [N]
    x: NDArray[np.integer],  # [N]
    lay: Lay,
) -> Positions:
    """Return pixels of an image as positions in a map."""
    (y0, y1, fy), (x0, x1, fx) = (around(grid, lay, place, axis) for axis, place in enumerate((y, x)))
    width = lay.size[1]
    cells = np.stack([y0 * width + x0, y0 * width + x1, y1 * width + x0, y1 * width + x1])
    weights = np.stack([(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx])
    return Positions(torch.from_numpy(cells), torch.from_numpy(weights.astype(np.float32)))


def values_at(values: Tensor, positions: Positions) -> Tensor:  # [C, gh, gw] → [N, C]
    """Return the values of a map at the positions, differentiable with respect to the map."""
    flat = values.flatten(1).T  # [cells, C]
    found: Tensor = _Interpolate.apply(flat, positions.cells, positions.weights)  # type: ignore[no-untyped-call]
    return found


def _n_cells(side: int, stride: int) -> int:
    """Return how many cells a side of a map has; the input is padded to a multiple of the last stride."""
    return side if stride == 1 else -(-side // STRIDE) * (STRIDE // stride)


def around(
    grid: Grid, lay: Lay, place: NDArray[np.integer], axis: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the cells before and after rows (axis 0) or columns (1), and how far it is from the former."""
    image_side, input_side = grid.image_size[axis], grid.input_size[axis]
    # Pixel centres of the image in pixels of the input, as `interpolate` without aligned corners has it.
    at = np.clip((place + 0.5) * input_side / image_side - 0.5, 0, input_side - 1)
    return lay.between(at, axis)


class _Interpolate(torch.autograd.Function):
    """Weighted sums of rows; its backward adds in a fixed order, so training repeats to the last bit."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, cells: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(cells, weights)
        ctx.n_cells = flat.shape[0]
        taken = flat.index_select(0, cells.reshape(-1)) * weights.reshape(-1, 1)
        return taken.view(*cells.shape, taken.shape[1]).sum(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        cells, weights = ctx.saved_tensors
        spread = (gradient[None] * weights[..., None]).reshape(-1, gradient.shape[1])
        flat = gradient.new_zeros(ctx.n_cells, gradient.shape[1])
        return flat.index_add_(0, cells.reshape(-1), spread), None, None
