"""Logits of a network at single pixels of an image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn.experts.sampling import Grid, Lay, Positions, locate_cells
from napari_crfasrnn.network import Fcn8s, Features, LiteNetwork, Network


def score_map(network: Network, features: Features, grid: Grid) -> Tensor:  # [L, gh, gw]
    """Return the logits of one image at the network's own resolution."""
    if isinstance(network, LiteNetwork):
        return network.decode_coarse(features)[0]
    return network.decode(features, grid.input_size)[0]


def locate(
    network: Network,
    grid: Grid,
    y: NDArray[np.integer],  # [N]
    x: NDArray[np.integer],  # [N]
    *,
    mirrored: bool = False,
) -> Positions:
    """Return pixels of an image as positions in its score map.

    Parameters
    ----------
    y, x
        Rows and columns in the image.
    mirrored
        Whether the network reads the image with left and right exchanged.
    """
    if mirrored:
        x = grid.image_size[1] - 1 - x
    stride = 1 if isinstance(network, Fcn8s) else network.stride
    return locate_cells(grid, y, x, Lay.of_encoder(grid, stride))
