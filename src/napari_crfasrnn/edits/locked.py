"""The locked share: labelled pixels that no round ever trains on, and that tell whether a round helped.

Which pixels are locked depends on their place alone: the plane is cut into square cells, and a cell is
locked where a low-discrepancy sequence over the cells falls below the share. So no record is needed:
the same places stay locked in every later round, however much is painted, and what is locked was never
trained on. (One exception: a class with almost no labels keeps them all for training; the few of them in
locked cells become locked once the class has grown.) A strip next to each locked cell is left out of
training, because a pixel whose neighbour was trained on says little.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from napari_crfasrnn.classes import ignore_value
from napari_crfasrnn.edits.comparison import Labels, Mask

_MIN_CELL = 12  # pixels; smaller cells would hold back parts of single brush dabs
_CELLS_PER_SIDE = 32  # larger images have larger objects, so their cells grow
_MIN_TRAINING_PIXELS = 32  # of a class and plane; a class with fewer keeps all its labels for training

# The two-dimensional golden ratio (Roberts 2018, "The unreasonable effectiveness of quasirandom
# sequences"): every row, column and block of cells holds close to its fair share of locked ones.
_PLASTIC = 1.32471795724474602596
_STEP_Y, _STEP_X = 1 / _PLASTIC, 1 / _PLASTIC**2


def locked_cells(
    shape: tuple[int, int],
    share: float,
    *,
    seed: int = 0,
    key: str = "",
) -> NDArray[np.bool_]:  # [H, W]
    """Return which places of a plane are locked, whether or not anything is labelled there.

    Parameters
    ----------
    shape
        Height and width, in pixels.
    share
        Share of the plane to lock, 0 up to (not including) 1.
    seed, key
        Shift the pattern: one seed for a project, one key for each of its images. All slices of a
        stack take the same key, because neighbouring slices look alike.

    Raises
    ------
    ValueError
        If the share is out of range.
    """
    grid, y_cell, x_cell = _cells(shape, share, seed, key)
    return grid[y_cell[:, None], x_cell[None, :]]


def split_locked(
    target: Labels,  # [H, W]
    share: float,
    *,
    seed: int = 0,
    key: str = "",
) -> tuple[Labels, Labels]:  # each [H, W]
    """Split the labelled pixels of a plane into those to train on and those to hold back.

    A class keeps at least its pixels outside the locked cells for training; where those are too few,
    nothing of it is held back. When labels only grow, locked pixels stay locked.

    Parameters
    ----------
    target
        Class of each pixel, the ignore value where unlabelled.
    share, seed, key
        As in `locked_cells`.

    Returns
    -------
    training, locked
        Targets with everything else set to the ignore value. No pixel is in both.
    """
    if target.ndim != 2:
        raise ValueError(f"target must be a plane [H, W], got shape {target.shape}: pass one slice at a time")
    shape = (target.shape[0], target.shape[1])
    grid, y_cell, x_cell = _cells(shape, share, seed, key)
    ignore = target.dtype.type(ignore_value(target.dtype))
    labelled = target != ignore
    candidates = grid[y_cell[:, None], x_cell[None, :]] & labelled
    classes = np.unique(target[labelled])
    free = np.bincount(target[labelled & ~candidates], minlength=int(ignore) + 1)
    spared = np.zeros(int(ignore) + 1, dtype=bool)
    spared[classes] = free[classes] < _MIN_TRAINING_PIXELS
    held = candidates & ~spared[target]

    strip = _strip(held, y_cell, x_cell, grid.shape)
    train = labelled & ~held & ~strip
    left = np.bincount(target[train], minlength=int(ignore) + 1)
    needy = np.zeros(int(ignore) + 1, dtype=bool)
    needy[classes] = left[classes] < _MIN_TRAINING_PIXELS
    train |= labelled & ~held & needy[target]
    return np.where(train, target, ignore), np.where(held, target, ignore)


def _cells(
    shape: tuple[int, int], share: float, seed: int, key: str
) -> tuple[Mask, NDArray[np.int64], NDArray[np.int64]]:
    """Return which cells are locked, and the cell of each row and column."""
    if not 0 <= share < 1:
        raise ValueError(f"share must be at least 0 and less than 1, got {share}")
    height, width = shape
    side = _side(shape)
    y_cell, x_cell = np.arange(height) // side, np.arange(width) // side
    offset = np.random.default_rng([seed, zlib.crc32(key.encode())]).random()
    n_y, n_x = -(-height // side), -(-width // side)
    phase = offset + np.arange(n_y)[:, None] * _STEP_Y + np.arange(n_x)[None, :] * _STEP_X
    return phase % 1.0 < share, y_cell, x_cell


def _side(shape: tuple[int, int]) -> int:
    return max(_MIN_CELL, round(max(shape, default=0) / _CELLS_PER_SIDE))


def _strip(
    held: Mask,  # [H, W]
    y_cell: NDArray[np.int64],
    x_cell: NDArray[np.int64],
    n_cells: tuple[int, ...],
) -> Mask:  # [H, W]
    """Return the pixels within a quarter of a cell of a cell that holds locked pixels."""
    occupied = np.zeros(n_cells, dtype=bool)
    y, x = np.nonzero(held)
    occupied[y_cell[y], x_cell[x]] = True
    height, width = held.shape
    margin = _side((height, width)) // 4
    near = np.zeros(held.shape, dtype=bool)
    for dy in (-margin, 0, margin):
        rows = y_cell[np.clip(np.arange(height) + dy, 0, height - 1)]
        for dx in (-margin, 0, margin):
            columns = x_cell[np.clip(np.arange(width) + dx, 0, width - 1)]
            near |= occupied[rows[:, None], columns[None, :]]
    return near
