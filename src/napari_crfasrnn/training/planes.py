"""What there is to learn from: the labelled planes of a project, with the network's features of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn.classes import ignore_value
from napari_crfasrnn.edits import Labels, labelled_mask, split_locked
from napari_crfasrnn.imaging import open_image
from napari_crfasrnn.network import Features, SegmentationModel
from napari_crfasrnn.progress import Cancel, raise_if_cancelled
from napari_crfasrnn.project import Project
from napari_crfasrnn.training.positions import Grid, Positions, locate

# The pattern of the locked share belongs to the project, not to a round: another seed of a later round
# must not hold back what an earlier one trained on.
_LOCK_SEED = 0

_MAX_TRAINING = 20_000  # pixels of a plane; a drawn sample of a dense mask teaches as much as all of it
_MAX_LOCKED = 20_000
_MAX_KEPT = 4_000


@dataclass(frozen=True, eq=False)
class LabelledPlane:
    """One plane with labels.

    Attributes
    ----------
    item_id, index
        Where it is in the project.
    image
        [1, C, H, W], 0..255.
    training, locked
        [H, W] classes to learn and classes held back; the ignore value elsewhere.
    """

    item_id: int
    index: tuple[int, ...]
    image: Tensor
    training: Labels
    locked: Labels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.training.shape[0], self.training.shape[1]

    @property
    def n_training(self) -> int:
        """How many pixels there are to learn."""
        return int(np.count_nonzero(self.training != ignore_value(self.training.dtype)))

    @property
    def n_locked(self) -> int:
        """How many pixels are held back."""
        return int(np.count_nonzero(self.locked != ignore_value(self.locked.dtype)))


@dataclass(frozen=True, eq=False)
class PixelSample:
    """Labelled pixels of a plane: places in the score map, and classes [N]."""

    positions: Positions
    target: Tensor

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True, eq=False)
class View:
    """What the network sees of a plane, as it is or with left and right exchanged.

    Attributes
    ----------
    plane
        Number of the plane.
    grid
        Sizes of the image and of the network's input.
    input
        [1, 3, h, w] what the network reads; None once `features` are all that is needed.
    features
        What the encoder makes of it; None when the encoder is trained, too.
    training, kept
        Pixels to learn, and pixels that nobody touched (their target is not used).
    """

    plane: int
    grid: Grid
    input: Tensor | None
    features: Features | None
    training: PixelSample
    kept: PixelSample


def labelled_planes(project: Project, locked_share: float, cancel: Cancel | None) -> Iterator[LabelledPlane]:
    """Yield every plane of a project with labels that are known to be true, split into its two shares.

    Raises
    ------
    Cancelled
        When asked to stop.
    """
    for item in project.items:
        source = None
        for index in item.indices():
            raise_if_cancelled(cancel)
            labels = item.labels(index)
            known = labelled_mask(labels, item.baseline(index), item.verified(index))
            if not known.any():
                continue
            if source is None:
                source = open_image(item.image(), item.axes, item.spacing)
            target = np.where(known, labels, labels.dtype.type(ignore_value(labels.dtype)))
            training, locked = split_locked(target, locked_share, seed=_LOCK_SEED, key=f"item {item.id}")
            image = torch.from_numpy(source.plane(index))[None]
            yield LabelledPlane(item.id, tuple(index), image, training, locked)


def draw_view(
    model: SegmentationModel,
    number: int,
    plane: LabelledPlane,
    generator: np.random.Generator,
    *,
    mirrored: bool,
    encode: bool,
) -> View:
    """Return a view of a plane with a sample of its pixels.

    Parameters
    ----------
    number
        Number of the plane.
    generator
        Draws the pixels.
    mirrored
        Exchange left and right.
    encode
        Run the encoder now, once for all iterations.
    """
    with torch.no_grad():
        seen = model.preprocess(plane.image.flip(-1) if mirrored else plane.image)
        grid = Grid(plane.size, (int(seen.shape[-2]), int(seen.shape[-1])))
        features = model.network.encode(seen) if encode else None
    ignore = ignore_value(plane.training.dtype)

    def sample(y: NDArray[np.int64], x: NDArray[np.int64]) -> PixelSample:
        positions = locate(model.network, grid, y, x, mirrored=mirrored)
        target = torch.from_numpy(plane.training[y, x].astype(np.int64))
        return PixelSample(positions.to(model.device), target.to(model.device))

    y, x = np.nonzero(plane.training != ignore)
    chosen = _balanced(plane.training[y, x], _MAX_TRAINING, generator)
    untouched = (plane.training == ignore) & (plane.locked == ignore)
    kept_y, kept_x = np.nonzero(untouched)
    kept = _any(len(kept_y), _MAX_KEPT, generator)
    return View(
        plane=number,
        grid=grid,
        input=None if encode else seen,
        features=features,
        training=sample(y[chosen], x[chosen]),
        kept=sample(kept_y[kept], kept_x[kept]),
    )


def locked_sample(model: SegmentationModel, plane: LabelledPlane, grid: Grid) -> PixelSample:
    """Return the held-back pixels of a plane (a drawn sample, where they are many)."""
    y, x = np.nonzero(plane.locked != ignore_value(plane.locked.dtype))
    generator = np.random.default_rng([_LOCK_SEED, plane.item_id])
    chosen = _any(len(y), _MAX_LOCKED, generator)
    y, x = y[chosen], x[chosen]
    positions = locate(model.network, grid, y, x).to(model.device)
    return PixelSample(positions, torch.from_numpy(plane.locked[y, x].astype(np.int64)))


def _balanced(classes: NDArray[np.integer], limit: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return up to ``limit`` places, drawn by class frequency to the power -1/2, so that rare ones stay."""
    if len(classes) <= limit:
        return np.arange(len(classes))
    chance = np.bincount(classes)[classes].astype(np.float64) ** -0.5
    return np.sort(generator.choice(len(classes), limit, replace=False, p=chance / chance.sum()))


def _any(n: int, limit: int, generator: np.random.Generator) -> NDArray[np.int64]:
    if n <= limit:
        return np.arange(n)
    return np.sort(generator.choice(n, limit, replace=False))
