"""What there is to learn from: the labelled planes of a project, with the network's features of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn.classes import ignore_value
from napari_crfasrnn.edits import Box, Labels, Mask, label_regions, labelled_mask, split_locked
from napari_crfasrnn.experts.sampling import Grid, Positions
from napari_crfasrnn.imaging import open_image
from napari_crfasrnn.network import Features, SegmentationModel
from napari_crfasrnn.progress import Cancel, raise_if_cancelled
from napari_crfasrnn.project import Project
from napari_crfasrnn.training.positions import locate

# The pattern of the locked share belongs to the project, not to a round: another seed of a later round
# must not hold back what an earlier one trained on.
_LOCK_SEED = 0

_MAX_TRAINING = 20_000  # pixels of a plane; a drawn sample of a dense mask teaches as much as all of it
_MAX_LOCKED = 20_000
_MAX_UNTOUCHED = 4_000


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
    aside
        [H, W] labelled pixels in neither share, because they are next to the locked one.
    n_locked_areas
        Of how many connected areas of one class a part is held back.
    box
        (y0, x0, y1, x1) where it counts, the end excluded; None: everywhere. There are no labels elsewhere.
    """

    item_id: int
    index: tuple[int, ...]
    image: Tensor
    training: Labels
    locked: Labels
    aside: Mask
    n_locked_areas: int = 0
    box: Box | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.training.shape[0], self.training.shape[1]

    @property
    def place(self) -> Box:
        """Where it counts."""
        return self.box or (0, 0, *self.size)

    def part(self, box: Box) -> LabelledPlane:
        """Return this plane with the labels within a box alone."""
        inside = np.zeros(self.size, bool)
        inside[box[0] : box[2], box[1] : box[3]] = True
        training, locked = (
            np.where(inside, labels, labels.dtype.type(ignore_value(labels.dtype)))
            for labels in (self.training, self.locked)
        )
        return replace(self, training=training, locked=locked, aside=self.aside & inside, box=box)

    def without(self, values: Sequence[int]) -> LabelledPlane:
        """Return this plane with the labels of some classes put aside."""
        aside = self.aside.copy()
        parts = []
        for labels in (self.training, self.locked):
            left = np.isin(labels, values)
            aside |= left
            parts.append(np.where(left, labels.dtype.type(ignore_value(labels.dtype)), labels))
        return replace(self, training=parts[0], locked=parts[1], aside=aside)

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
    """Some pixels of a plane.

    Attributes
    ----------
    positions
        Where they are in the score map.
    place
        [N, 2] row and column in the image.
    target
        [N] classes; for untouched pixels the ignore value.
    """

    positions: Positions
    place: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True)
class Look:
    """A way to look at a plane.

    Attributes
    ----------
    mirrored
        Left and right exchanged.
    scale
        Factor on the image's sides.
    gain, offset
        Brightness: values times gain plus offset, in 0..255.
    """

    mirrored: bool = False
    scale: float = 1.0
    gain: float = 1.0
    offset: float = 0.0


# The first is the image as it is. A network that saw one image at one size learns that size by heart.
LOOKS = (
    Look(),
    Look(mirrored=True),
    Look(scale=0.75, gain=1.1, offset=10),
    Look(mirrored=True, scale=1.25, gain=0.9, offset=-10),
    Look(scale=1.15, gain=0.85, offset=15),
    Look(mirrored=True, scale=0.85, gain=1.15, offset=-15),
    Look(scale=1.5, gain=0.95, offset=5),
    Look(mirrored=True, scale=0.67, gain=1.05, offset=-5),
)


@dataclass(frozen=True, eq=False)
class View:
    """What the network sees of a plane in one of the looks.

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
    training, untouched
        Pixels to learn, and pixels that nobody labelled.
    n_untouched
        How many untouched pixels the plane has, of which `untouched` is a sample.
    """

    plane: int
    grid: Grid
    input: Tensor | None
    features: Features | None
    training: PixelSample
    untouched: PixelSample
    n_untouched: int

    def encoded(self, model: SegmentationModel) -> Features:
        """Return the features of the view, from the store or by the model's encoder."""
        if self.features is not None:
            return self.features
        assert self.input is not None
        return model.network.encode(self.input)


@dataclass(frozen=True, eq=False)
class PlanePixels:
    """The pixels of a plane that take part: rows and columns."""

    training: tuple[NDArray[np.int64], NDArray[np.int64]]
    untouched: tuple[NDArray[np.int64], NDArray[np.int64]]
    n_untouched: int


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
            aside = known & (training != target) & (locked != target)
            held = locked != ignore_value(locked.dtype)
            n_areas = len(np.unique(label_regions(target)[held])) if held.any() else 0
            yield LabelledPlane(item.id, tuple(index), image, training, locked, aside, n_areas)


def draw_pixels(plane: LabelledPlane, generator: np.random.Generator) -> PlanePixels:
    """Draw the pixels of a plane that take part."""
    ignore = ignore_value(plane.training.dtype)
    y, x = np.nonzero(plane.training != ignore)
    chosen = balanced(plane.training[y, x], _MAX_TRAINING, generator)
    free_y, free_x = np.nonzero((plane.training == ignore) & (plane.locked == ignore) & ~plane.aside)
    some = any_of(len(free_y), _MAX_UNTOUCHED, generator)
    return PlanePixels((y[chosen], x[chosen]), (free_y[some], free_x[some]), len(free_y))


def make_view(
    model: SegmentationModel,
    number: int,
    plane: LabelledPlane,
    pixels: PlanePixels,
    look: Look,
    *,
    encode: bool,
    features: Features | None = None,
    cancel: Cancel | None = None,
) -> View:
    """Return a view of a plane.

    Parameters
    ----------
    number
        Number of the plane.
    pixels
        Those that take part.
    look
        How to look at it.
    encode
        Run the encoder now, once for all iterations.
    features
        What it makes of the look, where that is known.
    cancel
        Asked in between; `Cancelled` comes out where it says so.
    """
    with torch.no_grad():
        seen = model.preprocess(_changed(plane.image, look))
        if encode:
            features = model.network.encode(seen, cancel)
    grid = Grid(plane.size, (int(seen.shape[-2]), int(seen.shape[-1])))
    training, untouched = (
        _sample(model, grid, plane.training, *part, mirrored=look.mirrored)
        for part in (pixels.training, pixels.untouched)
    )
    stored = seen if features is None else None
    return View(number, grid, stored, features, training, untouched, pixels.n_untouched)


def _changed(image: Tensor, look: Look) -> Tensor:
    """Return an image [1, C, H, W] as it appears in a look."""
    if look.scale != 1:
        size = [max(1, round(side * look.scale)) for side in image.shape[-2:]]
        image = F.interpolate(image, size=size, mode="bilinear", antialias=True)
    if (look.gain, look.offset) != (1, 0):
        image = (image * look.gain + look.offset).clamp(0, 255)
    return image.flip(-1) if look.mirrored else image


def locked_sample(model: SegmentationModel, plane: LabelledPlane, grid: Grid) -> PixelSample:
    """Return the held-back pixels of a plane (a drawn sample, where they are many)."""
    y, x = np.nonzero(plane.locked != ignore_value(plane.locked.dtype))
    chosen = any_of(len(y), _MAX_LOCKED, np.random.default_rng([_LOCK_SEED, plane.item_id]))
    return _sample(model, grid, plane.locked, y[chosen], x[chosen], mirrored=False)


def _sample(
    model: SegmentationModel,
    grid: Grid,
    labels: Labels,
    y: NDArray[np.int64],
    x: NDArray[np.int64],
    *,
    mirrored: bool,
) -> PixelSample:
    device = model.device
    return PixelSample(
        positions=locate(model.network, grid, y, x, mirrored=mirrored).to(device),
        place=torch.from_numpy(np.stack([y, x], axis=1)).to(device, torch.float32),
        target=torch.from_numpy(labels[y, x].astype(np.int64)).to(device),
    )


def balanced(classes: NDArray[np.integer], limit: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return up to ``limit`` places, drawn by class frequency to the power -1/2, so that rare ones stay."""
    if len(classes) <= limit:
        return np.arange(len(classes))
    chance = np.bincount(classes)[classes].astype(np.float64) ** -0.5
    return np.sort(generator.choice(len(classes), limit, replace=False, p=chance / chance.sum()))


def any_of(n: int, limit: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return up to ``limit`` of n places."""
    if n <= limit:
        return np.arange(n)
    return np.sort(generator.choice(n, limit, replace=False))
