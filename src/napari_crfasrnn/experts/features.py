"""What the experts see of a pixel: colours, edges and ridges at several blurs, and the encoder's maps.

The head of a network sees everything through features of stride 8 and deeper. What tells a membrane from
the cell beside it is finer than that. So the experts read the encoder's early maps, too, and features made
by hand, which know nothing and therefore are the same in every kind of image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from napari_crfasrnn.edits import Box
from napari_crfasrnn.encoder import FINE_BLOCKS, fill_up
from napari_crfasrnn.experts.classic import KINDS, NARROW, WIDE, classic_maps
from napari_crfasrnn.experts.sampling import Grid, Lay, around, locate_cells, values_at
from napari_crfasrnn.fcn import Features, LiteNetwork
from napari_crfasrnn.progress import Cancel

CLASSIC = 1
"""The stride that stands for the hand-made features."""
AROUND = {108: 8, 116: 16}
"""Groups that say what a place is like around → stride of the map that is blurred for it."""
GROUPS = {CLASSIC: 3 * KINDS * len(NARROW + WIDE), 2: 16, 4: 24, 8: 40, 16: 112, 32: 320, 108: 40, 116: 112}
"""Each group of features, by the stride of its map or as in `AROUND` → number of features."""

FINE, DEEP = (CLASSIC, 2, 4, 8, 16), (8, 16, 32, *AROUND)
"""Groups that trees read, and groups so coarse that perceptrons read them a cell at a time."""

STRIDES = {0: 2, 2: 4, 4: 8, 10: 16, 15: 32}
"""Blocks of the encoder → the strides of their outputs."""
VALUES = (-1.5, 1.5)
"""Range of the values of a stretched image."""
_RANGE = (0.5, 99.5)  # percentiles of an image that become -1 and 1
_AROUND_BLUR = 3.0  # cells
_SMALLEST_RANGE = 0.15  # of values that span 2: below, there is only noise to be seen
_RANGE_STEP, _RANGE_PIXELS = 2, 1 << 20  # the range is measured at every second row and column, or at so many
_WHOLE_UP_TO = 1280 * 1280  # pixels of the input whose maps are made at once: some 160 bytes each
_PART_SIDE = 1024  # pixels of the input, of the parts of larger ones
_MARGIN = 128  # pixels around a part that its maps see, too


@dataclass(frozen=True, eq=False)
class Layer:
    """Features on a grid of cells.

    Attributes
    ----------
    values
        [rows, columns, C].
    lay
        Where the cells are.
    """

    values: Tensor
    lay: Lay


class FeatureMaps:
    """The feature maps of one image.

    Parameters
    ----------
    network
        Whose encoder gives the maps of stride 2 to 32.
    seen
        [1, 3, h, w], what the network reads.
    image_size
        Height and width of the image, of which ``seen`` may be a shrunk copy.
    cancel
        Asked between parts of the work.
    box
        (y0, x0, y1, x1) the part of the image that features will be asked of, the end excluded; None: all of
        it. Places are those in the whole image all the same, and its range of brightness counts.

    Raises
    ------
    Cancelled
        When asked to stop.
    """

    def __init__(
        self,
        network: LiteNetwork,
        seen: Tensor,
        image_size: tuple[int, int],
        cancel: Cancel | None = None,
        box: Box | None = None,
    ) -> None:
        self._network, self._cancel = network, cancel
        input_size = (int(seen.shape[-2]), int(seen.shape[-1]))
        self.grid = Grid(image_size, input_size)
        if box is not None:
            self.grid = Grid.about(image_size, input_size, box, _MARGIN)
        y0, x0, _, _ = self.grid.box
        with torch.no_grad():
            self._seen = seen = stretched(seen, self.grid.box)
            narrow, wide = (each.cpu() for each in classic_maps(seen[0], cancel))
            self._layers: dict[int, list[Layer]] = {
                stride: [Layer(values.movedim(0, -1).contiguous(), Lay.of_encoder(self.grid, stride))]
                for stride, values in _encoded(network, seen, cancel).items()
            }
        half = Lay(2, (y0 + 0.5, x0 + 0.5), (wide.shape[-2], wide.shape[-1]))
        self._layers[CLASSIC] = [
            Layer(narrow.movedim(0, -1).contiguous(), Lay.of_encoder(self.grid, 1)),
            Layer(wide.movedim(0, -1).contiguous(), half),
        ]

    def at(self, y: NDArray[np.integer], x: NDArray[np.integer], groups: Sequence[int]) -> Tensor:
        """Return the features [N, d] of some pixels of the image, one group after the other."""
        parts = []
        for layer in self._layers_of(groups):
            positions = locate_cells(self.grid, y, x, layer.lay)
            parts.append(values_at(layer.values.movedim(-1, 0), positions))
        return torch.cat(parts, dim=1)

    def on_grid(
        self, rows: NDArray[np.integer], columns: NDArray[np.integer], groups: Sequence[int]
    ) -> Tensor:
        """Return the features [rows × columns, d] of all pixels in some rows and columns."""
        layers = self._layers_of(groups)
        width = sum(layer.values.shape[-1] for layer in layers)
        found = torch.empty(len(rows), len(columns), width)
        start = 0
        for layer in layers:
            stop = start + layer.values.shape[-1]
            self.spread(layer, rows, columns, out=found[..., start:stop])
            start = stop
        return found.flatten(0, 1)

    def layer(self, group: int) -> Layer:
        """Return the map of a group that has but one: of the encoder, or one of these blurred."""
        (layer,) = self._layers_of([group])
        return layer

    @cached_property
    def mirrored(self) -> Features:
        """The encoder's maps of the strides 2 to 16 of the image's mirror image, left to right.

        Made when first asked for, by heads only.

        Raises
        ------
        Cancelled
            When asked to stop.
        """
        whole = fill_up(self._seen.flip(-1)).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            return self._network.encoder.maps(whole, FINE_BLOCKS, self._cancel)

    def spread(
        self,
        layer: Layer,
        rows: NDArray[np.integer],
        columns: NDArray[np.integer],
        out: Tensor | None = None,
    ) -> Tensor:  # [rows, columns, C]
        """Return the values of a map at all pixels in some rows and columns, one axis after the other."""
        y = [torch.from_numpy(each) for each in around(self.grid, layer.lay, rows, 0)]
        x = [torch.from_numpy(each) for each in around(self.grid, layer.lay, columns, 1)]
        return _interpolated(layer.values, y, x, out)

    def joined(self, layers: Sequence[Layer]) -> Layer:
        """Return the sum of maps of some strides as one map of the finest of them.

        Cells of stride 2s lie where every second one of stride s does, and between cells maps are
        interpolated: so the sum of the maps at any pixel is this map there.
        """
        finest = min(layers, key=lambda layer: layer.lay.stride)
        total = finest.values.clone()
        for layer in layers:
            if layer is finest:
                continue
            rows, columns = (
                [
                    torch.from_numpy(each)
                    for each in layer.lay.between(
                        finest.lay.first[axis] + finest.lay.stride * np.arange(finest.lay.size[axis]), axis
                    )
                ]
                for axis in (0, 1)
            )
            total += _interpolated(layer.values, rows, columns)
        return Layer(total, finest.lay)

    def _layers_of(self, groups: Sequence[int]) -> list[Layer]:
        for group in AROUND.keys() & set(groups) - self._layers.keys():  # made when first asked for
            (layer,) = self._layers[AROUND[group]]
            blur = (_AROUND_BLUR, _AROUND_BLUR, 0)
            blurred = gaussian_filter(layer.values.numpy(), blur, mode="nearest")
            self._layers[group] = [Layer(torch.from_numpy(blurred), layer.lay)]
        return [layer for group in groups for layer in self._layers[group]]


def _interpolated(
    values: Tensor, y: Sequence[Tensor], x: Sequence[Tensor], out: Tensor | None = None
) -> Tensor:  # [rows, columns, C]
    """Return the values of a map between cells: those before and after, and how far from the former."""
    (y0, y1, fy), (x0, x1, fx) = y, x
    lines = torch.lerp(values[y0], values[y1], fy.float()[:, None, None])
    return torch.lerp(lines[:, x0], lines[:, x1], fx.float()[:, None], out=out)


def first_column(group: int) -> int:
    """Return where a group starts in rows that hold all groups, or the first of them."""
    return sum(width for other, width in GROUPS.items() if other < group)


def column_index(groups: Sequence[int]) -> NDArray[np.int32]:
    """Return where each feature of some groups is in rows that hold all groups, or the first of them."""
    parts = [first_column(group) + np.arange(GROUPS[group], dtype=np.int32) for group in groups]
    return np.concatenate(parts)


def columns(rows: Tensor, groups: Sequence[int]) -> Tensor:  # [N, d] → [N, d']
    """Return the features of some groups from rows that hold all of them."""
    parts = [rows[:, first_column(group) : first_column(group) + GROUPS[group]] for group in groups]
    return torch.cat(parts, dim=1)


def parts_to_read(image_size: tuple[int, int], input_size: tuple[int, int]) -> list[Box]:
    """Return the parts of an image whose maps are made one after the other, where there are many pixels.

    They have even corners, so that every second row and column of them all is one grid.
    """
    if math.prod(input_size) <= _WHOLE_UP_TO:
        return [(0, 0, *image_size)]
    rows, columns = (
        [
            *range(0, image_side, 2 * math.ceil(image_side / (2 * math.ceil(input_side / _PART_SIDE)))),
            image_side,
        ]
        for image_side, input_side in zip(image_size, input_size, strict=True)
    )
    return [(y0, x0, y1, x1) for y0, y1 in pairwise(rows) for x0, x1 in pairwise(columns)]


def stretched(seen: Tensor, box: Box | None = None) -> Tensor:
    """Return an image that uses the whole range of values, -1 to 1, its colours in proportion.

    With a box, (y0, x0, y1, x1), that part of it, in the range of the whole.

    One micrograph is often several times brighter than the next, and all that was learnt of one by its
    brightness would be wrong in the other.
    """
    step = max(_RANGE_STEP, math.isqrt(seen.shape[-2] * seen.shape[-1] // _RANGE_PIXELS))
    low, high = np.percentile(seen[..., ::step, ::step].cpu().numpy(), _RANGE).tolist()
    width = max(high - low, _SMALLEST_RANGE)
    y0, x0, y1, x1 = box or (0, 0, *seen.shape[-2:])
    wide: Tensor = ((seen[..., y0:y1, x0:x1] - low) * (2 / width) - 1).clamp(*VALUES)
    return wide


def _encoded(network: LiteNetwork, seen: Tensor, cancel: Cancel | None) -> dict[int, Tensor]:
    maps = network.encoder.maps(fill_up(seen), tuple(STRIDES), cancel)
    return {stride: each[0].cpu() for stride, each in zip(STRIDES.values(), maps, strict=True)}
